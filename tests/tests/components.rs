//! Strategies that are WebAssembly components: what they decide, and what it comes to when they fail.
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use waypost_tests::fleet::{Fleet, Member};
use waypost_tests::world::SERVICE;
use waypost_tests::{EnvoyOptions, Load, Report, Scene, eventually, tools};

const DEADLINE: Duration = Duration::from_secs(20);
const REQUESTS: u64 = 1_200;

/// A fleet whose agent knows these components, each under a name.
async fn start(scene: &Scene, members: &[Member], components: &[(&str, &str)], memory_mib: usize) -> Result<Fleet> {
    let directory = scene.path().join("strategies");
    std::fs::create_dir(&directory)?;
    for (name, component) in components {
        install(&directory, name, component)?;
    }
    Fleet::start_with(scene, members, EnvoyOptions::new(&[SERVICE]).workers(2), |config| {
        config.strategies(&directory, memory_mib)
    })
    .await
}

/// As an operator would: in one step.
fn install(directory: &Path, name: &str, component: &str) -> Result<()> {
    let next = directory.join(format!("{name}.next"));
    std::fs::copy(tools::strategy_wasm(component)?, &next)?;
    std::fs::rename(next, directory.join(format!("{name}.wasm")))?;
    Ok(())
}

fn weighed_by(component: &str, parameters: Value) -> Value {
    json!({ "component": { "name": component, "parameters": parameters } })
}

async fn run(fleet: &Fleet) -> Result<Report> {
    let report = Load::run(fleet.load().total(REQUESTS)).await?;
    report.ensure_no_failure()?;
    Ok(report)
}

/// Waits until requests are shared like that.
async fn wait_shares(fleet: &Fleet, weights: &[(&str, u32)]) -> Result<()> {
    eventually(DEADLINE, format!("shares of {weights:?}"), || async { run(fleet).await?.ensure_shares(weights, 0.01) })
        .await
}

/// What the agent says of the service's component.
async fn state(fleet: &Fleet) -> Result<Value> {
    let status = fleet.agent.api("/v1/status").await?;
    let component = status["rules"]["components"].get(0).cloned();
    component.with_context(|| format!("no component is at work: {status}"))
}

