//! A server on a socket of its own, and the catalog that it serves.

use std::{
    future::Future,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use waypost_agent::{
    published::Staleness,
    stream::{
        metrics::StreamMetrics,
        server::{self, ServerError, ServerOptions},
        socket,
    },
    xds::XdsOptions,
};
use waypost_catalog::{Catalog, Node, ServiceName};

/// Longer than anything here takes, heartbeats included.
pub const LIMIT: Duration = Duration::from_secs(20);

/// What the agent says of its mirror's age.
#[derive(Default)]
pub struct Age(pub AtomicU64);

impl Staleness for Age {
    fn stale_for(&self) -> Duration {
        Duration::from_millis(self.0.load(Relaxed))
    }
}

/// The server.
pub struct Served {
    pub metrics: Arc<StreamMetrics>,
    pub age: Arc<Age>,
    catalog: watch::Sender<Option<Arc<Catalog>>>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), ServerError>>,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Served {
    /// Serves nothing yet.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let socket = socket::bind(&path).unwrap();
        let (catalog, receiver) = watch::channel(None);
        let (metrics, age, stop) = (Arc::default(), Arc::<Age>::default(), CancellationToken::new());
        let xds = XdsOptions { services: vec!["*".to_owned()], connect_timeout: Duration::from_secs(1) };
        let running = tokio::spawn(server::run(
            socket,
            receiver,
            Arc::clone(&age) as Arc<dyn Staleness>,
            ServerOptions { xds, api: axum::Router::new() },
            Arc::clone(&metrics),
            Arc::default(),
            stop.clone(),
        ));
        Self { metrics, age, catalog, stop, running, socket: path, _directory: directory }
    }

    /// Publishes a version in which these services have these nodes, and the others what they had.
    pub fn publish(&self, services: &[(&str, Vec<Node>)]) -> Arc<Catalog> {
        let before = self.current().unwrap_or_default();
        let changes = services.iter().map(|(name, nodes)| (ServiceName::new(name).unwrap(), nodes.clone()));
        let next = Arc::new(before.updated(changes).0.unwrap());
        self.catalog.send_replace(Some(Arc::clone(&next)));
        next
    }

    /// What is published.
    pub fn current(&self) -> Option<Arc<Catalog>> {
        self.catalog.borrow().clone()
    }

    /// A connection.
    pub async fn connect(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket.display())).unwrap();
        within(endpoint.connect()).await.unwrap()
    }

    /// Stops it.
    pub async fn stop(self) {
        self.stop.cancel();
        within(self.running).await.unwrap().unwrap();
        assert!(!self.socket.exists());
    }
}

/// Nodes on these ports.
pub fn nodes(ports: impl IntoIterator<Item = u16>) -> Vec<Node> {
    ports.into_iter().map(|port| Node::at(([10, 0, 0, 1], port).into())).collect()
}

/// What comes within the limit.
pub async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(LIMIT, what).await.expect("it takes too long")
}

/// Whether something does not come for a while.
pub async fn does_not_come(what: impl Future) -> bool {
    timeout(Duration::from_millis(50), what).await.is_err()
}
