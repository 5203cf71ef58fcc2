//! From a put in etcd to the first request that the new node serves, beside a bare etcd watcher in the same run.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use etcd_client::WatchOptions;
use tokio::time::timeout;
use waypost_tests::{Agent, AgentConfig, Envoy, EnvoyOptions, Etcd, LoadPlan, Scene, Upstream, load::Caller, ports};

use crate::{Effort, table};

const NODES: u16 = 1_000;
const PREFIX: &str = "/waypost/services/big/";
/// Outside every prefix that the agent watches.
const BARE_KEY: &str = "/bench/bare";
/// Between two requests; tokio's timer makes it up to a millisecond more.
const PAUSE: Duration = Duration::from_micros(200);
const DEADLINE: Duration = Duration::from_secs(10);

pub async fn run(effort: Effort) -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    // A thousand servers on addresses of their own, and the one that comes and goes.
    let port = ports::local()?.port();
    let mut upstreams = Vec::new();
    let mut entries = Vec::new();
    for index in 0..NODES {
        let ip = Ipv4Addr::new(127, 0, 1 + (index / 250) as u8, 1 + (index % 250) as u8);
        upstreams.push(Upstream::serve("old", SocketAddr::from((ip, port))).await?);
        entries.push((format!("{PREFIX}n{index}"), value(ip, port, 1)));
    }
    let new = Ipv4Addr::new(127, 0, 9, 9);
    upstreams.push(Upstream::serve("new", SocketAddr::from((new, port))).await?);
    etcd.put_many(&entries).await?;

    let agent = Agent::start(&scene, &AgentConfig::new("host", &etcd.endpoints())).await?;
    let envoy = Envoy::start(&scene, &agent, &EnvoyOptions::new(&["big"])).await?;
    let mut caller = Caller::new(LoadPlan::new(envoy.listen(), "big"));

    let mut client = etcd.client().await?;
    let key = format!("{PREFIX}new");
    let mut watch = client.watch(BARE_KEY, Some(WatchOptions::new())).await?;
    let (mut bare, mut served, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.changes {
        let start = Instant::now();
        let (put, event) =
            tokio::join!(client.put(BARE_KEY, value(new, port, 1), None), timeout(DEADLINE, watch.message()));
        put?;
        event.context("the bare watcher saw no event")??.context("the bare watcher's stream ended")?;
        bare.push(start.elapsed());

        // Its weight makes it the next pick as soon as it is known.
        let start = Instant::now();
        client.put(key.as_str(), value(new, port, 1_000_000_000), None).await?;
        until(&mut caller, "new").await?;
        served.push(start.elapsed());

        let start = Instant::now();
        client.delete(key.as_str(), None).await?;
        until(&mut caller, "old").await?;
        dropped.push(start.elapsed());
    }

    table::print(
        &format!(
            "A change at {NODES} nodes, {} times (budget: put to first request served, p99 < 10 ms)",
            effort.changes
        ),
        &table::TIMES,
        &[
            table::times("put to a bare etcd watcher's event", bare),
            table::times("put to the first request that the new node serves", served),
            table::times("delete to the first request that another node serves", dropped),
        ],
    );
    drop(caller);
    scene.close()
}

fn value(ip: Ipv4Addr, port: u16, weight: u32) -> String {
    format!(r#"{{"address":"{ip}","port":{port},"weight":{weight}}}"#)
}

/// One request after the other until `node` answers.
async fn until(caller: &mut Caller, node: &str) -> Result<()> {
    let start = Instant::now();
    while caller.call().await? != node {
        ensure!(start.elapsed() < DEADLINE, "{node} has not answered within {DEADLINE:?}");
        // A loop without a pause would keep two cores busy, and measure how long the others wait for one.
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
