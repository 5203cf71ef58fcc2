//! Passive ejection, as a pool and a selector show it to those who use them.

use std::time::Duration;

use proptest::prelude::*;
use waypost_balance::{
    Ask, CHOICES, Ejection, NodeView, Outcome, OutcomeKind, Pool, Selector, Settings, Slot, SuccessRate,
};

const SECOND: Duration = Duration::from_secs(1);

/// Nodes with a pool and a selector that is always up to date.
struct World {
    pool: Pool,
    nodes: Vec<NodeView>,
    slots: Vec<Slot>,
    selector: Selector,
    settings: Settings,
    now: Duration,
    random: fastrand::Rng,
}

impl World {
    fn new(nodes: u64, ejection: Ejection) -> Self {
        let settings = Settings { ejection: Some(ejection), panic_threshold: None, ..Settings::default() };
        let nodes: Vec<_> = (1..=nodes).map(|key| NodeView::new(key, 1)).collect();
        let mut pool = Pool::new();
        let slots = pool.sync(nodes.iter().map(|node| node.key), Duration::ZERO);
        let mut random = fastrand::Rng::with_seed(1);
        let selector = Selector::new(&nodes, &slots, &pool, &settings, random.u64(..), true, None);
        let mut world = Self { pool, nodes, slots, selector, settings, now: Duration::ZERO, random };
        world.tick();
        world
    }

    fn tick(&mut self) {
        self.pool.tick(self.now, &self.settings);
        self.rebuild();
    }

    fn rebuild(&mut self) {
        let (seed, previous) = (self.random.u64(..), std::mem::take(&mut self.selector));
        self.selector = Selector::new(&self.nodes, &self.slots, &self.pool, &self.settings, seed, true, Some(previous));
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.tick();
    }

    /// A request that begins and ends at once, on this very node.
    fn request(&mut self, node: usize, kind: OutcomeKind) {
        self.pool.started(self.slots[node]);
        self.end(node, kind);
    }

    fn end(&mut self, node: usize, kind: OutcomeKind) {
        let outcome = Outcome { kind, latency: Some(Duration::ZERO) };
        if self.pool.ended(self.slots[node], outcome, self.now, &self.settings) {
            self.rebuild();
        }
    }

    fn fail(&mut self, node: usize, times: usize) {
        (0..times).for_each(|_| self.request(node, OutcomeKind::ServerError));
    }

    fn choose(&mut self) -> Vec<usize> {
        let mut choices = [0; CHOICES];
        let ask = Ask { now: self.now, random: self.random.u64(..), ..Ask::default() };
        let count = self.selector.choose(&self.pool, &ask, &mut choices);
        choices[..count].to_vec()
    }

    fn is_picked(&mut self, node: usize) -> bool {
        (0..100).any(|_| self.choose().contains(&node))
    }

    fn out(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.pool.is_ejected(self.slots[*node])).collect()
    }
}

fn ejection() -> Ejection {
    Ejection { consecutive_failures: Some(3), max_share: 50, ..Ejection::default() }
}

#[test]
fn failures_in_a_row_eject_and_a_success_or_a_given_up_request_between_them_does_not() {
    let mut world = World::new(10, ejection());
    for kind in OutcomeKind::ALL.into_iter().filter(|kind| kind.is_failure()) {
        world.fail(0, 2);
        world.request(0, OutcomeKind::Success);
        world.request(0, OutcomeKind::Cancelled);
        assert!(world.is_picked(0), "{kind:?}");
    }
    world.fail(0, 2);
    world.request(0, OutcomeKind::Cancelled);
    let version = world.pool.version();
    world.request(0, OutcomeKind::Timeout);
    assert!(world.pool.version() > version && !world.is_picked(0));
    assert_eq!((world.out(), world.pool.ejected()), (vec![0], 1));
}

#[test]
fn failed_tries_count_too() {
    let mut world = World::new(10, ejection());
    let failed = |world: &mut World| {
        world.pool.failed_try(world.slots[4], OutcomeKind::ConnectFailure, world.now, &world.settings)
    };
    assert!(!failed(&mut world) && !failed(&mut world) && failed(&mut world));
    assert_eq!((world.out(), world.pool.in_flight(world.slots[4])), (vec![4], 0));
}

