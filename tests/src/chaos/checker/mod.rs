//! What a history is held to. Pure: the same history gets the same verdict, on any machine and at any speed.
//!
//! | rule | says |
//! |---|---|
//! | [`Rule::Registered`] | while its owner lives and reaches an etcd that answers, no key deviates from what is intended for longer than TTL/3 + 1 s, nor at the end |
//! | [`Rule::Outlived`] | no key outlives its owner by more than TTL + 1 s of etcd answering |
//! | [`Rule::Touched`] | no key is written or deleted but by its owner, or by those who said so before |
//! | [`Rule::Told`] | what a mirror tells is what etcd was, at each revision: nothing missing, doubled or out of order |
//! | [`Rule::Mirrored`] | at the end a mirror's copy is what etcd holds |
//! | [`Rule::Served`] | at the end an agent's catalog has the nodes that etcd holds, the last good value of each |
mod epochs;
mod mirrored;
mod registered;
mod served;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use crate::chaos::history::History;

/// What was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Intended and healthy is registered again in time.
    Registered,
    /// No key outlives its owner for long.
    Outlived,
    /// No key of others is touched.
    Touched,
    /// Events are complete, single and in order.
    Told,
    /// After quiet the mirror equals etcd.
    Mirrored,
    /// After quiet the catalog equals etcd.
    Served,
}

/// One breach of a rule.
#[derive(Debug, Clone)]
pub struct Violation {
    /// Of which.
    pub rule: Rule,
    /// When it shows.
    pub at: Duration,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:.3} s: {:?}: {}", self.at.as_secs_f64(), self.rule, self.what)
    }
}

/// A time that was taken, beside its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// What it took.
    pub took: Duration,
    /// What it may take.
    pub bound: Duration,
}

impl Span {
    fn longer(slot: &mut Option<Self>, other: Self) {
        if slot.is_none_or(|span| span.took < other.took) {
            *slot = Some(other);
        }
    }
}

/// What became of a history.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Every breach.
    pub violations: Vec<Violation>,
    /// The longest that a key was not as intended.
    pub back: Option<Span>,
    /// The longest that a key outlived its owner.
    pub outlived: Option<Span>,
    /// Keys that mirrors told of, in full states and in changes.
    pub told: usize,
    /// Of these, those that could not be compared: etcd was killed and its data lost before the recorder saw them too.
    pub unverified: usize,
}

impl Verdict {
    fn violation(&mut self, rule: Rule, at: Duration, what: impl Into<String>) {
        self.violations.push(Violation { rule, at, what: what.into() });
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = |span: Option<Span>| match span {
            Some(Span { took, bound }) => format!("{:.2} of {:.2} s", took.as_secs_f64(), bound.as_secs_f64()),
            None => "-".into(),
        };
        let (back, outlived) = (span(self.back), span(self.outlived));
        write!(f, "registered again {back:<14}  outlived {outlived:<14}  told {}", self.told)?;
        if self.unverified > 0 {
            write!(f, " ({} lost with etcd's data)", self.unverified)?;
        }
        Ok(())
    }
}

/// Within this a key is as intended again.
pub fn back_within(ttl: Duration) -> Duration {
    ttl / 3 + Duration::from_secs(1)
}

/// Within this a key is gone after its owner.
pub fn gone_within(ttl: Duration) -> Duration {
    ttl + Duration::from_secs(1)
}

/// Holds a history to every rule.
pub fn check(history: &History) -> Verdict {
    let mut verdict = Verdict::default();
    registered::check(history, &mut verdict);
    let epochs = epochs::read(history);
    mirrored::check(history, &epochs, &mut verdict);
    served::check(history, &mut verdict);
    verdict.violations.sort_by_key(|violation| violation.at);
    verdict
}
