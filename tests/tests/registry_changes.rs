//! What changes in etcd, or in a node's health, shows in who is served; nothing is restarted.
use std::time::Duration;

use anyhow::{Result, ensure};
use waypost_tests::world::{PREFIX, SERVICE, WEIGHTS, World, entry};
use waypost_tests::{
    Agent, AgentConfig, Envoy, EnvoyOptions, Etcd, Load, LoadPlan, Report, Scene, ServiceConfig, Upstream, eventually,
};

const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until all requests succeed and exactly these nodes answer.
async fn served_by(plan: LoadPlan, expected: &[&str]) -> Result<()> {
    eventually(DEADLINE, format!("{expected:?} to answer"), || async {
        let report: Report = Load::run(plan.clone().total(200)).await?;
        report.ensure_no_failure()?;
        let nodes: Vec<&str> = report.nodes.keys().map(String::as_str).collect();
        ensure!(nodes == expected, "{nodes:?} answer");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_node_is_served_and_a_deleted_one_is_not() -> Result<()> {
    let scene = Scene::new()?;
    let world = World::start(&scene).await?;
    let fourth = Upstream::start("d").await?;
    let (key, value) = entry(SERVICE, "d", fourth.address(), 2);
    let load = Load::start(world.load().rate(300.0));
    world.etcd.put(&key, value).await?;
    served_by(world.load(), &["a", "b", "c", "d"]).await?;
    world.etcd.delete(&key).await?;
    served_by(world.load(), &["a", "b", "c"]).await?;
    load.stop().await?.ensure_no_failure()?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_moves_to_another_port_is_served_there_and_no_longer_at_the_old_one() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let agent = Agent::start(&scene, &AgentConfig::new("host-a", &etcd.endpoints())).await?;
    let ports = [Upstream::start("first").await?, Upstream::start("second").await?, Upstream::start("third").await?];
    etcd.put(&format!("{PREFIX}only"), entry(SERVICE, "only", ports[0].address(), 1).1).await?;
    let envoy = Envoy::start(&scene, &agent, &EnvoyOptions::new(&[SERVICE])).await?;
    let load = Load::start(envoy.load(SERVICE).rate(300.0));
    for port in &ports {
        let (key, value) = entry(SERVICE, "only", port.address(), 1);
        etcd.put(&key, value).await?;
        served_by(envoy.load(SERVICE), &[port.name()]).await?;
    }
    ensure!(agent.metric("waypost_guard_holds_total", &[]).await? == 0.0, "a move was taken for a loss");
    load.stop().await?.ensure_no_failure()?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_appears_later_is_served_and_the_last_one_of_a_service_can_go() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let config = AgentConfig::new("host-a", &etcd.endpoints()).guard(1.0, "1s");
    let agent = Agent::start(&scene, &config).await?;
    let envoy = Envoy::prepare(&scene, &agent, &EnvoyOptions::new(&["late"])).await?;
    envoy.launch()?;
    envoy.wait_ready().await?;
    ensure!(envoy.get("late", "/").await?.status == 503, "a service without nodes must be answered with 503");
    let node = Upstream::start("a").await?;
    let (key, value) = entry("late", "a", node.address(), 1);
    etcd.put(&key, value).await?;
    served_by(envoy.load("late"), &["a"]).await?;
    envoy.wait_picking("late").await?;
    etcd.delete(&key).await?;
    eventually(DEADLINE, "503 for a service whose last node has gone", || async {
        ensure!(envoy.get("late", "/").await?.status == 503, "it is still served");
        Ok(())
    })
    .await?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_check_fails_gets_no_request_until_it_passes_again() -> Result<()> {
    let scene = Scene::new()?;
    let mut world = World::start(&scene).await?;
    world.config.services =
        std::mem::take(&mut world.config.services).into_iter().map(ServiceConfig::checked).collect();
    world.agent.configure(&world.config)?;
    served_by(world.load(), &["a", "b", "c"]).await?;
    let load = Load::start(world.load().rate(300.0));
    world.node("c")?.set_healthy(false);
    served_by(world.load(), &["a", "b"]).await?;
    ensure!(world.registered().await?.len() == 3, "a critical node stays in the registry");
    world.node("c")?.set_healthy(true);
    served_by(world.load(), &["a", "b", "c"]).await?;
    load.stop().await?.ensure_no_failure()?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_most_nodes_at_once_is_not_believed_until_the_grace_has_passed() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let config = AgentConfig::new("host-a", &etcd.endpoints()).guard(0.5, "4s");
    let agent = Agent::start(&scene, &config).await?;
    let mut nodes = Vec::new();
    for (name, weight) in WEIGHTS {
        let node = Upstream::start(name).await?;
        let (key, value) = entry(SERVICE, name, node.address(), weight);
        etcd.put(&key, value).await?;
        nodes.push(node);
    }
    let envoy = Envoy::start(&scene, &agent, &EnvoyOptions::new(&[SERVICE])).await?;
    served_by(envoy.load(SERVICE), &["a", "b", "c"]).await?;
    let load = Load::start(envoy.load(SERVICE).rate(300.0));
    etcd.delete_prefix("/waypost/services/shop/").await?;
    eventually(DEADLINE, "the guard to hold the nodes", || async {
        let held = agent.metric("waypost_guard_held_nodes", &[]).await?;
        ensure!(held == 3.0, "it holds {held}");
        Ok(())
    })
    .await?;
    let report = Load::run(envoy.load(SERVICE).total(300)).await?;
    report.ensure_no_failure()?;
    ensure!(report.nodes.len() == 3, "held nodes must be served: {:?}", report.nodes);
    load.stop().await?.ensure_no_failure()?;
    agent.wait_nodes(SERVICE, &[]).await?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_register_themselves_in_a_foreign_layout_are_served() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let config = AgentConfig::new("host-a", &etcd.endpoints())
        .watch("/keys/", "endpoint-key", "http1")
        .watch("/values/", "endpoint-value", "http1")
        .watch("/pids/", "ip-pid", "http1");
    let agent = Agent::start(&scene, &config).await?;
    let node = Upstream::start("a").await?;
    let (ip, port) = (node.address().ip(), node.address().port());
    let lease = etcd.grant(60).await?;
    etcd.put_with_lease(&format!("/keys/by-key/{ip}:{port}"), "", lease).await?;
    etcd.put_with_lease(&format!("/values/by-value/{lease}"), format!("{ip}:{port}"), lease).await?;
    etcd.put_with_lease(&format!("/pids/by-pid/{ip}/4711"), format!("{{\"port\":{port}}}"), lease).await?;
    let services = ["by-key", "by-value", "by-pid"];
    let envoy = Envoy::prepare(&scene, &agent, &EnvoyOptions::new(&services)).await?;
    envoy.launch()?;
    envoy.wait_ready().await?;
    for service in services {
        envoy.wait_picking(service).await?;
        served_by(envoy.load(service), &["a"]).await?;
    }
    scene.close()
}
