//! The effective catalog: what all watches know of each service, merged, guarded against mass loss, and versioned.
//! Pure: events and the time come in, catalogs come out.
//!
//! What was served before (the disk copy after a restart, or what removed watches knew after a reload) is kept beside
//! the watches until every one of them has had its first full mirror. So a restart without etcd serves what it last
//! knew, and moving services from one prefix to another leaves no gap.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::warn;
use waypost_catalog::{Catalog, Node, ServiceName, model::NodeEntry};
use waypost_registry::{Guard, GuardOptions, MirrorEvent, View};

use crate::config::{self, Watch};

/// How long one watch that has no full mirror yet holds back the others, where nothing is served so far.
const FIRST_WAIT: Duration = Duration::from_secs(10);

/// What a watch knows.
#[derive(Debug)]
struct Source {
    watch: Watch,
    view: View,
    synced: bool,
}

impl Source {
    fn new(watch: Watch) -> Self {
        let view = View::new(watch.prefix.clone(), watch.format, watch.protocol);
        Self { watch, view, synced: false }
    }

    fn figures(&self) -> WatchFigures {
        let (keys, undecodable) = (self.view.key_count(), self.view.undecodable_total());
        WatchFigures { prefix: self.watch.prefix.clone(), keys, undecodable }
    }
}

/// Nodes by service and address, shared with the catalog that they came from.
type Nodes = BTreeMap<ServiceName, BTreeMap<SocketAddr, Arc<NodeEntry>>>;

/// Figures for the metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Nodes that only the guard keeps.
    pub held_nodes: usize,
    /// How often the guard began to keep nodes of a service.
    pub holds: u64,
    /// Whether every watch has had its full state; before that, some of what is served is from the disk or an
    /// earlier configuration.
    pub complete: bool,
    /// Of each watch.
    pub watches: Vec<WatchFigures>,
}

/// Figures of one watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchFigures {
    /// Its prefix.
    pub prefix: String,
    /// Keys that are nodes.
    pub keys: usize,
    /// Keys and values met that were no nodes.
    pub undecodable: u64,
}

/// The merge of all watches.
#[derive(Debug)]
pub struct Effective {
    sources: Vec<Source>,
    settings: config::Guard,
    guard: Guard,
    /// Holds of earlier guards, before their settings changed.
    earlier_holds: u64,
    /// What was served before and no watch has named yet; dropped once all watches are synced.
    remainder: Nodes,
    touched: BTreeSet<ServiceName>,
    catalog: Arc<Catalog>,
    published: bool,
    first_sync: Option<Instant>,
}

impl Effective {
    /// The state at start, with the disk copy if there is one.
    pub fn new(watches: Vec<Watch>, settings: config::Guard, disk: Option<Catalog>, now: Instant) -> Self {
        let published = disk.is_some();
        let catalog = Arc::new(disk.unwrap_or_default());
        let mut guard = Guard::new(options(&settings));
        seed(&mut guard, &settings, &catalog, now);
        Self {
            sources: watches.into_iter().map(Source::new).collect(),
            settings,
            guard,
            earlier_holds: 0,
            remainder: nodes_of(&catalog),
            touched: BTreeSet::new(),
            catalog,
            published,
            first_sync: None,
        }
    }

    /// What is to be served now; `None` while nothing is known.
    pub fn current(&self) -> Option<Arc<Catalog>> {
        self.published.then(|| Arc::clone(&self.catalog))
    }

    /// Figures for the metrics.
    pub fn figures(&self) -> Figures {
        Figures {
            held_nodes: self.guard.held_nodes(),
            holds: self.earlier_holds + self.guard.holds_total(),
            complete: self.all_synced(),
            watches: self.sources.iter().map(Source::figures).collect(),
        }
    }

    /// Takes an event of a watch's mirror in. It shows with the next [`Self::publish`].
    pub fn apply(&mut self, watch: &Watch, event: &MirrorEvent, now: Instant) {
        let Some(source) = self.sources.iter_mut().find(|source| source.watch == *watch) else { return };
        let touched = source.view.apply(event);
        if let MirrorEvent::Synced { .. } = event {
            self.first_sync.get_or_insert(now);
            if !source.synced {
                source.synced = true;
                // What this watch now answers for is no remainder any more: later it may delete it.
                for service in &touched {
                    let Some(kept) = self.remainder.get_mut(service) else { continue };
                    for node in source.view.nodes(service) {
                        kept.remove(&node.address);
                    }
                }
            }
        }
        self.touched.extend(touched);
    }

