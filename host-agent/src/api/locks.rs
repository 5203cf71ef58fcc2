//! Locks that the agent holds for a client, as long as the client renews them.

use axum::{Json, extract::State, http::StatusCode};
use waypost_registry::Lock;

use super::{
    Api,
    extract::{JsonBody, PathParts},
    holdings::{ASK_LIMIT, Claim, Ticket, contend, holder, place, terms},
    problem::Fault,
    types::{LockHeld, LockHolder, LockRequest, LockStatus, Problem, lease_text},
};

fn is_lock(claim: &Claim) -> bool {
    matches!(claim, Claim::Lock(_))
}

fn shown(ticket: &Ticket) -> LockHeld {
    let held = ticket.held();
    LockHeld {
        id: ticket.id.clone(),
        name: held.name().to_owned(),
        key: held.key().to_owned(),
        token: held.fencing_token(),
        lease: lease_text(held.lease()),
        ttl: ticket.ttl_text(),
        held_for_ms: ticket.left_ms(),
    }
}

/// Who holds a lock, whether an agent, `etcdctl lock` or another client of etcd.
#[utoipa::path(get, path = "/v1/locks/{name}", tag = "locks",
    params(("name" = String, Path, description = "The lock; percent-encoded, so that it may hold `/`")),
    responses(
        (status = OK, body = LockStatus),
        (status = SERVICE_UNAVAILABLE, body = Problem, content_type = "application/problem+json", description = "`etcd-unavailable`"),
    ))]
pub(super) async fn get(State(api): State<Api>, PathParts(name): PathParts<String>) -> Result<Json<LockStatus>, Fault> {
    let holder = holder(&api, &name).await?.map(|holder| LockHolder { key: holder.key, token: holder.token });
    Ok(Json(LockStatus { name, holder }))
}

/// Takes a lock, and holds it until it is deleted, or not renewed for its `ttl`.
#[utoipa::path(post, path = "/v1/locks/{name}", tag = "locks",
    params(("name" = String, Path, description = "The lock; percent-encoded, so that it may hold `/`")),
    request_body = LockRequest,
    responses(
        (status = CREATED, body = LockHeld),
        (status = CONFLICT, body = Problem, content_type = "application/problem+json", description = "`held-by-another`"),
        (status = UNPROCESSABLE_ENTITY, body = Problem, content_type = "application/problem+json", description = "`invalid-body`"),
        (status = SERVICE_UNAVAILABLE, body = Problem, content_type = "application/problem+json", description = "`etcd-unavailable`, `too-many`, `stopping`"),
    ))]
pub(super) async fn post(
    State(api): State<Api>,
    PathParts(name): PathParts<String>,
    JsonBody(LockRequest { ttl, wait }): JsonBody<LockRequest>,
) -> Result<(StatusCode, Json<LockHeld>), Fault> {
    let (ttl, wait) = terms(ttl.as_deref(), wait.as_deref())?;
    let place = place(&api)?;
    let lock = Lock::new(api.inner.registry.connector().clone(), name.clone(), ttl)?;
    let claim = async {
        match wait.is_zero() {
            true => lock.try_acquire(ASK_LIMIT).await,
            false => lock.acquire(wait).await.map(Some),
        }
    };
    let held = contend(&api, &name, claim).await?;
    let ticket = api.inner.holdings.add(Claim::Lock(held), ttl, place)?;
    Ok((StatusCode::CREATED, Json(shown(&ticket))))
}

/// Holds on to a lock for another `ttl`.
#[utoipa::path(put, path = "/v1/locks/{name}/{id}", tag = "locks",
    params(
        ("name" = String, Path, description = "The lock; percent-encoded, so that it may hold `/`"),
        ("id" = String, Path, description = "What it was taken with"),
    ),
    responses(
        (status = OK, body = LockHeld),
        (status = NOT_FOUND, body = Problem, content_type = "application/problem+json", description = "`not-held`"),
    ))]
pub(super) async fn put(
    State(api): State<Api>,
    PathParts((name, id)): PathParts<(String, String)>,
) -> Result<Json<LockHeld>, Fault> {
    Ok(Json(shown(&api.inner.holdings.renew(&name, &id, is_lock)?)))
}

/// Gives a lock back.
#[utoipa::path(delete, path = "/v1/locks/{name}/{id}", tag = "locks",
    params(
        ("name" = String, Path, description = "The lock; percent-encoded, so that it may hold `/`"),
        ("id" = String, Path, description = "What it was taken with"),
    ),
    responses(
        (status = NO_CONTENT, description = "It is free"),
        (status = NOT_FOUND, body = Problem, content_type = "application/problem+json", description = "`not-held`"),
        (status = SERVICE_UNAVAILABLE, body = Problem, content_type = "application/problem+json", description = "`etcd-unavailable`: it is free when its lease ends"),
    ))]
pub(super) async fn delete(
    State(api): State<Api>,
    PathParts((name, id)): PathParts<(String, String)>,
) -> Result<StatusCode, Fault> {
    api.inner.holdings.release(&name, &id, is_lock).await?;
    Ok(StatusCode::NO_CONTENT)
}
