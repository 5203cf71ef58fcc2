//! The receiving side of the stream: a state machine that applies messages, verifies them by version and hash, and
//! says when something does not add up.
//!
//! ```text
//!            Begin                    End (hash right)
//!   Idle ------------> Filling -----------------------> Idle   (what was not named is gone)
//!    | ^                  |  ^
//!    | | last part        |  | part
//!    v |                  v  |
//!   parts of one service, collected aside and swapped in whole
//! ```
//!
//! A delta applies to the version it names, and only if the hashes agree afterwards; whatever fails is an error and the
//! caller asks for everything again. Until the new whole is there, the old one stays in use.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use crate::{
    model::{Health, Placement, Routes, node_hash, policy_hash, service_share},
    wire::{self, Begin, Delta, End, Heartbeat, ServiceDelta, ServicePart, WireError, limits, server_message::Kind},
};

/// What the replica keeps of a node: enough to pick it, and to verify the next delta.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaNode {
    /// `ip:port` as it goes into the candidate header.
    pub address: Box<str>,
    /// Its share of new requests, a strategy component's word taken into account.
    pub weight: u32,
    /// Whether it may be picked.
    pub health: Health,
    /// Its level: 0 comes first.
    pub priority: u8,
    /// How much of its weight counts, in thousandths.
    pub warmup: u16,
    /// Bit i: it belongs to the policy's i-th subset.
    pub subsets: u64,
    /// Failure domain; empty if unknown.
    pub zone: Box<str>,
    /// Hash of its encoding.
    pub hash: u64,
}

impl ReplicaNode {
    /// The node that these bytes of the wire hold. A health that only a newer agent knows counts as critical: one such
    /// node must not cost all the others their updates.
    ///
    /// # Errors
    /// As [`crate::Node::decode`], but for the enums.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let node = wire::decode_node(bytes)?;
        wire::parse_address(&node.address)?;
        let Placement { weight, priority, warmup, subsets } = wire::placement(&node);
        Ok(Self {
            health: wire::parse_health(node.health).unwrap_or(Health::Critical),
            address: node.address.into(),
            weight: weight.unwrap_or(node.weight),
            priority,
            warmup,
            subsets,
            zone: node.zone.into(),
            hash: node_hash(bytes),
        })
    }

    /// Whether new requests may go to it.
    pub fn is_pickable(&self) -> bool {
        self.health == Health::Passing && self.weight > 0
    }
}

/// A service as the replica holds it: its nodes in the order of their addresses' text, and its policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaService {
    nodes: Vec<ReplicaNode>,
    policy: Bytes,
    hash: u64,
}

impl ReplicaService {
    /// A service of these nodes, whatever their order, under this policy; of two at one address the later one counts.
    pub fn new(nodes: impl IntoIterator<Item = ReplicaNode>, policy: Bytes) -> Self {
        let mut nodes: Vec<_> = nodes.into_iter().collect();
        nodes.sort_by(|a, b| a.address.cmp(&b.address));
        nodes.reverse();
        // The sort is stable, so after the reversal the later of two equals comes first and is the one kept.
        nodes.dedup_by(|a, b| a.address == b.address);
        nodes.reverse();
        let hash = nodes.iter().fold(policy_hash(&policy), |sum, node| sum.wrapping_add(node.hash));
        Self { nodes, policy, hash }
    }

    /// Its nodes.
    pub fn nodes(&self) -> &[ReplicaNode] {
        &self.nodes
    }

    /// Its policy as the agent sent it; empty if it has none.
    pub fn policy(&self) -> &Bytes {
        &self.policy
    }

    /// Content hash over its nodes and its policy.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    fn set_policy(&mut self, policy: Bytes) {
        self.hash = self.hash.wrapping_sub(policy_hash(&self.policy)).wrapping_add(policy_hash(&policy));
        self.policy = policy;
    }

    fn apply(&mut self, upsert: Vec<ReplicaNode>, remove: &[String]) {
        // Many changes at once are merged in one pass; a few are put in place one by one.
        if upsert.len() + remove.len() > 16 {
            let mut replaced: HashSet<&str> = remove.iter().map(String::as_str).collect();
            replaced.extend(upsert.iter().map(|node| &*node.address));
            let mut nodes = std::mem::take(&mut self.nodes);
            nodes.retain(|node| !replaced.contains(&*node.address));
            nodes.extend(upsert);
            *self = Self::new(nodes, std::mem::take(&mut self.policy));
            return;
        }
        for address in remove {
            if let Ok(at) = self.nodes.binary_search_by(|node| (*node.address).cmp(address)) {
                let gone = self.nodes.remove(at);
                self.hash = self.hash.wrapping_sub(gone.hash);
            }
        }
        for node in upsert {
            self.hash = self.hash.wrapping_add(node.hash);
            match self.nodes.binary_search_by(|known| known.address.cmp(&node.address)) {
                Ok(at) => {
                    if let Some(known) = self.nodes.get_mut(at) {
                        self.hash = self.hash.wrapping_sub(known.hash);
                        *known = node;
                    }
                }
                Err(at) => self.nodes.insert(at, node),
            }
        }
    }
}

