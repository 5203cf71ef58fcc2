//! Envoy with the bootstrap that `waypost envoy bootstrap` prints: what users run.
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::agent::Agent;
use crate::load::{Load, LoadPlan};
use crate::process::Process;
use crate::scene::Scene;
use crate::{http, ports, stats, tools, wait};

const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(10);
/// The filter reports its counters on a tick, some time after it counted.
const COUNTERS: Duration = Duration::from_millis(250);

/// How an Envoy is set up.
#[derive(Debug, Clone)]
pub struct EnvoyOptions {
    /// Its name in logs, and its node id.
    pub name: String,
    /// Workers.
    pub workers: usize,
    /// Services that it routes to, by host name.
    pub services: Vec<String>,
    /// Routes come from etcd, and every service is reached by its name: then none is named here.
    pub dynamic: bool,
    /// `override_host` or `original_dst`.
    pub mode: String,
    /// The filter; none: the one that is shipped.
    pub plugin: Option<PathBuf>,
    /// Texts of the bootstrap, and what a user has written in their place.
    pub edits: Vec<(String, String)>,
}

impl EnvoyOptions {
    /// One worker that routes to these services, in the default mode.
    pub fn new(services: &[&str]) -> Self {
        Self {
            name: "envoy".to_owned(),
            workers: 1,
            services: services.iter().map(|name| (*name).to_owned()).collect(),
            dynamic: false,
            mode: "override_host".to_owned(),
            plugin: None,
            edits: Vec::new(),
        }
    }

    /// One worker that has its routes from etcd.
    pub fn dynamic() -> Self {
        Self { dynamic: true, ..Self::new(&[]) }
    }

    /// Another name, for a second Envoy in a scene.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// So many workers.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Another mode.
    pub fn mode(mut self, mode: &str) -> Self {
        self.mode = mode.to_owned();
        self
    }

    /// Another text in the place of one that the bootstrap has.
    pub fn edit(mut self, from: &str, to: &str) -> Self {
        self.edits.push((from.to_owned(), to.to_owned()));
        self
    }

    /// Another filter.
    pub fn plugin(mut self, plugin: PathBuf) -> Self {
        self.plugin = Some(plugin);
        self
    }
}

/// An Envoy that keeps its ports across restarts.
pub struct Envoy {
    workers: usize,
    listen: SocketAddr,
    admin: SocketAddr,
    process: Process,
}

impl Envoy {
    /// Has the real command print its bootstrap, and starts nothing yet. The agent need not run.
    pub async fn prepare(scene: &Scene, agent: &Agent, options: &EnvoyOptions) -> Result<Self> {
        let (listen, admin) = (ports::local()?, ports::local()?);
        let bootstrap = bootstrap(agent.file(), listen, admin, options).await?;
        let file = scene.path().join(format!("{}.yaml", options.name));
        std::fs::write(&file, bootstrap)?;
        let args = [
            // Envoy wants a value apart from its option.
            "--config-path".to_owned(),
            file.display().to_string(),
            "--concurrency".to_owned(),
            options.workers.to_string(),
            "--disable-hot-restart".to_owned(),
            "--log-level".to_owned(),
            "warning".to_owned(),
        ];
        let process = scene.process(&options.name, tools::tool("envoy")?, args);
        Ok(Self { workers: options.workers, listen, admin, process })
    }

    /// Starts it, without waiting for it to be ready.
    pub fn launch(&self) -> Result<()> {
        self.process.start()
    }

    /// Starts an Envoy and waits until it is ready and its filter picks for the first of its services.
    pub async fn start(scene: &Scene, agent: &Agent, options: &EnvoyOptions) -> Result<Self> {
        let envoy = Self::prepare(scene, agent, options).await?;
        envoy.launch()?;
        envoy.wait_ready().await?;
        if let Some(service) = options.services.first() {
            envoy.wait_picking(service).await?;
        }
        Ok(envoy)
    }

