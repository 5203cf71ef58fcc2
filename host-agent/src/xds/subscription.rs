//! One type of resource on one Envoy's stream: what it wants, what it has, and what it is to be sent next.
//!
//! ```text
//!            something differs              acknowledged or refused
//!   Idle -------------------------> Waiting -----------------------> Idle
//! ```
//!
//! One response at a time: what changes in the meantime is sent with the next one, in its newest form. A refused
//! response counts as had, so it is not sent again until there is something else to send.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{resources::Resource, snapshot::Resources};

/// The name that stands for every resource.
const EVERYTHING: &str = "*";

/// What Envoy has under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// The resource at this version.
    Version(u64),
    /// The knowledge that there is none.
    Nothing,
}

/// What a request changes.
#[derive(Debug, Default)]
pub struct Change {
    /// Names that are wanted from now on.
    pub subscribe: Vec<String>,
    /// Names that are not wanted any more.
    pub unsubscribe: Vec<String>,
    /// What Envoy has from an earlier stream, by name.
    pub initial_versions: HashMap<String, String>,
}

/// What is to be sent.
#[derive(Debug, Default)]
pub struct Update {
    /// Resources that are new or changed, by name.
    pub resources: Vec<(String, Arc<Resource>)>,
    /// Names of those that are gone.
    pub removed: Vec<String>,
}

impl Update {
    /// Adds a resource, unless Envoy has it at this version.
    fn send(&mut self, name: &str, resource: &Arc<Resource>, held: &mut HashMap<String, Held>) {
        let version = Held::Version(resource.version);
        match held.get_mut(name) {
            Some(held) if *held == version => return,
            Some(held) => *held = version,
            None => {
                held.insert(name.to_owned(), version);
            }
        }
        self.resources.push((name.to_owned(), Arc::clone(resource)));
    }
}

/// The state of one type.
#[derive(Debug, Default)]
pub struct Subscription {
    started: bool,
    everything: bool,
    names: BTreeSet<String>,
    held: HashMap<String, Held>,
    /// Whether Envoy has had a response on this stream: one that wants everything waits for a first one, even if it
    /// is empty.
    answered: bool,
    waiting_for: Option<String>,
}

impl Subscription {
    /// Takes in a request. `wildcard`: the first one means everything if it names nothing, as it does for clusters.
    pub fn change(&mut self, change: Change, wildcard: bool) {
        let first = !std::mem::replace(&mut self.started, true);
        if first {
            self.everything = wildcard && change.subscribe.is_empty();
        }
        for name in change.subscribe {
            if name == EVERYTHING {
                self.everything |= wildcard;
            } else {
                // Also one that it has already: who asks again is answered again.
                self.held.remove(&name);
                self.names.insert(name);
            }
        }
        for name in change.unsubscribe {
            if name == EVERYTHING {
                self.everything = false;
                self.held.retain(|name, _| self.names.contains(name));
            } else if self.names.remove(&name) && !self.everything {
                self.held.remove(&name);
            }
        }
        if first {
            let versions = change.initial_versions.into_iter();
            let wanted = versions.filter(|(name, _)| self.everything || self.names.contains(name));
            // A version that is none of ours is the version of something else.
            self.held.extend(wanted.map(|(name, version)| (name, Held::Version(parse_version(&version).unwrap_or(0)))));
        }
    }

    /// Takes in an acknowledgement or refusal; whether it is one of the response that is waited for.
    pub fn answer(&mut self, nonce: &str) -> bool {
        let right = self.waiting_for.as_deref() == Some(nonce);
        if right {
            self.waiting_for = None;
        }
        right
    }

    /// Whether a response has yet to be acknowledged or refused.
    pub fn is_waiting(&self) -> bool {
        self.waiting_for.is_some()
    }

    /// Has a resource sent again, if it is wanted.
    pub fn resend(&mut self, name: &str) {
        self.held.remove(name);
    }

