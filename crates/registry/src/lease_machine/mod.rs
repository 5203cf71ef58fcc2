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
//!      +--------------- outcome unknown, or somebody was faster ---------
//! ```
//!
//! * A lease that could not be kept alive in time is *asked about*, not given up: etcd may have extended it (a new
//!   leader does). Its old id is kept alive first after each reconnect, and only etcd's answer ends it.
//! * Every write names the revision it replaces. So an older value that was delayed on its way can never overwrite a
//!   newer one, and a key that somebody else changed is looked at again before it is written.
//! * A key under another lease is put again while it is intended, and left alone when it is to be deleted.
//! * The bound: whatever happened to the keys, the next keepalive or verification finds it, TTL/3 later at most.

mod entry;
mod op;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use entry::{Actual, Entry, Need, Seen};
pub(crate) use op::{Answer, Failure, Found, Id, Op, Put, Step};

use crate::{
    backoff::Backoff,
    registrar::{RegistrarStats, RegistrationState},
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
    pub(crate) fn register(&mut self, id: Id, key: String, value: Vec<u8>) -> Option<Id> {
        let replaced = self.by_key.insert(key.clone(), id);
        let mut entry = Entry::new(key, value);
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

    fn work(&mut self, lease: i64, now: Instant) -> Option<Op> {
        let ours = &self.ours;
        let needs = self.entries.iter().filter(|(_, entry)| entry.is_due(now));
        let needs = needs.map(|(id, entry)| (*id, entry, entry.need(lease, ours)));

        let mut checks = Vec::new();
        let mut puts = Vec::new();
        let mut bytes = 0;
        for (id, entry, need) in needs {
            match need {
                Need::Nothing => {}
                Need::Check if entry.alone => {
                    return Some(Op::Check { keys: vec![(id, entry.key.clone())], values: true });
                }
                Need::Check => checks.push((id, entry.key.clone())),
                Need::Delete { seen } => return Some(Op::Delete { id, key: entry.key.clone(), seen }),
                Need::Put { seen } => {
                    let Some(value) = &entry.intent else { continue };
                    let put =
                        Put { id, key: entry.key.clone(), value: Arc::clone(value), seen, version: entry.version };
                    if entry.alone {
                        return Some(Op::Put { lease, puts: vec![put] });
                    }
                    bytes += value.len() + entry.key.len();
                    if puts.is_empty() || bytes <= BATCH_BYTES {
                        puts.push(put);
                    }
                }
            }
            if checks.len() == BATCH || puts.len() == BATCH {
                break;
            }
        }
        if !puts.is_empty() {
            return Some(Op::Put { lease, puts });
        }
        if !checks.is_empty() {
            return Some(Op::Check { keys: checks, values: true });
        }
        self.verification().or_else(|| self.pruning(lease))
    }

    fn verification(&mut self) -> Option<Op> {
        let mut keys = Vec::new();
        while keys.len() < BATCH {
            let Some(id) = self.unverified.pop() else { break };
            if let Some(entry) = self.entries.get(&id).filter(|entry| matches!(entry.actual, Actual::Known(_))) {
                keys.push((id, entry.key.clone()));
            }
        }
        (!keys.is_empty()).then_some(Op::Check { keys, values: false })
    }

    fn pruning(&mut self, lease: i64) -> Option<Op> {
        if !self.release.is_empty() {
            let keys = self.release.split_off(self.release.len().saturating_sub(BATCH));
            return Some(Op::Release { lease, keys });
        }
        self.prune.then_some(Op::List { lease })
    }

    /// Takes in the outcome of a request that [`Self::next`] asked for.
    pub(crate) fn done(&mut self, op: Op, outcome: Result<Answer, Failure>, now: Instant, random: f64) {
        match outcome {
            Ok(answer) => {
                if op != Op::Connect {
                    self.cause = None;
                }
                self.answered(op, answer, random);
            }
            Err(Failure::LeaseGone) => self.lease_gone(&op),
            Err(Failure::Refused(cause)) => self.refused(op, cause, now, random),
            Err(Failure::Broken(cause)) => self.broken(&op, cause, now, random),
        }
    }

    fn answered(&mut self, op: Op, answer: Answer, random: f64) {
        match (op, answer) {
            (Op::Connect, _) => {
                self.link = Link::Up;
                // The lease comes first: who knows how long the way was broken.
                if let Lease::Held { keepalive_at, .. } = &mut self.lease {
                    *keepalive_at = self.started;
                }
            }
            (Op::Grant { .. }, Answer::Granted { lease, ttl }) => {
                self.stats.leases_granted += 1;
                self.hold(lease, ttl, random);
            }
            (Op::Adopt { lease }, Answer::Adoptable { ttl }) if ttl.as_secs() >= self.seconds.unsigned_abs() => {
                // It may be longer than asked for: etcd raises what is below its election timeout.
                self.hold(lease, ttl, random);
                // How much of its time is left was not asked: it is kept alive at once.
                if let Lease::Held { keepalive_at, .. } = &mut self.lease {
                    *keepalive_at = self.started;
                }
            }
            // A longer TTL is wanted now. The keys move to a new lease one by one, and are never absent.
            (Op::Adopt { .. }, _) => self.lease = Lease::None,
            (Op::KeepAlive { lease }, _) => {
                if let Lease::Held { ttl, .. } = self.lease {
                    self.hold(lease, ttl, random);
                }
                self.unverified = self.entries.keys().copied().collect();
            }
            (Op::Check { values, .. }, Answer::Checked(found)) => {
                for (id, found) in found {
                    self.checked(id, found, values);
                }
            }
            (Op::Put { lease, puts }, Answer::Put { revision }) => {
                for put in puts {
                    self.put_done(&put, lease, revision);
                }
            }
            (Op::Delete { id, .. }, Answer::Done) => {
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.actual = Actual::Known(None);
                    entry.settled();
                }
            }
            (Op::Release { .. }, Answer::Conflict) => self.prune = true,
            (Op::List { .. }, Answer::Listed(keys)) => {
                self.prune = false;
                self.release = keys.into_iter().filter(|key| !self.by_key.contains_key(key)).collect();
            }
            (Op::Revoke { .. }, _) => self.lease = Lease::None,
            // A conflict, or an answer to another question: whatever it was about is looked at again.
            (op, _) => self.doubt(&op),
        }
    }

    fn hold(&mut self, id: i64, ttl: Duration, random: f64) {
        if !self.ours.contains(&id) {
            if self.ours.len() == REMEMBERED_LEASES {
                self.ours.remove(0);
            }
            self.ours.push(id);
        }
        // Up to a tenth early, so that hosts which lost etcd together do not come back in step for ever.
        let interval = (ttl / 3).mul_f64(1.0 - random.clamp(0.0, 1.0) / 10.0);
        let confirmed_at = self.started;
        self.lease = Lease::Held { id, ttl, confirmed_at, keepalive_at: confirmed_at + interval };
    }

    fn checked(&mut self, id: Id, found: Option<Found>, values: bool) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let seen = found.as_ref().map(|found| (found.lease, found.mod_revision));
        if !values {
            let known = match entry.actual {
                Actual::Known(known) => known.map(|seen| (seen.lease, seen.mod_revision)),
                Actual::Unknown => return,
            };
            if seen != known {
                entry.taken(seen.map(|(lease, _)| lease), &self.ours);
            }
            return;
        }
        let same = |found: &Found| found.value.as_deref() == entry.intent.as_deref();
        entry.actual = Actual::Known(found.map(|found| Seen {
            version: same(&found).then_some(entry.version),
            lease: found.lease,
            mod_revision: found.mod_revision,
        }));
        let Lease::Held { id: lease, .. } = self.lease else { return };
        if entry.need(lease, &self.ours) == Need::Nothing {
            entry.settled();
            entry.registered = entry.intent.as_ref().map(|_| entry.version);
        }
    }

    fn put_done(&mut self, put: &Put, lease: i64, revision: i64) {
        let Some(entry) = self.entries.get_mut(&put.id) else { return };
        if entry.registered == Some(put.version) {
            self.stats.reasserts += 1;
        }
        entry.actual = Actual::Known(Some(Seen { lease, mod_revision: revision, version: Some(put.version) }));
        entry.registered = Some(put.version);
        entry.settled();
    }

    fn lease_gone(&mut self, op: &Op) {
        if let Lease::Held { id, .. } = self.lease {
            self.stats.leases_lost += 1;
            self.stats.last_error = Some(format!("lease {id:x} was gone; another one is asked for"));
        }
        self.lease = Lease::None;
        self.release.clear();
        self.doubt(op);
        for entry in self.entries.values_mut() {
            entry.actual = Actual::Unknown;
        }
    }

    fn refused(&mut self, op: Op, cause: String, now: Instant, random: f64) {
        self.stats.last_error = Some(cause.clone());
        let ids: Vec<Id> = match &op {
            Op::Check { keys, .. } => keys.iter().map(|(id, _)| *id).collect(),
            Op::Put { puts, .. } => puts.iter().map(|put| put.id).collect(),
            Op::Delete { id, .. } => vec![*id],
            Op::List { .. } | Op::Release { .. } => {
                self.prune = false;
                return;
            }
            // Somebody else's, perhaps: not worth waiting for.
            Op::Adopt { .. } => {
                self.lease = Lease::None;
                return;
            }
            // Without a lease nothing else can be done: that is waited for like a connection.
            _ => return self.broken(&op, cause, now, random),
        };
        let alone = ids.len() == 1;
        for id in ids {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.actual = Actual::Unknown;
            entry.alone = true;
            if alone {
                entry.refused(cause.clone(), now, random);
            }
        }
    }

    fn broken(&mut self, op: &Op, cause: String, now: Instant, random: f64) {
        self.link = Link::Down { retry_at: now + self.backoff.next(random) };
        self.stats.last_error = Some(cause.clone());
        self.cause = Some(cause);
        self.doubt(op);
    }

    /// What the request was about may be one way or the other.
    fn doubt(&mut self, op: &Op) {
        let ids: Vec<Id> = match op {
            Op::Put { puts, .. } => puts.iter().map(|put| put.id).collect(),
            Op::Delete { id, .. } => vec![*id],
            Op::Release { .. } => {
                self.prune = true;
                return;
            }
            _ => return,
        };
        for id in ids {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.actual = Actual::Unknown;
            }
        }
    }

    /// Forgets the registrations that were to end and whose keys are absent.
    pub(crate) fn take_ended(&mut self) -> Vec<Id> {
        let ours = &self.ours;
        let ended = |entry: &Entry| entry.leaving && entry.need(0, ours) == Need::Nothing;
        let ids: Vec<Id> = self.entries.iter().filter(|(_, entry)| ended(entry)).map(|(id, _)| *id).collect();
        for entry in ids.iter().filter_map(|id| self.entries.remove(id)) {
            self.by_key.remove(&entry.key);
        }
        ids
    }

    /// Every registration's number and state.
    pub(crate) fn states(&self, now: Instant) -> impl Iterator<Item = (Id, RegistrationState)> {
        self.entries.iter().map(move |(id, entry)| (*id, self.state(entry, now)))
    }

    fn state(&self, entry: &Entry, now: Instant) -> RegistrationState {
        let (lease, alive) = match self.lease {
            Lease::Held { id, ttl, confirmed_at, .. } => (id, now < confirmed_at + ttl),
            Lease::None | Lease::Adopting(_) => (0, false),
        };
        match (entry.need(lease, &self.ours), &entry.intent) {
            (Need::Nothing, None) => return RegistrationState::Withdrawn,
            (Need::Nothing, Some(_)) if alive => return RegistrationState::Registered,
            _ => {}
        }
        match entry.cause.as_ref().or(self.cause.as_ref()) {
            Some(cause) => RegistrationState::Retrying { cause: cause.clone() },
            None => RegistrationState::Pending,
        }
    }

    /// The lease that is held, or is to be adopted.
    pub(crate) fn lease(&self) -> Option<i64> {
        match self.lease {
            Lease::None => None,
            Lease::Adopting(id) | Lease::Held { id, .. } => Some(id),
        }
    }

    pub(crate) fn stats(&self) -> &RegistrarStats {
        &self.stats
    }
}

/// Limit for one request: after a third of the TTL a keepalive may meet a silent endpoint, then a dead one, and still
/// reach a third one in time.
fn limit_within(ttl: Duration) -> Duration {
    (ttl / 4).max(SHORTEST_LIMIT)
}
