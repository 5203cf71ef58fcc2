//! etcd itself as the source: one full reading of a prefix.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use waypost_catalog::{Catalog, ServiceName};
use waypost_registry::{
    Connector, Discovery, KeyValue, Mirror, MirrorEvent, MirrorOptions, Registry, backoff::Backoff, etcd_client::Client,
};

use super::{Exit, Layout};

/// For etcd to be reached and to hand over everything, however often that has to be tried.
pub(in crate::cli) const PATIENCE: Duration = Duration::from_secs(10);

/// A prefix of etcd that holds services.
#[derive(Debug)]
pub(in crate::cli) struct Straight {
    pub(in crate::cli) connector: Connector,
    pub(in crate::cli) layout: Layout,
}

impl Straight {
    pub(in crate::cli) fn new(connector: Connector, layout: Layout) -> Self {
        Self { connector, layout }
    }

    /// Every node, or every one of a service.
    pub(in crate::cli) async fn catalog(&self, service: Option<&ServiceName>) -> anyhow::Result<Catalog> {
        let discovery = self.discovery().await?;
        for error in discovery.last_errors() {
            eprintln!("waypost: not a node: {error}");
        }
        let mut names = discovery.services();
        names.retain(|name| service.is_none_or(|service| service == name));
        let services = names.into_iter().map(|name| {
            let nodes = discovery.nodes(&name).iter().map(|node| (**node).clone()).collect();
            (name, nodes)
        });
        Ok(Catalog::default().updated(services).0.unwrap_or_default())
    }

    /// Its services and nodes, once they are read and hosts with names looked up.
    pub(in crate::cli) async fn discovery(&self) -> anyhow::Result<Discovery> {
        let Layout { format, prefix, protocol } = &self.layout;
        let registry = Registry::new(self.connector.clone());
        let discovery = registry.discover(prefix, *format, *protocol);
        let discovery = discovery.map_err(|error| Exit::usage(error.to_string()))?;
        discovery.ready(PATIENCE).await.map_err(|error| Exit::unavailable(error.to_string()))?;
        Ok(discovery)
    }

    /// A connection to any endpoint that takes one.
    pub(in crate::cli) async fn connect(&self) -> anyhow::Result<Client> {
        connect(&self.connector).await
    }

    /// Every key below the prefix.
    pub(in crate::cli) async fn keys(&self) -> anyhow::Result<Vec<Arc<KeyValue>>> {
        keys(&self.connector, &self.layout.prefix).await
    }
}

/// A connection to any endpoint that takes one.
pub(in crate::cli) async fn connect(connector: &Connector) -> anyhow::Result<Client> {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    let ends = Instant::now() + PATIENCE;
    loop {
        match connector.connect().await {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() >= ends => return Err(Exit::unavailable(error.to_string())),
            Err(_) => tokio::time::sleep(backoff.next(fastrand::f64())).await,
        }
    }
}

/// Every key below a prefix.
pub(in crate::cli) async fn keys(connector: &Connector, prefix: &str) -> anyhow::Result<Vec<Arc<KeyValue>>> {
    match first(connector, prefix).await? {
        MirrorEvent::Synced { entries, .. } => Ok(entries),
        MirrorEvent::Changed { .. } => Ok(Vec::new()),
    }
}

/// The full state below a prefix.
async fn first(connector: &Connector, prefix: &str) -> anyhow::Result<MirrorEvent> {
    let (mirror, mut events) = Mirror::start(connector.clone(), MirrorOptions::new(prefix));
    let first = tokio::time::timeout(PATIENCE, events.recv()).await;
    let cause = mirror.status().borrow().cause.clone();
    mirror.shutdown().await;
    match first {
        Ok(Some(event)) => Ok(event),
        _ => Err(unread(cause.as_deref())),
    }
}

/// etcd said nothing for as long as it was given.
pub(in crate::cli) fn unread(cause: Option<&str>) -> anyhow::Error {
    let cause = cause.unwrap_or("it does not answer");
    Exit::unavailable(format!("nothing could be read from etcd within {PATIENCE:?}: {cause}"))
}
