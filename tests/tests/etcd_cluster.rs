//! Three members of etcd, of which one dies.
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use waypost_tests::etcd::Entry;
use waypost_tests::world::{PREFIX, SERVICE, WEIGHTS, entry, registering, upstreams};
use waypost_tests::{Agent, Envoy, EnvoyOptions, Etcd, Load, Scene, Upstream, eventually, holds_for};

const DEADLINE: Duration = Duration::from_secs(30);

/// Puts a node, again and again while there is no leader, and waits until the agent has it.
async fn mirror_follows(etcd: &Etcd, agent: &Agent, port: u16) -> Result<()> {
    let address = SocketAddr::from(([127, 0, 0, 9], port));
    let (key, value) = entry("probe", "p", address, 1);
    eventually(DEADLINE, "etcd to take a key", || etcd.put(&key, value.clone())).await?;
    agent.wait_nodes("probe", &[address]).await
}

fn identities(entries: &[Entry]) -> Vec<(&str, i64)> {
    entries.iter().map(|entry| (entry.key.as_str(), entry.create_revision)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_comes_up_and_works_on_with_one_of_three_members_dead() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start_cluster(&scene, 3).await?;
    etcd.kill_member(0).await?;
    let nodes = upstreams().await?;
    let agent = Agent::start(&scene, &registering(&etcd.endpoints(), &nodes)).await?;
    let addresses: Vec<_> = nodes.iter().map(Upstream::address).collect();
    agent.wait_nodes(SERVICE, &addresses).await?;
    let registered = etcd.list(PREFIX).await?;
    mirror_follows(&etcd, &agent, 1).await?;
    etcd.start_member(0).await?;
    // Each of the others in turn: one of them is the one that the agent is connected to.
    for index in 1..3 {
        etcd.kill_member(index).await?;
        mirror_follows(&etcd, &agent, 1 + index as u16).await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        etcd.start_member(index).await?;
    }
    let now = etcd.list(PREFIX).await?;
    ensure!(identities(&now) == identities(&registered), "a registration was lost: {now:?} after {registered:?}");
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_killed_under_load_costs_no_request_and_no_registration() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start_cluster(&scene, 3).await?;
    let nodes = upstreams().await?;
    let agent = Agent::start(&scene, &registering(&etcd.endpoints(), &nodes)).await?;
    let addresses: Vec<_> = nodes.iter().map(Upstream::address).collect();
    agent.wait_nodes(SERVICE, &addresses).await?;
    let envoy = Envoy::start(&scene, &agent, &EnvoyOptions::new(&[SERVICE])).await?;
    let load = Load::start(envoy.load(SERVICE).rate(300.0));
    let registered = etcd.list(PREFIX).await?;

    // Twice: the agent may have been connected to the leader, or to a member that only lost it.
    for port in [1, 2] {
        let leader = etcd.leader().await?;
        etcd.kill_member(leader).await?;
        mirror_follows(&etcd, &agent, port).await?;
        holds_for(Duration::from_secs(6), "every node registered", || async {
            let now = etcd.list(PREFIX).await?;
            ensure!(identities(&now) == identities(&registered), "{now:?} after {registered:?}");
            Ok(())
        })
        .await?;
        etcd.start_member(leader).await?;
    }
    let report = load.stop().await?;
    report.ensure_no_failure()?;
    report.ensure_shares(&WEIGHTS, 0.01)?;
    scene.close()
}
