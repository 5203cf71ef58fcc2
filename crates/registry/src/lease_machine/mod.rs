//! The registrar's decisions: one lease, and the keys under it. Pure: told the time, a random number and the outcome
//! of each request, it says what to do next. One request is under way at a time.
//!
//! ```text
//!            +--------- any failure that is not etcd's own answer: wait (backoff), next endpoint ---------+
//!            v                                                                                             |
//!   Down --Connect--> Up, no lease --Grant-------------------------------> Held --KeepAlive every TTL/3--> Held
//!                     Up, lease to adopt --Adopt: lives, TTL long enough-> Held                            |
//!                                         \-Adopt: gone, or TTL too short-> no lease                       |
//!                     Up, no lease <------- etcd says that the lease is gone (nothing else ends it) -------+
//!
//!   while Held, each key:
//!
//!   Unknown --Check--> as intended <------------------------------------+   verified after every keepalive;
//!      ^         \---> other --Put / Delete, if still at that revision--+   a difference makes it Unknown
//!      |         \---> held by somebody else, not to be taken from them: waits, or ends
//!      +--------------- outcome unknown, or somebody was faster ---------
//!
//!   numbered: no key --Revision--> a key, named by it --Put, if absent--> as intended
//!                ^                                          |
//!                +---------- somebody else holds it --------+
//! ```
//!
//! * A lease that could not be kept alive in time is *asked about*, not given up: etcd may have extended it (a new
//!   leader does). Its old id is kept alive first after each reconnect, and only etcd's answer ends it.
//! * Every write names the revision it replaces. So an older value that was delayed on its way can never overwrite a
//!   newer one, and a key that somebody else changed is looked at again before it is written.
//! * A key under another lease is put again while it is intended and may be taken from its holder, and left alone when
//!   it is to be deleted. A key under a lease of ours never counts as somebody else's.
//! * A numbered key keeps its name through every loss. It gets another one only if somebody else holds that name by then,
//!   as after a wipe, when revisions begin anew.
//! * Lost is said of a key that etcd has said to be gone, or whose lease it has said to be gone; once anything was sent
//!   that may have brought it back, that is not known any more.
//! * The bound: whatever happened to the keys, the next keepalive or verification finds it, TTL/3 later at most.

mod entry;
mod op;
mod outcome;
mod report;
#[cfg(test)]
mod tests;
mod work;

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use entry::{Actual, Entry};
pub(crate) use op::{Answer, Failure, Found, Id, Op, Put, Step};

use crate::{
    backoff::Backoff,
    registrar::{RegistrarStats, Registration},
};

/// Operations in one transaction; etcd's default limit.
const BATCH: usize = 128;
/// Bytes of values in one transaction; etcd's default limit for a request is 1.5 MiB.
const BATCH_BYTES: usize = 512 * 1024;
const RECONNECT_BASE: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(1);
/// No deadline is shorter, however short the TTL.
const SHORTEST_LIMIT: Duration = Duration::from_millis(500);
/// etcd's own limit, in seconds.
const LONGEST_TTL: i64 = 9_000_000_000;
/// Leases that are remembered as ours.
const REMEMBERED_LEASES: usize = 16;

#[derive(Clone, Copy, Debug)]
enum Link {
    Down { retry_at: Instant },
    Up,
}

#[derive(Clone, Copy, Debug)]
enum Lease {
    None,
    Adopting(i64),
    Held { id: i64, ttl: Duration, confirmed_at: Instant, keepalive_at: Instant },
}

#[derive(Debug)]
pub(crate) struct LeaseMachine {
    seconds: i64,
    request_timeout: Duration,
    connect_timeout: Duration,
    link: Link,
    lease: Lease,
    ours: Vec<i64>,
    entries: BTreeMap<Id, Entry>,
    by_key: HashMap<String, Id>,
    /// Entries still to be verified after the last keepalive.
    unverified: Vec<Id>,
    prune: bool,
    release: Vec<String>,
    ending: bool,
    backoff: Backoff,
    cause: Option<String>,
    started: Instant,
    stats: RegistrarStats,
}

impl LeaseMachine {
    pub(crate) fn new(
        ttl: Duration,
        adopt: Option<i64>,
        connect_timeout: Duration,
        request_timeout: Duration,
        now: Instant,
    ) -> Self {
        let seconds = ttl.as_millis().div_ceil(1000).clamp(1, LONGEST_TTL as u128) as i64;
        let ttl = Duration::from_secs(seconds.unsigned_abs());
        Self {
            seconds,
            request_timeout,
            connect_timeout,
            link: Link::Down { retry_at: now },
            lease: adopt.map_or(Lease::None, Lease::Adopting),
            ours: adopt.into_iter().collect(),
            entries: BTreeMap::new(),
            by_key: HashMap::new(),
            unverified: Vec::new(),
            prune: false,
            release: Vec::new(),
            ending: false,
            backoff: Backoff::new(RECONNECT_BASE, RECONNECT_MAX.min(ttl / 3)),
            cause: None,
            started: now,
            stats: RegistrarStats::default(),
        }
    }

