//! A service whose nodes a scenario puts into etcd itself, in whatever zone and state it likes, and the policies and
//! routes by which they are chosen. Every change is waited for until all filters have it.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::agent::{Agent, AgentConfig};
use crate::envoy::{Envoy, EnvoyOptions};
use crate::etcd::Etcd;
use crate::load::LoadPlan;
use crate::scene::Scene;
use crate::upstream::Upstream;
use crate::wait::eventually;
use crate::world::SERVICE;

/// How long a change may take to reach every filter.
const APPLIED_WITHIN: Duration = Duration::from_secs(20);

/// What etcd says of a node beside its address.
#[derive(Debug, Clone)]
pub struct Member {
    name: String,
    fields: Map<String, Value>,
}

impl Member {
    /// A node of weight 1 that says nothing else of itself.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), fields: Map::new() }
    }

    /// Several of them.
    pub fn all<const N: usize>(names: [&str; N]) -> [Self; N] {
        names.map(Self::new)
    }

    /// Its weight.
    pub fn weight(self, weight: u32) -> Self {
        self.with("weight", weight)
    }

    /// Its zone.
    pub fn zone(self, zone: &str) -> Self {
        self.with("zone", zone)
    }

    /// Its version.
    pub fn version(self, version: &str) -> Self {
        self.with("version", version)
    }

    /// Its one tag.
    pub fn tag(self, tag: &str) -> Self {
        self.with("tags", vec![tag])
    }

    /// Its one piece of metadata.
    pub fn metadata(self, name: &str, value: &str) -> Self {
        self.with("metadata", json!({ name: value }))
    }

    /// `passing`, `critical` or `draining`.
    pub fn health(self, health: &str) -> Self {
        self.with("health", health)
    }

    fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(field.to_owned(), value.into());
        self
    }

    fn value(&self, address: SocketAddr) -> String {
        let mut fields = self.fields.clone();
        fields.insert("address".to_owned(), address.ip().to_string().into());
        fields.insert("port".to_owned(), address.port().into());
        Value::Object(fields).to_string()
    }
}

/// Parts that run, each reachable for a scenario to break.
pub struct Fleet {
    /// One member.
    pub etcd: Etcd,
    /// What the agent was started with.
    pub config: AgentConfig,
    /// Registers nothing and serves Envoy.
    pub agent: Agent,
    /// Routes to [`SERVICE`], or wherever routes in etcd lead.
    pub envoy: Envoy,
    nodes: BTreeMap<String, Upstream>,
}

/// What tells whether filters have a change.
#[derive(Debug, Clone, Copy)]
struct Progress {
    version: f64,
    acks: f64,
    streams: f64,
}

impl Fleet {
    /// These nodes of [`SERVICE`].
    pub async fn start(scene: &Scene, members: &[Member], envoy: EnvoyOptions) -> Result<Self> {
        Self::start_with(scene, members, envoy, |config| config).await
    }

    /// Likewise, with another configuration of the agent.
    pub async fn start_with(
        scene: &Scene,
        members: &[Member],
        envoy: EnvoyOptions,
        configured: impl FnOnce(AgentConfig) -> AgentConfig,
    ) -> Result<Self> {
        let etcd = Etcd::start(scene).await?;
        let mut nodes = BTreeMap::new();
        let mut entries = Vec::new();
        for member in members {
            let node = Upstream::start(&member.name).await?;
            entries.push((key(SERVICE, &member.name), member.value(node.address())));
            nodes.insert(member.name.clone(), node);
        }
        etcd.put_many(&entries).await?;
        let config = configured(AgentConfig::new("host-a", &etcd.endpoints()));
        let agent = Agent::start(scene, &config).await?;
        let envoy = Envoy::start(scene, &agent, &envoy).await?;
        envoy.wait_picking(SERVICE).await?;
        let fleet = Self { etcd, config, agent, envoy, nodes };
        fleet.wait_settled().await?;
        Ok(fleet)
    }

    /// One of the nodes.
    pub fn node(&self, name: &str) -> Result<&Upstream> {
        self.nodes.get(name).with_context(|| format!("no node {name}"))
    }

    /// A load on [`SERVICE`].
    pub fn load(&self) -> LoadPlan {
        self.envoy.load(SERVICE)
    }

    /// Puts a node of [`SERVICE`], with a new upstream if it is a new one.
    pub async fn put(&mut self, member: &Member) -> Result<()> {
        self.put_all(std::slice::from_ref(member)).await
    }

