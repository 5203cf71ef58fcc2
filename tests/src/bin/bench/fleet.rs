//! What registrations cost etcd: 10,000 of one agent, and those of 50 agents that all come back after a wipe.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etcd_client::GetOptions;
use futures::future::try_join_all;
use waypost_tests::{Agent, AgentConfig, Etcd, Scene, ServiceConfig, eventually};

use crate::{
    cpu,
    etcd_requests::{self, Peak},
    table::{self, mebibytes},
};

const PREFIX: &str = "/waypost/services/";
const MANY: usize = 10_000;
/// How long the steady state is measured: two leases' lives.
const STEADY: Duration = Duration::from_secs(20);
const TTL: &str = "10s";
const AGENTS: usize = 50;
const EACH: usize = 20;
const DEADLINE: Duration = Duration::from_secs(120);

pub async fn run() -> Result<()> {
    one_agent().await?;
    many_agents().await
}

async fn one_agent() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let agent = Agent::prepare(&scene, &registering("host", &etcd, 0, MANY))?;
    let before = etcd_requests::total(&etcd).await?;
    let start = Instant::now();
    agent.launch()?;
    until_registered(&etcd, MANY).await?;
    let took = start.elapsed();
    let registering = etcd_requests::total(&etcd).await? - before;
    agent.wait_ready().await?;
    let pid = agent.process().pid().context("the agent does not run")?;

    let (before, cpu_before, start) = (etcd_requests::total(&etcd).await?, cpu::nanoseconds(pid)?, Instant::now());
    tokio::time::sleep(STEADY).await;
    let steady = start.elapsed().as_secs_f64();
    let rate = (etcd_requests::total(&etcd).await? - before) / steady;
    let cpu = (cpu::nanoseconds(pid)? - cpu_before) as f64 / 1e9 / steady;
    let leases = etcd.leases().await?.len();
    table::print(
        &format!("{MANY} registrations of one agent, TTL {TTL}, {leases} lease"),
        &["all registered", "requests for that", "then requests/s", "agent's CPU", "agent"],
        &[vec![
            format!("{:.2} s", took.as_secs_f64()),
            format!("{registering:.0}"),
            format!("{rate:.1}"),
            format!("{:.1} %", cpu * 100.0),
            mebibytes(cpu::resident(pid)?),
        ]],
    );
    scene.close()
}

async fn many_agents() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let agents =
        (0..AGENTS).map(|index| Agent::prepare(&scene, &registering(&format!("h{index}"), &etcd, index, EACH)));
    let agents: Vec<Agent> = agents.collect::<Result<_>>()?;
    for agent in &agents {
        agent.launch()?;
    }
    until_registered(&etcd, AGENTS * EACH).await?;
    try_join_all(agents.iter().map(Agent::wait_ready)).await?;
    let before = etcd_requests::total(&etcd).await?;
    tokio::time::sleep(STEADY).await;
    let steady = (etcd_requests::total(&etcd).await? - before) / STEADY.as_secs_f64();

    let peak = Peak::watch(&etcd).await?;
    etcd.wipe().await?;
    let start = Instant::now();
    until_registered(&etcd, AGENTS * EACH).await?;
    let took = start.elapsed();
    // It counts from its start on.
    let all = etcd_requests::total(&etcd).await?;
    let peak = peak.end().await?;
    table::print(
        &format!("etcd wiped under {AGENTS} agents with {EACH} registrations each, TTL {TTL}"),
        &["all registered again after", "requests/s before", "at the peak", "requests until then"],
        &[vec![
            format!("{:.2} s", took.as_secs_f64()),
            format!("{steady:.0}"),
            format!("{peak:.0}"),
            format!("{all:.0}"),
        ]],
    );
    scene.close()
}

/// An agent with `count` services, none of which is checked.
fn registering(name: &str, etcd: &Etcd, index: usize, count: usize) -> AgentConfig {
    let config = AgentConfig::new(name, &etcd.endpoints()).clusters(&["none"]);
    (0..count).fold(config, |config, service| {
        let address = ([127, 1, 1 + index as u8, 1 + (service / 10_000) as u8], 10_000 + (service % 10_000) as u16);
        let name = format!("service-{:03}", service % 1_000);
        config.service(ServiceConfig::new(&name, &format!("{index}-{service}"), address.into()).ttl(TTL))
    })
}

async fn until_registered(etcd: &Etcd, count: usize) -> Result<()> {
    let client = etcd.client().await?;
    let options = GetOptions::new().with_prefix().with_count_only();
    eventually(DEADLINE, format!("{count} registrations"), || {
        let (mut client, options) = (client.clone(), options.clone());
        async move {
            let found = client.get(PREFIX, Some(options)).await?.count();
            ensure!(found as usize == count, "etcd has {found}");
            Ok(())
        }
    })
    .await
}
