//! What becomes of requests: what is told of it, and what is left where a filter does not hear of it.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use waypost_tests::world::SERVICE;
use waypost_tests::{EnvoyOptions, Fleet, Load, LoadPlan, Member, Scene, Upstream, eventually, tools};

const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until what is known of a node is so.
async fn wait_known(fleet: &Fleet, node: &str, expected: &[(&str, u64)]) -> Result<Value> {
    eventually(DEADLINE, format!("{expected:?} to be known of {node}"), || async {
        let known = fleet.outcomes(node).await?;
        for (field, expected) in expected {
            ensure!(known[field].as_u64() == Some(*expected), "{field} is not {expected}: {known}");
        }
        Ok(known)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn how_requests_end_is_shown_by_the_api_the_cli_and_the_metrics() -> Result<()> {
    let scene = Scene::new()?;
    let mut fleet = Fleet::start(&scene, &Member::all(["a", "b"]), EnvoyOptions::new(&[SERVICE]).workers(2)).await?;
    let requests = |known: &Value| known["requests"].as_u64().context("no number");
    fleet.wait_reported().await?;
    let (a, b) = (requests(&fleet.outcomes("a").await?)?, requests(&fleet.outcomes("b").await?)?);
    Load::run(fleet.load().total(1_000)).await?.ensure_no_failure()?;
    let plan = |path: &str| fleet.load().path(path).total(100);
    Load::run(plan("/status/500")).await?;
    Load::run(plan("/status/404")).await?;
    eventually(DEADLINE, "all requests to be reported", || async {
        let known = [fleet.outcomes("a").await?, fleet.outcomes("b").await?];
        let sum = requests(&known[0])? + requests(&known[1])? - a - b;
        let errors: u64 = known.iter().filter_map(|known| known["server_errors"].as_u64()).sum();
        ensure!(sum == 1_200 && errors == 100, "{sum} requests, {errors} errors: {known:?}");
        for known in &known {
            let of = |field: &str| known[field].as_f64().with_context(|| format!("no {field}: {known}"));
            ensure!(of("p99_ms")? >= of("p50_ms")? && of("p50_ms")? > 0.0 && of("p99_ms")? < 2_000.0, "{known}");
            ensure!(of("rate")? > 1.0 && (0.05..0.12).contains(&of("error_share")?), "{known}");
        }
        Ok(())
    })
    .await?;
    let shown = fleet.agent.cli(&["nodes", SERVICE]).await?;
    let mut lines = shown.lines();
    let header = lines.next().context("nothing is shown")?;
    ensure!(["RATE", "ERRORS", "P99"].iter().all(|column| header.contains(column)), "{shown}");
    ensure!(lines.all(|line| line.contains("/s") && line.contains(" %") && line.contains(" ms")), "{shown}");
    let shown: Value = serde_json::from_str(&fleet.agent.cli(&["nodes", SERVICE, "--json"]).await?)?;
    ensure!(shown["nodes"][0]["outcomes"]["server_errors"].as_u64() > Some(0), "{shown}");
    let metric = |name: &'static str, labels: Vec<(&'static str, String)>| {
        let fleet = &fleet;
        async move {
            let labels: Vec<_> = labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
            fleet.agent.metric(name, &labels).await
        }
    };
    let service = || vec![("service", SERVICE.to_owned())];
    ensure!(metric("waypost_node_requests_total", service()).await? as u64 == 1_200 + a + b);
    let errors = [service(), vec![("kind", "server-error".to_owned())]].concat();
    ensure!(metric("waypost_node_failures_total", errors).await? == 100.0);

    // Under way, and then not any more.
    let node = fleet.node("a")?;
    node.set_delay(Duration::from_millis(2_500));
    let slow = Load::start(fleet.load().connections(6).total(6));
    eventually(DEADLINE, "requests under way to be known", || async {
        let known = fleet.outcomes("a").await?;
        ensure!(known["in_flight"].as_u64() > Some(0), "{known}");
        Ok(())
    })
    .await?;
    slow.finish(DEADLINE).await?.ensure_no_failure()?;
    fleet.node("a")?.set_delay(Duration::ZERO);
    wait_known(&fleet, "a", &[("in_flight", 0)]).await?;

    // A node that is gone without a word: its tries fail, no request does.
    let failed = metric("waypost_node_failures_total", [service(), vec![("kind", "failed-try".to_owned())]].concat());
    ensure!(failed.await? == 0.0);
    let address = fleet.node("a")?.address().to_string();
    fleet.stop("a")?;
    let report = Load::run(fleet.load().total(400)).await?;
    report.ensure_no_failure()?;
    report.ensure_shares(&[("b", 1)], 0.0)?;
    eventually(DEADLINE, "failed tries to be known", || async {
        let known = fleet.agent.api("/v1/outcomes").await?;
        let nodes = known["services"][0]["nodes"].as_array().context("no nodes")?;
        let known = nodes.iter().find(|node| node["address"] == address.as_str()).context("it is not known")?;
        ensure!(known["failed_tries"].as_u64() > Some(150), "{known}");
        let labels = [("service", SERVICE), ("node", &address), ("kind", "failed-try")];
        ensure!(fleet.agent.metric("waypost_node_failures_total", &labels).await? > 150.0);
        Ok(())
    })
    .await?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_asks_for_is_not_reported() -> Result<()> {
    let scene = Scene::new()?;
    let fleet = Fleet::start(&scene, &Member::all(["a", "b"]), EnvoyOptions::new(&[SERVICE])).await?;
    fleet.set_policy(json!({ "outcomes": false })).await?;
    fleet.wait_reported().await?;
    let of = |known: Value| known["requests"].as_u64().context("no number");
    let before = of(fleet.outcomes("a").await?)?;
    Load::run(fleet.load().total(400)).await?.ensure_no_failure()?;
    fleet.wait_reported().await?;
    let after = of(fleet.outcomes("a").await?)?;
    ensure!(after == before, "{after} after {before}");
    scene.close()
}

async fn run(plan: LoadPlan) -> Result<waypost_tests::Report> {
    let report = Load::run(plan).await?;
    report.ensure_no_failure()?;
    Ok(report)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lean_filter_does_all_that_needs_no_outcomes_and_counts_what_does() -> Result<()> {
    let scene = Scene::new()?;
    let members = [Member::new("a").version("v1"), Member::new("b").weight(3).version("v2")];
    let envoy = EnvoyOptions::dynamic().workers(2).plugin(tools::lean_wasm()?);
    let fleet = Fleet::start(&scene, &members, envoy).await?;
    let plan = fleet.load().connections(16);
    for strategy in ["least-request", "peak-ewma"] {
        fleet.set_policy(json!({ "strategy": strategy })).await?;
        let before = fleet.envoy.counted("outcomes_missing").await?;
        run(plan.clone().total(800)).await?.ensure_shares(&[("a", 1), ("b", 3)], 0.01)?;
        let counted = fleet.envoy.counted("outcomes_missing").await? - before;
        ensure!(counted == 800, "{counted} of 800 were counted for {strategy}");
    }

    let missing = fleet.envoy.counted("outcomes_missing").await?;
    fleet.set_policy(json!({ "strategy": "round-robin" })).await?;
    run(plan.clone().total(800)).await?.ensure_shares(&[("a", 1), ("b", 1)], 0.01)?;
    fleet.set_policy(json!({ "strategy": { "name": "consistent-hash", "key": { "header": "x-user" } } })).await?;
    let homes = run(plan.clone().header("x-user", "{key}").keys(200).total(800)).await?.homes()?;
    let share = homes.values().filter(|home| *home == "b").count() as f64 / 200.0;
    ensure!((0.6..0.9).contains(&share), "b is home to {share} of the keys instead of 0.75");
    fleet
        .set_policy(json!({
            "subsets": { "v1": { "version": "v1" }, "v2": { "version": "v2" } },
            "split": { "arms": [{ "subset": "v1", "weight": 80 }, { "subset": "v2", "weight": 20 }] }
        }))
        .await?;
    run(plan.clone().total(2_000)).await?.ensure_shares(&[("a", 4), ("b", 1)], 0.045)?;
    let other = Upstream::start("other").await?;
    fleet.put_of("other", &Member::new("other"), other.address()).await?;
    let route = json!({ "order": 1, "match": { "path": { "prefix": "/v2" } }, "service": SERVICE, "subset": "v2" });
    fleet.set_route("v2", route).await?;
    run(plan.clone().path("/v2/x").total(200)).await?.ensure_shares(&[("b", 1)], 0.0)?;
    fleet.envoy.wait_picking("other").await?;
    run(fleet.envoy.load("other").total(100)).await?.ensure_shares(&[("other", 1)], 0.0)?;
    let missed = fleet.envoy.counted("outcomes_missing").await? - missing;
    ensure!(missed == 0, "{missed} requests missed outcomes that nothing needs");
    let known = fleet.agent.api("/v1/outcomes").await?;
    ensure!(known["services"].as_array().is_some_and(Vec::is_empty), "{known}");
    scene.close()
}
