//! A claim's decisions: one lease, one key, and whether that key is the first. Pure: told the time, a random number and
//! the outcome of each request, it says what to do next. One request is under way at a time.
//!
//! ```text
//!   Down --Connect--> Up --Grant--> lease --Place--> key in line --Look--> behind another key: watch that one
//!     ^                |              ^                  ^   |                  |        (deleted: Look)
//!     | any failure    |  waiting and |     waiting, key |   +------> first: HELD, watch our own key
//!     | but etcd's own |  lease gone  |          deleted |               |
//!     +----------------+              +--- anew ---------+               +--> LOST: lease gone, key deleted, expired
//! ```
//!
//! * The layout is that of etcd's own concurrency package: key `<name>/<lease id in hexadecimal>`, the lowest create
//!   revision owns, and everybody else waits for the next lower one to go.
//! * A waiter whose lease is gone starts anew at the end of the line. A holder never does: it has lost.
//! * A holder's time is counted from when the last keepalive was *sent* that etcd has answered and after which etcd's
//!   majority still had the key. It ends a fifth of the lease's time before the lease can end in etcd.
//! * Every keepalive is followed by a look, so that a watch that fell silent costs a third of the TTL at most.

#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::error::LostCause;
use crate::{backoff::Backoff, lease_machine::Failure};

const RECONNECT_BASE: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(1);
/// No deadline is shorter, however short the TTL, unless the holder's time ends.
const SHORTEST_LIMIT: Duration = Duration::from_millis(500);
/// etcd's own limit, in seconds.
const LONGEST_TTL: i64 = 9_000_000_000;

/// What is claimed, and how.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) name: String,
    pub(crate) value: Arc<[u8]>,
    pub(crate) ttl: Duration,
    /// Whether to stay in line when somebody else is first.
    pub(crate) waits: bool,
}

/// A request to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Connect,
    Grant {
        seconds: i64,
    },
    KeepAlive {
        lease: i64,
    },
    /// Put the key if it is absent.
    Place {
        lease: i64,
        key: String,
        value: Arc<[u8]>,
    },
    /// Our key, and the last one under the prefix that was created before it.
    Look {
        key: String,
        prefix: String,
        placed: i64,
    },
    Revoke {
        lease: i64,
    },
}

/// etcd's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Connected, kept alive, revoked: as asked.
    Done,
    Granted {
        lease: i64,
        ttl: Duration,
    },
    /// The key's create revision.
    Placed {
        revision: i64,
    },
    Seen(Seen),
}

/// The line at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Our key's create revision.
    pub(crate) own: Option<i64>,
    /// The key right before ours.
    pub(crate) before: Option<String>,
    /// The revision.
    pub(crate) revision: i64,
}

/// How a watch for a key's deletion ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// Something happened, or may have.
    Changed,
    /// Nothing until its time was over.
    Quiet,
    Broken(String),
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Make this request, within the limit.
    Do(Op, Duration),
    /// Wait for the key's deletion at revision `from` or later. Opening the watch has the limit.
    Watch { key: String, from: i64, until: Instant, limit: Duration },
    /// Nothing until then.
    Wait(Instant),
    /// Nothing until it is to be ended.
    Idle,
    /// Nothing of ours is left.
    Finished,
}

/// How a claim stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Not first yet: why.
    Waiting(String),
    /// Somebody else is first, and we do not wait.
    Taken,
    /// Ours, until then if etcd does not confirm it before.
    Held {
        key: String,
        token: i64,
        lease: i64,
        until: Instant,
    },
    Lost(LostCause),
    /// etcd refuses a request.
    Refused(String),
}

#[derive(Clone, Copy, Debug)]
enum Link {
    Down { retry_at: Instant },
    Up,
}

/// Where our key stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Position {
    First { seen_at: i64 },
    Behind { key: String, seen_at: i64 },
}

#[derive(Clone, Copy, Debug)]
struct Term {
    lease: i64,
    ttl: Duration,
    confirmed_at: Instant,
    /// When the keepalive was sent that etcd has answered; it counts once the key was seen afterwards.
    answered: Option<Instant>,
    keepalive_at: Instant,
}

impl Term {
    /// The end of the holder's time, by its own clock.
    fn ends(&self) -> Instant {
        self.confirmed_at + self.ttl.mul_f64(0.8)
    }
}

