//! `kratos`: `<namespace>/<name>/<id>` and JSON that lists an endpoint per scheme.

use serde::{Deserialize, Serialize};
use waypost_catalog::{Node, Protocol, ServiceName};

use super::{
    DecodeError, EncodeError, Endpoint, Found,
    foreign::{Labels, ZONE, labels_of, or_null, read, take, weight_as_it_is, write},
};

/// What a client takes for a node that says no weight, or none that is a number.
pub(super) const DEFAULT_WEIGHT: u32 = 100;
const WEIGHT: &str = "weight";

#[derive(Deserialize)]
struct Incoming {
    name: Option<String>,
    version: Option<String>,
    metadata: Option<Labels>,
    endpoints: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Outgoing<'a> {
    id: &'a str,
    name: &'a str,
    version: &'a str,
    metadata: Option<std::collections::BTreeMap<&'a str, &'a str>>,
    endpoints: [String; 1],
}

pub(super) fn decode(
    service: &ServiceName,
    rest: &str,
    value: &[u8],
    protocol: Protocol,
) -> Result<Found, DecodeError> {
    let incoming: Incoming = read(value)?;
    let name = incoming.name.unwrap_or_default();
    if name != service.as_str() {
        // Kratos's clients ask for all keys that begin with the name and pass over the others' in the same way.
        return Err(DecodeError::OtherService(name.chars().take(80).collect()));
    }
    let endpoints = incoming.endpoints.unwrap_or_default();
    let wanted = scheme(protocol);
    let Some(endpoint) = endpoints.iter().find_map(|endpoint| authority(endpoint, wanted)) else {
        let found = endpoints.join(" ").chars().take(160).collect();
        return Err(DecodeError::NoEndpoint { wanted, protocol: protocol.as_str(), found });
    };
    let mut metadata = incoming.metadata.unwrap_or_default();
    let weight = take(&mut metadata, WEIGHT).parse().map_or(DEFAULT_WEIGHT, weight_as_it_is);
    let zone = take(&mut metadata, ZONE);
    let version = incoming.version.unwrap_or_default();
    let found = Found::plain(Endpoint::parse(endpoint)?, rest, protocol);
    Ok(found.with(|node| Node { weight, zone, version, metadata, ..node }))
}

pub(super) fn encode(service: &ServiceName, instance: &str, node: &Node) -> Result<Vec<u8>, EncodeError> {
    let weight = node.weight.to_string();
    let mut metadata = labels_of(node);
    metadata.remove(WEIGHT);
    if node.weight != DEFAULT_WEIGHT {
        metadata.insert(WEIGHT, &weight);
    }
    write(&Outgoing {
        id: instance,
        name: service,
        version: &node.version,
        metadata: or_null(metadata),
        endpoints: [format!("{}://{}", scheme(node.protocol), node.address)],
    })
}

/// The scheme of endpoints that speak a protocol, without TLS.
const fn scheme(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http1 => "http",
        Protocol::Http2 => "grpc",
    }
}

