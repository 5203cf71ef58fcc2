//! What an agent mirrors: 100,000 nodes, and one big service. Time, memory, and what one change costs it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use waypost_tests::{Agent, AgentConfig, Etcd, Scene, eventually};

use crate::{
    Effort, cpu,
    table::{self, mebibytes},
};

/// Services, and nodes in each.
const SIZES: [(&str, usize, usize); 2] =
    [("100000 nodes in 1000 services", 1_000, 100), ("1000 nodes in one service", 1, 1_000)];
const DEADLINE: Duration = Duration::from_secs(120);
/// Between two changes, so that each is published by itself.
const PAUSE: Duration = Duration::from_millis(20);

pub async fn run(effort: Effort) -> Result<()> {
    let mut rows = Vec::new();
    for (name, services, each) in SIZES {
        rows.push(measure(name, services, each, effort.changes).await?);
    }
    table::print(
        "An agent's mirror; each node has zone, version, tag and metadata (budget: 100000 nodes in less than 250 MiB)",
        &["", "agent start to catalog", "agent", "after changes", "its CPU per change", "at idle"],
        &rows,
    );
    Ok(())
}

async fn measure(name: &str, services: usize, each: usize, changes: usize) -> Result<Vec<String>> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let entries: Vec<(String, String)> = (0..services * each).map(|index| entry(index % services, index, 1)).collect();
    etcd.put_many(&entries).await?;

    // Clusters are Envoy's business; there is none here.
    let agent = Agent::prepare(&scene, &AgentConfig::new("host", &etcd.endpoints()).clusters(&["none"]))?;
    let start = Instant::now();
    agent.launch()?;
    agent.wait_ready().await?;
    until_nodes(&agent, services * each).await?;
    let took = start.elapsed();
    let pid = agent.process().pid().context("the agent does not run")?;
    let memory = cpu::resident(pid)?;

    // What the disk copy and the rest of the start cost is over when nothing is used any more.
    let idle = settle(pid).await?;
    let mut client = etcd.client().await?;
    let version = agent.metric("waypost_catalog_version", &[]).await?;
    let before = cpu::nanoseconds(pid)?;
    for change in 0..changes {
        let (key, value) = entry(0, 0, 2 + change as u32);
        client.put(key, value, None).await?;
        tokio::time::sleep(PAUSE).await;
    }
    let used = (cpu::nanoseconds(pid)? - before) as f64 / 1e6;
    // On a busy machine two changes may come out as one version.
    let published = agent.metric("waypost_catalog_version", &[]).await? - version;
    ensure!(published >= 1.0, "no version was published for {changes} changes");
    let row = vec![
        name.to_owned(),
        format!("{:.2} s", took.as_secs_f64()),
        mebibytes(memory),
        mebibytes(cpu::resident(pid)?),
        format!("{:.3} ms", used / published),
        format!("{idle:.3} ms"),
    ];
    scene.close()?;
    Ok(row)
}

/// A node with everything that people give one.
fn entry(service: usize, index: usize, weight: u32) -> (String, String) {
    let ip = format!("127.{}.{}.{}", 1 + index / 40_000, index / 200 % 200, 1 + index % 200);
    let value = format!(
        r#"{{"address":"{ip}","port":8080,"weight":{weight},"zone":"eu-central-1a","version":"1.4.{}","tags":["canary"],"metadata":{{"team":"shop","rack":"r{}"}}}}"#,
        index % 10,
        index % 40
    );
    (format!("/waypost/services/service-{service:04}/host-{index:06}"), value)
}

async fn until_nodes(agent: &Agent, count: usize) -> Result<()> {
    eventually(DEADLINE, format!("{count} nodes in the catalog"), || async {
        let nodes = agent.metric("waypost_catalog_nodes", &[]).await?;
        ensure!(nodes as usize == count, "it has {nodes}");
        Ok(())
    })
    .await
}

/// Waits until the process has done what its start left it to do; what it uses in one [`PAUSE`] from then on, in ms.
async fn settle(pid: u32) -> Result<f64> {
    eventually(DEADLINE, "the agent to be idle", || async {
        let before = cpu::nanoseconds(pid)?;
        tokio::time::sleep(50 * PAUSE).await;
        let used = (cpu::nanoseconds(pid)? - before) as f64 / 1e6 / 50.0;
        ensure!(used < 0.2, "it uses {used:.3} ms in {PAUSE:?}");
        Ok(used)
    })
    .await
}
