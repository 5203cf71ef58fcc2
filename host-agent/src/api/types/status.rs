//! How the agent is.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Maintenance;

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Name of this host.
    #[schema(example = "host-a")]
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// Since when it runs.
    pub uptime_seconds: f64,
    /// What it knows of etcd.
    pub etcd: EtcdStatus,
    /// Every watched prefix.
    pub watches: Vec<WatchStatus>,
    /// What it serves; null before there is anything.
    pub catalog: Option<CatalogStatus>,
    /// The host's maintenance, while it lasts.
    pub maintenance: Option<Maintenance>,
    /// Number of this host's services.
    pub registrations: usize,
    /// Who is served.
    pub streams: StreamStatus,
    /// Policies and routes.
    pub rules: RulesStatus,
}

/// Policies and routes, in figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RulesStatus {
    /// Policies in use.
    pub policies: usize,
    /// Routes in use.
    pub routes: usize,
    /// Documents in etcd that are not used.
    pub refused: Vec<RefusedDocument>,
    /// Strategy components at work, by service.
    pub components: Vec<ComponentStatus>,
}

/// A strategy component at work for a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ComponentStatus {
    /// The service.
    #[schema(example = "web")]
    pub service: String,
    /// The component, as the policy names it.
    #[schema(example = "capacity")]
    pub component: String,
    /// Why it does not work now; null if its last answer was good.
    pub problem: Option<String>,
    /// Good answers so far.
    pub answers: u64,
    /// Failures so far.
    pub failures: u64,
    /// How long ago it gave its last good answer.
    pub last_good_seconds: Option<f64>,
    /// How long its last good answer took, in milliseconds.
    pub took_ms: f64,
    /// Memory that its instance holds, in bytes.
    pub memory_bytes: usize,
}

/// A document in etcd that is not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusedDocument {
    /// Its key.
    #[schema(example = "/waypost/policies/web")]
    pub key: String,
    /// The revision that wrote it.
    pub revision: i64,
    /// All that is wrong with it, each with its place.
    pub problems: Vec<String>,
    /// Whether an earlier document of the key goes on being used.
    pub last_good: bool,
}

/// What the agent knows of etcd.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EtcdStatus {
    /// As configured.
    pub endpoints: Vec<String>,
    /// Whether every watch is in step with it.
    pub synced: bool,
    /// The latest revision that a watch stands at.
    pub revision: i64,
    /// How long ago the watch that is worst off was last known to be current.
    pub stale_seconds: f64,
}

/// A watched prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WatchStatus {
    /// The prefix.
    #[schema(example = "/waypost/services/")]
    pub prefix: String,
    /// How its keys and values are read.
    #[schema(example = "waypost")]
    pub format: String,
    /// Whether its mirror is in step with etcd.
    pub synced: bool,
    /// The revision that its mirror stands at.
    pub revision: i64,
    /// Keys that are nodes.
    pub keys: usize,
    /// Why it is not in step.
    pub cause: Option<String>,
}

/// What the agent serves, in figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CatalogStatus {
    /// Version; comparable within one run of the agent.
    pub version: u64,
    /// Number of services.
    pub services: usize,
    /// Number of nodes of all services.
    pub nodes: usize,
}

/// Who is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StreamStatus {
    /// Filters: one per Envoy worker and one for its main thread.
    pub filters: u64,
    /// Envoys, for xDS.
    pub envoys: u64,
}
