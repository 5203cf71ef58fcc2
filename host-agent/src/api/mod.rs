//! The local HTTP API: what the agent knows and does for this host's programs, under `/v1`.
//!
//! * [`types`]: the bodies of requests and answers, for the server, its clients and the OpenAPI document alike.
//! * [`router`]: every route, with its document. [`tcp`] serves it on loopback; on the Unix socket it stands beside gRPC.
//! * [`problem`] and [`extract`]: what is wrong with a request, and what it carries.
//! * Everything else is one group of routes, or the pure part of one.

mod catalog;
pub mod extract;
mod filter;
mod picker;
pub mod problem;
pub mod router;
mod status;
pub mod tcp;
pub mod types;

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use self::{picker::Pickers, problem::Fault, problem::Kind};
use crate::metrics::Sources;

/// What the agent is known by.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Name of this host.
    pub node: String,
    /// etcd's endpoints, as configured.
    pub endpoints: Vec<String>,
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
    pickers: Mutex<Pickers>,
}

impl Api {
    /// The API of an agent that starts now.
    pub fn new(identity: Identity, sources: Sources) -> Self {
        Self { inner: Arc::new(Inner { identity, started: Instant::now(), sources, pickers: Mutex::default() }) }
    }

    /// What is served now.
    fn catalog(&self) -> Result<Arc<waypost_catalog::Catalog>, Fault> {
        let catalog = self.inner.sources.catalog.borrow().clone();
        catalog.ok_or_else(|| Fault::new(Kind::NotReady, "the first full mirror is not in: see /v1/status"))
    }
}
