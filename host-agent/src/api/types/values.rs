//! Configuration values: what etcd holds for a key or below a prefix.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Encoding;

/// What is asked for: one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ValuesQuery {
    /// This key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Every key that begins so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
}

/// `GET /v1/values`. Also the data of `resynchronised` in `GET /v1/values/events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Values {
    /// etcd's revision when it was read.
    pub revision: i64,
    /// The keys that were asked for, in order.
    pub values: Vec<Value>,
}

/// A key and its value. Also the data of `put` in `GET /v1/values/events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Value {
    /// The key.
    #[schema(example = "/config/orders/limits")]
    pub key: String,
    /// Its value.
    #[schema(example = "{\"max\": 5}")]
    pub value: String,
    /// How the value is written.
    pub encoding: Encoding,
    /// Revision of its last change.
    pub mod_revision: i64,
    /// Revision in which it was created.
    pub create_revision: i64,
    /// Id of its lease, if it has one.
    #[schema(example = "694d8f2b1c3a5e07")]
    pub lease: Option<String>,
}

/// An event of `GET /v1/values/events`: its name is the SSE event's, its content the SSE data, and etcd's revision the
/// SSE id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", content = "data", rename_all = "lowercase")]
pub enum ValueEvent {
    /// A key that was written.
    Put(Value),
    /// A key that is gone.
    Removed(ValueRemoved),
    /// Everything: the start, or a new one after events that etcd has forgotten. What is not in it is gone.
    Resynchronised(Values),
}

/// Data of `removed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ValueRemoved {
    /// The key.
    pub key: String,
    /// The revision in which it was deleted.
    pub mod_revision: i64,
}
