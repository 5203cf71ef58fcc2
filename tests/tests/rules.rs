//! Policies and routes that are wrong, and those that outlive etcd and the agent.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use waypost_tests::world::SERVICE;
use waypost_tests::{Envoy, EnvoyOptions, Fleet, Load, Member, Scene, eventually};

const DEADLINE: Duration = Duration::from_secs(30);
const POLICY: &str = "/waypost/policies/shop";
const ROUTE: &str = "/waypost/routes/led";
const LED: &str = "led.example.com";

async fn ensure_shares(envoy: &Envoy, host: &str, shares: &[(&str, u32)]) -> Result<()> {
    let report = Load::run(envoy.load(host).total(600)).await?;
    report.ensure_no_failure()?;
    report.ensure_shares(shares, 0.01)
}

/// The refusal of a key's document as the status has it.
async fn refused(fleet: &Fleet, key: &str) -> Result<Option<Value>> {
    let status = fleet.agent.api("/v1/status").await?;
    let refused = status["rules"]["refused"].as_array().context("no list of what was refused")?;
    Ok(refused.iter().find(|refused| refused["key"] == key).cloned())
}

/// Puts a document and waits until it is refused, with this text among its problems.
async fn put_bad(fleet: &Fleet, key: &str, document: &[u8], expected: &str, last_good: bool) -> Result<()> {
    let revision = fleet.etcd.put(key, document).await?;
    eventually(DEADLINE, format!("{key} to be refused for {expected:?}"), || async {
        let refused = refused(fleet, key).await?.context("it is not refused")?;
        ensure!(refused["revision"] == revision && refused["last_good"] == last_good, "{refused}");
        let problems = refused["problems"].as_array().context("no problems")?;
        let named = problems.iter().any(|problem| problem.as_str().is_some_and(|text| text.contains(expected)));
        ensure!(named, "{refused}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_malformed_document_the_last_good_one_stays_and_the_field_is_named() -> Result<()> {
    let scene = Scene::new()?;
    let members = [Member::new("a"), Member::new("b").weight(3)];
    let fleet = Fleet::start(&scene, &members, EnvoyOptions::dynamic()).await?;
    fleet.set_policy(json!({ "strategy": "round-robin" })).await?;
    fleet.set_route("led", json!({ "order": 1, "match": { "hosts": [LED] }, "service": SERVICE })).await?;
    let as_before = || async {
        ensure_shares(&fleet.envoy, SERVICE, &[("a", 1), ("b", 1)]).await?;
        ensure_shares(&fleet.envoy, LED, &[("a", 1), ("b", 1)]).await
    };
    as_before().await?;

    let huge = format!("{{\"strategy\": \"{}\"}}", "x".repeat(70_000));
    let policies: [(&[u8], &str); 9] = [
        (br#"{"strategy": "telepathy"}"#, "strategy"),
        (br#"{"strategy": "random", "panic_treshold": 10}"#, "panic_threshold"),
        (br#"{"ejection": {"base_time": "tomorrow"}}"#, "ejection.base_time"),
        (br#"{"panic_threshold": 101}"#, "panic_threshold"),
        (br#"{"split": {"arms": [{"subset": "v1", "weight": 1}]}}"#, "split.arms[0].subset"),
        (br#"{"strategy": {"name": "consistent-hash"}}"#, "strategy.key"),
        (b"not json", "JSON"),
        (b"\xff\xfe", "JSON"),
        (huge.as_bytes(), "bytes"),
    ];
    let refusals = fleet.agent.metric("waypost_rules_refusals_total", &[]).await?;
    for (document, expected) in policies {
        put_bad(&fleet, POLICY, document, expected, true).await?;
    }
    let routes: [(&[u8], &str); 6] = [
        (br#"{"match": {}, "service": "shop"}"#, "order"),
        (br#"{"order": 1, "match": {"path": {"exact": "no-slash"}}, "service": "shop"}"#, "match.path.exact"),
        (br#"{"order": 1, "match": {"methods": ["get"]}, "service": "shop"}"#, "match.methods[0]"),
        (br#"{"order": 1, "match": {}, "service": "shop", "timeout": 5}"#, "timeout"),
        (br#"{"order": 1, "match": {}}"#, "service"),
        (b"[]", "object"),
    ];
    for (document, expected) in routes {
        put_bad(&fleet, ROUTE, document, expected, true).await?;
    }
    let counted = fleet.agent.metric("waypost_rules_refusals_total", &[]).await? - refusals;
    ensure!(counted == 15.0, "{counted} refusals were counted");
    ensure!(fleet.agent.metric("waypost_rules_refused", &[]).await? == 2.0);
    // One that was never good, of a service that nobody has.
    put_bad(&fleet, "/waypost/policies/no/service", b"{}", "service", false).await?;
    as_before().await?;

    fleet.set_policy(json!({ "strategy": "weighted-round-robin" })).await?;
    fleet
        .set_route("led", json!({ "order": 1, "match": { "hosts": ["www.example.com"] }, "service": SERVICE }))
        .await?;
    for host in [SERVICE, "www.example.com"] {
        ensure_shares(&fleet.envoy, host, &[("a", 1), ("b", 3)]).await?;
    }
    ensure!(fleet.envoy.get(LED, "/").await?.status == 404, "the route is another one now");
    ensure!(refused(&fleet, POLICY).await?.is_none() && refused(&fleet, ROUTE).await?.is_none());
    fleet.etcd.delete("/waypost/policies/no/service").await?;
    eventually(DEADLINE, "nothing to be refused", || async {
        ensure!(fleet.agent.metric("waypost_rules_refused", &[]).await? == 0.0);
        Ok(())
    })
    .await?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_restarted_without_etcd_serves_policies_and_routes_from_disk() -> Result<()> {
    let scene = Scene::new()?;
    let members = [Member::new("a").version("v1"), Member::new("b").weight(3).version("v2")];
    let fleet = Fleet::start(&scene, &members, EnvoyOptions::dynamic()).await?;
    let subsets = json!({ "v1": { "version": "v1" } });
    fleet.set_policy(json!({ "strategy": "round-robin", "subsets": subsets })).await?;
    let route = json!({ "order": 1, "match": { "hosts": [LED] }, "service": SERVICE, "subset": "v1" });
    fleet.set_route("led", route.clone()).await?;
    let as_set = |envoy: Envoy| async move {
        ensure_shares(&envoy, SERVICE, &[("a", 1), ("b", 1)]).await?;
        ensure_shares(&envoy, LED, &[("a", 1)]).await
    };

    // What is new is on the disk within a few seconds.
    tokio::time::sleep(Duration::from_secs(3)).await;
    fleet.etcd.kill().await?;
    fleet.agent.kill().await?;
    fleet.agent.restart().await?;
    let status = fleet.agent.api("/v1/status").await?;
    ensure!(status["etcd"]["synced"] == false, "{status}");
    ensure!(status["rules"]["policies"] == 1 && status["rules"]["routes"] == 1, "{status}");
    let load = Load::start(fleet.load().rate(200.0));
    // A new Envoy has nothing but what this agent tells.
    let second = Envoy::start(&scene, &fleet.agent, &EnvoyOptions::dynamic().name("envoy-second")).await?;
    second.wait_picking(SERVICE).await?;
    as_set(second).await?;
    load.stop().await?.ensure_no_failure()?;

    // When etcd is back, so is everything as it was, and what is new counts.
    fleet.etcd.restart().await?;
    eventually(DEADLINE, "the agent to be in step", || async {
        let status = fleet.agent.api("/v1/status").await?;
        ensure!(status["etcd"]["synced"] == true, "{status}");
        Ok(())
    })
    .await?;
    fleet.etcd.put(ROUTE, json!({ "order": 1, "match": { "hosts": [LED] }, "service": SERVICE }).to_string()).await?;
    eventually(DEADLINE, "a new route to count", || ensure_shares(&fleet.envoy, LED, &[("a", 1), ("b", 1)])).await?;
    scene.close()
}
