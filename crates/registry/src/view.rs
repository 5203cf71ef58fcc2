//! A mirror's keys as nodes: the last good value of each.
//!
//! A value that cannot be read takes nothing away: its key keeps the nodes it stood for before, and only the key's
//! deletion removes them. Each such value is counted once, however often the full state is fetched.
//!
//! A node whose host has a name is there once somebody has looked the name up: see [`View::names`] and
//! [`crate::resolve`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
};

use waypost_catalog::{Health, Node, Protocol, ServiceName};

use crate::{
    format::{DecodeError, Format, Found},
    host::HostName,
    mirror::{KeyChange, KeyValue, MirrorEvent},
    resolve::Addresses,
};

/// Errors that are remembered to be shown.
const REMEMBERED_ERRORS: usize = 16;

#[derive(Debug, PartialEq, Eq)]
struct Known {
    found: Box<[Found]>,
    mod_revision: i64,
}

/// The nodes under one watched prefix.
///
/// ```
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let etcd = waypost_registry_testing::Etcd::start().await;
/// # let endpoint = etcd.url();
/// use waypost_catalog::{Protocol, ServiceName};
/// use waypost_registry::{Addresses, ConnectOptions, Connector, Format, Mirror, MirrorOptions, View};
///
/// let connector = Connector::new(ConnectOptions::new([endpoint]))?;
/// let mut client = connector.connect().await?;
/// client.put("/apps/web/1", "10.0.0.5:8080", None).await?;
///
/// let (mirror, mut events) = Mirror::start(connector, MirrorOptions::new("/apps/"));
/// let mut view = View::new("/apps/", Format::EndpointValue, Protocol::Http1);
/// let touched = view.apply(&events.recv().await.ok_or("the mirror ends")?);
/// let web = ServiceName::new("web")?;
/// assert!(touched.contains(&web));
///
/// // A value that cannot be read takes nothing away.
/// client.put("/apps/web/1", "nonsense", None).await?;
/// view.apply(&events.recv().await.ok_or("the mirror ends")?);
/// assert_eq!(view.nodes(&web, &Addresses::default())[0].address, "10.0.0.5:8080".parse()?);
/// assert_eq!(view.undecodable_total(), 1);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct View {
    prefix: String,
    format: Format,
    protocol: Protocol,
    /// Nodes by key, by service. No empty maps.
    services: HashMap<ServiceName, BTreeMap<String, Known>>,
    /// The service of each key in `services`.
    keys: HashMap<String, ServiceName>,
    /// Names of hosts in `services`, and how many nodes of which services have them. No empty maps.
    names: BTreeMap<HostName, BTreeMap<ServiceName, usize>>,
    names_version: u64,
    /// Keys whose present value cannot be read, with its revision.
    undecodable: HashMap<String, i64>,
    undecodable_total: u64,
    errors: VecDeque<String>,
}

impl View {
    /// A view that knows nothing yet. `protocol` is that of nodes which do not say.
    pub fn new(prefix: impl Into<String>, format: Format, protocol: Protocol) -> Self {
        Self {
            prefix: prefix.into(),
            format,
            protocol,
            services: HashMap::new(),
            keys: HashMap::new(),
            names: BTreeMap::new(),
            names_version: 0,
            undecodable: HashMap::new(),
            undecodable_total: 0,
            errors: VecDeque::new(),
        }
    }

    /// Takes in what happened; these services' nodes changed.
    pub fn apply(&mut self, event: &MirrorEvent) -> BTreeSet<ServiceName> {
        let mut touched = BTreeSet::new();
        match event {
            MirrorEvent::Synced { entries, .. } => {
                let present: HashSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
                let gone: Vec<String> =
                    self.keys.keys().filter(|key| !present.contains(key.as_str())).cloned().collect();
                touched.extend(gone.iter().filter_map(|key| self.remove(key)));
                self.undecodable.retain(|key, _| present.contains(key.as_str()));
                entries.iter().for_each(|entry| self.put(entry, &mut touched));
            }
            MirrorEvent::Changed { changes, .. } => {
                for change in changes {
                    match change {
                        KeyChange::Put(entry) => self.put(entry, &mut touched),
                        KeyChange::Delete { key, .. } => {
                            self.undecodable.remove(key);
                            touched.extend(self.remove(key));
                        }
                    }
                }
            }
        }
        touched
    }