/// Host and port of an endpoint, if it has this scheme and no TLS.
fn authority<'a>(endpoint: &'a str, wanted: &str) -> Option<&'a str> {
    let (scheme, rest) = endpoint.split_once("://")?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    // How the first versions of Kratos said what is `https` and `grpcs` now.
    let secure = query.split('&').any(|pair| pair == "isSecure=true");
    let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
    (scheme.eq_ignore_ascii_case(wanted) && !secure).then_some(authority)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::format::Format::Kratos;

    const VALUE: &str = r#"{"id":"h1","name":"helloworld","version":"v1","metadata":{"weight":"30","zone":"a","env":"test"},"endpoints":["grpc://10.0.0.5:9000?isSecure=false","http://10.0.0.5:8000"]}"#;

    fn read(value: &str, protocol: Protocol) -> Result<Node, DecodeError> {
        let key = "/microservices/helloworld/h1";
        Kratos.decode("/microservices/", key, value.as_bytes(), protocol).map(one).map(|(service, node)| {
            assert_eq!(&*service, "helloworld");
            node
        })
    }

    #[test]
    fn the_endpoint_that_fits_the_protocol_is_the_node() {
        let node = read(VALUE, Protocol::Http2).unwrap();
        assert_eq!((node.address.to_string().as_str(), node.protocol), ("10.0.0.5:9000", Protocol::Http2));
        assert_eq!((node.weight, &*node.zone, &*node.version, &*node.id), (30, "a", "v1", "h1"));
        assert_eq!(node.metadata, [("env".to_owned(), "test".to_owned())].into());
        let node = read(VALUE, Protocol::Http1).unwrap();
        assert_eq!((node.address.to_string().as_str(), node.protocol), ("10.0.0.5:8000", Protocol::Http1));
    }

    #[test]
    fn a_value_without_an_endpoint_that_fits_says_so() {
        for endpoints in [
            r#"["http://10.0.0.5:8000"]"#,
            r#"["grpcs://10.0.0.5:9000"]"#,
            r#"["grpc://10.0.0.5:9000?isSecure=true"]"#,
            r#"["10.0.0.5:9000"]"#,
            "[]",
            "null",
        ] {
            let value = format!(r#"{{"id":"h1","name":"helloworld","endpoints":{endpoints}}}"#);
            let error = read(&value, Protocol::Http2).unwrap_err();
            assert!(matches!(error, DecodeError::NoEndpoint { wanted: "grpc", .. }), "{endpoints}: {error}");
        }
        let error = read(r#"{"name":"helloworld","endpoints":["http://[::1]:1"]}"#, Protocol::Http2).unwrap_err();
        assert_eq!(error.to_string(), "no grpc:// endpoint, which protocol http2 needs, among \"http://[::1]:1\"");
    }

    #[test]
    fn a_weight_is_what_the_clients_would_take_it_for() {
        let weight = |metadata: &str| {
            let value = format!(r#"{{"name":"helloworld","metadata":{metadata},"endpoints":["http://10.0.0.5:80"]}}"#);
            read(&value, Protocol::Http1).unwrap().weight
        };
        assert_eq!(weight("null"), 100);
        assert_eq!(weight(r#"{"weight":"heavy"}"#), 100);
        assert_eq!(weight(r#"{"weight":"7"}"#), 7);
        assert_eq!(weight(r#"{"weight":"0"}"#), 0);
        assert_eq!(weight(r#"{"weight":"-3"}"#), 0);
        assert_eq!(weight(r#"{"weight":"9999999999"}"#), u32::MAX);
    }

    #[test]
    fn another_services_value_and_what_is_no_endpoint_are_refused() {
        let other = read(r#"{"name":"hello","endpoints":["http://10.0.0.5:80"]}"#, Protocol::Http1).unwrap_err();
        assert_eq!(other.to_string(), "the value is that of service \"hello\", the key another's");
        let error = read(r#"{"name":"helloworld","endpoints":["http://h1"]}"#, Protocol::Http1).unwrap_err();
        assert!(error.to_string().contains("form host:port"), "{error}");
        assert!(read(r#"{"name":"helloworld","endpoints":"http://10.0.0.5:80"}"#, Protocol::Http1).is_err());
    }

    #[test]
    fn what_is_written_is_what_kratos_would_write() {
        let (key, value) = encode_full(Kratos, "helloworld");
        assert_eq!(key, "/microservices/helloworld/host-a-8080");
        assert_eq!(
            value,
            r#"{"id":"host-a-8080","name":"helloworld","version":"1.4","metadata":{"k":"v","weight":"2","zone":"a"},"endpoints":["grpc://10.0.0.5:8080"]}"#
        );
        let plain = Node { weight: 100, ..node("[::1]:80") };
        let (_, value) = encoded(Kratos, "/microservices/", "helloworld", "h1", &plain);
        assert_eq!(
            value,
            r#"{"id":"h1","name":"helloworld","version":"","metadata":null,"endpoints":["http://[::1]:80"]}"#
        );
    }
}