    /// What differs from what Envoy has. It counts as had from now on, and `nonce` is waited for.
    pub fn update(&mut self, resources: &Resources, nonce: &str) -> Option<Update> {
        if self.is_waiting() || !self.started {
            return None;
        }
        let Self { everything, names, held, .. } = self;
        let mut update = Update::default();
        if *everything {
            for (name, resource) in resources {
                update.send(name, resource, held);
            }
            let gone = |name: &str, held: &Held| *held != Held::Nothing && !resources.contains_key(name);
            update.removed = held.extract_if(|name, held| gone(name, held)).map(|(name, _)| name).collect();
        }
        for name in &*names {
            match resources.get(name.as_str()) {
                Some(resource) => update.send(name, resource, held),
                None if held.get(name) != Some(&Held::Nothing) => {
                    if !update.removed.contains(name) {
                        update.removed.push(name.clone());
                    }
                    held.insert(name.clone(), Held::Nothing);
                }
                None => {}
            }
        }
        let empty = update.resources.is_empty() && update.removed.is_empty();
        if empty && (self.answered || !self.everything) {
            return None;
        }
        self.answered = true;
        self.waiting_for = Some(nonce.to_owned());
        Some(update)
    }
}

/// A version as text.
pub fn format_version(version: u64) -> String {
    format!("{version:016x}")
}

