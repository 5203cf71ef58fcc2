//! Consistent hashing: shares, what a change moves, the bound on load, and that no pick waits for a table.

use std::time::Duration;

use proptest::prelude::*;
use waypost_balance::{Algorithm, Ask, CHOICES, Health, NodeView, Outcome, Pool, Selector, Settings, Slot};

const TABLE: u32 = 65_537;

struct World {
    nodes: Vec<NodeView>,
    slots: Vec<Slot>,
    pool: Pool,
    selector: Selector,
    settings: Settings,
}

fn hashing(table_size: u32, bounded_load: Option<f64>) -> Settings {
    Settings::from(Algorithm::ConsistentHash { table_size, bounded_load })
}

/// Nodes of which the keys are hashes, as a caller's are.
fn nodes(weights: &[u32], seed: u64) -> Vec<NodeView> {
    let mut random = fastrand::Rng::with_seed(seed);
    weights.iter().map(|weight| NodeView::new(random.u64(..), *weight)).collect()
}

impl World {
    fn new(nodes: Vec<NodeView>, settings: Settings) -> Self {
        let mut world =
            Self { nodes: Vec::new(), slots: Vec::new(), pool: Pool::new(), selector: Selector::default(), settings };
        world.change(nodes);
        world.selector.advance(usize::MAX);
        world
    }

    /// Without building a table.
    fn change(&mut self, nodes: Vec<NodeView>) {
        self.nodes = nodes;
        self.slots = self.pool.sync(self.nodes.iter().map(|node| node.key), Duration::ZERO);
        let previous = std::mem::take(&mut self.selector);
        self.selector = Selector::new(&self.nodes, &self.slots, &self.pool, &self.settings, 1, true, Some(previous));
    }

    fn choose(&mut self, hash: u64) -> Vec<usize> {
        let mut choices = [0; CHOICES];
        let ask = Ask { hash: Some(hash), random: hash ^ 0x5555, ..Ask::default() };
        let count = self.selector.choose(&self.pool, &ask, &mut choices);
        choices[..count].to_vec()
    }

    /// The key of the node that a hash belongs to.
    fn owner(&mut self, hash: u64) -> u64 {
        let first = self.choose(hash)[0];
        self.nodes[first].key
    }

    fn owners(&mut self, count: u64) -> Vec<u64> {
        (0..count).map(|hash| self.owner(hash)).collect()
    }
}

/// What part of the keys moved, and what part of them had or have a node of these: they had to.
fn moved(before: &[u64], after: &[u64], changed: &[u64]) -> (f64, f64) {
    let pairs = || before.iter().zip(after).filter(|(before, after)| before != after);
    let had_to = pairs().filter(|(before, after)| changed.contains(before) || changed.contains(after)).count();
    (pairs().count() as f64 / before.len() as f64, had_to as f64 / before.len() as f64)
}

#[test]
fn the_same_key_goes_to_the_same_node_in_every_worker_and_whatever_order_nodes_come_in() {
    let nodes = nodes(&[1, 2, 3, 4, 5, 6], 1);
    let mut first = World::new(nodes.clone(), hashing(TABLE, None));
    let mut second = World::new(nodes.into_iter().rev().collect(), hashing(TABLE, None));
    assert_eq!(first.owners(5_000), second.owners(5_000));
}

#[test]
fn a_node_that_leaves_or_joins_moves_little_but_its_own_keys() {
    for (count, others) in [(10u32, 0.01), (100, 0.02), (1_000, 0.05)] {
        let weights: Vec<u32> = (0..count).map(|node| 1 + node % 3).collect();
        let all = nodes(&weights, 2);
        let mut world = World::new(all.clone(), hashing(TABLE, None));
        let with = world.owners(50_000);
        let gone = all[count as usize / 2];
        world.change(all.iter().copied().filter(|node| node.key != gone.key).collect());
        world.selector.advance(usize::MAX);
        let without = world.owners(50_000);
        let (moved, had_to) = moved(&with, &without, &[gone.key]);
        println!("{count}: {moved} moved, of which {had_to} had to");
        assert!(moved - had_to <= others, "{count}: {moved} moved, of which {had_to} had to");
        // The way back is the same.
        world.change(all);
        world.selector.advance(usize::MAX);
        assert_eq!(world.owners(50_000), with);
    }
}

