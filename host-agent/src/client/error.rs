//! Why the agent did not do what it was asked for, and what can be done about that.

use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::StatusCode;

use crate::api::types::Problem;

/// What was asked for is not there.
const ABSENT: [&str; 3] = [
    "urn:waypost:problem:unknown-service",
    "urn:waypost:problem:no-healthy-node",
    "urn:waypost:problem:unknown-registration",
];

/// Why the agent did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at the socket.
    #[error(
        "no agent listens at {}; start one (waypost agent --config FILE), name its socket with --agent, or go straight \
         at etcd with --etcd",
        socket.display()
    )]
    NoAgent {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket may not be used.
    #[error("no permission to use the agent's socket {}; run this as root or as a member of the socket's group", socket.display())]
    Forbidden {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket cannot be connected to for another reason.
    #[error("the agent's socket {} cannot be used: {source}", socket.display())]
    Unusable {
        /// The socket.
        socket: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It did not answer.
    #[error("the agent at {} did not answer within {after:?}; is it stopped or the host overloaded? Its log tells", socket.display())]
    TimedOut {
        /// The socket.
        socket: PathBuf,
        /// How long it was given.
        after: Duration,
    },
    /// The answer broke off, or was none.
    #[error("the agent at {} broke off: {reason}", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What happened.
        reason: String,
    },
    /// It refused, and says why.
    #[error("{}", describe(.0))]
    Refused(Box<Problem>),
    /// It refused without saying why in a way that we know.
    #[error("the agent answers {status}{}; is it as new as this command?", said(.text))]
    Unexplained {
        /// Its status.
        status: StatusCode,
        /// The beginning of what it said.
        text: String,
    },
}

impl ClientError {
    /// Whether nobody was reached.
    pub fn is_unreachable(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Unexplained { .. })
    }

    /// Whether the agent says that what was asked for is not there.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Refused(problem) if ABSENT.contains(&problem.kind.as_str()))
    }

    pub(super) fn unreachable(socket: &Path, source: io::Error) -> Self {
        let socket = socket.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Self::NoAgent { socket },
            io::ErrorKind::PermissionDenied => Self::Forbidden { socket },
            _ => Self::Unusable { socket, source },
        }
    }

    pub(super) fn refused(status: StatusCode, body: &[u8]) -> Self {
        match serde_json::from_slice(body) {
            Ok(problem) => Self::Refused(Box::new(problem)),
            Err(_) => {
                let text = String::from_utf8_lossy(body).trim().chars().take(200).collect();
                Self::Unexplained { status, text }
            }
        }
    }
}

fn describe(problem: &Problem) -> String {
    let mut text = if problem.detail.is_empty() { problem.title.clone() } else { problem.detail.clone() };
    for error in &problem.errors {
        let place = if error.pointer.is_empty() { "the whole" } else { &error.pointer };
        // Writing to a string cannot fail.
        _ = write!(text, "\n  {place}: {}", error.detail);
    }
    text
}

fn said(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_with_every_place_that_is_wrong() {
        let body = br#"{"type":"urn:waypost:problem:invalid-body","title":"Invalid body","status":422,
            "detail":"2 fields are wrong","errors":[{"pointer":"/port","detail":"is missing"},{"pointer":"","detail":"?"}]}"#;
        let error = ClientError::refused(StatusCode::UNPROCESSABLE_ENTITY, body);
        assert_eq!(error.to_string(), "2 fields are wrong\n  /port: is missing\n  the whole: ?");
        assert!(!error.is_unreachable() && !error.is_absent());
        let body =
            br#"{"type":"urn:waypost:problem:no-healthy-node","title":"No healthy node","status":503,"detail":"x"}"#;
        assert!(ClientError::refused(StatusCode::SERVICE_UNAVAILABLE, body).is_absent());
    }

    #[test]
    fn an_answer_that_is_no_problem_document_is_told_as_it_came() {
        let error = ClientError::refused(StatusCode::NOT_FOUND, b"no such path\n");
        assert_eq!(error.to_string(), "the agent answers 404 Not Found (no such path); is it as new as this command?");
    }

    #[test]
    fn whoever_finds_no_agent_is_told_what_to_do() {
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused] {
            let error = ClientError::unreachable(Path::new("/run/x.sock"), kind.into()).to_string();
            assert!(error.contains("/run/x.sock") && error.contains("--etcd"), "{error}");
        }
        let error = ClientError::unreachable(Path::new("/run/x.sock"), io::ErrorKind::PermissionDenied.into());
        assert!(matches!(error, ClientError::Forbidden { .. }) && error.is_unreachable());
    }
}
