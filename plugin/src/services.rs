//! The services a VM knows, and the pick among a service's nodes.

use std::collections::HashMap;

use fastrand::Rng;
use waypost_balance::{CHOICES, WeightedRoundRobin};
use waypost_catalog::{
    Replica,
    replica::{Applied, ReplicaService},
    wire::{WireError, server_message::Kind},
};

/// Why there is no pick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// The catalog holds no service of that name.
    UnknownService,
    /// None of its nodes may be picked.
    NoNode,
}

/// How many nodes are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The pick alone.
    One,
    /// The pick and, behind it, up to two others for retries.
    WithAlternatives,
}

/// The catalog's copy, and a selector for each service that was asked for.
///
/// A selector is built with the first pick after its service changed, not with the change: then a worker pays only for
/// the services whose requests it sees, and a burst of changes costs one build instead of many. Either way the work is
/// done by the same thread, so building early would not make anything faster for a request.
#[derive(Debug)]
pub struct Services {
    replica: Replica,
    selectors: HashMap<Box<str>, Selector>,
    seeds: Rng,
}

impl Services {
    /// Starts from `replica`. The seed decides where each selector begins, so that workers do not march in step.
    pub fn new(replica: Replica, seed: u64) -> Self {
        Self { replica, selectors: HashMap::new(), seeds: Rng::with_seed(seed) }
    }

    /// The catalog's copy.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// A new stream begins: versions of the old one no longer count.
    pub fn stream_restarted(&mut self) {
        self.replica.stream_restarted();
    }

    /// A message of the stream could not be read.
    pub fn message_lost(&mut self) {
        self.replica.message_lost();
    }

    /// Applies a message of the stream.
    ///
    /// # Errors
    /// As [`Replica::apply`]; selectors stay as they are until the copy is right again.
    pub fn apply(&mut self, message: Kind) -> Result<Applied, WireError> {
        let applied = self.replica.apply(message)?;
        if let Applied::Changed { services, .. } = &applied {
            for service in services {
                self.selectors.remove(service);
            }
        }
        Ok(applied)
    }

    /// Picks the next node of a service and, as far as `limit` goes, others to try after it. They are written to
    /// `candidates`, which is cleared: `ip:port[,ip:port...]`.
    ///
    /// # Errors
    /// [`Miss`] if there is none.
    pub fn pick(&mut self, service: &str, limit: Limit, candidates: &mut String) -> Result<(), Miss> {
        candidates.clear();
        match self.selectors.get_mut(service) {
            Some(selector) => selector.pick(limit, candidates),
            None => {
                let nodes = self.replica.services().get(service).ok_or(Miss::UnknownService)?;
                let mut selector = Selector::new(nodes, self.seeds.u64(..));
                selector.pick(limit, candidates);
                self.selectors.insert(service.into(), selector);
            }
        }
        if candidates.is_empty() { Err(Miss::NoNode) } else { Ok(()) }
    }
}

/// The pickable nodes of a service.
#[derive(Debug)]
struct Selector {
    scheduler: WeightedRoundRobin,
    /// Every address, one after the other: a copy, so that a pick is one look-up, and changes that are not verified yet
    /// do not touch it.
    addresses: String,
    /// Where each address ends.
    ends: Vec<u32>,
}

impl Selector {
    fn new(service: &ReplicaService, seed: u64) -> Self {
        let mut addresses = String::new();
        let mut ends = Vec::new();
        let mut weights = Vec::new();
        for node in service.nodes().iter().filter(|node| node.is_pickable()) {
            addresses.push_str(&node.address);
            ends.push(addresses.len() as u32);
            weights.push(node.weight);
        }
        Self { scheduler: WeightedRoundRobin::new(weights, seed), addresses, ends }
    }

    fn pick(&mut self, limit: Limit, candidates: &mut String) {
        let mut choices = [0; CHOICES];
        let count = match limit {
            Limit::One => match self.scheduler.pick() {
                Some(node) => {
                    choices = [node; CHOICES];
                    1
                }
                None => 0,
            },
            Limit::WithAlternatives => self.scheduler.pick_with_alternatives(&mut choices),
        };
        for address in choices.iter().take(count).filter_map(|node| self.address(*node)) {
            if !candidates.is_empty() {
                candidates.push(',');
            }
            candidates.push_str(address);
        }
    }

    fn address(&self, node: usize) -> Option<&str> {
        let start = match node.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.addresses.get(start as usize..*self.ends.get(node)? as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use waypost_catalog::{Catalog, Health, Node, ServiceName, sender};

    use super::*;

    fn node(address: &str, weight: u32) -> Node {
        Node { weight, ..Node::at(address.parse::<SocketAddr>().unwrap()) }
    }

    fn catalog(old: &Catalog, nodes: Vec<Node>) -> Catalog {
        old.updated([(ServiceName::new("web").unwrap(), nodes)]).0.unwrap()
    }

    fn services(nodes: Vec<Node>) -> (Services, Catalog) {
        let mut services = Services::new(Replica::default(), 1);
        let catalog = catalog(&Catalog::default(), nodes);
        for message in sender::full(&catalog) {
            services.apply(message.kind.unwrap()).unwrap();
        }
        (services, catalog)
    }

    fn pick(services: &mut Services, service: &str, limit: Limit) -> Result<String, Miss> {
        let mut candidates = String::from("old");
        let picked = services.pick(service, limit, &mut candidates);
        assert_eq!(picked.is_err(), candidates.is_empty());
        picked.map(|()| candidates)
    }

    fn picks(services: &mut Services, count: usize) -> HashMap<String, usize> {
        let mut seen = HashMap::new();
        for _ in 0..count {
            *seen.entry(pick(services, "web", Limit::One).unwrap()).or_default() += 1;
        }
        seen
    }

    #[test]
    fn shares_follow_the_weights_and_a_change_is_picked_up() {
        let (mut services, first) = services(vec![node("10.0.0.1:80", 1), node("[::1]:80", 3)]);
        let expected = HashMap::from([("10.0.0.1:80".into(), 100), ("[::1]:80".into(), 300)]);
        assert_eq!(picks(&mut services, 400), expected);
        let second = catalog(&first, vec![node("10.0.0.1:80", 1), node("10.0.0.2:80", 1)]);
        for message in sender::delta(&first, &second) {
            services.apply(message.kind.unwrap()).unwrap();
        }
        let expected = HashMap::from([("10.0.0.1:80".into(), 50), ("10.0.0.2:80".into(), 50)]);
        assert_eq!(picks(&mut services, 100), expected);
    }

    #[test]
    fn candidates_are_distinct_and_leave_out_what_may_not_be_picked() {
        let mut nodes: Vec<_> = (1..=5).map(|n| node(&format!("10.0.0.{n}:80"), 1)).collect();
        nodes[0].health = Health::Critical;
        nodes[1].health = Health::Draining;
        nodes[2].weight = 0;
        let (mut services, _) = services(nodes);
        let candidates = pick(&mut services, "web", Limit::WithAlternatives).unwrap();
        let mut list: Vec<_> = candidates.split(',').collect();
        list.sort_unstable();
        assert_eq!(list, ["10.0.0.4:80", "10.0.0.5:80"]);
    }

    #[test]
    fn a_service_without_a_pickable_node_and_an_unknown_one_are_told_apart() {
        let (mut services, _) = services(vec![node("10.0.0.1:80", 0)]);
        for limit in [Limit::One, Limit::WithAlternatives] {
            assert_eq!(pick(&mut services, "web", limit), Err(Miss::NoNode));
            assert_eq!(pick(&mut services, "none", limit), Err(Miss::UnknownService));
        }
    }
}
