//! The agent goes and comes back while requests come.
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use waypost_tests::world::{SERVICE, WEIGHTS, World, entry};
use waypost_tests::{Agent, AgentConfig, EnvoyOptions, Etcd, Load, Scene, Upstream, eventually, holds_for};

const DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_and_restarted_costs_no_request_and_no_registration() -> Result<()> {
    let scene = Scene::new()?;
    let world = World::start_with(&scene, EnvoyOptions::new(&[SERVICE]).workers(2)).await?;
    let registered = world.registered().await?;
    ensure!(registered.len() == WEIGHTS.len(), "registered: {registered:?}");
    let load = Load::start(world.load().rate(400.0));
    for _ in 0..2 {
        let picks = world.envoy.picks().await?;
        world.agent.kill().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        ensure!(world.envoy.picks().await? > picks + 400, "the filter picks on without its agent");
        world.agent.restart().await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    // Streams are up again: what is new reaches the filter.
    let _fourth = world.add_fourth_node().await?;
    load.stop().await?.ensure_no_failure()?;

    // Longer than the lease that they hung on when the agent was killed.
    tokio::time::sleep(Duration::from_secs(4)).await;
    for (now, then) in world.registered().await?.iter().zip(&registered) {
        ensure!(
            (&now.key, now.create_revision) == (&then.key, then.create_revision),
            "{then:?} was made anew: {now:?}"
        );
        ensure!(now.lease == then.lease, "its lease was not adopted: {now:?} after {then:?}");
    }
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_routing_agent_stopped_in_good_order_and_started_again_costs_no_request() -> Result<()> {
    let scene = Scene::new()?;
    let mut world = World::start(&scene).await?;
    // The nodes belong to nobody's agent: put as another system would.
    world.config.services.clear();
    let foreign = [Upstream::start("x").await?, Upstream::start("y").await?];
    for node in &foreign {
        let (key, value) = entry("foreign", node.name(), node.address(), 1);
        world.etcd.put(&key, value).await?;
    }
    let envoy = EnvoyOptions::new(&["foreign"]).name("envoy-foreign");
    let envoy = waypost_tests::Envoy::start(&scene, &world.agent, &envoy).await?;
    let load = Load::start(envoy.load("foreign").rate(400.0));
    ensure!(world.agent.terminate().await?.success());
    ensure!(!world.agent.socket().exists(), "a stopped agent leaves no socket");
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.agent.configure(&world.config)?;
    world.agent.restart().await?;
    envoy.wait_picking("foreign").await?;
    load.stop().await?.ensure_no_failure()?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_restarted_while_the_guard_holds_nodes_gives_them_no_new_grace() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let grace = Duration::from_secs(12);
    let config = AgentConfig::new("host-a", &etcd.endpoints()).guard(0.5, &format!("{}s", grace.as_secs()));
    let agent = Agent::start(&scene, &config).await?;
    let addresses: [std::net::SocketAddr; 3] = std::array::from_fn(|n| ([10, 0, 0, 1], 8000 + n as u16).into());
    for address in addresses {
        let (key, value) = entry("web", &address.port().to_string(), address, 1);
        etcd.put(&key, value).await?;
    }
    agent.wait_nodes("web", &addresses).await?;

    let emptied = Instant::now();
    ensure!(etcd.delete_prefix("/waypost/services/web/").await? == 3);
    let served_on = || async {
        let nodes = agent.nodes("web").await?;
        ensure!(nodes.len() == 3, "only {nodes:?} are served");
        Ok(())
    };
    holds_for(grace / 2, "all are held", served_on).await?;
    agent.kill().await?;
    agent.restart().await?;
    served_on().await?;
    agent.wait_nodes("web", &[]).await?;
    let gone = emptied.elapsed();
    ensure!((grace..grace + Duration::from_secs(4)).contains(&gone), "they were held for {gone:?}");
    eventually(DEADLINE, "nothing to be noted as held", || async {
        ensure!(!agent.state().join("held.json").exists());
        Ok(())
    })
    .await?;
    scene.close()
}