#[derive(Debug)]
pub(crate) struct Claim {
    wish: Wish,
    request_timeout: Duration,
    connect_limit: Duration,
    link: Link,
    term: Option<Term>,
    /// Our key's create revision.
    placed: Option<i64>,
    /// None: to be looked at.
    position: Option<Position>,
    held: bool,
    /// How it ended, while the lease may still be there.
    outcome: Option<Standing>,
    ending: bool,
    backoff: Backoff,
    cause: String,
    started: Instant,
}

impl Claim {
    pub(crate) fn new(wish: Wish, connect_timeout: Duration, request_timeout: Duration, now: Instant) -> Self {
        let max = RECONNECT_MAX.min(wish.ttl / 10);
        Self {
            request_timeout,
            connect_limit: (connect_timeout + request_timeout).min(limit_within(wish.ttl)),
            wish,
            link: Link::Down { retry_at: now },
            term: None,
            placed: None,
            position: None,
            held: false,
            outcome: None,
            ending: false,
            backoff: Backoff::new(RECONNECT_BASE.min(max), max),
            cause: "etcd has not answered yet".into(),
            started: now,
        }
    }

    /// Takes the key out of etcd.
    pub(crate) fn end(&mut self) {
        self.ending = true;
    }

    /// How it stands.
    pub(crate) fn standing(&self) -> Standing {
        match (&self.outcome, self.held, &self.term, self.placed) {
            (Some(outcome), ..) => outcome.clone(),
            (None, true, Some(term), Some(token)) => {
                Standing::Held { key: self.key(term.lease), token, lease: term.lease, until: term.ends() }
            }
            _ => Standing::Waiting(match &self.position {
                Some(Position::Behind { key, .. }) => format!("key {key} is before ours"),
                _ => self.cause.clone(),
            }),
        }
    }

    fn prefix(&self) -> String {
        format!("{}/", self.wish.name)
    }

    fn key(&self, lease: i64) -> String {
        format!("{}/{lease:x}", self.wish.name)
    }

    /// What to do now.
    pub(crate) fn next(&mut self, now: Instant) -> Step {
        self.started = now;
        self.expire(now);
        if self.ending && self.term.is_none() {
            return Step::Finished;
        }
        if self.outcome.is_some() && !self.ending {
            return Step::Idle;
        }
        // A holder must know that its time is over when it is.
        let ends = self.term.filter(|_| self.held && !self.ending).map(|term| term.ends());
        let within = |limit: Duration| ends.map_or(limit, |ends| limit.min(ends.saturating_duration_since(now)));
        match self.link {
            Link::Down { retry_at } if now < retry_at => {
                return Step::Wait(ends.map_or(retry_at, |ends| ends.min(retry_at)));
            }
            Link::Down { .. } => return Step::Do(Op::Connect, within(self.connect_limit)),
            Link::Up => {}
        }
        let Some(term) = self.term else {
            return Step::Do(Op::Grant { seconds: seconds(self.wish.ttl) }, self.request_timeout);
        };
        let limit = within(self.request_timeout.min(limit_within(term.ttl)));
        let (lease, key) = (term.lease, self.key(term.lease));
        if self.ending {
            return Step::Do(Op::Revoke { lease }, limit);
        }
        if term.keepalive_at <= now {
            return Step::Do(Op::KeepAlive { lease }, limit);
        }
        let Some(placed) = self.placed else {
            return Step::Do(Op::Place { lease, key, value: Arc::clone(&self.wish.value) }, limit);
        };
        let (watched, seen_at) = match &self.position {
            None => return Step::Do(Op::Look { key, prefix: self.prefix(), placed }, limit),
            Some(Position::First { seen_at }) => (key, *seen_at),
            Some(Position::Behind { key, seen_at }) => (key.clone(), *seen_at),
        };
        // Only what got this far has worked: a server that fails the same request after each reconnect is not hammered.
        self.backoff.reset();
        Step::Watch { key: watched, from: seen_at + 1, until: term.keepalive_at, limit }
    }

    /// A holder's time that is over never comes back, whatever etcd says later.
    fn expire(&mut self, now: Instant) {
        if let (true, None, Some(term)) = (self.held, &self.outcome, &self.term)
            && term.ends() <= now
        {
            let after = now.saturating_duration_since(term.confirmed_at);
            self.outcome = Some(Standing::Lost(LostCause::Expired { after, cause: self.cause.clone() }));
        }
    }

