//! What a selector promises whatever the strategy, and each strategy's own promise.

use std::time::Duration;

use proptest::prelude::*;
use waypost_balance::{
    Algorithm, Ask, CHOICES, Ejection, Health, Locality, NodeView, Outcome, OutcomeKind, Pool, Selector, Settings,
    Slot, Strategy as Name,
};

const MILLI: Duration = Duration::from_millis(1);

struct World {
    nodes: Vec<NodeView>,
    slots: Vec<Slot>,
    pool: Pool,
    selector: Selector,
    settings: Settings,
    now: Duration,
    random: fastrand::Rng,
}

impl World {
    fn new(nodes: Vec<NodeView>, settings: Settings) -> Self {
        let mut pool = Pool::new();
        let slots = pool.sync(nodes.iter().map(|node| node.key), Duration::ZERO);
        let mut selector = Selector::new(&nodes, &slots, &pool, &settings, 3, true, None);
        selector.advance(usize::MAX);
        Self { nodes, slots, pool, selector, settings, now: Duration::ZERO, random: fastrand::Rng::with_seed(1) }
    }

    fn rebuild(&mut self) {
        let previous = std::mem::take(&mut self.selector);
        self.selector = Selector::new(&self.nodes, &self.slots, &self.pool, &self.settings, 4, true, Some(previous));
        self.selector.advance(usize::MAX);
    }

    fn choose_with(&mut self, ask: Ask) -> Vec<usize> {
        let mut choices = [0; CHOICES];
        let count = self.selector.choose(&self.pool, &ask, &mut choices);
        choices[..count].to_vec()
    }

    fn choose(&mut self) -> Vec<usize> {
        let (random, hash) = (self.random.u64(..), Some(self.random.u64(..)));
        self.choose_with(Ask { now: self.now, random, hash, preferred: None })
    }

    fn start(&mut self) -> usize {
        let node = self.choose()[0];
        self.pool.started(self.slots[node]);
        node
    }

    fn end(&mut self, node: usize, latency: Duration) {
        self.pool.ended(self.slots[node], Outcome::success(latency), self.now, &self.settings);
    }

    /// The parts that nodes are first choice of, without anything in flight.
    fn parts(&mut self, picks: u32) -> Vec<f64> {
        let mut counts = vec![0; self.nodes.len()];
        (0..picks).for_each(|_| counts[self.choose()[0]] += 1);
        counts.into_iter().map(|count| f64::from(count) / f64::from(picks)).collect()
    }

    /// The part of all picks that these nodes are first choice of.
    fn part_of(&mut self, nodes: std::ops::Range<usize>) -> f64 {
        const PICKS: u32 = 10_000;
        f64::from((0..PICKS).map(|_| u32::from(nodes.contains(&self.choose()[0]))).sum::<u32>()) / f64::from(PICKS)
    }
}

fn nodes(weights: &[u32]) -> Vec<NodeView> {
    let mut random = fastrand::Rng::with_seed(weights.len() as u64);
    weights.iter().map(|weight| NodeView::new(random.u64(..), *weight)).collect()
}

fn settings(name: Name) -> Settings {
    Settings::from(Algorithm::from(name))
}

fn names() -> impl Strategy<Value = Name> {
    prop::sample::select(Name::ALL.to_vec())
}

/// Any nodes at all, of few levels and zones so that each has some.
fn any_nodes() -> impl Strategy<Value = Vec<NodeView>> {
    let weight = prop_oneof![Just(0u32), Just(1), 1u32..100, Just(u32::MAX), any::<u32>()];
    let health = prop::sample::select(vec![Health::Passing, Health::Passing, Health::Critical, Health::Draining]);
    let node = (any::<u64>(), weight, 0u16..=1000, health, 0u8..3, 0u32..4);
    let node = node.prop_map(|(key, weight, warmup, health, priority, zone)| NodeView {
        key,
        weight,
        warmup,
        health,
        priority: priority * 127,
        zone,
    });
    prop::collection::vec(node, 0..30)
}

fn close(parts: &[f64], expected: &[f64], by: f64) -> bool {
    parts.len() == expected.len() && parts.iter().zip(expected).all(|(part, expected)| (part - expected).abs() <= by)
}

