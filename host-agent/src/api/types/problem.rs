//! What went wrong, as RFC 9457 has it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A body of type `application/problem+json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Which kind of problem, for programs: `urn:waypost:problem:<kind>`.
    #[serde(rename = "type")]
    #[schema(example = "urn:waypost:problem:unknown-service")]
    pub kind: String,
    /// The kind in words; the same each time.
    #[schema(example = "Unknown service")]
    pub title: String,
    /// The HTTP status.
    #[schema(example = 404)]
    pub status: u16,
    /// What went wrong this time, and what can be done.
    pub detail: String,
    /// What is wrong with the request's body, place by place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// One thing that is wrong with a body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// Where in the body: a JSON pointer (RFC 6901), empty for the body as a whole.
    #[schema(example = "/check/interval")]
    pub pointer: String,
    /// What is wrong, and what is allowed.
    pub detail: String,
}
