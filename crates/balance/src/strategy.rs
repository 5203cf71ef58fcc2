//! The strategies by name, and a picker that many threads can share for each that needs nothing but weights.

use std::{fmt, str::FromStr};

use crate::{Random, RoundRobin, SharedWeightedRoundRobin, WeightedRandom};

/// How one of several nodes is picked.
///
/// ```
/// use waypost_balance::Strategy;
///
/// let strategy: Strategy = "weighted-random".parse()?;
/// assert_eq!(strategy, Strategy::WeightedRandom);
/// assert_eq!(strategy.to_string(), "weighted-random");
/// # Ok::<(), waypost_balance::UnknownStrategy>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Strategy {
    /// Any node, each as likely as the other.
    Random,
    /// Any node, each as likely as its weight says.
    WeightedRandom,
    /// One after the other.
    RoundRobin,
    /// In turn, each as often as its weight says: exactly so, over any stretch of picks.
    #[default]
    WeightedRoundRobin,
    /// Of a few nodes drawn by weight, the one with the fewest requests in flight for its weight.
    LeastRequest,
    /// Of two nodes drawn by weight, the one whose latency, as last seen, and requests in flight promise the fastest
    /// answer.
    PeakEwma,
    /// Always the same node for the same key, as long as it is there (weighted Maglev).
    ConsistentHash,
}

/// No strategy is called so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no strategy: allowed are {list}", list = Strategy::ALL.map(Strategy::as_str).join(", "))]
pub struct UnknownStrategy(pub String);

impl Strategy {
    /// Every strategy.
    pub const ALL: [Self; 7] = [
        Self::Random,
        Self::WeightedRandom,
        Self::RoundRobin,
        Self::WeightedRoundRobin,
        Self::LeastRequest,
        Self::PeakEwma,
        Self::ConsistentHash,
    ];

    /// Those that need to know no more than weights: what a [`Picker`] serves to the letter.
    pub const PLAIN: [Self; 4] = [Self::Random, Self::WeightedRandom, Self::RoundRobin, Self::WeightedRoundRobin];

    /// Its name in configuration and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::WeightedRandom => "weighted-random",
            Self::RoundRobin => "round-robin",
            Self::WeightedRoundRobin => "weighted-round-robin",
            Self::LeastRequest => "least-request",
            Self::PeakEwma => "peak-ewma",
            Self::ConsistentHash => "consistent-hash",
        }
    }

    /// The names of the [plain](Self::PLAIN) ones, for an error or a help text.
    pub fn plain_names() -> String {
        Self::PLAIN.map(Self::as_str).join(", ")
    }

    /// What it needs to know beyond weights, in words that go into an error, if anything.
    pub const fn needs(self) -> Option<&'static str> {
        match self {
            Self::Random | Self::WeightedRandom | Self::RoundRobin | Self::WeightedRoundRobin => None,
            Self::LeastRequest | Self::PeakEwma => Some("the outcomes of requests"),
            Self::ConsistentHash => Some("a key of the request"),
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|strategy| strategy.as_str() == name);
        found.ok_or_else(|| UnknownStrategy(name.chars().take(80).collect()))
    }
}

/// Picks by a [`Strategy`], O(1), from any number of threads at once and without a lock.
///
/// It knows weights and nothing else. Strategies that need more ([`Strategy::needs`]) are served as well as that allows:
/// least request and peak EWMA as weighted round robin, consistent hashing as weighted random. A
/// [`SharedBalancer`](crate::SharedBalancer) serves them to the letter.
///
/// ```
/// use waypost_balance::{Picker, Strategy};
///
/// let mut random = fastrand::Rng::with_seed(1);
/// let picker = Picker::new(Strategy::WeightedRoundRobin, [3, 0, 1], random.u64(..));
/// let mut picks = [0; 3];
/// for _ in 0..4_000 {
///     picks[picker.pick(random.u64(..)).unwrap()] += 1;
/// }
/// assert_eq!(picks, [3_000, 0, 1_000]);
/// ```
#[derive(Debug)]
pub enum Picker {
    /// For [`Strategy::Random`].
    Random(Random),
    /// For [`Strategy::WeightedRandom`], and for [`Strategy::ConsistentHash`], whose key it is not told.
    WeightedRandom(WeightedRandom),
    /// For [`Strategy::RoundRobin`].
    RoundRobin(RoundRobin),
    /// For [`Strategy::WeightedRoundRobin`], and for those that need outcomes, which it is not told.
    WeightedRoundRobin(SharedWeightedRoundRobin),
}

impl Picker {
    /// A picker among nodes of these weights; a node of weight 0 is never picked, by no strategy.
    ///
    /// `seed` says where strategies that go round begin.
    pub fn new(strategy: Strategy, weights: impl IntoIterator<Item = u32>, seed: u64) -> Self {
        match strategy {
            Strategy::Random => Self::Random(Random::new(weights)),
            Strategy::WeightedRandom | Strategy::ConsistentHash => Self::WeightedRandom(WeightedRandom::new(weights)),
            Strategy::RoundRobin => Self::RoundRobin(RoundRobin::new(weights, seed)),
            Strategy::WeightedRoundRobin | Strategy::LeastRequest | Strategy::PeakEwma => {
                Self::WeightedRoundRobin(SharedWeightedRoundRobin::new(weights, seed))
            }
        }
    }

    /// A node, or `None` if none has a weight above 0. `random` is any number, another one for each pick.
    pub fn pick(&self, random: u64) -> Option<usize> {
        match self {
            Self::Random(picker) => picker.pick(random),
            Self::WeightedRandom(picker) => picker.pick(random),
            Self::RoundRobin(picker) => picker.pick(),
            Self::WeightedRoundRobin(picker) => picker.pick(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    // By name: the prelude has a trait that is called so too.
    use super::{Picker, Strategy};

    #[test]
    fn each_strategy_has_a_name_that_means_it() {
        for strategy in Strategy::ALL {
            assert_eq!(strategy.as_str().parse(), Ok(strategy));
            assert_eq!(strategy.needs().is_none(), Strategy::PLAIN.contains(&strategy));
        }
        let error = "best".parse::<Strategy>().unwrap_err().to_string();
        assert_eq!(
            error,
            "\"best\" is no strategy: allowed are random, weighted-random, round-robin, weighted-round-robin, \
             least-request, peak-ewma, consistent-hash"
        );
    }

    proptest! {
        #[test]
        fn no_strategy_picks_a_node_of_weight_zero_or_finds_none_where_one_is(
            weights in prop::collection::vec(prop_oneof![Just(0u32), Just(1), Just(u32::MAX), any::<u32>()], 0..30),
            seed: u64,
        ) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let randoms: Vec<u64> = [0, u64::MAX].into_iter().chain((0..50).map(|_| rng.u64(..))).collect();
            for strategy in Strategy::ALL {
                let picker = Picker::new(strategy, weights.iter().copied(), seed);
                for random in &randoms {
                    let picked = picker.pick(*random).map(|node| weights[node]);
                    prop_assert_eq!(picked.is_some(), weights.iter().any(|weight| *weight > 0));
                    prop_assert_ne!(picked, Some(0));
                }
            }
        }
    }
}
