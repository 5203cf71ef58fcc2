//! Envoy, agent and etcd come up in any order and end up right.
use std::time::Duration;

use anyhow::Result;
use waypost_tests::world::{SERVICE, WEIGHTS, registering, upstreams};
use waypost_tests::{Agent, Envoy, EnvoyOptions, Etcd, Load, Scene};

/// Long enough for each part to find the next one missing.
const PAUSE: Duration = Duration::from_millis(1500);

enum Part {
    Envoy,
    Agent,
    Etcd,
}

async fn ends_up_right(order: [Part; 3]) -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::prepare(&scene, 1)?;
    let nodes = upstreams().await?;
    let config = registering(&etcd.endpoints(), &nodes);
    let agent = Agent::prepare(&scene, &config)?;
    let envoy = Envoy::prepare(&scene, &agent, &EnvoyOptions::new(&[SERVICE]).workers(2)).await?;
    for part in order {
        match part {
            Part::Envoy => envoy.launch()?,
            Part::Agent => agent.launch()?,
            Part::Etcd => etcd.start_all().await?,
        }
        tokio::time::sleep(PAUSE).await;
    }
    agent.wait_ready().await?;
    envoy.wait_ready().await?;
    let addresses: Vec<_> = nodes.iter().map(waypost_tests::Upstream::address).collect();
    agent.wait_nodes(SERVICE, &addresses).await?;
    envoy.wait_picking(SERVICE).await?;
    let report = Load::run(envoy.load(SERVICE).total(1_200)).await?;
    report.ensure_no_failure()?;
    report.ensure_shares(&WEIGHTS, 0.01)?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_then_agent_then_etcd_ends_up_right() -> Result<()> {
    ends_up_right([Part::Envoy, Part::Agent, Part::Etcd]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_then_etcd_then_agent_ends_up_right() -> Result<()> {
    ends_up_right([Part::Envoy, Part::Etcd, Part::Agent]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_then_envoy_then_etcd_ends_up_right() -> Result<()> {
    ends_up_right([Part::Agent, Part::Envoy, Part::Etcd]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_then_etcd_then_envoy_ends_up_right() -> Result<()> {
    ends_up_right([Part::Agent, Part::Etcd, Part::Envoy]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_then_envoy_then_agent_ends_up_right() -> Result<()> {
    ends_up_right([Part::Etcd, Part::Envoy, Part::Agent]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_then_agent_then_envoy_ends_up_right() -> Result<()> {
    ends_up_right([Part::Etcd, Part::Agent, Part::Envoy]).await
}
