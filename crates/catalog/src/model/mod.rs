//! Nodes, services with their policies, routes and the catalog, and their content hashes.
//!
//! A service's hash is the wrapping sum of its nodes' hashes and its policy's, a catalog's that of its services' (each
//! mixed with the name) and of its routes: one changed node costs one subtraction and one addition on either side of the stream, however large the
//! service. The hash finds lost, doubled and misordered changes; it is no defence against an attacker.

mod name;
mod node;
mod routes;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub use self::{
    name::{InvalidServiceName, ServiceName},
    node::{Health, Node, NodeEntry, Placement, Protocol, node_hash, node_key},
    routes::{Routes, RoutesTooLarge, route_hash},
};
use crate::wire::{self, WireError};

/// What a service adds to the hash of its catalog.
pub fn service_share(name: &str, service_hash: u64) -> u64 {
    xxh3_64_with_seed(name.as_bytes(), service_hash)
}

/// What a policy adds to the hash of its service; nothing if there is none.
pub fn policy_hash(policy: &[u8]) -> u64 {
    // Another seed than for nodes, so that no policy passes for one.
    if policy.is_empty() { 0 } else { xxh3_64_with_seed(policy, 1) }
}

/// A service: its nodes by address, the policy by which they are picked, and the hash of it all.
#[derive(Clone, Debug, Default)]
pub struct Service {
    nodes: BTreeMap<SocketAddr, Arc<NodeEntry>>,
    policy: Bytes,
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

    /// Its policy as the filter gets it; empty if it has none. An opaque document here.
    pub fn policy(&self) -> &Bytes {
        &self.policy
    }

    /// Content hash over its nodes and its policy.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Version of the catalog in which it last changed.
    pub fn changed_in(&self) -> u64 {
        self.changed_in
    }

    fn seal(&mut self) {
        let nodes = self.nodes.values().map(|entry| entry.hash);
        self.hash = nodes.fold(policy_hash(&self.policy), u64::wrapping_add);
    }
}

/// Every service at one version. Immutable: a change makes the next version, which shares what stayed the same.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    version: u64,
    hash: u64,
    services: BTreeMap<ServiceName, Arc<Service>>,
    routes: Arc<Routes>,
}

/// A service as it is to be from now on.
#[derive(Clone, Debug)]
pub struct Change<N> {
    /// Its name.
    pub service: ServiceName,
    /// Its nodes; none: it is gone.
    pub nodes: Vec<N>,
    /// Its policy as the filter gets it; empty: it has none.
    pub policy: Bytes,
}

impl Catalog {
    /// Counts the changes; comparable within one run of an agent only.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Content hash over all services and routes: the same for the same content, whatever its history.
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

    /// The table of routes.
    pub fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// The next version, with each named service's nodes replaced by those given (none: the service is gone), under the
    /// policy that it has. Of two nodes at one address the later one counts. `None` if that changes nothing.
    ///
    /// Nodes that cannot be encoded are left out and returned beside it.
    pub fn updated<N: Into<Arc<Node>>>(
        &self,
        changes: impl IntoIterator<Item = (ServiceName, Vec<N>)>,
    ) -> (Option<Self>, Vec<(ServiceName, WireError)>) {
        let changes = changes.into_iter().map(|(service, nodes)| {
            let policy = self.services.get(&service).map(|known| known.policy.clone()).unwrap_or_default();
            Change { service, nodes, policy }
        });
        self.changed(changes, None)
    }

    /// The next version, with each named service replaced, and the routes if there are other ones. As
    /// [`updated`](Self::updated) otherwise.
    pub fn changed<N: Into<Arc<Node>>>(
        &self,
        changes: impl IntoIterator<Item = Change<N>>,
        routes: Option<Arc<Routes>>,
    ) -> (Option<Self>, Vec<(ServiceName, WireError)>) {
        let mut next = Self { version: self.version + 1, ..self.clone() };
        let mut refused = Vec::new();
        let mut changed = false;
        for Change { service: name, nodes, policy } in changes {
            let old = next.services.get(&name).map(Arc::as_ref);
            let mut service = Service { policy, changed_in: next.version, ..Service::default() };
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
            service.seal();
            let same = match old {
                Some(old) => old.hash == service.hash && old.nodes.len() == service.nodes.len(),
                None => service.nodes.is_empty(),
            };
            if !same {
                changed = true;
                next.put(name, service);
            }
        }
        if let Some(routes) = routes.filter(|routes| routes.hash() != self.routes.hash()) {
            changed = true;
            next.put_routes(routes);
        }
        (changed.then_some(next), refused)
    }

    fn put_routes(&mut self, routes: Arc<Routes>) {
        self.hash = self.hash.wrapping_sub(self.routes.hash()).wrapping_add(routes.hash());
        self.routes = routes;
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
            policy: service.policy.clone(),
        });
        let routes = self.routes.documents().iter();
        let routes = routes.map(|(id, document)| wire::Route { id: id.clone(), document: document.clone() });
        wire::StoredCatalog { version: self.version, services: services.collect(), routes: routes.collect() }
    }

    /// The catalog that was kept, at the version it had.
    ///
    /// # Errors
    /// [`WireError`] if a name, a node or a hash is wrong: what is damaged is refused whole.
    pub fn from_stored(stored: wire::StoredCatalog) -> Result<Self, WireError> {
        let mut catalog = Self { version: stored.version, ..Self::default() };
        for part in stored.services {
            let name = ServiceName::new(&part.service)?;
            let mut service = Service { policy: part.policy, changed_in: stored.version, ..Service::default() };
            for encoded in part.nodes {
                let entry = NodeEntry::from_encoded(encoded)?;
                service.nodes.insert(entry.node.address, Arc::new(entry));
            }
            service.seal();
            if service.hash != part.hash {
                return Err(WireError::HashMismatch { what: name.to_string() });
            }
            catalog.put(name, service);
        }
        let routes = stored.routes.into_iter().map(|route| (route.id, route.document));
        let routes = Routes::new(routes).map_err(|error| WireError::Undecodable(error.to_string()))?;
        catalog.put_routes(Arc::new(routes));
        Ok(catalog)
    }
}
