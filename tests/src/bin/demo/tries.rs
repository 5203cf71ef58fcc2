//! What Envoy counts per node: tries that failed there, whatever became of the request. Pure.
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

/// Failed tries by address, kept across a node's going and coming, at which Envoy starts from zero.
#[derive(Debug, Default)]
pub struct Tries {
    nodes: BTreeMap<String, Counter>,
}

#[derive(Debug, Default)]
struct Counter {
    raw: u64,
    total: u64,
    last_growth: Option<Duration>,
}

impl Tries {
    /// Takes note of Envoy's `/clusters?format=json`.
    pub fn observe(&mut self, at: Duration, json: &str) -> Result<()> {
        let clusters: Clusters = serde_json::from_str(json).context("Envoy's clusters are not the JSON expected")?;
        for host in clusters.cluster_statuses.into_iter().flat_map(|cluster| cluster.host_statuses) {
            let Some(socket) = host.address.socket_address else { continue };
            let raw = host.stats.iter().find(|stat| stat.name == "rq_error").map_or(0, Stat::number);
            let counter = self.nodes.entry(format!("{}:{}", socket.address, socket.port_value)).or_default();
            let new = if raw >= counter.raw { raw - counter.raw } else { raw };
            counter.raw = raw;
            if new > 0 {
                counter.total += new;
                counter.last_growth = Some(at);
            }
        }
        Ok(())
    }

    /// Failed tries at an address.
    pub fn failed(&self, address: &str) -> u64 {
        self.nodes.get(address).map_or(0, |counter| counter.total)
    }

    /// When the last try failed there.
    pub fn last(&self, address: &str) -> Option<Duration> {
        self.nodes.get(address)?.last_growth
    }
}

#[derive(Deserialize)]
struct Clusters {
    #[serde(default)]
    cluster_statuses: Vec<Cluster>,
}

#[derive(Deserialize)]
struct Cluster {
    #[serde(default)]
    host_statuses: Vec<Host>,
}

#[derive(Deserialize)]
struct Host {
    address: Address,
    #[serde(default)]
    stats: Vec<Stat>,
}

#[derive(Deserialize)]
struct Address {
    socket_address: Option<Socket>,
}

#[derive(Deserialize)]
struct Socket {
    address: String,
    port_value: u16,
}

#[derive(Deserialize)]
struct Stat {
    name: String,
    /// Text, and left out when it is zero.
    #[serde(default)]
    value: String,
}

impl Stat {
    fn number(&self) -> u64 {
        self.value.parse().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clusters(errors: &str) -> String {
        format!(
            r#"{{"cluster_statuses":[{{"name":"a","host_statuses":[{{"address":{{"pipe":{{"path":"/x"}}}}}}]}},
            {{"name":"web","host_statuses":[{{"address":{{"socket_address":{{"address":"127.0.0.2","port_value":81}}}},
            "stats":[{{"name":"cx_total","value":"9"}},{{"name":"rq_error"{errors}}}]}}]}}]}}"#
        )
    }

    #[test]
    fn failed_tries_add_up_when_envoy_starts_from_zero_again() {
        let mut tries = Tries::default();
        let observed = [("", 1), (r#","value":"3""#, 2), (r#","value":"3""#, 3), (r#","value":"2""#, 4)];
        for (errors, second) in observed {
            tries.observe(Duration::from_secs(second), &clusters(errors)).unwrap();
        }
        assert_eq!(tries.failed("127.0.0.2:81"), 5);
        assert_eq!(tries.last("127.0.0.2:81"), Some(Duration::from_secs(4)));
        assert_eq!((tries.failed("127.0.0.3:81"), tries.last("127.0.0.3:81")), (0, None));
    }
}
