//! Nodes that die, and nodes that leave in good order, while requests come.
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use waypost_tests::world::{PREFIX, SERVICE};
use waypost_tests::{
    Agent, AgentConfig, Envoy, EnvoyOptions, Etcd, Load, LoadPlan, Scene, ServiceConfig, UpstreamProcess, eventually,
};

const DEADLINE: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(5);

/// Two hosts. The first serves Envoy and has the nodes `a` and `b`; the second has `c`.
struct TwoHosts {
    scene: Scene,
    etcd: Etcd,
    second: Agent,
    second_config: AgentConfig,
    envoy: Envoy,
    c: UpstreamProcess,
    _first: Agent,
    _others: [UpstreamProcess; 2],
}

impl TwoHosts {
    async fn start() -> Result<Self> {
        let scene = Scene::new()?;
        let etcd = Etcd::start(&scene).await?;
        let binary = env!("CARGO_BIN_EXE_upstream");
        let a = UpstreamProcess::start(&scene, binary, "a").await?;
        let b = UpstreamProcess::start(&scene, binary, "b").await?;
        let c = UpstreamProcess::start(&scene, binary, "c").await?;
        let service = |node: &UpstreamProcess| ServiceConfig::new(SERVICE, node.name(), node.address());
        let first_config = AgentConfig::new("host-a", &etcd.endpoints()).service(service(&a)).service(service(&b));
        let second_config = AgentConfig::new("host-b", &etcd.endpoints()).service(service(&c)).drain("2s");
        let first = Agent::start(&scene, &first_config).await?;
        let second = Agent::start(&scene, &second_config).await?;
        first.wait_nodes(SERVICE, &[a.address(), b.address(), c.address()]).await?;
        let envoy = Envoy::start(&scene, &first, &EnvoyOptions::new(&[SERVICE]).workers(2)).await?;
        Ok(Self { scene, etcd, second, second_config, envoy, c, _first: first, _others: [a, b] })
    }

    /// Quick requests, and slow ones that are on their way when something happens.
    async fn load(&self) -> Result<(Load, Load)> {
        let quick = Load::start(self.envoy.load(SERVICE).rate(400.0));
        let slow = LoadPlan { path: "/slow/300".to_owned(), ..self.envoy.load(SERVICE).connections(6) };
        let slow = Load::start(slow);
        eventually(DEADLINE, "all nodes to answer", || async {
            ensure!(quick.snapshot().nodes.len() == 3 && slow.snapshot().nodes.len() == 3);
            Ok(())
        })
        .await?;
        Ok((quick, slow))
    }

    /// Waits until the node `c` has had no request for a while.
    async fn wait_quiet(&self, load: &Load) -> Result<()> {
        eventually(DEADLINE, "c to get no more requests", || async {
            let before = load.snapshot();
            tokio::time::sleep(Duration::from_millis(500)).await;
            let since = load.snapshot().since(&before);
            ensure!(since.count("c") == 0 && since.succeeded() > 0, "{:?}", since.nodes);
            Ok(())
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_killed_under_load_costs_no_request_and_its_key_goes_with_its_agent() -> Result<()> {
    let world = TwoHosts::start().await?;
    let (load, slow) = world.load().await?;
    for round in 0..3 {
        if round > 0 {
            world.c.restart().await?;
            let before = load.snapshot();
            eventually(DEADLINE, "c to answer again", || async {
                ensure!(load.snapshot().since(&before).count("c") > 20);
                Ok(())
            })
            .await?;
        }
        world.c.kill().await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        load.snapshot().ensure_no_failure()?;
        slow.snapshot().ensure_no_failure()?;
    }

    world.second.kill().await?;
    let killed = Instant::now();
    let key = format!("{PREFIX}c");
    eventually(DEADLINE, "the dead agent's key to go", || async {
        ensure!(world.etcd.get(&key).await?.is_none(), "it is there");
        Ok(())
    })
    .await?;
    let took = killed.elapsed();
    ensure!(took <= TTL + Duration::from_secs(1), "the key went after {took:?}");
    world.wait_quiet(&load).await?;
    load.stop().await?.ensure_no_failure()?;
    slow.stop().await?.ensure_no_failure()?;
    world.scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_agent_drains_its_node_without_a_failed_request() -> Result<()> {
    let world = TwoHosts::start().await?;
    let (quick, slow) = world.load().await?;
    let status = world.second.terminate().await?;
    ensure!(status.success(), "the agent ended with {status}");
    ensure!(world.etcd.get(&format!("{PREFIX}c")).await?.is_none(), "the drained node's key is still there");
    // The agent's end is the sign that nothing uses the node any more.
    world.c.kill().await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    quick.stop().await?.ensure_no_failure()?;
    slow.stop().await?.ensure_no_failure()?;
    world.scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_taken_out_of_the_configuration_drains_without_a_failed_request() -> Result<()> {
    let world = TwoHosts::start().await?;
    let (quick, slow) = world.load().await?;
    let emptied = AgentConfig { services: Vec::new(), ..world.second_config.clone() };
    world.second.configure(&emptied)?;
    world.second.reload()?;
    world.wait_quiet(&quick).await?;
    eventually(DEADLINE, "the drained node's key to go", || async {
        ensure!(world.etcd.get(&format!("{PREFIX}c")).await?.is_none(), "it is there");
        Ok(())
    })
    .await?;
    world.c.kill().await?;
    world.c.restart().await?;
    world.second.configure(&world.second_config)?;
    world.second.reload()?;
    let before = quick.snapshot();
    eventually(DEADLINE, "the node to be back", || async {
        ensure!(quick.snapshot().since(&before).count("c") > 0);
        Ok(())
    })
    .await?;
    quick.stop().await?.ensure_no_failure()?;
    slow.stop().await?.ensure_no_failure()?;
    world.scene.close()
}
