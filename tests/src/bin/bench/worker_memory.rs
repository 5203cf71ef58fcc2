//! What a worker's filter holds of a service of 10,000 nodes, by strategy: Envoy with one worker, without clusters, before
//! and after requests to the service.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use waypost_tests::{Agent, AgentConfig, Envoy, EnvoyOptions, Etcd, Load, LoadPlan, Scene, Upstream, eventually};

use crate::{
    cpu,
    table::{self, mebibytes},
};

const NODES: usize = 10_000;
const SERVICE: &str = "big";
const REQUESTS: u64 = 2_000;
const DEADLINE: Duration = Duration::from_secs(60);
const POLICIES: [(&str, &str); 5] = [
    ("weighted round robin, not reported", r#"{"outcomes":false}"#),
    ("weighted round robin", "{}"),
    ("least request, ejection", r#"{"strategy":"least-request","ejection":{}}"#),
    ("peak EWMA", r#"{"strategy":"peak-ewma"}"#),
    ("consistent hash, bounded load", r#"{"strategy":{"name":"consistent-hash","key":"path","bounded_load":1.25}}"#),
];

pub async fn run() -> Result<()> {
    let mut rows = Vec::new();
    for (name, policy) in POLICIES {
        rows.push(measure(name, policy).await?);
    }
    table::print(
        &format!("A service of {NODES} nodes in Envoy with one worker, and {REQUESTS} requests to it"),
        &["", "Envoy before", "Envoy after", "CPU per request"],
        &rows,
    );
    Ok(())
}

async fn measure(name: &str, policy: &str) -> Result<Vec<String>> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let upstream = Upstream::start_everywhere().await?;
    let port = upstream.address().port();
    let entry = |node: usize| {
        let ip = format!("127.{}.{}.{}", 1 + node / 62_500, node / 250 % 250, 1 + node % 250);
        let value = format!(r#"{{"address":"{ip}","port":{port},"weight":{},"zone":"zone-a"}}"#, 1 + node % 5);
        (format!("/waypost/services/{SERVICE}/host-{node}"), value)
    };
    etcd.put_many(&(0..NODES).map(entry).collect::<Vec<_>>()).await?;
    etcd.put(&format!("/waypost/policies/{SERVICE}"), policy).await?;
    let agent = Agent::start(&scene, &AgentConfig::new("host", &etcd.endpoints()).clusters(&["none"])).await?;
    let envoy = Envoy::prepare(&scene, &agent, &EnvoyOptions::new(&[SERVICE]).mode("original_dst")).await?;
    envoy.launch()?;
    envoy.wait_ready().await?;
    // The filter has the catalog once it has acknowledged it; nobody has picked from it yet.
    eventually(DEADLINE, "filters to have the catalog", || async {
        let (acks, streams) =
            (agent.metric("waypost_stream_acks_total", &[]).await?, agent.metric("waypost_streams", &[]).await?);
        ensure!(streams >= 2.0 && acks >= streams, "{acks} acknowledgements of {streams} streams");
        Ok(())
    })
    .await?;
    let pid = envoy.process().pid().context("Envoy does not run")?;
    let before = cpu::resident(pid)?;
    let spent = cpu::nanoseconds(pid)?;
    Load::run(LoadPlan::new(envoy.listen(), SERVICE).total(REQUESTS)).await?.ensure_no_failure()?;
    let spent = cpu::nanoseconds(pid)? - spent;
    let row = vec![
        name.to_owned(),
        mebibytes(before),
        mebibytes(cpu::resident(pid)?),
        format!("{:.0} us", spent as f64 / REQUESTS as f64 / 1e3),
    ];
    scene.close()?;
    Ok(row)
}
