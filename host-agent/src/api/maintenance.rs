//! Maintenance: an instance, or all of the host, is shown as draining until it is taken back.

use std::time::SystemTime;

use axum::{Json, extract::State, http::StatusCode};
use waypost_registry::format::rfc3339;

use super::{
    Api,
    extract::{JsonBody, PathParts},
    problem::Fault,
    registrations::name,
    types::{Maintenance, MaintenanceRequest, Problem},
};
use crate::registrations::{Request, Upkeep};

/// The longest reason: it is part of the node, which every Envoy gets.
const REASON_BYTES: usize = 1024;

fn upkeep(MaintenanceRequest { reason }: MaintenanceRequest) -> Result<Upkeep, Fault> {
    if reason.len() > REASON_BYTES {
        let detail = format!("{} bytes: a reason may have {REASON_BYTES}", reason.len());
        return Err(Fault::invalid_at("/reason", detail));
    }
    Ok(Upkeep { reason, since: rfc3339(SystemTime::now()) })
}

/// Puts an instance into maintenance: it is shown as draining, with the reason, until it is taken back.
#[utoipa::path(put, path = "/v1/registrations/{service}/{instance}/maintenance", tag = "maintenance",
    params(("service" = String, Path, description = "The service"), ("instance" = String, Path, description = "Its instance")),
    request_body = MaintenanceRequest,
    responses(
        (status = OK, body = Maintenance),
        (status = NOT_FOUND, body = Problem, content_type = "application/problem+json", description = "`unknown-registration`"),
        (status = UNPROCESSABLE_ENTITY, body = Problem, content_type = "application/problem+json", description = "`invalid-body`"),
        (status = INTERNAL_SERVER_ERROR, body = Problem, content_type = "application/problem+json", description = "`not-saved`"),
    ))]
pub(super) async fn put_instance(
    State(api): State<Api>,
    PathParts(path): PathParts<(String, String)>,
    JsonBody(request): JsonBody<MaintenanceRequest>,
) -> Result<Json<Maintenance>, Fault> {
    let upkeep = upkeep(request)?;
    api.inner.office.desk.ask(Request::Maintain(name(path)?, Some(upkeep.clone()))).await?;
    Ok(Json(upkeep.into()))
}

/// Takes an instance back from maintenance.
#[utoipa::path(delete, path = "/v1/registrations/{service}/{instance}/maintenance", tag = "maintenance",
    params(("service" = String, Path, description = "The service"), ("instance" = String, Path, description = "Its instance")),
    responses(
        (status = NO_CONTENT, description = "It is in no maintenance of its own"),
        (status = NOT_FOUND, body = Problem, content_type = "application/problem+json", description = "`unknown-registration`"),
    ))]
pub(super) async fn delete_instance(
    State(api): State<Api>,
    PathParts(path): PathParts<(String, String)>,
) -> Result<StatusCode, Fault> {
    api.inner.office.desk.ask(Request::Maintain(name(path)?, None)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Puts all services of this host into maintenance, and those that are registered meanwhile.
#[utoipa::path(put, path = "/v1/maintenance", tag = "maintenance", request_body = MaintenanceRequest, responses(
    (status = OK, body = Maintenance),
    (status = UNPROCESSABLE_ENTITY, body = Problem, content_type = "application/problem+json", description = "`invalid-body`"),
    (status = INTERNAL_SERVER_ERROR, body = Problem, content_type = "application/problem+json", description = "`not-saved`"),
))]
pub(super) async fn put_host(
    State(api): State<Api>,
    JsonBody(request): JsonBody<MaintenanceRequest>,
) -> Result<Json<Maintenance>, Fault> {
    let upkeep = upkeep(request)?;
    api.inner.office.desk.ask(Request::MaintainHost(Some(upkeep.clone()))).await?;
    Ok(Json(upkeep.into()))
}

/// Takes the host back from maintenance. Services that are in maintenance of their own stay so.
#[utoipa::path(delete, path = "/v1/maintenance", tag = "maintenance", responses(
    (status = NO_CONTENT, description = "The host is in no maintenance"),
))]
pub(super) async fn delete_host(State(api): State<Api>) -> Result<StatusCode, Fault> {
    api.inner.office.desk.ask(Request::MaintainHost(None)).await?;
    Ok(StatusCode::NO_CONTENT)
}
