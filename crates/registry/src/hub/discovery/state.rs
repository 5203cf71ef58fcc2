//! Services and their nodes, and what changes of keys make of them. Pure but for the table that picks read.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use arc_swap::ArcSwap;
use waypost_catalog::{Node, ServiceName};

use super::prepared::{Nodes, Prepared};
use crate::{
    hub::{
        feed::{Restart, State},
        key_state::KeyEvent,
    },
    mirror::{KeyChange, MirrorEvent, ResyncReason},
    resolve::{Addresses, Resolution},
    view::View,
};

/// What happened to the nodes of a service. A node is known by its address.
///
/// Changes that came together are told as one: a node that was there for a moment between them may not be told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// A node that was not there.
    Added {
        /// Its service.
        service: ServiceName,
        /// The node.
        node: Arc<Node>,
    },
    /// A node has another weight, health or anything else but its address.
    Changed {
        /// Its service.
        service: ServiceName,
        /// As it was.
        old: Arc<Node>,
        /// As it is.
        new: Arc<Node>,
    },
    /// A node is gone.
    Removed {
        /// Its service.
        service: ServiceName,
        /// As it was.
        node: Arc<Node>,
    },
    /// Everything, as it is now: what is not in it is gone. Later events go on from here.
    Resynchronised {
        /// Why.
        reason: Restart,
        /// Every service that has a node.
        services: Arc<BTreeMap<ServiceName, Nodes>>,
    },
}

/// What picks read: an entry changes in place, and the table is replaced where services come and go.
pub(super) type Table = ArcSwap<HashMap<ServiceName, Arc<ArcSwap<Prepared>>>>;

#[derive(Debug)]
pub(super) struct NodeState {
    pub(super) view: View,
    addresses: Addresses,
    table: Arc<Table>,
    synced: bool,
}

impl NodeState {
    pub(super) fn new(view: View, table: Arc<Table>) -> Self {
        Self { view, addresses: Addresses::default(), table, synced: false }
    }

    /// Whether the keys were fetched, and the names of hosts among them looked up.
    pub(super) fn is_ready(&self) -> bool {
        self.synced && self.view.names().all(|name| self.addresses.is_answered(name))
    }

    /// Takes in changes of keys that came together.
    pub(super) fn take_in(&mut self, events: Vec<KeyEvent>) -> Vec<NodeEvent> {
        let (mut touched, mut changes, mut restart) = (BTreeSet::new(), Vec::new(), None);
        for event in events {
            match event {
                KeyEvent::Added(new) | KeyEvent::Changed { new, .. } => changes.push(KeyChange::Put(new)),
                KeyEvent::Removed { old, revision } => {
                    changes.push(KeyChange::Delete { key: old.key.clone(), revision });
                }
                KeyEvent::Resynchronised { reason, entries, revision } => {
                    // What came before it may hold the last good value of a key.
                    touched.extend(self.apply(std::mem::take(&mut changes)));
                    restart = Some(reason);
                    let reason = match reason {
                        Restart::Mirror(reason) => reason,
                        Restart::Subscribed => ResyncReason::First,
                        Restart::Lagged => ResyncReason::Reconnected,
                    };
                    let everything = MirrorEvent::Synced { entries: entries.to_vec(), revision, reason };
                    touched.extend(self.view.apply(&everything));
                }
            }
        }
        touched.extend(self.apply(changes));
        let events = self.update(&touched);
        match restart {
            Some(reason) => {
                self.synced = true;
                self.full(reason).into_iter().collect()
            }
            None => events,
        }
    }

    fn apply(&mut self, changes: Vec<KeyChange>) -> BTreeSet<ServiceName> {
        match changes.last().map(KeyChange::revision) {
            Some(revision) => self.view.apply(&MirrorEvent::Changed { changes, revision }),
            None => BTreeSet::new(),
        }
    }

    /// Takes in what a host's name stands for.
    pub(super) fn resolve(&mut self, resolution: &Resolution) -> Vec<NodeEvent> {
        if !self.addresses.take_in(resolution) {
            return Vec::new();
        }
        let touched = self.view.services_at(&resolution.name).cloned().collect();
        let events = self.update(&touched);
        if self.synced { events } else { Vec::new() }
    }

