//! Exit statuses, and the failures that have one of their own.

/// It failed.
pub(super) const FAILED: u8 = 1;
/// The command line is wrong; clap's own, too.
pub(super) const USAGE: u8 = 2;
/// What was asked for is not there: no such service, no node that may be picked, no such registration, policy or route.
pub(super) const NOT_THERE: u8 = 3;
/// `EX_UNAVAILABLE`: neither the agent nor etcd was reached. For a lock: it was not had, and the command not started.
pub(super) const UNAVAILABLE: u8 = 69;
/// `EX_TEMPFAIL`: the lock was lost, and the command stopped.
pub(super) const LOST: u8 = 75;

/// For the help of all commands.
pub(super) const HELP: &str = "\
Exit status:
    0  done; for what runs until it is told to end: it has ended in order
    1  failed; the reason is on stderr
    2  the command line is wrong
    3  what was asked for is not there: no such service, no node to pick, no such registration, policy or route
   69  neither the agent nor etcd was reached
lock and elect pass on the exit status of their command: see their own help.

Without --agent, --etcd and --config: the socket in WAYPOST_AGENT, or else the etcd in WAYPOST_ETCD, or else the agent
at /run/waypost/agent.sock.";

/// A failure with an exit status of its own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Exit {
    status: u8,
    message: String,
}

impl Exit {
    /// What was asked for is not there.
    pub(super) fn not_there(message: impl Into<String>) -> anyhow::Error {
        Self { status: NOT_THERE, message: message.into() }.into()
    }

    /// The command line asks for what cannot be.
    pub(super) fn usage(message: impl Into<String>) -> anyhow::Error {
        Self { status: USAGE, message: message.into() }.into()
    }

    /// Nobody was reached.
    pub(super) fn unavailable(message: impl Into<String>) -> anyhow::Error {
        Self { status: UNAVAILABLE, message: message.into() }.into()
    }
}

/// The exit status of a failure.
pub(super) fn status_of(error: &anyhow::Error) -> u8 {
    error.downcast_ref::<Exit>().map_or(FAILED, |exit| exit.status)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_failure_keeps_its_status_whatever_is_said_about_it() {
        let error = Err::<(), _>(Exit::not_there("no service web")).context("cannot pick").unwrap_err();
        assert_eq!(status_of(&error), NOT_THERE);
        assert_eq!(status_of(&anyhow::anyhow!("anything else")), FAILED);
    }
}
