//! The local HTTP API: what the agent knows and does for this host's programs, under `/v1`.
//!
//! * [`types`]: the bodies of requests and answers, for the server, its clients and the OpenAPI document alike.
//! * [`router`]: every route, with its document. [`tcp`] serves it on loopback; on the Unix socket it stands beside gRPC.
//! * [`problem`] and `extract`: what is wrong with a request, and what it carries.
//! * Everything else is one group of routes, or the pure part of one.

pub(crate) mod catalog;
mod elections;
mod events;
mod extract;
pub(crate) mod filter;
mod holdings;
mod locks;
mod maintenance;
mod outcomes;
mod picker;
pub mod problem;
mod registrations;
pub mod router;
mod sessions;
mod sse;
mod status;
pub mod tcp;
pub mod types;
pub(crate) mod values;

use std::{
    ops::RangeInclusive,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use waypost_registry::{Connector, Registry};

use self::{
    events::Events,
    holdings::Holdings,
    picker::Pickers,
    problem::{Fault, Kind},
};
use crate::{
    config::{format_duration, parse_duration},
    metrics::Sources,
    registrations::{DeskHandle, Heartbeats},
};

/// Streams of events at once.
const STREAMS: usize = 256;
/// Locks and leaderships, waited for or held, at once.
const CLAIMS: usize = 1024;

/// What the agent is known by.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Name of this host.
    pub node: String,
    /// etcd's endpoints, as configured.
    pub endpoints: Vec<String>,
}

/// Where this host's services are changed and reported of.
#[derive(Clone, Debug)]
pub struct Office {
    /// Registers, and puts into maintenance.
    pub desk: DeskHandle,
    /// Takes the reports of checks of type `ttl`.
    pub heartbeats: Heartbeats,
}

/// What every route needs. Clones share it.
#[derive(Clone, Debug)]
pub struct Api {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    identity: Identity,
    started: Instant,
    sources: Sources,
    office: Office,
    /// For configuration values, locks and elections.
    registry: Registry,
    pickers: Mutex<Pickers>,
    events: Arc<Events>,
    holdings: Holdings,
    /// Places for streams of events.
    streams: Arc<Semaphore>,
    /// Places for locks and leaderships, waited for or held.
    claims: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Api {
    /// The API of an agent that starts now. Cancelling `stop` ends what is waited for, and streams of events.
    pub fn new(
        identity: Identity,
        sources: Sources,
        office: Office,
        connector: Connector,
        stop: CancellationToken,
    ) -> Self {
        let inner = Inner {
            identity,
            started: Instant::now(),
            sources,
            office,
            registry: Registry::new(connector),
            pickers: Mutex::default(),
            events: Arc::new(Events::new(fastrand::u64(..))),
            holdings: Holdings::default(),
            streams: Arc::new(Semaphore::new(STREAMS)),
            claims: Arc::new(Semaphore::new(CLAIMS)),
            stop,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Does what goes on between requests, until the agent stops; then gives back what is held for clients.
    pub async fn run(self) {
        let Inner { sources, events, holdings, registry, stop, .. } = &*self.inner;
        let work = async { tokio::join!(events.follow(sources.catalog.clone()), holdings.keep()) };
        _ = stop.run_until_cancelled(work).await;
        holdings.release_all().await;
        registry.clone().shutdown().await;
    }

    /// What is served now.
    fn catalog(&self) -> Result<Arc<waypost_catalog::Catalog>, Fault> {
        let catalog = self.inner.sources.catalog.borrow().clone();
        catalog.ok_or_else(|| Fault::new(Kind::NotReady, "the first full mirror is not in: see /v1/status"))
    }
}

/// A duration as in the configuration file, in a range.
fn duration(text: &str, allowed: RangeInclusive<Duration>) -> Result<Duration, String> {
    let parsed = parse_duration(text).filter(|duration| allowed.contains(duration));
    let [low, high] = [allowed.start(), allowed.end()].map(|end| format_duration(*end));
    parsed.ok_or_else(|| format!("{text:?} is no duration from {low} to {high}, such as \"5s\""))
}
