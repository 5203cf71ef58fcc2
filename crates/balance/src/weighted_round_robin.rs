//! Weighted round robin in exact proportion, O(1) per pick however many nodes there are and however uneven they are.
//!
//! The core is the *static stride* scheduler of gRPC (`static_stride_scheduler.cc`, proposal A58): slots are visited
//! in a ring; at each visit a slot's weight is added to its accumulator, and when that reaches the largest weight the
//! slot is picked. Over any number of rounds a slot is picked `weight / max` of the times it is visited, give or take
//! one.
//!
//! gRPC caps weights at ten times their mean, since a ring with one heavy slot skips nearly every visit. Here nothing
//! is capped: a node heavier than the mean (rounded up) gets several slots of at most that weight, evenly spread over
//! the ring. That makes at most twice as many slots as nodes, of which on average at least every second visit picks,
//! and shares stay exact for every `u32`.

use fastrand::Rng;

use crate::chosen::{CHOICES, Chosen};

/// How far ahead alternatives are looked for before any other node will do.
const LOOK_AHEAD: usize = 16;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) node: u32,
    pub(crate) weight: u32,
    /// Below `max`.
    pub(crate) accumulated: u32,
}

/// A weighted round robin over nodes 0 to n-1, for one thread.
///
/// ```
/// use waypost_balance::WeightedRoundRobin;
///
/// let mut scheduler = WeightedRoundRobin::new([1, 2], 7);
/// let picks: Vec<_> = (0..6).map(|_| scheduler.pick().unwrap()).collect();
/// assert_eq!(picks.iter().filter(|node| **node == 1).count(), 4);
/// ```
#[derive(Clone, Debug)]
pub struct WeightedRoundRobin {
    pub(crate) slots: Vec<Slot>,
    /// Nodes of a weight above 0.
    pickable: Vec<u32>,
    /// Largest weight of a slot.
    pub(crate) max: u32,
    /// The slot to visit next.
    pub(crate) next: usize,
}

impl WeightedRoundRobin {
    /// A scheduler of nodes with these weights; a node of weight 0 is never picked.
    ///
    /// `seed` places the slots and their phases: the same seed gives the same sequence, another one starts elsewhere.
    /// O(n log n) in the number of nodes.
    pub fn new(weights: impl IntoIterator<Item = u32>, seed: u64) -> Self {
        let weights: Vec<u32> = weights.into_iter().collect();
        let node_weights = || (0u32..).zip(weights.iter().copied()).filter(|(_, weight)| *weight > 0);
        let pickable: Vec<u32> = node_weights().map(|(node, _)| node).collect();
        let total: u64 = node_weights().map(|(_, weight)| u64::from(weight)).sum();
        // The mean, rounded up, is no larger than the largest weight.
        let cap = u32::try_from(total.div_ceil(pickable.len().max(1) as u64)).unwrap_or(u32::MAX).max(1);
        let largest_part = |weight: u32| weight.div_ceil(weight.div_ceil(cap));
        let max = node_weights().map(|(_, weight)| largest_part(weight)).max().unwrap_or(1);

        let mut rng = Rng::with_seed(seed);
        let mut placed: Vec<(u64, Slot)> = Vec::with_capacity(pickable.len() * 2);
        for (node, weight) in node_weights() {
            let parts = weight.div_ceil(cap);
            // A node's slots stand at equal distances in the ring, and their phases at equal distances in time.
            let spacing = u64::from(u32::MAX) / u64::from(parts);
            let position = rng.u64(0..=spacing);
            let phase = rng.u32(0..max);
            for part in 0..parts {
                let weight = weight / parts + u32::from(part < weight % parts);
                let shift = u64::from(part) * u64::from(max) / u64::from(parts);
                let accumulated = ((u64::from(phase) + shift) % u64::from(max)) as u32;
                placed.push((position + spacing * u64::from(part), Slot { node, weight, accumulated }));
            }
        }
        placed.sort_unstable_by_key(|(position, slot)| (*position, slot.node));
        let slots: Vec<Slot> = placed.into_iter().map(|(_, slot)| slot).collect();
        let next = if slots.is_empty() { 0 } else { rng.usize(0..slots.len()) };
        Self { slots, pickable, max, next }
    }

    /// Whether there is no node to pick.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The next node, or `None` if none has a weight above 0.
    pub fn pick(&mut self) -> Option<usize> {
        loop {
            let Some(slot) = self.slots.get_mut(self.next) else {
                if self.slots.is_empty() {
                    return None;
                }
                self.next = 0;
                continue;
            };
            self.next += 1;
            let sum = u64::from(slot.accumulated) + u64::from(slot.weight);
            if sum >= u64::from(self.max) {
                slot.accumulated = (sum - u64::from(self.max)) as u32;
                return Some(slot.node as usize);
            }
            slot.accumulated = sum as u32;
        }
    }