    /// Puts several at once.
    pub async fn put_all(&mut self, members: &[Member]) -> Result<()> {
        let mut entries = Vec::new();
        for member in members {
            if !self.nodes.contains_key(&member.name) {
                self.nodes.insert(member.name.clone(), Upstream::start(&member.name).await?);
            }
            entries.push((key(SERVICE, &member.name), member.value(self.node(&member.name)?.address())));
        }
        self.applied(async { self.etcd.put_many(&entries).await }).await
    }

    /// Takes a node out of etcd; its upstream goes on.
    pub async fn remove(&self, name: &str) -> Result<()> {
        self.applied(async { self.etcd.delete(&key(SERVICE, name)).await }).await
    }

    /// Puts a node of another service.
    pub async fn put_of(&self, service: &str, member: &Member, address: SocketAddr) -> Result<()> {
        self.applied(async { self.etcd.put(&key(service, &member.name), member.value(address)).await.map(drop) }).await
    }

    /// Gives [`SERVICE`] a policy, another one than it has.
    pub async fn set_policy(&self, policy: Value) -> Result<()> {
        self.set_policy_of(SERVICE, policy).await
    }

    /// Gives a service a policy, another one than it has.
    pub async fn set_policy_of(&self, service: &str, policy: Value) -> Result<()> {
        self.set(&format!("/waypost/policies/{service}"), policy).await
    }

    /// Puts a route, another one than there is.
    pub async fn set_route(&self, id: &str, route: Value) -> Result<()> {
        self.set(&format!("/waypost/routes/{id}"), route).await
    }

    /// Takes a route out.
    pub async fn remove_route(&self, id: &str) -> Result<()> {
        self.applied(async { self.etcd.delete(&format!("/waypost/routes/{id}")).await }).await
    }

    async fn set(&self, key: &str, document: Value) -> Result<()> {
        let applied = self.applied(async { self.etcd.put(key, document.to_string()).await.map(drop) }).await;
        applied.with_context(|| format!("{key}: {document}"))
    }

    /// Makes a change of the catalog and waits until every filter has it.
    async fn applied(&self, change: impl Future<Output = Result<()>>) -> Result<()> {
        let before = self.progress().await?;
        change.await?;
        eventually(APPLIED_WITHIN, "every filter to have a change", || async {
            let now = self.progress().await?;
            let passed = now.version > before.version && now.acks >= before.acks + before.streams;
            ensure!(passed, "{now:?} after {before:?}, {}", self.agent.api("/v1/status").await?["rules"]);
            Ok(())
        })
        .await
    }

    async fn progress(&self) -> Result<Progress> {
        Ok(Progress {
            version: self.agent.metric("waypost_catalog_version", &[]).await?,
            acks: self.agent.metric("waypost_stream_acks_total", &[]).await?,
            streams: self.agent.metric("waypost_streams", &[]).await?,
        })
    }

    /// Waits until every filter is connected, and nothing is on its way to any: what is acknowledged later is a later
    /// change.
    pub async fn wait_settled(&self) -> Result<()> {
        let filters = self.envoy.workers() as f64 + 1.0;
        eventually(APPLIED_WITHIN, "filters to have settled", || async {
            let before = self.progress().await?;
            tokio::time::sleep(Duration::from_millis(250)).await;
            let now = self.progress().await?;
            let settled = before.version == now.version && before.acks == now.acks && now.streams == filters;
            ensure!(settled, "{now:?} after {before:?}");
            Ok(())
        })
        .await
    }

    /// Stops a node's upstream; etcd is not told.
    pub fn stop(&mut self, name: &str) -> Result<()> {
        self.nodes.remove(name).map(drop).with_context(|| format!("no node {name}"))
    }

    /// Waits until filters must have reported what has ended so far.
    pub async fn wait_reported(&self) -> Result<()> {
        // Once a second, and then the agent takes it in.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        self.agent.ensure_running()
    }

    /// What is known of how a node's requests ended, of `GET /v1/outcomes`.
    pub async fn outcomes(&self, node: &str) -> Result<Value> {
        let address = self.node(node)?.address().to_string();
        let known = self.agent.api(&format!("/v1/outcomes?service={SERVICE}")).await?;
        let nodes = known["services"][0]["nodes"].as_array().context("nothing is known of the service")?;
        let found = nodes.iter().find(|known| known["address"] == address.as_str());
        found.cloned().with_context(|| format!("nothing is known of {node}: {known}"))
    }
}

fn key(service: &str, instance: &str) -> String {
    format!("/waypost/services/{service}/{instance}")
}
