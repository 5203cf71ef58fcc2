//! Routes from etcd, and services that Envoy was never told of.
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hyper::Method;
use serde_json::{Value, json};
use waypost_tests::http::{self, Reply};
use waypost_tests::world::SERVICE;
use waypost_tests::{EnvoyOptions, Fleet, Load, Member, Scene, Upstream, eventually, tools};

const DEADLINE: Duration = Duration::from_secs(20);
const CLUSTER: &str = "x-waypost-cluster";
const CANDIDATES: &str = "x-waypost-candidates";
const HOST: &str = "api.example.com";

async fn send(fleet: &Fleet, method: Method, host: &str, path: &str, headers: &[(&str, &str)]) -> Result<Reply> {
    let mut request = hyper::Request::builder().method(method).uri(path).header("host", host);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    http::send(fleet.envoy.listen(), request.body(Default::default())?).await
}

async fn get(fleet: &Fleet, host: &str, path: &str) -> Result<Reply> {
    send(fleet, Method::GET, host, path, &[]).await
}

async fn ensure_node(fleet: &Fleet, host: &str, path: &str, expected: &str) -> Result<()> {
    let reply = get(fleet, host, path).await?;
    ensure!(reply.node() == expected, "{host}{path} leads to {expected}: {reply:?}");
    Ok(())
}

/// Services of one node each, which is called like its service.
async fn add_services(fleet: &Fleet, names: &[&str]) -> Result<Vec<Upstream>> {
    let mut nodes = Vec::new();
    for name in names {
        let node = Upstream::start(name).await?;
        fleet.put_of(name, &Member::new(name), node.address()).await?;
        nodes.push(node);
    }
    // Filters have heard of them; Envoy makes a cluster of each meanwhile.
    for name in names {
        let reached = || ensure_node(fleet, name, "/", name);
        eventually(Duration::from_secs(3), format!("{name} to be reached by its name"), reached).await?;
    }
    Ok(nodes)
}

