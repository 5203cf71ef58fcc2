//! Nodes as JSON, for trials by hand: as `waypost nodes --json` prints them, or as they stand in the registry.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use serde::Deserialize;
use serde_json::Value;

use crate::model::{Health, Node, Outcomes};

/// Why there are no nodes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodesError {
    /// It is no JSON, or a field has the wrong type.
    #[error("{0}")]
    Json(String),
    /// Nodes of several services, and nobody said which.
    #[error("there are nodes of {}: name one of these services", .0.join(", "))]
    SeveralServices(Vec<String>),
    /// None of the service.
    #[error("there is no node of service {0}")]
    NotThere(String),
}

/// The nodes of one service.
#[derive(Clone, Debug, PartialEq)]
pub struct Nodes {
    /// Its name; none if the file says nothing about it.
    pub service: Option<String>,
    /// In the order of the file.
    pub nodes: Vec<Node>,
}

/// A document as it may stand in the file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    Printed { nodes: Vec<Value> },
    List(Vec<Value>),
    One(Value),
}

/// A node as printed or as registered; what a strategy does not get is passed over.
#[derive(Deserialize)]
struct Incoming {
    service: Option<String>,
    id: Option<String>,
    address: String,
    port: Option<u16>,
    weight: Option<u32>,
    priority: Option<u8>,
    health: Option<Health>,
    zone: Option<String>,
    version: Option<String>,
    tags: Option<Vec<String>>,
    metadata: Option<BTreeMap<String, Value>>,
    age_seconds: Option<u32>,
    outcomes: Option<Outcomes>,
}

/// Reads the nodes of a service, or of the only one that there is.
///
/// A node has the fields that `waypost nodes --json` prints, or those of a value in the registry (address and port
/// apart). Beside these it may have `priority`, `age_seconds` and `outcomes`, in the form of the contract, with `_` for
/// `-`. Only the address must be there.
///
/// # Errors
/// [`NodesError`], with the place.
pub fn parse(text: &str, service: Option<&str>) -> Result<Nodes, NodesError> {
    let json = |error: &dyn fmt::Display| NodesError::Json(error.to_string());
    let rows = match serde_json::from_str(text).map_err(|error| json(&error))? {
        Document::Printed { nodes } | Document::List(nodes) => nodes,
        Document::One(node) => vec![node],
    };
    let mut nodes = Vec::new();
    for (index, row) in rows.into_iter().enumerate() {
        let incoming: Incoming = serde_path_to_error::deserialize(row)
            .map_err(|error| NodesError::Json(format!("node {index}: {}: {}", error.path(), error.inner())))?;
        nodes.push(incoming);
    }

    let mut services: Vec<_> = nodes.iter().filter_map(|node| node.service.clone()).collect();
    services.sort_unstable();
    services.dedup();
    let service = match (service, services.as_slice()) {
        (Some(named), _) => Some(named.to_owned()),
        (None, [only]) => Some(only.clone()),
        (None, []) => None,
        (None, _) => return Err(NodesError::SeveralServices(services)),
    };
    nodes.retain(|node| node.service.is_none() || node.service == service);
    if let (Some(service), true) = (&service, nodes.is_empty()) {
        return Err(NodesError::NotThere(service.clone()));
    }
    Ok(Nodes { service, nodes: nodes.into_iter().map(Node::from).collect() })
}

impl From<Incoming> for Node {
    fn from(incoming: Incoming) -> Self {
        let address = match (incoming.address.parse::<IpAddr>(), incoming.port) {
            (Ok(IpAddr::V6(ip)), Some(port)) => format!("[{ip}]:{port}"),
            (_, Some(port)) => format!("{}:{port}", incoming.address),
            (_, None) => incoming.address,
        };
        let text = |value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        Self {
            id: incoming.id.unwrap_or_else(|| address.clone()),
            address,
            weight: incoming.weight.unwrap_or(1),
            priority: incoming.priority.unwrap_or_default(),
            health: incoming.health.unwrap_or_default(),
            zone: incoming.zone.unwrap_or_default(),
            version: incoming.version.unwrap_or_default(),
            tags: incoming.tags.unwrap_or_default(),
            metadata: incoming.metadata.unwrap_or_default().into_iter().map(|(k, v)| (k, text(v))).collect(),
            age_seconds: incoming.age_seconds,
            outcomes: incoming.outcomes,
            previous: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Latency;

    #[test]
    fn what_the_command_prints_is_read_as_it_is() {
        let printed = r#"{"nodes":[
            {"service":"web","share":0.75,"address":"10.0.0.1:8080","weight":3,"health":"passing","protocol":"http1",
             "id":"host-a","zone":"eu-1","version":"2.1","tags":["canary"],"metadata":{"cpus":"8"}},
            {"service":"db","share":1.0,"address":"10.0.0.2:5432","weight":1,"health":"draining","protocol":"http1",
             "id":"host-b","zone":"","version":"","tags":[],"metadata":{}}]}"#;
        let nodes = parse(printed, Some("web")).unwrap();
        let node = Node {
            id: "host-a".into(),
            address: "10.0.0.1:8080".into(),
            weight: 3,
            zone: "eu-1".into(),
            version: "2.1".into(),
            tags: vec!["canary".into()],
            metadata: vec![("cpus".into(), "8".into())],
            ..Node::default()
        };
        assert_eq!(nodes, Nodes { service: Some("web".into()), nodes: vec![node] });
        assert_eq!(parse(printed, Some("db")).unwrap().nodes[0].health, Health::Draining);
        let services = vec!["db".to_owned(), "web".to_owned()];
        assert_eq!(parse(printed, None), Err(NodesError::SeveralServices(services)));
        assert_eq!(parse(printed, Some("mail")), Err(NodesError::NotThere("mail".into())));
    }

    #[test]
    fn what_is_registered_is_read_as_it_is() {
        let value =
            r#"{"address":"fd00::1","port":8080,"weight":2,"metadata":{"cpus":8},"registered_at":"2026-01-01"}"#;
        let Nodes { service, nodes } = parse(value, None).unwrap();
        assert_eq!((service, nodes[0].address.as_str(), nodes[0].weight), (None, "[fd00::1]:8080", 2));
        assert_eq!(nodes[0].metadata, [("cpus".to_owned(), "8".to_owned())]);
        let nodes = parse(&format!("[{value}, {{\"address\": \"10.0.0.1:80\"}}]"), Some("web")).unwrap();
        assert_eq!((nodes.service.as_deref(), nodes.nodes.len()), (Some("web"), 2));
    }

    #[test]
    fn outcomes_may_be_made_up() {
        let text = r#"[{"address":"10.0.0.1:80","age_seconds":5,"priority":1,"outcomes":{"window_seconds":10,
            "requests":100,"failures":3,"rate":10,"in_flight":2,"latency":{"p50_ms":1.5,"p99_ms":20}}}]"#;
        let node = parse(text, None).unwrap().nodes.remove(0);
        let outcomes = node.outcomes.unwrap();
        assert_eq!((node.age_seconds, node.priority, outcomes.failures), (Some(5), 1, 3));
        assert_eq!(outcomes.latency, Some(Latency { p50_ms: 1.5, p99_ms: 20.0 }));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let wrong = |text| parse(text, None).unwrap_err().to_string();
        assert!(wrong("[{]").contains("line 1 column 3"));
        assert_eq!(
            wrong(r#"[{"address":"10.0.0.1:80"},{"address":"10.0.0.2:80","weight":-1}]"#),
            "node 1: weight: invalid value: integer `-1`, expected u32"
        );
        assert!(wrong("[{}]").contains("missing field `address`"));
    }
}
