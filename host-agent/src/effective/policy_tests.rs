//! What policies, components and routes make of what is served.

use std::time::Duration;

use waypost_catalog::{Placement, Protocol};
use waypost_policy::Compiled;
use waypost_registry::{Format, KeyChange, KeyValue, ResyncReason};

use super::*;
use crate::rules::{POLICIES, ROUTES};

fn watch() -> Watch {
    Watch { prefix: "/s/".into(), format: Format::Waypost, protocol: Protocol::Http1 }
}

fn entry(key: String, value: &str, mod_revision: i64) -> Arc<KeyValue> {
    Arc::new(KeyValue { key, value: value.into(), mod_revision, create_revision: 1, lease: 0 })
}

fn synced(entries: Vec<Arc<KeyValue>>) -> MirrorEvent {
    MirrorEvent::Synced { entries, revision: 1, reason: ResyncReason::First }
}

fn put(key: String, value: &str, revision: i64) -> MirrorEvent {
    MirrorEvent::Changed { changes: vec![KeyChange::Put(entry(key, value, revision))], revision }
}

/// An agent's view with these nodes of `web`, each its port and more of its value, and this policy.
struct Bench {
    effective: Effective,
    now: Instant,
    revision: i64,
}

impl Bench {
    fn new(nodes: &[(u16, &str)], policy: Option<&str>) -> Self {
        let guard = config::Guard { enabled: false, ..config::Guard::default() };
        let now = Instant::now();
        let mut effective = Effective::new(vec![watch()], guard, "eu-1".into(), None, now);
        let nodes = nodes.iter().map(|(port, more)| entry(node_key(*port), &value(*port, more), 1)).collect();
        effective.apply(&watch(), &synced(nodes), now);
        let policy = policy.map(|policy| entry(format!("{POLICIES}web"), policy, 1));
        effective.apply_rules(RuleKind::Policies, &synced(policy.into_iter().collect()));
        effective.apply_rules(RuleKind::Routes, &synced(Vec::new()));
        let mut bench = Self { effective, now, revision: 1 };
        bench.publish();
        bench
    }

    fn publish(&mut self) -> Arc<Catalog> {
        self.effective.publish(self.now);
        self.effective.current().unwrap()
    }

    fn put(&mut self, port: u16, more: &str) {
        self.revision += 1;
        self.effective.apply(&watch(), &put(node_key(port), &value(port, more), self.revision), self.now);
    }

    fn policy(&mut self, policy: &str) {
        self.revision += 1;
        self.effective.apply_rules(RuleKind::Policies, &put(format!("{POLICIES}web"), policy, self.revision));
    }

    fn placements(&mut self) -> Vec<Placement> {
        self.publish().services()["web"].nodes().map(|node| node.placement).collect()
    }

    fn compiled(&mut self) -> Compiled {
        Compiled::parse(self.publish().services()["web"].policy()).unwrap()
    }
}

fn node_key(port: u16) -> String {
    format!("/s/web/{port}")
}