    /// How many workers it has.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Where it takes requests.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Its admin address.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The process, for signals and its log.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// A load on one of its services.
    pub fn load(&self, service: &str) -> LoadPlan {
        LoadPlan::new(self.listen, service)
    }

    /// GET for a service.
    pub async fn get(&self, service: &str, path: &str) -> Result<http::Reply> {
        let request = hyper::Request::get(path).header("host", service);
        http::send(self.listen, request.body(Default::default())?).await
    }

    /// A counter or gauge; 0 while it does not exist.
    pub async fn stat(&self, name: &str) -> Result<u64> {
        stats::envoy(&http::get_text(self.admin, "/stats?format=json").await?, name)
    }

    /// Requests for which the filter has picked nodes, over all workers, once all that are counted have been reported.
    pub async fn picks(&self) -> Result<u64> {
        tokio::time::sleep(COUNTERS).await;
        self.stat("wasmcustom.waypost_picks").await
    }

    /// Requests that went without a pick, likewise.
    pub async fn misses(&self) -> Result<u64> {
        tokio::time::sleep(COUNTERS).await;
        let (no_node, unknown) = ("wasmcustom.waypost_no_node", "wasmcustom.waypost_unknown_service");
        Ok(self.stat(no_node).await? + self.stat(unknown).await?)
    }

    /// A counter of the filter, likewise; its name without `wasmcustom.waypost_`.
    pub async fn counted(&self, name: &str) -> Result<u64> {
        tokio::time::sleep(COUNTERS).await;
        self.stat(&format!("wasmcustom.waypost_{name}")).await
    }

    /// Waits for the admin's `/ready`.
    pub async fn wait_ready(&self) -> Result<()> {
        wait::eventually(START, format!("{} to be ready", self.process.name()), || async {
            self.process.ensure_running()?;
            http::get_text(self.admin, "/ready").await.map(drop)
        })
        .await
    }

    /// Waits until a service's requests succeed and every worker's filter picks for them: no request goes without a
    /// pick, over enough connections to reach every worker.
    pub async fn wait_picking(&self, service: &str) -> Result<()> {
        let plan = self.load(service).connections(8 * self.workers).total(16 * self.workers as u64);
        wait::eventually(START, format!("{} to pick for {service}", self.process.name()), || async {
            self.process.ensure_running()?;
            let (picks, misses) = (self.picks().await?, self.misses().await?);
            Load::run(plan.clone()).await?.ensure_no_failure()?;
            let (picks, misses) = (self.picks().await? - picks, self.misses().await? - misses);
            ensure!(misses == 0 && picks > 0, "{picks} requests with a pick, {misses} without");
            Ok(())
        })
        .await
    }

    /// SIGTERM, and waits for its exit.
    pub async fn terminate(&self) -> Result<()> {
        self.process.terminate(STOP).await.map(drop)
    }
}

async fn bootstrap(config: &Path, listen: SocketAddr, admin: SocketAddr, options: &EnvoyOptions) -> Result<String> {
    let plugin = match &options.plugin {
        Some(path) => path.clone(),
        None => tools::plugin_wasm()?,
    };
    let mut command = tokio::process::Command::new(tools::waypost()?);
    command.args(["envoy", "bootstrap", "--mode", &options.mode, "--node-id", &options.name]);
    command.arg("--config").arg(config).arg("--plugin").arg(plugin);
    command.arg("--listen").arg(listen.to_string()).arg("--admin").arg(admin.to_string());
    for service in &options.services {
        command.args(["--service", service]);
    }
    if options.dynamic {
        command.arg("--dynamic");
    }
    let output = command.kill_on_drop(true).output().await.context("cannot run waypost envoy bootstrap")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "waypost envoy bootstrap failed: {errors}");
    options.edits.iter().try_fold(String::from_utf8(output.stdout)?, |text, (from, to)| {
        ensure!(text.contains(from), "the bootstrap has no {from}");
        Ok(text.replace(from, to))
    })
}
