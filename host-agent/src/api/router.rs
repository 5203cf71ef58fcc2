//! Every route of the API, with what the OpenAPI document says of it.

use axum::{
    Json, Router,
    extract::Request,
    http::{StatusCode, Uri, header, uri::Authority},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::any,
};
use utoipa::{OpenApi, openapi};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, catalog, elections, events, locks, maintenance, outcomes,
    problem::{Fault, Kind},
    registrations, status, values,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Waypost agent",
        description = "The local API of a host's Waypost agent: what it knows of the registry, and what it does for this host's programs.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "agent", description = "How the agent is"),
        (name = "catalog", description = "Services and nodes, as Envoy gets them"),
        (name = "registrations", description = "This host's services"),
        (name = "maintenance", description = "Nodes that are not to be picked for a while"),
        (name = "locks", description = "One holder at a time, in the layout of `etcdctl lock`"),
        (name = "elections", description = "One leader at a time, in the layout of `etcdctl elect`"),
        (name = "values", description = "Configuration values in etcd"),
    )
)]
struct Document;

/// Every operation: a route and its description come together.
fn operations() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(status::status))
        .routes(routes!(catalog::services))
        .routes(routes!(catalog::service_nodes))
        .routes(routes!(catalog::nodes))
        .routes(routes!(catalog::pick))
        .routes(routes!(outcomes::outcomes))
        .routes(routes!(events::catalog_events))
        .routes(routes!(registrations::list))
        .routes(routes!(registrations::get, registrations::put, registrations::patch, registrations::delete))
        .routes(routes!(registrations::heartbeat))
        .routes(routes!(maintenance::put_instance, maintenance::delete_instance))
        .routes(routes!(maintenance::put_host, maintenance::delete_host))
        .routes(routes!(locks::get, locks::post))
        .routes(routes!(locks::put, locks::delete))
        .routes(routes!(elections::get, elections::post))
        .routes(routes!(elections::put, elections::delete))
        .routes(routes!(elections::events))
        .routes(routes!(values::get))
        .routes(routes!(values::events))
        .routes(routes!(document))
}

/// The OpenAPI document.
pub fn openapi() -> openapi::OpenApi {
    operations().into_openapi()
}

/// The document of this API, in OpenAPI 3.1.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "agent", responses((status = OK, body = serde_json::Value)))]
async fn document() -> Json<openapi::OpenApi> {
    Json(openapi())
}

/// The routes, for the Unix socket. Nothing outside `/v1` is among them.
pub fn router(api: Api) -> Router {
    let (router, _) = operations().split_for_parts();
    router.route("/v1/{*rest}", any(unknown)).method_not_allowed_fallback(wrong_method).with_state(api)
}

/// The routes, for loopback TCP: anybody on this host can connect, and so can a web page that a browser shows here.
pub fn guarded(api: Api) -> Router {
    router(api).fallback(unknown).layer(middleware::from_fn(loopback_only))
}

async fn unknown(uri: Uri) -> Fault {
    Fault::new(Kind::UnknownPath, format!("{} is not known: see /v1/openapi.json", uri.path()))
}

async fn wrong_method(request: Request) -> Fault {
    let detail = format!("{} does not take {}: see /v1/openapi.json", request.uri().path(), request.method());
    Fault::new(Kind::WrongMethod, detail)
}

/// Refuses requests that were meant for a host of another name: a name that somebody has pointed at this address lets
/// a web page of theirs read what is answered.
async fn loopback_only(request: Request, next: Next) -> Response {
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    match request.uri().authority().cloned().or(named) {
        Some(authority) if is_loopback(authority.host()) => next.run(request).await,
        _ => {
            let detail = "the request's host is no loopback address: use 127.0.0.1, [::1] or localhost";
            (StatusCode::MISDIRECTED_REQUEST, Fault::new(Kind::WrongHost, detail)).into_response()
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_an_address_of_it_or_localhost_and_nothing_that_begins_so() {
        for host in ["127.0.0.1", "127.3.2.1", "[::1]", "localhost", "LOCALHOST"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["127.0.0.1.example.org", "localhost.example.org", "10.0.0.1", "[::2]", "example.org", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
