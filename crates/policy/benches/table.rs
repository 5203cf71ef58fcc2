//! Finding the route of a request among 1,000, by each part that routes can differ in. Each request is another one than
//! that before, as requests are: a processor that is asked the same again and again learns the answer.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use waypost_policy::{RequestView, Route, RouteTable};

const ROUTES: usize = 1_000;

#[derive(Clone)]
struct Request {
    host: String,
    path: String,
}

impl RequestView for Request {
    fn host(&mut self) -> Option<Vec<u8>> {
        Some(self.host.as_bytes().into())
    }

    fn path(&mut self) -> Option<Vec<u8>> {
        Some(self.path.as_bytes().into())
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
    let mut bench = |name: &str, table: RouteTable, request: &dyn Fn(usize) -> Request, found: bool| {
        // In an order in which neighbours have nothing to do with one another.
        let mut requests: Vec<Request> = (0..ROUTES).map(|index| request(index * 617 % ROUTES)).collect();
        assert!(requests.iter_mut().all(|request| table.find(request).is_some() == found), "{name}");
        let mut next = 0;
        c.benchmark_group("find_among_1000").bench_function(name, |b| {
            b.iter(|| {
                next = (next + 1) % ROUTES;
                table.find(black_box(&mut requests[next])).is_some()
            });
        });
    };
    let plain =
        |index| Request { host: format!("svc-{index}.example.com"), path: format!("/api/v1/things-{index}/7?x=y") };
    let host = |index| format!("\"hosts\": [\"svc-{index}.example.com\"], \"path\": {{\"prefix\": \"/api/\"}}");
    bench("host", table(host), &plain, true);
    let wildcard = |index| format!("\"hosts\": [\"*.svc-{index}.example.com\"]");
    let below = |index| Request { host: format!("a.b.svc-{index}.example.com:8080"), ..plain(index) };
    bench("wildcard", table(wildcard), &below, true);
    let prefix = |index| format!("\"path\": {{\"prefix\": \"/api/v1/things-{index}/\"}}");
    bench("prefix", table(prefix), &plain, true);
    let pattern = |index| format!("\"path\": {{\"pattern\": \"/api/v1/things-{index}/{{id}}\"}}");
    bench("pattern", table(pattern), &plain, true);
    bench("nothing", table(pattern), &|index| Request { path: format!("/other/{index}"), ..plain(index) }, false);
    // Nothing tells them apart but what has to be tried.
    let header = |index| format!("\"headers\": {{\"x-env\": \"env-{index}\"}}");
    bench("header_all_tried", table(header), &plain, false);
}

fn build(c: &mut Criterion) {
    let host = |index| format!("\"hosts\": [\"svc-{index}.example.com\"], \"path\": {{\"prefix\": \"/api/\"}}");
    let routes = table(host).routes().to_vec();
    c.bench_function("build_1000", |b| b.iter_with_large_drop(|| RouteTable::new(routes.clone())));
}

criterion_group!(benches, find, build);
criterion_main!(benches);