    /// The next version, if anything to be served changed.
    pub fn publish(&mut self, now: Instant) -> Option<Arc<Catalog>> {
        let all_synced = self.all_synced();
        if all_synced && !self.remainder.is_empty() {
            self.touched.extend(std::mem::take(&mut self.remainder).into_keys());
        }
        self.touched.extend(self.guard.expire(now));
        let touched = std::mem::take(&mut self.touched);
        // One service at a time, so that a first full state is not in memory twice.
        let catalog = Arc::clone(&self.catalog);
        let changes = touched.into_iter().map(|name| {
            let nodes = self.nodes(&name, now);
            (name, nodes)
        });
        let (next, refused) = catalog.updated(changes);
        for (service, error) in refused {
            warn!(%service, %error, "a node is left out of the catalog");
        }
        let changed = next.is_some();
        if let Some(next) = next {
            self.catalog = Arc::new(next);
        }
        let waited = self.first_sync.is_some_and(|first| now >= first + FIRST_WAIT);
        let first = !self.published && (all_synced || waited);
        self.published |= first;
        ((changed || first) && self.published).then(|| Arc::clone(&self.catalog))
    }

    fn all_synced(&self) -> bool {
        self.sources.iter().all(|source| source.synced)
    }

    /// When to call [`Self::publish`] next though no event came.
    pub fn next_deadline(&self) -> Option<Instant> {
        let first = self.first_sync.filter(|_| !self.published).map(|first| first + FIRST_WAIT);
        self.guard.next_deadline().into_iter().chain(first).min()
    }

    /// Takes other watches. Those that stay keep what they know; what only removed ones knew is kept until all new
    /// ones are synced.
    pub fn set_watches(&mut self, watches: &[Watch]) {
        if self.sources.iter().map(|source| &source.watch).eq(watches) {
            return;
        }
        let mut old = std::mem::take(&mut self.sources);
        for watch in watches {
            let kept = old.iter().position(|source| source.watch == *watch);
            self.sources.push(kept.map_or_else(|| Source::new(watch.clone()), |index| old.swap_remove(index)));
        }
        let mut remainder = nodes_of(&self.catalog);
        for (service, nodes) in &mut remainder {
            for known in self.sources.iter().flat_map(|source| source.view.nodes(service)) {
                nodes.remove(&known.address);
            }
        }
        remainder.retain(|_, nodes| !nodes.is_empty());
        self.touched.extend(remainder.keys().cloned());
        self.remainder = remainder;
    }

    /// Takes another guard, to which what is served now is the previous state.
    pub fn set_guard(&mut self, settings: config::Guard, now: Instant) {
        if settings == self.settings {
            return;
        }
        self.earlier_holds += self.guard.holds_total();
        self.guard = Guard::new(options(&settings));
        seed(&mut self.guard, &settings, &self.catalog, now);
        self.settings = settings;
        self.touched.extend(self.catalog.services().keys().cloned());
    }

    /// A service's nodes as they are to be served.
    fn nodes(&mut self, service: &ServiceName, now: Instant) -> Vec<Node> {
        let mut nodes = self.merged(service);
        if guards(&self.settings, service) {
            let guarded = self.guard.apply(service, nodes.values().map(outline).collect(), now);
            // What the guard holds was served until now, and is in full where it was served from.
            let served = self.catalog.services().get(service);
            for address in guarded.into_iter().map(|node| node.address) {
                let held = || served.and_then(|served| served.entries().get(&address));
                if let Entry::Vacant(entry) = nodes.entry(address)
                    && let Some(held) = held()
                {
                    entry.insert(held.node().clone());
                }
            }
        }
        nodes.into_values().collect()
    }

