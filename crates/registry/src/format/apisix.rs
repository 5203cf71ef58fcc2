//! `apisix`: `/apisix/upstreams/<id>` and JSON that holds all nodes of the upstream. A node is registered beside it: see
//! [`crate::apisix`].

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use waypost_catalog::{Node, Protocol, ServiceName};

use super::{
    DecodeError, EncodeError, Endpoint, Found, Timestamps,
    foreign::{read, text},
    parse_host, parse_port, waypost,
};
use crate::apisix::Upstream;

pub(super) const SHAPE: &str = "<prefix><id>";
/// What the folders above the upstreams hold, which `apisix init` makes.
const FOLDER: &[u8] = b"init_dir";
const PRIORITY: &str = "priority";

#[derive(Deserialize)]
struct Incoming {
    nodes: Option<Nodes>,
    scheme: Option<String>,
    service_name: Option<String>,
}

/// Both ways to write them.
#[derive(Deserialize)]
#[serde(untagged, expecting = "nodes are a map of weights by host:port, or a list of objects with host and weight")]
enum Nodes {
    Map(BTreeMap<String, i64>),
    List(Vec<IncomingNode>),
}

#[derive(Deserialize)]
struct IncomingNode {
    host: String,
    port: Option<i64>,
    weight: i64,
    priority: Option<i64>,
    metadata: Option<BTreeMap<String, Value>>,
}

/// A node and its priority.
type Ranked = (i64, Found);

pub(super) fn decode(path: &str, value: &[u8], protocol: Protocol) -> Result<(ServiceName, Vec<Found>), DecodeError> {
    if value == FOLDER {
        return Err(DecodeError::NoNode("a folder of APISIX's"));
    }
    if path.is_empty() || path.contains('/') {
        return Err(DecodeError::KeyShape { expected: SHAPE });
    }
    let service = ServiceName::new(path)?;
    let Incoming { nodes, scheme, service_name } = read(value)?;
    let protocol = spoken(scheme.as_deref(), protocol)?;
    let ranked: Result<Vec<Ranked>, DecodeError> = match nodes {
        Some(Nodes::Map(nodes)) => {
            let node = |(address, weight): (String, i64)| Ok((0, of_map(&address, weight, protocol)?));
            nodes.into_iter().map(node).collect()
        }
        Some(Nodes::List(nodes)) => nodes.into_iter().map(|node| of_list(node, protocol)).collect(),
        None if service_name.is_some() => {
            return Err(DecodeError::NoNode("an upstream whose nodes are kept elsewhere"));
        }
        None => return Err(DecodeError::Missing("nodes")),
    };
    Ok((service, in_use(ranked?)))
}

/// What the nodes speak. An upstream that APISIX's admin API wrote says it always.
fn spoken(scheme: Option<&str>, protocol: Protocol) -> Result<Protocol, DecodeError> {
    match scheme {
        None => Ok(protocol),
        Some("http") => Ok(Protocol::Http1),
        Some("grpc") => Ok(Protocol::Http2),
        Some(other) => {
            let found = other.chars().take(80).collect();
            Err(DecodeError::NoEndpoint { wanted: scheme_of(protocol), protocol: protocol.as_str(), found })
        }
    }
}

/// The scheme of nodes that speak a protocol, without TLS.
const fn scheme_of(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http1 => "http",
        Protocol::Http2 => "grpc",
    }
}

/// The port of a node that names none: that of both schemes.
pub(crate) const DEFAULT_PORT: u16 = 80;

fn of_map(address: &str, weight: i64, protocol: Protocol) -> Result<Found, DecodeError> {
    let endpoint = match parse_host(address) {
        Ok(host) if !address.contains(':') || address.starts_with('[') => Endpoint { host, port: DEFAULT_PORT },
        _ => Endpoint::parse(address)?,
    };
    let weight = checked(weight)?;
    Ok(Found::plain(endpoint, address, protocol).with(|node| Node { weight, ..node }))
}

