//! Mass loss: when too many of a service's nodes vanish at once, they are kept for a while.
//!
//! That etcd holds nothing for a service seldom means that nothing runs. A lost quorum, a wiped disk, a wrong
//! `etcdctl del --prefix` or agents cut off from etcd make keys vanish while the processes go on serving. So:
//!
//! * Only the loss of a node that could be picked counts: what drained or was critical was on its way out.
//! * An instance that is there at another address has moved: its old address is no loss, and nothing runs there. That
//!   holds for names that one node has only; elsewhere a process id may be the name, the same for every node.
//! * Losses within `window` add up: leases seldom end in the same instant.
//! * If the service is emptied, or more than `max_loss` of its nodes went, all of these losses are held for `grace`.
//! * A node that comes back is used as it comes; one that does not goes when its grace has ended.
//! * A node that is new takes the place of a lost one, the longest gone first: it was replaced, not cut off.
//!
//! Pure: the time is passed in.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use waypost_catalog::{Node, ServiceName};

/// When to keep, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GuardOptions {
    /// Largest share (0 to 1) of a service's nodes that may go within `window`. At 1 only an emptied service is held.
    pub max_loss: f64,
    /// How long vanished nodes are kept; zero keeps none.
    pub grace: Duration,
    /// Losses within it add up.
    pub window: Duration,
}

impl Default for GuardOptions {
    fn default() -> Self {
        Self { max_loss: 0.5, grace: Duration::from_secs(30), window: Duration::from_secs(10) }
    }
}

/// Nobody waits longer, whatever was chosen.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// A node that vanished.
#[derive(Debug)]
struct Lost {
    node: Arc<Node>,
    at: Instant,
    held_until: Option<Instant>,
}

/// A node that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldNode {
    /// Its service.
    pub service: ServiceName,
    /// Where it was.
    pub address: SocketAddr,
    /// When it is let go of.
    pub until: Instant,
}

/// Keeps nodes that vanish in a mass. One guard serves all services; each is judged by itself.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::{sync::Arc, time::{Duration, Instant}};
/// use waypost_catalog::{Node, ServiceName};
/// use waypost_registry::{Guard, GuardOptions};
///
/// let mut guard = Guard::new(GuardOptions { grace: Duration::from_secs(30), ..GuardOptions::default() });
/// let (web, now) = (ServiceName::new("web")?, Instant::now());
/// let nodes = ["10.0.0.5:80".parse()?, "10.0.0.6:80".parse()?].map(|address| Arc::new(Node::at(address)));
/// assert_eq!(guard.apply(&web, nodes.to_vec(), now).len(), 2);
///
/// // The service is emptied at once: its nodes are kept.
/// assert_eq!(guard.apply(&web, vec![], now + Duration::from_secs(1)).len(), 2);
/// // After the grace they go, unless they came back.
/// let later = now + Duration::from_secs(32);
/// assert_eq!(guard.expire(later), [web.clone()]);
/// assert_eq!(guard.apply(&web, vec![], later).len(), 0);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Guard {
    options: GuardOptions,
    /// The nodes that could be picked when the service was last applied.
    present: HashMap<ServiceName, HashMap<SocketAddr, Arc<Node>>>,
    /// What vanished within the window, or is held. No empty maps.
    lost: BTreeMap<ServiceName, BTreeMap<SocketAddr, Lost>>,
    holds: u64,
}

impl Guard {
    /// A guard that knows nothing yet.
    pub fn new(mut options: GuardOptions) -> Self {
        options.grace = options.grace.min(LONGEST);
        options.window = options.window.min(LONGEST);
        Self { options, present: HashMap::new(), lost: BTreeMap::new(), holds: 0 }
    }

