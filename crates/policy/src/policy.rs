//! A policy: how the nodes of one service are chosen among.

mod read;
mod write;

use std::time::Duration;

use serde_json::Value;
use waypost_catalog::ServiceName;

use crate::{
    HashKey, MAX_DOCUMENT, Priority, Problems, RequestView, Split, StickyCookie, SubsetChoice, Subsets, reader,
};

/// Of the split of a policy; see [`crate::Sticky::hash`].
const SPLIT_SEED: u64 = 1;

/// How the nodes of one service are chosen among.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// How one node is picked out of those that may be.
    pub strategy: Strategy,
    /// Below this percentage of healthy nodes, health is not looked at; 0: it always is.
    pub panic_threshold: u8,
    /// How nodes that fail are left out for a while; `None`: they are not.
    pub ejection: Option<Ejection>,
    /// How a new node comes to its weight; `None`: at once.
    pub slow_start: Option<SlowStart>,
    /// Whether nodes nearby come first; `None`: they do not.
    pub locality: Option<Locality>,
    /// What decides on a node's priority level; `None`: all have the first.
    pub priority: Option<Priority>,
    /// Percentage of a level's nodes by which it may be thought larger than it is, before it spills over to the next.
    pub overprovisioning: u16,
    /// Parts of the service's nodes.
    pub subsets: Subsets,
    /// How requests are shared out among subsets; `None`: they are not.
    pub split: Option<Split<SubsetArm>>,
    /// The header by which a request may name its subset, in lower case; `None`: it may not. Without subsets there is
    /// nothing to name.
    pub subset_header: Option<String>,
    /// The cookie that keeps a client at its node; `None`: there is none.
    pub sticky: Option<StickyCookie>,
    /// The component that gives nodes their weights and levels; `None`: they keep their own.
    pub component: Option<Component>,
    /// Whether outcomes are reported also where nothing here needs them.
    pub outcomes: bool,
    /// Whether a request for a subset that is empty or missing goes nowhere, instead of to the whole service.
    pub strict_subsets: bool,
}

/// A subset as an arm of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubsetArm {
    /// Its name.
    pub name: String,
    /// Its index in [`Policy::subsets`].
    pub index: usize,
}

/// How one node is picked.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Strategy {
    /// Any node.
    Random,
    /// One after the other.
    RoundRobin,
    /// Any node, by weight.
    WeightedRandom,
    /// One after the other, each as often as its weight says.
    #[default]
    WeightedRoundRobin,
    /// Of a few at random the one with the fewest requests in flight for its weight.
    LeastRequest {
        /// How many.
        choices: u8,
    },
    /// Of two at random the one with the least latency times requests in flight.
    PeakEwma {
        /// How fast a latency is forgotten.
        decay: Duration,
        /// That of a node of which nothing is known.
        default_latency: Duration,
    },
    /// The same node for equal requests.
    ConsistentHash(ConsistentHash),
}

/// How equal requests get to the same node.
#[derive(Clone, Debug, PartialEq)]
pub struct ConsistentHash {
    /// What makes requests equal.
    pub key: HashKey,
    /// Slots of the table: a prime number.
    pub table_size: u32,
    /// How many times the average a node may have in flight before others step in; `None`: any.
    pub bounded_load: Option<f64>,
}

/// How nodes that fail are left out for a while.
#[derive(Clone, Debug, PartialEq)]
pub struct Ejection {
    /// After so many failures in a row; 0: however many.
    pub consecutive_failures: u32,
    /// How often success rates are looked at, and nodes that are out.
    pub interval: Duration,
    /// How long the first time; each further time as much longer.
    pub base_time: Duration,
    /// How long at most.
    pub max_time: Duration,
    /// The largest percentage of the nodes that may be out at once.
    pub max_share: u8,
    /// Also those whose success rate stands out; `None`: they are not.
    pub success_rate: Option<SuccessRate>,
}

/// When a success rate stands out.
#[derive(Clone, Debug, PartialEq)]
pub struct SuccessRate {
    /// Only if so many nodes can be compared.
    pub min_nodes: u32,
    /// Only nodes that had so many requests in an interval.
    pub min_requests: u32,
    /// If it is below the mean by this many standard deviations.
    pub stdev_factor: f64,
}

