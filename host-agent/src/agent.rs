//! The agent as a whole: everything started and stopped in order.
//!
//! Start: the state directory (whose lock keeps a second agent out), the sockets, what was served before, the mirrors,
//! the servers, and last the registrations. Stop: first the registrations, draining; mirrors and servers go on until
//! they are gone, so that every Envoy sees the draining; then the rest.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use waypost_registry::{ConnectOptions, Connector};

#[cfg(feature = "components")]
use crate::weighing::Weighing;
use crate::{
    admin::{self, AdminError},
    api::{
        self, Api, Identity, Office,
        tcp::{self, ApiError},
    },
    config::{self, Config},
    etcd,
    metrics::{Reloads, Sources},
    mirroring::{MirrorSettings, Mirroring},
    outcomes::Outcomes,
    published::CatalogReceiver,
    registrations::{Desk, Registrations, Request},
    reload::{self, FileWatcher},
    signals::{Signals, Wanted},
    state::{self, StateDir, StateError, leases::Leases},
    stream::{
        metrics::StreamMetrics,
        server::{self, ServerError, ServerOptions},
        socket::{self, SocketError},
    },
    weighing::Board,
    xds::XdsOptions,
};

/// How long an agent that was just killed, and has not quite gone yet, is waited for.
const HELD_LIMIT: Duration = Duration::from_secs(3);
const HELD_RETRY: Duration = Duration::from_millis(20);

/// How long each part may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Runs the agent until a signal ends it.
///
/// # Errors
/// Whatever keeps it from starting, or ends it against its will; registrations are then left to the next run.
pub async fn run(path: &Path) -> anyhow::Result<()> {
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let mut agent = Agent::start(path).await?;
    let mut files = FileWatcher::start(path)
        .inspect_err(|error| warn!(%error, "changes of the configuration go unnoticed: send SIGHUP after one"))
        .ok();
    let failure = loop {
        tokio::select! {
            wanted = signals.next() => match wanted {
                Wanted::Stop => break None,
                Wanted::Reload => agent.reload(true).await,
            },
            () = changed(&mut files) => agent.reload(false).await,
            error = agent.servers.ended() => break Some(error),
        }
    };
    agent.stop(failure.is_none().then_some(&mut signals)).await;
    failure.map_or(Ok(()), Err)
}

async fn changed(files: &mut Option<FileWatcher>) {
    match files {
        Some(files) => files.changed().await,
        None => std::future::pending().await,
    }
}

struct Agent {
    path: PathBuf,
    /// The configuration's text as it was last read, right or wrong.
    text: String,
    config: Config,
    /// How etcd is reached, with the certificates and the password as they were last read.
    etcd: ConnectOptions,
    connector: Connector,
    desk: Desk,
    /// Cancelled: services that leave wait no more.
    cut: CancellationToken,
    mirroring: Mirroring,
    servers: Servers,
    saver: Saver,
    reloads: Arc<Reloads>,
    #[cfg(feature = "components")]
    weighing: Weighing,
    /// Keeps the lock.
    _state: StateDir,
}

