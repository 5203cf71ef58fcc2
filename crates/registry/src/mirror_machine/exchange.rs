//! What the machine and the task round it say to each other.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::mirror::KeyValue;

/// A page to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) from: Vec<u8>,
    /// 0: the present one.
    pub(crate) revision: i64,
    pub(crate) limit: i64,
}

/// A page that came.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) cluster_id: u64,
    pub(crate) revision: i64,
    pub(crate) more: bool,
    pub(crate) last_key: Vec<u8>,
    pub(crate) entries: Vec<Arc<KeyValue>>,
    /// Keys that are no UTF-8, with the revision of their last change.
    pub(crate) skipped: Vec<(Vec<u8>, i64)>,
}

/// Why no page came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RangeFailure {
    /// The revision is not kept any more.
    Compacted,
    /// The revision is not there yet: another history.
    Future,
    /// More bytes than are taken.
    TooLarge,
    /// No answer within this time.
    TimedOut(Duration),
    /// Anything else.
    Broken(String),
}

/// A change that the watch told of.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// Its bytes, where they are no UTF-8.
    pub(crate) key: Result<String, Vec<u8>>,
    /// `None`: deleted.
    pub(crate) put: Option<Arc<KeyValue>>,
    pub(crate) mod_revision: i64,
}

/// A message of the watch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    pub(crate) cluster_id: u64,
    pub(crate) revision: i64,
    pub(crate) created: bool,
    /// The reason, if it was cancelled.
    pub(crate) cancelled: Option<String>,
    pub(crate) compact_revision: i64,
    pub(crate) changes: Vec<Change>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Drop the connection; nothing until then.
    Wait(Instant),
    Connect,
    Range(Range),
    /// Open a watch from this revision.
    Watch {
        from: i64,
    },
    /// Wait for messages; ask for progress at one time, give the stream up at the other.
    Listen {
        ask_at: Instant,
        dead_at: Instant,
        /// What to fetch meanwhile.
        beside: Beside,
    },
}

/// What is fetched beside the watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    Nothing,
    /// Nothing until then.
    NothingUntil(Instant),
    Page(Range),
}