    /// Intends a key; a registration of the same key is replaced, and its number returned.
    pub(crate) fn register(&mut self, id: Id, registration: Registration) -> Option<Id> {
        let mut entry = Entry::new(registration);
        let replaced = entry.key.clone().and_then(|key| self.by_key.insert(key, id));
        if let Some(old) = replaced.and_then(|id| self.entries.remove(&id)) {
            entry.version = old.version + 1;
            entry.actual = match old.actual {
                Actual::Known(Some(_)) => Actual::Unknown,
                other => other,
            };
        }
        self.entries.insert(id, entry);
        replaced
    }

    /// Intends another value.
    pub(crate) fn update(&mut self, id: Id, value: Vec<u8>) {
        if let Some(entry) = self.entries.get_mut(&id).filter(|entry| !entry.leaving) {
            entry.intend(Some(value));
        }
    }

    /// Intends the key to be absent.
    pub(crate) fn withdraw(&mut self, id: Id) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.intend(None);
        }
    }

    /// Intends the key to be absent, and then to be forgotten. False if there is no such registration.
    pub(crate) fn deregister(&mut self, id: Id) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        entry.intend(None);
        entry.leaving = true;
        true
    }

    /// Deletes what is under the lease and is not intended.
    pub(crate) fn prune(&mut self) {
        self.prune = true;
    }

    /// Deletes everything, with the lease.
    pub(crate) fn end(&mut self) {
        self.ending = true;
    }

    /// What to do now.
    pub(crate) fn next(&mut self, now: Instant) -> Step {
        self.started = now;
        if self.ending && matches!(self.lease, Lease::None) {
            return Step::Finished;
        }
        match self.link {
            Link::Down { retry_at } if now < retry_at => return Step::Wait(retry_at),
            Link::Down { .. } => return Step::Do(Op::Connect, self.connect_limit(now)),
            Link::Up => {}
        }
        let limit = self.request_limit();
        match self.lease {
            Lease::None => Step::Do(Op::Grant { seconds: self.seconds }, limit),
            Lease::Adopting(lease) | Lease::Held { id: lease, .. } if self.ending => {
                Step::Do(Op::Revoke { lease }, limit)
            }
            Lease::Adopting(lease) => Step::Do(Op::Adopt { lease }, limit),
            Lease::Held { id: lease, keepalive_at, .. } if keepalive_at <= now => {
                Step::Do(Op::KeepAlive { lease }, limit)
            }
            Lease::Held { id: lease, keepalive_at, .. } => match self.work(lease, now) {
                Some(op) => Step::Do(op, limit),
                None => {
                    // Only what got this far has worked: a server that fails the same request after each reconnect
                    // is not hammered.
                    self.backoff.reset();
                    let retries = self.entries.values().filter_map(|entry| entry.retry_at.filter(|at| now < *at));
                    Step::Wait(retries.fold(keepalive_at, Instant::min))
                }
            },
        }
    }

    /// Limit for connecting, signing in included. While the lease lives there must be time left for another endpoint;
    /// once it has run out, members busy with everybody's signing in get the time that they need.
    fn connect_limit(&self, now: Instant) -> Duration {
        let whole = self.connect_timeout + self.request_timeout;
        match self.lease {
            Lease::Held { ttl, confirmed_at, .. } if now < confirmed_at + ttl => whole.min(limit_within(ttl)),
            Lease::Adopting(_) => whole.min(limit_within(Duration::from_secs(self.seconds.unsigned_abs()))),
            Lease::Held { .. } | Lease::None => whole,
        }
    }

    /// Limit for a request, with a lease to lose or without.
    fn request_limit(&self) -> Duration {
        match self.lease {
            Lease::Held { ttl, .. } => self.request_timeout.min(limit_within(ttl)),
            Lease::None | Lease::Adopting(_) => self.request_timeout,
        }
    }
}

/// Limit for one request: after a third of the TTL a keepalive may meet a silent endpoint, then a dead one, and still
/// reach a third one in time.
fn limit_within(ttl: Duration) -> Duration {
    (ttl / 4).max(SHORTEST_LIMIT)
}
