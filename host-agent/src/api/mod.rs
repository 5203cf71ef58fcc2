//! The local HTTP API: what the agent knows and does for this host's programs, under `/v1`.
//!
//! * [`types`]: the bodies of requests and answers, for the server, its clients and the OpenAPI document alike.
//! * [`router`]: every route, with its document. [`tcp`] serves it on loopback; on the Unix socket it stands beside gRPC.
//! * [`problem`] and [`extract`]: what is wrong with a request, and what it carries.
//! * Everything else is one group of routes, or the pure part of one.

mod catalog;
pub mod extract;
mod filter;
mod maintenance;
mod picker;
pub mod problem;
mod registrations;
pub mod router;
mod status;
pub mod tcp;
pub mod types;

use std::{
    ops::RangeInclusive,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use self::{picker::Pickers, problem::Fault, problem::Kind};
use crate::{
    config::{format_duration, parse_duration},
    metrics::Sources,
    registrations::{DeskHandle, Heartbeats},
};

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
    pickers: Mutex<Pickers>,
}

impl Api {
    /// The API of an agent that starts now.
    pub fn new(identity: Identity, sources: Sources, office: Office) -> Self {
        let (started, pickers) = (Instant::now(), Mutex::default());
        Self { inner: Arc::new(Inner { identity, started, sources, office, pickers }) }
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
