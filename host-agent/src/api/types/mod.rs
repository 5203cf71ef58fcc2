//! The bodies of requests and answers. They stand here once: the server writes them, clients read them, and the
//! OpenAPI document describes them.
//!
//! Durations are text as in the configuration file (`"500ms"`, `"5s"`, `"2m"`), times are RFC 3339 in UTC, and lease ids
//! are hexadecimal as `etcdctl` prints them: a number of 64 bits does not survive JavaScript.

mod catalog;
mod locks;
mod outcomes;
mod problem;
mod registrations;
mod status;
mod values;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::{
    catalog::{
        AllNodes, CatalogEvent, EventQuery, Health, Node, NodeAdded, NodeChanged, NodeQuery, NodeRemoved, Pick,
        PickQuery, Placement, Protocol, Resynchronised, ServiceNode, ServiceNodes, ServiceSummary, Services,
    },
    locks::{
        Campaign, ElectionStatus, Leader, Leadership, LockHeld, LockHolder, LockRequest, LockStatus, Proclamation,
    },
    outcomes::{NodeOutcomes, Outcomes, OutcomesQuery, ServiceOutcomes},
    problem::{FieldError, Problem},
    registrations::{
        CheckDefinition, CheckReport, DeregisterQuery, Heartbeat, Maintenance, MaintenanceRequest, Registration,
        RegistrationState, ServiceDefinition, Source,
    },
    status::{
        CatalogStatus, ComponentStatus, EtcdStatus, RefusedDocument, RulesStatus, Status, StreamStatus, WatchStatus,
    },
    values::{Value, ValueEvent, ValueRemoved, Values, ValuesQuery},
};

/// How bytes of etcd are written as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As they are.
    Utf8,
    /// In base64, with padding: they are no UTF-8.
    Base64,
}

/// A lease id as `etcdctl` prints it.
pub fn lease_text(lease: i64) -> String {
    format!("{lease:x}")
}
