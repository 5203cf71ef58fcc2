//! `kitex` and `hertz`: `<framework>/registry-etcd/<service>/<ip:port>` and JSON with address, weight and tags.

use std::{collections::BTreeMap, net::Ipv6Addr};

use serde::{Deserialize, Serialize};
use waypost_catalog::{Node, Protocol};

use super::{
    DecodeError, EncodeError, Endpoint, Found,
    foreign::{Labels, VERSION, ZONE, labels_with_version, or_null, read, take, weight_or, write},
};

/// What both take for a node whose weight is missing or not above 0.
pub(super) const DEFAULT_WEIGHT: u32 = 10;

#[derive(Deserialize)]
struct Incoming {
    address: Option<String>,
    weight: Option<i64>,
    tags: Option<Labels>,
}

#[derive(Serialize)]
struct Outgoing<'a> {
    network: &'static str,
    address: String,
    weight: u32,
    tags: Option<BTreeMap<&'a str, &'a str>>,
}

pub(super) fn decode(rest: &str, value: &[u8], protocol: Protocol) -> Result<Found, DecodeError> {
    let incoming: Incoming = read(value)?;
    let endpoint = parse_endpoint(&incoming.address.ok_or(DecodeError::Missing("address"))?)?;
    let mut metadata = incoming.tags.unwrap_or_default();
    let (zone, version) = (take(&mut metadata, ZONE), take(&mut metadata, VERSION));
    let weight = weight_or(DEFAULT_WEIGHT, incoming.weight);
    Ok(Found::plain(endpoint, rest, protocol).with(|node| Node { weight, zone, version, metadata, ..node }))
}

/// Kitex writes IPv6 addresses without brackets.
fn parse_endpoint(text: &str) -> Result<Endpoint, DecodeError> {
    let bare = text.rsplit_once(':').filter(|(ip, _)| ip.parse::<Ipv6Addr>().is_ok());
    match bare {
        Some((ip, port)) => Endpoint::parse(&format!("[{ip}]:{port}")),
        None => Endpoint::parse(text),
    }
}

pub(super) fn encode(node: &Node) -> Result<Vec<u8>, EncodeError> {
    write(&Outgoing {
        network: "tcp",
        address: node.address.to_string(),
        weight: node.weight,
        tags: or_null(labels_with_version(node)),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::format::Format::{Hertz, Kitex};

    fn read(value: &str) -> Result<Node, DecodeError> {
        let key = "kitex/registry-etcd/orders/10.0.0.5:8888";
        decode_at(Kitex, "kitex/registry-etcd/", key, value).map(|(service, node)| {
            assert_eq!(&*service, "orders");
            node
        })
    }

    #[test]
    fn what_kitex_and_hertz_write_is_read() {
        let value = r#"{"network":"tcp","address":"10.0.0.5:8888","weight":30,"tags":{"zone":"a","cluster":"blue"}}"#;
        let kitex = read(value).unwrap();
        assert_eq!((kitex.address.to_string().as_str(), kitex.weight, &*kitex.zone), ("10.0.0.5:8888", 30, "a"));
        assert_eq!((&*kitex.metadata["cluster"], &*kitex.id), ("blue", "10.0.0.5:8888"));
        let key = "hertz/registry-etcd/orders/10.0.0.5:8888";
        let (service, hertz) = decode_at(Hertz, "hertz/registry-etcd/", key, value).unwrap();
        assert_eq!((&*service, hertz), ("orders", kitex));
        let bare = read(r#"{"network":"tcp","address":"fd00::5:8888","weight":10,"tags":null}"#).unwrap();
        assert_eq!(bare.address.to_string(), "[fd00::5]:8888");
    }

    #[test]
    fn a_weight_that_is_missing_or_not_above_0_is_10() {
        let weight = |weight: &str| read(&format!(r#"{{"address":"10.0.0.5:8888"{weight}}}"#)).unwrap().weight;
        assert_eq!((weight(""), weight(r#","weight":0"#), weight(r#","weight":-1"#)), (10, 10, 10));
        assert_eq!((weight(r#","weight":1"#), weight(r#","weight":4294967296"#)), (1, u32::MAX));
    }

    #[test]
    fn what_is_no_address_of_a_host_is_refused() {
        for value in [
            "{}",
            "10.0.0.5:8888",
            r#"{"network":"unix","address":"/run/orders.sock"}"#,
            r#"{"address":"10.0.0.5:8888","weight":"10"}"#,
            r#"{"address":"::8888"}"#,
            r#"{"address":"10.0.0.5:8888","tags":["a"]}"#,
        ] {
            assert!(read(value).is_err(), "{value}");
        }
    }

    #[test]
    fn what_is_written_is_what_they_would_write() {
        let (key, value) = encode_full(Kitex, "orders");
        assert_eq!(key, "kitex/registry-etcd/orders/10.0.0.5:8080");
        assert_eq!(
            value,
            r#"{"network":"tcp","address":"10.0.0.5:8080","weight":2,"tags":{"k":"v","version":"1.4","zone":"a"}}"#
        );
        let (key, value) = encoded(Hertz, "hertz/registry-etcd/", "orders", "i", &node("10.0.0.5:8888"));
        assert_eq!(key, "hertz/registry-etcd/orders/10.0.0.5:8888");
        assert_eq!(value, r#"{"network":"tcp","address":"10.0.0.5:8888","weight":1,"tags":null}"#);
    }
}
