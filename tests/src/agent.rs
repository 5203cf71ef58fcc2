//! The agent: its configuration, its process, and what it says of itself on its admin port.
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http_body_util::Full;
use hyper::{Method, Request};
use serde::Serialize;

use crate::authority::{Authority, Identity};
use crate::http::Reply;
use crate::process::{Process, Signal};
use crate::scene::Scene;
use crate::{http, ports, stats, tools, wait};

const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(30);

/// The agent's configuration, as its TOML has it; the harness adds socket, admin port and state directory.
#[derive(Debug, Clone, Serialize)]
pub struct AgentConfig {
    /// The host's name.
    pub node: String,
    /// Failure domain of the host; none: unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// How long a node drains.
    pub drain: String,
    /// Endpoints of etcd.
    pub etcd: EtcdConfig,
    /// Which services become Envoy clusters; none: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xds: Option<XdsConfig>,
    /// Mass-loss guard; none: the agent's defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardConfig>,
    /// Watched prefixes; none: the agent's default.
    #[serde(rename = "watch", skip_serializing_if = "Vec::is_empty")]
    pub watches: Vec<WatchConfig>,
    /// Services of this host.
    #[serde(rename = "service", skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceConfig>,
}

/// Table `etcd`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct EtcdConfig {
    /// URLs.
    pub endpoints: Vec<String>,
    /// Certificate of the authority to trust.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Own certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// User.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// File of its password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
}

/// Table `xds`.
#[derive(Debug, Clone, Serialize)]
pub struct XdsConfig {
    /// Names, or patterns that end in `*`.
    pub services: Vec<String>,
}

/// Table `guard`.
#[derive(Debug, Clone, Serialize)]
pub struct GuardConfig {
    /// Share of a service's nodes that may go at once.
    pub max_loss: f64,
    /// How long lost nodes are kept.
    pub grace: String,
}

/// One `[[watch]]`.
#[derive(Debug, Clone, Serialize)]
pub struct WatchConfig {
    /// Ends in `/`.
    pub prefix: String,
    /// Name of the format.
    pub format: String,
    /// Protocol of its nodes.
    pub protocol: String,
}

/// One `[[service]]`.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceConfig {
    /// Service's name.
    pub name: String,
    /// Instance's name.
    pub instance: String,
    /// Where it is reached.
    pub address: String,
    /// Port.
    pub port: u16,
    /// Weight.
    pub weight: u32,
    /// Time to live of its lease.
    pub ttl: String,
    /// `http1` or `http2`.
    pub protocol: String,
    /// Format; none: Waypost's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// What comes before the service's name in the key; none: the format's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Health check; none: always passing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckConfig>,
}

/// Table `service.check`.
#[derive(Debug, Clone, Serialize)]
pub struct CheckConfig {
    /// `http`, `tcp`, `grpc`, `exec` or `ttl`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its other keys.
    #[serde(flatten)]
    pub settings: toml::Table,
}

impl CheckConfig {
    /// With the agent's defaults.
    pub fn new(kind: &str) -> Self {
        Self { kind: kind.to_owned(), settings: toml::Table::new() }
    }

    /// Sets a key.
    pub fn set(mut self, key: &str, value: impl Into<toml::Value>) -> Self {
        self.settings.insert(key.to_owned(), value.into());
        self
    }

    /// Asks often: two failures make the service critical, one pass restores it.
    pub fn quick(self) -> Self {
        self.set("interval", "200ms").set("rise", 1).set("fall", 2)
    }
}

impl AgentConfig {
    /// A host without services, with the agent's defaults and a short drain.
    pub fn new(node: &str, endpoints: &[String]) -> Self {
        Self {
            node: node.to_owned(),
            zone: None,
            drain: "1s".to_owned(),
            etcd: EtcdConfig { endpoints: endpoints.to_vec(), ..EtcdConfig::default() },
            xds: None,
            guard: None,
            watches: Vec::new(),
            services: Vec::new(),
        }
    }

    /// Registers a service of this host.
    pub fn service(mut self, service: ServiceConfig) -> Self {
        self.services.push(service);
        self
    }

    /// Watches a prefix.
    pub fn watch(mut self, prefix: &str, format: &str, protocol: &str) -> Self {
        let [prefix, format, protocol] = [prefix, format, protocol].map(str::to_owned);
        self.watches.push(WatchConfig { prefix, format, protocol });
        self
    }

