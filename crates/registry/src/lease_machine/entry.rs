//! One key: what is intended, what etcd was last seen to hold, and what to do about the difference.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    backoff::Backoff,
    registrar::{IfHeld, Place, Registration},
};

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
    /// A key, by the store's revision: it has none, or somebody else holds it.
    Name,
    /// The key to be free: somebody else holds it under this lease (0: none), and it is not to be taken from them.
    Free { holder: i64 },
    /// To be looked at.
    Check,
    /// To be put, if etcd still holds the key at this revision (0: not at all).
    Put { seen: i64 },
    /// To be deleted, if etcd still holds the key at this revision.
    Delete { seen: i64 },
}

#[derive(Debug)]
pub(super) struct Entry {
    /// None: it is numbered, and has no number yet.
    pub(super) key: Option<String>,
    pub(super) place: Place,
    /// The number that it got last. The next one is larger: somebody holds this one.
    pub(super) number: i64,
    /// The value that is to be there; `None`: the key is to be absent.
    pub(super) intent: Option<Arc<[u8]>>,
    /// Counts the changes of `intent`.
    pub(super) version: u64,
    pub(super) actual: Actual,
    /// Version that was last known to be in etcd: putting it once more is a re-assertion.
    pub(super) registered: Option<u64>,
    /// How the key, once registered, was found to be gone from etcd. Cleared by anything that may have brought it back.
    pub(super) lost: Option<String>,
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
    pub(super) fn new(registration: Registration) -> Self {
        let Registration { place, value } = registration;
        Self {
            key: match &place {
                Place::Key { key, .. } => Some(key.clone()),
                Place::Numbered { .. } => None,
            },
            place,
            number: 0,
            intent: Some(value.into()),
            version: 1,
            actual: Actual::Unknown,
            registered: None,
            lost: None,
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
        if self.intent.is_none() {
            self.lost = None;
        }
        self.backoff.reset();
    }

    /// What is to be done, with `lease` held; leases in `ours` are or were held by this registrar.
    pub(super) fn need(&self, lease: i64, ours: &[i64]) -> Need {
        if self.key.is_none() {
            return if self.intent.is_some() { Need::Name } else { Need::Nothing };
        }
        match (&self.intent, self.actual) {
            (_, Actual::Unknown) => Need::Check,
            (Some(_), Actual::Known(None)) => Need::Put { seen: 0 },
            (Some(_), Actual::Known(Some(seen))) if seen.lease == lease && seen.version == Some(self.version) => {
                Need::Nothing
            }
            (Some(_), Actual::Known(Some(seen))) if self.yields() && !ours.contains(&seen.lease) => match self.place {
                Place::Key { .. } => Need::Free { holder: seen.lease },
                Place::Numbered { .. } => Need::Name,
            },
            (Some(_), Actual::Known(Some(seen))) => Need::Put { seen: seen.mod_revision },
            (None, Actual::Known(Some(seen))) if ours.contains(&seen.lease) => Need::Delete { seen: seen.mod_revision },
            (None, Actual::Known(_)) => Need::Nothing,
        }
    }

    /// Whether it leaves a key to somebody else who holds it.
    fn yields(&self) -> bool {
        !matches!(self.place, Place::Key { if_held: IfHeld::Overwrite, .. })
    }

    /// Whether it ends when somebody else holds the key.
    pub(super) fn fails(&self) -> bool {
        matches!(self.place, Place::Key { if_held: IfHeld::Fail, .. })
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
        let key = self.key.clone().unwrap_or_default();
        self.actual = Actual::Unknown;
        self.cause = match lease {
            None => return self.lose(|| format!("somebody else deleted key {key}")),
            Some(lease) if lease == 0 || ours.contains(&lease) => Some(format!("somebody else changed key {key}")),
            Some(lease) => {
                self.takeovers += 1;
                let advice = match self.takeovers {
                    1 => "",
                    _ => ", again: another agent registers this key: set node or instance",
                };
                Some(format!("somebody else put key {key} under lease {lease:x}{advice}"))
            }
        };
    }

    /// The lease that was held is gone, and what was under it.
    pub(super) fn lease_gone(&mut self, held: Option<i64>) {
        self.actual = Actual::Unknown;
        if let Some(lease) = held {
            self.lose(|| format!("lease {lease:x} is gone from etcd, and the key with it"));
        }
    }

    /// It is known to be gone from etcd; how, if that is not known already.
    fn lose(&mut self, how: impl FnOnce() -> String) {
        if self.intent.is_some() && self.registered.is_some() && self.lost.is_none() {
            self.lost = Some(how());
        }
    }

    /// etcd was looked at: this is there.
    pub(super) fn seen(&mut self, seen: Option<Seen>) {
        self.actual = Actual::Known(seen);
        if seen.is_some() {
            self.lost = None;
        } else {
            self.lose(|| "the key is gone from etcd".into());
        }
    }

    /// It may be in etcd as asked, or not: the answer did not come.
    pub(super) fn doubt(&mut self) {
        self.actual = Actual::Unknown;
        self.lost = None;
    }

    /// etcd holds what was asked for.
    pub(super) fn settled(&mut self) {
        self.alone = false;
        self.retry_at = None;
        self.cause = None;
        self.lost = None;
        self.backoff.reset();
    }
}
