//! The filter under attack and under stress.
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use waypost_tests::world::{PREFIX, SERVICE, WEIGHTS, World, entry};
use waypost_tests::{
    Agent, AgentConfig, Envoy, EnvoyOptions, Etcd, Load, LoadPlan, Scene, Upstream, eventually, http, tools,
};

const DEADLINE: Duration = Duration::from_secs(60);
const CANDIDATES: &str = "x-waypost-candidates";

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_traps_picks_again_with_the_next_request_from_the_last_good_catalog() -> Result<()> {
    let scene = Scene::new()?;
    let world = World::start_with(&scene, EnvoyOptions::new(&[SERVICE]).plugin(tools::trap_wasm()?)).await?;
    // Nobody is left to send the catalog again: it must come from Envoy's shared data.
    world.agent.kill().await?;
    for _ in 0..2 {
        let before = world.envoy.picks().await?;
        let trap = hyper::Request::get("/").header("host", SERVICE).header("x-waypost-trap", "1");
        let trapped = http::send(world.envoy.listen(), trap.body(Default::default())?).await?;
        ensure!(trapped.status == 503, "the request that traps is answered with {}", trapped.status);
        let report = Load::run(world.load().total(1_200)).await?;
        report.ensure_no_failure()?;
        report.ensure_shares(&WEIGHTS, 0.01)?;
        let picks = world.envoy.picks().await? - before;
        ensure!(picks == 1_200, "the fresh VM picked for {picks} of 1200 requests");
    }
    world.agent.restart().await?;
    let fourth = Upstream::start("d").await?;
    let (key, value) = entry(SERVICE, "d", fourth.address(), 6);
    world.etcd.put(&key, value).await?;
    eventually(DEADLINE, "a new node to reach the fresh VM", || async {
        let report = Load::run(world.load().total(240)).await?;
        report.ensure_no_failure()?;
        ensure!(report.count("d") == 120, "{:?}", report.nodes);
        Ok(())
    })
    .await?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_candidate_header_changes_nothing_and_no_upstream_sees_one() -> Result<()> {
    let scene = Scene::new()?;
    let world = World::start(&scene).await?;
    let outside = Upstream::start("outside").await?;
    for forged in [outside.address(), world.node("a")?.address()] {
        let headers = vec![(CANDIDATES.to_owned(), forged.to_string())];
        let report = Load::run(LoadPlan { headers, ..world.load() }.total(1_200)).await?;
        report.ensure_no_failure()?;
        report.ensure_shares(&WEIGHTS, 0.01)?;
    }
    ensure!(outside.requests() == 0, "a forged header reached a host outside the cluster");
    for name in [CANDIDATES, "X-Waypost-Candidates"] {
        let request = hyper::Request::get("/headers").header("host", SERVICE).header(name, "127.0.0.1:1");
        let reply = http::send(world.envoy.listen(), request.body(Default::default())?).await?;
        let seen: serde_json::Value = serde_json::from_slice(&reply.body)?;
        ensure!(seen.get("host").is_some() && seen.get(CANDIDATES).is_none(), "the upstream saw {seen}");
    }
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_values_are_counted_and_skipped_and_the_other_nodes_serve() -> Result<()> {
    let scene = Scene::new()?;
    let world = World::start(&scene).await?;
    let load = Load::start(world.load().rate(300.0));
    let hostile: [&[u8]; 10] = [
        b"",
        b"not json",
        b"\xff\xfe\x00",
        b"[]",
        br#"{"address":"127.0.0.1"}"#,
        br#"{"address":"127.0.0.1","port":0}"#,
        br#"{"address":"127.0.0.1","port":70000}"#,
        br#"{"address":"127.0.0.1\r\nx-evil: 1","port":80}"#,
        br#"{"address":"some.host.name","port":80}"#,
        br#"{"address":["127.0.0.1"],"port":{}}"#,
    ];
    for (index, value) in hostile.iter().enumerate() {
        world.etcd.put(&format!("{PREFIX}hostile-{index}"), *value).await?;
    }
    let nested = "[".repeat(200_000);
    world.etcd.put(&format!("{PREFIX}nested"), nested).await?;
    world.etcd.put(&format!("{PREFIX}large"), "x".repeat(1_000_000)).await?;
    world.etcd.put(&format!("{PREFIX}deep/er"), "{}").await?;
    world.etcd.put("/waypost/services//", "{}").await?;
    let expected = (hostile.len() + 2) as f64;
    eventually(DEADLINE, "hostile values to be counted", || async {
        let count = world.agent.metric("waypost_mirror_undecodable_total", &[]).await?;
        ensure!(count >= expected, "{count} were counted");
        Ok(())
    })
    .await?;
    world.agent.wait_nodes(SERVICE, &world.addresses()).await?;

    // A value that was good and no longer is: the last good one stays.
    let fourth = Upstream::start("d").await?;
    let (key, value) = entry(SERVICE, "d", fourth.address(), 6);
    world.etcd.put(&key, value).await?;
    let with_fourth = [&world.addresses()[..], &[fourth.address()]].concat();
    world.agent.wait_nodes(SERVICE, &with_fourth).await?;
    world.etcd.put(&key, "no longer json").await?;
    eventually(DEADLINE, "the bad value to be counted", || async {
        ensure!(world.agent.metric("waypost_mirror_undecodable_total", &[]).await? > expected);
        Ok(())
    })
    .await?;
    world.agent.wait_nodes(SERVICE, &with_fourth).await?;
    let report = Load::run(world.load().total(1_200)).await?;
    report.ensure_no_failure()?;
    report.ensure_shares(&[("a", 1), ("b", 2), ("c", 3), ("d", 6)], 0.01)?;
    load.stop().await?.ensure_no_failure()?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_nodes_put_at_once_arrive_whole() -> Result<()> {
    const NODES: usize = 5_000;
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let agent = Agent::start(&scene, &AgentConfig::new("host-a", &etcd.endpoints())).await?;
    let everywhere = Upstream::start_everywhere().await?;
    let port = everywhere.address().port();
    let address = |index: usize| SocketAddr::from(([127, 1, (index / 250) as u8, (index % 250) as u8 + 1], port));
    let envoy = Envoy::prepare(&scene, &agent, &EnvoyOptions::new(&["many"])).await?;
    envoy.launch()?;
    envoy.wait_ready().await?;

    let entries: Vec<_> = (0..NODES).map(|index| entry("many", &format!("n{index}"), address(index), 1)).collect();
    etcd.put_many(&entries).await?;
    eventually(DEADLINE, "the agent to publish all nodes", || async {
        let count = agent.nodes("many").await?.len();
        ensure!(count == NODES, "it publishes {count}");
        Ok(())
    })
    .await?;
    eventually(DEADLINE, "Envoy's cluster to have all nodes", || async {
        let count = envoy.stat("cluster.many.membership_total").await?;
        ensure!(count == NODES as u64, "it has {count}");
        Ok(())
    })
    .await?;
    envoy.wait_picking("many").await?;
    // Equal weights, one worker: any so many requests in a row reach each node once.
    eventually(DEADLINE, "every node to be picked once", || async {
        let report = Load::run(envoy.load("many").total(NODES as u64)).await?;
        report.ensure_no_failure()?;
        ensure!(report.nodes.len() == NODES, "{} nodes answered", report.nodes.len());
        Ok(())
    })
    .await?;
    let known: BTreeSet<String> = agent.nodes("many").await?.into_iter().collect();
    ensure!(known.len() == NODES && (0..NODES).all(|index| known.contains(&address(index).to_string())));
    scene.close()
}
