//! Everything that the demo runs: etcd, two agents, five stock HTTP servers, an application that registers itself, and
//! Envoy.
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use waypost_tests::{
    Agent, AgentConfig, CheckConfig, Envoy, EnvoyOptions, Etcd, Process, Scene, ServiceConfig, eventually, http, ports,
    tools,
};

use crate::model::{LEGACY, Model, Node, State, WEB};
use crate::screen::seconds;

/// The hosts, by their addresses.
pub const HOST_A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));
pub const HOST_B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 3));
const HOST_OF_LEGACY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 4));

/// Where `legacy` registers itself: `<root>/<service>/<host:port>` with an empty value, as many applications do.
pub const LEGACY_ROOT: &str = "/legacy-apps/";
/// etcdctl keeps this lease alive and cannot grant a new one: it must outlive etcd's ten seconds away.
const LEGACY_TTL: &str = "30";

const NODES: [(&str, &str, IpAddr, u32); 5] = [
    (WEB, "web-1", HOST_A, 1),
    (WEB, "web-2", HOST_A, 2),
    (WEB, "web-3", HOST_B, 3),
    (LEGACY, "legacy-1", HOST_OF_LEGACY, 1),
    (LEGACY, "legacy-2", HOST_OF_LEGACY, 1),
];
const WORKERS: usize = 2;
const START: Duration = Duration::from_secs(20);

/// What runs, for the steps to change and to break.
pub struct World {
    pub etcd: Etcd,
    pub agent_a: Agent,
    pub agent_b: Agent,
    pub envoy: Envoy,
    servers: Vec<(&'static str, Server)>,
    _keep_alive: Process,
}

/// A stock HTTP server.
pub struct Server {
    address: SocketAddr,
    process: Process,
}

impl World {
    /// Starts everything; `progress` hears of each part.
    pub async fn start(scene: &Scene, progress: &mut impl FnMut(String)) -> Result<(Self, Model)> {
        let mut clock = Instant::now();
        let mut tell = |what: String| {
            progress(format!("  {what:<86} {:>7}", seconds(clock.elapsed())));
            clock = Instant::now();
        };
        let etcd = Etcd::start(scene).await?;
        tell(format!("etcd      {}", etcd.endpoints().join(", ")));

        let python = Python::find().await?;
        let mut nodes = Vec::new();
        let mut servers = Vec::new();
        for (service, name, host, weight) in NODES {
            let address = ports::reserve(host)?;
            nodes.push(Node { service, name, address, weight, state: State::Serving });
            servers.push((name, python.server(scene, name, address)?));
        }
        for (_, server) in &servers {
            server.wait_up().await?;
        }
        tell(format!("servers   {} x {}", servers.len(), python.describe()));
        let model = Model { nodes, even: false };

        let agent_a = Agent::start(scene, &configuration("host-a", HOST_A, &etcd, &model)).await?;
        let agent_b = Agent::start(scene, &configuration("host-b", HOST_B, &etcd, &model)).await?;
        tell(format!("host-a    {HOST_A}: waypost agent registers web-1 and web-2, of weight 1 and 2"));
        tell(format!("host-b    {HOST_B}: waypost agent registers web-3, of weight 3"));

        let keep_alive = register_legacy(scene, &etcd, &model).await?;
        tell(format!("no agent  {HOST_OF_LEGACY}: legacy-1 and legacy-2, put by etcdctl under {LEGACY_ROOT}"));

        let options = EnvoyOptions::new(&[WEB, LEGACY]).workers(WORKERS);
        let envoy = Envoy::start(scene, &agent_a, &options).await?;
        for service in [WEB, LEGACY] {
            envoy.wait_picking(service).await?;
        }
        tell(format!("envoy     http://{}, {WORKERS} workers, served by the agent of host-a", envoy.listen()));
        Ok((Self { etcd, agent_a, agent_b, envoy, servers, _keep_alive: keep_alive }, model))
    }

    /// The server of a node.
    pub fn server(&self, name: &str) -> Result<&Server> {
        let found = self.servers.iter().find(|(node, _)| *node == name);
        found.map(|(_, server)| server).with_context(|| format!("no server is called {name}"))
    }

    /// Writes the TOML of host-a's agent anew, as the model has it.
    pub fn configure_host_a(&self, model: &Model) -> Result<()> {
        self.agent_a.configure(&configuration("host-a", HOST_A, &self.etcd, model))
    }

    /// Create revisions of `web`'s keys: a key that was deleted and put again has another.
    pub async fn registrations(&self) -> Result<Vec<(String, i64)>> {
        let entries = self.etcd.list(&format!("/waypost/services/{WEB}/")).await?;
        Ok(entries.into_iter().map(|entry| (entry.key, entry.create_revision)).collect())
    }

