//! Golden values of each format, and hostile ones.

use std::{collections::BTreeMap, net::SocketAddr, time::UNIX_EPOCH};

use crate::host::HostName;
use proptest::prelude::*;

use super::{
    testing::{full_node, one},
    *,
};

const PREFIX: &str = "/waypost/services/";

fn decode(format: Format, path: &str, value: &str) -> Result<(ServiceName, Node), DecodeError> {
    format.decode(PREFIX, &format!("{PREFIX}{path}"), value.as_bytes(), Protocol::Http2).map(one)
}

fn good(format: Format, path: &str, value: &str) -> Node {
    let (service, node) = decode(format, path, value).unwrap();
    assert_eq!(service.as_str(), "orders");
    node
}

fn encode(format: Format, root: &str, node: &Node) -> (String, String) {
    testing::encoded(format, root, "orders", "host-a-8080", node)
}

#[test]
fn waypost_writes_and_reads_every_field() {
    let (key, value) = encode(Format::Waypost, PREFIX, &full_node());
    assert_eq!(key, "/waypost/services/orders/host-a-8080");
    assert_eq!(
        value,
        r#"{"address":"10.0.0.5","port":8080,"weight":2,"zone":"a","version":"1.4","tags":["x","y"],"metadata":{"k":"v"},"health":"draining","protocol":"http2","registered_at":"2026-03-01T12:00:00Z","updated_at":"2026-03-01T12:01:01Z"}"#
    );
    assert_eq!(good(Format::Waypost, "orders/host-a-8080", &value), full_node());
}

