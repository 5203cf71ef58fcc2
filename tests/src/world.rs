//! The usual world of a scenario: one etcd, one agent that registers some upstreams, and an Envoy in front of them.
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::agent::{Agent, AgentConfig, ServiceConfig};
use crate::envoy::{Envoy, EnvoyOptions};
use crate::etcd::{Entry, Etcd};
use crate::load::{Load, LoadPlan};
use crate::scene::Scene;
use crate::upstream::Upstream;
use crate::wait::eventually;

/// The service that the usual nodes belong to.
pub const SERVICE: &str = "shop";
/// Where the registry keeps that service.
pub const PREFIX: &str = "/waypost/services/shop/";
/// The usual nodes and their weights.
pub const WEIGHTS: [(&str, u32); 3] = [("a", 1), ("b", 2), ("c", 3)];
/// How long requests may take to follow a change of the registry.
const SHOWS_WITHIN: Duration = Duration::from_secs(30);

/// Parts that run, each reachable for a scenario to break.
pub struct World {
    /// One member.
    pub etcd: Etcd,
    /// Upstreams `a`, `b` and `c`.
    pub nodes: Vec<Upstream>,
    /// What the agent was started with.
    pub config: AgentConfig,
    /// Registers the nodes and serves Envoy.
    pub agent: Agent,
    /// Routes to [`SERVICE`].
    pub envoy: Envoy,
}

impl World {
    /// The usual world with one worker.
    pub async fn start(scene: &Scene) -> Result<Self> {
        Self::start_with(scene, EnvoyOptions::new(&[SERVICE])).await
    }

    /// The usual world with another Envoy.
    pub async fn start_with(scene: &Scene, envoy: EnvoyOptions) -> Result<Self> {
        let etcd = Etcd::start(scene).await?;
        let nodes = upstreams().await?;
        let config = registering(&etcd.endpoints(), &nodes);
        let agent = Agent::start(scene, &config).await?;
        let envoy = Envoy::start(scene, &agent, &envoy).await?;
        let world = Self { etcd, nodes, config, agent, envoy };
        world.agent.wait_nodes(SERVICE, &world.addresses()).await?;
        Ok(world)
    }

    /// Addresses of the usual nodes.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(Upstream::address).collect()
    }

    /// One of the usual nodes.
    pub fn node(&self, name: &str) -> Result<&Upstream> {
        self.nodes.iter().find(|node| node.name() == name).with_context(|| format!("no node {name}"))
    }

    /// A load on [`SERVICE`].
    pub fn load(&self) -> LoadPlan {
        self.envoy.load(SERVICE)
    }

    /// Somebody else registers a node `d` of weight 6: waits until it has its exact share of requests. The node, and its
    /// key.
    pub async fn add_fourth_node(&self) -> Result<(Upstream, String)> {
        let fourth = Upstream::start("d").await?;
        let (key, value) = entry(SERVICE, "d", fourth.address(), 6);
        self.etcd.put(&key, value).await?;
        eventually(SHOWS_WITHIN, "a new node to have its share", || async {
            let report = Load::run(self.load().total(1_200)).await?;
            report.ensure_no_failure()?;
            report.ensure_shares(&[("a", 1), ("b", 2), ("c", 3), ("d", 6)], 0.01)
        })
        .await?;
        Ok((fourth, key))
    }

    /// What the registry holds of [`SERVICE`].
    pub async fn registered(&self) -> Result<Vec<Entry>> {
        self.etcd.list(PREFIX).await
    }
}

/// The usual upstreams, in this process.
pub async fn upstreams() -> Result<Vec<Upstream>> {
    let mut nodes = Vec::new();
    for (name, _) in WEIGHTS {
        nodes.push(Upstream::start(name).await?);
    }
    Ok(nodes)
}

/// A configuration that registers the usual upstreams.
pub fn registering(endpoints: &[String], nodes: &[Upstream]) -> AgentConfig {
    let services = nodes.iter().zip(WEIGHTS);
    services.fold(AgentConfig::new("host-a", endpoints), |config, (node, (_, weight))| {
        config.service(ServiceConfig::new(SERVICE, node.name(), node.address()).weight(weight))
    })
}

/// Key and value of a node in Waypost's own format, as somebody else would write it.
pub fn entry(service: &str, instance: &str, address: SocketAddr, weight: u32) -> (String, String) {
    let value = serde_json::json!({ "address": address.ip(), "port": address.port(), "weight": weight });
    (format!("/waypost/services/{service}/{instance}"), value.to_string())
}
