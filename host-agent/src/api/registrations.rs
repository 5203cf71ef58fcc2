//! This host's services: seen, registered, changed and ended, and heard of.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value};
use waypost_catalog::ServiceName;
use waypost_registry::{RegistrationState as Held, format::rfc3339};

use super::{
    Api, duration,
    extract::{JsonBody, Parameters, PathParts, pointer_token},
    problem::{Fault, Kind},
    types::{
        CheckReport, DeregisterQuery, FieldError, Heartbeat, Maintenance, Problem, Registration, RegistrationState,
        ServiceDefinition, Source, lease_text,
    },
};
use crate::{
    check::CheckStatus,
    registrations::{DeskError, HeartbeatError, Listed, Name, Refused, Request, ServiceStatus, Upkeep},
};

/// The longest drain.
const DRAIN_MAX: Duration = Duration::from_secs(600);
/// How long a service that does not drain is given to leave before it is said to be under way.
const GONE_LIMIT: Duration = Duration::from_secs(5);

impl From<DeskError> for Fault {
    fn from(error: DeskError) -> Self {
        let kind = match &error {
            DeskError::Refused(Refused::Invalid(wrong)) => {
                let errors = wrong.iter().map(|wrong| FieldError {
                    pointer: wrong
                        .path
                        .iter()
                        .fold(String::new(), |path, key| format!("{path}/{}", pointer_token(key))),
                    detail: wrong.message.clone(),
                });
                return Self::invalid(errors.collect());
            }
            DeskError::Refused(Refused::OwnedByFile(_)) => Kind::OwnedByFile,
            DeskError::Refused(Refused::Unknown(_)) => Kind::UnknownRegistration,
            DeskError::NotSaved(_) => Kind::NotSaved,
            DeskError::Stopping => Kind::Stopping,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<Upkeep> for Maintenance {
    fn from(Upkeep { reason, since }: Upkeep) -> Self {
        Self { reason, since }
    }
}

/// The names of a path.
pub(super) fn name((service, instance): (String, String)) -> Result<Name, Fault> {
    let checked =
        |text: &str| ServiceName::new(text).map_err(|error| Fault::new(Kind::BadParameters, error.to_string()));
    checked(&instance)?;
    Ok(Name { service: checked(&service)?, instance })
}

/// This host's services.
#[utoipa::path(get, path = "/v1/registrations", tag = "registrations", responses((status = OK, body = Vec<Registration>)))]
pub(super) async fn list(State(api): State<Api>) -> Json<Vec<Registration>> {
    Json(registrations(&api, |_| true))
}

/// One service of this host.
#[utoipa::path(get, path = "/v1/registrations/{service}/{instance}", tag = "registrations",
    params(("service" = String, Path, description = "The service"), ("instance" = String, Path, description = "Its instance")),
    responses(
        (status = OK, body = Registration),
        (status = NOT_FOUND, body = Problem, content_type = "application/problem+json", description = "`unknown-registration`"),
    ))]
pub(super) async fn get(
    State(api): State<Api>,
    PathParts(path): PathParts<(String, String)>,
) -> Result<Json<Registration>, Fault> {
    find(&api, &name(path)?).map(Json)
}

/// Registers a service of this host, or makes it another. It stays registered until it is deleted, also across restarts
/// of the agent.
#[utoipa::path(put, path = "/v1/registrations/{service}/{instance}", tag = "registrations",
    params(("service" = String, Path, description = "The service"), ("instance" = String, Path, description = "Its instance")),
    request_body = ServiceDefinition,
    responses(
        (status = CREATED, body = Registration, description = "It is new"),
        (status = OK, body = Registration, description = "It was there"),
        (status = CONFLICT, body = Problem, content_type = "application/problem+json", description = "`owned-by-file`"),
        (status = UNPROCESSABLE_ENTITY, body = Problem, content_type = "application/problem+json", description = "`invalid-body`"),
        (status = INTERNAL_SERVER_ERROR, body = Problem, content_type = "application/problem+json", description = "`not-saved`"),
    ))]
