//! One pick, by each strategy and with alternatives, and the rebuilding after a change, at 10 to 10,000 nodes.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use waypost_balance::{CHOICES, Picker, Strategy, WeightedRoundRobin};

fn weights(nodes: u32) -> impl Iterator<Item = u32> {
    // Uneven on purpose: equal weights would make every visit a pick.
    (0..nodes).map(|node| 1 + node * 7 % 100)
}

fn pick(c: &mut Criterion) {
    for nodes in [10, 1_000, 10_000] {
        let mut scheduler = WeightedRoundRobin::new(weights(nodes), 1);
        c.benchmark_group("pick").bench_function(BenchmarkId::from_parameter(nodes), |b| b.iter(|| scheduler.pick()));
        c.benchmark_group("pick_with_alternatives").bench_function(BenchmarkId::from_parameter(nodes), |b| {
            let mut choices = [0; CHOICES];
            b.iter(|| scheduler.pick_with_alternatives(black_box(&mut choices)));
        });
        c.benchmark_group("rebuild").bench_function(BenchmarkId::from_parameter(nodes), |b| {
            b.iter(|| WeightedRoundRobin::new(weights(black_box(nodes)), 1));
        });
    }
}

fn strategies(c: &mut Criterion) {
    for strategy in Strategy::PLAIN {
        for nodes in [10, 1_000, 10_000] {
            let picker = Picker::new(strategy, weights(nodes), 1);
            let mut random = fastrand::Rng::with_seed(1);
            c.benchmark_group(format!("shared_pick/{strategy}"))
                .bench_function(BenchmarkId::from_parameter(nodes), |b| b.iter(|| picker.pick(random.u64(..))));
            c.benchmark_group(format!("shared_rebuild/{strategy}")).bench_function(
                BenchmarkId::from_parameter(nodes),
                |b| {
                    b.iter(|| Picker::new(strategy, weights(black_box(nodes)), 1));
                },
            );
        }
    }
}

criterion_group!(benches, pick, strategies);
criterion_main!(benches);
