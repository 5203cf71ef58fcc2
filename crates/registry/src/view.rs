//! A mirror's keys as nodes: the last good value of each.
//!
//! A value that cannot be read takes nothing away: its key keeps the node it stood for before, and only the key's
//! deletion removes that. Each such value is counted once, however often the full state is fetched.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use waypost_catalog::{Health, Node, Protocol, ServiceName};

use crate::{
    format::{DecodeError, Format},
    mirror::{KeyChange, KeyValue, MirrorEvent},
};

/// Errors that are remembered to be shown.
const REMEMBERED_ERRORS: usize = 16;

#[derive(Debug, PartialEq, Eq)]
struct Known {
    node: Node,
    mod_revision: i64,
}

/// The nodes under one watched prefix.
#[derive(Debug)]
pub struct View {
    prefix: String,
    format: Format,
    protocol: Protocol,
    /// Nodes by key, by service. No empty maps.
    services: HashMap<ServiceName, BTreeMap<String, Known>>,
    /// The service of each key in `services`.
    keys: HashMap<String, ServiceName>,
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
                let present: std::collections::HashSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
                let gone: Vec<String> =
                    self.keys.keys().filter(|key| !present.contains(key.as_str())).cloned().collect();
                touched.extend(gone.iter().filter_map(|key| self.remove(key)));
                self.undecodable.retain(|key, _| present.contains(key.as_str()));
                touched.extend(entries.iter().filter_map(|entry| self.put(entry)));
            }
            MirrorEvent::Changed { changes, .. } => {
                for change in changes {
                    match change {
                        KeyChange::Put(entry) => touched.extend(self.put(entry)),
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

    fn put(&mut self, entry: &KeyValue) -> Option<ServiceName> {
        let (service, node) = match self.format.decode(&self.prefix, &entry.key, &entry.value, self.protocol) {
            Ok(decoded) => decoded,
            Err(DecodeError::NoNode(_)) => return None,
            Err(error) => {
                self.note_undecodable(entry, &error.to_string());
                return None;
            }
        };
        self.undecodable.remove(&entry.key);
        let known = Known { node, mod_revision: entry.mod_revision };
        let nodes = self.services.entry(service.clone()).or_default();
        match nodes.get_mut(&entry.key) {
            Some(same) if *same == known => return None,
            Some(old) => *old = known,
            None => {
                nodes.insert(entry.key.clone(), known);
                self.keys.insert(entry.key.clone(), service.clone());
            }
        }
        Some(service)
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
            nodes.remove(key);
            if nodes.is_empty() {
                self.services.remove(&service);
            }
        }
        Some(service)
    }

    /// A service's nodes, one per address, in the order of their keys. Of several keys with one address a passing
    /// node counts before another, and then the one that changed last.
    pub fn nodes(&self, service: &ServiceName) -> Vec<Node> {
        let mut best: HashMap<_, &Known> = HashMap::new();
        let known = self.services.get(service).into_iter().flat_map(BTreeMap::values);
        let rank = |known: &Known| (known.node.health == Health::Passing, known.mod_revision);
        for known in known.clone() {
            let chosen = best.entry(known.node.address).or_insert(known);
            if rank(known) > rank(chosen) {
                *chosen = known;
            }
        }
        let chosen =
            known.filter(|known| best.get(&known.node.address).is_some_and(|best| std::ptr::eq(*best, *known)));
        chosen.map(|known| known.node.clone()).collect()
    }

    /// Every service that has a node, in no order.
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
    use std::sync::Arc;

    use super::*;
    use crate::mirror::ResyncReason;

    const PREFIX: &str = "/waypost/services/";

    fn entry(path: &str, value: &str, mod_revision: i64) -> Arc<KeyValue> {
        let (key, value) = (format!("{PREFIX}{path}"), value.as_bytes().to_vec());
        Arc::new(KeyValue { key, value, mod_revision, create_revision: mod_revision, lease: 0 })
    }

    fn good(port: u16) -> String {
        format!(r#"{{"address":"10.0.0.1","port":{port}}}"#)
    }

    fn synced(entries: Vec<Arc<KeyValue>>) -> MirrorEvent {
        MirrorEvent::Synced { entries, reason: ResyncReason::First }
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
        view.nodes(&name(service)).iter().map(|node| node.address.port()).collect()
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
        let nodes = view.nodes(&name("a"));
        assert_eq!(nodes.len(), 1);
        assert_eq!(nodes[0].weight, 2);
        view.apply(&changed(vec![], &["a/2"]));
        assert_eq!(view.nodes(&name("a"))[0].weight, 1);
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
    fn the_memory_of_errors_is_bounded() {
        let mut view = view();
        for revision in 0..100 {
            view.apply(&changed(vec![entry("a/1", "?", revision)], &[]));
        }
        assert_eq!(view.undecodable_total(), 100);
        assert_eq!(view.last_errors().count(), REMEMBERED_ERRORS);
    }
}
