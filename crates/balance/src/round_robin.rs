//! One node after the other, O(1), from any number of threads.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::random::{pickable, spread};

/// Picks nodes 0 to n-1 in turn, those of weight 0 left out.
#[derive(Debug)]
pub struct RoundRobin {
    pickable: Vec<u32>,
    next: AtomicU64,
}

impl RoundRobin {
    /// A picker among nodes of these weights, of which only counts whether they are 0: such a node is never picked.
    ///
    /// `seed` says which node comes first.
    pub fn new(weights: impl IntoIterator<Item = u32>, seed: u64) -> Self {
        let pickable = pickable(weights);
        let (first, _) = spread(fastrand::Rng::with_seed(seed).u64(..), pickable.len());
        Self { pickable, next: AtomicU64::new(first as u64) }
    }

    /// The next node, or `None` if none has a weight above 0.
    pub fn pick(&self) -> Option<usize> {
        // At a thousand million picks a second it overflows in 584 years.
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let index = turn.checked_rem(self.pickable.len() as u64)?;
        self.pickable.get(index as usize).map(|node| *node as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_come_in_turn_whatever_they_weigh_and_those_of_weight_zero_never() {
        let picker = RoundRobin::new([7, 0, 1, u32::MAX], 3);
        let first: Vec<_> = (0..3).map(|_| picker.pick().unwrap()).collect();
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 2, 3]);
        for _ in 0..10 {
            assert_eq!((0..3).map(|_| picker.pick().unwrap()).collect::<Vec<_>>(), first);
        }
        assert_eq!(RoundRobin::new([0, 0], 1).pick(), None);
        assert_eq!(RoundRobin::new([], 1).pick(), None);
    }

    #[test]
    fn threads_that_share_it_give_every_node_the_same() {
        let picker = RoundRobin::new([1; 5], 1);
        let mut counts = [0; 5];
        std::thread::scope(|scope| {
            let work = || (0..10_000).map(|_| picker.pick().unwrap()).collect::<Vec<_>>();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            for node in threads.into_iter().flat_map(|thread| thread.join().unwrap()) {
                counts[node] += 1;
            }
        });
        assert_eq!(counts, [8_000; 5]);
    }

    #[test]
    fn another_seed_begins_elsewhere() {
        let firsts: std::collections::HashSet<_> = (0..64).map(|seed| RoundRobin::new([1; 16], seed).pick()).collect();
        assert!(firsts.len() > 8, "{firsts:?}");
    }
}
