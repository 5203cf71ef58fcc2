//! Policies and routes as requests through the filter meet them, against a host made for the test.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use support::{Answer, End, Get, Proxy, changed, heartbeat, web};
use waypost_catalog::{
    Catalog, Change, Health, Node, Placement, Routes, ServiceName, sender,
    wire::{Report, client_message},
};
use waypost_plugin::{
    counters::Counter,
    filter::{CLUSTER, Filter, TIMEOUT},
};
use waypost_policy::{Compiled, Policy};

const ROUTES: &str = r#"{"service":{"from":"routes"}}"#;

fn node(last: u8) -> Node {
    Node::at(SocketAddr::from(([10, 0, 0, last], 80)))
}

fn address(last: u8) -> String {
    format!("10.0.0.{last}:80")
}

fn with_policy(old: &Catalog, nodes: Vec<Node>, policy: &str) -> Catalog {
    let policy = Policy::parse(policy.as_bytes()).unwrap();
    let policy = Compiled::new(policy, "eu-1".into(), []).to_json().into();
    old.changed([Change { service: ServiceName::new("web").unwrap(), nodes, policy }], None).0.unwrap()
}

fn with_routes(old: &Catalog, routes: &[(&str, &str)]) -> Catalog {
    let routes = routes.iter().map(|(id, json)| ((*id).to_owned(), (*json).to_owned().into()));
    old.changed(Vec::<Change<Node>>::new(), Some(Arc::new(Routes::new(routes).unwrap()))).0.unwrap()
}

fn first(candidates: Option<String>) -> String {
    candidates.unwrap().split(',').next().unwrap().to_owned()
}

/// First choices of so many requests, each of which ends well before the next.
fn shares(filter: &mut Filter, requests: u32, request: impl Fn(u32) -> Get) -> BTreeMap<String, u32> {
    let mut shares = BTreeMap::new();
    for number in 0..requests {
        let got = request(number).numbered(filter, number);
        *shares.entry(first(got.candidates)).or_default() += 1;
        filter.on_end(&mut End::ok(), number);
    }
    shares
}

