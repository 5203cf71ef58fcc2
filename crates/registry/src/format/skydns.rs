//! `skydns`: `/skydns/<the name's labels, last first>/<id>` and JSON with host and port, which CoreDNS answers from.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use waypost_catalog::{Node, Protocol, ServiceName};

use super::{
    DecodeError, EncodeError, Endpoint, Found,
    foreign::{read, weight_or, write},
    parse_host, parse_port,
};

pub(super) const SHAPE: &str = "<prefix><labels of the name, last first>/<id>";
/// What CoreDNS takes for a weight of 0, and for none.
pub(super) const DEFAULT_WEIGHT: u32 = 100;
/// How long resolvers may remember a record, in seconds. Without it CoreDNS makes one up from the lease's number.
const TTL: u32 = 30;

#[derive(Deserialize)]
struct Incoming {
    host: Option<String>,
    port: Option<i64>,
    priority: Option<i64>,
    weight: Option<i64>,
}

#[derive(Serialize)]
struct Outgoing {
    host: IpAddr,
    port: u16,
    weight: u32,
    ttl: u32,
}

pub(super) fn decode(path: &str, value: &[u8], protocol: Protocol) -> Result<(ServiceName, Found), DecodeError> {
    let shape = || DecodeError::KeyShape { expected: SHAPE };
    let (labels, id) = path.rsplit_once('/').ok_or_else(shape)?;
    let labels: Vec<&str> = labels.rsplit('/').collect();
    if id.is_empty() || labels.iter().any(|label| label.is_empty() || label.contains('.')) {
        return Err(shape());
    }
    let service = ServiceName::new(&labels.join("."))?;
    let incoming: Incoming = read(value)?;
    let host = parse_host(&incoming.host.ok_or(DecodeError::Missing("host"))?)?;
    let endpoint = Endpoint { host, port: parse_port(incoming.port, "port (1 to 65535)")? };
    let weight = weight_or(DEFAULT_WEIGHT, incoming.weight);
    let priority = incoming.priority.map(|priority| ("priority".to_owned(), priority.to_string()));
    let metadata = priority.into_iter().collect();
    Ok((service, Found::plain(endpoint, id, protocol).with(|node| Node { weight, metadata, ..node })))
}

/// The key's part below the root, and the value.
pub(super) fn encode(service: &ServiceName, instance: &str, node: &Node) -> Result<(String, Vec<u8>), EncodeError> {
    let labels: Vec<&str> = service.rsplit('.').collect();
    if labels.iter().any(|label| label.is_empty() || label.len() > 63) {
        return Err(EncodeError::DnsName(service.to_string()));
    }
    let (host, port) = (node.address.ip(), node.address.port());
    let value = write(&Outgoing { host, port, weight: node.weight, ttl: TTL })?;
    // The id is a label of the name that an SRV record points to.
    Ok((format!("{}/{}", labels.join("/"), instance.replace('.', "-")), value))
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::format::Format::SkyDns;

    const VALUE: &str = r#"{"host":"10.0.0.5","port":8080,"priority":10,"weight":30,"ttl":30}"#;

    #[test]
    fn a_service_is_the_name_relative_to_the_prefix() {
        for (prefix, key, service) in [
            ("/skydns/", "/skydns/local/skydns/orders/1", "orders.skydns.local"),
            ("/skydns/local/skydns/", "/skydns/local/skydns/orders/1", "orders"),
            ("/skydns/local/skydns/", "/skydns/local/skydns/east/orders/1", "orders.east"),
        ] {
            let (read, node) = decode_at(SkyDns, prefix, key, VALUE).unwrap();
            assert_eq!((&*read, &*node.id, node.weight), (service, "1", 30));
            assert_eq!((node.address.to_string().as_str(), &*node.metadata["priority"]), ("10.0.0.5:8080", "10"));
        }
    }

    #[test]
    fn a_weight_that_is_missing_or_0_is_100() {
        for weight in ["", r#","weight":0"#, r#","weight":-1"#, r#","weight":null"#] {
            let value = format!(r#"{{"host":"::1","port":80{weight}}}"#);
            assert_eq!(decode_at(SkyDns, "/skydns/", "/skydns/a/1", &value).unwrap().1.weight, 100);
        }
    }

    #[test]
    fn other_records_and_other_keys_are_refused() {
        for value in [
            "",
            r#"{"text":"hello"}"#,
            r#"{"host":"10.0.0.5"}"#,
            r#"{"host":"10.0.0.5","port":0}"#,
            r#"{"host":"10.0.0.5","port":65536}"#,
            r#"{"host":"orders.example.org"}"#,
        ] {
            assert!(decode_at(SkyDns, "/skydns/", "/skydns/local/orders/1", value).is_err(), "{value}");
        }
        for path in ["orders", "orders/", "a//1", "/1", "a.b/1", "a b/1"] {
            assert!(decode_at(SkyDns, "/skydns/", &format!("/skydns/{path}"), VALUE).is_err(), "{path}");
        }
    }

    #[test]
    fn what_is_written_is_an_address_of_that_name() {
        let (key, value) = encoded(SkyDns, "/skydns/local/cluster/", "orders.shop", "host.a-8080", &full_node());
        assert_eq!(key, "/skydns/local/cluster/shop/orders/host-a-8080");
        assert_eq!(value, r#"{"host":"10.0.0.5","port":8080,"weight":2,"ttl":30}"#);
        let refused = |name: &str| try_encode(SkyDns, "/skydns/", name, "i", &full_node()).unwrap_err();
        for name in ["orders..shop", ".orders", "orders.", &"x".repeat(64)] {
            assert!(matches!(refused(name), EncodeError::DnsName(_)), "{name}");
        }
    }
}