/// Waits until it fails for a reason that says this.
async fn wait_failing(fleet: &Fleet, reason: &str) -> Result<()> {
    eventually(DEADLINE, format!("the component to fail: {reason}"), || async {
        let state = state(fleet).await?;
        let problem = state["problem"].as_str().unwrap_or_default();
        ensure!(problem.contains(reason), "{state}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_follow_a_components_weights_in_rust_and_in_python() -> Result<()> {
    let scene = Scene::new()?;
    let capacity = |name: &str, cores: &str| Member::new(name).metadata("cores", cores);
    let members = [capacity("a", "1"), capacity("b", "2"), capacity("c", "5")];
    let components = [("capacity", "capacity"), ("python", "capacity-python")];
    let mut fleet = start(&scene, &members, &components, 256).await?;
    wait_shares(&fleet, &[("a", 1), ("b", 1), ("c", 1)]).await?;
    for name in ["capacity", "python"] {
        fleet.set_policy(weighed_by(name, json!({ "field": "cores" }))).await?;
        // Python takes its time to be compiled.
        eventually(Duration::from_secs(120), format!("{name} to answer"), || async {
            let state = state(&fleet).await?;
            ensure!(state["component"] == name && state["problem"].is_null() && state["answers"].as_u64() > Some(0));
            Ok(())
        })
        .await?;
        wait_shares(&fleet, &[("a", 1), ("b", 2), ("c", 5)]).await?;
        // A node that changes, one that comes.
        fleet.put(&capacity("a", "5")).await?;
        fleet.put(&capacity("d", "5")).await?;
        wait_shares(&fleet, &[("a", 5), ("b", 2), ("c", 5), ("d", 5)]).await?;
        fleet.put(&capacity("a", "1")).await?;
        fleet.remove("d").await?;
        wait_shares(&fleet, &[("a", 1), ("b", 2), ("c", 5)]).await?;
    }
    fleet.set_policy(json!({})).await?;
    wait_shares(&fleet, &[("a", 1), ("b", 1), ("c", 1)]).await?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_that_fails_leaves_plain_weights_and_then_its_last_good_answer() -> Result<()> {
    let scene = Scene::new()?;
    let members = [Member::new("a"), Member::new("b")];
    let fleet = start(&scene, &members, &[("bad", "misbehaving")], 16).await?;
    let plain = [("a", 1), ("b", 1)];
    let deeds = [
        ("loop", "100 ms"),
        ("allocate", "16 MiB of memory"),
        ("trap", "trapped"),
        ("refuse", "it was told to"),
        ("nonsense", "3 decisions for 2 nodes"),
    ];
    // Before it has ever answered.
    for (deed, reason) in deeds {
        fleet.set_policy(weighed_by("bad", json!({ "do": deed }))).await?;
        wait_failing(&fleet, reason).await?;
        run(&fleet).await?.ensure_shares(&plain, 0.01)?;
    }
    // It works; then it fails again, in each way: what it decided stands.
    for (weight, (deed, reason)) in (2..).zip(deeds) {
        fleet.set_policy(weighed_by("bad", json!({ "do": "weigh", "weight": weight }))).await?;
        let decided = if node_order(&fleet)? { [("a", weight), ("b", 1)] } else { [("a", 1), ("b", weight)] };
        wait_shares(&fleet, &decided).await?;
        fleet.set_policy(weighed_by("bad", json!({ "do": deed }))).await?;
        wait_failing(&fleet, reason).await?;
        run(&fleet).await?.ensure_shares(&decided, 0.01)?;
    }
    let labels = [("service", SERVICE)];
    ensure!(fleet.agent.metric("waypost_component_works", &labels).await? == 0.0);
    ensure!(fleet.agent.metric("waypost_component_failures_total", &labels).await? >= 10.0);
    // One that is not there, and one that keeps to no contract.
    fleet.set_policy(weighed_by("missing", json!({}))).await?;
    wait_failing(&fleet, "missing").await?;
    run(&fleet).await?;
    scene.close()
}

/// Puts a component into etcd by the command for it. Its hash.
async fn publish(fleet: &Fleet, component: &Path) -> Result<String> {
    let mut command = tokio::process::Command::new(tools::waypost()?);
    command.args(["strategy", "publish", "--json", "--etcd", &fleet.etcd.endpoints()[0]]).arg(component);
    let output = command.kill_on_drop(true).output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout)?;
    Ok(document["sha256"].as_str().context("no hash")?.to_owned())
}

/// Whether `a` comes first: components are asked in the order of addresses.
fn node_order(fleet: &Fleet) -> Result<bool> {
    Ok(fleet.node("a")?.address() < fleet.node("b")?.address())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_file_is_at_work_within_seconds_and_a_broken_one_changes_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let capacity = |name: &str, cores: &str| Member::new(name).metadata("capacity", cores);
    let fleet = start(&scene, &[capacity("a", "1"), capacity("b", "3")], &[("mine", "capacity")], 64).await?;
    let directory = scene.path().join("strategies");
    fleet.set_policy(weighed_by("mine", json!({}))).await?;
    wait_shares(&fleet, &[("a", 1), ("b", 3)]).await?;
    std::fs::write(directory.join("mine.wasm"), b"no component at all")?;
    wait_failing(&fleet, "").await?;
    run(&fleet).await?.ensure_shares(&[("a", 1), ("b", 3)], 0.01)?;
    // Another one, that refuses these parameters, and then the first again.
    install(&directory, "mine", "misbehaving")?;
    wait_failing(&fleet, "missing field").await?;
    run(&fleet).await?.ensure_shares(&[("a", 1), ("b", 3)], 0.01)?;
    install(&directory, "mine", "capacity")?;
    eventually(DEADLINE, "the component to work again", || async {
        let state = state(&fleet).await?;
        ensure!(state["problem"].is_null(), "{state}");
        Ok(())
    })
    .await?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_in_etcd_is_found_by_its_hash_and_moves_requests_away_from_failures() -> Result<()> {
    let scene = Scene::new()?;
    let fleet = start(&scene, &[Member::new("a"), Member::new("b")], &[], 64).await?;
    let published = publish(&fleet, &tools::strategy_wasm("outcomes")?).await?;
    fleet.set_policy(json!({ "component": { "sha256": published, "parameters": {} } })).await?;
    fleet.node("a")?.set_status(503);
    eventually(Duration::from_secs(40), "requests to leave the node that fails", || async {
        let report = Load::run(fleet.load().total(REQUESTS)).await?;
        ensure!(report.count("b") > REQUESTS * 8 / 10, "{:?}, {} failed", report.nodes, report.failed);
        Ok(())
    })
    .await?;
    scene.close()
}
