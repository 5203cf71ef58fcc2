//! Every resource at one version of the catalog, made from the one before: only what changed is encoded anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::warn;
use waypost_catalog::{Catalog, Protocol, ServiceName};

use super::{
    XdsOptions,
    leaving::Leaving,
    resources::{self, Resource},
    selection::Selection,
};

/// Resources of one type, by name.
pub type Resources = BTreeMap<ServiceName, Arc<Resource>>;

/// What Envoy is to have.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The version of the catalog.
    pub version: u64,
    /// A cluster per service.
    pub clusters: Resources,
    /// The endpoints of each.
    pub endpoints: Resources,
}

/// Makes one snapshot after the other.
#[derive(Debug)]
pub struct SnapshotBuilder {
    selection: Selection,
    connect_timeout: Duration,
    catalog: Arc<Catalog>,
    leaving: Leaving,
    /// What each cluster was made for.
    protocols: BTreeMap<ServiceName, Protocol>,
    /// Services with a node that speaks something else.
    mixed: BTreeSet<ServiceName>,
    snapshot: Snapshot,
}

impl SnapshotBuilder {
    /// Nothing so far.
    pub fn new(options: &XdsOptions) -> Self {
        Self {
            selection: Selection::new(&options.services),
            connect_timeout: options.connect_timeout,
            catalog: Arc::default(),
            leaving: Leaving::default(),
            protocols: BTreeMap::new(),
            mixed: BTreeSet::new(),
            snapshot: Snapshot::default(),
        }
    }

    /// Goes to another catalog. `filters` is the version that all filters have applied.
    pub fn apply(&mut self, catalog: Arc<Catalog>, filters: u64, now: Instant) -> Arc<Snapshot> {
        let old = std::mem::replace(&mut self.catalog, catalog);
        let mut changed = BTreeSet::new();
        for (name, service) in self.catalog.services() {
            let known = old.services().get(name);
            if self.selection.matches(name) && !known.is_some_and(|known| Arc::ptr_eq(known, service)) {
                let version = self.catalog.version();
                self.leaving.step(name, known.map(AsRef::as_ref), Some(service), version, now);
                changed.insert(name.clone());
            }
        }
        for (name, service) in old.services() {
            if self.selection.matches(name) && !self.catalog.services().contains_key(name) {
                self.leaving.step(name, Some(service), None, self.catalog.version(), now);
                changed.insert(name.clone());
            }
        }
        changed.extend(self.leaving.release(filters, now));
        self.rebuild(changed);
        self.snapshot.version = self.catalog.version();
        Arc::new(self.snapshot.clone())
    }

    /// Lets go of nodes that the filters have dropped, and of those whose time is up. `None` if there are none.
    pub fn release(&mut self, filters: u64, now: Instant) -> Option<Arc<Snapshot>> {
        let changed = self.leaving.release(filters, now);
        if changed.is_empty() {
            return None;
        }
        self.rebuild(changed);
        Some(Arc::new(self.snapshot.clone()))
    }