pub(super) async fn put(
    State(api): State<Api>,
    PathParts(path): PathParts<(String, String)>,
    JsonBody(definition): JsonBody<Map<String, Value>>,
) -> Result<(StatusCode, Json<Registration>), Fault> {
    let name = name(path)?;
    let done = api.inner.office.desk.ask(Request::Put(name.clone(), definition)).await?;
    let status = if done.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(find(&api, &name)?)))
}

/// Changes a registration that the API has made, by a JSON merge patch (RFC 7396).
#[utoipa::path(patch, path = "/v1/registrations/{service}/{instance}", tag = "registrations",
    params(("service" = String, Path, description = "The service"), ("instance" = String, Path, description = "Its instance")),
    request_body(content = Object, content_type = "application/merge-patch+json", description = "Keys of a definition; null takes one away"),
    responses(
        (status = OK, body = Registration),
        (status = NOT_FOUND, body = Problem, content_type = "application/problem+json", description = "`unknown-registration`"),
        (status = CONFLICT, body = Problem, content_type = "application/problem+json", description = "`owned-by-file`"),
        (status = UNPROCESSABLE_ENTITY, body = Problem, content_type = "application/problem+json", description = "`invalid-body`"),
        (status = INTERNAL_SERVER_ERROR, body = Problem, content_type = "application/problem+json", description = "`not-saved`"),
    ))]
pub(super) async fn patch(
    State(api): State<Api>,
    PathParts(path): PathParts<(String, String)>,
    JsonBody(patch): JsonBody<Map<String, Value>>,
) -> Result<Json<Registration>, Fault> {
    let name = name(path)?;
    api.inner.office.desk.ask(Request::Patch(name.clone(), patch)).await?;
    find(&api, &name).map(Json)
}

/// Ends a registration that the API has made: it drains, and then its key is deleted.
#[utoipa::path(delete, path = "/v1/registrations/{service}/{instance}", tag = "registrations",
    params(
        ("service" = String, Path, description = "The service"),
        ("instance" = String, Path, description = "Its instance"),
        DeregisterQuery,
    ),
    responses(
        (status = ACCEPTED, description = "It drains, or etcd has not confirmed yet that it is gone"),
        (status = NO_CONTENT, description = "It is gone from etcd"),
        (status = BAD_REQUEST, body = Problem, content_type = "application/problem+json", description = "`bad-parameters`"),
        (status = NOT_FOUND, body = Problem, content_type = "application/problem+json", description = "`unknown-registration`"),
        (status = CONFLICT, body = Problem, content_type = "application/problem+json", description = "`owned-by-file`"),
    ))]
pub(super) async fn delete(
    State(api): State<Api>,
    PathParts(path): PathParts<(String, String)>,
    Parameters(query): Parameters<DeregisterQuery>,
) -> Result<StatusCode, Fault> {
    let wrong = |detail: String| Fault::new(Kind::BadParameters, format!("drain: {detail}"));
    let drain = query.drain.map(|drain| duration(&drain, Duration::ZERO..=DRAIN_MAX)).transpose().map_err(wrong)?;
    let done = api.inner.office.desk.ask(Request::Remove(name(path)?, drain)).await?;
    let Some(departure) = done.departure.filter(|departure| departure.drain.is_zero()) else {
        return Ok(StatusCode::ACCEPTED);
    };
    let gone = tokio::time::timeout(GONE_LIMIT, departure.gone()).await.is_ok();
    Ok(if gone { StatusCode::NO_CONTENT } else { StatusCode::ACCEPTED })
}

