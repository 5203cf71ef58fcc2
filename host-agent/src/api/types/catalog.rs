//! What the agent serves: services, their nodes, and how they change.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use waypost_catalog as model;

/// Whether a node may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Its check passes, or it has none.
    Passing,
    /// Its check fails: seen, never picked.
    Critical,
    /// About to leave, or in maintenance: requests in flight end, no new ones come.
    Draining,
}

impl Health {
    /// The name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Critical => "critical",
            Self::Draining => "draining",
        }
    }
}

impl From<model::Health> for Health {
    fn from(health: model::Health) -> Self {
        match health {
            model::Health::Passing => Self::Passing,
            model::Health::Critical => Self::Critical,
            model::Health::Draining => Self::Draining,
        }
    }
}

/// What a node speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, by prior knowledge: what gRPC servers speak.
    Http2,
}

impl From<model::Protocol> for Protocol {
    fn from(protocol: model::Protocol) -> Self {
        match protocol {
            model::Protocol::Http1 => Self::Http1,
            model::Protocol::Http2 => Self::Http2,
        }
    }
}

/// One instance of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// IP address and port; unique within the service.
    #[schema(value_type = String, example = "10.0.0.5:8080")]
    pub address: SocketAddr,
    /// Its share of new requests, relative to the other nodes' weights; 0 means none.
    pub weight: u32,
    /// Whether it may be picked.
    pub health: Health,
    /// What it speaks.
    pub protocol: Protocol,
    /// Name of the instance in the registry.
    #[schema(example = "host-a-8080")]
    pub id: String,
    /// Failure domain; empty if unknown.
    pub zone: String,
    /// Version of what runs there; empty if unknown.
    pub version: String,
    /// Free labels.
    pub tags: Vec<String>,
    /// Free data by name.
    pub metadata: BTreeMap<String, String>,
    /// What the service's policy makes of it; missing if nothing.
    #[serde(default, skip_serializing_if = "Placement::is_plain")]
    pub placement: Placement,
}

/// What the policy of a service makes of one of its nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Placement {
    /// What a strategy component has given it in place of its own weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Its level: others get requests only when those of lower levels cannot take them all.
    pub priority: u8,
    /// How much of its weight counts while it starts slowly, in thousandths.
    pub warmup: u16,
    /// Bit i: it belongs to the i-th of the policy's subsets, in the order of their names.
    pub subsets: u64,
}

impl Placement {
    fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Placement {
    fn default() -> Self {
        model::Placement::default().into()
    }
}

impl From<model::Placement> for Placement {
    fn from(placement: model::Placement) -> Self {
        let model::Placement { weight, priority, warmup, subsets } = placement;
        Self { weight, priority, warmup, subsets }
    }
}

impl From<&model::Node> for Node {
    fn from(node: &model::Node) -> Self {
        Self {
            address: node.address,
            weight: node.weight,
            health: node.health.into(),
            protocol: node.protocol.into(),
            id: node.id.clone(),
            zone: node.zone.clone(),
            version: node.version.clone(),
            tags: node.tags.clone(),
            metadata: node.metadata.clone(),
            placement: node.placement.into(),
        }
    }
}

impl From<Node> for model::Node {
    fn from(node: Node) -> Self {
        let Node { address, weight, health, protocol, id, zone, version, tags, metadata, placement } = node;
        let Placement { weight: placed, priority, warmup, subsets } = placement;
        let placement = model::Placement { weight: placed, priority, warmup, subsets };
        let health = match health {
            Health::Passing => model::Health::Passing,
            Health::Critical => model::Health::Critical,
            Health::Draining => model::Health::Draining,
        };
        let protocol = match protocol {
            Protocol::Http1 => model::Protocol::Http1,
            Protocol::Http2 => model::Protocol::Http2,
        };
        Self { address, weight, health, protocol, id, zone, version, tags, metadata, placement }
    }
}

/// `GET /v1/services`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Services {
    /// Version of the catalog.
    pub version: u64,
    /// Every service that has a node, by name.
    pub services: Vec<ServiceSummary>,
}

/// A service in figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceSummary {
    /// Its name.
    #[schema(example = "web")]
    pub name: String,
    /// Number of nodes.
    pub nodes: usize,
    /// Nodes that pass.
    pub passing: usize,
    /// Nodes whose check fails.
    pub critical: usize,
    /// Nodes that drain.
    pub draining: usize,
    /// Sum of the weights of the passing nodes.
    pub weight: u64,
}

/// `GET /v1/services/{service}/nodes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceNodes {
    /// The service.
    #[schema(example = "web")]
    pub service: String,
    /// Version of the catalog.
    pub version: u64,
    /// Its nodes that were asked for, by address.
    pub nodes: Vec<Node>,
}

/// `GET /v1/nodes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AllNodes {
    /// Version of the catalog.
    pub version: u64,
    /// The nodes that were asked for, by service and address.
    pub nodes: Vec<ServiceNode>,
}

/// A node and the service that it is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceNode {
    /// The service.
    #[schema(example = "web")]
    pub service: String,
    /// The node.
    #[serde(flatten)]
    pub node: Node,
}

/// Which nodes are asked for: those that meet all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct NodeQuery {
    /// `true`: only nodes that may be picked, which pass and have a weight above 0. `false`: only the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthy: Option<bool>,
    /// Only nodes with this tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Only nodes of this zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Only nodes of this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Only this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// How a node is picked, and among which.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PickQuery {
    /// `random`, `weighted-random`, `round-robin` or, unless another is named, `weighted-round-robin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<String>,
    /// Only nodes with this tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Only nodes of this zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Only nodes of this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// `GET /v1/services/{service}/pick`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pick {
    /// The service.
    #[schema(example = "web")]
    pub service: String,
    /// How it was picked.
    #[schema(example = "weighted-round-robin")]
    pub strategy: String,
    /// The picked node.
    pub node: Node,
    /// Up to two others to go to if that one fails.
    pub alternatives: Vec<Node>,
}

/// Which changes are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// Only this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// An event of `GET /v1/events`: its name is the SSE event's, its content the SSE data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", content = "data", rename_all = "lowercase")]
pub enum CatalogEvent {
    /// A node that was not there.
    Added(NodeAdded),
    /// A node that is another now at the same address.
    Changed(NodeChanged),
    /// A node that is gone.
    Removed(NodeRemoved),
    /// Everything: the start, or a new one after events that cannot be told any more. What is not in it is gone.
    Resynchronised(Resynchronised),
}

/// Data of `added`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeAdded {
    /// The service.
    pub service: String,
    /// The node.
    pub node: Node,
}

/// Data of `changed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeChanged {
    /// The service.
    pub service: String,
    /// What it was.
    pub old: Node,
    /// What it is.
    pub new: Node,
}

/// Data of `removed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeRemoved {
    /// The service.
    pub service: String,
    /// What it was.
    pub node: Node,
}

/// Data of `resynchronised`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Resynchronised {
    /// Version of the catalog.
    pub version: u64,
    /// Every node of every service that was asked for.
    pub services: BTreeMap<String, Vec<Node>>,
}