fn of_list(node: IncomingNode, protocol: Protocol) -> Result<Ranked, DecodeError> {
    let port = match node.port {
        None => DEFAULT_PORT,
        port => parse_port(port, "port (1 to 65535)")?,
    };
    let weight = checked(node.weight)?;
    let priority = node.priority.unwrap_or_default();
    let mut metadata: BTreeMap<String, String> =
        node.metadata.unwrap_or_default().into_iter().map(|(name, value)| (name, text(value))).collect();
    if priority != 0 {
        metadata.insert(PRIORITY.to_owned(), priority.to_string());
    }
    let id = format!("{}:{port}", node.host);
    let found = Found::plain(Endpoint { host: parse_host(&node.host)?, port }, &id, protocol);
    Ok((priority, found.with(|node| Node { weight, metadata, ..node })))
}

fn checked(weight: i64) -> Result<u32, DecodeError> {
    u32::try_from(weight).map_err(|_| DecodeError::Missing("weight (0 to 4294967295)"))
}

/// The whole key and the value of a node that is to be in an upstream.
pub(super) fn encode(
    root: &str,
    service: &ServiceName,
    instance: &str,
    node: &Node,
    times: Timestamps,
) -> Result<(String, Vec<u8>), EncodeError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if service.len() > 64 || !service.bytes().all(fits) {
        return Err(EncodeError::UpstreamId(service.to_string()));
    }
    Ok((format!("{}{instance}", Upstream::new(root, service).nodes_prefix()), waypost::encode(node, times)?))
}