    /// One node per address: a passing one first, then the earlier watch's, and what was served before last.
    fn merged(&self, service: &ServiceName) -> BTreeMap<SocketAddr, Node> {
        let mut merged: BTreeMap<SocketAddr, Node> = BTreeMap::new();
        for node in self.sources.iter().flat_map(|source| source.view.nodes(service)) {
            match merged.entry(node.address) {
                Entry::Vacant(entry) => _ = entry.insert(node),
                Entry::Occupied(mut entry) => {
                    if node.health < entry.get().health {
                        entry.insert(node);
                    }
                }
            }
        }
        for (address, entry) in self.remainder.get(service).into_iter().flatten() {
            merged.entry(*address).or_insert_with(|| entry.node().clone());
        }
        merged
    }
}

fn nodes_of(catalog: &Catalog) -> Nodes {
    catalog.services().iter().map(|(name, service)| (name.clone(), service.entries().clone())).collect()
}

/// What the guard judges by. It keeps every node it is told of, so it is told no more than that.
fn outline(node: &Node) -> Node {
    Node { weight: node.weight, health: node.health, id: String::new(), ..Node::at(node.address) }
}

fn guards(settings: &config::Guard, service: &ServiceName) -> bool {
    settings.enabled && !settings.exempt.contains(service)
}

fn options(settings: &config::Guard) -> GuardOptions {
    GuardOptions { max_loss: settings.max_loss, grace: settings.grace, window: settings.window }
}

/// Makes what is served now the guard's previous state.
fn seed(guard: &mut Guard, settings: &config::Guard, catalog: &Catalog, now: Instant) {
    for (name, service) in catalog.services().iter().filter(|(name, _)| guards(settings, name)) {
        guard.apply(name, service.nodes().map(outline).collect(), now);
    }
}

#[cfg(test)]
mod tests {
    use waypost_catalog::{Health, Protocol};
    use waypost_registry::{Format, KeyValue, ResyncReason};

    use super::*;

    fn watch(prefix: &str) -> Watch {
        Watch { prefix: prefix.into(), format: Format::Waypost, protocol: Protocol::Http1 }
    }