    /// When to call [`Self::release`] even if the filters say nothing.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.leaving.next_deadline()
    }

    fn rebuild(&mut self, services: impl IntoIterator<Item = ServiceName>) {
        for name in services {
            let service = self.catalog.services().get(&name);
            let nodes = || service.into_iter().flat_map(|service| service.nodes());
            if nodes().next().is_none() && self.leaving.of(&name).next().is_none() {
                self.snapshot.clusters.remove(&name);
                self.snapshot.endpoints.remove(&name);
                self.protocols.remove(&name);
                self.mixed.remove(&name);
                continue;
            }
            // Nodes that leave have no say: a cluster is not changed in order to go.
            let protocol = resources::common_protocol(nodes(), self.protocols.get(&name).copied());
            match nodes().find(|node| node.is_pickable() && node.protocol != protocol) {
                Some(odd) if self.mixed.insert(name.clone()) => warn!(
                    service = %name, node = %odd.address, speaks = odd.protocol.as_str(), cluster = protocol.as_str(),
                    "a node speaks another protocol than most of its service: requests to it will fail",
                ),
                Some(_) => {}
                None => _ = self.mixed.remove(&name),
            }
            if self.protocols.insert(name.clone(), protocol) != Some(protocol) {
                let cluster = resources::cluster(&name, protocol, self.connect_timeout);
                self.snapshot.clusters.insert(name.clone(), Arc::new(cluster));
            }
            let endpoints = resources::endpoints(&name, nodes(), self.leaving.of(&name));
            self.snapshot.endpoints.insert(name, Arc::new(endpoints));
        }
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::{core::v3::HealthStatus, endpoint::v3::ClusterLoadAssignment};
    use prost::Message as _;
    use waypost_catalog::Node;

    use super::*;
    use crate::stream::coordination::REMOVE_LIMIT;

    const NOBODY: u64 = u64::MAX;

    fn builder(services: &[&str]) -> SnapshotBuilder {
        let services = services.iter().map(|&name| name.to_owned()).collect();
        SnapshotBuilder::new(&XdsOptions { services, connect_timeout: Duration::from_secs(1) })
    }

    fn next(base: &Catalog, services: &[(&str, &[u16])]) -> Arc<Catalog> {
        let changes = services.iter().map(|(name, ports)| {
            let nodes = ports.iter().map(|port| Node::at(([10, 0, 0, 1], *port).into()));
            (ServiceName::new(name).unwrap(), nodes.collect())
        });
        Arc::new(base.updated(changes).0.unwrap())
    }

    fn healths(snapshot: &Snapshot, service: &str) -> Vec<HealthStatus> {
        let assignment = ClusterLoadAssignment::decode(&*snapshot.endpoints[service].body.value).unwrap();
        assignment.endpoints[0].lb_endpoints.iter().map(|endpoint| endpoint.health_status()).collect()
    }

    #[test]
    fn only_what_changed_is_made_anew() {
        let now = Instant::now();
        let mut builder = builder(&["*"]);
        let first = next(&Catalog::default(), &[("a", &[1]), ("b", &[1])]);
        let before = builder.apply(Arc::clone(&first), NOBODY, now);
        let after = builder.apply(next(&first, &[("b", &[1, 2])]), NOBODY, now);
        assert!(Arc::ptr_eq(&before.endpoints["a"], &after.endpoints["a"]));
        assert!(Arc::ptr_eq(&before.clusters["b"], &after.clusters["b"]));
        assert_ne!(before.endpoints["b"].version, after.endpoints["b"].version);
        assert_eq!((before.version, after.version), (1, 2));
    }

    #[test]
    fn services_that_are_not_selected_do_not_exist() {
        let mut builder = builder(&["a*"]);
        let snapshot =
            builder.apply(next(&Catalog::default(), &[("a", &[1]), ("a2", &[1]), ("b", &[1])]), NOBODY, Instant::now());
        assert_eq!(snapshot.clusters.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["a", "a2"]);
        assert_eq!(snapshot.endpoints.len(), 2);
    }

    #[test]
    fn a_node_that_goes_stays_draining_until_every_filter_has_dropped_it() {
        let now = Instant::now();
        let mut builder = builder(&["*"]);
        let first = next(&Catalog::default(), &[("a", &[1, 2])]);
        builder.apply(Arc::clone(&first), 0, now);
        let snapshot = builder.apply(next(&first, &[("a", &[2])]), 1, now);
        assert_eq!(healths(&snapshot, "a"), [HealthStatus::Healthy, HealthStatus::Draining]);
        assert!(builder.release(1, now).is_none());
        let snapshot = builder.release(2, now).unwrap();
        assert_eq!(healths(&snapshot, "a"), [HealthStatus::Healthy]);
        assert_eq!(builder.next_deadline(), None);
    }

    #[test]
    fn a_service_that_vanished_keeps_its_cluster_as_it_was_until_the_time_is_up() {
        let now = Instant::now();
        let mut builder = builder(&["*"]);
        let http2 = Node { protocol: Protocol::Http2, ..Node::at(([10, 0, 0, 1], 1).into()) };
        let name = ServiceName::new("a").unwrap();
        let first = Arc::new(Catalog::default().updated([(name.clone(), vec![http2])]).0.unwrap());
        let before = builder.apply(Arc::clone(&first), 0, now);
        let gone = Arc::new(first.updated([(name, Vec::<Node>::new())]).0.unwrap());
        let snapshot = builder.apply(gone, 1, now);
        assert!(Arc::ptr_eq(&before.clusters["a"], &snapshot.clusters["a"]));
        assert_eq!(healths(&snapshot, "a"), [HealthStatus::Draining]);
        assert_eq!(builder.next_deadline(), Some(now + REMOVE_LIMIT));
        assert!(builder.release(1, now + REMOVE_LIMIT / 2).is_none());
        let snapshot = builder.release(1, now + REMOVE_LIMIT).unwrap();
        assert!(snapshot.clusters.is_empty() && snapshot.endpoints.is_empty());
    }

    #[test]
    fn one_node_of_another_protocol_changes_no_cluster() {
        let now = Instant::now();
        let mut builder = builder(&["*"]);
        let at = |port, protocol| Node { protocol, ..Node::at(([10, 0, 0, 1], port).into()) };
        let name = ServiceName::new("a").unwrap();
        let first = vec![at(1, Protocol::Http2), at(2, Protocol::Http2)];
        let first = Arc::new(Catalog::default().updated([(name.clone(), first)]).0.unwrap());
        let before = builder.apply(Arc::clone(&first), NOBODY, now);
        let mixed = vec![at(1, Protocol::Http2), at(2, Protocol::Http2), at(3, Protocol::Http1)];
        let mixed = Arc::new(first.updated([(name.clone(), mixed)]).0.unwrap());
        let after = builder.apply(Arc::clone(&mixed), NOBODY, now);
        assert!(Arc::ptr_eq(&before.clusters["a"], &after.clusters["a"]) && builder.mixed.contains(&name));
        let alone = Arc::new(mixed.updated([(name, vec![at(3, Protocol::Http1)])]).0.unwrap());
        let after = builder.apply(alone, NOBODY, now);
        assert!(!Arc::ptr_eq(&before.clusters["a"], &after.clusters["a"]) && builder.mixed.is_empty());
    }

    #[test]
    fn a_node_that_comes_back_leaves_no_more() {
        let now = Instant::now();
        let mut builder = builder(&["*"]);
        let first = next(&Catalog::default(), &[("a", &[1, 2])]);
        builder.apply(Arc::clone(&first), 0, now);
        let second = next(&first, &[("a", &[2])]);
        builder.apply(Arc::clone(&second), 1, now);
        let snapshot = builder.apply(next(&second, &[("a", &[1, 2])]), 1, now);
        assert_eq!(healths(&snapshot, "a"), [HealthStatus::Healthy; 2]);
        assert_eq!(builder.next_deadline(), None);
    }

    #[test]
    fn where_nobody_filters_nodes_go_at_once() {
        let now = Instant::now();
        let mut builder = builder(&["*"]);
        let first = next(&Catalog::default(), &[("a", &[1])]);
        builder.apply(Arc::clone(&first), NOBODY, now);
        let snapshot = builder.apply(next(&first, &[("a", &[]), ("b", &[1])]), NOBODY, now);
        assert_eq!(snapshot.clusters.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["b"]);
    }
}
