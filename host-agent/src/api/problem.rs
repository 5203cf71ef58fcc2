//! What goes wrong with a request: a fixed set of kinds, answered as `application/problem+json`.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use waypost_registry::LockError;

use super::types::{FieldError, Problem};

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No such path.
    UnknownPath,
    /// The path does not take this method.
    WrongMethod,
    /// The `Host` header names another host.
    WrongHost,
    /// Parameters of the path or the query are wrong.
    BadParameters,
    /// The body is no JSON.
    WrongContentType,
    /// The body is too large.
    TooLarge,
    /// The body did not come in time.
    TooSlow,
    /// The body is wrong.
    InvalidBody,
    /// No such service in the catalog.
    UnknownService,
    /// The service has no node that may be picked.
    NoHealthyNode,
    /// There is no catalog yet.
    NotReady,
    /// This host has no such service.
    UnknownRegistration,
    /// The service belongs to the configuration file.
    OwnedByFile,
    /// The service's check takes no heartbeats.
    NoTtlCheck,
    /// Somebody else holds the lock, or leads.
    HeldByAnother,
    /// The lock or leadership is not held by this id.
    NotHeld,
    /// etcd cannot be reached, or does not answer in time.
    EtcdUnavailable,
    /// etcd refuses.
    EtcdRefused,
    /// Too many of something at once.
    TooMany,
    /// The system gives no random numbers.
    NoRandomness,
    /// The state directory cannot be written.
    NotSaved,
    /// The agent is stopping.
    Stopping,
}

impl Kind {
    const fn parts(self) -> (&'static str, &'static str, StatusCode) {
        match self {
            Self::UnknownPath => ("unknown-path", "Unknown path", StatusCode::NOT_FOUND),
            Self::WrongMethod => ("wrong-method", "Method not allowed", StatusCode::METHOD_NOT_ALLOWED),
            Self::WrongHost => ("wrong-host", "Host is not this one", StatusCode::MISDIRECTED_REQUEST),
            Self::BadParameters => ("bad-parameters", "Wrong parameters", StatusCode::BAD_REQUEST),
            Self::WrongContentType => ("wrong-content-type", "Not JSON", StatusCode::UNSUPPORTED_MEDIA_TYPE),
            Self::TooLarge => ("too-large", "Body too large", StatusCode::PAYLOAD_TOO_LARGE),
            Self::TooSlow => ("too-slow", "Body too slow", StatusCode::REQUEST_TIMEOUT),
            Self::InvalidBody => ("invalid-body", "Invalid body", StatusCode::UNPROCESSABLE_ENTITY),
            Self::UnknownService => ("unknown-service", "Unknown service", StatusCode::NOT_FOUND),
            Self::NoHealthyNode => ("no-healthy-node", "No healthy node", StatusCode::SERVICE_UNAVAILABLE),
            Self::NotReady => ("not-ready", "No catalog yet", StatusCode::SERVICE_UNAVAILABLE),
            Self::UnknownRegistration => ("unknown-registration", "Unknown registration", StatusCode::NOT_FOUND),
            Self::OwnedByFile => ("owned-by-file", "Owned by the configuration file", StatusCode::CONFLICT),
            Self::NoTtlCheck => ("no-ttl-check", "Takes no heartbeats", StatusCode::CONFLICT),
            Self::HeldByAnother => ("held-by-another", "Held by another", StatusCode::CONFLICT),
            Self::NotHeld => ("not-held", "Not held", StatusCode::NOT_FOUND),
            Self::EtcdUnavailable => ("etcd-unavailable", "etcd does not answer", StatusCode::SERVICE_UNAVAILABLE),
            Self::EtcdRefused => ("etcd-refused", "etcd refuses", StatusCode::BAD_GATEWAY),
            Self::TooMany => ("too-many", "Too many at once", StatusCode::SERVICE_UNAVAILABLE),
            Self::NoRandomness => ("no-randomness", "No random numbers", StatusCode::INTERNAL_SERVER_ERROR),
            Self::NotSaved => ("not-saved", "Not saved", StatusCode::INTERNAL_SERVER_ERROR),
            Self::Stopping => ("stopping", "The agent is stopping", StatusCode::SERVICE_UNAVAILABLE),
        }
    }
}

/// Why a request is not answered as asked.
#[derive(Clone, Debug)]
pub struct Fault {
    kind: Kind,
    detail: String,
    errors: Vec<FieldError>,
}

impl Fault {
    /// A fault: what went wrong this time, and what can be done.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), errors: Vec::new() }
    }

    /// A body that is wrong in these places.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [one] => one.detail.clone(),
            more => format!("{} things are wrong with the body", more.len()),
        };
        Self { kind: Kind::InvalidBody, detail, errors }
    }

    /// A body that is wrong in one place.
    pub fn invalid_at(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::invalid(vec![FieldError { pointer: pointer.into(), detail: detail.into() }])
    }

    /// The body of the answer.
    pub fn problem(&self) -> Problem {
        let (slug, title, status) = self.kind.parts();
        Problem {
            kind: format!("urn:waypost:problem:{slug}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail.clone(),
            errors: self.errors.clone(),
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let (_, _, status) = self.kind.parts();
        (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], Json(self.problem())).into_response()
    }
}

impl From<LockError> for Fault {
    fn from(error: LockError) -> Self {
        let kind = match &error {
            LockError::NoName => Kind::BadParameters,
            LockError::TimedOut { .. } | LockError::Unconfirmed { .. } => Kind::EtcdUnavailable,
            LockError::Refused { .. } => Kind::EtcdRefused,
            LockError::Lost { .. } => Kind::NotHeld,
        };
        Self::new(kind, error.to_string())
    }
}
