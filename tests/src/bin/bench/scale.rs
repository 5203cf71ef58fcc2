//! 10,000 nodes in 1,000 services: what they cost in memory, and how soon a fresh agent has a filter ready.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use waypost_tests::{
    Agent, AgentConfig, Envoy, EnvoyOptions, Etcd, LoadPlan, Scene, Upstream, eventually, load::Caller,
};

use crate::{
    cpu,
    table::{self, mebibytes, milliseconds},
};

const SERVICES: usize = 1_000;
const NODES_PER_SERVICE: usize = 10;
/// The one whose nodes are really there.
const LIVE: &str = "service-0999";
const DEADLINE: Duration = Duration::from_secs(60);

pub async fn run() -> Result<()> {
    // In the mode without clusters a request is served only once the filter has its catalog, so that its first
    // success tells exactly that; in the default mode Envoy holds a cluster per service besides.
    let mut rows = Vec::new();
    for (name, mode, clusters) in [
        ("filter alone (original_dst, no clusters)", "original_dst", false),
        ("default mode, 1 cluster", "override_host", false),
        ("default mode, 1,000 clusters", "override_host", true),
    ] {
        rows.push(measure(name, mode, clusters).await?);
    }
    table::print(
        &format!(
            "{} nodes in {SERVICES} services, two workers (budget: ready within 1 s)",
            SERVICES * NODES_PER_SERVICE
        ),
        &["", "agent start to ready filter", "agent", "Envoy before", "Envoy after"],
        &rows,
    );
    Ok(())
}

async fn measure(name: &str, mode: &str, clusters: bool) -> Result<Vec<String>> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let upstream = Upstream::start("live").await?;
    let mut entries = Vec::new();
    for service in 0..SERVICES {
        for node in 0..NODES_PER_SERVICE {
            let service = format!("service-{service:04}");
            let (ip, port) = if service == LIVE {
                // One server under ten names: each node is an address of its own, but all must answer.
                (upstream.address().ip().to_string(), upstream.address().port())
            } else {
                (format!("127.{}.{}.{}", 1 + node, entries.len() / 250 % 250, 1 + entries.len() % 250), 80)
            };
            let value = format!(r#"{{"address":"{ip}","port":{port},"zone":"zone-a","version":"1.0.0"}}"#);
            entries.push((format!("/waypost/services/{service}/host-{node}"), value));
        }
    }
    etcd.put_many(&entries).await?;

    let visible = if clusters { "*" } else { LIVE };
    let config = AgentConfig::new("host", &etcd.endpoints()).clusters(&[visible]);
    let agent = Agent::start(&scene, &config).await?;
    // Envoy is up before the agent, and has been told everything but the nodes.
    agent.kill().await?;
    std::fs::remove_dir_all(agent.state()).context("the agent's state")?;
    let envoy = Envoy::prepare(&scene, &agent, &EnvoyOptions::new(&[LIVE]).workers(2).mode(mode)).await?;
    envoy.launch()?;
    envoy.wait_ready().await?;
    let envoy_pid = envoy.process().pid().context("Envoy does not run")?;
    let before = cpu::resident(envoy_pid)?;

    let mut caller = Caller::new(LoadPlan::new(envoy.listen(), LIVE));
    let start = Instant::now();
    agent.process().start()?;
    while caller.call().await.is_err() {
        anyhow::ensure!(start.elapsed() < DEADLINE, "no request served within {DEADLINE:?}");
    }
    let ready = start.elapsed();
    if clusters {
        eventually(DEADLINE, "Envoy to have every cluster", || async {
            let active = envoy.stat("cluster_manager.active_clusters").await?;
            anyhow::ensure!(active as usize >= SERVICES, "it has {active}");
            Ok(())
        })
        .await?;
    }
    let agent_pid = agent.process().pid().context("the agent does not run")?;
    let row = vec![
        name.to_owned(),
        milliseconds(ready),
        mebibytes(cpu::resident(agent_pid)?),
        mebibytes(before),
        mebibytes(cpu::resident(envoy_pid)?),
    ];
    drop(caller);
    scene.close()?;
    Ok(row)
}