fn route(order: u32, matching: Value, service: &str) -> Value {
    json!({ "order": order, "match": matching, "service": service })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_appears_in_etcd_is_reached_by_its_name_and_routes_lead_where_they_say() -> Result<()> {
    let scene = Scene::new()?;
    let fleet = Fleet::start(&scene, &Member::all(["a"]), EnvoyOptions::dynamic().workers(2)).await?;
    let names = ["exact", "pattern", "written", "canary", "prefix", "below"];
    let reply = get(&fleet, "exact", "/").await?;
    ensure!(reply.status == 404 && reply.text().contains("no service is called like the host"), "{reply:?}");
    let _nodes = add_services(&fleet, &names).await?;
    for host in ["exact", "exact:8080", "exact.internal"] {
        ensure_node(&fleet, host, "/any/path", "exact").await?;
    }

    fleet.set_route("exact", route(10, json!({ "hosts": [HOST], "path": { "exact": "/v1/status" } }), "exact")).await?;
    let pattern = json!({ "hosts": [HOST], "path": { "pattern": "/users/{id}/orders/**" } });
    fleet.set_route("pattern", route(20, pattern, "pattern")).await?;
    let written = json!({ "hosts": [HOST], "path": { "prefix": "/v1/" }, "methods": ["POST", "PUT"] });
    fleet.set_route("written", route(30, written, "written")).await?;
    let canary = json!({ "hosts": [HOST], "headers": { "x-env": "canary" } });
    fleet.set_route("canary", route(40, canary, "canary")).await?;
    fleet.set_route("prefix", route(50, json!({ "hosts": [HOST], "path": { "prefix": "/v1/" } }), "prefix")).await?;
    fleet.set_route("below", route(60, json!({ "hosts": ["*.example.com"] }), "below")).await?;
    let canary: &[(&str, &str)] = &[("x-env", "canary")];
    for (method, host, path, headers, expected) in [
        (Method::GET, HOST, "/v1/status", &[][..], "exact"),
        (Method::GET, HOST, "/v1/status?verbose=1", &[], "exact"),
        (Method::GET, "API.example.com:8080", "/v1/status", &[], "exact"),
        (Method::POST, HOST, "/v1/status", canary, "exact"),
        (Method::GET, HOST, "/users/7/orders", &[], "pattern"),
        (Method::GET, HOST, "/users/7/orders/9/lines", &[], "pattern"),
        (Method::GET, HOST, "/users/7/carts", &[], "below"),
        (Method::PUT, HOST, "/v1/orders", canary, "written"),
        (Method::GET, HOST, "/v1/orders", canary, "canary"),
        (Method::GET, HOST, "/", canary, "canary"),
        (Method::GET, HOST, "/v1/orders", &[("x-env", "test")], "prefix"),
        (Method::GET, HOST, "/v1", &[], "below"),
        (Method::GET, "www.example.com", "/v1/status", &[], "below"),
        (Method::GET, SERVICE, "/v1/status", canary, "a"),
    ] {
        let reply = send(&fleet, method.clone(), host, path, headers).await?;
        ensure!(reply.node() == expected, "{method} {host}{path} {headers:?} leads to {expected}: {reply:?}");
    }
    // The order decides, whatever is more exact.
    fleet.set_route("prefix", route(5, json!({ "hosts": [HOST], "path": { "prefix": "/v1/" } }), "prefix")).await?;
    ensure_node(&fleet, HOST, "/v1/status", "prefix").await?;
    fleet.remove_route("prefix").await?;
    ensure_node(&fleet, HOST, "/v1/status", "exact").await?;
    ensure_node(&fleet, HOST, "/v1/orders", "below").await?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_has_a_subset_a_split_and_a_timeout() -> Result<()> {
    let scene = Scene::new()?;
    let members = [Member::new("a").version("v1"), Member::new("b").version("v2")];
    let fleet = Fleet::start(&scene, &members, EnvoyOptions::dynamic().workers(2)).await?;
    let _nodes = add_services(&fleet, &["other"]).await?;
    fleet.set_policy(json!({ "subsets": { "v1": { "version": "v1" }, "v2": { "version": "v2" } } })).await?;
    let at = |path: &str| fleet.envoy.load(HOST).path(path);
    let path = |path: &str| json!({ "path": { "prefix": path } });
    let subset = json!({ "order": 1, "match": path("/subset"), "service": SERVICE, "subset": "v2" });
    fleet.set_route("subset", subset).await?;
    let report = Load::run(at("/subset").total(200)).await?;
    report.ensure_no_failure()?;
    report.ensure_shares(&[("b", 1)], 0.0)?;

    let arms = json!([
        { "service": SERVICE, "subset": "v1", "weight": 70 },
        { "service": SERVICE, "subset": "v2", "weight": 20 },
        { "service": "other", "weight": 10 },
    ]);
    fleet.set_route("split", json!({ "order": 1, "match": path("/split"), "split": arms })).await?;
    let report = Load::run(at("/split").total(4_000)).await?;
    report.ensure_no_failure()?;
    report.ensure_shares(&[("a", 7), ("b", 2), ("other", 1)], 0.035)?;
    let sticky = json!({ "order": 1, "match": path("/sticky"), "split": arms, "sticky": { "cookie": "sid" } });
    fleet.set_route("sticky", sticky).await?;
    let report = Load::run(at("/sticky").header("cookie", "sid={key}").keys(200).total(800)).await?;
    report.ensure_no_failure()?;
    ensure!(report.homes()?.len() == 200 && report.nodes.len() == 3, "{:?}", report.nodes);

    fleet.node("a")?.set_delay(Duration::from_millis(700));
    fleet.node("b")?.set_delay(Duration::from_millis(700));
    let timeout = json!({ "order": 1, "match": path("/limited"), "service": SERVICE, "timeout": "200ms" });
    fleet.set_route("limited", timeout).await?;
    let began = Instant::now();
    let reply = get(&fleet, HOST, "/limited").await?;
    let took = began.elapsed();
    ensure!(reply.status == 504 && took < Duration::from_millis(600), "after {took:?}: {reply:?}");
    let reply = get(&fleet, HOST, "/subset").await?;
    ensure!(reply.node() == "b", "without a limit it is waited for: {reply:?}");
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leads_nowhere_is_answered_with_why_and_counted() -> Result<()> {
    let scene = Scene::new()?;
    let fleet = Fleet::start(&scene, &Member::all(["a"]), EnvoyOptions::dynamic()).await?;
    fleet.set_route("ghostly", route(1, json!({ "hosts": ["ghost.example.com"] }), "ghost")).await?;
    let (unknown, none) = (fleet.envoy.counted("unknown_service").await?, fleet.envoy.counted("no_route").await?);
    for _ in 0..3 {
        let reply = get(&fleet, "ghost.example.com", "/").await?;
        let text = "waypost: route ghostly leads to service \"ghost\", which has no node\n";
        ensure!(reply.status == 503 && reply.text() == text, "{reply:?}");
    }
    for host in ["nobody.example.com", "127.0.0.1", "[::1]:80", &"x".repeat(300)] {
        let reply = get(&fleet, host, "/").await?;
        ensure!(reply.status == 404 && reply.text().starts_with("waypost: no route matches"), "{host}: {reply:?}");
    }
    let unknown = fleet.envoy.counted("unknown_service").await? - unknown;
    let none = fleet.envoy.counted("no_route").await? - none;
    ensure!((unknown, none) == (7, 4), "{unknown} to unknown services, {none} without a route");

    // The service comes: the route leads there.
    let _nodes = add_services(&fleet, &["ghost"]).await?;
    ensure_node(&fleet, "ghost.example.com", "/", "ghost").await?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_names_its_service_by_a_header_and_no_upstream_sees_how_it_was_named() -> Result<()> {
    let scene = Scene::new()?;
    let fleet = Fleet::start(&scene, &Member::all(["a"]), EnvoyOptions::dynamic()).await?;
    let others = add_services(&fleet, &["other"]).await?;
    let before = others[0].requests();
    fleet.set_route("led", route(1, json!({ "hosts": ["led.example.com"] }), SERVICE)).await?;
    let address = others[0].address().to_string();
    for host in [SERVICE, "led.example.com"] {
        for (name, value) in [(CLUSTER, "other"), ("X-Waypost-Cluster", "waypost_agent"), (CANDIDATES, &address)] {
            let reply = send(&fleet, Method::GET, host, "/headers", &[(name, value)]).await?;
            ensure!(reply.node() == "a", "{name}: {value} led {host} elsewhere: {reply:?}");
            let seen: Value = serde_json::from_slice(&reply.body)?;
            let seen = seen.as_object().context("no object")?;
            ensure!(seen["host"] == host, "{seen:?}");
            ensure!(!seen.contains_key(CLUSTER) && !seen.contains_key(CANDIDATES), "the upstream saw {seen:?}");
        }
    }
    let reply = send(&fleet, Method::GET, "nobody", "/", &[(CLUSTER, SERVICE)]).await?;
    ensure!(reply.status == 404, "{reply:?}");
    ensure!(others[0].requests() == before, "a header led to another service");
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_vm_knows_routes_and_policies_without_its_agent_and_services_are_reached_by_name() -> Result<()> {
    let scene = Scene::new()?;
    let members = [Member::new("a"), Member::new("b").weight(3)];
    let fleet = Fleet::start(&scene, &members, EnvoyOptions::dynamic().plugin(tools::trap_wasm()?)).await?;
    let _nodes = add_services(&fleet, &["other"]).await?;
    fleet.set_policy(json!({ "strategy": "round-robin" })).await?;
    fleet.set_route("led", route(1, json!({ "hosts": ["led.example.com"] }), "other")).await?;
    // A filter writes down what it has learnt within a few seconds.
    tokio::time::sleep(Duration::from_secs(3)).await;
    fleet.agent.kill().await?;
    for _ in 0..3 {
        let before = fleet.envoy.picks().await?;
        let trapped = send(&fleet, Method::GET, SERVICE, "/", &[("x-waypost-trap", "1")]).await?;
        ensure!(trapped.status == 503, "{trapped:?}");
        ensure_node(&fleet, "other", "/", "other").await?;
        ensure_node(&fleet, "led.example.com", "/", "other").await?;
        let report = Load::run(fleet.load().total(400)).await?;
        report.ensure_no_failure()?;
        report.ensure_shares(&[("a", 1), ("b", 1)], 0.01)?;
        ensure!(get(&fleet, "nobody", "/").await?.status == 404);
        let picks = fleet.envoy.picks().await? - before;
        ensure!(picks == 402, "the fresh VM picked for {picks} of 402 requests");
    }
    fleet.agent.restart().await?;
    eventually(DEADLINE, "the fresh VM to be connected", || async {
        ensure!(fleet.agent.metric("waypost_streams", &[]).await? == 2.0);
        Ok(())
    })
    .await?;
    fleet.wait_settled().await?;
    fleet.set_policy(json!({ "strategy": "weighted-round-robin" })).await?;
    let report = Load::run(fleet.load().total(400)).await?;
    report.ensure_no_failure()?;
    report.ensure_shares(&[("a", 1), ("b", 3)], 0.01)?;
    scene.close()
}
