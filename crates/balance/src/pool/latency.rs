//! A node's latency: a moving average that jumps to peaks and forgets them with time.

use std::time::Duration;

use crate::outcome::{Outcome, OutcomeKind};

/// A value at a time; from then on it fades to 1/e in each decay time, so that a node that was slow once, and is avoided
/// since, is tried again some day.
#[derive(Clone, Copy, Debug)]
pub(super) struct Latency {
    /// In seconds; `None`: the default, fading since the node is known, so that a default far above what others need
    /// does not keep it from ever being picked.
    seconds: Option<f64>,
    since: Duration,
}

impl Latency {
    pub(super) fn unknown(now: Duration) -> Self {
        Self { seconds: None, since: now }
    }

    pub(super) fn is_known(&self) -> bool {
        self.seconds.is_some()
    }

    /// In seconds.
    pub(super) fn at(&self, now: Duration, decay: Duration, default: Duration) -> f64 {
        self.seconds.unwrap_or(default.as_secs_f64()) * self.left(now, decay)
    }

    /// The weight that the past has by now.
    fn left(&self, now: Duration, decay: Duration) -> f64 {
        let elapsed = now.saturating_sub(self.since);
        if elapsed.is_zero() { 1.0 } else { (-elapsed.as_secs_f64() / decay.as_secs_f64().max(1e-6)).exp() }
    }

    /// A request has ended. A failure that came fast must not make a node look fast: it only counts if it took longer
    /// than what is known or, if nothing is, than the default; otherwise it counts as if it had taken as long.
    pub(super) fn observe(&mut self, outcome: Outcome, now: Duration, decay: Duration, default: Duration) {
        if outcome.kind == OutcomeKind::Cancelled {
            return;
        }
        let before = self.seconds;
        let seen = outcome.latency.map(|latency| latency.as_secs_f64());
        let seen = match outcome.kind.is_failure() {
            true => seen.unwrap_or(0.0).max(before.unwrap_or(default.as_secs_f64())),
            false => match seen {
                Some(seen) => seen,
                None => return,
            },
        };
        self.seconds = Some(match before {
            // Above the average as it is by now: a peak.
            Some(before) => {
                let left = self.left(now, decay);
                if seen > before * left { seen } else { seen + (before - seen) * left }
            }
            None => seen,
        });
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECAY: Duration = Duration::from_secs(10);
    const DEFAULT: Duration = Duration::from_millis(30);

    fn at(latency: &Latency, seconds: u64) -> f64 {
        latency.at(Duration::from_secs(seconds), DECAY, DEFAULT)
    }

    fn observe(latency: &mut Latency, kind: OutcomeKind, millis: u64, seconds: u64) {
        let outcome = Outcome { kind, latency: Some(Duration::from_millis(millis)) };
        latency.observe(outcome, Duration::from_secs(seconds), DECAY, DEFAULT);
    }

    #[test]
    fn a_peak_counts_at_once_and_a_faster_answer_as_time_passes() {
        let mut latency = Latency::unknown(Duration::ZERO);
        assert!((at(&latency, 0) - 0.030).abs() < 1e-9);
        assert!((at(&latency, 10) - 0.030 / std::f64::consts::E).abs() < 1e-9);
        observe(&mut latency, OutcomeKind::Success, 100, 20);
        assert!((at(&latency, 20) - 0.100).abs() < 1e-9);
        observe(&mut latency, OutcomeKind::Success, 10, 20);
        assert!((at(&latency, 20) - 0.100).abs() < 1e-9, "no time has passed");
        observe(&mut latency, OutcomeKind::Success, 10, 30);
        assert!((at(&latency, 30) - (0.010 + 0.090 / std::f64::consts::E)).abs() < 1e-9);
        observe(&mut latency, OutcomeKind::Success, 500, 31);
        assert!((at(&latency, 31) - 0.500).abs() < 1e-9);
        assert!(at(&latency, 131) < 0.0001, "it fades");
    }

    #[test]
    fn a_failure_never_makes_a_node_look_faster() {
        let mut latency = Latency::unknown(Duration::ZERO);
        observe(&mut latency, OutcomeKind::Cancelled, 900, 0);
        observe(&mut latency, OutcomeKind::ConnectFailure, 1, 5);
        assert!((at(&latency, 5) - 0.030).abs() < 1e-9, "the default from now on");
        observe(&mut latency, OutcomeKind::Success, 200, 6);
        observe(&mut latency, OutcomeKind::ServerError, 1, 16);
        assert!((at(&latency, 16) - 0.200).abs() < 1e-9, "what was known, no longer faded");
        observe(&mut latency, OutcomeKind::Timeout, 5_000, 17);
        assert!((at(&latency, 17) - 5.0).abs() < 1e-9);
    }
}