    /// Takes in the outcome of a request that [`Self::next`] asked for.
    pub(crate) fn done(&mut self, op: &Op, outcome: Result<Answer, Failure>, now: Instant, random: f64) {
        self.expire(now);
        match outcome {
            Ok(answer) => self.answered(op, answer, now, random),
            Err(Failure::LeaseGone) => self.lease_gone(),
            // A holder's rights may come back before its time is over.
            Err(Failure::Refused(cause)) if !self.held && !self.ending => {
                self.outcome.get_or_insert(Standing::Refused(cause));
            }
            Err(Failure::Refused(cause) | Failure::Broken(cause)) => self.broken(cause, now, random),
        }
    }

    /// Takes in how a watch ended.
    pub(crate) fn watched(&mut self, watched: Watched, now: Instant, random: f64) {
        self.expire(now);
        match watched {
            Watched::Changed => self.position = None,
            Watched::Quiet => {}
            Watched::Broken(cause) => self.broken(cause, now, random),
        }
    }

    fn answered(&mut self, op: &Op, answer: Answer, now: Instant, random: f64) {
        match (op, answer) {
            (Op::Connect, _) => {
                self.link = Link::Up;
                self.position = None;
                // The lease comes first: who knows how long the way was broken.
                if let Some(term) = &mut self.term {
                    term.keepalive_at = now;
                }
            }
            (Op::Grant { .. }, Answer::Granted { lease, ttl }) => {
                self.cause = "our key is on its way".into();
                let (confirmed_at, keepalive_at) = (self.started, self.started + interval(ttl, random));
                self.term = Some(Term { lease, ttl, confirmed_at, answered: None, keepalive_at });
            }
            (Op::KeepAlive { .. }, _) => {
                if let Some(term) = &mut self.term {
                    term.answered = Some(self.started);
                    term.keepalive_at = self.started + interval(term.ttl, random);
                }
                self.position = None;
            }
            (Op::Place { .. }, Answer::Placed { revision }) => self.placed = Some(revision),
            (Op::Look { placed, .. }, Answer::Seen(seen)) => self.seen(*placed, seen, now),
            (Op::Revoke { .. }, _) => self.term = None,
            // An answer to another question tells nothing.
            _ => self.broken("etcd's answer was not understood".into(), now, random),
        }
    }

    fn seen(&mut self, placed: i64, seen: Seen, now: Instant) {
        if seen.own != Some(placed) {
            return self.key_gone();
        }
        let Some(term) = &mut self.term else { return };
        if let Some(sent_at) = term.answered.take() {
            term.confirmed_at = sent_at;
        }
        match seen.before {
            Some(key) if !self.held && !self.wish.waits => {
                self.position = Some(Position::Behind { key, seen_at: seen.revision });
                self.outcome = Some(Standing::Taken);
            }
            Some(key) if !self.held => self.position = Some(Position::Behind { key, seen_at: seen.revision }),
            // Nobody can get before a holder: a key created earlier cannot come back with its old create revision.
            _ if self.held || now < term.ends() => {
                self.held = true;
                self.position = Some(Position::First { seen_at: seen.revision });
            }
            // First, with a lease that may end any moment: it is confirmed before anybody relies on it.
            _ => term.keepalive_at = now,
        }
    }

    fn key_gone(&mut self) {
        self.position = None;
        if self.held {
            self.outcome.get_or_insert(Standing::Lost(LostCause::KeyDeleted));
        } else {
            self.placed = None;
        }
    }

    fn lease_gone(&mut self) {
        if self.held {
            self.outcome.get_or_insert(Standing::Lost(LostCause::LeaseGone));
        }
        (self.term, self.placed, self.position) = (None, None, None);
        self.cause = "our lease was gone, and our place with it: we start anew".into();
    }

    fn broken(&mut self, cause: String, now: Instant, random: f64) {
        self.cause = cause;
        self.position = None;
        self.link = Link::Down { retry_at: now + self.backoff.next(random) };
    }
}

/// Limit for a request, so that several fit into the TTL.
fn limit_within(ttl: Duration) -> Duration {
    (ttl / 4).max(SHORTEST_LIMIT)
}

/// Until the next keepalive: up to a tenth early, so that claims do not march in step.
fn interval(ttl: Duration, random: f64) -> Duration {
    (ttl / 3).mul_f64(1.0 - random.clamp(0.0, 1.0) / 10.0)
}

/// etcd counts whole seconds.
fn seconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(LONGEST_TTL).clamp(1, LONGEST_TTL)
}
