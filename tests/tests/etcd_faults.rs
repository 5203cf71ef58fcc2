//! etcd fails in all the ways it can, and everything ends up right.
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use waypost_tests::world::{PREFIX, SERVICE, WEIGHTS, World, entry, registering, upstreams};
use waypost_tests::{
    Agent, AgentConfig, Envoy, EnvoyOptions, Etcd, Fault, FaultProxy, Load, Scene, Upstream, eventually, holds_for,
};

const SECOND: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(30);
/// The lease's time to live in [`registering`].
const TTL: Duration = Duration::from_secs(5);

/// Waits until the usual nodes are registered, and holds that to TTL/3 + 1 s.
async fn back_in_time(etcd: &Etcd, since: Instant) -> Result<()> {
    eventually(DEADLINE, "the registrations to be back", || async {
        let entries = etcd.list(PREFIX).await?;
        ensure!(entries.len() == WEIGHTS.len(), "registered: {entries:?}");
        Ok(())
    })
    .await?;
    let took = since.elapsed();
    ensure!(took <= TTL / 3 + SECOND, "the registrations were back after {took:?}");
    Ok(())
}

/// The agent's mirror follows what is put and deleted.
async fn mirror_follows(etcd: &Etcd, agent: &Agent) -> Result<()> {
    let address: SocketAddr = "127.0.0.9:9".parse()?;
    let (key, value) = entry("probe", "p", address, 1);
    etcd.put(&key, value).await?;
    agent.wait_nodes("probe", &[address]).await?;
    etcd.delete(&key).await?;
    // The guard would keep an emptied service's node: that the deletion was seen shows in what it holds.
    eventually(DEADLINE, "the deletion to be seen", || async {
        let gone = agent.nodes("probe").await?.is_empty();
        ensure!(gone || agent.metric("waypost_guard_held_nodes", &[]).await? > 0.0);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_down_for_thirty_seconds_costs_no_request_and_a_restarted_agent_serves_from_disk() -> Result<()> {
    let scene = Scene::new()?;
    let world = World::start_with(&scene, EnvoyOptions::new(&[SERVICE]).workers(2)).await?;
    let load = Load::start(world.load().rate(300.0));
    tokio::time::sleep(SECOND).await;
    world.etcd.kill().await?;
    let down = Instant::now();
    tokio::time::sleep(8 * SECOND).await;
    load.snapshot().ensure_no_failure()?;

    world.agent.kill().await?;
    world.agent.restart().await?;
    let readiness = world.agent.readiness().await?;
    ensure!(readiness["stale"] == true, "an agent that serves from disk says so: {readiness}");
    world.agent.wait_nodes(SERVICE, &world.addresses()).await?;
    // An Envoy that has never known anything else gets all of it from that agent.
    let fresh = EnvoyOptions::new(&[SERVICE]).name("envoy-fresh");
    let fresh = Envoy::start(&scene, &world.agent, &fresh).await?;
    let report = Load::run(fresh.load(SERVICE).total(1_200)).await?;
    report.ensure_no_failure()?;
    report.ensure_shares(&WEIGHTS, 0.01)?;

    tokio::time::sleep((30 * SECOND).saturating_sub(down.elapsed())).await;
    world.etcd.restart().await?;
    back_in_time(&world.etcd, Instant::now()).await?;
    eventually(DEADLINE, "the agent to be current again", || async {
        let readiness = world.agent.readiness().await?;
        ensure!(readiness["stale"] == false, "{readiness}");
        Ok(())
    })
    .await?;
    holds_for(TTL + 2 * SECOND, "every node registered", || async {
        ensure!(world.registered().await?.len() == WEIGHTS.len());
        Ok(())
    })
    .await?;
    mirror_follows(&world.etcd, &world.agent).await?;
    load.stop().await?.ensure_no_failure()?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_wiped_and_restarted_with_fewer_revisions_has_everything_back() -> Result<()> {
    let scene = Scene::new()?;
    let world = World::start(&scene).await?;
    let load = Load::start(world.load().rate(300.0));
    world.etcd.wipe().await?;
    back_in_time(&world.etcd, Instant::now()).await?;
    world.agent.wait_nodes(SERVICE, &world.addresses()).await?;
    mirror_follows(&world.etcd, &world.agent).await?;

    let noise: Vec<_> = (0..40_000).map(|i| (format!("/noise/{}", i % 100), String::new())).collect();
    for chunk in noise.chunks(100) {
        world.etcd.put_many(chunk).await?;
    }
    let before = world.etcd.revision().await?;
    ensure!(before > 400, "the revision is only {before}");
    world.etcd.wipe().await?;
    back_in_time(&world.etcd, Instant::now()).await?;
    ensure!(world.etcd.revision().await? < before, "the revisions must be fewer than before");
    world.agent.wait_nodes(SERVICE, &world.addresses()).await?;
    mirror_follows(&world.etcd, &world.agent).await?;
    load.stop().await?.ensure_no_failure()?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_replaced_by_one_with_more_revisions_while_cut_off_is_mirrored_as_it_is() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let proxy = FaultProxy::start(etcd.address(0)?).await?;
    let nodes = upstreams().await?;
    let agent = Agent::start(&scene, &registering(&[format!("http://{}", proxy.address())], &nodes)).await?;
    let stray: SocketAddr = "127.0.0.9:9".parse()?;
    let (key, value) = entry(SERVICE, "stray", stray, 0);
    etcd.put(&key, value).await?;
    let addresses: Vec<_> = nodes.iter().map(Upstream::address).collect();
    agent.wait_nodes(SERVICE, &[&addresses[..], &[stray]].concat()).await?;
    let before = etcd.revision().await?;

    proxy.set(Fault::Refuse);
    etcd.wipe().await?;
    for _ in 0..before + 20 {
        etcd.put("/noise", "").await?;
    }
    proxy.set(Fault::Pass);
    back_in_time(&etcd, Instant::now()).await?;
    // What only the old etcd knew is gone.
    agent.wait_nodes(SERVICE, &addresses).await?;
    mirror_follows(&etcd, &agent).await?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_compacted_away_while_the_agent_was_cut_off_is_not_missed() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let proxy = FaultProxy::start(etcd.address(0)?).await?;
    let agent = Agent::start(&scene, &AgentConfig::new("host-a", &[format!("http://{}", proxy.address())])).await?;
    let address = |last: u8| SocketAddr::from(([127, 0, 0, last], 9));
    for last in 1..=4 {
        let (key, value) = entry(SERVICE, &last.to_string(), address(last), 1);
        etcd.put(&key, value).await?;
    }
    agent.wait_nodes(SERVICE, &[address(1), address(2), address(3), address(4)]).await?;

    for fault in [Fault::Refuse, Fault::Swallow] {
        proxy.set(fault);
        let gone = if fault == Fault::Refuse { 1 } else { 5 };
        etcd.delete(&format!("{PREFIX}{gone}")).await?;
        let (key, value) = entry(SERVICE, &(gone + 4).to_string(), address(gone + 4), 1);
        for _ in 0..50 {
            etcd.put(&key, value.clone()).await?;
        }
        etcd.compact().await?;
        proxy.set(Fault::Pass);
        let expected: Vec<_> = [2, 3, 4, gone + 4].map(address).to_vec();
        agent.wait_nodes(SERVICE, &expected).await?;
    }
    mirror_follows(&etcd, &agent).await?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_deleted_or_a_lease_revoked_by_somebody_else_is_back_in_time() -> Result<()> {
    let scene = Scene::new()?;
    let world = World::start(&scene).await?;
    let load = Load::start(world.load().rate(300.0));
    for _ in 0..2 {
        world.etcd.delete(&format!("{PREFIX}b")).await?;
        back_in_time(&world.etcd, Instant::now()).await?;
    }
    for _ in 0..2 {
        let lease = world.registered().await?.first().map_or(0, |entry| entry.lease);
        ensure!(lease != 0, "a registration hangs on a lease");
        world.etcd.revoke(lease).await?;
        back_in_time(&world.etcd, Instant::now()).await?;
        let entries = world.registered().await?;
        ensure!(entries.iter().all(|entry| entry.lease != 0 && entry.lease != lease), "{entries:?}");
    }
    world.agent.wait_nodes(SERVICE, &world.addresses()).await?;
    holds_for(TTL + 2 * SECOND, "every node registered", || async {
        ensure!(world.registered().await?.len() == WEIGHTS.len());
        Ok(())
    })
    .await?;
    load.stop().await?.ensure_no_failure()?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_connection_is_noticed_within_fifteen_seconds() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let proxy = FaultProxy::start(etcd.address(0)?).await?;
    let nodes = upstreams().await?;
    let mut config = registering(&[format!("http://{}", proxy.address())], &nodes);
    for service in &mut config.services {
        // Outlives the two times twelve seconds or so without a renewal.
        service.ttl = "30s".to_owned();
    }
    let agent = Agent::start(&scene, &config).await?;
    let addresses: Vec<_> = nodes.iter().map(Upstream::address).collect();
    agent.wait_nodes(SERVICE, &addresses).await?;
    let registered = etcd.list(PREFIX).await?;

    // The open connections are dead and look alive; a new one would work.
    proxy.half_open();
    let broken = Instant::now();
    let address: SocketAddr = "127.0.0.9:9".parse()?;
    let (key, value) = entry("probe", "p", address, 1);
    etcd.put(&key, value).await?;
    agent.wait_nodes("probe", &[address]).await?;
    let took = broken.elapsed();
    ensure!(took <= 15 * SECOND, "noticed after {took:?}");

    // No connection works any more.
    proxy.set(Fault::Swallow);
    let broken = Instant::now();
    eventually(DEADLINE, "the agent to say that it is stale", || async {
        let readiness = agent.readiness().await?;
        ensure!(readiness["stale"] == true, "{readiness}");
        Ok(())
    })
    .await?;
    let took = broken.elapsed();
    ensure!(took <= 15 * SECOND, "noticed after {took:?}");
    proxy.set(Fault::Pass);
    mirror_follows(&etcd, &agent).await?;

    let now = etcd.list(PREFIX).await?;
    let revisions = |entries: &[waypost_tests::etcd::Entry]| -> Vec<(String, i64)> {
        entries.iter().map(|entry| (entry.key.clone(), entry.create_revision)).collect()
    };
    ensure!(revisions(&now) == revisions(&registered), "a registration was lost: {now:?} after {registered:?}");
    scene.close()
}