fn report(proxy: &Proxy) -> Report {
    match proxy.sent.last() {
        Some((_, client_message::Kind::Report(report))) => report.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_strategy_of_a_policy_counts_and_another_one_takes_its_place() {
    let mut proxy = Proxy::default();
    let nodes = || vec![Node { weight: 3, ..node(1) }, node(2)];
    let weighted = with_policy(&Catalog::default(), nodes(), "{}");
    let mut filter = proxy.in_sync("", &weighted);
    let web = |_| Get::cluster("web");
    assert_eq!(shares(&mut filter, 400, web), BTreeMap::from([(address(1), 300), (address(2), 100)]));
    let even = with_policy(&weighted, nodes(), r#"{"strategy":"round-robin"}"#);
    proxy.deliver(&mut filter, 1, sender::delta(&weighted, &even));
    assert_eq!(shares(&mut filter, 400, web), BTreeMap::from([(address(1), 200), (address(2), 200)]));
}

#[test]
fn least_request_avoids_the_node_whose_requests_do_not_end() {
    let mut proxy = Proxy::default();
    let catalog = with_policy(&Catalog::default(), vec![node(1), node(2)], r#"{"strategy":"least-request"}"#);
    let mut filter = proxy.in_sync("", &catalog);
    let stuck = first(Get::cluster("web").numbered(&mut filter, u32::MAX).candidates);
    for number in 0..50 {
        assert_ne!(first(Get::cluster("web").numbered(&mut filter, number).candidates), stuck);
        filter.on_end(&mut End::ok(), number);
    }
    filter.on_end(&mut End::ok(), u32::MAX);
    assert_eq!(shares(&mut filter, 100, |_| Get::cluster("web")).len(), 2);
}

#[test]
fn the_lean_module_picks_by_weight_instead_and_counts_it() {
    let mut proxy = Proxy::default();
    let catalog = with_policy(&Catalog::default(), vec![node(1), node(2)], r#"{"strategy":"least-request"}"#);
    let mut filter = Filter::start(&mut proxy, b"", false).unwrap();
    filter.on_tick(&mut proxy);
    proxy.deliver(&mut filter, 1, sender::full(&catalog));
    for number in 0..10 {
        assert!(Get::cluster("web").numbered(&mut filter, number).candidates.is_some());
    }
    proxy.tick_for(&mut filter, Duration::from_secs(2));
    assert_eq!((proxy.count(Counter::Picks), proxy.count(Counter::OutcomesMissing)), (10, 10));
    assert!(!proxy.sent.iter().any(|(_, sent)| matches!(sent, client_message::Kind::Report(_))));
}

#[test]
fn a_key_goes_to_one_node_whichever_part_of_the_request_it_is() {
    let mut proxy = Proxy::default();
    let mut catalog = Catalog::default();
    let mut filter = proxy.in_sync("", &catalog);
    let nodes: Vec<_> = (1..=9).map(node).collect();
    for (key, request) in [
        (r#"{"header":"x-user"}"#, Get::cluster("web").with("x-user", "ann")),
        (r#"{"cookie":"sid"}"#, Get::cluster("web").with("cookie", "a=b; sid=ann")),
        (r#"{"query":"user"}"#, Get::cluster("web").with(":path", "/a?user=ann")),
        (r#""path""#, Get::cluster("web").with(":path", "/ann")),
        (r#""source""#, Get::cluster("web")),
    ] {
        let policy = format!(r#"{{"strategy":{{"name":"consistent-hash","key":{key}}}}}"#);
        let next = with_policy(&catalog, nodes.clone(), &policy);
        proxy.deliver(&mut filter, 1, sender::delta(&catalog, &next));
        catalog = next;
        let again = || Get { headers: request.headers.clone(), ..Get::cluster("web") };
        assert_eq!(shares(&mut filter, 50, |_| again()).len(), 1, "{key}");
    }
}

#[test]
fn a_subset_gets_its_part_and_an_empty_one_means_the_whole_service_unless_the_policy_is_strict() {
    let mut proxy = Proxy::default();
    let placed = |last, subsets| Node { placement: Placement { subsets, ..Placement::default() }, ..node(last) };
    // In the order of their names: none, v1, v2.
    let nodes = || vec![placed(1, 0b010), placed(2, 0b100)];
    let policy = |more: &str| {
        format!(
            r#"{{"subsets":{{"none":{{"version":"0"}},"v1":{{"version":"1"}},"v2":{{"version":"2"}}}},
                "split":{{"arms":[{{"subset":"v1","weight":95}},{{"subset":"v2","weight":5}}]}},
                "subset_header":"x-subset"{more}}}"#
        )
    };
    let lenient = with_policy(&Catalog::default(), nodes(), &policy(""));
    let mut filter = proxy.in_sync("", &lenient);
    let seen = shares(&mut filter, 2_000, |_| Get::cluster("web"));
    assert!((1_850..=1_945).contains(&seen[&address(1)]), "{seen:?}");
    let named = |name| move |_| Get::cluster("web").with("x-subset", name);
    assert_eq!(shares(&mut filter, 20, named("v2")), BTreeMap::from([(address(2), 20)]));
    assert_eq!(shares(&mut filter, 20, named("none")).len(), 2);
    let strict = with_policy(&lenient, nodes(), &policy(r#","strict_subsets":true"#));
    proxy.deliver(&mut filter, 1, sender::delta(&lenient, &strict));
    assert_eq!(Get::cluster("web").with("x-subset", "none").through(&mut filter).candidates, None);
    filter.on_tick(&mut proxy);
    assert_eq!(proxy.count(Counter::NoNode), 1);
}

#[test]
fn a_cookie_leads_back_to_its_node_while_that_may_be_picked_and_a_forged_one_leads_nowhere() {
    let mut proxy = Proxy::default();
    let policy = r#"{"sticky":{"cookie":"node","ttl":"1h"}}"#;
    let nodes = |gone: Option<u8>| (1..=5).filter(|last| Some(*last) != gone).map(node).collect::<Vec<_>>();
    let before = with_policy(&Catalog::default(), nodes(None), policy);
    let mut filter = proxy.in_sync("", &before);
    let chosen = first(Get::cluster("web").numbered(&mut filter, 1).candidates);
    let mut answer = Answer::default();
    filter.on_response(&mut answer, 1);
    filter.on_end(&mut End::ok(), 1);
    let [(name, value)] = &answer.0[..] else { panic!("{:?}", answer.0) };
    assert!(name == "set-cookie" && value.contains("Max-Age=3600"), "{value}");
    let cookie: &'static str = value.split(';').next().unwrap().to_owned().leak();
    let back = |_| Get::cluster("web").with("cookie", cookie);
    assert_eq!(shares(&mut filter, 20, back), BTreeMap::from([(chosen.clone(), 20)]));
    let mut answer = Answer::default();
    Get::cluster("web").with("cookie", cookie).numbered(&mut filter, 2);
    filter.on_response(&mut answer, 2);
    assert!(answer.0.is_empty(), "it has the cookie: {:?}", answer.0);
    // Others go; the node stays the one.
    let last: u8 = chosen.split(['.', ':']).nth(3).unwrap().parse().unwrap();
    let other = if last == 1 { 2 } else { 1 };
    let fewer = with_policy(&before, nodes(Some(other)), policy);
    proxy.deliver(&mut filter, 1, sender::delta(&before, &fewer));
    assert_eq!(shares(&mut filter, 20, back), BTreeMap::from([(chosen.clone(), 20)]));
    // It drains: another one, and another cookie.
    let mut draining = nodes(None);
    draining[usize::from(last) - 1].health = Health::Draining;
    let without = with_policy(&fewer, draining, policy);
    proxy.deliver(&mut filter, 1, sender::delta(&fewer, &without));
    assert!(!shares(&mut filter, 40, back).contains_key(&chosen));
    Get::cluster("web").with("cookie", cookie).numbered(&mut filter, 3);
    filter.on_response(&mut answer, 3);
    assert_eq!(answer.0.len(), 1);
    for forged in ["node=10.9.9.9:80", "node=ffffffffffffffff", "node="] {
        let got = Get::cluster("web").with("cookie", forged).through(&mut filter).candidates.unwrap();
        assert!(got.split(',').all(|candidate| candidate.starts_with("10.0.0.")), "{forged}: {got}");
    }
}

#[test]
fn routes_name_service_subset_and_timeout_and_the_first_one_by_order_counts() {
    let mut proxy = Proxy::default();
    let placed = |last, subsets| Node { placement: Placement { subsets, ..Placement::default() }, ..node(last) };
    let policy = r#"{"subsets":{"v1":{"version":"1"},"v2":{"version":"2"}}}"#;
    let catalog = with_policy(&Catalog::default(), vec![placed(1, 0b01), placed(2, 0b10)], policy);
    let catalog = changed(&catalog, "api.v1", &["10.0.1.1:80"]);
    let catalog = with_routes(
        &catalog,
        &[
            (
                "canary",
                r#"{"order":1,"match":{"hosts":["shop.example.com"],"headers":{"x-env":"canary"}},"service":"web","subset":"v2"}"#,
            ),
            (
                "api",
                r#"{"order":2,"match":{"hosts":["shop.example.com"],"path":{"prefix":"/api"}},"service":"api.v1","timeout":"2s"}"#,
            ),
            ("shop", r#"{"order":3,"match":{"hosts":["shop.example.com"]},"service":"web","subset":"v1"}"#),
            ("ghost", r#"{"order":4,"match":{"hosts":["ghost.example.com"]},"service":"ghost"}"#),
        ],
    );
    let mut filter = proxy.in_sync(ROUTES, &catalog);
    let request = Get::host("shop.example.com", "/api/orders").with("x-env", "canary").through(&mut filter);
    assert_eq!(request.set[CLUSTER], "web");
    assert_eq!(first(request.candidates), address(2));
    let request = Get::host("shop.example.com:8080", "/api/orders").through(&mut filter);
    assert_eq!((&*request.set[CLUSTER], &*request.set[TIMEOUT]), ("api.v1", "2000"));
    assert_eq!(first(request.candidates), "10.0.1.1:80");
    let request = Get::host("shop.example.com", "/").through(&mut filter);
    assert_eq!((first(request.candidates), request.set.get(TIMEOUT)), (address(1), None));
    // By name, where no route matches: it goes where it would have gone, so nobody needs to be told.
    let request = Get::host("api.v1", "/").through(&mut filter);
    assert_eq!((first(request.candidates), request.set.get(CLUSTER)), ("10.0.1.1:80".into(), None));
    for host in ["web:8080", "web.internal"] {
        assert_eq!(Get::host(host, "/").through(&mut filter).set[CLUSTER], "web", "{host}");
    }
    let (status, text) = Get::host("ghost.example.com", "/").through(&mut filter).answer.unwrap();
    assert!(status == 503 && text.contains("route ghost") && text.contains("\"ghost\""), "{text}");
    let (status, text) = Get::host("nobody.example.com", "/").through(&mut filter).answer.unwrap();
    assert!(status == 404 && text.contains("no route matches"), "{text}");
    filter.on_tick(&mut proxy);
    assert_eq!((proxy.count(Counter::UnknownService), proxy.count(Counter::NoRoute)), (2, 1));
}

#[test]
fn a_filter_that_has_heard_nothing_yet_leaves_the_request_to_the_proxy() {
    let mut proxy = Proxy::default();
    let mut filter = proxy.start(ROUTES);
    let request = Get::host("web", "/").through(&mut filter);
    assert_eq!((request.answer, request.candidates), (None, None));
}

#[test]
fn a_policy_or_route_of_a_newer_agent_is_counted_and_what_can_be_read_is_used() {
    let mut proxy = Proxy::default();
    let change = Change {
        service: ServiceName::new("web").unwrap(),
        nodes: vec![node(1)],
        policy: r#"{"policy":{"strategy":"telepathy"},"zone":"","callers":{}}"#.into(),
    };
    let catalog = Catalog::default().changed([change], None).0.unwrap();
    let routes = [("good", r#"{"order":1,"match":{"hosts":["a"]},"service":"web"}"#), ("new", r#"{"mind":1}"#)];
    let mut filter = proxy.in_sync(ROUTES, &with_routes(&catalog, &routes));
    assert_eq!(first(Get::host("a", "/").through(&mut filter).candidates), address(1));
    filter.on_tick(&mut proxy);
    assert_eq!(proxy.count(Counter::UnreadableRules), 2);
}

#[test]
fn what_becomes_of_requests_is_reported_once_a_second_and_once() {
    let mut proxy = Proxy::default();
    let catalog = with_policy(&Catalog::default(), vec![node(1)], "{}");
    let mut filter = proxy.in_sync("", &catalog);
    proxy.tick_for(&mut filter, Duration::from_secs(1));
    let ends = [
        End::ok(),
        End { status: 500, ..End::ok() },
        End { status: 503, flags: 1 << 5, latency: None, ..End::ok() },
        End { status: 503, flags: 1 << 4, latency: None, ..End::ok() },
        End { status: 504, flags: 1 << 2, latency: None, ..End::ok() },
        End { status: 0, flags: 1 << 14, latency: None, ..End::ok() },
        // Envoy's own answer: no node was tried.
        End { status: 503, flags: 1 << 1, tries: 0, latency: None, ..End::ok() },
    ];
    for (context, mut end) in (0..).zip(ends) {
        Get::cluster("web").numbered(&mut filter, context);
        filter.on_end(&mut end, context);
    }
    Get::cluster("web").numbered(&mut filter, 99);
    proxy.tick_for(&mut filter, Duration::from_secs(1));
    let told = report(&proxy);
    let nodes = &told.services[0].nodes;
    assert_eq!((told.services.len(), nodes.len(), nodes[0].address.as_str()), (1, 1, "10.0.0.1:80"));
    let node = &nodes[0];
    assert_eq!((node.requests, node.server_errors, node.connect_failures), (6, 1, 1));
    assert_eq!((node.resets, node.timeouts, node.cancelled, node.in_flight), (1, 1, 1, 1));
    assert_eq!(node.latency.chunks(2).map(|pair| pair[1]).sum::<u32>(), 2);
    // What is under way goes on being told; then that it is not any more; then nothing.
    proxy.tick_for(&mut filter, Duration::from_secs(1));
    assert_eq!(report(&proxy).services[0].nodes[0].in_flight, 1);
    filter.on_end(&mut End::ok(), 99);
    proxy.tick_for(&mut filter, Duration::from_secs(1));
    let node = report(&proxy).services[0].nodes[0].clone();
    assert_eq!((node.requests, node.in_flight), (1, 0));
    let sent = proxy.sent.len();
    proxy.tick_for(&mut filter, Duration::from_secs(3));
    assert_eq!(proxy.sent.len(), sent);
    // Also of a node on which nothing ends.
    Get::cluster("web").numbered(&mut filter, 100);
    proxy.tick_for(&mut filter, Duration::from_secs(1));
    let node = report(&proxy).services[0].nodes[0].clone();
    assert_eq!((node.requests, node.in_flight), (0, 1));
}

#[test]
fn a_try_that_failed_counts_against_the_node_that_was_tried() {
    let mut proxy = Proxy::default();
    let catalog = with_policy(&Catalog::default(), vec![node(1), node(2), node(3)], "{}");
    let mut filter = proxy.in_sync("", &catalog);
    let candidates = Get::cluster("web").numbered(&mut filter, 1).candidates.unwrap();
    let candidates: Vec<_> = candidates.split(',').collect();
    filter.on_end(&mut End { tries: 3, ..End::ok() }, 1);
    proxy.tick_for(&mut filter, Duration::from_secs(2));
    let told = report(&proxy);
    let of = |address: &str| told.services[0].nodes.iter().find(|node| node.address == address).unwrap();
    for failed in &candidates[..2] {
        assert_eq!((of(failed).failed_tries, of(failed).requests), (1, 0));
    }
    assert_eq!((of(candidates[2]).failed_tries, of(candidates[2]).requests), (0, 1));
}

#[test]
fn a_node_that_fails_is_ejected_and_comes_back_by_a_probe() {
    let mut proxy = Proxy::default();
    let policy = r#"{"ejection":{"consecutive_failures":3,"base_time":"5s","max_share":50}}"#;
    let catalog = with_policy(&Catalog::default(), vec![node(1), node(2)], policy);
    let mut filter = proxy.in_sync("", &catalog);
    // Answered within the tick in which they were sent.
    let send = |filter: &mut Filter, proxy: &Proxy, requests: u32, works: bool| {
        let now = proxy.now + Duration::from_millis(4);
        let mut seen = BTreeSet::new();
        for context in 0..requests {
            let node = first(Get::cluster("web").numbered(filter, context).candidates);
            let status = if node == address(1) && !works { 503 } else { 200 };
            filter.on_end(&mut End { status, now, ..End::ok() }, context);
            seen.insert(node);
        }
        seen
    };
    assert_eq!(send(&mut filter, &proxy, 20, false).len(), 2);
    assert_eq!(send(&mut filter, &proxy, 20, false), BTreeSet::from([address(2)]));
    proxy.tick_for(&mut filter, Duration::from_secs(2));
    let told = report(&proxy);
    assert!(told.services[0].nodes.iter().any(|node| node.address == address(1) && node.ejected), "{told:?}");
    // Its time is up with a tick: the next request tries it, and fails. Twice as long, and then it works again.
    let until_probed = |proxy: &mut Proxy, filter: &mut Filter, works: bool| {
        for tenths in 1.. {
            proxy.tick_for(filter, Duration::from_millis(100));
            if send(filter, proxy, 2, works).contains(&address(1)) {
                return tenths;
            }
        }
        0
    };
    assert!((29..=31).contains(&until_probed(&mut proxy, &mut filter, false)));
    assert_eq!(send(&mut filter, &proxy, 20, false), BTreeSet::from([address(2)]));
    assert!((99..=101).contains(&until_probed(&mut proxy, &mut filter, true)));
    assert_eq!(send(&mut filter, &proxy, 20, true).len(), 2);
}

#[test]
fn too_few_healthy_nodes_mean_all_but_draining_ones_and_it_is_counted() {
    let mut proxy = Proxy::default();
    let mut nodes: Vec<_> = (1..=4).map(node).collect();
    nodes[0].health = Health::Critical;
    nodes[1].health = Health::Critical;
    nodes[2].health = Health::Draining;
    let before = with_policy(&Catalog::default(), nodes.clone(), "{}");
    let mut filter = proxy.in_sync("", &before);
    let seen = shares(&mut filter, 30, |_| Get::cluster("web"));
    assert_eq!(seen.keys().cloned().collect::<Vec<_>>(), [address(1), address(2), address(4)]);
    proxy.tick_for(&mut filter, Duration::from_secs(2));
    assert_eq!(proxy.count(Counter::PanicPicks), 30);
    assert_eq!(report(&proxy).services[0].panics, 30);
    let off = with_policy(&before, nodes, r#"{"panic_threshold":0}"#);
    proxy.deliver(&mut filter, 1, sender::delta(&before, &off));
    assert_eq!(shares(&mut filter, 30, |_| Get::cluster("web")).len(), 1);
}

#[test]
fn requests_under_way_outlive_their_service() {
    let mut proxy = Proxy::default();
    let before = web();
    let mut filter = proxy.in_sync("", &before);
    Get::cluster("web").numbered(&mut filter, 1);
    let after = changed(&before, "web", &[]);
    proxy.deliver(&mut filter, 1, sender::delta(&before, &after));
    proxy.deliver(&mut filter, 1, heartbeat(0));
    filter.on_end(&mut End::ok(), 1);
    proxy.tick_for(&mut filter, Duration::from_secs(2));
    assert_eq!(report(&proxy).services[0].nodes[0].requests, 1);
}
