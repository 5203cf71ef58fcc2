//! The agent's configuration: a TOML file, parsed once into types that cannot be wrong.
//!
//! Every problem of a file is reported, with its line, its column and what is allowed there.

mod check;
mod json;
mod probe;
mod reader;
mod report;
mod sections;
mod service;
#[cfg(test)]
mod tests;
mod values;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use toml::de::DeTable;
use waypost_catalog::{Protocol, ServiceName};
use waypost_registry::format::Format;

use self::reader::{Problems, Section};
pub use self::{
    check::{Check, CheckKind, Initial, Probing},
    json::{Misplaced, service_from_json},
    probe::{CheckTls, ExpectedBody, GrpcProbe, HttpProbe, Pattern, Probe, Verify},
    report::{ConfigError, Invalid, Problem},
    service::Service,
    values::{format_duration, parse_duration},
};

/// The Unix socket, unless another is named.
pub const DEFAULT_SOCKET: &str = "/run/waypost/agent.sock";

/// The whole configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Name of this host.
    pub node: String,
    /// Failure domain of this host, for zone aware policies and for its services that name none; empty if unknown.
    pub zone: String,
    /// Where the catalog's disk copy and the lease ids are kept.
    pub state_dir: PathBuf,
    /// How long a leaving service is shown as draining before it is deregistered.
    pub drain: Duration,
    /// How etcd is reached.
    pub etcd: Etcd,
    /// The Unix socket that Envoy connects to.
    pub socket: PathBuf,
    /// Where the admin HTTP server listens: a loopback address.
    pub admin: SocketAddr,
    /// Where the local API listens besides the Unix socket: a loopback address.
    pub api: Option<SocketAddr>,
    /// What Envoy gets over xDS.
    pub xds: Xds,
    /// The guard against mass loss.
    pub guard: Guard,
    /// Strategy components.
    pub strategies: StrategiesConfig,
    /// The mirrored prefixes, at least one.
    pub watches: Vec<Watch>,
    /// This host's services.
    pub services: Vec<Service>,
}

/// How etcd is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etcd {
    /// At least one, as `http://host:port` or, all of them, `https://host:port`.
    pub endpoints: Vec<String>,
    /// User and password.
    pub auth: Option<Auth>,
    /// Certificates of the authorities to trust; endpoints with `https` need it.
    pub ca_file: Option<PathBuf>,
    /// Client certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Deadline of a connection attempt.
    pub connect_timeout: Duration,
    /// Deadline of a request.
    pub request_timeout: Duration,
}

/// User and password for etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// The user.
    pub username: String,
    /// Where the password comes from.
    pub password: Password,
}

/// Where a password comes from. Its `Debug` form does not show it.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// Written down in the configuration.
    Literal(String),
    /// The content of a file, without the line end.
    File(PathBuf),
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Literal(_) => f.write_str("Literal(***)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// What Envoy gets over xDS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xds {
    /// Which services become clusters: names, or beginnings of names followed by `*`.
    pub services: Vec<String>,
    /// The clusters' connect timeout.
    pub connect_timeout: Duration,
}

/// The guard against mass loss.
#[derive(Clone, Debug, PartialEq)]
pub struct Guard {
    /// Whether it guards at all.
    pub enabled: bool,
    /// Share of a service's nodes that may be lost at once.
    pub max_loss: f64,
    /// How long lost nodes are kept.
    pub grace: Duration,
    /// Losses within this time add up.
    pub window: Duration,
    /// Services that are not guarded.
    pub exempt: Vec<ServiceName>,
}

/// Where strategy components are, and what they may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StrategiesConfig {
    /// Where components with names are, as `NAME.wasm`.
    pub directory: PathBuf,
    /// For one answer.
    pub deadline: Duration,
    /// Bytes of memory of an instance.
    pub memory: usize,
}

/// A mirrored prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Watch {
    /// The prefix, which ends in `/` but for format `biregister`.
    pub prefix: String,
    /// How its keys and values are read.
    pub format: Format,
    /// What nodes speak that do not say it themselves.
    pub protocol: Protocol,
}

/// Name of this host, which is the default of `node`.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Reads a configuration file.
///
/// # Errors
/// [`ConfigError`] if it cannot be read or anything in it is wrong.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    parse(&path.display().to_string(), &text, &host_name()).map_err(ConfigError::Invalid)
}

/// Parses a configuration. `file` names it in problems, `host_name` is the default of `node`.
///
/// # Errors
/// [`Invalid`] with everything that is wrong.
pub fn parse(file: &str, text: &str, host_name: &str) -> Result<Config, Invalid> {
    let problems = Problems::new(text);
    let (document, syntax) = DeTable::parse_recoverable(text);
    for error in &syntax {
        let at = error.span().map_or(text.len(), |span| span.start);
        problems.add(at, error.message().trim_end().replace('\n', ", "));
    }
    // What a broken document holds is guesswork: its other problems would mislead.
    let config =
        if syntax.is_empty() { sections::config(&Section::root(&document, &problems), host_name) } else { None };
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(Invalid { file: file.to_owned(), problems: problems.into_sorted() }),
    }
}
