//! The mode without clusters: the filter names the node, Envoy connects to it.
use std::time::Duration;

use anyhow::{Result, ensure};
use waypost_tests::world::{SERVICE, WEIGHTS, World, entry};
use waypost_tests::{Agent, AgentConfig, Envoy, EnvoyOptions, Etcd, Load, LoadPlan, Scene, Upstream, eventually, http};

const DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn without_clusters_shares_match_the_weights_and_changes_show() -> Result<()> {
    let scene = Scene::new()?;
    let world = World::start_with(&scene, EnvoyOptions::new(&[SERVICE]).mode("original_dst").workers(2)).await?;
    let report = Load::run(world.load().connections(16).total(6_000)).await?;
    report.ensure_no_failure()?;
    report.ensure_shares(&WEIGHTS, 0.01)?;

    let (_fourth, key) = world.add_fourth_node().await?;
    world.etcd.delete(&key).await?;
    eventually(DEADLINE, "a deleted node to have none", || async {
        let report = Load::run(world.load().total(600)).await?;
        report.ensure_no_failure()?;
        report.ensure_shares(&WEIGHTS, 0.01)
    })
    .await?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_clusters_no_header_of_the_client_names_the_node() -> Result<()> {
    let scene = Scene::new()?;
    let world = World::start_with(&scene, EnvoyOptions::new(&[SERVICE]).mode("original_dst")).await?;
    let outside = Upstream::start("outside").await?;
    for name in ["x-waypost-candidates", "x-envoy-original-dst-host"] {
        let headers = vec![(name.to_owned(), outside.address().to_string())];
        let report = Load::run(LoadPlan { headers, ..world.load() }.total(600)).await?;
        report.ensure_no_failure()?;
        report.ensure_shares(&WEIGHTS, 0.01)?;
    }
    ensure!(outside.requests() == 0, "a header of the client named the node");
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_can_name_the_service_and_a_service_that_nobody_knows_is_answered_with_503() -> Result<()> {
    let scene = Scene::new()?;
    let (from, to) = (r#"{\"from\":\"host\"}"#, r#"{\"from\":\"header\",\"name\":\"x-service\"}"#);
    let etcd = Etcd::start(&scene).await?;
    let agent = Agent::start(&scene, &AgentConfig::new("host-a", &etcd.endpoints())).await?;
    let node = Upstream::start("a").await?;
    let (key, value) = entry("other", "a", node.address(), 1);
    etcd.put(&key, value).await?;
    let envoy = EnvoyOptions::new(&[SERVICE]).mode("original_dst").edit(from, to);
    let envoy = Envoy::prepare(&scene, &agent, &envoy).await?;
    envoy.launch()?;
    envoy.wait_ready().await?;
    let get = async |service: &str| {
        let request = hyper::Request::get("/").header("host", SERVICE).header("x-service", service);
        http::send(envoy.listen(), request.body(Default::default())?).await
    };
    eventually(DEADLINE, "the service that the header names", || async {
        let reply = get("other").await?;
        ensure!(reply.status == 200 && reply.node() == "a", "{} {}", reply.status, reply.text());
        Ok(())
    })
    .await?;
    let reply = get("nobody").await?;
    ensure!(reply.status == 503, "{} {}", reply.status, reply.text());
    scene.close()
}