    /// Forgets what is known of names that no node has.
    pub(super) fn forget_names(&mut self) {
        self.addresses.retain(&self.view.names().cloned().collect());
    }

    /// Looks at these services' nodes; what is new about them.
    fn update(&mut self, touched: &BTreeSet<ServiceName>) -> Vec<NodeEvent> {
        let mut events = Vec::new();
        let (mut come, mut gone) = (Vec::new(), Vec::new());
        let table = self.table.load();
        for service in touched {
            let entry = table.get(service);
            let before = entry.map(|entry| entry.load());
            let known = before.as_ref().map_or(&[][..], |before| &before.nodes);
            let (nodes, changes) = compare(service, known, self.view.nodes(service, &self.addresses));
            if changes.is_empty() {
                continue;
            }
            events.extend(changes);
            match (entry, &before) {
                (Some(_), _) if nodes.is_empty() => gone.push(service),
                (Some(entry), Some(before)) => entry.store(Arc::new(before.followed_by(nodes, || fastrand::u64(..)))),
                _ => come.push((service.clone(), Arc::new(ArcSwap::from_pointee(Prepared::new(nodes))))),
            }
        }
        if !(come.is_empty() && gone.is_empty()) {
            let mut services = HashMap::clone(&table);
            services.extend(come);
            for service in gone {
                services.remove(service);
            }
            self.table.store(Arc::new(services));
        }
        events
    }
}

impl State for NodeState {
    type Event = NodeEvent;

    fn full(&self, reason: Restart) -> Option<NodeEvent> {
        if !self.synced {
            return None;
        }
        let table = self.table.load();
        let services = table.iter().map(|(service, entry)| (service.clone(), Arc::clone(&entry.load().nodes)));
        Some(NodeEvent::Resynchronised { reason, services: Arc::new(services.collect()) })
    }
}