impl Agent {
    async fn start(path: &Path) -> anyhow::Result<Self> {
        let text = read(path)?;
        let config =
            config::parse(&path.display().to_string(), &text, &config::host_name()).map_err(|e| anyhow!("{e}"))?;
        let etcd = etcd::options(&config.etcd)?;
        let connector = etcd::connector(&config.etcd)?;
        let state = patiently(async || StateDir::open(&config.state_dir), StateError::is_held).await?;
        let is_held = |error: &SocketError| matches!(error, SocketError::InUse(_));
        let socket = patiently(async || socket::bind(&config.socket), is_held).await?;
        let listener = patiently(async || admin::bind(config.admin).await, AdminError::is_held).await?;
        let api_listener = match config.api {
            Some(address) => Some(patiently(async || tcp::bind(address).await, ApiError::is_held).await?),
            None => None,
        };

        let disk = state::catalog::load(&state.catalog_path());
        let saved = disk.as_ref().map(|copy| copy.catalog.version());
        let held = state::held::load(&state.held_path());
        let outcomes = Arc::<Outcomes>::default();
        let components = Arc::<Board>::default();
        #[cfg(feature = "components")]
        let (weighing, ends) = {
            let (outcomes, components) = (Arc::clone(&outcomes), Arc::clone(&components));
            let (weighing, ends) = Weighing::start(&config, connector.clone(), outcomes, components);
            (weighing, Some(ends))
        };
        #[cfg(not(feature = "components"))]
        let ends = None;
        let (mirroring, catalog) = Mirroring::start(connector.clone(), mirror_settings(&config), disk, held, ends);
        let saver = Saver::start(&state, catalog.clone(), &mirroring, saved);
        let cut = CancellationToken::new();
        let leases = Arc::new(Leases::load(state.leases_path(), &config.node));
        let registrations = Registrations::new(connector.clone(), leases, cut.clone());

        let reloads = Arc::<Reloads>::default();
        let streams = Arc::<StreamMetrics>::default();
        let stop = CancellationToken::new();
        let xds = XdsOptions { services: config.xds.services.clone(), connect_timeout: config.xds.connect_timeout };
        let staleness = mirroring.board();
        let sources = Sources {
            services: registrations.board(),
            mirrors: mirroring.board(),
            catalog: catalog.clone(),
            streams: Arc::clone(&streams),
            outcomes: Arc::clone(&outcomes),
            components,
            reloads: Arc::clone(&reloads),
        };
        let identity = Identity { node: config.node.clone(), endpoints: config.etcd.endpoints.clone() };
        // What was adopted is pruned once these are decided: all that the previous run registered is named before.
        let heartbeats = registrations.heartbeats();
        let desk = Desk::open(registrations, &config.services, config.drain, state.registrations_path());
        let office = Office { desk: desk.handle(), heartbeats };
        let api = Api::new(identity, sources.clone(), office, connector.clone(), stop.clone());
        let options = ServerOptions { xds, api: api::router::router(api.clone()) };
        let servers = Servers {
            streams: tokio::spawn(server::run(socket, catalog, staleness, options, streams, outcomes, stop.clone())),
            admin: tokio::spawn(admin::serve(listener, sources, stop.clone())),
            api_work: tokio::spawn(api.clone().run()),
            api: api_listener
                .map(|listener| tokio::spawn(tcp::serve(listener, api::router::guarded(api), stop.clone()))),
            stop,
        };
        let (node, services, watches) = (&config.node, config.services.len(), config.watches.len());
        info!(version = env!("CARGO_PKG_VERSION"), node, services, watches, admin = %config.admin, "agent started");
        let path = path.to_owned();
        Ok(Self {
            path,
            text,
            config,
            etcd,
            connector,
            desk,
            cut,
            mirroring,
            servers,
            saver,
            reloads,
            #[cfg(feature = "components")]
            weighing,
            _state: state,
        })
    }

    /// Reads the configuration again and takes what is new in it. Unless `asked`, only if its text is another.
    async fn reload(&mut self, asked: bool) {
        self.renew_credentials();
        let text = match read(&self.path) {
            Ok(text) => text,
            Err(error) => {
                error!(error = format!("{error:#}"), "the configuration stays as it was");
                self.reloads.refused();
                return;
            }
        };
        if !asked && text == self.text {
            return;
        }
        let parsed = config::parse(&self.path.display().to_string(), &text, &config::host_name());
        self.text = text;
        match parsed {
            Ok(new) => self.take(new).await,
            Err(invalid) => {
                for problem in invalid.to_string().lines() {
                    error!(problem, "the configuration stays as it was");
                }
                self.reloads.refused();
            }
        }
    }

    /// Reads certificates and password again. New connections to etcd are made with what is new in them.
    fn renew_credentials(&mut self) {
        let options = match etcd::options(&self.config.etcd) {
            Ok(options) if options == self.etcd => return,
            Ok(options) => options,
            Err(error) => {
                warn!(error = format!("{error:#}"), "certificates and password of etcd stay as they were");
                return;
            }
        };
        match self.connector.replace(options.clone()) {
            Ok(()) => {
                info!("certificates or password of etcd changed: new connections use them");
                self.etcd = options;
            }
            Err(error) => warn!(%error, "certificates and password of etcd stay as they were"),
        }
    }

    async fn take(&mut self, mut new: Config) {
        let kept = reload::keep_fixed(&self.config, &mut new);
        if !kept.is_empty() {
            let keys = kept.join(", ");
            warn!(keys, "these keys changed and need a restart of the agent: their old values stay until then");
        }
        if let Err(error) = self.desk.handle().ask(Request::TakeFile(new.services.clone(), new.drain)).await {
            error!(%error, "the services stay as they were");
        }
        self.mirroring.apply(mirror_settings(&new));
        self.config = new;
        self.reloads.applied();
        info!(path = %self.path.display(), "configuration reloaded");
    }