    /// The next node and, behind it, the distinct nodes that follow in the sequence, for retries: the first of what is
    /// returned is what [`pick`](Self::pick) would have been. `choices` is filled from its start; how many there are
    /// is returned.
    ///
    /// Only the first choice advances the sequence, so alternatives do not disturb the proportions.
    pub fn pick_with_alternatives(&mut self, choices: &mut [usize; CHOICES]) -> usize {
        let Some(first) = self.pick() else { return 0 };
        let wanted = CHOICES.min(self.pickable.len());
        let mut chosen = Chosen::new(choices);
        chosen.add(first);
        // Each slot is looked at once at most, so its accumulator says whether the next visit picks it.
        let ring = self.slots.iter().skip(self.next).chain(&self.slots);
        for slot in ring.take(LOOK_AHEAD.min(self.slots.len())) {
            if chosen.count() == wanted {
                return wanted;
            }
            if u64::from(slot.accumulated) + u64::from(slot.weight) >= u64::from(self.max) {
                chosen.add(slot.node as usize);
            }
        }
        // One heavy node holds the ring's next stretch: any other will do as a last resort, from where we stand.
        let start = self.next % self.pickable.len().max(1);
        for node in self.pickable.iter().skip(start).chain(&self.pickable) {
            if chosen.count() == wanted {
                break;
            }
            chosen.add(*node as usize);
        }
        chosen.count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(scheduler: &mut WeightedRoundRobin, nodes: usize, picks: u64) -> Vec<u64> {
        let mut counts = vec![0; nodes];
        for _ in 0..picks {
            counts[scheduler.pick().unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn picks_in_exact_proportion_over_a_whole_period() {
        let mut scheduler = WeightedRoundRobin::new([1, 2, 3], 7);
        assert_eq!(counts(&mut scheduler, 3, 6_000), [1_000, 2_000, 3_000]);
    }

    #[test]
    fn never_picks_a_node_of_weight_zero() {
        let mut scheduler = WeightedRoundRobin::new([0, 5, 0, 5], 1);
        assert_eq!(counts(&mut scheduler, 4, 100), [0, 50, 0, 50]);
        assert_eq!(WeightedRoundRobin::new([0, 0], 1).pick(), None);
        assert_eq!(WeightedRoundRobin::new([], 1).pick_with_alternatives(&mut [0; CHOICES]), 0);
    }

    #[test]
    fn alternatives_are_distinct_and_do_not_disturb_the_proportions() {
        let mut plain = WeightedRoundRobin::new([1, 2, 3, 0], 9);
        let mut scheduler = plain.clone();
        for _ in 0..1_000 {
            let mut choices = [usize::MAX; CHOICES];
            assert_eq!(scheduler.pick_with_alternatives(&mut choices), 3);
            assert_eq!(choices[0], plain.pick().unwrap());
            let mut sorted = choices;
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2]);
        }
    }

    #[test]
    fn a_heavy_node_among_many_light_ones_costs_no_long_search() {
        let weights = std::iter::once(u32::MAX).chain(std::iter::repeat_n(1, 9_999));
        let scheduler = WeightedRoundRobin::new(weights, 3);
        assert!(scheduler.slots.len() <= 20_000);
        let visits_per_pick = scheduler.slots.len() as f64 * f64::from(scheduler.max)
            / scheduler.slots.iter().map(|slot| f64::from(slot.weight)).sum::<f64>();
        assert!(visits_per_pick <= 2.01, "{visits_per_pick}");
    }

    #[test]
    fn workers_with_other_seeds_start_elsewhere() {
        let firsts: std::collections::HashSet<_> =
            (0..64).map(|seed| WeightedRoundRobin::new([1; 16], seed).pick()).collect();
        assert!(firsts.len() > 8, "{firsts:?}");
    }

    proptest! {
        #[test]
        fn shares_stay_within_a_few_picks_of_the_weights(
            weights in prop::collection::vec(0u32..1_000, 1..40),
            seed: u64,
            picks in 1u64..20_000,
        ) {
            let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
            prop_assume!(total > 0);
            let mut scheduler = WeightedRoundRobin::new(weights.iter().copied(), seed);
            let counts = counts(&mut scheduler, weights.len(), picks);
            for (node, count) in counts.into_iter().enumerate() {
                let share = f64::from(weights[node]) / total as f64;
                let expected = picks as f64 * share;
                let slots = scheduler.slots.iter().filter(|slot| slot.node as usize == node).count();
                // One for each of its slots, and its share of the round that is under way.
                let bound = 1.0 + slots as f64 + share * scheduler.slots.len() as f64;
                prop_assert!((count as f64 - expected).abs() <= bound, "{count} picks, {expected} expected");
            }
        }

        #[test]
        fn any_weights_yield_distinct_pickable_choices(
            weights in prop::collection::vec(prop_oneof![Just(0u32), Just(1), Just(u32::MAX), any::<u32>()], 0..30),
            seed: u64,
        ) {
            let mut scheduler = WeightedRoundRobin::new(weights.iter().copied(), seed);
            let pickable = weights.iter().filter(|weight| **weight > 0).count();
            for _ in 0..50 {
                let mut choices = [0; CHOICES];
                let count = scheduler.pick_with_alternatives(&mut choices);
                prop_assert_eq!(count, pickable.min(CHOICES));
                let mut distinct = choices[..count].to_vec();
                distinct.sort_unstable();
                distinct.dedup();
                prop_assert_eq!(distinct.len(), count);
                prop_assert!(distinct.iter().all(|node| weights[*node] > 0));
            }
        }
    }
}
