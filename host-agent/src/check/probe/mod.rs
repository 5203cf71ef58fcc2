//! One probe of a service: a question of its own connection or process, answered within a deadline.

mod connect;
mod exec;
mod grpc;
mod http;
#[cfg(test)]
mod testing;

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use hyper::StatusCode;
use waypost_catalog::Protocol;

use crate::config::{Probe, Probing, format_duration};

/// What is probed.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The service's name.
    pub service: &'a str,
    /// Name of its instance.
    pub instance: &'a str,
    /// Where it listens.
    pub address: SocketAddr,
    /// What it speaks.
    pub protocol: Protocol,
}

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// What TLS needs is not there.
    #[error("ca_file: cannot use {}: {reason}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No agreement on TLS.
    #[error("no TLS with {address}: {source}")]
    Tls {
        /// Where.
        address: SocketAddr,
        /// What the handshake ended with.
        source: io::Error,
    },
    /// The connection broke, or what came over it is no HTTP.
    #[error("no HTTP answer: {0}")]
    Http(#[from] hyper::Error),
    /// The request cannot be made.
    #[error("cannot ask: {0}")]
    Request(#[from] hyper::http::Error),
    /// An answer of another status than expected.
    #[error("answered {status}{}", after_colon(said))]
    Status {
        /// The answer's.
        status: StatusCode,
        /// The answer's body.
        said: String,
    },
    /// An answer whose body is not as expected.
    #[error("answered {status}, but its body {expected}{}", after_colon(said))]
    Content {
        /// The answer's.
        status: StatusCode,
        /// What is not so.
        expected: String,
        /// The answer's body.
        said: String,
    },
    /// The answer's body broke off or did not end.
    #[error("answered {0}, but its body broke off, or is beyond {limit} bytes", limit = http::BODY_LIMIT)]
    Body(StatusCode),
    /// It says that it does not serve.
    #[error("{} is {status}", grpc::whole(service))]
    NotServing {
        /// Of which service; empty: of the server.
        service: String,
        /// What it is instead.
        status: &'static str,
    },
    /// The gRPC server has no such service.
    #[error("the server knows no service {service:?}: check the key service")]
    UnknownService {
        /// Which one.
        service: String,
    },
    /// The gRPC server cannot be asked.
    #[error("the server does not implement grpc.health.v1.Health: add it there, or check in another way")]
    NoHealthService,
    /// The gRPC server failed.
    #[error("no gRPC answer: {0}")]
    Grpc(String),
    /// A command that cannot be run.
    #[error("cannot run {program}: {source}")]
    Run {
        /// The program.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// A command that ended, but not well.
    #[error("{ended}{}", after_colon(said))]
    Ended {
        /// Its exit status.
        ended: std::process::ExitStatus,
        /// What it printed.
        said: String,
    },
    /// A command that did not end.
    #[error("killed, since it did not end within {}{}", format_duration(*after), after_colon(said))]
    Killed {
        /// What it was given.
        after: Duration,
        /// What it had printed by then.
        said: String,
    },
    /// Nothing decisive in time.
    #[error("no answer within {}", format_duration(*.0))]
    Timeout(Duration),
}

fn after_colon(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

/// Probes `target`: what it said.
///
/// # Errors
/// [`ProbeError`] if the probe fails.
pub async fn probe(probing: &Probing, target: &Target<'_>) -> Result<String, ProbeError> {
    let limit = probing.timeout;
    match &probing.probe {
        Probe::Http(probe) => within(limit, http::ask(probe, at(target, probe.port), target.protocol)).await,
        Probe::Tcp { port } => within(limit, connects(at(target, *port))).await,
        Probe::Grpc(probe) => within(limit, grpc::ask(probe, at(target, probe.port))).await,
        // A process does not end with the future that waits for it.
        Probe::Exec { command } => exec::run(command, target, limit).await,
    }
}

async fn within<T>(limit: Duration, asked: impl Future<Output = Result<T, ProbeError>>) -> Result<T, ProbeError> {
    tokio::time::timeout(limit, asked).await.unwrap_or(Err(ProbeError::Timeout(limit)))
}

async fn connects(address: SocketAddr) -> Result<String, ProbeError> {
    connect::tcp(address).await.map(|_| format!("{address} takes connections"))
}

/// Where the service is asked, if that is not where it serves.
fn at(target: &Target<'_>, port: Option<u16>) -> SocketAddr {
    SocketAddr::new(target.address.ip(), port.unwrap_or(target.address.port()))
}
