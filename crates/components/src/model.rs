//! The contract's question and answer, field by field as in `wit/strategy.wit`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentType, Lift, Lower};
use waypost_catalog as catalog;

/// Whether a node may get requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lift, Lower)]
#[component(enum)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Health {
    /// Its check passes, or it has none.
    #[default]
    #[component(name = "passing")]
    Passing,
    /// Its check fails.
    #[component(name = "critical")]
    Critical,
    /// It is about to leave.
    #[component(name = "draining")]
    Draining,
}

/// How long requests to a node took, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ComponentType, Lift, Lower)]
#[component(record)]
pub struct Latency {
    /// Half of the requests took at most this long.
    #[component(name = "p50-ms")]
    pub p50_ms: f64,
    /// 99 of 100 requests took at most this long.
    #[component(name = "p99-ms")]
    pub p99_ms: f64,
}

/// What became of the requests to one node, over the last window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ComponentType, Lift, Lower)]
#[component(record)]
pub struct Outcomes {
    /// Length of the window in seconds.
    #[component(name = "window-seconds")]
    pub window_seconds: f64,
    /// Requests that ended in the window.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Requests that ended, per second.
    pub rate: f64,
    /// Requests that are under way now.
    #[component(name = "in-flight")]
    pub in_flight: u32,
    /// Of the requests that were answered.
    pub latency: Option<Latency>,
}

/// What is decided about one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ComponentType, Lift, Lower)]
#[component(record)]
pub struct Decision {
    /// Its share of new requests, relative to the other nodes of the same priority; 0 means none.
    pub weight: u32,
    /// 0 to 127; the smallest number gets the requests.
    pub priority: u8,
}

/// One instance of the service.
#[derive(Clone, Debug, Default, PartialEq, ComponentType, Lift, Lower)]
#[component(record)]
pub struct Node {
    /// Name of the instance in the registry.
    pub id: String,
    /// Where it listens.
    pub address: String,
    /// Its weight in the registry.
    pub weight: u32,
    /// Its priority before the strategy decides, 0 first.
    pub priority: u8,
    /// Whether it may get requests.
    pub health: Health,
    /// Failure domain; empty if unknown.
    pub zone: String,
    /// Version of what runs there; empty if unknown.
    pub version: String,
    /// Free labels.
    pub tags: Vec<String>,
    /// Free data, in the order of the names.
    pub metadata: Vec<(String, String)>,
    /// For how long it has been passing; none if it is not.
    #[component(name = "age-seconds")]
    pub age_seconds: Option<u32>,
    /// What became of requests to it.
    pub outcomes: Option<Outcomes>,
    /// What was decided for it the last time.
    pub previous: Option<Decision>,
}

impl Node {
    /// Whether new requests may go to it: passing, and of a weight above 0 in the registry.
    pub fn is_pickable(&self) -> bool {
        self.health == Health::Passing && self.weight > 0
    }
}

impl From<&catalog::Node> for Node {
    /// What the catalog knows of it: no age, no outcomes, nothing decided before.
    fn from(node: &catalog::Node) -> Self {
        Self {
            id: node.id.clone(),
            address: node.address.to_string(),
            weight: node.weight,
            health: match node.health {
                catalog::Health::Passing => Health::Passing,
                catalog::Health::Critical => Health::Critical,
                catalog::Health::Draining => Health::Draining,
            },
            zone: node.zone.clone(),
            version: node.version.clone(),
            tags: node.tags.clone(),
            metadata: node.metadata.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            ..Self::default()
        }
    }
}

/// Where the agent runs that asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(record)]
pub struct Locality {
    /// Its zone; empty if it was given none.
    pub zone: String,
    /// The name of its host.
    pub host: String,
}

/// A question.
#[derive(Clone, Debug, PartialEq, ComponentType, Lift, Lower)]
#[component(record)]
pub struct Input {
    /// The service's name.
    pub service: String,
    /// All its nodes.
    pub nodes: Vec<Node>,
    /// The policy's parameters: a JSON value as text.
    pub parameters: String,
    /// Where the question comes from.
    pub local: Locality,
}

/// A checked answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// One for each node, in the order of the question.
    pub decisions: Vec<Decision>,
    /// Ask again after this even if nothing has changed.
    pub ask_again: Option<Duration>,
}

/// An answer as it comes from a component.
#[derive(Clone, Debug, ComponentType, Lift)]
#[component(record)]
pub(crate) struct RawAnswer {
    pub(crate) decisions: Vec<Decision>,
    #[component(name = "ask-again-seconds")]
    pub(crate) ask_again_seconds: Option<u32>,
}
