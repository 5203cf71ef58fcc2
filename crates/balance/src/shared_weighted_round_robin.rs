//! [`WeightedRoundRobin`] for many threads at once, without a lock.
//!
//! The whole state of the ring follows from how many visits there were: at its visit number r a slot has accumulated
//! (phase + r x weight) modulo the largest weight. So one counter is all that threads share; each visit is made by
//! exactly one of them, and however they take turns, all picks together are those that one thread would have made.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::weighted_round_robin::{Slot, WeightedRoundRobin};

/// A weighted round robin over nodes 0 to n-1 that threads can share: the same sequence as [`WeightedRoundRobin`]'s.
#[derive(Debug)]
pub struct SharedWeightedRoundRobin {
    /// From the one that is visited first.
    slots: Vec<Slot>,
    /// Largest weight of a slot.
    max: u32,
    visits: AtomicU64,
}

impl SharedWeightedRoundRobin {
    /// As [`WeightedRoundRobin::new`].
    pub fn new(weights: impl IntoIterator<Item = u32>, seed: u64) -> Self {
        let WeightedRoundRobin { mut slots, max, next, .. } = WeightedRoundRobin::new(weights, seed);
        slots.rotate_left(next);
        Self { slots, max, visits: AtomicU64::new(0) }
    }

    /// The next node, or `None` if none has a weight above 0.
    pub fn pick(&self) -> Option<usize> {
        let count = self.slots.len() as u64;
        let max = u64::from(self.max);
        loop {
            // Never overflows: see the plain round robin.
            let visit = self.visits.fetch_add(1, Ordering::Relaxed);
            let slot = self.slots.get(visit.checked_rem(count)? as usize)?;
            let round = visit / count;
            // Below 2^32 x 2^32.
            let sum = (u64::from(slot.accumulated) + round % max * u64::from(slot.weight)) % max;
            if sum + u64::from(slot.weight) >= max {
                return Some(slot.node as usize);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn weights() -> impl Strategy<Value = Vec<u32>> {
        prop::collection::vec(prop_oneof![0u32..20, 0u32..1_000, Just(u32::MAX), any::<u32>()], 0..30)
    }

    proptest! {
        #[test]
        fn the_sequence_is_that_of_the_plain_one(weights in weights(), seed: u64) {
            let mut plain = WeightedRoundRobin::new(weights.iter().copied(), seed);
            let shared = SharedWeightedRoundRobin::new(weights.iter().copied(), seed);
            for _ in 0..2_000 {
                prop_assert_eq!(shared.pick(), plain.pick());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn threads_together_pick_in_the_exact_proportion_of_one(
            weights in weights(),
            seed: u64,
            threads in 2usize..6,
            picks in 1usize..4_000,
        ) {
            prop_assume!(weights.iter().any(|weight| *weight > 0));
            let mut plain = WeightedRoundRobin::new(weights.iter().copied(), seed);
            let mut expected = vec![0; weights.len()];
            for _ in 0..threads * picks {
                expected[plain.pick().unwrap()] += 1;
            }
            let shared = SharedWeightedRoundRobin::new(weights.iter().copied(), seed);
            let mut counts = vec![0; weights.len()];
            std::thread::scope(|scope| {
                let work = || (0..picks).map(|_| shared.pick().unwrap()).collect::<Vec<_>>();
                let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
                for node in running.into_iter().flat_map(|thread| thread.join().unwrap()) {
                    counts[node] += 1;
                }
            });
            prop_assert_eq!(counts, expected);
        }
    }
}
