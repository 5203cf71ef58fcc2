//! A command run as a child: signals are forwarded to it, and its end is told as a shell tells it.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
    time::Duration,
};

use rustix::process::{Pid, kill_process};
use tokio::process::{Child, Command};

use super::signals::Signals;

/// How long the command has to end after `SIGTERM`, before it gets `SIGKILL`.
const GRACE: Duration = Duration::from_secs(5);

/// Starts the command, with more in its environment.
pub(super) fn spawn(command: &[OsString], environment: &[(&str, String)]) -> Result<Child, (u8, String)> {
    let (program, arguments) = command.split_first().ok_or_else(|| (127, "no command is given".to_owned()))?;
    let child = Command::new(program).args(arguments).envs(environment.iter().cloned()).kill_on_drop(true).spawn();
    child.map_err(|error| {
        let status = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
        (status, format!("cannot run {}: {error}", program.display()))
    })
}

/// Waits for its end, and forwards signals until then.
pub(super) async fn wait(child: &mut Child, signals: &mut Signals) -> io::Result<u8> {
    loop {
        tokio::select! {
            ended = child.wait() => return ended.map(status),
            // A terminal sends Ctrl-C to the command too: forwarded, it would come twice.
            signal = signals.next() => if signal != rustix::process::Signal::INT || !io::stdin().is_terminal() {
                send(child, signal);
            },
        }
    }
}

/// Ends it: `SIGTERM`, and `SIGKILL` if that does not help in time.
pub(super) async fn stop(child: &mut Child) -> io::Result<()> {
    send(child, rustix::process::Signal::TERM);
    match tokio::time::timeout(GRACE, child.wait()).await {
        Ok(ended) => ended.map(|_| ()),
        Err(_) => child.kill().await,
    }
}

/// A signal for the command; one that has ended gets none.
fn send(child: &Child, signal: rustix::process::Signal) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(Err(error)) = pid.map(|pid| kill_process(pid, signal)) {
        eprintln!("waypost: cannot forward a signal: {error}");
    }
}

/// As a shell has it: 128 and the signal's number, if one ended the command.
fn status(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

/// The status of a process that a signal ends.
pub(super) fn status_of_signal(signal: rustix::process::Signal) -> u8 {
    status(ExitStatus::from_raw(signal.as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_killed_command_is_128_and_the_signal() {
        assert_eq!(status(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(status(ExitStatus::from_raw(9)), 137);
        assert_eq!(status_of_signal(rustix::process::Signal::TERM), 143);
    }
}
