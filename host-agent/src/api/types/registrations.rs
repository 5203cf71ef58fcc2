//! This host's services, as registered by its file and through the API.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Health;

/// Who a registration belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The agent's configuration file: it is changed there.
    File,
    /// This API.
    Api,
}

/// How a registration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RegistrationState {
    /// Not in etcd yet: its check has not decided, or its address is not known.
    Pending,
    /// In etcd, as intended.
    Registered,
    /// Not known to be in etcd as intended, and tried again.
    Retrying,
    /// etcd said that its key, or the lease it was under, is gone; it is being put again.
    Lost,
    /// Taken out of etcd, as intended.
    Withdrawn,
    /// Nobody looks after it any more.
    Closed,
}

impl RegistrationState {
    /// The name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Registered => "registered",
            Self::Retrying => "retrying",
            Self::Lost => "lost",
            Self::Withdrawn => "withdrawn",
            Self::Closed => "closed",
        }
    }
}

/// A service of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Registration {
    /// The service's name.
    #[schema(example = "web")]
    pub service: String,
    /// Name of the instance.
    #[schema(example = "host-a-8080")]
    pub instance: String,
    /// The prefix that it is written under.
    #[schema(example = "/waypost/services/")]
    pub root: String,
    /// Who it belongs to.
    pub source: Source,
    /// Its address, once found.
    #[schema(value_type = Option<String>, example = "10.0.0.5:8080")]
    pub address: Option<SocketAddr>,
    /// What its check, and maintenance, make of it; null before that is known.
    pub health: Option<Health>,
    /// How its registration stands.
    pub state: RegistrationState,
    /// Why it is not registered, or what its check ended with.
    pub problem: Option<String>,
    /// Id of the lease that its key lives by.
    #[schema(example = "694d8f2b1c3a5e07")]
    pub lease: Option<String>,
    /// What its check said last; null without a check, and before its first answer.
    pub check: Option<CheckReport>,
    /// Its own maintenance or its host's, while it lasts.
    pub maintenance: Option<Maintenance>,
    /// What it was made of, for those of the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<ServiceDefinition>,
}

/// What a check said last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckReport {
    /// Whether that was a pass. `rise` and `fall` of these in a row make the service's health.
    pub passing: bool,
    /// What it said: the cause of a failure, the answer's beginning, a program's output.
    pub output: String,
    /// When.
    #[schema(example = "2026-03-01T12:30:00Z")]
    pub at: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// A service or a host in maintenance: its nodes are shown as draining.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Maintenance {
    /// Why.
    #[schema(example = "new disks")]
    pub reason: String,
    /// Since when.
    #[schema(example = "2026-03-01T12:30:00Z")]
    pub since: String,
}

/// Body of `PUT .../maintenance`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceRequest {
    /// Why; at most 1024 bytes.
    #[serde(default)]
    #[schema(example = "new disks")]
    pub reason: String,
}

/// Body of `PUT /v1/registrations/{service}/{instance}/heartbeat`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// Whether the service is well.
    #[serde(default = "yes")]
    pub passing: bool,
    /// What it says of itself.
    #[serde(default)]
    pub output: String,
}

fn yes() -> bool {
    true
}

/// How a registration is ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeregisterQuery {
    /// How long it is shown as draining first: `"0s"` to `"10m"`; the configuration's `drain` unless named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<String>,
}

/// A service to register: the keys of `[[service]]` in the configuration file, with the same defaults and rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceDefinition {
    /// The service's name; as in the path, if it is there at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Name of the instance; as in the path, if it is there at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The port it listens on: required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 8080)]
    pub port: Option<u16>,
    /// `auto`, an IP address, `interface:NAME` or `cidr:NETWORK`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "auto")]
    pub address: Option<String>,
    /// Share of new requests, relative to the other instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 1)]
    pub weight: Option<u32>,
    /// Failure domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Version of what runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Free labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
    /// Free data by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// `http1` or `http2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "http1")]
    pub protocol: Option<String>,
    /// How it is written to etcd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "waypost")]
    pub format: Option<String>,
    /// The prefix that it is written under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/waypost/services/")]
    pub root: Option<String>,
    /// How long the registration outlives the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "5s")]
    pub ttl: Option<String>,
    /// Its check; without one it passes always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckDefinition>,
}

/// A check: the keys of `[service.check]` in the configuration file. Which of them are allowed depends on the type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckDefinition {
    /// `http`, `tcp`, `grpc`, `exec` or `ttl`.
    #[serde(rename = "type", default)]
    #[schema(example = "http")]
    pub kind: String,
    /// The other keys, by name: `interval`, `timeout`, `rise`, `fall` and those of the type.
    #[serde(flatten)]
    pub settings: BTreeMap<String, serde_json::Value>,
}