/// The new nodes, those that are as they were taken over, and how they differ from the old ones.
fn compare(service: &ServiceName, old: &[Arc<Node>], new: Vec<Arc<Node>>) -> (Nodes, Vec<NodeEvent>) {
    let mut known: HashMap<SocketAddr, &Arc<Node>> = old.iter().map(|node| (node.address, node)).collect();
    let mut events = Vec::new();
    let service = || service.clone();
    let nodes = new.into_iter().map(|node| match known.remove(&node.address) {
        Some(same) if Arc::ptr_eq(same, &node) || **same == *node => Arc::clone(same),
        Some(old) => {
            events.push(NodeEvent::Changed { service: service(), old: Arc::clone(old), new: Arc::clone(&node) });
            node
        }
        None => {
            events.push(NodeEvent::Added { service: service(), node: Arc::clone(&node) });
            node
        }
    });
    let nodes: Nodes = nodes.collect();
    let removed = old.iter().filter(|node| known.contains_key(&node.address));
    events.extend(removed.map(|node| NodeEvent::Removed { service: service(), node: Arc::clone(node) }));
    (nodes, events)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use waypost_catalog::Protocol;

    use super::*;
    use crate::{Format, KeyValue, host::HostName};

    const PREFIX: &str = "/services/";

    fn state() -> NodeState {
        NodeState::new(View::new(PREFIX, Format::Waypost, Protocol::Http1), Arc::default())
    }

    fn key(path: &str, address: &str, weight: u32) -> Arc<KeyValue> {
        let value = format!(r#"{{"address":"{address}","port":1,"weight":{weight}}}"#).into();
        let key = format!("{PREFIX}{path}");
        Arc::new(KeyValue { key, value, mod_revision: 1, create_revision: 1, lease: 0 })
    }

    fn everything(reason: Restart, entries: &[Arc<KeyValue>]) -> KeyEvent {
        KeyEvent::Resynchronised { reason, entries: entries.into(), revision: 1 }
    }

    fn told(events: &[NodeEvent]) -> Vec<String> {
        let shown = |node: &Node| format!("{}*{}", node.address.ip(), node.weight);
        let line = |event: &NodeEvent| match event {
            NodeEvent::Added { service, node } => format!("{service} +{}", shown(node)),
            NodeEvent::Changed { service, old, new } => format!("{service} {} -> {}", shown(old), shown(new)),
            NodeEvent::Removed { service, node } => format!("{service} -{}", shown(node)),
            NodeEvent::Resynchronised { reason, services } => {
                let nodes = services.iter().map(|(service, nodes)| format!("{service}:{}", nodes.len()));
                format!("{reason} {}", nodes.collect::<Vec<_>>().join(" "))
            }
        };
        events.iter().map(line).collect()
    }

    #[test]
    fn changes_of_keys_become_changes_of_nodes() {
        let mut state = state();
        assert!(state.full(Restart::Subscribed).is_none() && !state.is_ready());
        let first = [key("a/1", "10.0.0.1", 1), key("b/1", "10.0.0.2", 1)];
        let events = state.take_in(vec![everything(Restart::Mirror(ResyncReason::First), &first)]);
        assert_eq!(told(&events), ["first a:1 b:1"]);
        assert!(state.is_ready());
        let changed = KeyEvent::Changed { old: Arc::clone(&first[0]), new: key("a/1", "10.0.0.1", 5) };
        let removed = KeyEvent::Removed { old: Arc::clone(&first[1]), revision: 3 };
        let events = state.take_in(vec![changed, KeyEvent::Added(key("a/2", "10.0.0.3", 1)), removed]);
        assert_eq!(told(&events), ["a 10.0.0.1*1 -> 10.0.0.1*5", "a +10.0.0.3*1", "b -10.0.0.2*1"]);
        assert_eq!(told(&state.full(Restart::Subscribed).into_iter().collect::<Vec<_>>()), ["subscribed a:2"]);
        // Another key for a node that is there is no news, nor is a value that cannot be read.
        assert_eq!(state.take_in(vec![KeyEvent::Added(key("a/3", "10.0.0.3", 1))]), []);
        assert_eq!(state.take_in(vec![KeyEvent::Added(key("a/1", "?", 1))]), []);
    }

    #[test]
    fn a_full_state_on_the_way_makes_one_new_start_and_keeps_last_good_values() {
        let mut state = state();
        state.take_in(vec![everything(Restart::Mirror(ResyncReason::First), &[])]);
        let events = state.take_in(vec![
            KeyEvent::Added(key("a/1", "10.0.0.1", 1)),
            everything(Restart::Lagged, &[key("a/1", "", 1)]),
            KeyEvent::Added(key("a/2", "10.0.0.2", 1)),
        ]);
        assert_eq!(told(&events), ["lagged a:2"]);
    }

    #[test]
    fn nodes_of_a_named_host_come_and_change_with_its_addresses() {
        let mut state = state();
        let entry = key("a/1", "h1", 1);
        state.take_in(vec![everything(Restart::Mirror(ResyncReason::First), &[entry])]);
        assert!(!state.is_ready(), "the name was not looked up yet");
        let is = |last: u8| Resolution {
            name: HostName::new("h1").unwrap(),
            addresses: Some([IpAddr::from([10, 0, 0, last])].into()),
        };
        assert_eq!(told(&state.resolve(&is(1))), ["a +10.0.0.1*1"]);
        assert!(state.is_ready());
        assert_eq!(state.resolve(&is(1)), []);
        assert_eq!(told(&state.resolve(&is(2))), ["a +10.0.0.2*1", "a -10.0.0.1*1"]);
    }

    #[test]
    fn the_table_is_left_alone_where_no_service_comes_or_goes() {
        let mut state = state();
        state.take_in(vec![everything(Restart::Mirror(ResyncReason::First), &[key("a/1", "10.0.0.1", 1)])]);
        let before = state.table.load_full();
        state.take_in(vec![KeyEvent::Added(key("a/2", "10.0.0.2", 1))]);
        assert!(Arc::ptr_eq(&before, &state.table.load()));
        assert_eq!(before["a"].load().nodes.len(), 2);
        state.take_in(vec![KeyEvent::Added(key("b/1", "10.0.0.2", 1))]);
        assert!(!Arc::ptr_eq(&before, &state.table.load()));
    }
}