#[test]
fn a_node_that_fails_moves_its_own_keys_and_no_others_and_they_come_back() {
    let all = nodes(&[3; 50], 3);
    let mut world = World::new(all.clone(), hashing(TABLE, None));
    let healthy = world.owners(20_000);
    let mut sick = all.clone();
    sick[7].health = Health::Critical;
    world.change(sick);
    assert!(!world.selector.is_building(), "the table holds it still");
    let without = world.owners(20_000);
    let (moved, had_to) = moved(&healthy, &without, &[all[7].key]);
    assert!(moved == had_to && (moved - 0.02).abs() < 0.005, "{moved}, {had_to}");
    assert!(!without.contains(&all[7].key));
    world.change(all);
    assert_eq!(world.owners(20_000), healthy);
}

#[test]
fn the_old_table_serves_without_those_who_are_gone_until_the_new_one_is_done() {
    let all = nodes(&[1; 20], 4);
    let mut world = World::new(all[..10].to_vec(), hashing(TABLE, None));
    let before = world.owners(5_000);
    world.change(all[5..15].to_vec());
    let mut slices = 0;
    let mut between = Vec::new();
    while world.selector.is_building() {
        between = world.owners(5_000);
        assert!(between.iter().all(|owner| world.nodes[..5].iter().any(|node| node.key == *owner)));
        world.selector.advance(10_000);
        slices += 1;
    }
    assert!(slices > 20, "{slices}");
    for (before, between) in before.iter().zip(&between) {
        assert!(before == between || all[..5].iter().any(|node| node.key == *before));
    }
    let mut fresh = World::new(all[5..15].to_vec(), hashing(TABLE, None));
    assert_eq!(world.owners(5_000), fresh.owners(5_000));
}

#[test]
fn changes_that_come_faster_than_tables_are_built_do_not_keep_the_old_one_for_ever() {
    let mut all = nodes(&[1; 20], 5);
    let mut world = World::new(all.clone(), hashing(TABLE, None));
    all.extend(nodes(&[1; 20], 6));
    let newest = all[39].key;
    let mut served = false;
    for change in 0..100 {
        all[0].weight = 2 + change % 2;
        world.change(all.clone());
        world.selector.advance(100_000);
        served |= world.owners(1_000).contains(&newest);
    }
    assert!(served);
}

#[test]
fn before_the_first_table_keys_are_spread_by_weight_and_stay_where_they_are() {
    let mut world = World::new(Vec::new(), hashing(TABLE, Some(1.25)));
    assert_eq!(world.choose(1), [0; 0]);
    world.change(nodes(&[1, 3], 7));
    assert!(world.selector.is_building());
    let owners = world.owners(10_000);
    let first = owners.iter().filter(|owner| **owner == world.nodes[0].key).count();
    assert!((2_300..2_700).contains(&first), "{first}");
    assert_eq!(world.owners(10_000), owners);
}

/// How far any share of a table is from that of the weight, in places.
fn furthest(world: &World, table: f64) -> f64 {
    let total: f64 = world.nodes.iter().map(|node| f64::from(node.weight)).sum();
    let shares = world.selector.shares(None);
    let off = |(share, node): (&f64, &NodeView)| (share - f64::from(node.weight) / total).abs() * table;
    shares.iter().zip(&world.nodes).map(off).fold(0.0, f64::max)
}

#[test]
fn one_heavy_node_among_many_light_ones_is_built_in_as_few_steps_as_equal_ones() {
    let heavy: Vec<u32> = std::iter::once(u32::MAX).chain(std::iter::repeat_n(1, 9_999)).collect();
    for weights in [heavy, vec![1; 10_000], vec![u32::MAX; 10_000]] {
        let mut world = World::new(Vec::new(), hashing(TABLE, None));
        world.change(nodes(&weights, 8));
        // 20 steps for each place, in slices.
        (0..20).for_each(|_| world.selector.advance(TABLE as usize));
        assert!(!world.selector.is_building());
        assert!(furthest(&world, f64::from(TABLE)) < 2.0);
    }
}

#[test]
fn a_request_without_a_key_goes_anywhere() {
    let mut world = World::new(nodes(&[1; 10], 9), hashing(TABLE, None));
    let mut counts = [0; 10];
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..10_000 {
        let mut choices = [0; CHOICES];
        world.selector.choose(&world.pool, &Ask { random: random.u64(..), ..Ask::default() }, &mut choices);
        counts[choices[0]] += 1;
    }
    assert!(counts.iter().all(|count| (800..1_200).contains(count)), "{counts:?}");
}

