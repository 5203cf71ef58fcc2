//! `go-micro`: `/micro/registry/<service>/<node id>` and JSON that holds the service with that node.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use waypost_catalog::{Node, Protocol, ServiceName};

use super::{
    DecodeError, EncodeError, Endpoint, Found,
    foreign::{Labels, ZONE, labels_of, read, take, write},
};

const PROTOCOL: &str = "protocol";
/// What a go-micro service is of that says no version.
const DEFAULT_VERSION: &str = "latest";

#[derive(Deserialize)]
struct Incoming {
    version: Option<String>,
    nodes: Option<Vec<IncomingNode>>,
}

#[derive(Deserialize)]
struct IncomingNode {
    id: Option<String>,
    address: Option<String>,
    metadata: Option<Labels>,
}

#[derive(Serialize)]
struct Outgoing<'a> {
    name: &'a str,
    version: &'a str,
    metadata: Option<()>,
    endpoints: [(); 0],
    nodes: [OutgoingNode<'a>; 1],
}

#[derive(Serialize)]
struct OutgoingNode<'a> {
    id: &'a str,
    address: String,
    metadata: BTreeMap<&'a str, &'a str>,
}

pub(super) fn decode(rest: &str, value: &[u8], protocol: Protocol) -> Result<Found, DecodeError> {
    let Incoming { version, nodes } = read(value)?;
    let mut nodes = nodes.unwrap_or_default();
    // One registration is one node. Of several, the key's id tells which it is about; `/` is written as `-` there.
    let named = |node: &IncomingNode| node.id.as_ref().is_some_and(|id| id.replace('/', "-") == rest);
    let chosen = if nodes.len() == 1 { nodes.pop() } else { nodes.into_iter().find(named) };
    let node = chosen.ok_or(DecodeError::Missing("node of the key's id"))?;
    let endpoint = Endpoint::parse(&node.address.ok_or(DecodeError::Missing("address"))?)?;
    let mut metadata = node.metadata.unwrap_or_default();
    let zone = take(&mut metadata, ZONE);
    let protocol = match metadata.get(PROTOCOL).map(String::as_str) {
        Some("grpc") => Protocol::Http2,
        Some("http") => Protocol::Http1,
        _ => protocol,
    };
    let version = version.unwrap_or_default();
    Ok(Found::plain(endpoint, rest, protocol).with(|node| Node { zone, version, metadata, ..node }))
}

pub(super) fn encode(service: &ServiceName, instance: &str, node: &Node) -> Result<Vec<u8>, EncodeError> {
    let mut metadata = labels_of(node);
    let protocol = match node.protocol {
        Protocol::Http1 => "http",
        Protocol::Http2 => "grpc",
    };
    metadata.insert(PROTOCOL, protocol);
    write(&Outgoing {
        name: service,
        version: if node.version.is_empty() { DEFAULT_VERSION } else { &node.version },
        metadata: None,
        endpoints: [],
        nodes: [OutgoingNode { id: instance, address: node.address.to_string(), metadata }],
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::format::Format::GoMicro;

    fn read(value: &str) -> Result<Node, DecodeError> {
        decode_at(GoMicro, "/micro/registry/", "/micro/registry/greeter/greeter-1", value).map(|(_, node)| node)
    }

    #[test]
    fn the_one_node_of_a_value_is_read() {
        let node = read(r#"{"name":"greeter","version":"latest","metadata":null,"endpoints":[],"nodes":[{"id":"greeter-1","address":"10.0.0.5:8080","metadata":{"protocol":"grpc","broker":"http","zone":"a"}}]}"#).unwrap();
        assert_eq!((node.address.to_string().as_str(), node.protocol), ("10.0.0.5:8080", Protocol::Http2));
        assert_eq!((&*node.id, &*node.version, &*node.zone, node.weight), ("greeter-1", "latest", "a", 1));
        assert_eq!(node.metadata["broker"], "http");
        let protocol = |protocol: &str| {
            let node = format!(r#"{{"address":"10.0.0.5:8080","metadata":{{"protocol":"{protocol}"}}}}"#);
            read(&format!(r#"{{"name":"greeter","nodes":[{node}]}}"#)).unwrap().protocol
        };
        assert_eq!((protocol("http"), protocol("mucp")), (Protocol::Http1, Protocol::Http1));
    }

    #[test]
    fn of_several_nodes_the_one_of_the_key_counts() {
        let node = |id: &str, port: u16| format!(r#"{{"id":"{id}","address":"10.0.0.5:{port}"}}"#);
        let value = |nodes: [String; 2]| format!(r#"{{"name":"greeter","nodes":[{}]}}"#, nodes.join(","));
        let read_one = read(&value([node("other", 1), node("greeter/1", 2)])).unwrap();
        assert_eq!(read_one.address.port(), 2);
        let neither = read(&value([node("x", 1), node("y", 2)])).unwrap_err();
        assert_eq!(neither.to_string(), "the value says no node of the key's id");
    }

    #[test]
    fn a_value_without_a_node_that_can_be_reached_is_refused() {
        for value in [
            r#"{"name":"greeter"}"#,
            r#"{"name":"greeter","nodes":[]}"#,
            r#"{"name":"greeter","nodes":[null]}"#,
            r#"{"name":"greeter","nodes":[{"id":"greeter-1"}]}"#,
            r#"{"name":"greeter","nodes":[{"id":"greeter-1","address":"h 1:80"}]}"#,
            r#"{"name":"greeter","nodes":[{"id":"greeter-1","address":"10.0.0.5"}]}"#,
        ] {
            assert!(read(value).is_err(), "{value}");
        }
    }

    #[test]
    fn what_is_written_is_what_go_micro_would_write() {
        let (key, value) = encode_full(GoMicro, "greeter");
        assert_eq!(key, "/micro/registry/greeter/host-a-8080");
        assert_eq!(
            value,
            r#"{"name":"greeter","version":"1.4","metadata":null,"endpoints":[],"nodes":[{"id":"host-a-8080","address":"10.0.0.5:8080","metadata":{"k":"v","protocol":"grpc","zone":"a"}}]}"#
        );
        let (_, value) = encoded(GoMicro, "/micro/registry/", "greeter", "i", &node("10.0.0.5:80"));
        assert!(value.contains(r#""version":"latest""#) && value.contains(r#""protocol":"http""#), "{value}");
    }
}
