//! What each strategy promises, over real requests.
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use waypost_tests::world::SERVICE;
use waypost_tests::{EnvoyOptions, Fleet, Load, LoadPlan, Member, Report, Scene, eventually};

const DEADLINE: Duration = Duration::from_secs(20);
const REQUESTS: u64 = 4_000;
const WEIGHTS: [(&str, u32); 3] = [("a", 1), ("b", 2), ("c", 3)];
const EQUAL: [(&str, u32); 3] = [("a", 1), ("b", 1), ("c", 1)];
/// Of what is drawn: almost five standard deviations.
const DRAWN: f64 = 0.038;
/// Of what goes round: a few requests of each worker.
const EXACT: f64 = 0.004;
/// A table that is built within a tick.
const TABLE: u32 = 1_009;
/// Ticks within which every worker has built it.
const BUILT: Duration = Duration::from_millis(500);

fn weighted() -> Vec<Member> {
    WEIGHTS.map(|(name, weight)| Member::new(name).weight(weight)).into()
}

async fn start(scene: &Scene, members: &[Member], workers: usize) -> Result<Fleet> {
    Fleet::start(scene, members, EnvoyOptions::new(&[SERVICE]).workers(workers)).await
}

async fn run(plan: LoadPlan) -> Result<Report> {
    let report = Load::run(plan).await?;
    report.ensure_no_failure()?;
    Ok(report)
}

