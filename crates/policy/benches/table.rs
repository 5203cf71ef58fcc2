//! Finding the route of a request among 1,000, by each part that routes can differ in.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use waypost_policy::{RequestView, Route, RouteTable};

const ROUTES: usize = 1_000;

struct Request {
    host: &'static str,
    path: &'static str,
}

impl RequestView for Request {
    fn host(&mut self) -> Option<Vec<u8>> {
        Some(self.host.into())
    }

    fn path(&mut self) -> Option<Vec<u8>> {
        Some(self.path.into())
    }

    fn method(&mut self) -> Option<Vec<u8>> {
        Some(b"GET".to_vec())
    }

    fn header(&mut self, name: &str) -> Option<Vec<u8>> {
        (name == "x-env").then(|| b"canary".to_vec())
    }

    fn source(&mut self) -> Option<Vec<u8>> {
        None
    }
}

fn table(matching: impl Fn(usize) -> String) -> RouteTable {
    let route = |index| {
        let json = format!("{{\"order\": {index}, \"match\": {{{}}}, \"service\": \"s\"}}", matching(index));
        Route::parse(&format!("r{index}"), json.as_bytes()).expect("a good route")
    };
    RouteTable::new((0..ROUTES).map(route).collect())
}

fn find(c: &mut Criterion) {
    let mut bench = |name: &str, table: RouteTable, mut request: Request, found: bool| {
        assert_eq!(table.find(&mut request).is_some(), found, "{name}");
        c.benchmark_group("find_among_1000")
            .bench_function(name, |b| b.iter(|| table.find(black_box(&mut request)).is_some()));
    };
    let late = Request { host: "svc-900.example.com", path: "/api/v1/things-900/7?x=y" };
    let host = |index| format!("\"hosts\": [\"svc-{index}.example.com\"], \"path\": {{\"prefix\": \"/api/\"}}");
    bench("host", table(host), Request { ..late }, true);
    let wildcard = |index| format!("\"hosts\": [\"*.svc-{index}.example.com\"]");
    bench("wildcard", table(wildcard), Request { host: "a.b.svc-900.example.com:8080", ..late }, true);
    let prefix = |index| format!("\"path\": {{\"prefix\": \"/api/v1/things-{index}/\"}}");
    bench("prefix", table(prefix), Request { ..late }, true);
    let pattern = |index| format!("\"path\": {{\"pattern\": \"/api/v1/things-{index}/{{id}}\"}}");
    bench("pattern", table(pattern), Request { ..late }, true);
    bench("nothing", table(pattern), Request { path: "/other", ..late }, false);
    // Nothing to tell them apart by but what has to be tried.
    let header = |index| format!("\"headers\": {{\"x-env\": \"env-{index}\"}}");
    bench("header_all_tried", table(header), Request { ..late }, false);
}

fn build(c: &mut Criterion) {
    let host = |index| format!("\"hosts\": [\"svc-{index}.example.com\"], \"path\": {{\"prefix\": \"/api/\"}}");
    let routes = table(host).routes().to_vec();
    c.bench_function("build_1000", |b| b.iter_with_large_drop(|| RouteTable::new(routes.clone())));
}

criterion_group!(benches, find, build);
criterion_main!(benches);
