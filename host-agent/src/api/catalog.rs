//! The served catalog: services, their nodes, and one node picked.

use std::sync::PoisonError;

use axum::{Json, extract::State};
use waypost_balance::{Strategy, UnknownStrategy};
use waypost_catalog::{Catalog, Health, Service};

use super::{
    Api,
    extract::{Parameters, PathParts},
    filter::Filter,
    picker::Picked,
    problem::{Fault, Kind},
    types::{AllNodes, Node, NodeQuery, Pick, PickQuery, Problem, ServiceNode, ServiceNodes, ServiceSummary, Services},
};

/// Every service that has a node.
#[utoipa::path(get, path = "/v1/services", tag = "catalog", responses(
    (status = OK, body = Services),
    (status = SERVICE_UNAVAILABLE, body = Problem, content_type = "application/problem+json", description = "`not-ready`"),
))]
pub(super) async fn services(State(api): State<Api>) -> Result<Json<Services>, Fault> {
    let catalog = api.catalog()?;
    Ok(Json(Services { version: catalog.version(), services: summaries(&catalog) }))
}

/// Every service in figures.
pub(crate) fn summaries(catalog: &Catalog) -> Vec<ServiceSummary> {
    catalog.services().iter().map(|(name, service)| summary(name, service)).collect()
}

fn summary(name: &str, service: &Service) -> ServiceSummary {
    let of = |health| service.nodes().filter(move |node| node.health == health);
    ServiceSummary {
        name: name.to_owned(),
        nodes: service.nodes().len(),
        passing: of(Health::Passing).count(),
        critical: of(Health::Critical).count(),
        draining: of(Health::Draining).count(),
        weight: of(Health::Passing).map(|node| u64::from(node.effective_weight())).sum(),
    }
}

/// A service's nodes.
#[utoipa::path(get, path = "/v1/services/{service}/nodes", tag = "catalog",
    params(("service" = String, Path, description = "The service"), NodeQuery),
    responses(
        (status = OK, body = ServiceNodes),
        (status = BAD_REQUEST, body = Problem, content_type = "application/problem+json", description = "`bad-parameters`"),
        (status = NOT_FOUND, body = Problem, content_type = "application/problem+json", description = "`unknown-service`"),
        (status = SERVICE_UNAVAILABLE, body = Problem, content_type = "application/problem+json", description = "`not-ready`"),
    ))]
pub(super) async fn service_nodes(
    State(api): State<Api>,
    PathParts(service): PathParts<String>,
    Parameters(query): Parameters<NodeQuery>,
) -> Result<Json<ServiceNodes>, Fault> {
    if query.service.is_some() {
        return Err(Fault::new(Kind::BadParameters, "service: the path names it already"));
    }
    let catalog = api.catalog()?;
    let Some(found) = catalog.services().get(service.as_str()) else { return Err(unknown(&service)) };
    let filter = Filter::from(query);
    let nodes = found.nodes().filter(|node| filter.takes(node)).map(Node::from).collect();
    Ok(Json(ServiceNodes { service, version: catalog.version(), nodes }))
}

/// The nodes of all services.
#[utoipa::path(get, path = "/v1/nodes", tag = "catalog", params(NodeQuery), responses(
    (status = OK, body = AllNodes),
    (status = BAD_REQUEST, body = Problem, content_type = "application/problem+json", description = "`bad-parameters`"),
    (status = SERVICE_UNAVAILABLE, body = Problem, content_type = "application/problem+json", description = "`not-ready`"),
))]
pub(super) async fn nodes(
    State(api): State<Api>,
    Parameters(query): Parameters<NodeQuery>,
) -> Result<Json<AllNodes>, Fault> {
    let catalog = api.catalog()?;
    let service = query.service.clone();
    let filter = Filter::from(query);
    let asked = |name: &str| service.as_ref().is_none_or(|service| service == name);
    let nodes = catalog
        .services()
        .iter()
        .filter(|(name, _)| asked(name))
        .flat_map(|(name, service)| service.nodes().map(move |node| (name, node)))
        .filter(|(_, node)| filter.takes(node))
        .map(|(name, node)| ServiceNode { service: name.to_string(), node: Node::from(node) })
        .collect();
    Ok(Json(AllNodes { version: catalog.version(), nodes }))
}

/// One healthy node of a service, and others to go to if it fails.
#[utoipa::path(get, path = "/v1/services/{service}/pick", tag = "catalog",
    params(("service" = String, Path, description = "The service"), PickQuery),
    responses(
        (status = OK, body = Pick),
        (status = BAD_REQUEST, body = Problem, content_type = "application/problem+json", description = "`bad-parameters`"),
        (status = NOT_FOUND, body = Problem, content_type = "application/problem+json", description = "`unknown-service`"),
        (status = SERVICE_UNAVAILABLE, body = Problem, content_type = "application/problem+json", description = "`no-healthy-node`, `not-ready`"),
    ))]
pub(super) async fn pick(
    State(api): State<Api>,
    PathParts(service): PathParts<String>,
    Parameters(query): Parameters<PickQuery>,
) -> Result<Json<Pick>, Fault> {
    let strategy = query.strategy.as_deref().map_or(Ok(Strategy::default()), str::parse);
    let strategy = strategy.map_err(|error: UnknownStrategy| Fault::new(Kind::BadParameters, error.to_string()))?;
    if let Some(need) = strategy.needs() {
        let says = format!("{strategy} needs {need}, which nobody tells here: allowed are {}", Strategy::plain_names());
        return Err(Fault::new(Kind::BadParameters, says));
    }
    let catalog = api.catalog()?;
    let picked = {
        let mut pickers = api.inner.pickers.lock().unwrap_or_else(PoisonError::into_inner);
        pickers.pick(&catalog, &service, strategy, Filter::from(query), &mut fastrand::Rng::new())
    };
    match picked {
        Picked::UnknownService => Err(unknown(&service)),
        Picked::Nobody => {
            Err(Fault::new(Kind::NoHealthyNode, format!("{service} has no healthy node that meets the conditions")))
        }
        Picked::Node(node, others) => {
            let alternatives = others.iter().map(|entry| entry.node().into()).collect();
            Ok(Json(Pick { service, strategy: strategy.to_string(), node: node.node().into(), alternatives }))
        }
    }
}

fn unknown(service: &str) -> Fault {
    Fault::new(Kind::UnknownService, format!("no node of {service:?} is known: see /v1/services"))
}