    /// Makes clusters of these services only.
    pub fn clusters(mut self, services: &[&str]) -> Self {
        self.xds = Some(XdsConfig { services: services.iter().map(|name| (*name).to_owned()).collect() });
        self
    }

    /// Sets the mass-loss guard.
    pub fn guard(mut self, max_loss: f64, grace: &str) -> Self {
        self.guard = Some(GuardConfig { max_loss, grace: grace.to_owned() });
        self
    }

    /// Trusts this authority, and shows this certificate to etcd.
    pub fn tls(mut self, authority: &Authority, identity: &Identity) -> Self {
        self.etcd.ca_file = Some(authority.certificate().to_owned());
        self.etcd.cert_file = Some(identity.certificate.clone());
        self.etcd.key_file = Some(identity.key.clone());
        self
    }

    /// Signs in to etcd with a password that is in a file.
    pub fn user(mut self, name: &str, password_file: &Path) -> Self {
        self.etcd.username = Some(name.to_owned());
        self.etcd.password_file = Some(password_file.to_owned());
        self
    }

    /// Its failure domain.
    pub fn zone(mut self, zone: &str) -> Self {
        self.zone = Some(zone.to_owned());
        self
    }

    /// How long its nodes drain.
    pub fn drain(mut self, drain: &str) -> Self {
        self.drain = drain.to_owned();
        self
    }
}

impl ServiceConfig {
    /// An instance at `address`, with weight 1, HTTP/1.1 and a lease of five seconds.
    pub fn new(service: &str, instance: &str, address: SocketAddr) -> Self {
        Self {
            name: service.to_owned(),
            instance: instance.to_owned(),
            address: address.ip().to_string(),
            port: address.port(),
            weight: 1,
            ttl: "5s".to_owned(),
            protocol: "http1".to_owned(),
            format: None,
            root: None,
            check: None,
        }
    }

    /// Its weight.
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Its lease's time to live.
    pub fn ttl(mut self, ttl: &str) -> Self {
        self.ttl = ttl.to_owned();
        self
    }

    /// Registered in another format, below its own root or this one.
    pub fn format(mut self, format: &str, root: Option<&str>) -> Self {
        self.format = Some(format.to_owned());
        self.root = root.map(str::to_owned);
        self
    }

    /// A quick check of `/healthz`: two failures make it critical, one pass restores it.
    pub fn checked(self) -> Self {
        self.check(CheckConfig::new("http").set("path", "/healthz").quick())
    }

    /// Its check.
    pub fn check(mut self, check: CheckConfig) -> Self {
        self.check = Some(check);
        self
    }
}

#[derive(Serialize)]
struct File<'a> {
    #[serde(flatten)]
    config: &'a AgentConfig,
    state_dir: PathBuf,
    stream: StreamConfig<'a>,
    admin: AdminConfig,
}

#[derive(Serialize)]
struct StreamConfig<'a> {
    socket: &'a Path,
}

#[derive(Serialize)]
struct AdminConfig {
    listen: SocketAddr,
}

/// An agent that keeps its socket, admin port and state across restarts.
pub struct Agent {
    name: String,
    file: PathBuf,
    state: PathBuf,
    socket: PathBuf,
    admin: SocketAddr,
    process: Process,
}

impl Agent {
    /// Writes the configuration and starts nothing yet: Envoy can already be told the socket.
    pub fn prepare(scene: &Scene, config: &AgentConfig) -> Result<Self> {
        Self::prepare_with(scene, config, Vec::new())
    }

    /// As [`Self::prepare`], with variables in its environment.
    pub fn prepare_with(scene: &Scene, config: &AgentConfig, environment: Vec<(String, String)>) -> Result<Self> {
        let directory = scene.path();
        let name = format!("agent-{}", config.node);
        let file = directory.join(format!("{name}.toml"));
        let args = ["agent".to_owned(), "--config".to_owned(), file.display().to_string()];
        let agent = Self {
            state: directory.join(format!("{name}.state")),
            socket: directory.join(format!("{name}.sock")),
            admin: ports::local()?,
            process: scene.process(&name, tools::waypost()?, args).environment(environment),
            file,
            name,
        };
        agent.configure(config)?;
        Ok(agent)
    }

    /// Starts the agent, without waiting for it to be ready.
    pub fn launch(&self) -> Result<()> {
        self.process.start()
    }

    /// Starts an agent and waits until it is ready.
    pub async fn start(scene: &Scene, config: &AgentConfig) -> Result<Self> {
        let agent = Self::prepare(scene, config)?;
        agent.restart().await?;
        Ok(agent)
    }

