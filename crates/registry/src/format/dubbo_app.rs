//! `dubbo-app`: `/services/<application>/<host>:<port>` and JSON with the names of dubbo-go's fields.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use waypost_catalog::{Health, Node, Protocol, ServiceName};

use super::{
    DecodeError, EncodeError, Endpoint, Found, dubbo,
    foreign::{Labels, VERSION, ZONE, labels_with_version, read, take, weight_or, write},
    parse_host, parse_port,
};

/// In the metadata: the ports of an application that speaks several protocols, as JSON in a text.
const ENDPOINTS: &str = "dubbo.endpoints";
/// In the metadata: which interfaces the application offers. Consumers pass over one of revision 0, which offers none;
/// any other they would ask for its description, and give up the whole list if they do not get it.
const REVISION: (&str, &str) = ("dubbo.metadata.revision", "0");
const STORAGE: (&str, &str) = ("dubbo.metadata.storage-type", "local");

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Incoming {
    host: Option<String>,
    port: Option<i64>,
    weight: Option<i64>,
    enable: Option<bool>,
    healthy: Option<bool>,
    metadata: Option<Labels>,
    tag: Option<String>,
}

#[derive(Deserialize)]
struct ListedEndpoint {
    port: Option<i64>,
    protocol: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Outgoing<'a> {
    #[serde(rename = "ID")]
    id: String,
    service_name: &'a str,
    host: String,
    port: u16,
    weight: u32,
    enable: bool,
    healthy: bool,
    metadata: BTreeMap<&'a str, &'a str>,
    service_metadata: Option<()>,
    address: String,
    group_name: &'static str,
    tag: &'a str,
}

pub(super) fn decode(rest: &str, value: &[u8], protocol: Protocol) -> Result<Found, DecodeError> {
    let incoming: Incoming = read(value)?;
    let host = parse_host(&incoming.host.ok_or(DecodeError::Missing("Host"))?)?;
    let mut metadata = incoming.metadata.unwrap_or_default();
    let port = match endpoints(&metadata) {
        Some(endpoints) => fitting_port(&endpoints, protocol)?,
        None => incoming.port,
    };
    let endpoint = Endpoint { host, port: parse_port(port, "Port (1 to 65535)")? };
    let (zone, version) = (take(&mut metadata, ZONE), take(&mut metadata, VERSION));
    Ok(Found::plain(endpoint, rest, protocol).with(|node| Node {
        weight: match incoming.enable {
            Some(false) => 0,
            _ => weight_or(dubbo::DEFAULT_WEIGHT, incoming.weight),
        },
        health: match incoming.healthy {
            Some(false) => Health::Critical,
            _ => Health::Passing,
        },
        zone,
        version,
        tags: incoming.tag.into_iter().filter(|tag| !tag.is_empty()).collect(),
        metadata,
        ..node
    }))
}

/// The endpoints that the metadata list, if they do.
fn endpoints(metadata: &Labels) -> Option<Vec<ListedEndpoint>> {
    let endpoints: Vec<ListedEndpoint> = serde_json::from_str(metadata.get(ENDPOINTS)?).ok()?;
    Some(endpoints).filter(|endpoints| !endpoints.is_empty())
}

/// The port of the protocol that fits best.
fn fitting_port(endpoints: &[ListedEndpoint], protocol: Protocol) -> Result<Option<i64>, DecodeError> {
    let of = |scheme: &&str| endpoints.iter().find(|endpoint| endpoint.protocol.as_deref() == Some(*scheme));
    match dubbo::schemes(protocol).iter().find_map(of) {
        Some(endpoint) => Ok(endpoint.port),
        None => {
            let found: Vec<&str> = endpoints.iter().filter_map(|endpoint| endpoint.protocol.as_deref()).collect();
            let found = found.join(" ").chars().take(160).collect();
            Err(DecodeError::NoEndpoint { wanted: dubbo::WRITTEN, protocol: protocol.as_str(), found })
        }
    }
}

