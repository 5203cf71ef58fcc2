//! One answer of the example strategies at 10 to 10,000 nodes, an instance's start, and compiling. The components are
//! those that `cargo xtask build` has made.

use std::{fs, hint::black_box, path::Path, time::Duration};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use waypost_components::{Component, Engine, Input, Latency, Limits, Locality, Node, Outcomes, Runner};

/// Python takes longer than an agent would wait, at 10,000 nodes.
const LIMITS: Limits = Limits { deadline: Duration::from_secs(20), memory: 256 << 20, component: 32 << 20 };

/// A component, if it was built.
fn bytes(name: &str) -> Vec<u8> {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "../../target".into());
    let path = Path::new(&target).join("waypost/strategies").join(format!("{name}.wasm"));
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}: run cargo xtask build", path.display()))
}

/// A question as it is in practice: zone, version, a tag, metadata and outcomes.
fn input(nodes: usize) -> Input {
    let node = |n: usize| Node {
        id: format!("host-{n}-8080"),
        address: format!("10.0.{}.{}:8080", n / 256, n % 256),
        weight: 1 + n as u32 % 4,
        zone: format!("eu-{}", n % 3),
        version: "2.1".to_owned(),
        tags: vec!["http".to_owned()],
        metadata: vec![("capacity".to_owned(), (n % 8 + 1).to_string()), ("rack".to_owned(), format!("r{n}"))],
        age_seconds: Some(3600),
        outcomes: Some(Outcomes {
            window_seconds: 10.0,
            requests: 1000,
            failures: n as u64 % 10,
            rate: 100.0,
            in_flight: 2,
            latency: Some(Latency { p50_ms: 5.0, p99_ms: 20.0 }),
        }),
        ..Node::default()
    };
    let local = Locality { zone: "eu-1".to_owned(), host: "host-a".to_owned() };
    Input { service: "web".to_owned(), nodes: (0..nodes).map(node).collect(), parameters: "{}".to_owned(), local }
}

fn answers(c: &mut Criterion, component: &Component, name: &str) {
    for nodes in [10, 1_000, 10_000] {
        let question = input(nodes);
        let mut runner = Runner::with_limits(component, LIMITS);
        runner.weigh(&question).unwrap();
        println!("{name} at {nodes} nodes: an instance holds {} KiB", runner.memory() / 1024);
        c.benchmark_group(format!("answer/{name}")).bench_function(BenchmarkId::from_parameter(nodes), |b| {
            b.iter(|| runner.weigh(black_box(&question)).unwrap());
        });
    }
}

fn strategies(c: &mut Criterion) {
    let engine = Engine::new(LIMITS).unwrap();
    for name in ["capacity", "outcomes", "capacity-python"] {
        let component = engine.compile(&bytes(name)).unwrap();
        println!("{name}: {} kB, compiled in {:.1?}", component.bytes() / 1000, component.compiled_in());
        answers(c, &component, name);
        c.benchmark_group("start").bench_function(name, |b| {
            b.iter(|| Runner::with_limits(&component, LIMITS).start().unwrap());
        });
    }
    let capacity = bytes("capacity");
    c.benchmark_group("compile").sample_size(20).bench_function("capacity", |b| {
        b.iter(|| engine.compile(black_box(&capacity)).unwrap());
    });
}

criterion_group!(benches, strategies);
criterion_main!(benches);
