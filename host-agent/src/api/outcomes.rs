//! What became of requests.

use std::time::Instant;

use axum::{Json, extract::State};

use super::{
    Api,
    extract::Parameters,
    types::{NodeOutcomes, Outcomes, OutcomesQuery, Problem, ServiceOutcomes},
};

/// What became of requests, as the filters of this host report it: about a second old.
#[utoipa::path(get, path = "/v1/outcomes", tag = "catalog", params(OutcomesQuery), responses(
    (status = OK, body = Outcomes),
    (status = BAD_REQUEST, body = Problem, content_type = "application/problem+json", description = "`bad-parameters`"),
))]
pub(super) async fn outcomes(State(api): State<Api>, Parameters(query): Parameters<OutcomesQuery>) -> Json<Outcomes> {
    let known = &api.inner.sources.outcomes;
    let panics = known.panics();
    let asked = |name: &str| query.service.as_ref().is_none_or(|service| service == name);
    let services = known.all(Instant::now()).into_iter().filter(|(name, _)| asked(name)).map(|(name, nodes)| {
        let nodes = nodes.iter().map(|(address, node)| NodeOutcomes::of(address, node)).collect();
        let panic_picks = panics.get(&name).copied().unwrap_or_default();
        ServiceOutcomes { service: name.into(), panic_picks, nodes }
    });
    Json(Outcomes { services: services.collect() })
}