/// What a message did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Nothing to see yet: a part of something larger.
    Pending,
    /// These services are new, changed or gone, and the replica is at this version: acknowledge it.
    Changed {
        /// Version of the catalog.
        version: u64,
        /// Names of the services.
        services: Vec<Box<str>>,
        /// Whether the routes are others.
        routes: bool,
    },
    /// The agent lives; its mirror was last current this many milliseconds ago.
    Alive {
        /// Age in milliseconds.
        stale_ms: u64,
    },
}

/// A copy of the agent's catalog.
#[derive(Debug, Default)]
pub struct Replica {
    services: HashMap<Box<str>, ReplicaService>,
    routes: Routes,
    hash: u64,
    version: u64,
    /// Whether `version` counts on this stream: false from its start until the agent has named one.
    synced: bool,
    filling: Option<Filling>,
    partial: Option<Partial>,
    /// Services swapped in whole ahead of the delta that names the version.
    touched: Vec<Box<str>>,
    /// Likewise the routes.
    touched_routes: bool,
}

/// A full catalog on its way.
#[derive(Debug, Default)]
struct Filling {
    services: HashMap<Box<str>, ReplicaService>,
    routes: Routes,
}

#[derive(Debug)]
struct Partial {
    service: Box<str>,
    policy: Bytes,
    parts: u32,
    next: u32,
    nodes: Vec<ReplicaNode>,
}

impl Replica {
    /// A replica that starts with what was kept from before.
    pub fn restored(services: impl IntoIterator<Item = (Box<str>, ReplicaService)>, routes: Routes) -> Self {
        let services: HashMap<_, _> = services.into_iter().collect();
        let hash = catalog_hash(&services, &routes);
        Self { services, routes, hash, ..Self::default() }
    }

    /// Every service, by name.
    pub fn services(&self) -> &HashMap<Box<str>, ReplicaService> {
        &self.services
    }

    /// The table of routes.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Content hash of what is held: what goes into `Hello`.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Version last applied.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether the agent has confirmed the content on the present stream.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Forgets what only the old stream meant; the content stays in use.
    pub fn stream_restarted(&mut self) {
        self.synced = false;
        self.filling = None;
        self.partial = None;
    }

    /// A message of the stream could not be read: what is held is not known to be the agent's until everything came
    /// again.
    pub fn message_lost(&mut self) {
        self.synced = false;
    }

    /// Applies a message.
    ///
    /// # Errors
    /// [`WireError`] if it does not decode, does not follow, or the hashes disagree: ask for everything again
    /// (`Resync`). What was held before stays in use, but for a delta that applied and yet gave another hash; it no
    /// longer counts as the agent's.
    pub fn apply(&mut self, message: Kind) -> Result<Applied, WireError> {
        let applied = self.apply_in_order(message);
        if applied.is_err() {
            self.synced = false;
        }
        applied
    }

    fn apply_in_order(&mut self, message: Kind) -> Result<Applied, WireError> {
        if self.partial.is_some() && !matches!(message, Kind::Part(_) | Kind::Begin(_)) {
            self.partial = None;
            return Err(WireError::OutOfOrder("a service's parts were broken off"));
        }
        match message {
            Kind::Begin(Begin { .. }) => {
                self.partial = None;
                self.filling = Some(Filling::default());
                Ok(Applied::Pending)
            }
            Kind::Part(part) => self.part(part),
            Kind::End(end) => self.end(end),
            Kind::Delta(delta) => self.delta(delta),
            Kind::InSync(in_sync) => {
                self.version = in_sync.version;
                self.synced = true;
                Ok(self.take_touched())
            }
            Kind::Routes(routes) => self.replace_routes(routes),
            Kind::Heartbeat(Heartbeat { stale_ms, .. }) => Ok(Applied::Alive { stale_ms }),
        }
    }

    fn take_touched(&mut self) -> Applied {
        Applied::Changed {
            version: self.version,
            services: std::mem::take(&mut self.touched),
            routes: std::mem::take(&mut self.touched_routes),
        }
    }

    fn replace_routes(&mut self, message: wire::Routes) -> Result<Applied, WireError> {
        let routes = message.routes.into_iter().map(|route| (route.id, route.document));
        let routes = Routes::new(routes).map_err(|error| WireError::Undecodable(error.to_string()))?;
        if routes.hash() != message.hash {
            return Err(WireError::HashMismatch { what: "routes".into() });
        }
        match &mut self.filling {
            Some(filling) => filling.routes = routes,
            None => {
                self.hash = self.hash.wrapping_sub(self.routes.hash()).wrapping_add(routes.hash());
                self.routes = routes;
                self.touched_routes = true;
            }
        }
        Ok(Applied::Pending)
    }

