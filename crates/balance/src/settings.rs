//! How a service's nodes are chosen: the strategy and what goes with it.

use std::time::Duration;

use crate::Strategy;

/// A strategy with its parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Algorithm {
    /// [`Strategy::Random`].
    Random,
    /// [`Strategy::WeightedRandom`].
    WeightedRandom,
    /// [`Strategy::RoundRobin`].
    RoundRobin,
    /// [`Strategy::WeightedRoundRobin`].
    #[default]
    WeightedRoundRobin,
    /// [`Strategy::LeastRequest`].
    LeastRequest {
        /// How many nodes are drawn, of which the least busy one is taken; 2 to 10, what is outside is moved there.
        choices: u8,
    },
    /// [`Strategy::PeakEwma`].
    PeakEwma {
        /// In this time what is known of a latency fades to 1/e.
        decay: Duration,
        /// The latency of a node of which none is known yet.
        default_latency: Duration,
    },
    /// [`Strategy::ConsistentHash`].
    ConsistentHash {
        /// Size of a table: the next prime is taken, up to 5,000,011. A hundred times the number of nodes keeps shares
        /// within a percent or so.
        table_size: u32,
        /// With bounded load: how far above the mean a node's requests in flight may go, 1 and above; 1.25 is usual.
        bounded_load: Option<f64>,
    },
}

impl Algorithm {
    /// Its name.
    pub const fn strategy(&self) -> Strategy {
        match self {
            Self::Random => Strategy::Random,
            Self::WeightedRandom => Strategy::WeightedRandom,
            Self::RoundRobin => Strategy::RoundRobin,
            Self::WeightedRoundRobin => Strategy::WeightedRoundRobin,
            Self::LeastRequest { .. } => Strategy::LeastRequest,
            Self::PeakEwma { .. } => Strategy::PeakEwma,
            Self::ConsistentHash { .. } => Strategy::ConsistentHash,
        }
    }

    /// Whether it acts otherwise when nobody tells outcomes.
    pub const fn needs_outcomes(&self) -> bool {
        matches!(
            self,
            Self::LeastRequest { .. } | Self::PeakEwma { .. } | Self::ConsistentHash { bounded_load: Some(_), .. }
        )
    }

    /// What is left of it when nobody tells outcomes.
    pub(crate) fn without_outcomes(self) -> Self {
        match self {
            Self::LeastRequest { .. } | Self::PeakEwma { .. } => Self::WeightedRoundRobin,
            Self::ConsistentHash { table_size, .. } => Self::ConsistentHash { table_size, bounded_load: None },
            other => other,
        }
    }
}

impl From<Strategy> for Algorithm {
    /// The strategy with its usual parameters.
    fn from(strategy: Strategy) -> Self {
        match strategy {
            Strategy::Random => Self::Random,
            Strategy::WeightedRandom => Self::WeightedRandom,
            Strategy::RoundRobin => Self::RoundRobin,
            Strategy::WeightedRoundRobin => Self::WeightedRoundRobin,
            Strategy::LeastRequest => Self::LeastRequest { choices: 2 },
            Strategy::PeakEwma => {
                Self::PeakEwma { decay: Duration::from_secs(10), default_latency: Duration::from_millis(30) }
            }
            Strategy::ConsistentHash => Self::ConsistentHash { table_size: 65_537, bounded_load: None },
        }
    }
}

/// How a service's nodes are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The strategy among the nodes of one group: a priority level, or a zone of it.
    pub algorithm: Algorithm,
    /// When fewer than this percentage of a level's nodes are healthy, and the levels together cannot carry the load,
    /// all but draining ones are picked. `None` or 0: never.
    pub panic_threshold: Option<u8>,
    /// Whether nodes that fail are left out for a while.
    pub ejection: Option<Ejection>,
    /// Whether nodes of the caller's own zone come first.
    pub locality: Option<Locality>,
    /// Percent: how much more than its usual load a level's nodes can carry before the next level gets a part of it.
    pub overprovisioning: u32,
}

impl Default for Settings {
    /// Weighted round robin, a panic below 50 %, no ejection, no zones, overprovisioning of 140 %.
    fn default() -> Self {
        Self {
            algorithm: Algorithm::default(),
            panic_threshold: Some(50),
            ejection: None,
            locality: None,
            overprovisioning: 140,
        }
    }
}

impl From<Algorithm> for Settings {
    /// The usual settings, with this strategy.
    fn from(algorithm: Algorithm) -> Self {
        Self { algorithm, ..Self::default() }
    }
}

/// When a node that fails is left out, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ejection {
    /// So many failures without a success between them eject a node; `None`: none do.
    pub consecutive_failures: Option<u32>,
    /// How often success rates are compared, and how often a node that was not ejected again is forgiven one ejection.
    pub interval: Duration,
    /// A node is out for this long, times how often it was ejected.
    pub base_time: Duration,
    /// But never for longer than this, or than `base_time` if that is more.
    pub max_time: Duration,
    /// Percent of the nodes: once as many are out, no other is ejected. So 10 % of five nodes let one be ejected, as the
    /// share is below 10 % until then; 0 lets none.
    pub max_share: u8,
    /// Whether a node is ejected for a success rate far below the others'.
    pub success_rate: Option<SuccessRate>,
}

impl Default for Ejection {
    /// After five failures in a row, for 30 s to 300 s, at most 10 % of the nodes, looked at every 10 s.
    fn default() -> Self {
        Self {
            consecutive_failures: Some(5),
            interval: Duration::from_secs(10),
            base_time: Duration::from_secs(30),
            max_time: Duration::from_secs(300),
            max_share: 10,
            success_rate: None,
        }
    }
}

/// When a node's success rate is too far below that of the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRate {
    /// Nodes that must have had enough requests in an interval.
    pub min_nodes: u32,
    /// How many are enough.
    pub min_requests: u32,
    /// A rate below the mean less so many standard deviations ejects.
    pub stdev_factor: f64,
}

impl Default for SuccessRate {
    /// Five nodes with a hundred requests each, 1.9 standard deviations.
    fn default() -> Self {
        Self { min_nodes: 5, min_requests: 100, stdev_factor: 1.9 }
    }
}

/// Zone aware routing, as Envoy defines it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// The zone this caller is in; 0, unknown, turns it off.
    pub zone: u32,
    /// How many of the callers, or what part of them, are in each zone. Empty: all zones with nodes are taken to call
    /// equally often.
    pub callers: Vec<(u32, u64)>,
    /// With fewer healthy nodes in a level, zones do not matter there.
    pub min_nodes: u32,
}