#[test]
fn when_the_time_is_up_one_request_at_a_time_probes_and_a_success_readmits() {
    let mut world = World::new(10, ejection());
    world.fail(0, 3);
    world.pass(29 * SECOND);
    assert!(!world.is_picked(0) && !world.pool.is_probing(world.slots[0]));
    world.pass(SECOND);
    assert!(world.pool.is_probing(world.slots[0]));
    let choices = world.choose();
    assert_eq!((choices[0], choices.len()), (0, CHOICES), "the probe, and others in case it fails");
    world.pool.started(world.slots[0]);
    assert!(!world.is_picked(0), "one is under way");
    world.end(0, OutcomeKind::Cancelled);
    assert_eq!(world.choose()[0], 0, "it showed nothing, so there is another one");
    world.request(0, OutcomeKind::Success);
    assert!(world.out().is_empty() && world.is_picked(0));
    world.fail(0, 2);
    assert!(world.out().is_empty(), "it starts from nothing");
}

#[test]
fn a_failed_probe_ejects_for_longer_and_the_time_is_capped() {
    let mut world = World::new(10, Ejection { max_time: 100 * SECOND, ..ejection() });
    world.fail(0, 3);
    for seconds in [30, 60, 90, 100, 100] {
        world.pass(seconds * SECOND - Duration::from_millis(1));
        assert!(!world.pool.is_probing(world.slots[0]), "{seconds}");
        world.pass(Duration::from_millis(1));
        assert!(world.pool.is_probing(world.slots[0]), "{seconds}");
        world.request(0, OutcomeKind::ServerError);
        assert!(!world.is_picked(0));
    }
    assert_eq!(world.pool.ejections(world.slots[0]), 4, "counted no further than it matters");
}

#[test]
fn intervals_without_an_ejection_forgive() {
    let mut world = World::new(10, ejection());
    world.fail(0, 3);
    world.pass(30 * SECOND);
    world.request(0, OutcomeKind::ServerError);
    world.pass(60 * SECOND);
    assert_eq!(world.pool.ejections(world.slots[0]), 2, "nothing is forgiven while it is out");
    world.request(0, OutcomeKind::Success);
    for left in [1, 0, 0] {
        world.pass(10 * SECOND);
        assert_eq!(world.pool.ejections(world.slots[0]), left);
    }
}

#[test]
fn a_request_from_before_is_no_probe() {
    let mut world = World::new(10, ejection());
    world.pool.started(world.slots[0]);
    world.fail(0, 3);
    world.pass(30 * SECOND);
    world.pool.started(world.slots[0]);
    let old = Outcome { kind: OutcomeKind::Timeout, latency: Some(30 * SECOND) };
    assert!(!world.pool.ended(world.slots[0], old, world.now, &world.settings));
    assert!(world.pool.is_probing(world.slots[0]) && !world.is_picked(0), "the probe is still under way");
    world.end(0, OutcomeKind::Success);
    assert!(world.out().is_empty());
}

#[test]
fn a_success_rate_far_below_the_others_ejects_after_the_interval() {
    let rule = SuccessRate { min_nodes: 5, min_requests: 20, stdev_factor: 1.9 };
    let mut world = World::new(10, Ejection { consecutive_failures: None, success_rate: Some(rule), ..ejection() });
    let mut interval = |rates: [u32; 10], requests: u32| {
        for (node, rate) in rates.into_iter().enumerate() {
            for request in 0..requests {
                let kind = if request * 100 < rate * requests { OutcomeKind::Success } else { OutcomeKind::Reset };
                world.request(node, kind);
            }
        }
        assert!(world.out().is_empty(), "not before the interval is over");
        world.pass(10 * SECOND);
        world.out()
    };
    // Mean 91, deviation 27: 39.7 is the threshold.
    assert_eq!(interval([100, 100, 100, 100, 100, 100, 100, 100, 100, 10], 19), [0; 0], "too few requests");
    // Mean 95.5, deviation 1.5: below 92.65.
    assert_eq!(interval([95, 95, 95, 95, 95, 95, 95, 95, 100, 95], 20), [0; 0]);
    assert_eq!(interval([100; 10], 50), [0; 0]);
    assert_eq!(interval([0; 10], 50), [0; 0], "all are equally bad");
    assert_eq!(interval([100, 100, 100, 100, 100, 100, 100, 100, 100, 10], 20), [9]);
}