#[test]
fn waypost_needs_address_and_port_only_and_leaves_unknown_fields_alone() {
    let node = good(Format::Waypost, "orders/i", r#" {"port":80,"address":"[::1]","later":{"x":[1]},"zone":null} "#);
    assert_eq!(node, Node { id: "i".into(), protocol: Protocol::Http2, ..Node::at("[::1]:80".parse().unwrap()) });
    let node = good(Format::Waypost, "orders/i", r#"{"address":"10.0.0.5","port":80,"weight":0,"metadata":{"n":7}}"#);
    assert_eq!((node.weight, node.metadata["n"].as_str()), (0, "7"));
}

#[test]
fn waypost_refuses_what_no_request_can_be_sent_to() {
    for (value, fault) in [
        ("", "JSON"),
        ("null", "JSON"),
        ("[]", "JSON"),
        (r#"{"address":"10.0.0.5"}"#, "port"),
        (r#"{"port":80}"#, "address"),
        (r#"{"address":"10.0.0.5","port":0}"#, "port"),
        (r#"{"address":"10.0.0.5","port":65536}"#, "JSON"),
        (r#"{"address":"10.0.0.5","port":"80"}"#, "JSON"),
        (r#"{"address":"10.0.0.5","port":80,"weight":-1}"#, "JSON"),
        (r#"{"address":"10.0.0.5","port":80,"weight":4294967296}"#, "JSON"),
        (r#"{"address":"10.0.0.5","port":80,"health":"odd"}"#, "JSON"),
        (r#"{"address":"10.0.0.5","port":80,"protocol":"h3"}"#, "JSON"),
        (r#"{"address":"db internal","port":80}"#, "name of a host"),
        (r#"{"address":"0.0.0.0","port":80}"#, "IP address"),
        (r#"{"address":"224.0.0.1","port":80}"#, "IP address"),
        (r#"{"address":"10.0.0.5:80","port":80}"#, "IP address"),
    ] {
        let error = decode(Format::Waypost, "orders/i", value).unwrap_err().to_string();
        assert!(error.contains(fault), "{value}: {error}");
    }
    let large = format!(r#"{{"address":"10.0.0.5","port":80,"x":"{}"}}"#, "x".repeat(MAX_VALUE_BYTES));
    assert!(matches!(decode(Format::Waypost, "orders/i", &large), Err(DecodeError::TooLarge { .. })));
}

#[test]
fn endpoint_key_has_everything_in_the_key() {
    let (key, value) = encode(Format::EndpointKey, "/svc", &full_node());
    assert_eq!((key.as_str(), value.as_str()), ("/svc/orders/10.0.0.5:8080", ""));
    let node = good(Format::EndpointKey, "orders/10.0.0.5:8080", "anything");
    assert_eq!(node, Node { protocol: Protocol::Http2, ..Node::at("10.0.0.5:8080".parse().unwrap()) });
    assert_eq!(good(Format::EndpointKey, "orders/[::1]:80", "").address.port(), 80);
    for bad in ["orders/ho st:80", "orders/10.0.0.5", "orders/10.0.0.5:0", "orders/0.0.0.0:80", "orders/a/10.0.0.5:80"]
    {
        assert!(decode(Format::EndpointKey, bad, "").is_err(), "{bad}");
    }
}

#[test]
fn endpoint_value_has_the_address_in_the_value() {
    let (key, value) = encode(Format::EndpointValue, "/svc/", &full_node());
    assert_eq!((key.as_str(), value.as_str()), ("/svc/orders/host-a-8080", "10.0.0.5:8080"));
    let node = good(Format::EndpointValue, "orders/7587870460981", "10.0.0.5:8080\n");
    assert_eq!((node.address.to_string().as_str(), node.id.as_str()), ("10.0.0.5:8080", "7587870460981"));
    assert_eq!(good(Format::EndpointValue, "orders/a/b", "[::1]:80").id, "a/b");
    for bad in ["", "host", "http://10.0.0.5:80", "10.0.0.5", "10.0.0.5:80,10.0.0.6:80"] {
        assert!(decode(Format::EndpointValue, "orders/i", bad).is_err(), "{bad}");
    }
}

#[test]
fn ip_pid_takes_the_ip_from_the_key_unless_the_value_says_one() {
    let (key, value) = encode(Format::IpPid, "/svc/", &full_node());
    assert_eq!(key, "/svc/orders/10.0.0.5/host-a-8080");
    assert_eq!(good(Format::IpPid, "orders/10.0.0.5/host-a-8080", &value), full_node());
    let address = |path, value| good(Format::IpPid, path, value).address.to_string();
    assert_eq!(address("orders/10.0.0.5/4711", r#"{"port":8080}"#), "10.0.0.5:8080");
    assert_eq!(address("orders/10.0.0.5/4711", r#"{"address":"10.0.0.6","port":8080}"#), "10.0.0.6:8080");
    assert_eq!(address("orders/10.0.0.5/4711", "10.0.0.7:81"), "10.0.0.7:81");
    assert_eq!(address("orders/::1/4711", r#"{"port":80}"#), "[::1]:80");
    assert_eq!(good(Format::IpPid, "orders/10.0.0.5/4711", "10.0.0.7:81").id, "4711");
    for (path, value) in [
        ("orders/10.0.0.5/4711", ""),
        ("orders/10.0.0.5/4711", "{}"),
        ("orders/10.0.0.5/4711", "running"),
        ("orders/10.0.0.5", r#"{"port":80}"#),
        ("orders/10.0.0.5/", r#"{"port":80}"#),
        ("orders/10.0.0.5/1/2", r#"{"port":80}"#),
        ("orders/host/1", r#"{"port":80}"#),
    ] {
        assert!(decode(Format::IpPid, path, value).is_err(), "{path} {value}");
    }
}

#[test]
fn keys_that_are_no_nodes_are_refused_in_every_format() {
    for format in Format::ALL {
        let of_one_service = if format == Format::Biregister { "" } else { "orders" };
        for path in ["", of_one_service, "orders/", "/x", "bad name/x", "b\u{e4}d/x"] {
            assert!(decode(format, path, r#"{"address":"10.0.0.5","port":1}"#).is_err(), "{format} {path:?}");
        }
        let outside = format.decode(PREFIX, "/elsewhere/orders/i", b"", Protocol::Http1);
        assert!(matches!(outside, Err(DecodeError::OutsidePrefix { .. })));
    }
}

#[test]
fn an_instance_that_cannot_be_a_part_of_a_key_is_refused() {
    let times = Timestamps { registered_at: UNIX_EPOCH, updated_at: UNIX_EPOCH };
    let service = ServiceName::new("orders").unwrap();
    for instance in ["", "a/b", "a\nb", &"x".repeat(256)] {
        let outcome = Format::Waypost.encode(PREFIX, &service, instance, &full_node(), times);
        assert!(matches!(outcome, Err(EncodeError::Instance(_))));
    }
    let large = Node { zone: "z".repeat(MAX_VALUE_BYTES), ..full_node() };
    let outcome = Format::Waypost.encode(PREFIX, &service, "i", &large, times);
    assert!(matches!(outcome, Err(EncodeError::TooLarge(_))));
}

#[test]
fn a_weight_of_0_is_not_written_where_it_would_mean_another() {
    for format in any_written() {
        let none = Node { weight: 0, ..full_node() };
        match testing::try_encode(format, PREFIX, "orders", "i", &none) {
            Ok((key, value)) => {
                let (_, read) = one(format.decode(PREFIX, &key, &value, Protocol::Http2).unwrap());
                assert_eq!(read.weight, 0, "{format}");
            }
            Err(error) => assert_eq!(error, EncodeError::ZeroWeight(format)),
        }
    }
}

#[test]
fn a_host_may_have_a_name_in_every_format() {
    let url = dubbo::escape("tri://h1.shop:80/orders");
    for (format, path, value) in [
        (Format::Waypost, "orders/i", r#"{"address":"h1.shop","port":80}"#),
        (Format::EndpointKey, "orders/h1.shop:80", ""),
        (Format::EndpointValue, "orders/i", "h1.shop:80"),
        (Format::IpPid, "orders/10.0.0.5/4711", r#"{"address":"h1.shop","port":80}"#),
        (Format::GoZero, "orders/1", "h1.shop:80"),
        (Format::Kratos, "orders/i", r#"{"name":"orders","endpoints":["grpc://h1.shop:80"]}"#),
        (Format::GoMicro, "orders/i", r#"{"nodes":[{"address":"H1.shop:80"}]}"#),
        (Format::GrpcNaming, "orders/i", r#"{"Addr":"h1.shop:80"}"#),
        (Format::Kitex, "orders/h1.shop:80", r#"{"address":"h1.shop:80"}"#),
        (Format::Hertz, "orders/h1.shop:80", r#"{"address":"h1.shop:80"}"#),
        (Format::DubboApp, "orders/h1.shop:80", r#"{"Host":"h1.shop","Port":80}"#),
        (Format::DubboInterface, &format!("orders/providers/{url}"), ""),
        (Format::SkyDns, "orders/i", r#"{"host":"h1.shop","port":80}"#),
        (Format::Biregister, "orders/i", "h1.shop:80"),
        (Format::Auto, "orders/i", r#"{"address":"h1.shop","port":80}"#),
        (Format::Apisix, "orders", r#"{"nodes":{"h1.shop:80":1}}"#),
    ] {
        let (_, found) = format.decode(PREFIX, &format!("{PREFIX}{path}"), value.as_bytes(), Protocol::Http2).unwrap();
        let name = found[0].name().map(HostName::as_str);
        assert_eq!((name, found[0].port(), found[0].node()), (Some("h1.shop"), 80, None), "{format}");
    }
}

#[test]
fn a_node_that_would_not_fit_the_wire_is_refused() {
    // A number takes more room as a text on the wire than it does in JSON.
    let fields: Vec<String> = (0..6_500).map(|number| format!(r#""{number:x}":1"#)).collect();
    let value = format!(r#"{{"Addr":"10.0.0.5:80","Metadata":{{{}}}}}"#, fields.join(","));
    assert!(value.len() < MAX_VALUE_BYTES);
    assert_eq!(decode(Format::GrpcNaming, "orders/i", &value), Err(DecodeError::NodeTooLarge));
}

#[test]
fn names_of_formats_are_read_and_written_and_others_refused() {
    for format in Format::ALL {
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    assert_eq!(
        "consul".parse::<Format>().unwrap_err().to_string(),
        r#""consul" is no format: allowed are "waypost", "endpoint-key", "endpoint-value", "ip-pid", "go-zero", "kratos", "go-micro", "grpc-naming", "kitex", "hertz", "dubbo-app", "dubbo-interface", "skydns", "apisix", "biregister" and "auto""#
    );
}

/// The formats of one key per node, which is written as it is read.
fn any_written() -> Vec<Format> {
    let written = |format: &Format| {
        let written = testing::try_encode(*format, PREFIX, "orders", "i", &full_node());
        *format != Format::Apisix && !matches!(written, Err(EncodeError::ReadOnly(_)))
    };
    let formats: Vec<Format> = Format::ALL.into_iter().filter(written).collect();
    assert_eq!(formats.len(), Format::ALL.len() - 2);
    formats
}

fn any_format() -> impl Strategy<Value = Format> {
    prop::sample::select(&Format::ALL[..])
}

proptest! {
    #[test]
    fn no_key_and_no_value_makes_a_decoder_panic(
        format in any_format(),
        path in r"[a-z0-9.:/\[\]{}é%]{0,40}",
        value in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = format.decode(PREFIX, &format!("{PREFIX}{path}"), &value, Protocol::Http1);
        let _ = format.decode(&path, PREFIX, &value, Protocol::Http1);
    }

    #[test]
    fn no_json_makes_a_decoder_panic_and_what_decodes_fits_the_wire(
        format in any_format(),
        path in prop::sample::select(&["orders", "orders/1", "orders/10.0.0.1/1", "orders/providers/tri%3A%2F%2F10.0.0.1%3A1"][..]),
        value in r#"\{("(address|port|weight|zone|tags|metadata|health|protocol|name|version|endpoints|nodes|Addr|Metadata|Host|Port|Weight|Enable|host|scheme)":("10\.0\.0\.1(:80)?"|"orders"|\["(http|grpc)://10\.0\.0\.1:80"\]|\[\{"address":"10\.0\.0\.1:80"\}\]|\[(\{"host":"h1","weight":[0-9]{1,2}\},?){1,2}\]|\{"h1:80":[0-9]{1,2}\}|[0-9-]{1,6}|null|\[("a",?){0,2}\]|\{\}|"passing"|"http2"|true|false),?){0,5}\}"#,
    ) {
        if let Ok((_, found)) = format.decode(PREFIX, &format!("{PREFIX}{path}"), value.as_bytes(), Protocol::Http1) {
            for found in found {
                prop_assert!(found.port() != 0);
                prop_assert!(found.fits_the_wire());
            }
        }
    }

    #[test]
    fn what_is_written_is_read_back(
        format in prop::sample::select(any_written()),
        address in any::<([u8; 4], u16)>(),
        weight in 1..=u32::MAX,
        text in r"[^\p{C}]{0,30}",
    ) {
        let (mut ip, port) = address;
        ip[0] = ip[0] % 200 + 1;
        let address = SocketAddr::from((ip, port.max(1)));
        let node = Node {
            weight,
            zone: text.clone(),
            tags: vec![text.clone()],
            metadata: BTreeMap::from([(text.clone(), text)]),
            ..Node::at(address)
        };
        let (key, value) = encode(format, PREFIX, &node);
        let (service, read) = one(format.decode(PREFIX, &key, value.as_bytes(), Protocol::Http1).unwrap());
        let without = [Format::EndpointKey, Format::EndpointValue, Format::GoZero, Format::GoMicro, Format::GrpcNaming, Format::Biregister];
        if !without.contains(&format) {
            prop_assert_eq!(read.weight, weight);
        }
        prop_assert_eq!(service.as_str(), "orders");
        prop_assert_eq!(read.address, address);
        if matches!(format, Format::Waypost | Format::IpPid) {
            prop_assert_eq!(Node { id: node.id.clone(), ..read }, node);
        }
    }
}
