//! A choice with its alternatives by every strategy, and what a change of one node costs, at 10 to 10,000 nodes.

use std::{hint::black_box, time::Duration};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use waypost_balance::{
    Algorithm, Ask, CHOICES, Ejection, NodeView, Outcome, OutcomeKind, Pool, Selector, Settings, Slot, Strategy,
};

const NODES: [u32; 4] = [10, 100, 1_000, 10_000];

fn algorithms() -> impl Iterator<Item = (String, Algorithm)> {
    let named = |strategy: Strategy| (strategy.to_string(), Algorithm::from(strategy));
    let bounded = Algorithm::ConsistentHash { table_size: 65_537, bounded_load: Some(1.25) };
    let many = Algorithm::LeastRequest { choices: 10 };
    Strategy::ALL
        .into_iter()
        .map(named)
        .chain([("consistent-hash-bounded".into(), bounded), ("least-request-of-10".into(), many)])
}

struct World {
    nodes: Vec<NodeView>,
    slots: Vec<Slot>,
    pool: Pool,
    settings: Settings,
    selector: Selector,
}

impl World {
    fn new(count: u32, algorithm: Algorithm) -> Self {
        let mut random = fastrand::Rng::with_seed(1);
        let settings = Settings { ejection: Some(Ejection::default()), ..Settings::from(algorithm) };
        let node = |number: u32| NodeView::new(random.u64(..), 1 + number * 7 % 100);
        let nodes: Vec<NodeView> = (0..count).map(node).collect();
        let mut pool = Pool::new();
        let slots = pool.sync(nodes.iter().map(|node| node.key), Duration::ZERO);
        for slot in &slots {
            (0..random.u32(0..4)).for_each(|_| pool.started(*slot));
            pool.started(*slot);
            let outcome = Outcome::success(Duration::from_micros(random.u64(500..5_000)));
            pool.ended(*slot, outcome, Duration::from_millis(random.u64(0..1_000)), &settings);
        }
        let mut selector = Selector::new(&nodes, &slots, &pool, &settings, 1, true, None);
        selector.advance(usize::MAX);
        Self { nodes, slots, pool, settings, selector }
    }
}

fn ask(random: &mut fastrand::Rng) -> Ask {
    let hash = Some(random.u64(..));
    Ask { now: Duration::from_secs(2), random: random.u64(..), hash, preferred: None }
}

fn choose(c: &mut Criterion) {
    for (name, algorithm) in algorithms() {
        for count in NODES {
            let World { pool, mut selector, .. } = World::new(count, algorithm);
            let mut random = fastrand::Rng::with_seed(1);
            c.benchmark_group(format!("choose/{name}")).bench_function(BenchmarkId::from_parameter(count), |b| {
                let mut choices = [0; CHOICES];
                b.iter(|| selector.choose(&pool, &ask(&mut random), black_box(&mut choices)));
            });
        }
    }
}

/// A whole request: choice, start and end.
fn request(c: &mut Criterion) {
    for (name, algorithm) in algorithms() {
        for count in NODES {
            let World { slots, mut pool, settings, mut selector, .. } = World::new(count, algorithm);
            let mut random = fastrand::Rng::with_seed(1);
            c.benchmark_group(format!("request/{name}")).bench_function(BenchmarkId::from_parameter(count), |b| {
                let mut choices = [0; CHOICES];
                b.iter(|| {
                    let ask = ask(&mut random);
                    selector.choose(&pool, &ask, &mut choices);
                    let slot = slots[choices[0]];
                    pool.started(slot);
                    let outcome = Outcome { kind: OutcomeKind::Success, latency: Some(Duration::from_millis(1)) };
                    pool.ended(slot, outcome, ask.now, &settings)
                });
            });
        }
    }
}

/// Another weight for one node; for hashing without the table, which is built off the pick.
fn rebuild(c: &mut Criterion) {
    for (name, algorithm) in algorithms() {
        for count in NODES {
            let World { mut nodes, slots, pool, settings, selector } = World::new(count, algorithm);
            nodes[count as usize / 2].weight += 1;
            c.benchmark_group(format!("rebuild/{name}")).bench_function(BenchmarkId::from_parameter(count), |b| {
                let again = |previous| Selector::new(&nodes, &slots, &pool, &settings, 2, true, Some(previous));
                b.iter_batched(|| selector.clone(), again, BatchSize::LargeInput);
            });
        }
    }
}

/// What of a change does not depend on the strategy: nodes come and go in the pool.
fn sync(c: &mut Criterion) {
    for count in NODES {
        let World { mut nodes, mut pool, .. } = World::new(count, Algorithm::default());
        let mut random = fastrand::Rng::with_seed(3);
        c.benchmark_group("sync").bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| {
                nodes[count as usize / 2].key = random.u64(..);
                pool.sync(nodes.iter().map(|node| node.key), Duration::ZERO)
            });
        });
    }
}

/// A whole table for hashing, as it is built in slices off the pick.
fn table(c: &mut Criterion) {
    for count in NODES {
        let algorithm = Algorithm::ConsistentHash { table_size: 65_537, bounded_load: None };
        let World { nodes, slots, pool, settings, .. } = World::new(count, algorithm);
        c.benchmark_group("table").bench_function(BenchmarkId::from_parameter(count), |b| {
            let begun = || Selector::new(&nodes, &slots, &pool, &settings, 1, true, None);
            let build = |mut selector: Selector| {
                selector.advance(usize::MAX);
                selector
            };
            b.iter_batched(begun, build, BatchSize::LargeInput);
        });
    }
}

criterion_group!(benches, choose, request, rebuild, sync, table);
criterion_main!(benches);
