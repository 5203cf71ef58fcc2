//! How the agent is.

use axum::{Json, extract::State};
use waypost_catalog::ServiceName;

use super::{
    Api,
    types::{
        CatalogStatus, ComponentStatus, EtcdStatus, RefusedDocument, RulesStatus, Status, StreamStatus, WatchStatus,
    },
};
use crate::{published::Staleness as _, rules::Refusal, weighing::ComponentState};

/// How the agent is, and what it knows of etcd.
#[utoipa::path(get, path = "/v1/status", tag = "agent", responses((status = OK, body = Status)))]
pub(super) async fn status(State(api): State<Api>) -> Json<Status> {
    let (identity, sources) = (&api.inner.identity, &api.inner.sources);
    let listing = api.inner.office.desk.listing();
    let mirrors = sources.mirrors.mirrors();
    let figures = sources.mirrors.figures();
    let keys = |prefix: &str| figures.watches.iter().find(|watch| watch.prefix == prefix).map_or(0, |watch| watch.keys);
    let streams = sources.streams.figures();
    let etcd = EtcdStatus {
        endpoints: identity.endpoints.clone(),
        synced: mirrors.iter().all(|(_, mirror)| mirror.synced),
        revision: mirrors.iter().map(|(_, mirror)| mirror.revision).max().unwrap_or_default(),
        stale_seconds: sources.mirrors.stale_for().as_secs_f64(),
    };
    let catalog = sources.catalog.borrow().clone();
    let refused = figures
        .rules
        .refused
        .iter()
        .cloned()
        .map(|Refusal { key, revision, problems, last_good }| RefusedDocument { key, revision, problems, last_good });
    Json(Status {
        node: identity.node.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: api.inner.started.elapsed().as_secs_f64(),
        etcd,
        watches: mirrors
            .into_iter()
            .map(|(watch, mirror)| WatchStatus {
                keys: keys(&watch.prefix),
                prefix: watch.prefix,
                format: watch.format.to_string(),
                synced: mirror.synced,
                revision: mirror.revision,
                cause: mirror.cause,
            })
            .collect(),
        catalog: catalog.map(|catalog| CatalogStatus {
            version: catalog.version(),
            services: catalog.services().len(),
            nodes: catalog.node_count(),
        }),
        maintenance: listing.host.clone().map(Into::into),
        registrations: listing.services.len(),
        streams: StreamStatus { filters: streams.streams, envoys: streams.xds_streams },
        rules: RulesStatus {
            policies: figures.rules.policies,
            routes: figures.rules.routes,
            refused: refused.collect(),
            components: sources.components.states().into_iter().map(component).collect(),
        },
    })
}

fn component((service, state): (ServiceName, ComponentState)) -> ComponentStatus {
    ComponentStatus {
        service: service.to_string(),
        component: state.component,
        problem: state.problem,
        answers: state.answers,
        failures: state.failures,
        last_good_seconds: state.last_good.map(|at| at.elapsed().as_secs_f64()),
        took_ms: state.took.as_secs_f64() * 1e3,
        memory_bytes: state.memory,
    }
}
