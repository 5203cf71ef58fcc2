//! Answers over time, by node: shares of a span, and the moment at which one set of shares gave way to another. Pure.
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Part of the requests that each node has, 0 to 1.
pub type Shares = BTreeMap<String, f64>;

/// Older samples are forgotten.
const KEPT: Duration = Duration::from_secs(120);
/// What a node that should get nothing is taken to get, so that one stray answer is unlikely and not impossible.
const NEARLY_NOTHING: f64 = 1e-4;

/// The answers of one service's nodes.
#[derive(Debug, Default)]
pub struct Series {
    samples: VecDeque<Sample>,
    totals: BTreeMap<String, u64>,
    failed: u64,
}

#[derive(Debug)]
struct Sample {
    at: Duration,
    answers: BTreeMap<String, u64>,
}

impl Series {
    /// Takes note of the totals at a time.
    pub fn record(&mut self, at: Duration, totals: BTreeMap<String, u64>, failed: u64) {
        let new = |(node, total): (&String, &u64)| {
            let count = total - self.totals.get(node).copied().unwrap_or(0);
            (count > 0).then(|| (node.clone(), count))
        };
        let answers = totals.iter().filter_map(new).collect();
        self.samples.push_back(Sample { at, answers });
        while self.samples.front().is_some_and(|sample| sample.at + KEPT < at) {
            self.samples.pop_front();
        }
        self.totals = totals;
        self.failed = failed;
    }

    /// Answers of a node since the beginning.
    pub fn answers(&self, node: &str) -> u64 {
        self.totals.get(node).copied().unwrap_or(0)
    }

    /// Requests that the client saw fail since the beginning.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// Requests, answered or failed, since the beginning.
    pub fn requests(&self) -> u64 {
        self.totals.values().sum::<u64>() + self.failed
    }

    /// Each node's share of what was answered after `from`, and how many answers that were.
    pub fn shares(&self, from: Duration) -> (Shares, u64) {
        let mut counts: BTreeMap<&String, u64> = BTreeMap::new();
        for sample in self.samples.iter().filter(|sample| sample.at > from) {
            for (node, count) in &sample.answers {
                *counts.entry(node).or_default() += count;
            }
        }
        let all: u64 = counts.values().sum();
        let shares = counts.into_iter().map(|(node, count)| (node.clone(), count as f64 / all.max(1) as f64)).collect();
        (shares, all)
    }

    /// How far the worst node's share after `from` is from what is expected, and how many answers that is seen from.
    pub fn deviation(&self, from: Duration, expected: &Shares) -> (f64, u64) {
        let (seen, all) = self.shares(from);
        let nodes = seen.keys().chain(expected.keys());
        let off = nodes.map(|node| (share(&seen, node) - share(expected, node)).abs());
        (off.fold(0.0, f64::max), all)
    }

    /// The likeliest moment after `from` at which the nodes' shares went from `old` to `new`.
    pub fn switched_at(&self, from: Duration, old: &Shares, new: &Shares) -> Duration {
        // While answers come as in `old`, the sum falls; from the switch on, it rises: its lowest point is the moment.
        let (mut sum, mut lowest, mut moment) = (0.0, 0.0, from);
        for sample in self.samples.iter().filter(|sample| sample.at > from) {
            for (node, count) in &sample.answers {
                let [old, new] = [old, new].map(|shares| share(shares, node).max(NEARLY_NOTHING));
                sum += *count as f64 * (new / old).ln();
            }
            if sum < lowest {
                (lowest, moment) = (sum, sample.at);
            }
        }
        moment
    }
}

fn share(shares: &Shares, node: &str) -> f64 {
    shares.get(node).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(parts: &[(&str, f64)]) -> Shares {
        parts.iter().map(|(node, share)| ((*node).to_owned(), *share)).collect()
    }

    /// Ten samples of `first`, then ten of `second`, 20 ms apart.
    fn series(first: &[(&str, u64)], second: &[(&str, u64)]) -> Series {
        let (mut series, mut totals) = (Series::default(), BTreeMap::<String, u64>::new());
        for tick in 1..=20 {
            for (node, count) in if tick <= 10 { first } else { second } {
                *totals.entry((*node).to_owned()).or_default() += count;
            }
            series.record(Duration::from_millis(20 * tick), totals.clone(), 0);
        }
        series
    }

    #[test]
    fn shares_are_those_of_the_span_asked_for() {
        let series = series(&[("a", 4)], &[("a", 1), ("b", 3)]);
        assert_eq!(series.shares(Duration::from_millis(200)), (shares(&[("a", 0.25), ("b", 0.75)]), 40));
        assert_eq!(series.deviation(Duration::from_millis(200), &shares(&[("a", 0.5), ("b", 0.5)])), (0.25, 40));
        assert_eq!((series.answers("a"), series.requests()), (50, 80));
    }

    #[test]
    fn a_node_that_should_not_answer_counts_as_off() {
        let series = series(&[("a", 1)], &[("a", 1), ("stray", 1)]);
        assert_eq!(series.deviation(Duration::from_millis(200), &shares(&[("a", 1.0)])).0, 0.5);
    }

    #[test]
    fn the_moment_of_a_switch_is_found() {
        let (old, new) = (shares(&[("a", 0.5), ("b", 0.5)]), shares(&[("a", 0.8), ("b", 0.2)]));
        let series = series(&[("a", 5), ("b", 5)], &[("a", 8), ("b", 2)]);
        assert_eq!(series.switched_at(Duration::ZERO, &old, &new), Duration::from_millis(200));
    }

    #[test]
    fn a_switch_to_nothing_is_dated_by_the_last_answer() {
        let (old, new) = (shares(&[("a", 0.5), ("b", 0.5)]), shares(&[("a", 1.0)]));
        let series = series(&[("a", 1), ("b", 1)], &[("a", 2)]);
        assert_eq!(series.switched_at(Duration::ZERO, &old, &new), Duration::from_millis(200));
    }
}
