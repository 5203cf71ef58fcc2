//! `grpc-naming`: `<target>/<anything>` and JSON with `Addr`, as etcd's own Go client registers gRPC servers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use waypost_catalog::{Node, Protocol};

use super::{
    DecodeError, EncodeError, Endpoint, Found,
    foreign::{Labels, VERSION, ZONE, labels_with_version, or_null, read, take, text, write},
};

/// `Op` is not read: etcd's client does not either, a key that is there is an endpoint.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Incoming {
    addr: Option<String>,
    metadata: Option<Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Outgoing<'a> {
    op: u8,
    addr: String,
    metadata: Option<BTreeMap<&'a str, &'a str>>,
}

pub(super) fn decode(rest: &str, value: &[u8], protocol: Protocol) -> Result<Found, DecodeError> {
    let incoming: Incoming = read(value)?;
    let address = incoming.addr.filter(|addr| !addr.is_empty()).ok_or(DecodeError::Missing("Addr"))?;
    let mut metadata = match incoming.metadata {
        Some(Value::Object(fields)) => fields.into_iter().map(|(name, value)| (name, text(value))).collect(),
        _ => Labels::new(),
    };
    let (zone, version) = (take(&mut metadata, ZONE), take(&mut metadata, VERSION));
    let found = Found::plain(Endpoint::parse(&address)?, rest, protocol);
    Ok(found.with(|node| Node { zone, version, metadata, ..node }))
}

pub(super) fn encode(node: &Node) -> Result<Vec<u8>, EncodeError> {
    write(&Outgoing { op: 0, addr: node.address.to_string(), metadata: or_null(labels_with_version(node)) })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use crate::format::Format::GrpcNaming;

    #[test]
    fn an_endpoint_is_read_below_its_target_or_below_the_targets_parent() {
        let value = r#"{"Op":0,"Addr":"10.0.0.5:9000","Metadata":null}"#;
        for (prefix, key, id) in [
            ("grpc/", "grpc/orders/e1", "e1"),
            ("grpc/orders/", "grpc/orders/e1", "e1"),
            ("orders/", "orders/10.0.0.5:9000", "10.0.0.5:9000"),
            ("grpc/", "grpc/orders/a/b", "a/b"),
        ] {
            let (service, node) = decode_at(GrpcNaming, prefix, key, value).unwrap();
            assert_eq!((&*service, &*node.id, node.address.port()), ("orders", id, 9000));
        }
    }

    #[test]
    fn metadata_may_be_anything() {
        let metadata = |metadata: &str| {
            let value = format!(r#"{{"Op":0,"Addr":"10.0.0.5:9000","Metadata":{metadata}}}"#);
            decode_at(GrpcNaming, "grpc/", "grpc/orders/e1", &value).unwrap().1
        };
        let node = metadata(r#"{"zone":"a","version":"1.4","shard":7}"#);
        assert_eq!((&*node.zone, &*node.version, &*node.metadata["shard"]), ("a", "1.4", "7"));
        for other in ["null", "7", "\"text\"", "[1]"] {
            assert!(metadata(other).metadata.is_empty());
        }
    }

    #[test]
    fn a_value_without_an_address_of_a_host_is_refused() {
        for value in ["", "{}", r#"{"Addr":""}"#, r#"{"Addr":"orders"}"#, r#"{"Addr":7}"#, "10.0.0.5:9000"] {
            assert!(decode_at(GrpcNaming, "grpc/", "grpc/orders/e1", value).is_err(), "{value}");
        }
    }

    #[test]
    fn what_is_written_is_what_etcds_client_would_write() {
        let (key, value) = encoded(GrpcNaming, "grpc/", "orders", "e1", &node("10.0.0.5:9000"));
        assert_eq!(
            (key.as_str(), value.as_str()),
            ("grpc/orders/e1", r#"{"Op":0,"Addr":"10.0.0.5:9000","Metadata":null}"#)
        );
        let (_, value) = encoded(GrpcNaming, "grpc/", "orders", "e1", &full_node());
        assert_eq!(value, r#"{"Op":0,"Addr":"10.0.0.5:8080","Metadata":{"k":"v","version":"1.4","zone":"a"}}"#);
    }
}
