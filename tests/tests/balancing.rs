//! What goes with a strategy: ejection, stickiness, splits, zones, priority levels, panic.
use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use waypost_catalog::model::node_key;
use waypost_tests::http::{self, Reply};
use waypost_tests::world::SERVICE;
use waypost_tests::{EnvoyOptions, Fleet, Load, LoadPlan, Member, Report, Scene, Upstream, eventually, holds_for};

const DEADLINE: Duration = Duration::from_secs(20);
/// Of what is drawn by lot: four or five standard deviations.
const DRAWN: f64 = 0.035;
const COOKIE: &str = "waypost-node";

async fn start(scene: &Scene, members: &[Member], workers: usize) -> Result<Fleet> {
    Fleet::start(scene, members, EnvoyOptions::new(&[SERVICE]).workers(workers)).await
}

async fn run(plan: LoadPlan) -> Result<Report> {
    let report = Load::run(plan).await?;
    report.ensure_no_failure()?;
    Ok(report)
}

/// Waits until so many filters have ejected a node.
async fn wait_ejected(fleet: &Fleet, node: &str, filters: u64) -> Result<()> {
    eventually(DEADLINE, format!("{filters} filters to have ejected {node}"), || async {
        let known = fleet.outcomes(node).await?;
        ensure!(known["ejected_by"] == filters, "{known}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_node_is_ejected_and_one_probe_that_succeeds_readmits_it() -> Result<()> {
    let scene = Scene::new()?;
    let fleet = start(&scene, &Member::all(["a", "b", "c", "d"]), 1).await?;
    fleet
        .set_policy(json!({
            "ejection": { "consecutive_failures": 3, "base_time": "1s", "max_time": "1s", "max_share": 25 },
            "panic_threshold": 0
        }))
        .await?;
    let failing = fleet.node("a")?;
    failing.set_status(503);
    let load = Load::start(fleet.load().connections(16).rate(400.0));
    wait_ejected(&fleet, "a", 1).await?;
    let shown = fleet.agent.cli(&["nodes", SERVICE]).await?;
    let line = shown.lines().find(|line| line.contains(&failing.address().to_string())).context("a is not shown")?;
    ensure!(line.contains("ejected"), "{shown}");
    ensure!(fleet.agent.metric("waypost_node_ejected", &[("service", SERVICE)]).await? == 1.0);

    // A failing probe each time that its second is up, and nothing else.
    let (requests, failed) = (failing.requests(), load.tally().1);
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let (requests, failed) = (failing.requests() - requests, load.tally().1 - failed);
    ensure!((1..=3).contains(&requests) && failed == requests, "{requests} requests, {failed} of them failed");

    // Once it works: one request alone, and after its answer as many as anybody has.
    failing.set_delay(Duration::from_millis(700));
    failing.set_status(200);
    eventually(DEADLINE, "the probe", || async {
        ensure!(failing.waiting() == 1, "{} wait", failing.waiting());
        Ok(())
    })
    .await?;
    holds_for(Duration::from_millis(500), "one request alone is sent", || async {
        ensure!(failing.waiting() == 1, "{} wait", failing.waiting());
        Ok(())
    })
    .await?;
    eventually(DEADLINE, "the node to have its share again", || async {
        ensure!(failing.waiting() > 1, "{} wait", failing.waiting());
        Ok(())
    })
    .await?;
    failing.set_delay(Duration::ZERO);
    wait_ejected(&fleet, "a", 0).await?;
    load.stop().await?;
    run(fleet.load().total(800)).await?.ensure_shares(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)], 0.01)?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_nodes_are_ejected_than_the_policy_allows() -> Result<()> {
    let scene = Scene::new()?;
    let fleet = start(&scene, &Member::all(["a", "b", "c", "d"]), 1).await?;
    fleet
        .set_policy(json!({
            "ejection": { "consecutive_failures": 2, "base_time": "60s", "max_share": 50 },
            "panic_threshold": 0
        }))
        .await?;
    let failing = ["a", "b", "c"];
    for node in failing {
        fleet.node(node)?.set_status(500);
    }
    let load = Load::start(fleet.load().rate(400.0));
    let ejected = || async {
        let mut ejected = 0;
        for node in failing {
            ejected += fleet.outcomes(node).await?["ejected_by"].as_u64().context("no number")?;
        }
        Ok::<_, anyhow::Error>(ejected)
    };
    eventually(DEADLINE, "two of four nodes to be ejected", || async {
        let ejected = ejected().await?;
        ensure!(ejected == 2, "{ejected} are");
        Ok(())
    })
    .await?;
    holds_for(Duration::from_millis(1_500), "two are ejected", || async {
        let ejected = ejected().await?;
        ensure!(ejected == 2, "{ejected} are");
        Ok(())
    })
    .await?;
    let before = load.tally();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (after, failed) = load.tally();
    let worked = after.get("d").copied().unwrap_or(0) - before.0.get("d").copied().unwrap_or(0);
    let failed = failed - before.1;
    ensure!(worked > 50 && failed.abs_diff(worked) < 10, "the third failing node has half: {failed} beside {worked}");
    drop(load);

    // Without ejection they are back with the next tick.
    fleet.set_policy(json!({ "panic_threshold": 0 })).await?;
    eventually(DEADLINE, "all to be asked again", || async {
        let report = Load::run(fleet.load().total(400)).await?;
        ensure!(report.failed == 300 && report.count("d") == 100, "{} failed, {:?}", report.failed, report.nodes);
        Ok(())
    })
    .await?;
    scene.close()
}

/// A request with the cookie that names a node.
async fn with_cookie(fleet: &Fleet, cookie: Option<&str>) -> Result<Reply> {
    let mut request = hyper::Request::get("/").header("host", SERVICE);
    if let Some(cookie) = cookie {
        request = request.header("cookie", format!("theme=dark; {COOKIE}={cookie}"));
    }
    let reply = http::send(fleet.envoy.listen(), request.body(Default::default())?).await?;
    ensure!(reply.status == 200, "{reply:?}");
    Ok(reply)
}

/// The value that an answer sets.
fn set_by(reply: &Reply) -> Result<Option<String>> {
    let Some(set) = reply.headers.get("set-cookie") else { return Ok(None) };
    let (value, attributes) =
        set.to_str()?.strip_prefix("waypost-node=").and_then(|set| set.split_once(';')).context("another cookie")?;
    ensure!(attributes == " Path=/; Max-Age=3600; HttpOnly; SameSite=Lax", "{attributes}");
    Ok(Some(value.to_owned()))
}

async fn ensure_at_home(fleet: &Fleet, cookie: &str, home: &str) -> Result<()> {
    for _ in 0..12 {
        let reply = with_cookie(fleet, Some(cookie)).await?;
        ensure!(reply.node() == home && set_by(&reply)?.is_none(), "{home} is the home of {cookie}: {reply:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_keeps_its_node_while_others_come_and_go_until_that_node_drains() -> Result<()> {
    let scene = Scene::new()?;
    let mut fleet = start(&scene, &Member::all(["a", "b", "c"]), 2).await?;
    fleet.set_policy(json!({ "sticky": { "cookie": COOKIE, "ttl": "1h" } })).await?;
    let first = with_cookie(&fleet, None).await?;
    let (home, cookie) = (first.node().to_owned(), set_by(&first)?.context("no cookie was set")?);
    ensure_at_home(&fleet, &cookie, &home).await?;

    let mut others: Vec<_> = ["a", "b", "c"].into_iter().filter(|node| **node != *home).collect();
    fleet.put_all(&[Member::new("d").weight(50), Member::new("e")]).await?;
    ensure_at_home(&fleet, &cookie, &home).await?;
    fleet.remove(others.remove(0)).await?;
    ensure_at_home(&fleet, &cookie, &home).await?;
    fleet.put(&Member::new(others[0]).health("critical")).await?;
    ensure_at_home(&fleet, &cookie, &home).await?;

    fleet.put(&Member::new(&home).health("draining")).await?;
    let moved = with_cookie(&fleet, Some(&cookie)).await?;
    let (next, new) = (moved.node().to_owned(), set_by(&moved)?.context("no other cookie was set")?);
    ensure!(next != home && new != cookie, "{home} drains: {moved:?}");
    ensure_at_home(&fleet, &new, &next).await?;
    fleet.put(&Member::new(&home)).await?;
    ensure_at_home(&fleet, &new, &next).await?;

    // The key of a host outside the service is of no use here, and neither is what nobody gives.
    let outside = Upstream::start("outside").await?;
    let hex = |node: u64| format!("{node:016x}");
    let mut forged = vec![hex(node_key(&outside.address().to_string())), outside.address().to_string()];
    forged.extend([hex(0), hex(u64::MAX), "g".repeat(16), "f".repeat(8_000)]);
    forged.extend(["", "\"", "../../etc", "%00", "=;="].map(str::to_owned));
    for value in &forged {
        let reply = with_cookie(&fleet, Some(value)).await?;
        ensure!(["a", "b", "c", "d", "e"].contains(&reply.node()), "{reply:?}");
        ensure!(set_by(&reply)?.is_some_and(|set| set != *value), "{value} was taken: {reply:?}");
    }
    ensure!(outside.requests() == 0, "a forged cookie reached a host outside the service");
    run(fleet.load().total(200)).await?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_of_95_to_5_is_kept_within_a_percent_and_one_header_has_one_arm() -> Result<()> {
    let scene = Scene::new()?;
    let members = [
        Member::new("a").version("v1"),
        Member::new("b").version("v1"),
        Member::new("c").version("v2"),
        Member::new("d").version("v2").tag("canary"),
    ];
    let fleet = start(&scene, &members, 2).await?;
    let subsets = json!({ "v1": { "version": "v1" }, "v2": { "version": "v2" }, "canary": { "tags": ["canary"] } });
    let arms = json!([{ "subset": "v1", "weight": 95 }, { "subset": "v2", "weight": 5 }]);
    fleet.set_policy(json!({ "subsets": subsets, "split": { "arms": arms } })).await?;
    let report = run(fleet.load().connections(16).total(12_000)).await?;
    let second = report.share("c") + report.share("d");
    ensure!((second - 0.05).abs() < 0.01, "{second:.4} for 5 %: {:?}", report.nodes);
    ensure!(report.count("a").abs_diff(report.count("b")) < 20, "within an arm all are equal: {:?}", report.nodes);

    let split = json!({ "arms": arms, "sticky": { "header": "x-user" } });
    fleet.set_policy(json!({ "subsets": subsets, "split": split })).await?;
    let sticky = fleet.load().header("x-user", "user-{key}").connections(16);
    let report = run(sticky.clone().keys(1_000).total(4_000)).await?;
    let mut second = 0;
    for (key, nodes) in &report.by_key {
        let arms: BTreeSet<_> = nodes.keys().map(|node| ["c", "d"].contains(&node.as_str())).collect();
        ensure!(arms.len() == 1, "user {key} had both arms: {nodes:?}");
        second += usize::from(arms.contains(&true));
    }
    ensure!((15..=90).contains(&second), "{second} of 1000 users have the arm of 5 %");

    // A request names its subset where the policy lets it, and only there.
    let named = |subset: &str| fleet.load().header("x-subset", subset).total(600);
    let with = |report: &Report, node: &str| report.share(node) > 0.4;
    let report = run(named("canary")).await?;
    ensure!(with(&report, "a") && with(&report, "b"), "the header is not allowed yet: {:?}", report.nodes);
    fleet.set_policy(json!({ "subsets": subsets, "split": { "arms": arms }, "subset_header": "x-subset" })).await?;
    run(named("canary")).await?.ensure_shares(&[("d", 1)], 0.0)?;
    run(named("v2")).await?.ensure_shares(&[("c", 1), ("d", 1)], 0.01)?;
    run(named("none-such")).await?.ensure_shares(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)], 0.01)?;
    let report = run(fleet.load().total(600)).await?;
    ensure!(with(&report, "a") && with(&report, "b"), "without the header the split counts: {:?}", report.nodes);

    // No node at all, if that is what is asked for.
    let strict = json!({ "subsets": subsets, "subset_header": "x-subset", "strict_subsets": true });
    fleet.set_policy(strict).await?;
    let before = fleet.envoy.counted("no_node").await?;
    Load::run(named("none-such").total(20)).await?;
    let missed = fleet.envoy.counted("no_node").await? - before;
    ensure!(missed == 20, "{missed} of 20 were counted");
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_zone_spills_over_and_comes_back() -> Result<()> {
    let scene = Scene::new()?;
    let member = |name: &str| Member::new(name).zone(if ["a", "b"].contains(&name) { "z1" } else { "z2" });
    let members = ["a", "b", "c", "d"].map(member);
    let options = EnvoyOptions::new(&[SERVICE]).workers(2);
    let mut fleet = Fleet::start_with(&scene, &members, options, |config| config.zone("z1")).await?;
    let plan = fleet.load().total(3_000);
    run(plan.clone()).await?.ensure_shares(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)], 0.01)?;
    fleet.set_policy(json!({ "locality": { "zone_aware": true, "min_nodes": 1 } })).await?;
    let home = [("a", 1), ("b", 1)];
    run(plan.clone()).await?.ensure_shares(&home, 0.01)?;

    // The zone makes half of the requests and has a third of the nodes left: a third of its requests go elsewhere.
    fleet.put(&member("a").health("critical")).await?;
    run(plan.clone()).await?.ensure_shares(&[("b", 4), ("c", 1), ("d", 1)], DRAWN)?;
    fleet.put(&member("b").health("critical")).await?;
    run(plan.clone()).await?.ensure_shares(&[("c", 1), ("d", 1)], 0.01)?;
    fleet.put_all(&[member("a"), member("b")]).await?;
    run(plan.clone()).await?.ensure_shares(&home, 0.01)?;

    // Not with so few nodes.
    fleet.set_policy(json!({ "locality": { "zone_aware": true, "min_nodes": 5 } })).await?;
    run(plan).await?.ensure_shares(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)], 0.01)?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_level_gets_requests_only_as_the_first_loses_health() -> Result<()> {
    let scene = Scene::new()?;
    let member =
        |name: &str| Member::new(name).metadata("tier", if ["a", "b"].contains(&name) { "0" } else { "1" }).zone(name);
    let mut fleet = start(&scene, &["a", "b", "c", "d"].map(member), 2).await?;
    let plan = fleet.load().total(3_000);
    for policy in [json!({ "metadata": "tier" }), json!({ "zones": ["a", "b"] })] {
        let by_zone = policy["zones"].is_array();
        fleet.set_policy(json!({ "priority": policy })).await?;
        let first: &[(&str, u32)] = if by_zone { &[("a", 1)] } else { &[("a", 1), ("b", 1)] };
        run(plan.clone()).await?.ensure_shares(first, 0.01)?;
        // Half of the first level carries 70 %; a level whose only node is lost carries nothing.
        fleet.put(&member("a").health("critical")).await?;
        let left: &[(&str, u32)] = if by_zone { &[("b", 1)] } else { &[("b", 14), ("c", 3), ("d", 3)] };
        run(plan.clone()).await?.ensure_shares(left, DRAWN)?;
        fleet.put(&member("b").health("critical")).await?;
        run(plan.clone()).await?.ensure_shares(&[("c", 1), ("d", 1)], 0.01)?;
        fleet.put_all(&[member("a"), member("b")]).await?;
        run(plan.clone()).await?.ensure_shares(first, 0.01)?;
    }
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_most_nodes_critical_all_but_draining_ones_are_picked_and_that_is_counted() -> Result<()> {
    let scene = Scene::new()?;
    let critical = ["a", "b", "c"].map(|name| Member::new(name).health("critical"));
    let members = [&critical[..], &[Member::new("d"), Member::new("e").health("draining")]].concat();
    let fleet = start(&scene, &members, 1).await?;
    let plan = fleet.load().total(800);
    let before = fleet.envoy.counted("panic_picks").await?;
    run(plan.clone()).await?.ensure_shares(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)], 0.01)?;
    let counted = fleet.envoy.counted("panic_picks").await? - before;
    ensure!(counted == 800, "{counted} of 800 were counted");
    eventually(DEADLINE, "the agent to hear of it", || async {
        let outcomes = fleet.agent.api("/v1/outcomes").await?;
        ensure!(outcomes["services"][0]["panic_picks"].as_u64() >= Some(800), "{outcomes}");
        ensure!(fleet.agent.metric("waypost_panic_picks_total", &[("service", SERVICE)]).await? >= 800.0);
        Ok(())
    })
    .await?;

    for (threshold, expected) in [(0, &[("d", 1)][..]), (25, &[("d", 1)]), (26, &[("a", 1), ("d", 1)])] {
        fleet.set_policy(json!({ "panic_threshold": threshold })).await?;
        let before = fleet.envoy.counted("panic_picks").await?;
        let report = run(plan.clone()).await?;
        let counted = fleet.envoy.counted("panic_picks").await? - before;
        if let [only] = expected {
            report.ensure_shares(&[*only], 0.0)?;
            ensure!(counted == 0, "{counted} were counted at {threshold} %");
        } else {
            ensure!(report.nodes.len() == 4 && counted == 800, "{:?}, {counted} counted", report.nodes);
        }
    }
    scene.close()
}
