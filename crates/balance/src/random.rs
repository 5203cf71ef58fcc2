//! A random node, each as likely as the other, O(1).

/// Picks among nodes 0 to n-1, each of a weight above 0 as likely as the other.
#[derive(Clone, Debug)]
pub struct Random {
    pickable: Vec<u32>,
}

impl Random {
    /// A picker among nodes of these weights, of which only counts whether they are 0: such a node is never picked.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        Self { pickable: pickable(weights) }
    }

    /// A node, or `None` if none has a weight above 0. `random` is any number, another one for each pick.
    pub fn pick(&self, random: u64) -> Option<usize> {
        let (index, _) = spread(random, self.pickable.len());
        self.pickable.get(index).map(|node| *node as usize)
    }
}

/// The nodes of a weight above 0.
pub(crate) fn pickable(weights: impl IntoIterator<Item = u32>) -> Vec<u32> {
    (0u32..).zip(weights).filter(|(_, weight)| *weight > 0).map(|(node, _)| node).collect()
}

/// Spreads a random number over `count` equal parts: which part it falls into, and where in that part it lies, in
/// 2^64ths. All parts are equally likely, but for at most `count` / 2^64.
pub(crate) fn spread(random: u64, count: usize) -> (usize, u64) {
    let product = u128::from(random) * count as u128;
    ((product >> 64) as usize, product as u64)
}

/// Scrambles a number, so that each bit of it depends on all bits (splitmix64's finish).
pub(crate) fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// As many random numbers as a pick needs, from the one it was given (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Stream(u64);

impl Stream {
    pub(crate) fn new(random: u64) -> Self {
        Self(random)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_pickable_node_gets_the_same_share(weights in prop::collection::vec(0u32..3, 1..50)) {
            const PICKS: u64 = 10_000;
            let picker = Random::new(weights.iter().copied());
            let count = weights.iter().filter(|weight| **weight > 0).count();
            prop_assume!(count > 0);
            let mut counts = vec![0; weights.len()];
            // Numbers at equal distances stand for all.
            for pick in 0..PICKS {
                counts[picker.pick(u64::MAX / PICKS * pick).unwrap()] += 1;
            }
            for (weight, picked) in weights.iter().zip(counts) {
                let expected = if *weight > 0 { PICKS as f64 / count as f64 } else { 0.0 };
                prop_assert!((f64::from(picked) - expected).abs() <= 1.0, "{picked} picks, {expected} expected");
            }
        }
    }
}
