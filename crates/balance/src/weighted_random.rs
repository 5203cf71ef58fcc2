//! A random node, each as likely as its weight says, O(1) however many there are: Vose's alias method.
//!
//! A table has one column for each node, all equally likely, and each column is shared by two nodes at most. The table
//! is made in whole numbers: weights up to 2^32-1 keep their exact shares, but for less than one part in 2^64 for each
//! column. Library tables need a generator of random numbers at hand and, for `u32` weights, sums that fit them.

use crate::random::spread;

#[derive(Clone, Copy, Debug)]
struct Column {
    /// In 2^64ths: the node's part of the column.
    part: u64,
    node: u32,
    /// Has the rest of the column.
    alias: u32,
}

/// Picks among nodes 0 to n-1, each as likely as its weight says.
#[derive(Clone, Debug)]
pub struct WeightedRandom {
    columns: Vec<Column>,
}

impl WeightedRandom {
    /// A picker among nodes of these weights; a node of weight 0 is never picked. O(n) in the number of nodes.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let weighted: Vec<(u32, u64)> = (0u32..)
            .zip(weights)
            .filter(|(_, weight)| *weight > 0)
            .map(|(node, weight)| (node, weight.into()))
            .collect();
        let total: u64 = weighted.iter().map(|(_, weight)| weight).sum();
        let count = weighted.len() as u64;
        let mut columns = Vec::with_capacity(weighted.len());
        // What each node still has to get, where a whole column is `total`: the sum is that of all columns.
        let (mut small, mut large): (Vec<_>, Vec<_>) =
            weighted.into_iter().map(|(node, weight)| (node, weight * count)).partition(|(_, left)| *left < total);
        while let Some((node, left)) = small.pop() {
            // What is left over is as much as all columns that are missing, so someone has enough.
            let Some((alias, more)) = large.pop() else { break };
            let part = (u128::from(left) << 64) / u128::from(total);
            columns.push(Column { part: part as u64, node, alias });
            let rest = more - (total - left);
            if rest < total { &mut small } else { &mut large }.push((alias, rest));
        }
        columns.extend(large.into_iter().map(|(node, _)| Column { part: u64::MAX, node, alias: node }));
        Self { columns }
    }

    /// A node, or `None` if none has a weight above 0. `random` is any number, another one for each pick.
    pub fn pick(&self, random: u64) -> Option<usize> {
        let (index, position) = spread(random, self.columns.len());
        let column = self.columns.get(index)?;
        Some(if position < column.part { column.node } else { column.alias } as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a node gets of all columns together, in 2^64ths of one.
    fn share(picker: &WeightedRandom, node: u32) -> u128 {
        let part = |column: &Column| {
            let part = if column.node == column.alias { 1 << 64 } else { u128::from(column.part) };
            let own = if column.node == node { part } else { 0 };
            own + if column.alias == node { (1 << 64) - part } else { 0 }
        };
        picker.columns.iter().map(part).sum()
    }

    proptest! {
        #[test]
        fn the_table_gives_each_node_the_share_of_its_weight(
            weights in prop::collection::vec(prop_oneof![Just(0u32), Just(1), Just(u32::MAX), any::<u32>()], 0..60),
        ) {
            let picker = WeightedRandom::new(weights.iter().copied());
            let count = weights.iter().filter(|weight| **weight > 0).count();
            prop_assert_eq!(picker.columns.len(), count);
            let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
            for (node, weight) in (0..).zip(&weights) {
                // 2^96 x 60 stays below 2^128.
                let expected = (u128::from(*weight) * count as u128) << 64;
                let expected = expected.checked_div(total).unwrap_or(0);
                prop_assert!(share(&picker, node).abs_diff(expected) <= count as u128 + 1);
            }
        }

        #[test]
        fn picks_follow_the_weights(weights in prop::collection::vec(0u32..1_000, 1..40)) {
            const PICKS: u64 = 50_000;
            let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            prop_assume!(total > 0);
            let picker = WeightedRandom::new(weights.iter().copied());
            let mut counts = vec![0u64; weights.len()];
            // Numbers at equal distances stand for all.
            for pick in 0..PICKS {
                counts[picker.pick(u64::MAX / PICKS * pick).unwrap()] += 1;
            }
            for (node, count) in (0..).zip(counts) {
                let expected = PICKS as f64 * f64::from(weights[node as usize]) / total as f64;
                // One for either end of each of its parts.
                let parts = picker.columns.iter().filter(|column| column.node == node || column.alias == node).count();
                let off = (count as f64 - expected).abs();
                prop_assert!(off <= 2.0 * parts as f64 + 0.01, "{count} picks, {expected} expected");
            }
        }
    }

    #[test]
    fn a_light_node_beside_the_heaviest_is_picked_as_rarely_as_it_should_be() {
        let picker = WeightedRandom::new([1, u32::MAX]);
        let one_in = (1u128 << 64) * 2 / share(&picker, 0);
        assert!((1 << 32) - one_in <= 1, "{one_in}");
    }
}
