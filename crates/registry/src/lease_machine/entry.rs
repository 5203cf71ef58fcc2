//! One key: what is intended, what etcd was last seen to hold, and what to do about the difference.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::backoff::Backoff;

const REFUSED_BASE: Duration = Duration::from_millis(200);
const REFUSED_MAX: Duration = Duration::from_secs(5);

/// What etcd holds for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) lease: i64,
    pub(super) mod_revision: i64,
    /// Version of the intent whose value it is; `None` for any other value.
    pub(super) version: Option<u64>,
}

/// What is known of what etcd holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Actual {
    /// Nothing: never looked, or a request may or may not have come through.
    Unknown,
    /// This, when it was last looked at; `None`: no such key.
    Known(Option<Seen>),
}

/// What an entry needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing: etcd holds what is intended.
    Nothing,
    /// To be looked at.
    Check,
    /// To be put, if etcd still holds the key at this revision (0: not at all).
    Put { seen: i64 },
    /// To be deleted, if etcd still holds the key at this revision.
    Delete { seen: i64 },
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    /// The value that is to be there; `None`: the key is to be absent.
    pub(super) intent: Option<Arc<[u8]>>,
    /// Counts the changes of `intent`.
    pub(super) version: u64,
    pub(super) actual: Actual,
    /// Version that was last known to be in etcd: putting it once more is a re-assertion.
    pub(super) registered: Option<u64>,
    /// To be forgotten once the key is absent.
    pub(super) leaving: bool,
    /// etcd refused a batch with it: asked for by itself, so that one bad key cannot hold up the others.
    pub(super) alone: bool,
    pub(super) retry_at: Option<Instant>,
    pub(super) cause: Option<String>,
    /// How often somebody else's lease was found to hold the key instead.
    takeovers: u32,
    backoff: Backoff,
}

impl Entry {
    pub(super) fn new(key: String, value: Vec<u8>) -> Self {
        Self {
            key,
            intent: Some(value.into()),
            version: 1,
            actual: Actual::Unknown,
            registered: None,
            leaving: false,
            alone: false,
            retry_at: None,
            cause: None,
            takeovers: 0,
            backoff: Backoff::new(REFUSED_BASE, REFUSED_MAX),
        }
    }

    /// Changes the intent. A refusal concerned the old one: the new one is tried at once.
    pub(super) fn intend(&mut self, value: Option<Vec<u8>>) {
        let value: Option<Arc<[u8]>> = value.map(Into::into);
        if value == self.intent {
            return;
        }
        self.intent = value;
        self.version += 1;
        self.retry_at = None;
        self.backoff.reset();
    }

    /// What is to be done, with `lease` held; leases in `ours` are or were held by this registrar.
    pub(super) fn need(&self, lease: i64, ours: &[i64]) -> Need {
        match (&self.intent, self.actual) {
            (_, Actual::Unknown) => Need::Check,
            (Some(_), Actual::Known(None)) => Need::Put { seen: 0 },
            (Some(_), Actual::Known(Some(seen))) if seen.lease == lease && seen.version == Some(self.version) => {
                Need::Nothing
            }
            (Some(_), Actual::Known(Some(seen))) => Need::Put { seen: seen.mod_revision },
            (None, Actual::Known(Some(seen))) if ours.contains(&seen.lease) => Need::Delete { seen: seen.mod_revision },
            (None, Actual::Known(_)) => Need::Nothing,
        }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.retry_at.is_none_or(|at| at <= now)
    }

    /// etcd refused a request that had this entry only.
    pub(super) fn refused(&mut self, cause: String, now: Instant, random: f64) {
        self.retry_at = Some(now + self.backoff.next(random));
        self.cause = Some(cause);
    }

    /// Somebody else deleted the key, or put it under this lease; leases in `ours` are or were this registrar's.
    pub(super) fn taken(&mut self, lease: Option<i64>, ours: &[i64]) {
        let key = &self.key;
        self.actual = Actual::Unknown;
        self.cause = Some(match lease {
            None => format!("somebody else deleted key {key}"),
            Some(lease) if lease == 0 || ours.contains(&lease) => format!("somebody else changed key {key}"),
            Some(lease) => {
                self.takeovers += 1;
                let advice = match self.takeovers {
                    1 => "",
                    _ => ", again: another agent registers this key: set node or instance",
                };
                format!("somebody else put key {key} under lease {lease:x}{advice}")
            }
        });
    }

    /// etcd holds what was asked for.
    pub(super) fn settled(&mut self) {
        self.alone = false;
        self.retry_at = None;
        self.cause = None;
        self.backoff.reset();
    }
}
