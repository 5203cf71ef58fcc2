//! Leaderships that the agent holds for a client, as long as the client renews them, and who leads.

use std::sync::{Mutex, PoisonError};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{Response, sse::Event},
};
use waypost_registry::{Election, LockError, Observer};

use super::{
    Api,
    extract::{JsonBody, PathParts},
    holdings::{ASK_LIMIT, Claim, Ticket, contend, holder, place, terms},
    problem::Fault,
    sse,
    types::{Campaign, ElectionStatus, Leader, Leadership, Problem, Proclamation, lease_text},
    values::as_text,
};

fn is_leadership(claim: &Claim) -> bool {
    matches!(claim, Claim::Leader(..))
}

fn shown(ticket: &Ticket) -> Leadership {
    let held = ticket.held();
    let value = match &ticket.holding.claim {
        Claim::Leader(_, value) => value.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        Claim::Lock(_) => String::new(),
    };
    Leadership {
        id: ticket.id.clone(),
        name: held.name().to_owned(),
        key: held.key().to_owned(),
        token: held.fencing_token(),
        lease: lease_text(held.lease()),
        ttl: ticket.ttl_text(),
        held_for_ms: ticket.left_ms(),
        value,
    }
}

fn leader(leader: waypost_registry::Leader) -> Leader {
    let (value, encoding) = as_text(leader.value);
    Leader { key: leader.key, value, encoding, token: leader.token }
}

/// Who leads, whether by an agent, `etcdctl elect` or another client of etcd.
#[utoipa::path(get, path = "/v1/elections/{name}", tag = "elections",
    params(("name" = String, Path, description = "The election; percent-encoded, so that it may hold `/`")),
    responses(
        (status = OK, body = ElectionStatus),
        (status = SERVICE_UNAVAILABLE, body = Problem, content_type = "application/problem+json", description = "`etcd-unavailable`"),
    ))]
pub(super) async fn get(
    State(api): State<Api>,
    PathParts(name): PathParts<String>,
) -> Result<Json<ElectionStatus>, Fault> {
    let leader = holder(&api, &name).await?.map(leader);
    Ok(Json(ElectionStatus { name, leader }))
}

/// Stands for leadership, and holds it until it is deleted, or not renewed for its `ttl`.
#[utoipa::path(post, path = "/v1/elections/{name}", tag = "elections",
    params(("name" = String, Path, description = "The election; percent-encoded, so that it may hold `/`")),
    request_body = Campaign,
    responses(
        (status = CREATED, body = Leadership),
        (status = CONFLICT, body = Problem, content_type = "application/problem+json", description = "`held-by-another`"),
        (status = UNPROCESSABLE_ENTITY, body = Problem, content_type = "application/problem+json", description = "`invalid-body`"),
        (status = SERVICE_UNAVAILABLE, body = Problem, content_type = "application/problem+json", description = "`etcd-unavailable`, `too-many`, `stopping`"),
    ))]
pub(super) async fn post(
    State(api): State<Api>,
    PathParts(name): PathParts<String>,
    JsonBody(Campaign { value, ttl, wait }): JsonBody<Campaign>,
) -> Result<(StatusCode, Json<Leadership>), Fault> {
    let (ttl, wait) = terms(ttl.as_deref(), wait.as_deref())?;
    let place = place(&api)?;
    let election = Election::new(api.inner.registry.connector().clone(), name.clone(), ttl)?;
    let claim = async {
        if !wait.is_zero() {
            return election.campaign(value.clone(), wait).await.map(Some);
        }
        match election.leader(ASK_LIMIT).await? {
            Some(_) => Ok(None),
            None => match election.campaign(value.clone(), ASK_LIMIT).await {
                Err(LockError::TimedOut { .. }) => Ok(None),
                outcome => outcome.map(Some),
            },
        }
    };
    let leadership = contend(&api, &name, claim).await?;
    let ticket = api.inner.holdings.add(Claim::Leader(leadership, Mutex::new(value)), ttl, place)?;
    Ok((StatusCode::CREATED, Json(shown(&ticket))))
}

/// Holds on to a leadership for another `ttl`, and gives it another value if there is one.
#[utoipa::path(put, path = "/v1/elections/{name}/{id}", tag = "elections",
    params(
        ("name" = String, Path, description = "The election; percent-encoded, so that it may hold `/`"),
        ("id" = String, Path, description = "What it was won with"),
    ),
    request_body = Proclamation,
    responses(
        (status = OK, body = Leadership),
        (status = NOT_FOUND, body = Problem, content_type = "application/problem+json", description = "`not-held`"),
        (status = UNPROCESSABLE_ENTITY, body = Problem, content_type = "application/problem+json", description = "`invalid-body`"),
        (status = SERVICE_UNAVAILABLE, body = Problem, content_type = "application/problem+json", description = "`etcd-unavailable`: the value may have changed or not"),
    ))]
pub(super) async fn put(
    State(api): State<Api>,
    PathParts((name, id)): PathParts<(String, String)>,
    JsonBody(Proclamation { value: new }): JsonBody<Proclamation>,
) -> Result<Json<Leadership>, Fault> {
    let ticket = api.inner.holdings.renew(&name, &id, is_leadership)?;
    if let (Some(new), Claim::Leader(leadership, value)) = (new, &ticket.holding.claim) {
        leadership.proclaim(new.clone()).await?;
        *value.lock().unwrap_or_else(PoisonError::into_inner) = new;
    }
    Ok(Json(shown(&ticket)))
}

/// Gives a leadership up.
#[utoipa::path(delete, path = "/v1/elections/{name}/{id}", tag = "elections",
    params(
        ("name" = String, Path, description = "The election; percent-encoded, so that it may hold `/`"),
        ("id" = String, Path, description = "What it was won with"),
    ),
    responses(
        (status = NO_CONTENT, description = "The next one may lead"),
        (status = NOT_FOUND, body = Problem, content_type = "application/problem+json", description = "`not-held`"),
        (status = SERVICE_UNAVAILABLE, body = Problem, content_type = "application/problem+json", description = "`etcd-unavailable`: it ends with its lease"),
    ))]
pub(super) async fn delete(
    State(api): State<Api>,
    PathParts((name, id)): PathParts<(String, String)>,
) -> Result<StatusCode, Fault> {
    api.inner.holdings.release(&name, &id, is_leadership).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Each leader, and each of its values, from the present one on. Who is late gets the newest only.
#[utoipa::path(get, path = "/v1/elections/{name}/events", tag = "elections",
    params(("name" = String, Path, description = "The election; percent-encoded, so that it may hold `/`")),
    responses(
        (status = OK, body = Leader, content_type = "text/event-stream", description = "Events `leader`"),
        (status = SERVICE_UNAVAILABLE, body = Problem, content_type = "application/problem+json", description = "`too-many`"),
    ))]
pub(super) async fn events(State(api): State<Api>, PathParts(name): PathParts<String>) -> Result<Response, Fault> {
    let connector = api.inner.registry.connector().clone();
    // The TTL means nothing here: it only observes.
    let observer = Election::new(connector, name, ASK_LIMIT)?.observe();
    sse::answer(&api, observer, next)
}

async fn next(mut observer: Observer) -> Option<(Event, Observer)> {
    let event = sse::event("leader", None, &leader(observer.next().await?));
    Some((event, observer))
}