    /// Waits until the filters of all workers hold a stream from host-a's agent.
    pub async fn wait_streams(&self) -> Result<()> {
        eventually(START, "Envoy's workers to be connected to the agent again", || async {
            let streams = self.agent_a.metric("waypost_streams", &[]).await?;
            ensure!(streams >= WORKERS as f64, "it has {streams} streams");
            Ok(())
        })
        .await
    }
}

impl Server {
    /// Starts it, or starts it again, on its address.
    pub async fn start(&self) -> Result<()> {
        self.process.start()?;
        self.wait_up().await
    }

    /// SIGKILL.
    pub async fn kill(&self) -> Result<()> {
        self.process.kill().await
    }

    /// SIGTERM.
    pub async fn terminate(&self) -> Result<()> {
        self.process.terminate(START).await.map(drop)
    }

    async fn wait_up(&self) -> Result<()> {
        eventually(START, format!("{} to answer on {}", self.process.name(), self.address), || async {
            self.process.ensure_running()?;
            http::get_text(self.address, "/").await.map(drop)
        })
        .await
    }
}

/// Python, and whether its server can keep connections open.
struct Python {
    http11: bool,
}

impl Python {
    async fn find() -> Result<Self> {
        let version = run("python3".into(), &["-c", "import sys; print(sys.version_info >= (3, 11))"]).await?;
        Ok(Self { http11: version.trim() == "True" })
    }

    fn describe(&self) -> &'static str {
        if self.http11 { "python3 -m http.server --protocol HTTP/1.1" } else { "python3 -m http.server" }
    }

    /// Starts a server of a directory of its own, whose index says who it is.
    fn server(&self, scene: &Scene, name: &str, address: SocketAddr) -> Result<Server> {
        let directory = scene.path().join(name);
        fs::create_dir(&directory)?;
        fs::write(directory.join("index.html"), format!("{name}\n"))?;
        // It logs every request: that would fill the disk of somebody who leaves the demo on.
        let mut args: Vec<String> = ["-c", r#"exec "$@" 2> /dev/null"#, "sh"].map(str::to_owned).to_vec();
        args.extend(self.describe().split(' ').map(str::to_owned));
        args.extend(["--bind".to_owned(), address.ip().to_string(), "--directory".to_owned()]);
        args.extend([directory.display().to_string(), address.port().to_string()]);
        let process = scene.process(name, "sh".into(), args);
        process.start()?;
        Ok(Server { address, process })
    }
}

/// A host's TOML: its nodes of `web`, checked over HTTP, and both layouts watched.
fn configuration(node: &str, host: IpAddr, etcd: &Etcd, model: &Model) -> AgentConfig {
    let config = AgentConfig::new(node, &etcd.endpoints()).watch("/waypost/services/", "waypost", "http1").watch(
        LEGACY_ROOT,
        "endpoint-key",
        "http1",
    );
    let nodes = model.nodes.iter().filter(|node| node.service == WEB && node.address.ip() == host);
    nodes.fold(config, |config, node| {
        let check = CheckConfig::new("http").quick().set("interval", "500ms");
        let service = ServiceConfig::new(node.service, node.name, node.address).weight(node.weight).check(check);
        config.service(service)
    })
}

/// What an application does that registers itself: a lease, a key on it for each node, and keeping the lease alive.
async fn register_legacy(scene: &Scene, etcd: &Etcd, model: &Model) -> Result<Process> {
    let endpoints = format!("--endpoints={}", etcd.endpoints().join(","));
    let granted = run(tools::tool("etcdctl")?, &[&endpoints, "lease", "grant", LEGACY_TTL]).await?;
    let Some(lease) = granted.split_whitespace().nth(1).map(str::to_owned) else {
        bail!("etcdctl lease grant says `{granted}`, which names no lease");
    };
    for node in model.nodes.iter().filter(|node| node.service == LEGACY) {
        let key = format!("{LEGACY_ROOT}{LEGACY}/{}", node.address);
        run(tools::tool("etcdctl")?, &[&endpoints, "put", &format!("--lease={lease}"), &key, ""]).await?;
    }
    let args = [endpoints, "lease".to_owned(), "keep-alive".to_owned(), lease];
    let keep_alive = scene.process("etcdctl", tools::tool("etcdctl")?, args);
    keep_alive.start()?;
    Ok(keep_alive)
}

/// Runs a short command to its end; its output.
async fn run(program: PathBuf, args: &[&str]) -> Result<String> {
    let words = format!("{} {}", program.file_name().unwrap_or_default().display(), args.join(" "));
    let output = tokio::process::Command::new(&program).args(args).kill_on_drop(true).output();
    let output = tokio::time::timeout(START, output).await.with_context(|| format!("`{words}` takes too long"))?;
    let output = output.with_context(|| format!("cannot start `{words}`"))?;
    ensure!(output.status.success(), "`{words}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
