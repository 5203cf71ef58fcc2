//! Picks nodes for those who ask one at a time: the selectors are kept between requests, so that the shares come out
//! right over many of them. Pure: random numbers come in.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use fastrand::Rng;
use waypost_balance::{CHOICES, Picker as Selector, Strategy};
use waypost_catalog::{Catalog, Service, ServiceName, model::NodeEntry};

use super::filter::Filter;

/// Selectors kept at once. Whoever asks for more starts all of them anew, which costs evenness for a moment.
const KEPT: usize = 1024;

/// The selectors, by what is asked for.
#[derive(Debug, Default)]
pub struct Pickers {
    kept: HashMap<(ServiceName, Strategy, Filter), Picker>,
}

#[derive(Debug)]
struct Picker {
    /// What it was made of: another one makes it anew.
    service: Arc<Service>,
    nodes: Vec<Arc<NodeEntry>>,
    selector: Selector,
}

impl Picker {
    fn new(service: &Arc<Service>, strategy: Strategy, filter: &Filter, seed: u64) -> Self {
        let taken = service.entries().values().filter(|entry| filter.takes(entry.node()));
        let nodes: Vec<_> = taken.map(Arc::clone).collect();
        let selector = Selector::new(strategy, nodes.iter().map(|entry| entry.node().weight), seed);
        Self { service: Arc::clone(service), nodes, selector }
    }

    /// A node, and some of the others, from any of them on.
    fn pick(&self, random: &mut Rng) -> Option<(Arc<NodeEntry>, Vec<Arc<NodeEntry>>)> {
        let picked = self.selector.pick(random.u64(..))?;
        let start = random.usize(..self.nodes.len());
        let ring = (start..self.nodes.len()).chain(0..start).filter(|index| *index != picked);
        let others = ring.take(CHOICES - 1).filter_map(|index| self.nodes.get(index).cloned()).collect();
        Some((self.nodes.get(picked).cloned()?, others))
    }
}

/// What was picked.
#[derive(Debug)]
pub enum Picked<N> {
    /// There is no such service.
    UnknownService,
    /// It has no node that may be picked and meets the conditions.
    Nobody,
    /// A node, and others to go to if it fails.
    Node(N, Vec<N>),
}

impl Pickers {
    /// Picks a node of a service.
    pub fn pick(
        &mut self,
        catalog: &Catalog,
        service: &str,
        strategy: Strategy,
        filter: Filter,
        random: &mut Rng,
    ) -> Picked<Arc<NodeEntry>> {
        let Some((name, service)) = catalog.services().get_key_value(service) else { return Picked::UnknownService };
        let key = (name.clone(), strategy, filter);
        if self.kept.len() >= KEPT && !self.kept.contains_key(&key) {
            self.kept.clear();
        }
        let mut anew = |filter: &Filter| Picker::new(service, strategy, filter, random.u64(..));
        let picker = match self.kept.entry(key) {
            Entry::Occupied(mut entry) => {
                if !Arc::ptr_eq(&entry.get().service, service) {
                    let made = anew(&entry.key().2);
                    entry.insert(made);
                }
                entry.into_mut()
            }
            Entry::Vacant(entry) => {
                let made = anew(&entry.key().2);
                entry.insert(made)
            }
        };
        picker.pick(random).map_or(Picked::Nobody, |(node, others)| Picked::Node(node, others))
    }
}

#[cfg(test)]
mod tests {
    use waypost_catalog::{Health, Node};

    use super::*;
    use crate::api::types::PickQuery;

    fn node(port: u16, weight: u32, zone: &str) -> Node {
        Node { weight, zone: zone.into(), ..Node::at(([10, 0, 0, 1], port).into()) }
    }

    fn catalog(nodes: Vec<Node>) -> Catalog {
        Catalog::default().updated([(ServiceName::new("web").unwrap(), nodes)]).0.unwrap()
    }

    fn filter(zone: Option<&str>) -> Filter {
        Filter::from(PickQuery { zone: zone.map(str::to_owned), ..PickQuery::default() })
    }

    fn pick(pickers: &mut Pickers, catalog: &Catalog, service: &str, zone: Option<&str>) -> Picked<Arc<NodeEntry>> {
        pickers.pick(catalog, service, Strategy::default(), filter(zone), &mut Rng::with_seed(7))
    }

    fn port(picked: Picked<Arc<NodeEntry>>) -> u16 {
        match picked {
            Picked::Node(node, _) => node.node().address.port(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn shares_come_out_right_over_requests_of_their_own() {
        let catalog = catalog(vec![node(1, 1, "a"), node(2, 2, "a"), node(3, 3, "b")]);
        let mut pickers = Pickers::default();
        let mut counts = [0; 4];
        for _ in 0..600 {
            counts[usize::from(port(pick(&mut pickers, &catalog, "web", None)))] += 1;
        }
        assert_eq!(counts, [0, 100, 200, 300]);
    }

    #[test]
    fn who_asks_with_conditions_gets_only_nodes_that_meet_them() {
        let catalog = catalog(vec![node(1, 1, "a"), node(2, 1, "b"), node(3, 0, "b")]);
        let mut pickers = Pickers::default();
        for _ in 0..5 {
            assert_eq!(port(pick(&mut pickers, &catalog, "web", Some("b"))), 2);
        }
        assert!(matches!(pick(&mut pickers, &catalog, "web", Some("c")), Picked::Nobody));
        assert!(matches!(pick(&mut pickers, &catalog, "users", None), Picked::UnknownService));
    }

    #[test]
    fn a_changed_service_is_picked_from_as_it_is_now() {
        let (old, mut pickers) = (catalog(vec![node(1, 1, "a")]), Pickers::default());
        assert_eq!(port(pick(&mut pickers, &old, "web", None)), 1);
        let draining = Node { health: Health::Draining, ..node(1, 1, "a") };
        let new = old.updated([(ServiceName::new("web").unwrap(), vec![draining, node(2, 1, "a")])]).0.unwrap();
        assert_eq!(port(pick(&mut pickers, &new, "web", None)), 2);
    }

    #[test]
    fn alternatives_are_other_nodes() {
        let catalog = catalog(vec![node(1, 5, "a"), node(2, 1, "a"), node(3, 1, "a"), node(4, 1, "a")]);
        let Picked::Node(first, others) = pick(&mut Pickers::default(), &catalog, "web", None) else { panic!() };
        let mut ports: Vec<_> = others.iter().chain([&first]).map(|entry| entry.node().address.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), CHOICES);
    }

    #[test]
    fn selectors_do_not_pile_up() {
        let catalog = catalog(vec![node(1, 1, "a")]);
        let mut pickers = Pickers::default();
        for zone in 0..3 * KEPT {
            pick(&mut pickers, &catalog, "web", Some(&zone.to_string()));
        }
        assert!(pickers.kept.len() <= KEPT);
    }
}
