//! The last minute of a node, in slots of ten seconds. Pure: the time comes in.

use std::time::{Duration, Instant};

use waypost_balance::Histogram;
use waypost_catalog::wire::NodeReport;

use super::Counts;

const SLOTS: usize = 6;
const SLOT: Duration = Duration::from_secs(10);

/// How far back it goes.
pub const LENGTH: Duration = Duration::from_secs(60);

/// What was counted in a time.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// How requests ended.
    pub counts: Counts,
    /// How long answers took.
    pub latencies: Histogram,
}

#[derive(Debug)]
struct Slot {
    since: Instant,
    counted: Counted,
}

/// The last minute.
#[derive(Debug, Default)]
pub struct Window {
    /// Oldest first.
    slots: Vec<Slot>,
}

impl Window {
    /// Adds a report that has come now.
    pub fn add(&mut self, report: &NodeReport, now: Instant) {
        self.slots.retain(|slot| now.saturating_duration_since(slot.since) < LENGTH);
        let is_current = |slot: &Slot| now.saturating_duration_since(slot.since) < SLOT;
        if !self.slots.last().is_some_and(is_current) {
            if self.slots.len() >= SLOTS {
                self.slots.remove(0);
            }
            self.slots.push(Slot { since: now, counted: Counted::default() });
        }
        if let Some(slot) = self.slots.last_mut() {
            slot.counted.counts.add(report);
            let (pairs, _) = report.latency.as_chunks::<2>();
            for [bucket, count] in pairs {
                slot.counted.latencies.add(*bucket as usize, *count);
            }
        }
    }

    /// All of it.
    pub fn sum(&self, now: Instant) -> Counted {
        let mut sum = Counted::default();
        for slot in self.slots.iter().filter(|slot| now.saturating_duration_since(slot.since) < LENGTH) {
            sum.counts.merge(&slot.counted.counts);
            sum.latencies.merge(&slot.counted.latencies);
        }
        sum
    }
}
