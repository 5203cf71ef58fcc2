//! A node: what the registry says of it, what policy makes of it, and its form on the wire.

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use prost::Message;
use xxhash_rust::xxh3::xxh3_64;

use crate::wire::{self, WireError, limits};

/// Whether a node may be picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Health {
    /// Its check passes, or it has none.
    #[default]
    Passing,
    /// Its check fails: seen, never picked.
    Critical,
    /// About to leave: requests in flight end, no new ones come.
    Draining,
}

impl Health {
    /// The name used in registry values, metrics and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Critical => "critical",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a node speaks on its port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 without TLS, by prior knowledge: what gRPC servers speak.
    Http2,
}

impl Protocol {
    /// The name used in registry values and configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
        }
    }
}

/// One instance of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where it listens; unique within its service.
    pub address: SocketAddr,
    /// Its share of new requests, relative to the other nodes' weights; 0 means none.
    pub weight: u32,
    /// Whether it may be picked.
    pub health: Health,
    /// What it speaks.
    pub protocol: Protocol,
    /// Name of the instance in the registry.
    pub id: String,
    /// Failure domain; empty if unknown.
    pub zone: String,
    /// Version of what runs there; empty if unknown.
    pub version: String,
    /// Free labels.
    pub tags: Vec<String>,
    /// Free data by name.
    pub metadata: BTreeMap<String, String>,
    /// What its service's policy makes of it; the default in what comes from the registry.
    pub placement: Placement,
}

/// What the policy of a service makes of one of its nodes. The agent works it out, so that filters need to look at no
/// labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Placement {
    /// What a strategy component has given it in place of its own weight.
    pub weight: Option<u32>,
    /// Its level: others get requests only when those of lower levels cannot take them all. 0 comes first.
    pub priority: u8,
    /// How much of its weight counts while it starts slowly, in thousandths: [`Placement::WARM`] is all of it.
    pub warmup: u16,
    /// Bit i: it belongs to the i-th of the policy's subsets, in the order of their names.
    pub subsets: u64,
}

impl Placement {
    /// The warmup of a node whose whole weight counts.
    pub const WARM: u16 = 1_000;
}

impl Default for Placement {
    fn default() -> Self {
        Self { weight: None, priority: 0, warmup: Self::WARM, subsets: 0 }
    }
}

/// What identifies a node within its service to pickers, in cookies and in reports: the hash of its address as text.
pub fn node_key(address: &str) -> u64 {
    xxh3_64(address.as_bytes())
}

impl Node {
    /// A passing node of weight 1 that is known by its address only.
    pub fn at(address: SocketAddr) -> Self {
        Self {
            address,
            weight: 1,
            health: Health::Passing,
            protocol: Protocol::Http1,
            id: address.to_string(),
            zone: String::new(),
            version: String::new(),
            tags: Vec::new(),
            metadata: BTreeMap::new(),
            placement: Placement::default(),
        }
    }

    /// Whether new requests may go to it: passing, and of a weight above 0.
    pub fn is_pickable(&self) -> bool {
        self.health == Health::Passing && self.effective_weight() > 0
    }

    /// The weight that counts: its own, or what a strategy component has given it instead.
    pub fn effective_weight(&self) -> u32 {
        self.placement.weight.unwrap_or(self.weight)
    }

    /// The node on the wire.
    ///
    /// # Errors
    /// [`WireError::NodeTooLarge`] beyond [`limits::NODE_BYTES`].
    pub fn encode(&self) -> Result<Bytes, WireError> {
        let message = wire::Node {
            address: self.address.to_string(),
            weight: self.weight,
            health: match self.health {
                Health::Passing => wire::Health::Passing,
                Health::Critical => wire::Health::Critical,
                Health::Draining => wire::Health::Draining,
            } as i32,
            id: self.id.clone(),
            zone: self.zone.clone(),
            version: self.version.clone(),
            tags: self.tags.clone(),
            metadata: self.metadata.clone(),
            protocol: match self.protocol {
                Protocol::Http1 => wire::Protocol::Http1,
                Protocol::Http2 => wire::Protocol::Http2,
            } as i32,
            priority: self.placement.priority.into(),
            // Most nodes are warm, and say so by saying nothing.
            warmup: (self.placement.warmup < Placement::WARM).then(|| self.placement.warmup.into()),
            subsets: self.placement.subsets,
            placed_weight: self.placement.weight,
        };
        let bytes = message.encode_to_vec();
        if bytes.len() > limits::NODE_BYTES {
            return Err(WireError::NodeTooLarge { address: self.address.to_string(), bytes: bytes.len() });
        }
        Ok(bytes.into())
    }

    /// The node that these bytes of the wire hold.
    ///
    /// # Errors
    /// [`WireError`] if they are too many, no node, or its address or an enum's value means nothing.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let message = wire::decode_node(bytes)?;
        Ok(Self {
            placement: wire::placement(&message),
            address: wire::parse_address(&message.address)?,
            health: wire::parse_health(message.health)?,
            protocol: match wire::Protocol::try_from(message.protocol) {
                Ok(wire::Protocol::Http1) => Protocol::Http1,
                Ok(wire::Protocol::Http2) => Protocol::Http2,
                Err(_) => return Err(WireError::UnknownEnum { field: "protocol", value: message.protocol }),
            },
            weight: message.weight,
            id: message.id,
            zone: message.zone,
            version: message.version,
            tags: message.tags,
            metadata: message.metadata,
        })
    }
}

/// A node with its encoding and hash, computed once and shared by every version of the catalog that holds it.
#[derive(Debug)]
pub struct NodeEntry {
    pub(super) node: Arc<Node>,
    pub(super) encoded: Bytes,
    pub(super) hash: u64,
}

impl NodeEntry {
    /// The entry of `node`.
    ///
    /// # Errors
    /// As [`Node::encode`].
    pub fn new(node: impl Into<Arc<Node>>) -> Result<Self, WireError> {
        let node = node.into();
        let encoded = node.encode()?;
        let hash = node_hash(&encoded);
        Ok(Self { node, encoded, hash })
    }

    /// The entry of an encoded node, its bytes kept as they are.
    ///
    /// # Errors
    /// As [`Node::decode`].
    pub fn from_encoded(encoded: Bytes) -> Result<Self, WireError> {
        let node = Arc::new(Node::decode(&encoded)?);
        let hash = node_hash(&encoded);
        Ok(Self { node, encoded, hash })
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The node, for whoever keeps it too.
    pub fn shared(&self) -> &Arc<Node> {
        &self.node
    }

    /// Its encoding.
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// Hash of its encoding.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}

/// Hash of an encoded node.
pub fn node_hash(encoded: &[u8]) -> u64 {
    xxh3_64(encoded)
}