pub(super) fn encode(service: &ServiceName, node: &Node) -> Result<Vec<u8>, EncodeError> {
    let mut metadata = BTreeMap::from([REVISION, STORAGE]);
    metadata.extend(labels_with_version(node));
    write(&Outgoing {
        id: node.address.to_string(),
        service_name: service,
        host: node.address.ip().to_string(),
        port: node.address.port(),
        weight: node.weight,
        enable: true,
        healthy: true,
        metadata,
        service_metadata: None,
        address: node.address.to_string(),
        group_name: "",
        tag: node.tags.first().map_or("", String::as_str),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::format::Format::DubboApp;

    fn read_for(protocol: Protocol, value: &str) -> Result<Node, DecodeError> {
        let key = "/services/user-app/10.0.0.5:20000";
        DubboApp.decode("/services/", key, value.as_bytes(), protocol).map(one).map(|(service, node)| {
            assert_eq!(&*service, "user-app");
            node
        })
    }

    fn read(value: &str) -> Result<Node, DecodeError> {
        read_for(Protocol::Http1, value)
    }

    #[test]
    fn what_dubbo_go_writes_is_read() {
        let node = read(r#"{"ID":"10.0.0.5:20000","ServiceName":"user-app","Host":"10.0.0.5","Port":20000,"Weight":0,"Enable":true,"Healthy":true,"Metadata":{"dubbo.metadata.revision":"123"},"ServiceMetadata":{"app":"user-app","services":{}},"Address":"","GroupName":"","Tag":"gray"}"#).unwrap();
        assert_eq!(
            (node.address.to_string().as_str(), node.weight, node.health),
            ("10.0.0.5:20000", 100, Health::Passing)
        );
        assert_eq!((&*node.id, node.tags[0].as_str()), ("10.0.0.5:20000", "gray"));
        assert_eq!(node.metadata["dubbo.metadata.revision"], "123");
        let weighted = read(r#"{"Host":"10.0.0.5","Port":20000,"Weight":7,"Metadata":{}}"#).unwrap();
        assert_eq!((weighted.weight, weighted.is_pickable()), (7, true));
    }

    #[test]
    fn a_disabled_or_unhealthy_instance_gets_no_request() {
        let disabled = read(r#"{"Host":"10.0.0.5","Port":20000,"Enable":false,"Healthy":true}"#).unwrap();
        assert_eq!((disabled.weight, disabled.health), (0, Health::Passing));
        let unhealthy = read(r#"{"Host":"10.0.0.5","Port":20000,"Enable":true,"Healthy":false}"#).unwrap();
        assert_eq!((unhealthy.weight, unhealthy.health), (100, Health::Critical));
    }

    #[test]
    fn of_several_protocols_the_port_of_the_one_that_fits_counts() {
        let value = |endpoints: &str| {
            let endpoints = serde_json::Value::from(endpoints);
            format!(r#"{{"Host":"10.0.0.5","Port":20000,"Metadata":{{"dubbo.endpoints":{endpoints}}}}}"#)
        };
        let all =
            r#"[{"port":20000,"protocol":"dubbo"},{"port":20001,"protocol":"tri"},{"port":20002,"protocol":"rest"}]"#;
        let port = |protocol, endpoints| read_for(protocol, &value(endpoints)).unwrap().address.port();
        assert_eq!((port(Protocol::Http2, all), port(Protocol::Http1, all)), (20001, 20002));
        assert_eq!(port(Protocol::Http1, r#"[{"port":20001,"protocol":"tri"}]"#), 20001);
        assert_eq!((port(Protocol::Http1, "[]"), port(Protocol::Http1, "?")), (20000, 20000));
        let error = read(&value(r#"[{"port":20000,"protocol":"dubbo"}]"#)).unwrap_err();
        assert_eq!(error.to_string(), "no tri:// endpoint, which protocol http1 needs, among \"dubbo\"");
        assert!(read(&value(r#"[{"port":70000,"protocol":"tri"}]"#)).is_err());
    }

    #[test]
    fn what_no_request_can_be_sent_to_is_refused() {
        for value in [
            "",
            "{}",
            r#"{"Host":"10.0.0.5"}"#,
            r#"{"Host":"10.0.0.5","Port":0}"#,
            r#"{"Host":"10.0.0.5","Port":-1}"#,
            r#"{"Host":"user local","Port":20000}"#,
            r#"{"Host":"10.0.0.5","Port":20000,"Enable":"yes"}"#,
        ] {
            assert!(read(value).is_err(), "{value}");
        }
    }

    #[test]
    fn what_is_written_is_what_dubbo_go_writes_of_an_application_that_offers_no_interface() {
        let (key, value) = encode_full(DubboApp, "user-app");
        assert_eq!(key, "/services/user-app/10.0.0.5:8080");
        assert_eq!(
            value,
            r#"{"ID":"10.0.0.5:8080","ServiceName":"user-app","Host":"10.0.0.5","Port":8080,"Weight":2,"Enable":true,"Healthy":true,"Metadata":{"dubbo.metadata.revision":"0","dubbo.metadata.storage-type":"local","k":"v","version":"1.4","zone":"a"},"ServiceMetadata":null,"Address":"10.0.0.5:8080","GroupName":"","Tag":"x"}"#
        );
        let revision = [("dubbo.metadata.revision".to_owned(), "77".to_owned())].into();
        let (_, value) = encoded(DubboApp, "/services/", "a", "i", &Node { metadata: revision, ..node("10.0.0.5:80") });
        assert!(value.contains(r#""dubbo.metadata.revision":"77""#), "{value}");
    }
}
