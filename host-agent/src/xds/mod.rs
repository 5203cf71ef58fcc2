//! Delta xDS for Envoy: a cluster per service (CDS) and its endpoints (EDS), over the aggregated stream.
//!
//! ```text
//! catalog -> publisher: resources of what changed -> snapshot -> server: one session per Envoy -> responses
//!               ^ nodes that leave, until filters have dropped them
//! ```
//!
//! * [`selection`]: which services become clusters.
//! * [`resources`]: a service as Envoy's messages.
//! * [`leaving`] and [`snapshot`]: every resource at one version of the catalog. Pure; [`publisher`] keeps it current.
//! * [`subscription`] and [`session`]: what one Envoy wants, has and is sent. Pure; [`server`] is the stream around it.

use std::time::Duration;

pub mod leaving;
pub mod publisher;
pub mod resources;
pub mod selection;
pub mod server;
pub mod session;
pub mod snapshot;
pub mod subscription;

/// What Envoy is told.
#[derive(Clone, Debug)]
pub struct XdsOptions {
    /// Services that become clusters: names, or the beginning of names and a `*`.
    pub services: Vec<String>,
    /// How long Envoy tries to connect to a node.
    pub connect_timeout: Duration,
}