    fn put(&mut self, entry: &KeyValue, touched: &mut BTreeSet<ServiceName>) {
        let (service, found) = match self.format.decode(&self.prefix, &entry.key, &entry.value, self.protocol) {
            Ok(decoded) => decoded,
            Err(DecodeError::NoNode(_)) => {
                self.undecodable.remove(&entry.key);
                touched.extend(self.remove(&entry.key));
                return;
            }
            Err(error) => return self.note_undecodable(entry, &error.to_string()),
        };
        self.undecodable.remove(&entry.key);
        let known = Known { found: found.into(), mod_revision: entry.mod_revision };
        if self.services.get(&service).and_then(|nodes| nodes.get(&entry.key)) == Some(&known) {
            return;
        }
        // Before those of the old value are let go, so that what stays is no change.
        for name in known.found.iter().filter_map(Found::name) {
            self.use_name(name, &service);
        }
        if self.keys.get(&entry.key).is_some_and(|old| *old != service) {
            touched.extend(self.remove(&entry.key));
        }
        match self.services.entry(service.clone()).or_default().insert(entry.key.clone(), known) {
            Some(old) => self.let_go_of_names(&old, &service),
            None => _ = self.keys.insert(entry.key.clone(), service.clone()),
        }
        touched.insert(service);
    }

    fn note_undecodable(&mut self, entry: &KeyValue, error: &str) {
        if self.undecodable.insert(entry.key.clone(), entry.mod_revision) == Some(entry.mod_revision) {
            return;
        }
        self.undecodable_total += 1;
        let kept = if self.keys.contains_key(&entry.key) { "; its last good value is kept" } else { "" };
        let key: String = entry.key.chars().take(255).collect();
        let text = format!("{key}: {error}{kept}");
        tracing::warn!(format = %self.format, "not a node: {text}");
        if self.errors.len() == REMEMBERED_ERRORS {
            self.errors.pop_front();
        }
        self.errors.push_back(text);
    }

    fn remove(&mut self, key: &str) -> Option<ServiceName> {
        let service = self.keys.remove(key)?;
        if let Some(nodes) = self.services.get_mut(&service) {
            let known = nodes.remove(key);
            if nodes.is_empty() {
                self.services.remove(&service);
            }
            if let Some(known) = known {
                self.let_go_of_names(&known, &service);
            }
        }
        Some(service)
    }

    fn use_name(&mut self, name: &HostName, service: &ServiceName) {
        let users = self.names.entry(name.clone()).or_insert_with(|| {
            self.names_version += 1;
            BTreeMap::new()
        });
        *users.entry(service.clone()).or_default() += 1;
    }

    fn let_go_of_names(&mut self, of: &Known, service: &ServiceName) {
        for name in of.found.iter().filter_map(Found::name) {
            let Some(users) = self.names.get_mut(name) else { continue };
            if let Some(nodes) = users.get_mut(service) {
                *nodes -= 1;
                if *nodes == 0 {
                    users.remove(service);
                }
            }
            if users.is_empty() {
                self.names.remove(name);
                self.names_version += 1;
            }
        }
    }

    /// The names of nodes' hosts.
    pub fn names(&self) -> impl Iterator<Item = &HostName> {
        self.names.keys()
    }

    /// Grows whenever [`Self::names`] changes.
    pub fn names_version(&self) -> u64 {
        self.names_version
    }

    /// The services with nodes whose host has this name: they change when it stands for other addresses.
    pub fn services_at(&self, name: &HostName) -> impl Iterator<Item = &ServiceName> {
        self.names.get(name).into_iter().flat_map(BTreeMap::keys)
    }

    /// A service's nodes, one per address, in the order of their keys. Of several keys with one address a passing
    /// node counts before another, and then the one that changed last. `addresses` are those of hosts' names.
    pub fn nodes(&self, service: &ServiceName, addresses: &Addresses) -> Vec<Arc<Node>> {
        let rank = |node: &Node, known: &Known| (node.health == Health::Passing, known.mod_revision);
        let mut nodes: Vec<(Arc<Node>, &Known)> = Vec::new();
        for known in self.services.get(service).into_iter().flat_map(BTreeMap::values) {
            for found in &known.found {
                match (found.shared(), found.name()) {
                    (Some(node), _) => nodes.push((Arc::clone(node), known)),
                    (None, Some(name)) => {
                        nodes.extend(found.at(addresses.of(name)).map(|node| (Arc::new(node), known)))
                    }
                    (None, None) => {}
                }
            }
        }
        let mut best: HashMap<SocketAddr, usize> = HashMap::with_capacity(nodes.len());
        for (index, (node, known)) in nodes.iter().enumerate() {
            let chosen = best.entry(node.address).or_insert(index);
            if nodes.get(*chosen).is_some_and(|(other, of)| rank(node, known) > rank(other, of)) {
                *chosen = index;
            }
        }
        let is_best = |(index, (node, _)): &(usize, (Arc<Node>, &Known))| best.get(&node.address) == Some(index);
        nodes.into_iter().enumerate().filter(is_best).map(|(_, (node, _))| node).collect()
    }

