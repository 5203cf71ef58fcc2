//! The Waypost agent: registers a host's services, mirrors the registry, and streams it to Envoy.
//!
//! * [`config`]: the TOML file, parsed once into types that cannot be wrong.
//! * [`check`] and [`registrations`]: this host's services, checked and kept registered.
//! * [`effective`] and [`mirroring`]: what all watches know, merged, guarded and published as one catalog.
//! * [`published`]: the seam to [`stream`] and [`xds`], which serve that catalog over a Unix socket.
//! * [`api`]: the local HTTP API.
//! * [`state`]: what outlives a restart. [`admin`] and [`metrics`]: what people and monitoring see.
//! * [`agent`] starts and stops all of it in order; [`reload`] says when the configuration changed; [`panics`] ends it.
//! * [`cli`]: the command line, over [`client`], which asks the agent's [`api`], or straight at etcd.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod admin;
pub mod agent;
pub mod api;
pub mod check;
pub mod cli;
pub mod client;
pub mod config;
pub mod effective;
pub mod envoy_config;
pub mod etcd;
pub mod logging;
pub mod metrics;
pub mod mirroring;
pub mod outcomes;
pub mod panics;
pub mod proto;
pub mod published;
pub mod registrations;
pub mod reload;
pub mod rules;
pub mod signals;
pub mod state;
pub mod stream;
pub mod weighing;
pub mod xds;