fn value(port: u16, more: &str) -> String {
    let more = if more.is_empty() { String::new() } else { format!(",{more}") };
    format!(r#"{{"address":"10.0.0.1","port":{port}{more}}}"#)
}

#[test]
fn subsets_and_levels_are_worked_out_for_each_node() {
    let nodes = [(1, r#""version":"v1","zone":"a""#), (2, r#""version":"v2","zone":"b","tags":["canary"]"#)];
    let policy = r#"{"subsets":{"canary":{"tags":["canary"]},"v1":{"version":"v1"},"v2":{"version":"v2"}},
                     "priority":{"zones":["b","a"]}}"#;
    let mut bench = Bench::new(&nodes, Some(policy));
    let of = |priority, subsets| Placement { priority, subsets, ..Placement::default() };
    assert_eq!(bench.placements(), [of(1, 0b010), of(0, 0b101)]);
    // Another policy, and none: what it made of the nodes goes with it.
    bench.policy(r#"{"priority":{"zones":["a"]}}"#);
    assert_eq!(bench.placements(), [of(0, 0), of(1, 0)]);
    bench.effective.apply_rules(RuleKind::Policies, &synced(Vec::new()));
    assert_eq!(bench.placements(), [of(0, 0), of(0, 0)]);
    assert!(bench.publish().services()["web"].policy().is_empty());
}

#[test]
fn a_bad_policy_changes_nothing_and_is_told_with_its_field() {
    let mut bench = Bench::new(&[(1, "")], Some(r#"{"strategy":"random"}"#));
    let before = bench.publish().version();
    bench.policy(r#"{"strategy":"telepathy"}"#);
    assert_eq!(bench.publish().version(), before);
    let refused = bench.effective.figures().rules.refused;
    assert_eq!((refused.len(), &*refused[0].key, refused[0].last_good), (1, "/waypost/policies/web", true));
    assert!(refused[0].problems[0].contains("strategy"), "{refused:?}");
    bench.policy(r#"{"strategy":"round-robin"}"#);
    assert!(bench.publish().version() > before);
    assert_eq!(bench.effective.figures().rules.refused, []);
}

#[test]
fn filters_are_told_the_zone_of_this_host_and_those_of_the_callers() {
    let mut bench = Bench::new(&[(1, "")], Some(r#"{"locality":{"callers":"front"}}"#));
    assert_eq!((bench.compiled().zone.as_str(), bench.compiled().callers.len()), ("eu-1", 0));
    let front = |id: &str, zone: &str| {
        put(format!("/s/front/{id}"), &value(if id == "a" { 7 } else { 8 }, &format!(r#""zone":"{zone}""#)), 9)
    };
    bench.effective.apply(&watch(), &front("a", "eu-1"), bench.now);
    bench.effective.apply(&watch(), &front("b", "eu-2"), bench.now);
    let callers = BTreeMap::from([("eu-1".to_owned(), 1), ("eu-2".to_owned(), 1)]);
    assert_eq!(bench.compiled().callers, callers, "in the version that brings the callers");
    bench.effective.set_zone("eu-2");
    assert_eq!(bench.compiled().zone, "eu-2");
}

#[test]
fn a_node_that_comes_starts_slowly_and_those_of_the_beginning_do_not() {
    let mut bench = Bench::new(&[(1, "")], Some(r#"{"slow_start":{"window":"10s","min_share":10}}"#));
    let warmups = |bench: &mut Bench| bench.placements().iter().map(|placement| placement.warmup).collect::<Vec<_>>();
    assert_eq!(warmups(&mut bench), [1_000]);
    bench.put(2, "");
    assert_eq!(warmups(&mut bench), [1_000, 100]);
    let mut last = 100;
    // Nobody has to do anything for it to grow.
    for _ in 0..60 {
        let Some(next) = bench.effective.next_deadline() else { break };
        bench.now = next;
        let now = warmups(&mut bench)[1];
        assert!(now >= last && (now - last) <= 30, "{last} then {now}");
        last = now;
    }
    assert_eq!((last, bench.effective.next_deadline()), (1_000, None));
    // It fails and comes back: from the beginning again, and a change of its weight alone is no start.
    bench.put(2, r#""health":"critical""#);
    assert_eq!(warmups(&mut bench), [1_000, 1_000]);
    bench.put(2, "");
    assert_eq!(warmups(&mut bench), [1_000, 100]);
    bench.now += Duration::from_secs(5);
    bench.put(2, r#""weight":7"#);
    assert_eq!(warmups(&mut bench), [1_000, 500]);
}

#[test]
fn what_a_component_decides_stands_until_it_decides_otherwise() {
    let component = r#"{"component":{"name":"capacity","parameters":{"field":"cores"}}}"#;
    let mut bench = Bench::new(&[(1, ""), (2, r#""weight":0"#)], Some(component));
    let requests = bench.effective.take_requests();
    let [Request::Weigh(question)] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!((&*question.service, question.nodes.len(), question.previous.len()), ("web", 2, 0));
    assert_eq!(bench.placements(), [Placement::default(); 2], "its own weights until then");
    let at = |port| SocketAddr::from(([10, 0, 0, 1], port));
    let decided = |weight| Decided { weight, priority: 1 };
    let web = question.service.clone();
    let decisions = BTreeMap::from([(at(1), decided(5)), (at(2), decided(6))]);
    bench.effective.decided(Answer { service: web.clone(), decisions });
    let of = |weight| Placement { weight: Some(weight), priority: 1, ..Placement::default() };
    assert_eq!(bench.placements(), [of(5), of(0)], "weight 0 is an operator's word");
    assert!(bench.effective.take_requests().is_empty(), "an answer is no new question");
    // A node that it has not been asked about keeps its own weight; the others what was decided.
    bench.put(3, "");
    assert_eq!(bench.placements(), [of(5), of(0), Placement::default()]);
    let requests = bench.effective.take_requests();
    let [Request::Weigh(question)] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!((question.nodes.len(), question.previous[&at(1)]), (3, decided(5)));
    bench.policy("{}");
    assert_eq!(bench.placements(), [Placement::default(); 3]);
    assert!(matches!(&bench.effective.take_requests()[..], [Request::Forget(service)] if *service == web));
}

#[test]
fn routes_go_into_the_catalog_and_their_last_good_ones_stay() {
    let mut bench = Bench::new(&[(1, "")], None);
    let mut route = |id: &str, json: &str, revision| {
        bench.effective.apply_rules(RuleKind::Routes, &put(format!("{ROUTES}{id}"), json, revision));
        bench.publish().routes().documents().len()
    };
    let good = r#"{"order":1,"match":{"hosts":["a.example.com"]},"service":"web"}"#;
    assert_eq!(route("a", good, 2), 1);
    assert_eq!(route("b", r#"{"order":1}"#, 3), 1);
    assert_eq!(route("a", "no JSON", 4), 1);
    let figures = bench.effective.figures().rules;
    assert_eq!((figures.routes, figures.refused.len(), figures.refusals), (1, 2, 2));
}

#[test]
fn more_routes_than_fit_leave_the_table_as_it_was() {
    let mut bench = Bench::new(&[(1, "")], None);
    let hosts = |n: usize| (0..100).map(|host| format!("\"h{host}.{n}.{}.com\"", "x".repeat(60))).collect::<Vec<_>>();
    let route = |n: usize| {
        let json = format!(r#"{{"order":1,"match":{{"hosts":[{}]}},"service":"web"}}"#, hosts(n).join(","));
        entry(format!("{ROUTES}r{n:03}"), &json, 2)
    };
    bench.effective.apply_rules(RuleKind::Routes, &synced(vec![route(0)]));
    assert_eq!(bench.publish().routes().documents().len(), 1);
    bench.effective.apply_rules(RuleKind::Routes, &synced((0..150).map(route).collect()));
    assert_eq!(bench.publish().routes().documents().len(), 1);
    let refused = bench.effective.figures().rules.refused;
    assert!(refused[0].problems[0].contains("150 routes"), "{refused:?}");
}

#[test]
fn the_disk_copys_policies_and_routes_serve_until_etcd_is_heard() {
    let mut bench = Bench::new(&[(1, r#""version":"v1""#)], Some(r#"{"subsets":{"v1":{"version":"v1"}}}"#));
    let good = r#"{"order":1,"match":{"hosts":["a.example.com"]},"service":"web"}"#;
    bench.effective.apply_rules(RuleKind::Routes, &put(format!("{ROUTES}a"), good, 2));
    let disk = Catalog::clone(&bench.publish());
    let guard = config::Guard::default();
    let mut effective = Effective::new(vec![watch()], guard, "eu-1".into(), Some(disk), bench.now);
    // The nodes come back before the policies do.
    effective.apply(&watch(), &synced(vec![entry(node_key(1), &value(1, r#""version":"v1""#), 1)]), bench.now);
    effective.publish(bench.now);
    let current = effective.current().unwrap();
    assert_eq!(current.services()["web"].nodes().next().unwrap().placement.subsets, 1);
    assert_eq!(current.routes().documents().len(), 1);
    effective.apply_rules(RuleKind::Policies, &synced(Vec::new()));
    effective.apply_rules(RuleKind::Routes, &synced(Vec::new()));
    effective.publish(bench.now);
    let current = effective.current().unwrap();
    assert!(current.services()["web"].policy().is_empty() && current.routes().documents().is_empty());
}

#[test]
fn nodes_wait_a_moment_for_their_policies_and_no_longer() {
    let now = Instant::now();
    let mut effective = Effective::new(vec![watch()], config::Guard::default(), String::new(), None, now);
    effective.apply(&watch(), &synced(vec![entry(node_key(1), &value(1, ""), 1)]), now);
    assert!(effective.publish(now).is_none());
    let then = effective.next_deadline().unwrap();
    assert_eq!(then - now, RULES_WAIT);
    assert!(effective.publish(then).is_some());
}