    /// Stops everything. With `signals`, the services leave first, and another signal cuts their drain short; without,
    /// their registrations are left to the next run.
    async fn stop(self, signals: Option<&mut Signals>) {
        match (self.desk.close().await, signals) {
            (Ok(registrations), Some(signals)) => {
                let drain = self.config.drain;
                info!(?drain, "stopping: services drain, another signal cuts that short");
                let mut leaving = std::pin::pin!(registrations.leave(drain));
                loop {
                    tokio::select! {
                        () = &mut leaving => break,
                        wanted = signals.next() => if wanted == Wanted::Stop { self.cut.cancel() },
                    }
                }
            }
            (Ok(registrations), None) => registrations.abandon().await,
            (Err(error), _) => error!(%error, "the registrations are left to their leases"),
        }
        self.servers.stop().await;
        within("mirrors", self.mirroring.shutdown()).await;
        #[cfg(feature = "components")]
        within("strategy components", self.weighing.shutdown()).await;
        self.saver.stop().await;
        info!("agent stopped");
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{}: cannot read the configuration", path.display()))
}

/// Tries again for a moment what an agent still holds that was just killed and has not quite gone yet.
async fn patiently<T, E>(attempt: impl AsyncFn() -> Result<T, E>, is_held: impl Fn(&E) -> bool) -> Result<T, E> {
    let limit = Instant::now() + HELD_LIMIT;
    loop {
        match attempt().await {
            Err(error) if is_held(&error) && Instant::now() < limit => tokio::time::sleep(HELD_RETRY).await,
            outcome => return outcome,
        }
    }
}

fn mirror_settings(config: &Config) -> MirrorSettings {
    MirrorSettings { watches: config.watches.clone(), guard: config.guard.clone(), zone: config.zone.clone() }
}

/// The servers, which end only when told to.
struct Servers {
    streams: JoinHandle<Result<(), ServerError>>,
    admin: JoinHandle<io::Result<()>>,
    /// What the API does between requests.
    api_work: JoinHandle<()>,
    /// On TCP.
    api: Option<JoinHandle<()>>,
    stop: CancellationToken,
}

impl Servers {
    /// Waits until one of them ended, which it should not.
    async fn ended(&mut self) -> anyhow::Error {
        fn cause<E: Into<anyhow::Error>>(ended: Result<Result<(), E>, JoinError>) -> anyhow::Error {
            match ended {
                Ok(Ok(())) => anyhow!("nobody told it to"),
                Ok(Err(error)) => error.into(),
                Err(panicked) => panicked.into(),
            }
        }
        tokio::select! {
            ended = &mut self.streams => cause(ended).context("the server on the Unix socket ended"),
            ended = &mut self.admin => cause(ended).context("the admin server ended"),
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        if !self.streams.is_finished() {
            within("the server on the Unix socket", self.streams).await;
        }
        if !self.admin.is_finished() {
            within("the admin server", self.admin).await;
        }
        within("the API's work", self.api_work).await;
        if let Some(api) = self.api {
            within("the API's server", api).await;
        }
    }
}

/// The task that keeps the disk copy.
struct Saver {
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Saver {
    fn start(state: &StateDir, catalog: CatalogReceiver, mirroring: &Mirroring, saved: Option<u64>) -> Self {
        let stop = CancellationToken::new();
        let board = mirroring.board();
        let copy = state::catalog::keep_saved(state.catalog_path(), catalog, board, saved, stop.clone());
        let held = state::held::keep_saved(state.held_path(), mirroring.held(), stop.clone());
        Self { task: tokio::spawn(async { _ = tokio::join!(copy, held) }), stop }
    }

    async fn stop(self) {
        self.stop.cancel();
        within("the disk copy", self.task).await;
    }
}

/// Waits for the end of a part, but not for ever.
async fn within<T>(part: &str, end: impl Future<Output = T>) {
    if tokio::time::timeout(STOP_LIMIT, end).await.is_err() {
        warn!(part, limit = ?STOP_LIMIT, "did not stop in time");
    }
}
