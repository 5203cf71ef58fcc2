//! What each answer, or its absence, means for link, lease and keys.

use std::time::{Duration, Instant};

use super::{
    Answer, Failure, Found, Id, Lease, LeaseMachine, Link, Op, Put, REMEMBERED_LEASES,
    entry::{Actual, Need, Seen},
};

impl LeaseMachine {
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
            (Op::Revision { id, prefix }, Answer::Revision(revision)) => self.name(id, &prefix, revision),
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
                    entry.registered = None;
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

    /// The lease, if one is held.
    pub(super) fn held(&self) -> Option<i64> {
        match self.lease {
            Lease::Held { id, .. } => Some(id),
            Lease::None | Lease::Adopting(_) => None,
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

    /// Names a numbered key after the revision that its creation will most probably have.
    fn name(&mut self, id: Id, prefix: &str, revision: i64) {
        let held = self.held().unwrap_or_default();
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.need(held, &self.ours) != Need::Name {
            return;
        }
        if let Some(key) = entry.key.take() {
            entry.cause = Some(format!("somebody else holds key {key}: another name is taken"));
            entry.registered = None;
            self.by_key.remove(&key);
        }
        // Another registration of ours that could not be put yet may have been named after the same revision.
        let after = revision.max(entry.number);
        let mut numbers = (1..).take(self.by_key.len() + 1).map(|ahead| after.saturating_add(ahead));
        let key = |number: i64| format!("{prefix}/{number:020}");
        entry.number = numbers.find(|number| !self.by_key.contains_key(&key(*number))).unwrap_or(after);
        entry.key = Some(key(entry.number));
        self.by_key.insert(key(entry.number), id);
        // It has not been looked for: it is created only if it is absent.
        entry.actual = Actual::Known(None);
    }

    fn checked(&mut self, id: Id, found: Option<Found>, values: bool) {
        let held = self.held().unwrap_or_default();
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let seen = found.as_ref().map(|found| (found.lease, found.mod_revision));
        if !values {
            let known = match entry.actual {
                Actual::Known(known) => known.map(|seen| (seen.lease, seen.mod_revision)),
                Actual::Unknown => return,
            };
            if seen == known {
                return;
            }
            match entry.need(held, &self.ours) {
                // Its holder changed it, or is gone.
                Need::Free { .. } => entry.actual = Actual::Unknown,
                _ => entry.taken(seen.map(|(lease, _)| lease), &self.ours),
            }
            return;
        }
        let same = |found: &Found| found.value.as_deref() == entry.intent.as_deref();
        let seen = found.map(|found| Seen {
            version: same(&found).then_some(entry.version),
            lease: found.lease,
            mod_revision: found.mod_revision,
        });
        entry.seen(seen);
        if entry.need(held, &self.ours) == Need::Nothing {
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
        let lost = self.held();
        if let Some(id) = lost {
            self.stats.leases_lost += 1;
            self.stats.last_error = Some(format!("lease {id:x} was gone; another one is asked for"));
        }
        self.lease = Lease::None;
        self.cause = None;
        self.release.clear();
        self.doubt(op);
        for entry in self.entries.values_mut() {
            entry.lease_gone(lost);
        }
    }

    fn refused(&mut self, op: Op, cause: String, now: Instant, random: f64) {
        self.stats.last_error = Some(cause.clone());
        let ids: Vec<Id> = match &op {
            Op::Check { keys, .. } => keys.iter().map(|(id, _)| *id).collect(),
            Op::Put { puts, .. } => puts.iter().map(|put| put.id).collect(),
            Op::Delete { id, .. } | Op::Revision { id, .. } => vec![*id],
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
                entry.doubt();
            }
        }
    }
}