/// Reports how a service is whose check is of type `ttl`.
#[utoipa::path(put, path = "/v1/registrations/{service}/{instance}/heartbeat", tag = "registrations",
    params(("service" = String, Path, description = "The service"), ("instance" = String, Path, description = "Its instance")),
    request_body = Heartbeat,
    responses(
        (status = NO_CONTENT, description = "It is heard"),
        (status = NOT_FOUND, body = Problem, content_type = "application/problem+json", description = "`unknown-registration`"),
        (status = CONFLICT, body = Problem, content_type = "application/problem+json", description = "`no-ttl-check`"),
        (status = UNPROCESSABLE_ENTITY, body = Problem, content_type = "application/problem+json", description = "`invalid-body`"),
    ))]
pub(super) async fn heartbeat(
    State(api): State<Api>,
    PathParts(path): PathParts<(String, String)>,
    JsonBody(Heartbeat { passing, output }): JsonBody<Heartbeat>,
) -> Result<Response, Fault> {
    let name = name(path)?;
    let listing = api.inner.office.desk.listing();
    let listed = listing.services.iter().find(|listed| is(listed, &name)).ok_or_else(|| unknown(&name))?;
    match api.inner.office.heartbeats.report(&listed.id, passing, output) {
        Ok(()) => Ok(StatusCode::NO_CONTENT.into_response()),
        Err(error @ HeartbeatError::NotTtl) => Err(Fault::new(Kind::NoTtlCheck, error.to_string())),
        Err(HeartbeatError::Unknown) => Err(unknown(&name)),
    }
}

fn unknown(name: &Name) -> Fault {
    DeskError::from(Refused::Unknown(name.clone())).into()
}

fn is(listed: &Listed, name: &Name) -> bool {
    listed.id.name == name.service && listed.id.instance == name.instance
}

/// The registration of this name. (The file may have one instance under two prefixes: that is the first of them.)
pub(super) fn find(api: &Api, name: &Name) -> Result<Registration, Fault> {
    let mut found = registrations(api, |listed| is(listed, name)).into_iter();
    found.next().ok_or_else(|| unknown(name))
}

fn registrations(api: &Api, wanted: impl Fn(&Listed) -> bool) -> Vec<Registration> {
    let listing = api.inner.office.desk.listing();
    let mut statuses: BTreeMap<_, _> = api.inner.sources.services.services().into_iter().collect();
    let listed = listing.services.iter().filter(|listed| wanted(listed));
    listed.map(|listed| registration(listed, statuses.remove(&listed.id).unwrap_or_default())).collect()
}

fn registration(listed: &Listed, status: ServiceStatus) -> Registration {
    let (state, cause) = match status.registration.as_ref().map(|state| state.borrow().clone()) {
        None | Some(Held::Pending) => (RegistrationState::Pending, None),
        Some(Held::Registered) => (RegistrationState::Registered, None),
        Some(Held::Retrying { cause }) => (RegistrationState::Retrying, Some(cause)),
        Some(Held::Lost { cause }) => (RegistrationState::Lost, Some(cause)),
        Some(Held::Withdrawn) => (RegistrationState::Withdrawn, None),
        // The agent gives no key up; a registrar that did would look after it no more.
        Some(Held::Failed { cause }) => (RegistrationState::Closed, Some(cause)),
        Some(Held::Closed) => (RegistrationState::Closed, None),
    };
    let definition = listed.definition.clone();
    Registration {
        service: listed.id.name.to_string(),
        instance: listed.id.instance.clone(),
        root: listed.id.root.clone(),
        source: if definition.is_some() { Source::Api } else { Source::File },
        address: status.address,
        health: status.health.map(Into::into),
        state,
        problem: status.problem.or(cause),
        lease: status.lease.and_then(|lease| *lease.borrow()).map(lease_text),
        check: status.check.map(|check| CheckReport {
            passing: check.status == CheckStatus::Passed,
            output: check.output,
            at: rfc3339(check.at),
            took_ms: u64::try_from(check.took.as_millis()).unwrap_or(u64::MAX),
        }),
        maintenance: listed.upkeep.clone().map(Into::into),
        definition: definition
            .and_then(|definition| serde_json::from_value::<ServiceDefinition>(definition.into()).ok()),
    }
}
