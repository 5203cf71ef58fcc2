//! Nodes, services and the catalog, and their content hashes.
//!
//! A service's hash is the wrapping sum of its nodes' hashes, a catalog's that of its services' (each mixed with the
//! name): one changed node costs one subtraction and one addition on either side of the stream, however large the
//! service. The hash finds lost, doubled and misordered changes; it is no defence against an attacker.

use std::{borrow::Borrow, collections::BTreeMap, fmt, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use prost::Message;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

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
        }
    }

    /// Whether new requests may go to it: passing, and of a weight above 0.
    pub fn is_pickable(&self) -> bool {
        self.health == Health::Passing && self.weight > 0
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

/// Name of a service: 1 to 255 bytes of ASCII letters, digits and `. _ - : ~ @`.
///
/// It becomes the name of an Envoy cluster, a segment of an etcd key and a label of metrics, so nothing that means
/// something in any of them is allowed.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName(Arc<str>);

/// Why a text is no [`ServiceName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no service name: 1 to 255 of the letters A-Z a-z, digits and . _ - : ~ @ are allowed")]
pub struct InvalidServiceName(pub String);

impl ServiceName {
    /// The name, checked.
    ///
    /// # Errors
    /// [`InvalidServiceName`] with the text (cut to 80 characters).
    pub fn new(name: &str) -> Result<Self, InvalidServiceName> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-:~@".contains(&b);
        if name.is_empty() || name.len() > 255 || !name.bytes().all(fits) {
            return Err(InvalidServiceName(name.chars().take(80).collect()));
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::ops::Deref for ServiceName {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for ServiceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// A node with its encoding and hash, computed once and shared by every version of the catalog that holds it.
#[derive(Debug)]
pub struct NodeEntry {
    node: Arc<Node>,
    encoded: Bytes,
    hash: u64,
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

/// What a service adds to the hash of its catalog.
pub fn service_share(name: &str, service_hash: u64) -> u64 {
    xxh3_64_with_seed(name.as_bytes(), service_hash)
}

/// A service: its nodes by address, and their hash.
#[derive(Clone, Debug, Default)]
pub struct Service {
    nodes: BTreeMap<SocketAddr, Arc<NodeEntry>>,
    hash: u64,
    changed_in: u64,
}

impl Service {
    /// Its nodes, in the order of their addresses.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Node> {
        self.nodes.values().map(|entry| &*entry.node)
    }

    /// Its nodes with encoding and hash, by address.
    pub fn entries(&self) -> &BTreeMap<SocketAddr, Arc<NodeEntry>> {
        &self.nodes
    }

    /// Content hash over its nodes.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Version of the catalog in which it last changed.
    pub fn changed_in(&self) -> u64 {
        self.changed_in
    }
}

/// Every service at one version. Immutable: a change makes the next version, which shares what stayed the same.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    version: u64,
    hash: u64,
    services: BTreeMap<ServiceName, Arc<Service>>,
}

impl Catalog {
    /// Counts the changes; comparable within one run of an agent only.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Content hash over all services: the same for the same content, whatever its history.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Every service that has a node.
    pub fn services(&self) -> &BTreeMap<ServiceName, Arc<Service>> {
        &self.services
    }

    /// Number of nodes in all services.
    pub fn node_count(&self) -> usize {
        self.services.values().map(|service| service.nodes.len()).sum()
    }

    /// The next version, with each named service's nodes replaced by those given (none: the service is gone).
    /// Of two nodes at one address the later one counts. `None` if that changes nothing.
    ///
    /// Nodes that cannot be encoded are left out and returned beside it.
    pub fn updated<N: Into<Arc<Node>>>(
        &self,
        changes: impl IntoIterator<Item = (ServiceName, Vec<N>)>,
    ) -> (Option<Self>, Vec<(ServiceName, WireError)>) {
        let mut next = Self { version: self.version + 1, ..self.clone() };
        let mut refused = Vec::new();
        let mut changed = false;
        for (name, nodes) in changes {
            let old = next.services.get(&name).map(Arc::as_ref);
            let mut service = Service { changed_in: next.version, ..Service::default() };
            for node in nodes {
                let node = node.into();
                let known = old.and_then(|old| old.nodes.get(&node.address));
                let known = known.filter(|entry| Arc::ptr_eq(&entry.node, &node) || entry.node == node);
                let entry = match known {
                    Some(entry) => Arc::clone(entry),
                    None => match NodeEntry::new(node) {
                        Ok(entry) => Arc::new(entry),
                        Err(error) => {
                            refused.push((name.clone(), error));
                            continue;
                        }
                    },
                };
                service.nodes.insert(entry.node.address, entry);
            }
            service.hash = service.nodes.values().fold(0, |sum, entry| sum.wrapping_add(entry.hash));
            let same = match old {
                Some(old) => old.hash == service.hash && old.nodes.len() == service.nodes.len(),
                None => service.nodes.is_empty(),
            };
            if !same {
                changed = true;
                next.put(name, service);
            }
        }
        (changed.then_some(next), refused)
    }

    fn put(&mut self, name: ServiceName, service: Service) {
        if let Some(old) = self.services.get(&name) {
            self.hash = self.hash.wrapping_sub(service_share(&name, old.hash));
        }
        if service.nodes.is_empty() {
            self.services.remove(&name);
        } else {
            self.hash = self.hash.wrapping_add(service_share(&name, service.hash));
            self.services.insert(name, Arc::new(service));
        }
    }

    /// The catalog as kept on disk.
    pub fn to_stored(&self) -> wire::StoredCatalog {
        let services = self.services.iter().map(|(name, service)| wire::ServicePart {
            service: name.to_string(),
            hash: service.hash,
            part: 0,
            parts: 1,
            nodes: service.nodes.values().map(|entry| entry.encoded.clone()).collect(),
        });
        wire::StoredCatalog { version: self.version, services: services.collect() }
    }

    /// The catalog that was kept, at the version it had.
    ///
    /// # Errors
    /// [`WireError`] if a name, a node or a hash is wrong: what is damaged is refused whole.
    pub fn from_stored(stored: wire::StoredCatalog) -> Result<Self, WireError> {
        let mut catalog = Self { version: stored.version, ..Self::default() };
        for part in stored.services {
            let name = ServiceName::new(&part.service)?;
            let mut service = Service { changed_in: stored.version, ..Service::default() };
            for encoded in part.nodes {
                let entry = NodeEntry::from_encoded(encoded)?;
                service.hash = service.hash.wrapping_add(entry.hash);
                service.nodes.insert(entry.node.address, Arc::new(entry));
            }
            if service.hash != part.hash {
                return Err(WireError::HashMismatch { what: name.to_string() });
            }
            catalog.put(name, service);
        }
        Ok(catalog)
    }
}
