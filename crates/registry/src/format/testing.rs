//! What the tests of the formats share.

use std::{
    collections::BTreeMap,
    time::{Duration, UNIX_EPOCH},
};

use waypost_catalog::{Health, Node, Protocol, ServiceName};

use super::{DecodeError, EncodeError, Format, Found, Timestamps};

/// The one node of a key; at port of `0.0.0.0` if its host has a name.
pub(super) fn one((service, found): (ServiceName, Vec<Found>)) -> (ServiceName, Node) {
    assert_eq!(found.len(), 1);
    (service, found.into_iter().next().unwrap().into_node())
}

/// Reads a key with one node as on a watch for HTTP/1.1.
pub(super) fn decode_at(
    format: Format,
    prefix: &str,
    key: &str,
    value: &str,
) -> Result<(ServiceName, Node), DecodeError> {
    format.decode(prefix, key, value.as_bytes(), Protocol::Http1).map(one)
}

pub(super) fn try_encode(
    format: Format,
    root: &str,
    service: &str,
    instance: &str,
    node: &Node,
) -> Result<(String, Vec<u8>), EncodeError> {
    let times = Timestamps {
        registered_at: UNIX_EPOCH + Duration::from_secs(1_772_366_400),
        updated_at: UNIX_EPOCH + Duration::from_secs(1_772_366_461),
    };
    format.encode(root, &ServiceName::new(service).unwrap(), instance, node, times)
}

pub(super) fn encoded(format: Format, root: &str, service: &str, instance: &str, node: &Node) -> (String, String) {
    let (key, value) = try_encode(format, root, service, instance, node).unwrap();
    (key, String::from_utf8(value).unwrap())
}

/// Writes a node that has everything, under the format's own root.
pub(super) fn encode_full(format: Format, service: &str) -> (String, String) {
    encoded(format, format.default_root().unwrap(), service, "host-a-8080", &full_node())
}

pub(super) fn node(address: &str) -> Node {
    Node::at(address.parse().unwrap())
}

pub(super) fn full_node() -> Node {
    Node {
        address: "10.0.0.5:8080".parse().unwrap(),
        weight: 2,
        health: Health::Draining,
        protocol: Protocol::Http2,
        id: "host-a-8080".into(),
        zone: "a".into(),
        version: "1.4".into(),
        tags: vec!["x".into(), "y".into()],
        metadata: BTreeMap::from([("k".into(), "v".into())]),
        ..node("10.0.0.5:8080")
    }
}