/// The nodes, of which those wait that are below the highest priority with a weight: APISIX sends them nothing either
/// while it has one of that priority.
fn in_use(ranked: Vec<Ranked>) -> Vec<Found> {
    let highest = ranked.iter().filter(|(_, found)| !found.waits()).map(|(priority, _)| *priority).max();
    let waiting = |priority| highest.is_some_and(|highest| priority < highest);
    ranked
        .into_iter()
        .map(|(priority, found)| if waiting(priority) { found.with(|node| Node { weight: 0, ..node }) } else { found })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{super::testing::*, *};
    use crate::{
        format::Format::Apisix,
        host::{Host, HostName},
    };

    fn read(value: &str) -> Result<Vec<Found>, DecodeError> {
        let key = "/apisix/upstreams/orders";
        Apisix.decode("/apisix/upstreams/", key, value.as_bytes(), Protocol::Http1).map(|(service, found)| {
            assert_eq!(&*service, "orders");
            found
        })
    }

    fn shown(value: &str) -> Vec<(String, u32)> {
        read(value)
            .unwrap()
            .iter()
            .map(|found| (found.clone().into_node().id, found.clone().into_node().weight))
            .collect()
    }

    fn weights<const N: usize>(expected: [(&str, u32); N]) -> Vec<(String, u32)> {
        expected.map(|(id, weight)| (id.to_owned(), weight)).to_vec()
    }

    #[test]
    fn a_map_of_weights_is_read() {
        let value = r#"{"id":"orders","type":"roundrobin","nodes":{"10.0.0.5:8080":10,"10.0.0.6:8080":0,"10.0.0.7":1,"[::1]:80":2,"[::2]":3}}"#;
        assert_eq!(
            shown(value),
            weights([("10.0.0.5:8080", 10), ("10.0.0.6:8080", 0), ("10.0.0.7", 1), ("[::1]:80", 2), ("[::2]", 3)])
        );
        let expected = Node { weight: 10, ..node("10.0.0.5:8080") };
        assert_eq!(read(value).unwrap()[0].node(), Some(&expected));
        assert_eq!(read(value).unwrap()[2].port(), 80);
    }

    #[test]
    fn a_list_of_nodes_is_read() {
        let value = r#"{"id":"1","create_time":1602883670,"update_time":1602893670,"name":"o","type":"chash","key":"uri","scheme":"grpc",
            "timeout":{"connect":0.5,"send":0.5,"read":0.5},"nodes":[
            {"host":"10.0.0.5","port":8080,"weight":10,"priority":0,"metadata":{"zone":"a","n":7}},{"host":"[::1]","weight":3}]}"#;
        let found = read(value).unwrap();
        let metadata = [("zone", "a"), ("n", "7")].map(|(name, text)| (name.to_owned(), text.to_owned()));
        let first = Node { weight: 10, protocol: Protocol::Http2, metadata: metadata.into(), ..node("10.0.0.5:8080") };
        assert_eq!(found[0].node(), Some(&first));
        assert_eq!((found[1].port(), found[1].node().unwrap().weight), (80, 3));
        for none in [r#"{"nodes":[]}"#, r#"{"nodes":{}}"#] {
            assert!(read(none).unwrap().is_empty(), "an upstream without nodes is a service without nodes");
        }
    }

    #[test]
    fn a_host_may_have_a_name() {
        let name = |found: &Found| found.name().map(HostName::as_str).map(str::to_owned);
        let map = read(r#"{"nodes":{"orders.shop:8080":1,"localhost":1}}"#).unwrap();
        assert_eq!((name(&map[0]).as_deref(), map[0].port()), (Some("localhost"), 80));
        assert_eq!((name(&map[1]).as_deref(), map[1].port()), (Some("orders.shop"), 8080));
        let list = read(r#"{"nodes":[{"host":"orders.shop","port":8080,"weight":1}]}"#).unwrap();
        assert_eq!(list[0].host(), Host::Name(HostName::new("orders.shop").unwrap()));
    }

    #[test]
    fn nodes_of_a_lower_priority_wait_until_none_of_a_higher_one_has_a_weight() {
        let of = |nodes: [(i64, i64); 3]| -> Vec<u32> {
            let node = |(priority, weight)| {
                format!(r#"{{"host":"10.0.0.5","port":1,"weight":{weight},"priority":{priority}}}"#)
            };
            let found = read(&format!(r#"{{"nodes":[{}]}}"#, nodes.map(node).join(","))).unwrap();
            found.into_iter().map(|found| found.into_node().weight).collect()
        };
        assert_eq!(of([(0, 3), (-1, 5), (0, 1)]), [3, 0, 1]);
        assert_eq!(of([(0, 0), (-1, 5), (-2, 1)]), [0, 5, 0]);
        assert_eq!(of([(0, 0), (-1, 0), (-2, 0)]), [0, 0, 0]);
        let found = read(r#"{"nodes":[{"host":"10.0.0.5","port":1,"weight":1,"priority":-1}]}"#).unwrap();
        assert_eq!(found[0].node().unwrap().metadata["priority"], "-1");
    }

    #[test]
    fn a_node_is_registered_beside_the_upstream_that_it_is_to_be_in() {
        let (key, value) =
            encoded(Apisix, "/apisix/upstreams/", "orders", "host-a", &Node { weight: 0, ..full_node() });
        assert_eq!(key, "/waypost/apisix/apisix/upstreams/orders/nodes/host-a");
        assert!(value.starts_with(r#"{"address":"10.0.0.5","port":8080,"weight":0,"#), "{value}");
        for id in ["a:b", "a~", &"x".repeat(65)] {
            let refused = try_encode(Apisix, "/apisix/upstreams/", id, "host-a", &full_node());
            assert_eq!(refused, Err(EncodeError::UpstreamId(id.to_owned())));
        }
    }

    #[test]
    fn what_is_no_list_of_nodes_is_refused() {
        for value in [
            "",
            "{}",
            r#"{"nodes":7}"#,
            r#"{"nodes":["10.0.0.5:80"]}"#,
            r#"{"nodes":{"10.0.0.5:80":"1"}}"#,
            r#"{"nodes":{"10.0.0.5:80":-1}}"#,
            r#"{"nodes":{"10.0.0.5:0":1}}"#,
            r#"{"nodes":{"::1:80":1}}"#,
            r#"{"nodes":{"a b:80":1}}"#,
            r#"{"nodes":[{"host":"10.0.0.5","port":80}]}"#,
            r#"{"nodes":[{"host":"10.0.0.5","port":70000,"weight":1}]}"#,
            r#"{"nodes":[{"port":80,"weight":1}]}"#,
            r#"{"scheme":"https","nodes":{"10.0.0.5:443":1}}"#,
        ] {
            assert!(matches!(read(value), Err(error) if !matches!(error, DecodeError::NoNode(_))), "{value}");
        }
        for (key, value) in
            [("", "init_dir"), ("orders", r#"{"type":"roundrobin","service_name":"o","discovery_type":"dns"}"#)]
        {
            let read = Apisix.decode(
                "/apisix/upstreams/",
                &format!("/apisix/upstreams/{key}"),
                value.as_bytes(),
                Protocol::Http1,
            );
            assert!(matches!(read, Err(DecodeError::NoNode(_))), "{key}");
        }
        assert!(decode("a/b", br#"{"nodes":{}}"#, Protocol::Http1).is_err());
    }
}