    fn key(key: &str, address: &str, health: &str) -> Arc<KeyValue> {
        let (address, port) = address.split_once(':').unwrap();
        let value = format!(r#"{{"address":"{address}","port":{port},"health":"{health}"}}"#).into_bytes();
        Arc::new(KeyValue { key: key.into(), value, mod_revision: 1, create_revision: 1, lease: 0 })
    }

    fn synced(entries: &[(&str, &str)]) -> MirrorEvent {
        let entries = entries.iter().map(|(name, address)| key(name, address, "passing")).collect();
        MirrorEvent::Synced { entries, reason: ResyncReason::First }
    }

    fn put(name: &str, address: &str, health: &str) -> MirrorEvent {
        MirrorEvent::Changed { puts: vec![key(name, address, health)], deletes: Vec::new(), revision: 2 }
    }

    fn deleted(names: &[&str]) -> MirrorEvent {
        MirrorEvent::Changed { puts: Vec::new(), deletes: names.iter().map(ToString::to_string).collect(), revision: 3 }
    }

    fn shown(catalog: &Catalog) -> Vec<String> {
        let services = catalog.services().iter();
        services
            .flat_map(|(name, service)| service.nodes().map(move |node| format!("{name} {}", node.address)))
            .collect()
    }

    fn disk(nodes: &[(&str, &str)]) -> Catalog {
        let mut services: BTreeMap<ServiceName, Vec<Node>> = BTreeMap::new();
        for (name, address) in nodes {
            services.entry(ServiceName::new(name).unwrap()).or_default().push(Node::at(address.parse().unwrap()));
        }
        Catalog::default().updated(services).0.unwrap()
    }

    fn effective(watches: &[&str], disk: Option<Catalog>) -> (Effective, Instant) {
        let now = Instant::now();
        let watches = watches.iter().map(|prefix| watch(prefix)).collect();
        (Effective::new(watches, config::Guard::default(), disk, now), now)
    }

    fn off() -> config::Guard {
        config::Guard { enabled: false, ..config::Guard::default() }
    }

    #[test]
    fn nothing_is_served_before_the_first_full_state_and_an_empty_one_counts() {
        let (mut effective, now) = effective(&["/a/"], None);
        assert!(effective.current().is_none() && effective.publish(now).is_none());
        effective.apply(&watch("/a/"), &synced(&[]), now);
        assert_eq!(shown(&effective.publish(now).unwrap()), [""; 0]);
        assert!(effective.publish(now).is_none(), "nothing changed since");
    }

    #[test]
    fn puts_and_deletes_make_versions() {
        let (mut effective, now) = effective(&["/a/"], None);
        effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "10.0.0.1:80")]), now);
        let first = effective.publish(now).unwrap();
        effective.apply(&watch("/a/"), &put("/a/web/2", "10.0.0.2:80", "passing"), now);
        effective.apply(&watch("/a/"), &put("/a/web/3", "10.0.0.3:80", "passing"), now);
        let second = effective.publish(now).unwrap();
        assert_eq!(second.version(), first.version() + 1, "one version for all that was taken in");
        assert_eq!(shown(&second), ["web 10.0.0.1:80", "web 10.0.0.2:80", "web 10.0.0.3:80"]);
        effective.apply(&watch("/a/"), &deleted(&["/a/web/2"]), now);
        assert_eq!(shown(&effective.publish(now).unwrap()), ["web 10.0.0.1:80", "web 10.0.0.3:80"]);
    }

    #[test]
    fn nothing_is_served_until_all_watches_are_synced_or_one_was_waited_for_long_enough() {
        let (mut effective, now) = effective(&["/a/", "/b/"], None);
        effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "10.0.0.1:80")]), now);
        assert!(effective.publish(now).is_none());
        assert_eq!(effective.next_deadline(), Some(now + FIRST_WAIT));
        let published = effective.publish(now + FIRST_WAIT).unwrap();
        assert_eq!(shown(&published), ["web 10.0.0.1:80"]);
        assert_eq!(effective.next_deadline(), None);
    }

    #[test]
    fn a_service_of_several_watches_has_one_node_per_address_and_a_passing_one_first() {
        let (mut effective, now) = effective(&["/a/", "/b/"], None);
        effective.apply(&watch("/a/"), &synced(&[]), now);
        effective.apply(&watch("/b/"), &synced(&[("/b/web/1", "10.0.0.1:80"), ("/b/web/2", "10.0.0.2:80")]), now);
        effective.apply(&watch("/a/"), &put("/a/web/x", "10.0.0.1:80", "critical"), now);
        let catalog = effective.publish(now).unwrap();
        let nodes: Vec<_> = catalog.services()["web"].nodes().map(|node| (&*node.id, node.health)).collect();
        assert_eq!(nodes, [("1", Health::Passing), ("2", Health::Passing)]);
        effective.apply(&watch("/a/"), &put("/a/web/x", "10.0.0.1:80", "passing"), now);
        let catalog = effective.publish(now).unwrap();
        assert_eq!(catalog.services()["web"].nodes().next().unwrap().id, "x", "the earlier watch of two that pass");
    }

    #[test]
    fn the_disk_copy_is_served_at_once_and_replaced_by_the_first_full_state() {
        let copy = disk(&[("web", "10.0.0.1:80"), ("web", "10.0.0.2:80"), ("web", "10.0.0.3:80")]);
        let (mut effective, now) = effective(&["/a/"], Some(copy.clone()));
        assert_eq!(shown(&effective.current().unwrap()), shown(&copy));
        assert!(!effective.figures().complete);
        effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "10.0.0.1:80"), ("/a/web/2", "10.0.0.2:80")]), now);
        let next = effective.publish(now).unwrap();
        assert_eq!(shown(&next), ["web 10.0.0.1:80", "web 10.0.0.2:80"]);
        assert!(next.version() > copy.version() && effective.figures().complete);
    }

    #[test]
    fn the_disk_copy_counts_as_the_previous_nodes_of_the_guard() {
        let copy = disk(&[("web", "10.0.0.1:80"), ("web", "10.0.0.2:80"), ("api", "10.0.0.3:80")]);
        let (mut effective, now) = effective(&["/a/"], Some(copy.clone()));
        effective.apply(&watch("/a/"), &synced(&[]), now);
        assert!(effective.publish(now).is_none(), "an empty etcd changes nothing for now");
        assert_eq!((effective.figures().held_nodes, effective.figures().holds), (3, 2));
        let later = effective.next_deadline().unwrap();
        assert_eq!(later, now + config::Guard::default().grace);
        assert_eq!(shown(&effective.publish(later).unwrap()), [""; 0]);
    }

    #[test]
    fn the_disk_copys_remainder_stays_until_all_watches_are_synced_and_no_longer() {
        let copy =
            disk(&[("web", "10.0.0.1:80"), ("web", "10.0.0.2:80"), ("api", "10.0.0.3:80"), ("old", "10.0.0.4:80")]);
        let (mut effective, now) = effective(&["/a/", "/b/"], Some(copy));
        effective.set_guard(off(), now);
        effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "10.0.0.1:80"), ("/a/web/2", "10.0.0.2:80")]), now);
        let version = effective.publish(now).map_or(1, |catalog| catalog.version());
        assert_eq!(effective.current().unwrap().node_count(), 4);
        effective.apply(&watch("/a/"), &deleted(&["/a/web/2"]), now);
        let next = effective.publish(now).unwrap();
        assert_eq!(
            shown(&next),
            ["api 10.0.0.3:80", "old 10.0.0.4:80", "web 10.0.0.1:80"],
            "a synced watch may delete"
        );
        assert!(next.version() > version);
        effective.apply(&watch("/b/"), &synced(&[("/b/api/3", "10.0.0.3:80")]), now);
        assert_eq!(shown(&effective.publish(now).unwrap()), ["api 10.0.0.3:80", "web 10.0.0.1:80"]);
    }

    #[test]
    fn moving_to_another_prefix_leaves_no_gap() {
        let (mut effective, now) = effective(&["/a/", "/b/"], None);
        effective.set_guard(off(), now);
        effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "10.0.0.1:80")]), now);
        effective.apply(&watch("/b/"), &synced(&[("/b/api/1", "10.0.0.2:80")]), now);
        effective.publish(now);
        effective.set_watches(&[watch("/b/"), watch("/c/")]);
        assert!(effective.publish(now).is_none(), "what only the removed watch knew is kept");
        effective.apply(&watch("/b/"), &deleted(&["/b/api/1"]), now);
        assert_eq!(shown(&effective.publish(now).unwrap()), ["web 10.0.0.1:80"], "a watch that stayed goes on");
        effective.apply(&watch("/c/"), &synced(&[("/c/web/1", "10.0.0.9:80")]), now);
        assert_eq!(shown(&effective.publish(now).unwrap()), ["web 10.0.0.9:80"]);
    }

    #[test]
    fn a_removed_watch_takes_its_nodes_with_it() {
        let (mut effective, now) = effective(&["/a/", "/b/"], None);
        effective.set_guard(off(), now);
        effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "10.0.0.1:80")]), now);
        effective.apply(&watch("/b/"), &synced(&[("/b/api/1", "10.0.0.2:80")]), now);
        effective.publish(now);
        effective.set_watches(&[watch("/b/")]);
        assert_eq!(shown(&effective.publish(now).unwrap()), ["api 10.0.0.2:80"]);
    }

    #[test]
    fn an_exempt_service_is_not_guarded_and_others_are() {
        let (mut effective, now) = effective(&["/a/"], None);
        let exempt = vec![ServiceName::new("batch").unwrap()];
        effective.set_guard(config::Guard { exempt, ..config::Guard::default() }, now);
        effective.apply(&watch("/a/"), &synced(&[("/a/batch/1", "10.0.0.1:80"), ("/a/web/1", "10.0.0.2:80")]), now);
        effective.publish(now);
        effective.apply(&watch("/a/"), &deleted(&["/a/batch/1", "/a/web/1"]), now);
        assert_eq!(shown(&effective.publish(now).unwrap()), ["web 10.0.0.2:80"]);
    }

    #[test]
    fn a_switched_off_guard_lets_go_of_what_it_held() {
        let (mut effective, now) = effective(&["/a/"], None);
        effective.apply(&watch("/a/"), &synced(&[("/a/web/1", "10.0.0.1:80")]), now);
        effective.publish(now);
        effective.apply(&watch("/a/"), &deleted(&["/a/web/1"]), now);
        assert!(effective.publish(now).is_none());
        effective.set_guard(off(), now);
        assert_eq!(shown(&effective.publish(now).unwrap()), [""; 0]);
        assert_eq!((effective.figures().held_nodes, effective.figures().holds), (0, 1), "counters never go back");
    }
}