proptest! {
    #[test]
    fn choices_are_distinct_nodes_that_may_be_picked_and_as_many_as_there_are(
        nodes in any_nodes(),
        name in names(),
        threshold in 0u8..=100,
        zone in 0u32..4,
        outcomes_known: bool,
        seed: u64,
    ) {
        let locality = Some(Locality { zone, callers: vec![(1, 5), (2, 3)], min_nodes: 2 });
        let mut settings = Settings { locality, panic_threshold: Some(threshold), ..settings(name) };
        if let Algorithm::ConsistentHash { table_size, .. } = &mut settings.algorithm {
            *table_size = 1_009;
        }
        let mut world = World::new(nodes, settings);
        world.random.seed(seed);
        world.selector =
            Selector::new(&world.nodes, &world.slots, &world.pool, &world.settings, seed, outcomes_known, None);
        if seed.is_multiple_of(2) {
            world.selector.advance(usize::MAX);
        }
        let counts = |node: &NodeView| node.weight > 0 && node.health != Health::Draining;
        let healthy = world.nodes.iter().filter(|node| counts(node) && node.health == Health::Passing).count();
        let all = world.nodes.iter().filter(|node| counts(node)).count();
        let panicking = world.selector.is_panicking();
        for _ in 0..30 {
            let choices = world.choose();
            prop_assert!(choices.len() >= healthy.min(CHOICES) && choices.len() <= all.min(CHOICES));
            let mut distinct = choices.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), choices.len());
            for choice in choices {
                let node = &world.nodes[choice];
                prop_assert!(counts(node) && (panicking || node.health == Health::Passing), "{:?}", node);
            }
        }
        prop_assert_eq!(world.choose().is_empty(), world.selector.is_empty());
        let sum: f64 = world.selector.shares(None).iter().sum();
        prop_assert!((sum - if world.selector.is_empty() { 0.0 } else { 1.0 }).abs() < 1e-6, "{sum}");
    }

    #[test]
    fn shares_are_what_picks_come_to(nodes in any_nodes(), name in names(), zone in 0u32..4) {
        let locality = Some(Locality { zone, callers: vec![(1, 5), (2, 3)], min_nodes: 2 });
        let mut settings = Settings { locality, ..settings(name) };
        if let Algorithm::ConsistentHash { table_size, .. } = &mut settings.algorithm {
            *table_size = 1_009;
        }
        // All as good as each other, or least request and EWMA would not go by weight alone.
        let mut world = World::new(nodes, settings);
        prop_assume!(!world.selector.is_empty());
        let shares = world.selector.shares(None);
        let parts = world.parts(5_000);
        // With EWMA, equal latencies still differ by when a node became known: here they do not.
        prop_assert!(close(&parts, &shares, 0.05), "{:?}\n{:?}", parts, shares);
    }

    #[test]
    fn a_preferred_node_comes_first_if_it_may_be_picked_and_a_strange_one_is_no_node(nodes in any_nodes(), name in names()) {
        let mut world = World::new(nodes, Settings { panic_threshold: None, ..settings(name) });
        for node in 0..world.nodes.len() {
            let NodeView { key, weight, health, .. } = world.nodes[node];
            let choices = world.choose_with(Ask { random: 7, preferred: Some(key), ..Ask::default() });
            if weight > 0 && health == Health::Passing {
                prop_assert_eq!(choices[0], node);
            } else {
                prop_assert!(!choices.contains(&node));
            }
        }
        let strange = Ask { random: 9, hash: Some(3), preferred: Some(0x1234), now: Duration::ZERO };
        prop_assert_eq!(world.choose_with(strange).is_empty(), world.selector.is_empty());
    }

    #[test]
    fn nobody_starves_under_least_request_and_ewma_however_slow_it_once_was(
        weights in prop::collection::vec(1u32..10, 2..10),
        by_latency: bool,
    ) {
        let mut world = World::new(nodes(&weights), settings(if by_latency { Name::PeakEwma } else { Name::LeastRequest }));
        world.pool.started(world.slots[0]);
        world.end(0, Duration::from_secs(20));
        let mut counts = vec![0; weights.len()];
        // Two minutes, twenty requests at a time, each as long as the others.
        let mut under_way = std::collections::VecDeque::new();
        for _ in 0..24_000 {
            world.now += 5 * MILLI;
            if under_way.len() == 20 {
                let node = under_way.pop_front().unwrap();
                world.end(node, 100 * MILLI);
            }
            let node = world.start();
            counts[node] += 1;
            under_way.push_back(node);
        }
        let total: u32 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(&weights) {
            let share = f64::from(*count) / 24_000.0 / (f64::from(*weight) / f64::from(total));
            prop_assert!(share > 0.3, "{:?} of {:?}", counts, weights);
        }
    }
}

