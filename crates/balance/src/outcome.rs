//! How a request ended.

use std::time::Duration;

/// How a request ended, of what matters for choosing nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutcomeKind {
    /// An answer that is no fault of the node's, 4xx included.
    Success,
    /// An answer 5xx.
    ServerError,
    /// The stream or connection broke.
    Reset,
    /// There was no connection to be had.
    ConnectFailure,
    /// No answer in time.
    Timeout,
    /// The caller gave up: says nothing of the node.
    Cancelled,
}

impl OutcomeKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Success, Self::ServerError, Self::Reset, Self::ConnectFailure, Self::Timeout, Self::Cancelled];

    /// Its name in figures.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::ServerError => "server-error",
            Self::Reset => "reset",
            Self::ConnectFailure => "connect-failure",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether it counts against the node.
    pub const fn is_failure(self) -> bool {
        !matches!(self, Self::Success | Self::Cancelled)
    }
}

/// How a request ended and how long it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub kind: OutcomeKind,
    /// From being sent to the answer's headers, if known.
    pub latency: Option<Duration>,
}

impl Outcome {
    /// A request that says nothing of its node.
    pub const CANCELLED: Self = Self { kind: OutcomeKind::Cancelled, latency: None };

    /// A success after this time.
    pub const fn success(latency: Duration) -> Self {
        Self { kind: OutcomeKind::Success, latency: Some(latency) }
    }
}