#[test]
fn a_hot_key_spills_over_to_the_next_nodes_and_comes_back() {
    let mut world = World::new(nodes(&[1; 10], 10), hashing(TABLE, Some(1.25)));
    let first = world.choose(42)[0];
    let mut counts = [0; 10];
    for _ in 0..100 {
        let node = world.choose(42)[0];
        world.pool.started(world.slots[node]);
        counts[node] += 1;
    }
    assert!(counts.iter().all(|count| *count <= 13), "{counts:?}");
    for (node, count) in counts.into_iter().enumerate() {
        for _ in 0..count {
            let outcome = Outcome::success(Duration::ZERO);
            world.pool.ended(world.slots[node], outcome, Duration::ZERO, &world.settings);
        }
    }
    assert_eq!(world.choose(42)[0], first);
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(prop_oneof![1u32..10, Just(1), Just(u32::MAX), any::<u32>(), Just(0)], 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_node_has_its_share_of_the_table(weights in weights(), seed: u64, table in 1_000u32..20_000) {
        prop_assume!(weights.iter().any(|weight| *weight > 0));
        let world = World::new(nodes(&weights, seed), hashing(table, None));
        prop_assert!(!world.selector.is_building());
        let shares = world.selector.shares(None);
        prop_assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        // One place for the phase, and one for what rounding of all leaves over or lacks.
        let off = furthest(&world, f64::from(table));
        prop_assert!(off <= 3.0, "{off}");
    }

    #[test]
    fn choices_are_distinct_and_may_be_picked(weights in weights(), seed: u64, table in 0u32..3_000, bounded: bool) {
        let mut world = World::new(nodes(&weights, seed), hashing(table, bounded.then_some(1.1)));
        let pickable = weights.iter().filter(|weight| **weight > 0).count();
        for hash in 0..50 {
            let choices = world.choose(hash);
            prop_assert_eq!(choices.len(), pickable.min(CHOICES));
            let mut distinct = choices.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), choices.len());
            prop_assert!(choices.iter().all(|node| weights[*node] > 0));
            if !bounded && let Some(first) = choices.first() {
                prop_assert_eq!(world.selector.shares(Some(hash))[*first], 1.0);
            }
        }
    }

    #[test]
    fn any_change_moves_little_more_than_it_must(seed: u64, count in 5u32..100, weight in 1u32..10) {
        let weights: Vec<u32> = (0..count).map(|node| 1 + (seed as u32).wrapping_mul(node) % 10).collect();
        let all = nodes(&weights, seed);
        let mut world = World::new(all.clone(), hashing(TABLE, None));
        let before = world.owners(10_000);
        let mut changed = all;
        changed[0].weight = weight;
        changed.swap(1, 3);
        let (gone, came) = (changed.pop().unwrap(), NodeView::new(seed ^ 1, weight));
        changed.push(came);
        world.change(changed.clone());
        world.selector.advance(usize::MAX);
        let (moved, had_to) = moved(&before, &world.owners(10_000), &[gone.key, came.key, changed[0].key]);
        prop_assert!(moved - had_to <= 0.04, "{} moved, of which {} had to", moved, had_to);
    }

    #[test]
    fn no_node_gets_more_than_its_bound(
        weights in prop::collection::vec(1u32..10, 1..16),
        seed: u64,
        factor in 1.05f64..2.0,
        keys in 1u64..20,
    ) {
        let mut world = World::new(nodes(&weights, seed), hashing(4_001, Some(factor)));
        let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut under_way = Vec::new();
        for _ in 0..500 {
            // Few keys, so that load is as uneven as it can be.
            let node = world.choose(random.u64(0..keys))[0];
            world.pool.started(world.slots[node]);
            under_way.push(node);
            let mean = factor * under_way.len() as f64 * f64::from(weights[node]) / total;
            prop_assert!(f64::from(world.pool.in_flight(world.slots[node])) <= mean.ceil());
            if random.u8(..) < 100 {
                let ended = under_way.swap_remove(random.usize(..under_way.len()));
                let outcome = Outcome::success(Duration::ZERO);
                world.pool.ended(world.slots[ended], outcome, Duration::ZERO, &world.settings);
            }
        }
    }
}
