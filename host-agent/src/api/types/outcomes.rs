//! What became of requests.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::outcomes;

/// `GET /v1/outcomes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Outcomes {
    /// Every service that filters have reported on, by name.
    pub services: Vec<ServiceOutcomes>,
}

/// What became of a service's requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceOutcomes {
    /// The service.
    #[schema(example = "web")]
    pub service: String,
    /// Requests for which all of its nodes were eligible, since too few were healthy.
    pub panic_picks: u64,
    /// Its nodes, by address.
    pub nodes: Vec<NodeOutcomes>,
}

/// What became of a node's requests, over all filters of this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeOutcomes {
    /// The node.
    #[schema(example = "10.0.0.5:8080")]
    pub address: String,
    /// Requests that ended there since the agent started.
    pub requests: u64,
    /// Of these, answered with a 5xx.
    pub server_errors: u64,
    /// Broken off by the node.
    pub resets: u64,
    /// It could not be connected to.
    pub connect_failures: u64,
    /// No answer in time.
    pub timeouts: u64,
    /// Given up by the client.
    pub cancelled: u64,
    /// Tries that failed, after which the request went to another node.
    pub failed_tries: u64,
    /// Requests per second in the last minute.
    pub rate: f64,
    /// The part of the last minute's requests and failed tries that failed, from 0 to 1; null if there were none.
    pub error_share: Option<f64>,
    /// Median latency to the first byte of the answer in the last minute, in milliseconds.
    pub p50_ms: Option<f64>,
    /// Its 99th percentile.
    pub p99_ms: Option<f64>,
    /// Requests under way.
    pub in_flight: u64,
    /// Filters, one per worker, that have ejected it.
    pub ejected_by: usize,
}

impl NodeOutcomes {
    /// Of what is known of a node.
    pub fn of(address: &str, known: &outcomes::NodeOutcomes) -> Self {
        let millis = |latency: std::time::Duration| latency.as_secs_f64() * 1e3;
        let total = known.total;
        Self {
            address: address.to_owned(),
            requests: total.requests,
            server_errors: total.server_errors,
            resets: total.resets,
            connect_failures: total.connect_failures,
            timeouts: total.timeouts,
            cancelled: total.cancelled,
            failed_tries: total.failed_tries,
            rate: known.rate(),
            error_share: known.error_share(),
            p50_ms: known.p50.map(millis),
            p99_ms: known.p99.map(millis),
            in_flight: known.in_flight,
            ejected_by: known.ejected_by,
        }
    }
}

/// Whose outcomes are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OutcomesQuery {
    /// Only this service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}