    /// Every service that has a key of nodes, in no order.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// Keys that are nodes.
    pub fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// Values (and keys) met so far that were no nodes.
    pub fn undecodable_total(&self) -> u64 {
        self.undecodable_total
    }

    /// Keys that are there now and whose present value is no node.
    pub fn undecodable_now(&self) -> usize {
        self.undecodable.len()
    }

    /// What was wrong with the last of these, newest last.
    pub fn last_errors(&self) -> impl Iterator<Item = &str> {
        self.errors.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{mirror::ResyncReason, resolve::Resolution};

    const PREFIX: &str = "/waypost/services/";

    fn entry(path: &str, value: &str, mod_revision: i64) -> Arc<KeyValue> {
        let (key, value) = (format!("{PREFIX}{path}"), value.as_bytes().to_vec());
        Arc::new(KeyValue { key, value, mod_revision, create_revision: mod_revision, lease: 0 })
    }

    fn good(port: u16) -> String {
        format!(r#"{{"address":"10.0.0.1","port":{port}}}"#)
    }

    fn synced(entries: Vec<Arc<KeyValue>>) -> MirrorEvent {
        MirrorEvent::Synced { entries, revision: 1, reason: ResyncReason::First }
    }

    fn changed(puts: Vec<Arc<KeyValue>>, deletes: &[&str]) -> MirrorEvent {
        let deletes = deletes.iter().map(|path| KeyChange::Delete { key: format!("{PREFIX}{path}"), revision: 1 });
        MirrorEvent::Changed { changes: deletes.chain(puts.into_iter().map(KeyChange::Put)).collect(), revision: 1 }
    }

    fn name(name: &str) -> ServiceName {
        ServiceName::new(name).unwrap()
    }

    fn view() -> View {
        View::new(PREFIX, Format::Waypost, Protocol::Http1)
    }

    fn ports(view: &View, service: &str) -> Vec<u16> {
        view.nodes(&name(service), &Addresses::default()).iter().map(|node| node.address.port()).collect()
    }

    #[test]
    fn a_full_state_replaces_everything_and_names_what_changed() {
        let mut view = view();
        let first = synced(vec![entry("a/1", &good(1), 1), entry("b/1", &good(2), 2), entry("c/1", &good(3), 3)]);
        assert_eq!(view.apply(&first), BTreeSet::from([name("a"), name("b"), name("c")]));
        let second = synced(vec![entry("a/1", &good(1), 1), entry("b/1", &good(9), 5)]);
        assert_eq!(view.apply(&second), BTreeSet::from([name("b"), name("c")]));
        assert_eq!((ports(&view, "a"), ports(&view, "b"), ports(&view, "c")), (vec![1], vec![9], vec![]));
        assert_eq!((view.key_count(), view.services().count()), (2, 2));
    }

    #[test]
    fn a_value_that_cannot_be_read_keeps_the_last_good_one_and_is_counted_once() {
        let mut view = view();
        view.apply(&synced(vec![entry("a/1", &good(1), 1), entry("a/2", &good(2), 1)]));
        assert!(view.apply(&changed(vec![entry("a/1", "{", 2)], &[])).is_empty());
        view.apply(&synced(vec![entry("a/1", "{", 2), entry("a/2", &good(2), 1), entry("a/3", "?", 3)]));
        assert_eq!(ports(&view, "a"), [1, 2]);
        assert_eq!((view.undecodable_total(), view.undecodable_now()), (2, 2));
        assert!(view.last_errors().next().unwrap().contains("last good value is kept"));
        view.apply(&changed(vec![], &["a/1", "a/3"]));
        assert_eq!(ports(&view, "a"), [2]);
        assert_eq!((view.undecodable_total(), view.undecodable_now()), (2, 0));
    }

    #[test]
    fn of_two_keys_with_one_address_the_passing_one_counts_then_the_newer_one() {
        let mut view = view();
        let with = |extra: &str| format!(r#"{{"address":"10.0.0.1","port":1,{extra}}}"#);
        view.apply(&synced(vec![
            entry("a/1", &with(r#""weight":1"#), 1),
            entry("a/2", &with(r#""weight":2"#), 2),
            entry("a/3", &with(r#""weight":3,"health":"critical""#), 3),
        ]));
        let nodes = view.nodes(&name("a"), &Addresses::default());
        assert_eq!(nodes.len(), 1);
        assert_eq!(nodes[0].weight, 2);
        view.apply(&changed(vec![], &["a/2"]));
        assert_eq!(view.nodes(&name("a"), &Addresses::default())[0].weight, 1);
    }

    #[test]
    fn keys_that_a_framework_has_beside_its_nodes_are_no_errors() {
        let mut view = View::new(PREFIX, Format::DubboInterface, Protocol::Http2);
        view.apply(&synced(vec![entry("a", "", 1), entry("a/providers", "", 1), entry("a/consumers/x", "", 1)]));
        assert_eq!((view.undecodable_total(), view.undecodable_now(), view.key_count()), (0, 0, 0));
        view.apply(&changed(vec![entry("a/providers/tri%3A%2F%2F10.0.0.1%3A1%2Fa", "", 2)], &[]));
        assert_eq!(ports(&view, "a"), [1]);
    }

    #[test]
    fn a_key_may_hold_several_nodes_and_none() {
        let mut view = View::new(PREFIX, Format::Apisix, Protocol::Http1);
        let nodes = |nodes: &str| format!(r#"{{"type":"roundrobin","nodes":{nodes}}}"#);
        let both = nodes(r#"{"10.0.0.1:1":5,"10.0.0.1:2":7}"#);
        assert_eq!(view.apply(&synced(vec![entry("a", &both, 1)])), BTreeSet::from([name("a")]));
        assert_eq!((ports(&view, "a"), view.key_count()), (vec![1, 2], 1));
        assert!(view.apply(&changed(vec![entry("a", "{", 2)], &[])).is_empty(), "the last good value is kept");
        view.apply(&changed(vec![entry("a", &nodes(r#"{"10.0.0.1:2":7}"#), 3)], &[]));
        assert_eq!((ports(&view, "a"), view.undecodable_now()), (vec![2], 0));
        view.apply(&changed(vec![entry("a", &nodes("{}"), 4)], &[]));
        assert_eq!((ports(&view, "a"), view.key_count()), (vec![], 1));
        view.apply(&changed(vec![entry("a", &both, 5)], &[]));
        let elsewhere = r#"{"type":"roundrobin","service_name":"a","discovery_type":"dns"}"#;
        assert_eq!(view.apply(&changed(vec![entry("a", elsewhere, 6)], &[])), BTreeSet::from([name("a")]));
        assert_eq!((ports(&view, "a"), view.key_count(), view.undecodable_total()), (vec![], 0, 1));
    }

    fn named(host: &str, port: u16) -> String {
        format!(r#"{{"address":"{host}","port":{port}}}"#)
    }

    #[test]
    fn a_node_whose_host_has_a_name_is_there_once_the_name_is_looked_up() {
        let mut view = view();
        view.apply(&synced(vec![
            entry("a/1", &good(1), 1),
            entry("a/2", &named("h1", 2), 1),
            entry("b/1", &named("h1", 3), 1),
        ]));
        assert_eq!(ports(&view, "a"), [1]);
        let h1 = HostName::new("h1").unwrap();
        assert_eq!(view.names().collect::<Vec<_>>(), [&h1]);
        assert_eq!(view.services_at(&h1).collect::<Vec<_>>(), [&name("a"), &name("b")]);
        let mut addresses = Addresses::default();
        let mut ports_at = |view: &View, ips: &[[u8; 4]], service: &str| -> Vec<u16> {
            let ips = ips.iter().map(|ip| (*ip).into()).collect();
            addresses.take_in(&Resolution { name: h1.clone(), addresses: Some(ips) });
            view.nodes(&name(service), &addresses).iter().map(|node| node.address.port()).collect()
        };
        assert_eq!(ports_at(&view, &[[10, 0, 0, 2]], "a"), [1, 2]);
        assert_eq!(ports_at(&view, &[[10, 0, 0, 2], [10, 0, 0, 3]], "a"), [1, 2, 2]);
        assert_eq!(ports_at(&view, &[[10, 0, 0, 2], [10, 0, 0, 3]], "b"), [3, 3]);
        let version = view.names_version();
        view.apply(&changed(vec![entry("a/2", &named("h1", 9), 2)], &[]));
        assert_eq!(view.names_version(), version, "the name stayed");
        view.apply(&changed(vec![entry("a/2", &named("h2", 9), 3)], &["b/1"]));
        assert_eq!(view.names().map(HostName::as_str).collect::<Vec<_>>(), ["h2"]);
        assert!(view.names_version() > version);
        assert_eq!(view.services_at(&h1).count(), 0);
    }

    #[test]
    fn the_memory_of_errors_is_bounded() {
        let mut view = view();
        for revision in 0..100 {
            view.apply(&changed(vec![entry("a/1", "?", revision)], &[]));
        }
        assert_eq!(view.undecodable_total(), 100);
        assert_eq!(view.last_errors().count(), REMEMBERED_ERRORS);
    }
}
