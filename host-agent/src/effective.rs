//! The effective catalog: what all watches know of each service, merged, guarded against mass loss, and versioned.
//! Pure: events, answers about hosts' names and the time come in, catalogs come out.
//!
//! What was served before (the disk copy after a restart, or what removed watches knew after a reload) is kept beside
//! the watches until every one of them has had its first full mirror. So a restart without etcd serves what it last
//! knew, and moving services from one prefix to another leaves no gap. A watch that never gets its full mirror holds
//! that up for a while only: what nobody vouches for is dropped then. The names of hosts that a full mirror brings have
//! to be looked up before it counts as one.

mod placing;
#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod tests;
mod warming;
mod weights;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::warn;
use waypost_catalog::{Catalog, Node, ServiceName, model::NodeEntry};
use waypost_registry::{Addresses, Guard, GuardOptions, HeldNode, MirrorEvent, Resolution, View, host::HostName};

use self::placing::{Placing, PolicyOf};
pub use self::weights::{Answer, Decided, Decisions, Question, Request};
use crate::{
    config::{self, Watch},
    rules::{Refusal, RuleKind, Rules},
};

/// How long nodes that are known wait for the policies and routes that are not, where nothing is served so far.
const RULES_WAIT: Duration = Duration::from_secs(2);

/// How long one watch that has no full mirror yet holds back the others, where nothing is served so far.
const FIRST_WAIT: Duration = Duration::from_secs(10);

/// What a watch knows.
#[derive(Debug)]
struct Source {
    watch: Watch,
    view: View,
    /// Had its full state.
    ranged: bool,
    /// And every name of a host in it was looked up, or cannot be.
    synced: bool,
}

impl Source {
    fn new(watch: Watch) -> Self {
        let view = View::new(watch.prefix.clone(), watch.format, watch.protocol);
        Self { watch, view, ranged: false, synced: false }
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
    /// Policies and routes.
    pub rules: RuleFigures,
}

/// Figures of policies and routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleFigures {
    /// Policies in use.
    pub policies: usize,
    /// Routes in use.
    pub routes: usize,
    /// Documents that are not used, and why.
    pub refused: Vec<Refusal>,
    /// How many were refused so far.
    pub refusals: u64,
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
    /// What was served before and no watch has named yet; dropped once all watches are synced, or some have been for
    /// long enough.
    remainder: Nodes,
    /// When the remainder is dropped in any case; counts from the first sign that etcd can be reached.
    remainder_until: Option<Instant>,
    touched: BTreeSet<ServiceName>,
    rules: Rules,
    placing: Placing,
    addresses: Addresses,
    /// Whether other names may be wanted than were asked for last.
    names_changed: bool,
    catalog: Arc<Catalog>,
    published: bool,
    first_sync: Option<Instant>,
}