/// How a new node comes to its weight.
#[derive(Clone, Debug, PartialEq)]
pub struct SlowStart {
    /// How long it takes.
    pub window: Duration,
    /// 1 for evenly over time, more for faster at first.
    pub aggression: f64,
    /// The percentage of its weight that it begins with.
    pub min_share: u8,
}

/// Whether nodes nearby come first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locality {
    /// Whether nodes of the own zone do, for as long as they can take it.
    pub zone_aware: bool,
    /// The service whose nodes' zones say where requests come from; `None`: they come evenly from all zones.
    pub callers: Option<ServiceName>,
    /// Not with fewer nodes than this.
    pub min_nodes: u32,
}

/// A strategy component and what it is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Component {
    /// Which.
    pub source: ComponentSource,
    /// Whatever it understands.
    pub parameters: Value,
}

/// What names a component.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ComponentSource {
    /// Its name in the agent's directory.
    Name(String),
    /// The SHA-256 of its bytes, in hex.
    Sha256(String),
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            panic_threshold: 50,
            ejection: None,
            slow_start: None,
            locality: None,
            priority: None,
            overprovisioning: 140,
            subsets: Subsets::default(),
            split: None,
            subset_header: None,
            sticky: None,
            component: None,
            outcomes: true,
            strict_subsets: false,
        }
    }
}

impl Policy {
    /// Reads a document.
    ///
    /// # Errors
    /// [`Problems`] with everything that is wrong.
    pub fn parse(json: &[u8]) -> Result<Self, Problems> {
        let policy = reader::document(json, read::policy)?;
        // What goes without saying is written out in places, and numbers may be longer: it has to be read again.
        match policy.to_json().len() {
            ..=MAX_DOCUMENT => Ok(policy),
            long => Err(Problems::whole(format!("{long} bytes long as it is kept: up to {MAX_DOCUMENT} are allowed"))),
        }
    }

    /// The one document that says this: no blanks, names in order, and nothing that goes without saying.
    pub fn to_json(&self) -> String {
        write::policy(self).to_canonical()
    }

    /// Whether something here is decided by how requests end.
    pub fn needs_outcomes(&self) -> bool {
        self.ejection.is_some() || self.strategy.needs_outcomes()
    }

    /// The subset of a request whose route names none: by header if it may, else by the split. `random` decides where the
    /// request does not.
    pub fn subset_for(&self, request: &mut impl RequestView, random: u64) -> SubsetChoice {
        if let Some(named) = self.named_subset(request) {
            return named;
        }
        match &self.split {
            Some(split) => SubsetChoice::Subset(split.choose_for(request, SPLIT_SEED, random).target.index),
            None => SubsetChoice::Whole,
        }
    }

    /// The subset that a request names by the header, if it may and does.
    pub(crate) fn named_subset(&self, request: &mut impl RequestView) -> Option<SubsetChoice> {
        let value = request.header(self.subset_header.as_ref().filter(|_| !self.subsets.is_empty())?)?;
        let name = value.trim_ascii();
        let known = || std::str::from_utf8(name).ok().and_then(|name| self.subsets.index(name));
        (!name.is_empty()).then(|| known().map_or(SubsetChoice::Unknown, SubsetChoice::Subset))
    }

    /// The arm that the split takes for a request whatever the random number; `None` if that decides.
    pub(crate) fn sticky_arm(&self, request: &mut impl RequestView) -> Option<&SubsetArm> {
        let split = self.split.as_ref()?;
        let hash = split.sticky()?.hash(request, SPLIT_SEED)?;
        Some(&split.choose(hash).target)
    }
}

impl Strategy {
    /// Its name in documents and output.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "round-robin",
            Self::WeightedRandom => "weighted-random",
            Self::WeightedRoundRobin => "weighted-round-robin",
            Self::LeastRequest { .. } => "least-request",
            Self::PeakEwma { .. } => "peak-ewma",
            Self::ConsistentHash(_) => "consistent-hash",
        }
    }

    /// Whether it decides by how requests end, or by how many have not.
    pub fn needs_outcomes(&self) -> bool {
        match self {
            Self::LeastRequest { .. } | Self::PeakEwma { .. } => true,
            Self::ConsistentHash(hash) => hash.bounded_load.is_some(),
            Self::Random | Self::RoundRobin | Self::WeightedRandom | Self::WeightedRoundRobin => false,
        }
    }
}
