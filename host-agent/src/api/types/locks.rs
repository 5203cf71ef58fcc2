//! Locks and elections that the agent holds for a client.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Encoding;

/// Body of `POST /v1/locks/{name}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LockRequest {
    /// How long the lock is held without being renewed: `"2s"` to `"10m"`, whole seconds, `"10s"` unless named. It is
    /// also the time to live of its lease, by which it outlives the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "10s")]
    pub ttl: Option<String>,
    /// How long to wait for another holder: `"0s"`, which is the default and tries once, to `"60s"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "5s")]
    pub wait: Option<String>,
}

/// A lock that is held for the client who knows its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LockHeld {
    /// What to renew and release it by: a secret of the client's.
    pub id: String,
    /// The lock's name.
    #[schema(example = "jobs/nightly")]
    pub name: String,
    /// The key in etcd that stands for it.
    #[schema(example = "jobs/nightly/694d8f2b1c3a5e07")]
    pub key: String,
    /// Fencing token: larger for each later holder.
    pub token: i64,
    /// Id of its lease.
    #[schema(example = "694d8f2b1c3a5e07")]
    pub lease: String,
    /// How long it is held without being renewed.
    #[schema(example = "10s")]
    pub ttl: String,
    /// How long it is held for sure from now on, in milliseconds, whatever becomes of agent and network: whoever was
    /// not told of a renewal by then should stop.
    #[schema(example = 7800)]
    pub held_for_ms: u64,
}

/// `GET /v1/locks/{name}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LockStatus {
    /// The lock's name.
    #[schema(example = "jobs/nightly")]
    pub name: String,
    /// Who holds it; nobody if it is null.
    pub holder: Option<LockHolder>,
}

/// Who holds a lock, as etcd knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LockHolder {
    /// The key in etcd that stands for it; it ends in the id of the holder's lease.
    #[schema(example = "jobs/nightly/694d8f2b1c3a5e07")]
    pub key: String,
    /// The holder's fencing token.
    pub token: i64,
}

/// Body of `POST /v1/elections/{name}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Campaign {
    /// What the others see of the leader, such as its address.
    #[serde(default)]
    #[schema(example = "10.0.0.5:7000")]
    pub value: String,
    /// How long the leadership is held without being renewed, as of a lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "10s")]
    pub ttl: Option<String>,
    /// How long to wait for another leader, as of a lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "5s")]
    pub wait: Option<String>,
}

/// A leadership that is held for the client who knows its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Leadership {
    /// What to renew and resign it by: a secret of the client's.
    pub id: String,
    /// The election's name.
    #[schema(example = "scheduler")]
    pub name: String,
    /// The key in etcd that stands for it.
    #[schema(example = "scheduler/694d8f2b1c3a5e07")]
    pub key: String,
    /// Fencing token: larger for each later leader.
    pub token: i64,
    /// Id of its lease.
    #[schema(example = "694d8f2b1c3a5e07")]
    pub lease: String,
    /// How long it is held without being renewed.
    #[schema(example = "10s")]
    pub ttl: String,
    /// How long it is held for sure from now on, in milliseconds, as of a lock.
    #[schema(example = 7800)]
    pub held_for_ms: u64,
    /// What the others see.
    #[schema(example = "10.0.0.5:7000")]
    pub value: String,
}

/// Body of `PUT /v1/elections/{name}/{id}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Proclamation {
    /// Another value for the others to see; without one it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "10.0.0.5:7001")]
    pub value: Option<String>,
}

/// `GET /v1/elections/{name}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ElectionStatus {
    /// The election's name.
    #[schema(example = "scheduler")]
    pub name: String,
    /// Who leads; nobody if it is null.
    pub leader: Option<Leader>,
}

/// Who leads. Also the data of each `leader` event of `GET /v1/elections/{name}/events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Leader {
    /// The key in etcd that stands for the leadership: one for each term.
    #[schema(example = "scheduler/694d8f2b1c3a5e07")]
    pub key: String,
    /// The leader's value.
    #[schema(example = "10.0.0.5:7000")]
    pub value: String,
    /// How the value is written.
    pub encoding: Encoding,
    /// The term's fencing token.
    pub token: i64,
}