#[test]
fn ejection_switched_off_lets_everyone_in_and_a_node_that_is_gone_is_forgotten() {
    let mut world = World::new(4, ejection());
    world.fail(0, 3);
    world.fail(1, 3);
    assert_eq!(world.out(), [0, 1]);
    // Node 0 leaves while a request is in flight, and comes back while it still is: it stays ejected.
    world.pool.started(world.slots[0]);
    world.pool.sync([2, 3, 4], world.now);
    assert_eq!(world.pool.ejected(), 1);
    world.slots = world.pool.sync([1, 2, 3, 4], world.now);
    assert_eq!((world.out(), world.pool.ejected()), (vec![0, 1], 2));
    // It leaves, and the request ends before it is back: it is a new one.
    world.pool.sync([2, 3, 4], world.now);
    world.end(0, OutcomeKind::ServerError);
    world.slots = world.pool.sync([1, 2, 3, 4], world.now);
    assert_eq!((world.out(), world.pool.ejected()), (vec![1], 1));
    world.settings.ejection = None;
    assert!(world.pool.tick(world.now, &world.settings));
    assert!(world.out().is_empty() && !world.pool.tick(world.now, &world.settings));
}

/// What happens to a node, or to all.
#[derive(Clone, Copy, Debug)]
enum Event {
    Ends(usize, OutcomeKind),
    Passes(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let kind = prop_oneof![
        4 => Just(OutcomeKind::ServerError),
        1 => Just(OutcomeKind::Success),
        1 => Just(OutcomeKind::Cancelled),
    ];
    let event = prop_oneof![
        8 => (0usize..6, kind).prop_map(|(node, kind)| Event::Ends(node, kind)),
        1 => (1u64..40).prop_map(Event::Passes),
    ];
    prop::collection::vec(event, 0..300)
}

/// A node by the rules as they are written down, without intervals.
#[derive(Clone, Copy, Debug, Default)]
struct Model {
    failures: u32,
    ejections: u32,
    out_until: Option<u64>,
    probing: bool,
}

proptest! {
    #[test]
    fn nodes_come_and_go_by_the_rules(events in events(), nodes in 1usize..6, max_share in 0u8..=100) {
        // No interval ends within the time of a test.
        let interval = 1_000_000 * SECOND;
        let mut world = World::new(nodes as u64, Ejection { max_share, interval, ..ejection() });
        let mut model = vec![Model::default(); nodes];
        let mut now = 0;
        for event in events {
            match event {
                Event::Ends(node, kind) if node < nodes => {
                    world.request(node, kind);
                    let out = model.iter().filter(|node| node.out_until.is_some()).count();
                    let node = &mut model[node];
                    let eject = |node: &mut Model| {
                        node.ejections += u32::from(node.ejections < 10);
                        node.out_until = Some(now + u64::from(node.ejections) * 30);
                        (node.failures, node.probing) = (0, false);
                    };
                    match (kind, node.out_until, node.probing) {
                        (OutcomeKind::Cancelled, ..) | (_, Some(_), false) => {}
                        (OutcomeKind::Success, Some(_), true) => {
                            *node = Model { ejections: node.ejections, ..Model::default() };
                        }
                        (_, Some(_), true) => eject(node),
                        (OutcomeKind::Success, None, _) => node.failures = 0,
                        (_, None, _) => {
                            node.failures += 1;
                            if node.failures == 3 {
                                node.failures = 0;
                                if out * 100 < usize::from(max_share) * nodes {
                                    eject(node);
                                }
                            }
                        }
                    }
                }
                Event::Ends(..) => {}
                Event::Passes(seconds) => {
                    world.pass(u32::try_from(seconds).unwrap() * SECOND);
                    now += seconds;
                    for node in &mut model {
                        node.probing |= node.out_until.is_some_and(|until| until <= now);
                    }
                }
            }
            let out: Vec<_> = (0..nodes).filter(|node| model[*node].out_until.is_some()).collect();
            prop_assert_eq!(world.out(), out.clone());
            prop_assert_eq!(world.pool.ejected(), out.len());
            // At most the share, and the one that was let out while it was not reached.
            prop_assert!(out.is_empty() || (out.len() - 1) * 100 < usize::from(max_share) * nodes);
            let probing = |node: &usize| model[*node].probing;
            let mut expected: Vec<_> = (0..nodes).filter(|node| !out.contains(node)).collect();
            let choices = world.choose();
            if let Some(probe) = out.iter().copied().find(probing) {
                prop_assert_eq!(choices[0], probe);
                expected.push(probe);
            }
            prop_assert_eq!(choices.len(), expected.len().min(CHOICES));
            prop_assert!(choices.iter().all(|node| expected.contains(node)));
        }
    }
}