fn parse_version(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf::Any;
    use waypost_catalog::ServiceName;

    use super::*;

    fn world(resources: &[(&str, u64)]) -> Resources {
        let resource = |version| Arc::new(Resource { version, body: Any::default() });
        resources.iter().map(|(name, version)| (ServiceName::new(name).unwrap(), resource(*version))).collect()
    }

    fn wants(names: &[&str]) -> Change {
        Change { subscribe: names.iter().map(|&name| name.to_owned()).collect(), ..Change::default() }
    }

    fn drops(names: &[&str]) -> Change {
        Change { unsubscribe: names.iter().map(|&name| name.to_owned()).collect(), ..Change::default() }
    }

    fn has(versions: &[(&str, u64)]) -> HashMap<String, String> {
        versions.iter().map(|(name, version)| ((*name).to_owned(), format_version(*version))).collect()
    }

    /// Sends, and has it acknowledged.
    fn sent(subscription: &mut Subscription, world: &Resources) -> Option<(Vec<String>, Vec<String>)> {
        let update = subscription.update(world, "nonce")?;
        assert!(subscription.answer("nonce"));
        Some((update.resources.into_iter().map(|(name, _)| name).collect(), update.removed))
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn nothing_is_sent_before_it_is_asked_for() {
        assert!(sent(&mut Subscription::default(), &world(&[("a", 1)])).is_none());
    }

    #[test]
    fn everything_is_followed_by_what_changed_and_what_is_gone() {
        for first in [wants(&[]), wants(&["*"])] {
            let mut clusters = Subscription::default();
            clusters.change(first, true);
            let world = |resources| world(resources);
            assert_eq!(sent(&mut clusters, &world(&[("a", 1), ("b", 1)])), Some((names(&["a", "b"]), vec![])));
            assert_eq!(sent(&mut clusters, &world(&[("a", 1), ("b", 1)])), None);
            assert_eq!(sent(&mut clusters, &world(&[("a", 2), ("b", 1)])), Some((names(&["a"]), vec![])));
            assert_eq!(sent(&mut clusters, &world(&[("b", 1), ("c", 1)])), Some((names(&["c"]), names(&["a"]))));
            assert_eq!(sent(&mut clusters, &world(&[("b", 1), ("c", 1)])), None);
        }
    }

    #[test]
    fn who_wants_everything_hears_that_there_is_nothing() {
        let mut clusters = Subscription::default();
        clusters.change(wants(&[]), true);
        assert_eq!(sent(&mut clusters, &world(&[])), Some((vec![], vec![])));
        assert_eq!(sent(&mut clusters, &world(&[])), None);
    }

    #[test]
    fn endpoints_are_sent_by_name_only() {
        let mut endpoints = Subscription::default();
        endpoints.change(wants(&[]), false);
        assert_eq!(sent(&mut endpoints, &world(&[("a", 1)])), None);
        endpoints.change(wants(&["*"]), false);
        assert_eq!(sent(&mut endpoints, &world(&[("a", 1)])), None);
        endpoints.change(wants(&["a", "missing"]), false);
        assert_eq!(sent(&mut endpoints, &world(&[("a", 1), ("b", 1)])), Some((names(&["a"]), names(&["missing"]))));
        assert_eq!(sent(&mut endpoints, &world(&[("a", 1), ("b", 2)])), None);
        assert_eq!(sent(&mut endpoints, &world(&[("missing", 1)])), Some((names(&["missing"]), names(&["a"]))));
        endpoints.change(drops(&["missing"]), false);
        assert_eq!(sent(&mut endpoints, &world(&[("missing", 2)])), None);
        endpoints.change(wants(&["missing"]), false);
        assert_eq!(sent(&mut endpoints, &world(&[("missing", 2)])), Some((names(&["missing"]), vec![])));
    }

    #[test]
    fn who_asks_again_is_answered_again() {
        let mut endpoints = Subscription::default();
        endpoints.change(wants(&["a"]), false);
        let world = world(&[("a", 1)]);
        assert!(sent(&mut endpoints, &world).is_some());
        endpoints.change(wants(&["a"]), false);
        assert_eq!(sent(&mut endpoints, &world), Some((names(&["a"]), vec![])));
        endpoints.resend("a");
        assert_eq!(sent(&mut endpoints, &world), Some((names(&["a"]), vec![])));
        endpoints.resend("b");
        assert_eq!(sent(&mut endpoints, &world), None);
    }

    #[test]
    fn what_envoy_still_has_after_a_reconnect_is_not_sent_again() {
        let mut clusters = Subscription::default();
        let versions = has(&[("same", 1), ("older", 1), ("gone", 1)]);
        clusters.change(Change { initial_versions: versions, ..wants(&[]) }, true);
        let world = world(&[("same", 1), ("older", 2), ("new", 1)]);
        assert_eq!(sent(&mut clusters, &world), Some((names(&["new", "older"]), names(&["gone"]))));
        let mut endpoints = Subscription::default();
        let mut versions = has(&[("same", 1), ("unwanted", 1)]);
        versions.insert("older".to_owned(), "not a version of ours".to_owned());
        endpoints.change(Change { initial_versions: versions, ..wants(&["same", "older"]) }, false);
        assert_eq!(sent(&mut endpoints, &world), Some((names(&["older"]), vec![])));
    }

    #[test]
    fn a_reconnect_to_nothing_new_is_still_answered_once() {
        let mut clusters = Subscription::default();
        clusters.change(Change { initial_versions: has(&[("a", 1)]), ..wants(&[]) }, true);
        assert_eq!(sent(&mut clusters, &world(&[("a", 1)])), Some((vec![], vec![])));
    }

    #[test]
    fn changes_wait_for_the_answer_to_what_was_sent_and_only_the_newest_is_sent() {
        let mut endpoints = Subscription::default();
        endpoints.change(wants(&["a"]), false);
        assert!(endpoints.update(&world(&[("a", 1)]), "1").is_some());
        assert!(endpoints.update(&world(&[("a", 2)]), "2").is_none());
        assert!(!endpoints.answer("0"));
        assert!(endpoints.is_waiting());
        assert!(endpoints.answer("1"));
        let update = endpoints.update(&world(&[("a", 3)]), "3").unwrap();
        assert_eq!(update.resources[0].1.version, 3);
    }

    #[test]
    fn a_name_beside_everything_is_removed_once() {
        let mut clusters = Subscription::default();
        clusters.change(wants(&["*", "a"]), true);
        assert_eq!(sent(&mut clusters, &world(&[("a", 1), ("b", 1)])), Some((names(&["a", "b"]), vec![])));
        assert_eq!(sent(&mut clusters, &world(&[("b", 1)])), Some((vec![], names(&["a"]))));
        clusters.change(drops(&["*"]), true);
        assert_eq!(sent(&mut clusters, &world(&[("a", 1), ("b", 2)])), Some((names(&["a"]), vec![])));
    }
}
