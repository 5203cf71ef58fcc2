//! Where the examples find etcd: the first argument, or the variable `WAYPOST_ETCD`, or this host.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

use std::time::Duration;

use waypost_registry::{ConnectError, ConnectOptions, Connector};

/// How long etcd is given, wherever an example waits for it.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to the etcd that the user named; several endpoints are separated by commas.
///
/// # Errors
/// [`ConnectError`] if an endpoint is malformed.
pub fn connector() -> Result<Connector, ConnectError> {
    let named = std::env::args().nth(1).or_else(|| std::env::var("WAYPOST_ETCD").ok());
    let endpoints = named.unwrap_or_else(|| "http://127.0.0.1:2379".into());
    Connector::new(ConnectOptions::new(endpoints.split(',')))
}