#[test]
fn a_slow_node_gets_less_under_least_request_and_ewma_and_no_less_under_round_robin() {
    let part = |name| {
        let mut world = World::new(nodes(&[1; 10]), settings(name));
        let mut under_way: Vec<(Duration, Duration, usize)> = Vec::new();
        let mut slow = 0;
        for _ in 0..20_000 {
            world.now += MILLI;
            for (_, latency, node) in under_way.extract_if(.., |(until, ..)| *until <= world.now).collect::<Vec<_>>() {
                world.end(node, latency);
            }
            let node = world.start();
            let latency = if node == 0 { 100 * MILLI } else { 10 * MILLI };
            under_way.push((world.now + latency, latency, node));
            slow += u32::from(node == 0);
        }
        f64::from(slow) / 20_000.0
    };
    let (even, least, ewma) = (part(Name::WeightedRoundRobin), part(Name::LeastRequest), part(Name::PeakEwma));
    assert!((even - 0.1).abs() < 0.001 && least < 0.04 && ewma < 0.02, "{even} {least} {ewma}");
}

#[test]
fn a_node_that_fails_fast_draws_no_requests_under_ewma() {
    let mut world = World::new(nodes(&[1; 5]), settings(Name::PeakEwma));
    let mut failing = 0;
    for _ in 0..5_000 {
        world.now += MILLI;
        let node = world.start();
        let (kind, latency) =
            if node == 0 { (OutcomeKind::ConnectFailure, MILLI / 10) } else { (OutcomeKind::Success, 5 * MILLI) };
        let outcome = Outcome { kind, latency: Some(latency) };
        world.pool.ended(world.slots[node], outcome, world.now, &world.settings);
        failing += u32::from(node == 0);
    }
    assert!(failing < 300, "{failing}");
}

#[test]
fn least_request_takes_the_one_with_less_for_its_weight_whatever_the_numbers() {
    for (weights, in_flight, expected) in [
        ([1, 1], [1, 0], 1),
        ([1, 3], [1, 2], 1),
        ([1, 3], [1, 4], 0),
        ([u32::MAX, u32::MAX - 1], [5, 4], 1),
        ([u32::MAX, u32::MAX - 1], [0, 1], 0),
    ] {
        let mut world = World::new(nodes(&weights), settings(Name::LeastRequest));
        for (slot, count) in world.slots.clone().into_iter().zip(in_flight) {
            (0..count).for_each(|_| world.pool.started(slot));
        }
        // One draw in thousands does not find the second node.
        let right = (0..1_000).filter(|_| world.choose()[0] == expected).count();
        assert!(right >= 950, "{weights:?} {in_flight:?}: {right}");
    }
    let all = Settings::from(Algorithm::LeastRequest { choices: 10 });
    let mut world = World::new(nodes(&[1; 10]), all);
    (0..9).for_each(|node| world.pool.started(world.slots[node]));
    assert!((0..100).all(|_| world.choose()[0] == 9));
}

#[test]
fn too_few_healthy_nodes_are_a_panic_in_which_all_but_draining_ones_are_picked() {
    let healths = |critical: usize| {
        let mut nodes = nodes(&[1; 12]);
        nodes[..critical].iter_mut().for_each(|node| node.health = Health::Critical);
        nodes[10].health = Health::Draining;
        nodes[11].weight = 0;
        nodes
    };
    for name in Name::ALL {
        let mut calm = World::new(healths(5), settings(name));
        assert!(!calm.selector.is_panicking());
        assert!(calm.parts(2_000)[..5].iter().all(|part| *part == 0.0), "{name}");
        let mut panic = World::new(healths(6), settings(name));
        assert!(panic.selector.is_panicking());
        let parts = panic.parts(5_000);
        assert!(parts[..10].iter().all(|part| *part > 0.05) && parts[10..] == [0.0, 0.0], "{name}: {parts:?}");
        let mut off = World::new(healths(9), Settings { panic_threshold: Some(0), ..settings(name) });
        assert_eq!((off.selector.is_panicking(), off.parts(100)[9]), (false, 1.0), "{name}");
        let mut none = World::new(healths(10), Settings { panic_threshold: None, ..settings(name) });
        assert_eq!(none.choose(), [0; 0], "{name}");
    }
}

#[test]
fn levels_spill_over_by_health_and_a_key_stays_in_its_level() {
    for name in Name::ALL {
        let mut nodes = nodes(&[1; 20]);
        nodes[10..].iter_mut().for_each(|node| node.priority = 7);
        let mut world = World::new(nodes, settings(name));
        assert_eq!(world.part_of(0..10), 1.0, "{name}");
        let before: Vec<_> =
            (0..1_000).map(|hash| world.choose_with(Ask { hash: Some(hash), ..Ask::default() })[0]).collect();
        world.nodes[..5].iter_mut().for_each(|node| node.health = Health::Critical);
        world.rebuild();
        let part = world.part_of(0..10);
        assert!((part - 0.7).abs() < 0.02, "{name}: {part}");
        if name == Name::ConsistentHash {
            let after = (0..1_000).map(|hash| world.choose_with(Ask { hash: Some(hash), ..Ask::default() })[0]);
            let moved = before.iter().zip(after).filter(|(before, after)| **before >= 5 && *before != after).count();
            assert!((100..200).contains(&moved), "30 % of the half on healthy nodes: {moved}");
        }
        world.nodes[..10].iter_mut().for_each(|node| node.health = Health::Critical);
        world.rebuild();
        assert_eq!(world.part_of(0..10), 0.0, "{name}");
        world.nodes[..10].iter_mut().for_each(|node| node.health = Health::Passing);
        world.rebuild();
        assert_eq!(world.part_of(0..10), 1.0, "{name}");
    }
}