async fn every_strategy_keeps_its_shares_with(workers: usize) -> Result<()> {
    let scene = Scene::new()?;
    let fleet = start(&scene, &weighted(), workers).await?;
    let plan = fleet.load().connections(4 * workers).total(REQUESTS);
    for (strategy, weights, tolerance) in [
        ("random", EQUAL, DRAWN),
        ("round-robin", EQUAL, EXACT),
        ("weighted-random", WEIGHTS, DRAWN),
        ("weighted-round-robin", WEIGHTS, EXACT),
    ] {
        fleet.set_policy(json!({ "strategy": strategy })).await?;
        let report = run(plan.clone()).await?;
        report.ensure_shares(&weights, tolerance).map_err(|error| error.context(strategy))?;
    }

    // None is under way when the next one comes: all nodes are equally busy.
    fleet.set_policy(json!({ "strategy": "least-request" })).await?;
    let mut nodes = BTreeMap::new();
    for _ in 0..4 * workers {
        let report = run(fleet.load().connections(1).total(REQUESTS / (4 * workers as u64))).await?;
        report.nodes.into_iter().for_each(|(node, count)| *nodes.entry(node).or_default() += count);
    }
    Report { nodes, ..Report::default() }.ensure_shares(&WEIGHTS, DRAWN)?;

    // As fast as each other, as far as a few milliseconds can be told from a few others.
    for (node, _) in WEIGHTS {
        fleet.node(node)?.set_delay(Duration::from_millis(5));
    }
    fleet.set_policy(json!({ "strategy": "peak-ewma" })).await?;
    let report = run(plan.connections(4 * workers).total(1_000)).await?;
    let [a, b, c] = ["a", "b", "c"].map(|node| report.share(node));
    ensure!(a > 0.05 && b > 0.15 && c > 0.3 && a < c, "{:?}", report.nodes);
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_strategy_keeps_its_shares_with_one_worker() -> Result<()> {
    every_strategy_keeps_its_shares_with(1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_strategy_keeps_its_shares_with_four_workers() -> Result<()> {
    every_strategy_keeps_its_shares_with(4).await
}

/// Keys that have another home than before, of those that were at home on one of `nodes`.
fn moved(before: &BTreeMap<u64, String>, now: &BTreeMap<u64, String>, nodes: &[&str]) -> (usize, usize) {
    let there: Vec<_> = before.iter().filter(|(_, node)| nodes.contains(&node.as_str())).collect();
    (there.iter().filter(|(key, node)| now.get(key) != Some(node)).count(), there.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_has_one_node_on_all_workers_and_only_the_keys_of_a_node_that_leaves_move() -> Result<()> {
    const KEYS: u64 = 1_500;
    let scene = Scene::new()?;
    let mut fleet = start(&scene, &weighted(), 4).await?;
    let policy = |key: Value| json!({ "strategy": { "name": "consistent-hash", "key": key, "table_size": TABLE } });
    fleet.set_policy(policy(json!({ "header": "x-user" }))).await?;
    let by_header = fleet.load().header("x-user", "user-{key}").connections(32).keys(KEYS).total(3 * KEYS);
    run(by_header.clone()).await?;
    tokio::time::sleep(BUILT).await;

    let homes = run(by_header.clone()).await?.homes()?;
    for (node, weight) in WEIGHTS {
        let share = homes.values().filter(|home| *home == node).count() as f64 / KEYS as f64;
        let expected = f64::from(weight) / 6.0;
        ensure!((share - expected).abs() < 0.06, "{node} is home to {share:.3} of the keys instead of {expected:.3}");
    }

    // Out for a while: its keys go elsewhere, all others stay, and then they come home.
    fleet.put(&Member::new("b").weight(2).health("critical")).await?;
    let without = run(by_header.clone()).await?.homes()?;
    ensure!(without.values().all(|home| home != "b"));
    ensure!(moved(&homes, &without, &["a", "c"]).0 == 0, "{:?}", moved(&homes, &without, &["a", "c"]));
    fleet.put(&Member::new("b").weight(2)).await?;
    ensure!(run(by_header.clone()).await?.homes()? == homes, "keys did not come home");

    // Gone for good: a new table, in which few others move.
    fleet.remove("b").await?;
    run(by_header.clone()).await?;
    tokio::time::sleep(BUILT).await;
    let without = run(by_header.clone()).await?.homes()?;
    ensure!(without.values().all(|home| home != "b"));
    let (others, of) = moved(&homes, &without, &["a", "c"]);
    ensure!(others * 20 < of, "{others} of {of} keys of nodes that stayed moved");

    // Whatever else a key is taken from.
    for (key, plan) in [
        (json!({ "cookie": "sid" }), fleet.load().header("cookie", "other=1; sid=user-{key}")),
        (json!({ "query": "user" }), fleet.load().path("/?page=1&user={key}")),
        (json!("path"), fleet.load().path("/users/{key}?page=1")),
    ] {
        fleet.set_policy(policy(key)).await?;
        let homes = run(plan.connections(32).keys(200).total(800)).await?.homes()?;
        ensure!(["a", "c"].iter().all(|node| homes.values().any(|home| home == node)), "{homes:?}");
    }
    fleet.set_policy(policy(json!("source"))).await?;
    let report = run(fleet.load().connections(32).total(200)).await?;
    ensure!(report.nodes.len() == 1, "one source went to {:?}", report.nodes);
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_node_gets_less_of_strategies_that_look_at_load_or_latency() -> Result<()> {
    let scene = Scene::new()?;
    let fleet = start(&scene, &Member::all(["a", "b", "c", "d"]), 2).await?;
    fleet.node("d")?.set_delay(Duration::from_millis(20));
    let plan = fleet.load().connections(24).total(2_000);
    let mut shares = Vec::new();
    for strategy in ["weighted-round-robin", "least-request", "peak-ewma"] {
        fleet.set_policy(json!({ "strategy": strategy })).await?;
        let report = run(plan.clone()).await?;
        shares.push(report.share("d"));
        let [a, b, c] = ["a", "b", "c"].map(|node| report.share(node));
        ensure!(a.min(b).min(c) > 0.1, "{strategy} starves a node: {:?}", report.nodes);
    }
    ensure!((shares[0] - 0.25).abs() < EXACT, "by weight: {shares:?}");
    ensure!(shares[1] < 0.125 && shares[2] < 0.05, "the slow node is not spared: {shares:?}");

    // It is no slower than others any more, and found out to be so.
    fleet.set_policy(json!({ "strategy": { "name": "peak-ewma", "decay": "500ms" } })).await?;
    run(plan.clone()).await?;
    fleet.node("d")?.set_delay(Duration::ZERO);
    eventually(DEADLINE, "the node to get its share again", || async {
        let report = run(plan.clone()).await?;
        ensure!(report.share("d") > 0.12, "{:?}", report.nodes);
        Ok(())
    })
    .await?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_nodes_share_grows_as_slow_start_says() -> Result<()> {
    const WINDOW: f64 = 8.0;
    let scene = Scene::new()?;
    let mut fleet = start(&scene, &Member::all(["a", "b"]).map(|member| member.weight(100)), 1).await?;
    fleet.set_policy(json!({ "slow_start": { "window": "8s", "aggression": 1.0, "min_share": 10 } })).await?;
    let load = Load::start(fleet.load().rate(1_000.0));
    let began = Instant::now();
    fleet.put(&Member::new("c").weight(100)).await?;
    let mut seen = Vec::new();
    for middle in [0.5, 2.5, 5.5, 9.0] {
        let at = |seconds: f64| tokio::time::Instant::from_std(began + Duration::from_secs_f64(seconds));
        tokio::time::sleep_until(at(middle - 0.5)).await;
        let before = load.snapshot();
        tokio::time::sleep_until(at(middle + 0.5)).await;
        let share = load.snapshot().since(&before).share("c");
        let grown = (middle / WINDOW).clamp(0.1, 1.0);
        seen.push((middle, share, grown / (2.0 + grown)));
    }
    load.stop().await?.ensure_no_failure()?;
    for (at, share, expected) in &seen {
        ensure!((share - expected).abs() < 0.03, "after {at} s {share:.3} instead of {expected:.3}: {seen:?}");
    }
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_changed_over_and_over_under_load_costs_no_request() -> Result<()> {
    let scene = Scene::new()?;
    let mut members = Member::all(["a", "b", "c", "d"]).map(|member| member.version("v1"));
    members[3] = Member::new("d").weight(2).version("v2");
    let fleet = start(&scene, &members, 4).await?;
    let load = Load::start(fleet.load().connections(16).rate(1_500.0).header("x-user", "user-{key}").keys(50));
    let hash = json!({ "name": "consistent-hash", "key": { "header": "x-user" }, "bounded_load": 1.25 });
    let policies = [
        json!({ "strategy": "random" }),
        json!({ "strategy": "round-robin", "sticky": { "cookie": "node" } }),
        json!({ "strategy": "weighted-random", "slow_start": { "window": "5s" } }),
        json!({ "strategy": "least-request", "ejection": { "consecutive_failures": 3 } }),
        json!({ "strategy": { "name": "peak-ewma", "decay": "2s" }, "locality": { "zone_aware": true } }),
        json!({ "strategy": hash }),
        json!({
            "subsets": { "v1": { "version": "v1" }, "v2": { "version": "v2" } },
            "split": { "arms": [{ "subset": "v1", "weight": 9 }, { "subset": "v2", "weight": 1 }] }
        }),
        json!({ "strategy": "weighted-round-robin", "outcomes": false }),
    ];
    for _ in 0..3 {
        for policy in &policies {
            fleet.set_policy(policy.clone()).await?;
        }
    }
    fleet.etcd.delete(&format!("/waypost/policies/{SERVICE}")).await?;
    let changes = fleet.agent.metric("waypost_catalog_version", &[]).await?;
    let report = load.stop().await?;
    report.ensure_no_failure()?;
    ensure!(report.nodes.len() == 4 && changes >= 24.0, "{changes} versions, {:?}", report.nodes);
    scene.close()
}