    fn part(&mut self, part: ServicePart) -> Result<Applied, WireError> {
        let mut partial = match self.partial.take() {
            Some(partial) if *partial.service == *part.service && partial.next == part.part => partial,
            Some(_) => return Err(WireError::OutOfOrder("a part of a service that does not follow the one before")),
            None if part.part != 0 => return Err(WireError::OutOfOrder("the first part of a service is missing")),
            None if part.parts == 0 || part.parts > limits::PARTS => {
                return Err(WireError::OutOfOrder("a number of parts that is not allowed"));
            }
            None => {
                let service = part.service.as_str().into();
                Partial { service, policy: part.policy, parts: part.parts, next: 0, nodes: Vec::new() }
            }
        };
        for node in &part.nodes {
            partial.nodes.push(ReplicaNode::decode(node)?);
        }
        partial.next += 1;
        if partial.next < partial.parts {
            self.partial = Some(partial);
            return Ok(Applied::Pending);
        }
        let service = ReplicaService::new(partial.nodes, partial.policy);
        if service.hash != part.hash {
            return Err(WireError::HashMismatch { what: part.service });
        }
        match &mut self.filling {
            Some(filling) => {
                filling.services.insert(partial.service, service);
            }
            None => {
                self.touched.push(partial.service.clone());
                self.put(partial.service, Some(service));
            }
        }
        Ok(Applied::Pending)
    }

    fn end(&mut self, end: End) -> Result<Applied, WireError> {
        let filled = self.filling.take().ok_or(WireError::OutOfOrder("an end without a beginning"))?;
        let hash = catalog_hash(&filled.services, &filled.routes);
        if hash != end.hash {
            return Err(WireError::HashMismatch { what: "catalog".into() });
        }
        let Filling { services: filled, routes } = filled;
        self.touched.extend(self.services.keys().filter(|name| !filled.contains_key(*name)).cloned());
        let changed = filled.iter().filter(|(name, service)| self.services.get(*name) != Some(service));
        self.touched.extend(changed.map(|(name, _)| name.clone()));
        self.touched_routes |= routes != self.routes;
        self.services = filled;
        self.routes = routes;
        self.hash = hash;
        self.version = end.version;
        self.synced = true;
        Ok(self.take_touched())
    }

    fn delta(&mut self, delta: Delta) -> Result<Applied, WireError> {
        if self.filling.is_some() {
            self.filling = None;
            return Err(WireError::OutOfOrder("a delta amid a full catalog"));
        }
        if !self.synced || delta.from_version != self.version {
            return Err(WireError::OutOfOrder("a delta from another version"));
        }
        // Decoded whole before any of it is applied, so that a bad node leaves nothing half done.
        let mut changes = Vec::with_capacity(delta.services.len());
        for change in delta.services {
            let upsert = change.upsert.iter().map(|node| ReplicaNode::decode(node)).collect::<Result<Vec<_>, _>>()?;
            changes.push((change, upsert));
        }
        for (change, upsert) in changes {
            let ServiceDelta { service: name, hash, remove, deleted, policy, .. } = change;
            let name: Box<str> = name.into();
            self.touched.push(name.clone());
            if deleted {
                self.put(name, None);
                continue;
            }
            let mut service = match self.services.remove(&name) {
                Some(service) => {
                    self.hash = self.hash.wrapping_sub(service_share(&name, service.hash));
                    service
                }
                None => ReplicaService::default(),
            };
            service.apply(upsert, &remove);
            if let Some(policy) = policy {
                service.set_policy(policy);
            }
            let right = service.hash == hash;
            self.put(name.clone(), Some(service));
            if !right {
                return Err(WireError::HashMismatch { what: name.into() });
            }
        }
        self.version = delta.version;
        if self.hash != delta.hash {
            return Err(WireError::HashMismatch { what: "catalog".into() });
        }
        Ok(self.take_touched())
    }

    fn put(&mut self, name: Box<str>, service: Option<ReplicaService>) {
        if let Some(old) = self.services.remove(&name) {
            self.hash = self.hash.wrapping_sub(service_share(&name, old.hash));
        }
        if let Some(service) = service {
            self.hash = self.hash.wrapping_add(service_share(&name, service.hash));
            self.services.insert(name, service);
        }
    }
}

fn catalog_hash(services: &HashMap<Box<str>, ReplicaService>, routes: &Routes) -> u64 {
    let shares = services.iter().map(|(name, service)| service_share(name, service.hash));
    shares.fold(routes.hash(), u64::wrapping_add)
}