#[test]
fn alternatives_come_from_the_same_group_first_and_then_from_others() {
    for name in Name::ALL {
        let mut nodes = nodes(&[1; 9]);
        nodes[2..].iter_mut().for_each(|node| node.priority = 1);
        nodes[3..].iter_mut().for_each(|node| node.priority = 2);
        let mut world = World::new(nodes, settings(name));
        for _ in 0..100 {
            let mut choices = world.choose();
            assert_eq!(choices[2], 2, "{name}");
            choices.sort_unstable();
            assert_eq!(choices, [0, 1, 2], "{name}");
        }
    }
}

#[test]
fn the_own_zone_comes_first_while_it_has_room_and_a_lost_one_spills_over_and_comes_back() {
    let callers = vec![(1, 50), (2, 50)];
    let locality = Some(Locality { zone: 1, callers, min_nodes: 4 });
    for name in Name::ALL {
        let mut nodes = nodes(&[1; 8]);
        nodes.iter_mut().zip([1, 1, 1, 1, 2, 2, 2, 2]).for_each(|(node, zone)| node.zone = zone);
        let settings = Settings { locality: locality.clone(), ..settings(name) };
        let mut world = World::new(nodes, settings);
        let own = |world: &mut World| {
            world.rebuild();
            world.part_of(0..4)
        };
        assert_eq!(own(&mut world), 1.0, "{name}");
        // Two of six: a third of what there is, for half of the callers.
        world.nodes[..2].iter_mut().for_each(|node| node.health = Health::Critical);
        let part = own(&mut world);
        assert!((part - 2.0 / 3.0).abs() < 0.02, "{name}: {part}");
        world.nodes[..4].iter_mut().for_each(|node| node.health = Health::Critical);
        world.settings.panic_threshold = None;
        assert_eq!(own(&mut world), 0.0, "{name}");
        world.nodes[..4].iter_mut().for_each(|node| node.health = Health::Passing);
        assert_eq!(own(&mut world), 1.0, "{name}");
    }
}

#[test]
fn strategies_that_need_outcomes_go_by_weight_alone_where_nobody_tells_any() {
    for name in [Name::LeastRequest, Name::PeakEwma] {
        let mut world = World::new(nodes(&[1, 2, 3]), settings(name));
        world.selector = Selector::new(&world.nodes, &world.slots, &world.pool, &world.settings, 1, false, None);
        assert_eq!(world.parts(6_000), [1_000.0 / 6_000.0, 2_000.0 / 6_000.0, 0.5], "{name}");
    }
}

#[test]
fn slow_start_cuts_a_share() {
    let mut nodes = nodes(&[10, 10]);
    nodes[1].warmup = 100;
    for name in [Name::WeightedRoundRobin, Name::WeightedRandom, Name::LeastRequest, Name::ConsistentHash] {
        let part = World::new(nodes.clone(), settings(name)).parts(11_000)[1];
        assert!((part - 1.0 / 11.0).abs() < 0.01, "{name}: {part}");
    }
}

#[test]
fn what_a_change_does_not_touch_goes_on_where_it_was() {
    let mut world = World::new(nodes(&[1, 2, 3]), settings(Name::WeightedRoundRobin));
    let mut other = World::new(nodes(&[1, 2, 3]), settings(Name::WeightedRoundRobin));
    for _ in 0..500 {
        world.rebuild();
        assert_eq!(world.choose()[0], other.choose()[0]);
    }
}

#[test]
fn an_ejected_node_leaves_no_trace_once_the_selector_is_rebuilt() {
    let ejection = Some(Ejection { consecutive_failures: Some(1), max_share: 100, ..Ejection::default() });
    for name in Name::ALL {
        let mut world = World::new(nodes(&[1; 4]), Settings { ejection, ..settings(name) });
        let failed = Outcome { kind: OutcomeKind::Reset, latency: None };
        world.pool.started(world.slots[2]);
        assert!(world.pool.ended(world.slots[2], failed, world.now, &world.settings), "{name}");
        world.rebuild();
        assert!((0..200).all(|_| !world.choose().contains(&2)), "{name}");
        assert_eq!(world.selector.shares(None)[2], 0.0, "{name}");
    }
}