    /// Writes the configuration anew; the agent sees the changed file.
    pub fn configure(&self, config: &AgentConfig) -> Result<()> {
        let file = File {
            config,
            state_dir: self.state.clone(),
            stream: StreamConfig { socket: &self.socket },
            admin: AdminConfig { listen: self.admin },
        };
        // In one piece: a reload must never see half of it.
        let fresh = self.file.with_extension("new");
        std::fs::write(&fresh, toml::to_string(&file)?)?;
        std::fs::rename(fresh, &self.file)?;
        Ok(())
    }

    /// Waits for `/readyz`.
    pub async fn wait_ready(&self) -> Result<()> {
        wait::eventually(START, format!("{} to be ready", self.name), || async {
            self.process.ensure_running()?;
            http::get_text(self.admin, "/readyz").await.map(drop)
        })
        .await
    }

    /// The body of `/readyz`, whatever its status.
    pub async fn readiness(&self) -> Result<serde_json::Value> {
        Ok(serde_json::from_slice(&http::get(self.admin, "/readyz").await?.body)?)
    }

    /// `/catalog`.
    pub async fn catalog(&self) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&http::get_text(self.admin, "/catalog").await?)?)
    }

    /// Sum of a metric's samples that carry the labels; 0 while there is none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let text = http::get_text(self.admin, "/metrics").await?;
        Ok(stats::prometheus(&text, name, labels).unwrap_or(0.0))
    }

    /// One call of its local API.
    pub async fn call(&self, method: Method, path: &str, body: Option<&serde_json::Value>) -> Result<Reply> {
        let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        http::send_unix(&self.socket, request.body(Full::from(body))?).await
    }

    /// A GET of its local API.
    pub async fn api(&self, path: &str) -> Result<serde_json::Value> {
        let reply = self.call(Method::GET, path, None).await?;
        ensure!(reply.status.is_success(), "{path}: {} {}", reply.status, reply.text());
        Ok(serde_json::from_slice(&reply.body)?)
    }

    /// What a command that asks this agent prints.
    pub async fn cli(&self, arguments: &[&str]) -> Result<String> {
        let mut command = tokio::process::Command::new(tools::waypost()?);
        command.args(arguments).env("WAYPOST_AGENT", &self.socket).kill_on_drop(true);
        let output = command.output().await.with_context(|| format!("cannot run waypost {arguments:?}"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "waypost {arguments:?} failed: {errors}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// SIGKILL.
    pub async fn kill(&self) -> Result<()> {
        self.process.kill().await
    }

    /// SIGTERM, which drains, and waits for its exit.
    pub async fn terminate(&self) -> Result<ExitStatus> {
        self.process.terminate(STOP).await
    }

    /// Starts it (again) and waits until it is ready.
    pub async fn restart(&self) -> Result<()> {
        self.launch()?;
        self.wait_ready().await
    }

    /// SIGHUP: reads its configuration again.
    pub fn reload(&self) -> Result<()> {
        self.process.signal(Signal::HUP)
    }

    /// An error with its log's tail if it does not run.
    pub fn ensure_running(&self) -> Result<()> {
        self.process.ensure_running()
    }

    /// The process, for signals and its log.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its configuration file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Its Unix socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its admin address.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Its directory on disk.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its name in logs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Addresses of a service's nodes that it publishes, whatever their health, in order.
    pub async fn nodes(&self, service: &str) -> Result<Vec<String>> {
        let catalog = self.catalog().await?;
        let mut addresses: Vec<String> = catalog_nodes(&catalog, service)
            .context("the catalog is not the JSON expected")?
            .iter()
            .filter_map(|node| node.get("address")?.as_str().map(str::to_owned))
            .collect();
        addresses.sort_unstable();
        Ok(addresses)
    }

    /// Waits until it publishes exactly these nodes of a service.
    pub async fn wait_nodes(&self, service: &str, expected: &[SocketAddr]) -> Result<()> {
        let mut expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        expected.sort_unstable();
        wait::eventually(START, format!("{} to publish {expected:?} as {service}", self.name), || async {
            let nodes = self.nodes(service).await?;
            ensure!(nodes == expected, "it publishes {nodes:?}");
            Ok(())
        })
        .await
    }
}

fn catalog_nodes<'a>(catalog: &'a serde_json::Value, service: &str) -> Option<&'a [serde_json::Value]> {
    match catalog.get("services")?.get(service) {
        Some(nodes) => nodes.as_array().map(Vec::as_slice),
        None => Some(&[]),
    }
}