    /// A service's nodes as they are to be used: those given, and those held.
    pub fn apply(&mut self, service: &ServiceName, mut nodes: Vec<Arc<Node>>, now: Instant) -> Vec<Arc<Node>> {
        let addresses: HashSet<SocketAddr> = nodes.iter().map(|node| node.address).collect();
        let names = Names::of(&nodes);
        let mut lost = self.lost.remove(service).unwrap_or_default();
        let before = self.present.remove(service).unwrap_or_default();
        let names_before = Names::of(before.values().chain(lost.values().map(|lost| &lost.node)));
        let gone = |node: &Node| {
            let moved = names.once(&node.id) && names_before.once(&node.id);
            !addresses.contains(&node.address) && !moved
        };
        let pickable = || nodes.iter().filter(|node| node.is_pickable());
        let is_new = |node: &&Arc<Node>| {
            !before.contains_key(&node.address) && !lost.contains_key(&node.address) && !names_before.any(&node.id)
        };
        let newcomers = pickable().filter(is_new).count();
        let present: HashMap<_, _> = pickable().map(|node| (node.address, Arc::clone(node))).collect();

        let still_lost =
            |lost: &Lost| gone(&lost.node) && now < lost.held_until.unwrap_or(lost.at + self.options.window);
        let kept: HashSet<SocketAddr> =
            lost.iter().filter(|(_, lost)| still_lost(lost)).map(|(address, _)| *address).collect();
        let vanished: Vec<_> = before.values().filter(|node| gone(node)).cloned().collect();
        let any_vanished = !vanished.is_empty();
        lost.retain(|address, _| kept.contains(address));
        for node in vanished {
            lost.insert(node.address, Lost { node, at: now, held_until: None });
        }
        let mut replaced: Vec<(Instant, SocketAddr)> = lost.iter().map(|(address, lost)| (lost.at, *address)).collect();
        replaced.sort_unstable();
        for (_, address) in replaced.into_iter().take(newcomers) {
            lost.remove(&address);
        }
        if any_vanished && self.is_mass_loss(lost.len(), present.len()) {
            self.holds += 1;
            let until = now + self.options.grace;
            for lost in lost.values_mut() {
                lost.held_until.get_or_insert(until);
            }
            tracing::warn!(
                service = service.as_str(),
                lost = lost.len(),
                left = present.len(),
                grace = ?self.options.grace,
                "too many nodes vanished at once: they are kept for a while",
            );
        }

        nodes.extend(lost.values().filter(|lost| lost.held_until.is_some()).map(|lost| lost.node.clone()));
        if !present.is_empty() {
            self.present.insert(service.clone(), present);
        }
        if !lost.is_empty() {
            self.lost.insert(service.clone(), lost);
        }
        nodes
    }

    fn is_mass_loss(&self, lost: usize, left: usize) -> bool {
        let share = lost as f64 / (lost + left).max(1) as f64;
        lost > 0 && !self.options.grace.is_zero() && (left == 0 || share > self.options.max_loss)
    }

    /// Goes on holding a node that another guard held, as before a restart: until then, and for a whole grace at most.
    pub fn hold(&mut self, service: &ServiceName, node: Arc<Node>, until: Instant, now: Instant) {
        let until = until.min(now + self.options.grace);
        if let Some(present) = self.present.get_mut(service) {
            present.remove(&node.address);
            if present.is_empty() {
                self.present.remove(service);
            }
        }
        let at = until.checked_sub(self.options.grace).unwrap_or(until);
        let lost = self.lost.entry(service.clone()).or_default();
        lost.insert(node.address, Lost { node, at, held_until: Some(until) });
    }

    /// Every node that is held.
    pub fn held(&self) -> impl Iterator<Item = HeldNode> {
        self.lost.iter().flat_map(|(service, lost)| {
            let held = lost.iter().filter_map(|(address, lost)| Some((*address, lost.held_until?)));
            held.map(|(address, until)| HeldNode { service: service.clone(), address, until })
        })
    }

    /// When [`Self::expire`] is next due.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.held_lost().filter_map(|lost| lost.held_until).min()
    }

    /// Lets go of what was held long enough; these services are to be applied again.
    pub fn expire(&mut self, now: Instant) -> Vec<ServiceName> {
        let mut changed = Vec::new();
        self.lost.retain(|service, lost| {
            let before = lost.len();
            lost.retain(|_, lost| lost.held_until.is_none_or(|until| now < until));
            if lost.len() < before {
                changed.push(service.clone());
            }
            !lost.is_empty()
        });
        changed
    }

    /// Nodes that are held now.
    pub fn held_nodes(&self) -> usize {
        self.held_lost().count()
    }

    /// How often a mass loss was met.
    pub fn holds_total(&self) -> u64 {
        self.holds
    }

    fn held_lost(&self) -> impl Iterator<Item = &Lost> {
        self.lost.values().flat_map(BTreeMap::values).filter(|lost| lost.held_until.is_some())
    }
}

/// How many nodes have each name.
struct Names<'a>(HashMap<&'a str, usize>);

impl<'a> Names<'a> {
    fn of(nodes: impl IntoIterator<Item = &'a Arc<Node>>) -> Self {
        let mut names = HashMap::new();
        for node in nodes.into_iter().filter(|node| !node.id.is_empty()) {
            *names.entry(node.id.as_str()).or_default() += 1;
        }
        Self(names)
    }