impl Effective {
    /// The state at start, with the disk copy if there is one.
    pub fn new(
        watches: Vec<Watch>,
        settings: config::Guard,
        zone: String,
        disk: Option<Catalog>,
        now: Instant,
    ) -> Self {
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
            remainder_until: None,
            touched: BTreeSet::new(),
            rules: Rules::new(&catalog),
            placing: Placing::new(zone),
            addresses: Addresses::default(),
            names_changed: false,
            catalog,
            published,
            first_sync: None,
        }
    }

    /// Goes on holding what the guard held before a restart: of what is served now, these nodes are there no more.
    pub fn hold(&mut self, held: impl IntoIterator<Item = HeldNode>, now: Instant) {
        for HeldNode { service, address, until } in held {
            let served = self.catalog.services().get(&service).and_then(|served| served.entries().get(&address));
            let Some(node) = served.filter(|_| guards(&self.settings, &service)) else { continue };
            self.guard.hold(&service, node.node().clone().into(), until, now);
            if let Some(kept) = self.remainder.get_mut(&service) {
                kept.remove(&address);
            }
        }
    }

    /// What the guard holds now.
    pub fn held(&self) -> Vec<HeldNode> {
        self.guard.held().collect()
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
            rules: self.rules.figures(),
        }
    }

    /// Takes an event of a watch's mirror in. It shows with the next [`Self::publish`].
    pub fn apply(&mut self, watch: &Watch, event: &MirrorEvent, now: Instant) {
        let Some(source) = self.sources.iter_mut().find(|source| source.watch == *watch) else { return };
        let names = source.view.names_version();
        self.touched.extend(source.view.apply(event));
        self.names_changed |= source.view.names_version() != names;
        self.remainder_until.get_or_insert(now + FIRST_WAIT.max(self.settings.grace));
        if let MirrorEvent::Synced { .. } = event {
            source.ranged = true;
            self.first_sync.get_or_insert(now);
            self.note_synced();
        }
    }

    /// Takes an event of the mirror of policies or routes in. It shows with the next [`Self::publish`].
    pub fn apply_rules(&mut self, kind: RuleKind, event: &MirrorEvent) {
        self.touched.extend(self.rules.apply(kind, event));
    }

    /// Takes in what a host's name stands for. It shows with the next [`Self::publish`].
    pub fn resolve(&mut self, resolution: &Resolution) {
        if !self.addresses.take_in(resolution) {
            return;
        }
        let touched = self.sources.iter().flat_map(|source| source.view.services_at(&resolution.name));
        self.touched.extend(touched.cloned());
        self.note_synced();
    }

    /// The names of hosts that are to be looked up from now on, if they may be others than before.
    pub fn take_names(&mut self) -> Option<BTreeSet<HostName>> {
        if !std::mem::take(&mut self.names_changed) {
            return None;
        }
        let names = self.sources.iter().flat_map(|source| source.view.names()).cloned().collect();
        self.addresses.retain(&names);
        Some(names)
    }

    fn note_synced(&mut self) {
        for source in self.sources.iter_mut().filter(|source| source.ranged && !source.synced) {
            if !source.view.names().all(|name| self.addresses.is_answered(name)) {
                continue;
            }
            source.synced = true;
            // What this watch now answers for is no remainder any more: later it may delete it.
            for (service, kept) in &mut self.remainder {
                for node in source.view.nodes(service, &self.addresses) {
                    kept.remove(&node.address);
                }
            }
        }
    }

    /// The next version, if anything to be served changed.
    pub fn publish(&mut self, now: Instant) -> Option<Arc<Catalog>> {
        let all_synced = self.all_synced();
        let overdue = self.remainder_until.is_some_and(|until| now >= until);
        if !self.remainder.is_empty() && (all_synced || overdue) {
            if !all_synced {
                let unsynced = self.sources.iter().filter(|source| !source.synced);
                let prefixes: Vec<_> = unsynced.map(|source| source.watch.prefix.as_str()).collect();
                warn!(?prefixes, "still not mirrored: what was served of them before is dropped");
            }
            self.touched.extend(std::mem::take(&mut self.remainder).into_keys());
        }
        self.touched.extend(self.guard.expire(now));
        self.touched.extend(self.placing.take_due(now));
        self.touched.extend(self.rules.dependents(&self.touched));
        let touched = std::mem::take(&mut self.touched);
        // One service at a time, so that a first full state is not in memory twice.
        let catalog = Arc::clone(&self.catalog);
        let routes = self.rules.take_routes();
        let changes = touched.into_iter().map(|name| {
            let nodes = self.nodes(&name, now);
            let policy = self.rules.policy(&name).cloned();
            let callers = policy.iter().filter_map(|policy| policy.locality.as_ref()?.callers.as_ref());
            let callers: Vec<_> = callers.flat_map(|callers| self.merged(callers).into_values()).collect();
            let policy = policy.as_deref().map(|policy| PolicyOf { policy, callers: &callers });
            self.placing.place(name, nodes, policy, &catalog, self.published, now)
        });
        let (next, refused) = catalog.changed(changes, routes);
        for (service, error) in refused {
            warn!(%service, %error, "a node is left out of the catalog");
        }
        let changed = next.is_some();
        if let Some(next) = next {
            self.catalog = Arc::new(next);
        }
        let waited = |wait: Duration| self.first_sync.is_some_and(|first| now >= first + wait);
        let ready = all_synced && (self.rules.is_synced() || waited(RULES_WAIT));
        let first = !self.published && (ready || waited(FIRST_WAIT));
        self.published |= first;
        ((changed || first) && self.published).then(|| Arc::clone(&self.catalog))
    }

    fn all_synced(&self) -> bool {
        self.sources.iter().all(|source| source.synced)
    }

    /// When to call [`Self::publish`] next though no event came.
    pub fn next_deadline(&self) -> Option<Instant> {
        let wait = if self.all_synced() { RULES_WAIT } else { FIRST_WAIT };
        let first = self.first_sync.filter(|_| !self.published).map(|first| first + wait);
        let remainder = self.remainder_until.filter(|_| !self.remainder.is_empty());
        let deadlines = self.guard.next_deadline().into_iter().chain(first).chain(remainder);
        deadlines.chain(self.placing.next_deadline()).min()
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
        self.names_changed = true;
        let mut remainder = nodes_of(&self.catalog);
        for (service, nodes) in &mut remainder {
            for known in self.sources.iter().flat_map(|source| source.view.nodes(service, &self.addresses)) {
                nodes.remove(&known.address);
            }
        }
        // The guard answers for what it holds.
        for held in self.guard.held() {
            if let Some(nodes) = remainder.get_mut(&held.service) {
                nodes.remove(&held.address);
            }
        }
        remainder.retain(|_, nodes| !nodes.is_empty());
        self.remainder = remainder;
        self.remainder_until = None;
        // Also services that other watches know: the removed one may have had a say in them.
        self.touched.extend(self.catalog.services().keys().cloned());
    }

    /// What strategy components are to be asked since the last call.
    pub fn take_requests(&mut self) -> Vec<Request> {
        self.placing.take_requests()
    }

    /// A strategy component has answered. It shows with the next [`Self::publish`].
    pub fn decided(&mut self, Answer { service, decisions }: Answer) {
        if self.placing.decided(&service, decisions) {
            self.touched.insert(service);
        }
    }

    /// Takes another zone of this host.
    pub fn set_zone(&mut self, zone: &str) {
        if self.placing.set_zone(zone) {
            self.touched.extend(self.catalog.services().keys().cloned());
        }
    }

    /// Takes another guard, to which what is served now is the previous state.
    pub fn set_guard(&mut self, settings: config::Guard, now: Instant) {
        if settings == self.settings {
            return;
        }
        self.earlier_holds += self.guard.holds_total();
        let held = self.held();
        self.guard = Guard::new(options(&settings));
        seed(&mut self.guard, &settings, &self.catalog, now);
        self.settings = settings;
        self.hold(held, now);
        self.touched.extend(self.catalog.services().keys().cloned());
    }

    /// A service's nodes as they are to be served.
    fn nodes(&mut self, service: &ServiceName, now: Instant) -> Vec<Arc<Node>> {
        let nodes = self.merged(service).into_values().collect();
        if guards(&self.settings, service) { self.guard.apply(service, nodes, now) } else { nodes }
    }

    /// One node per address: a passing one first, then the earlier watch's, and what was served before last.
    fn merged(&self, service: &ServiceName) -> BTreeMap<SocketAddr, Arc<Node>> {
        let mut merged: BTreeMap<SocketAddr, Arc<Node>> = BTreeMap::new();
        for node in self.sources.iter().flat_map(|source| source.view.nodes(service, &self.addresses)) {
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
            merged.entry(*address).or_insert_with(|| Arc::clone(entry.shared()));
        }
        merged
    }
}

fn nodes_of(catalog: &Catalog) -> Nodes {
    catalog.services().iter().map(|(name, service)| (name.clone(), service.entries().clone())).collect()
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
        guard.apply(name, service.entries().values().map(|entry| Arc::clone(entry.shared())).collect(), now);
    }
}
