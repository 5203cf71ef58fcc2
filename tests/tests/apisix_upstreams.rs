//! Several agents put their nodes into one upstream of APISIX's, whatever becomes of the one that writes it.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use waypost_tests::{Agent, AgentConfig, Etcd, Scene, ServiceConfig, eventually};

const DEADLINE: Duration = Duration::from_secs(30);
const KEY: &str = "/apisix/upstreams/orders";
const OURS: &str = "/waypost/apisix/apisix/upstreams/orders";

fn address(host: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9_001 + host as u16))
}

/// An agent of host `host`, whose lease is the shortest that etcd takes.
fn config(etcd: &Etcd, host: usize) -> AgentConfig {
    let service = ServiceConfig::new("orders", &format!("orders-{host}"), address(host)).weight(host as u32 + 1);
    AgentConfig::new(&format!("host-{host}"), &etcd.endpoints())
        .drain("0s")
        .watch("/apisix/upstreams/", "apisix", "http1")
        .service(service.ttl("2s").format("apisix", None))
}

async fn upstream(etcd: &Etcd) -> Result<Value> {
    let entry = etcd.get(KEY).await?.context("there is no upstream")?;
    Ok(serde_json::from_str(&entry.value)?)
}

/// Weights by address.
fn weights(upstream: &Value) -> Result<BTreeMap<String, u64>> {
    let weight = |weight: &Value| weight.as_u64().context("no weight");
    match &upstream["nodes"] {
        Value::Object(nodes) => nodes.iter().map(|(address, of)| Ok((address.clone(), weight(of)?))).collect(),
        Value::Array(nodes) => nodes
            .iter()
            .map(|node| {
                let host = node["host"].as_str().context("no host")?;
                Ok((format!("{host}:{}", node["port"]), weight(&node["weight"])?))
            })
            .collect(),
        other => anyhow::bail!("{other} are no nodes"),
    }
}

/// Waits until exactly the nodes of these hosts are in the upstream, beside those of others.
async fn until_nodes(etcd: &Etcd, hosts: &[usize], others: &[(&str, u64)]) -> Result<Value> {
    let ours = hosts.iter().map(|host| (address(*host).to_string(), *host as u64 + 1));
    let expected: BTreeMap<String, u64> =
        ours.chain(others.iter().map(|(address, weight)| ((*address).to_owned(), *weight))).collect();
    eventually(DEADLINE, format!("the upstream to have {expected:?}"), || async {
        let upstream = upstream(etcd).await?;
        let found = weights(&upstream)?;
        ensure!(found == expected, "it has {found:?}");
        Ok(upstream)
    })
    .await
}

/// The host whose agent writes.
async fn leader(etcd: &Etcd) -> Result<usize> {
    eventually(DEADLINE, "somebody to lead", || async {
        let candidates = etcd.list(&format!("{OURS}/leader/")).await?;
        let first = candidates.iter().min_by_key(|entry| entry.create_revision).context("nobody")?;
        Ok(first.value.trim_start_matches("orders-").parse()?)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_upstream_has_the_nodes_of_all_agents_whichever_of_them_dies_or_leaves() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let configs = [0, 1, 2].map(|host| config(&etcd, host));
    let mut agents = Vec::new();
    for config in &configs {
        agents.push(Agent::start(&scene, config).await?);
    }
    until_nodes(&etcd, &[0, 1, 2], &[]).await?;
    for agent in &agents {
        agent.wait_nodes("orders", &[address(0), address(1), address(2)]).await?;
    }

    // An administrator sets a field and puts a node in; both stay whatever happens below.
    let mut edited = upstream(&etcd).await?;
    edited["timeout"] = json!({"connect": 0.5, "send": 0.5, "read": 0.5});
    let nodes = edited["nodes"].as_array_mut().context("a list")?;
    nodes.push(json!({"host": "10.9.9.9", "port": 80, "weight": 7, "metadata": {"x": 1}}));
    etcd.put(KEY, edited.to_string()).await?;
    let theirs = [("10.9.9.9:80", 7)];

    let first = leader(&etcd).await?;
    agents[first].kill().await?;
    let others: Vec<usize> = (0..3).filter(|host| *host != first).collect();
    until_nodes(&etcd, &others, &theirs).await?;
    ensure!(leader(&etcd).await? != first, "the dead agent leads on");
    agents[first].restart().await?;
    until_nodes(&etcd, &[0, 1, 2], &theirs).await?;

    let second = leader(&etcd).await?;
    agents[second].terminate().await?;
    let others: Vec<usize> = (0..3).filter(|host| *host != second).collect();
    let found = weights(&upstream(&etcd).await?)?;
    ensure!(!found.contains_key(&address(second).to_string()), "an agent's node outlives it: {found:?}");
    until_nodes(&etcd, &others, &theirs).await?;
    for host in others {
        agents[host].terminate().await?;
    }
    let last = until_nodes(&etcd, &[], &theirs).await?;
    ensure!(last["timeout"] == edited["timeout"], "a field was lost: {last}");
    ensure!(last["nodes"][0]["metadata"] == json!({"x": 1}), "a node of theirs was changed: {last}");
    let left = etcd.list("/waypost/apisix/").await?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_removed_from_the_configuration_leaves_the_upstream() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    etcd.put(KEY, json!({"type": "chash", "key": "uri", "nodes": {"10.9.9.9:80": 7}}).to_string()).await?;
    let with = config(&etcd, 0);
    let agent = Agent::start(&scene, &with).await?;
    until_nodes(&etcd, &[0], &[("10.9.9.9:80", 7)]).await?;
    let mut without = with.clone();
    without.services.clear();
    agent.configure(&without)?;
    let left = until_nodes(&etcd, &[], &[("10.9.9.9:80", 7)]).await?;
    ensure!(left["type"] == "chash" && left["key"] == "uri", "a field was lost: {left}");
    eventually(DEADLINE, "the writer to resign", || async {
        let left = etcd.list("/waypost/apisix/").await?;
        ensure!(left.is_empty(), "{left:?} are there");
        Ok(())
    })
    .await?;
    agent.configure(&with)?;
    until_nodes(&etcd, &[0], &[("10.9.9.9:80", 7)]).await?;
    scene.close()
}