    fn any(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn once(&self, name: &str) -> bool {
        self.0.get(name) == Some(&1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use waypost_catalog::Health;

    use super::*;

    fn node(number: u16) -> Node {
        Node::at(SocketAddr::from(([10, 0, 0, 1], number)))
    }

    fn nodes(numbers: impl IntoIterator<Item = u16>) -> Vec<Node> {
        numbers.into_iter().map(node).collect()
    }

    fn ports(nodes: &[Arc<Node>]) -> Vec<u16> {
        let mut ports: Vec<u16> = nodes.iter().map(|node| node.address.port()).collect();
        ports.sort_unstable();
        ports
    }

    struct Bench {
        guard: Guard,
        service: ServiceName,
        start: Instant,
    }

    impl Bench {
        fn new(options: GuardOptions) -> Self {
            let service = ServiceName::new("orders").unwrap();
            Self { guard: Guard::new(options), service, start: Instant::now() }
        }

        fn at(&mut self, seconds: u64, nodes: Vec<Node>) -> Vec<u16> {
            let now = self.start + Duration::from_secs(seconds);
            ports(&self.guard.apply(&self.service, nodes.into_iter().map(Arc::new).collect(), now))
        }

        fn expire(&mut self, seconds: u64) -> Vec<ServiceName> {
            self.guard.expire(self.start + Duration::from_secs(seconds))
        }
    }

    #[test]
    fn an_emptied_service_keeps_its_nodes_for_the_grace_period() {
        let mut bench = Bench::new(GuardOptions::default());
        assert_eq!(bench.at(0, nodes(1..=4)), [1, 2, 3, 4]);
        assert_eq!(bench.at(1, vec![]), [1, 2, 3, 4]);
        assert_eq!((bench.guard.held_nodes(), bench.guard.holds_total()), (4, 1));
        assert_eq!(bench.guard.next_deadline(), Some(bench.start + Duration::from_secs(31)));
        assert!(bench.expire(30).is_empty());
        assert_eq!(bench.expire(31), [bench.service.clone()]);
        assert!(bench.at(31, vec![]).is_empty());
        assert_eq!((bench.guard.held_nodes(), bench.guard.next_deadline()), (0, None));
        assert!(bench.guard.lost.is_empty() && bench.guard.present.is_empty());
    }

    #[test]
    fn an_instance_that_moved_to_another_address_is_no_loss_and_replaces_what_was_held_of_it() {
        let named = |port: u16, id: &str| Node { id: id.into(), ..node(port) };
        let mut bench = Bench::new(GuardOptions::default());
        assert_eq!(bench.at(0, vec![named(1, "a"), named(2, "b")]), [1, 2]);
        assert_eq!(bench.at(1, vec![named(3, "a"), named(4, "b")]), [3, 4]);
        assert_eq!(bench.at(2, vec![]), [3, 4]);
        assert_eq!(bench.at(3, vec![named(5, "a")]), [4, 5]);
        assert_eq!(bench.guard.held_nodes(), 1);
    }

    #[test]
    fn nodes_that_share_a_name_have_not_moved_when_one_of_them_is_left() {
        let named = |port: u16| Node { id: "1".into(), ..node(port) };
        let mut bench = Bench::new(GuardOptions::default());
        bench.at(0, (1..=4).map(named).collect());
        assert_eq!(bench.at(1, vec![named(4)]), [1, 2, 3, 4]);
    }

    #[test]
    fn a_node_that_is_new_takes_the_place_of_a_lost_one() {
        let mut bench = Bench::new(GuardOptions::default());
        bench.at(0, nodes([1]));
        assert_eq!(bench.at(1, vec![]), [1]);
        assert_eq!(bench.at(4, nodes([2])), [2]);
        assert_eq!(bench.guard.held_nodes(), 0);
        // All at once: what a copy from yesterday meets.
        assert_eq!(bench.at(5, nodes(3..=9)), [3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(bench.at(6, nodes(10..=16)).len(), 7);
    }

    #[test]
    fn what_another_guard_held_is_held_on_until_then_and_is_no_loss_of_its_own() {
        let mut bench = Bench::new(GuardOptions::default());
        bench.at(0, nodes([1, 2, 3]));
        let until = bench.start + Duration::from_secs(12);
        for number in [1, 2] {
            bench.guard.hold(&bench.service, node(number).into(), until, bench.start);
        }
        assert_eq!(bench.at(1, nodes([3])), [1, 2, 3]);
        assert_eq!((bench.guard.holds_total(), bench.guard.next_deadline()), (0, Some(until)));
        assert!(bench.expire(11).is_empty());
        assert_eq!(bench.expire(12).len(), 1);
        assert_eq!(bench.at(12, nodes([3])), [3]);

        // However far ahead that was said to be.
        let far = bench.start + Duration::from_secs(3600);
        bench.guard.hold(&bench.service, node(1).into(), far, bench.start + Duration::from_secs(20));
        assert_eq!(bench.guard.held().map(|held| held.until).max(), Some(bench.start + Duration::from_secs(50)));
        assert_eq!(bench.at(21, nodes([1, 3])), [1, 3]);
        assert_eq!(bench.guard.held_nodes(), 0, "it came back");
    }

    #[test]
    fn what_is_held_is_whole_as_it_was_when_it_vanished() {
        let mut bench = Bench::new(GuardOptions::default());
        bench.at(0, nodes(1..=2).into_iter().map(|node| Node { zone: "a".into(), ..node }).collect());
        let used = bench.guard.apply(&bench.service, vec![], bench.start);
        assert_eq!(used.len(), 2);
        assert!(used.iter().all(|node| node.zone == "a"), "{used:?}");
    }

    #[test]
    fn a_loss_within_the_allowed_share_is_let_through() {
        let mut bench = Bench::new(GuardOptions::default());
        bench.at(0, nodes(1..=4));
        assert_eq!(bench.at(1, nodes(3..=4)), [3, 4]);
        assert_eq!(bench.guard.held_nodes(), 0);
    }

    #[test]
    fn losses_within_the_window_add_up_and_all_of_them_are_held() {
        let mut bench = Bench::new(GuardOptions::default());
        bench.at(0, nodes(1..=4));
        assert_eq!(bench.at(1, nodes(2..=4)), [2, 3, 4]);
        assert_eq!(bench.at(2, nodes(3..=4)), [3, 4]);
        assert_eq!(bench.at(3, nodes(4..=4)), [1, 2, 3, 4]);
    }

    #[test]
    fn losses_further_apart_than_the_window_do_not_add_up() {
        let mut bench = Bench::new(GuardOptions::default());
        bench.at(0, nodes(1..=4));
        assert_eq!(bench.at(1, nodes(2..=4)), [2, 3, 4]);
        assert_eq!(bench.at(12, nodes(3..=4)), [3, 4]);
        assert_eq!(bench.at(23, nodes(4..=4)), [4]);
    }

    #[test]
    fn a_rolling_replacement_is_no_mass_loss() {
        let mut bench = Bench::new(GuardOptions::default());
        bench.at(0, nodes(1..=4));
        for step in 1..=4 {
            bench.at(step, nodes(step as u16..=4 + step as u16));
            assert_eq!(bench.at(step, nodes(1 + step as u16..=4 + step as u16)).len(), 4);
        }
        assert_eq!(bench.guard.holds_total(), 0);
    }

    #[test]
    fn drained_and_critical_nodes_may_all_go() {
        let mut bench = Bench::new(GuardOptions::default());
        bench.at(0, nodes(1..=2));
        let mut leaving = nodes(1..=2);
        leaving[0].health = Health::Draining;
        leaving[1].health = Health::Critical;
        assert_eq!(bench.at(1, leaving), [1, 2]);
        assert!(bench.at(2, vec![]).is_empty());
    }

    #[test]
    fn a_held_node_that_comes_back_is_used_as_it_comes() {
        let mut bench = Bench::new(GuardOptions::default());
        bench.at(0, nodes(1..=2));
        bench.at(1, vec![]);
        let mut back = node(1);
        back.weight = 7;
        let now = bench.start + Duration::from_secs(2);
        let used = bench.guard.apply(&bench.service, vec![Arc::new(back)], now);
        assert_eq!(ports(&used), [1, 2]);
        assert_eq!(used.iter().find(|node| node.address.port() == 1).unwrap().weight, 7);
        assert_eq!(bench.guard.held_nodes(), 1);
    }

    #[test]
    fn what_goes_while_others_are_held_is_held_too() {
        let mut bench = Bench::new(GuardOptions::default());
        bench.at(0, nodes(1..=4));
        bench.at(1, nodes(4..=4));
        assert_eq!(bench.at(15, vec![]), [1, 2, 3, 4]);
        bench.expire(31);
        assert_eq!(bench.at(31, vec![]), [4]);
    }

    #[test]
    fn without_grace_nothing_is_held() {
        let mut bench = Bench::new(GuardOptions { grace: Duration::ZERO, ..GuardOptions::default() });
        bench.at(0, nodes(1..=4));
        assert!(bench.at(1, vec![]).is_empty());
    }

    proptest! {
        #[test]
        fn no_node_given_is_ever_missing_and_none_is_doubled(
            steps in prop::collection::vec((0u64..20, prop::collection::btree_set(1u16..12, 0..10)), 1..30)
        ) {
            let mut bench = Bench::new(GuardOptions::default());
            let mut time = 0;
            for (wait, given) in steps {
                time += wait;
                bench.expire(time);
                let used = bench.at(time, nodes(given.iter().copied()));
                prop_assert!(given.iter().all(|port| used.contains(port)));
                let mut distinct = used.clone();
                distinct.dedup();
                prop_assert_eq!(&distinct, &used);
                prop_assert_eq!(used.len(), given.len() + bench.guard.held_nodes());
            }
        }
    }
}
