//! `auto`: each key below a prefix in the format that it is in, as far as key and value tell.
//!
//! * Below the root that a framework has for its own ([`Format::default_root`]) a key is of that framework if it can be
//!   read so. The prefix may be that root, below it, or above it: `/` finds the roots of all.
//! * Elsewhere the fields of a JSON value tell, and of other values whether they are an address; then the key's parts.
//! * Formats that would give the same node need not be told apart: `go-zero` from `endpoint-value`, `kitex` from
//!   `hertz`. Where they would give different ones, nothing is guessed: a key of more parts than service and instance is
//!   read only if something in it tells.

use serde::{Deserialize, de::IgnoredAny};
use waypost_catalog::{Protocol, ServiceName};

use super::{DecodeError, Endpoint, Format, Found};
use crate::host::Host;

/// The format that a key is in, and what is read in it.
pub(super) type Recognised = (Format, ServiceName, Vec<Found>);

pub(super) fn decode(prefix: &str, key: &str, value: &[u8], protocol: Protocol) -> Result<Recognised, DecodeError> {
    let own = own(prefix, key);
    let read = |format: Format, root: &str| {
        format.decode(root, key, value, protocol).map(|(service, found)| (format, service, found))
    };
    let root = own.map_or(prefix, |(_, root)| root);
    let failure = match own.map(|(format, root)| read(format, root)) {
        Some(Err(error)) if !matches!(error, DecodeError::NoNode(_)) => error,
        Some(outcome) => return outcome,
        None => DecodeError::Unrecognised,
    };
    // What is right below a framework's root is no instance of a service that the root names.
    let of_one_service = own.is_none_or(|(format, root)| format.default_root() != Some(root));
    let path = key.strip_prefix(root).filter(|path| of_one_service || path.contains('/'));
    match path.and_then(|path| by_shape(path, value)) {
        Some(format) => read(format, root),
        None => Err(failure),
    }
}

/// The framework below whose root the key is, if the watch is about that root, and what comes before the service.
fn own<'a>(prefix: &'a str, key: &str) -> Option<(Format, &'a str)> {
    Format::ALL.into_iter().find_map(|format| {
        let root = format.default_root().filter(|root| !root.is_empty() && key.starts_with(root))?;
        if prefix.starts_with(root) {
            return Some((format, prefix));
        }
        root.starts_with(prefix).then_some((format, root))
    })
}

/// Fields that tell formats apart.
#[derive(Deserialize)]
struct Fields {
    #[serde(rename = "Addr")]
    grpc_address: Option<IgnoredAny>,
    #[serde(rename = "Host")]
    dubbo_host: Option<IgnoredAny>,
    nodes: Option<IgnoredAny>,
    endpoints: Option<IgnoredAny>,
    network: Option<IgnoredAny>,
    address: Option<IgnoredAny>,
    host: Option<IgnoredAny>,
    port: Option<IgnoredAny>,
}

fn by_shape(path: &str, value: &[u8]) -> Option<Format> {
    let parts: Vec<&str> = path.split('/').collect();
    if value.trim_ascii_start().starts_with(b"{") {
        return by_fields(&parts, &serde_json::from_slice(value).ok()?);
    }
    let text = std::str::from_utf8(value).ok()?.trim();
    match (parts.as_slice(), Endpoint::parse(text).is_ok()) {
        ([_, ip, _], true) if is_ip(ip) => Some(Format::IpPid),
        ([name] | [_, name], true) if is_number(name) => Some(Format::GoZero),
        ([_], true) => Some(Format::Biregister),
        ([_, _], true) => Some(Format::EndpointValue),
        ([_, "providers", _], false) if text.is_empty() => Some(Format::DubboInterface),
        ([_, address], false) => {
            let endpoint = Endpoint::parse(address).ok()?;
            (text.is_empty() || matches!(endpoint.host, Host::Address(_))).then_some(Format::EndpointKey)
        }
        _ => None,
    }
}

fn by_fields(parts: &[&str], fields: &Fields) -> Option<Format> {
    let is = |field: &Option<IgnoredAny>| field.is_some();
    match *parts {
        [_] | [_, _] if is(&fields.grpc_address) => Some(Format::GrpcNaming),
        [_, _] if is(&fields.dubbo_host) => Some(Format::DubboApp),
        [_] if is(&fields.nodes) => Some(Format::Apisix),
        [_, _] if is(&fields.nodes) => Some(Format::GoMicro),
        [_, _] if is(&fields.endpoints) => Some(Format::Kratos),
        [_, ip, _] if is_ip(ip) && is(&fields.port) => Some(Format::IpPid),
        [_, _] if is(&fields.network) || is(&fields.address) && !is(&fields.port) => Some(Format::Kitex),
        [_] if is(&fields.address) => Some(Format::Biregister),
        [_, _] if is(&fields.address) => Some(Format::Waypost),
        [_, _, ..] if is(&fields.host) && is(&fields.port) => Some(Format::SkyDns),
        _ => None,
    }
}

fn is_ip(text: &str) -> bool {
    matches!(Host::parse(text), Some(Host::Address(_)))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A key of each format below the prefix that its framework uses or, where that is up to the user, one of theirs;
    /// the value as the framework writes it; and the service.
    const GOLDEN: [(Format, &str, &str, &str, &str); 15] = [
        (
            Format::Waypost,
            "/waypost/services/",
            "orders/host-a-8080",
            r#"{"address":"10.0.0.5","port":8080,"weight":2}"#,
            "orders",
        ),
        (Format::EndpointKey, "/svc/", "orders/10.0.0.5:8080", "", "orders"),
        (Format::EndpointValue, "/svc/", "orders/host-a", "10.0.0.5:8080", "orders"),
        (Format::IpPid, "/svc/", "orders/10.0.0.5/4711", r#"{"port":8080}"#, "orders"),
        (Format::GoZero, "user.rpc/", "7587870460981504265", "10.0.0.5:8080", "user.rpc"),
        (
            Format::Kratos,
            "/microservices/",
            "helloworld/h1",
            r#"{"id":"h1","name":"helloworld","version":"v1","metadata":{"weight":"100"},"endpoints":["http://10.0.0.5:8080"]}"#,
            "helloworld",
        ),
        (
            Format::GoMicro,
            "/micro/registry/",
            "greeter/greeter-1",
            r#"{"name":"greeter","version":"latest","metadata":null,"endpoints":[],"nodes":[{"id":"greeter-1","address":"10.0.0.5:8080","metadata":{"protocol":"grpc"}}]}"#,
            "greeter",
        ),
        (Format::GrpcNaming, "grpc/orders/", "e1", r#"{"Op":0,"Addr":"10.0.0.5:8080","Metadata":null}"#, "orders"),
        (
            Format::Kitex,
            "kitex/registry-etcd/",
            "orders/10.0.0.5:8080",
            r#"{"network":"tcp","address":"10.0.0.5:8080","weight":10,"tags":{"zone":"a"}}"#,
            "orders",
        ),
        (
            Format::Hertz,
            "hertz/registry-etcd/",
            "orders/10.0.0.5:8080",
            r#"{"network":"tcp","address":"10.0.0.5:8080","weight":10,"tags":null}"#,
            "orders",
        ),
        (
            Format::DubboApp,
            "/services/",
            "user-app/10.0.0.5:8080",
            r#"{"ID":"10.0.0.5:8080","ServiceName":"user-app","Host":"10.0.0.5","Port":8080,"Weight":0,"Enable":true,"Healthy":true,"Metadata":{}}"#,
            "user-app",
        ),
        (
            Format::DubboInterface,
            "/dubbo/",
            "org.shop.Stock/providers/tri%3A%2F%2F10.0.0.5%3A8080%2Forg.shop.Stock%3Fside%3Dprovider",
            "",
            "org.shop.Stock",
        ),
        (
            Format::SkyDns,
            "/skydns/local/skydns/",
            "east/orders/1",
            r#"{"host":"10.0.0.5","port":8080,"priority":10,"weight":100,"ttl":30}"#,
            "orders.east",
        ),
        (
            Format::Apisix,
            "/apisix/upstreams/",
            "orders",
            r#"{"id":"orders","type":"roundrobin","nodes":{"10.0.0.5:8080":10}}"#,
            "orders",
        ),
        (Format::Biregister, "/shop/orders/", "host-a", "10.0.0.5:8080", "orders"),
    ];

    fn recognised(prefix: &str, key: &str, value: &str) -> Result<(Format, String), DecodeError> {
        let (format, service, found) = decode(prefix, key, value.as_bytes(), Protocol::Http1)?;
        let ports: Vec<u16> = found.iter().map(Found::port).collect();
        assert_eq!(ports, [8080], "{key}");
        Ok((format, service.to_string()))
    }

    #[test]
    fn each_format_is_recognised_as_itself_below_its_own_prefix() {
        let all: Vec<Format> = GOLDEN.iter().map(|(format, ..)| *format).collect();
        assert!(Format::ALL.iter().all(|format| *format == Format::Auto || all.contains(format)));
        for (format, prefix, path, value, service) in GOLDEN {
            let read = recognised(prefix, &format!("{prefix}{path}"), value);
            assert_eq!(read, Ok((format, service.to_owned())), "{prefix}{path}");
        }
    }

    #[test]
    fn a_prefix_above_the_roots_of_frameworks_finds_them_all() {
        for (format, _, path, value, service) in GOLDEN {
            let Some(root) = format.default_root().filter(|root| !root.is_empty()) else { continue };
            let above = if root.starts_with('/') { "/" } else { "" };
            let read = recognised(above, &format!("{root}{path}"), value);
            assert_eq!(read, Ok((format, service.to_owned())), "{root}{path}");
        }
    }

    #[test]
    fn below_another_prefix_key_and_value_tell_or_the_node_is_the_same() {
        for (format, _, path, value, service) in GOLDEN {
            let format = if format == Format::Hertz { Format::Kitex } else { format };
            let prefix = match format {
                Format::GoZero | Format::Biregister | Format::GrpcNaming => format!("/elsewhere/{service}/"),
                _ => "/elsewhere/".to_owned(),
            };
            let read = recognised(&prefix, &format!("{prefix}{path}"), value);
            assert_eq!(read, Ok((format, service.to_owned())), "{prefix}{path}");
        }
        let number = recognised("/svc/", "/svc/orders/7587870460981504265", "10.0.0.5:8080");
        assert_eq!(number, Ok((Format::GoZero, "orders".to_owned())));
    }

    #[test]
    fn in_one_folder_each_key_is_read_for_itself() {
        for (path, value, format) in [
            ("orders/10.0.0.5:8080", "", Format::EndpointKey),
            ("orders/10.0.0.5:8080", "up", Format::EndpointKey),
            ("orders/db.shop:8080", "", Format::EndpointKey),
            ("orders/a", "db.shop:8080", Format::EndpointValue),
            ("orders/10.0.0.5/7", "10.0.0.5:8080", Format::IpPid),
            ("orders/a", r#"{"address":"10.0.0.5","port":8080}"#, Format::Waypost),
        ] {
            // The root of dubbo-app, and the folder that many others use.
            let read = recognised("/services/", &format!("/services/{path}"), value);
            assert_eq!(read, Ok((format, "orders".to_owned())), "{path} {value}");
        }
    }

    proptest! {
        #[test]
        fn no_damaged_key_or_value_makes_a_decoder_panic(
            golden in prop::sample::select(&GOLDEN[..]),
            damage in any::<(prop::sample::Index, u8, prop::sample::Index, prop::sample::Index)>(),
        ) {
            let (format, prefix, path, value, _) = golden;
            let (at, byte, cut, split) = damage;
            let key = format!("{prefix}{path}");
            let mut damaged = value.as_bytes().to_vec();
            if !damaged.is_empty() {
                let at = at.index(damaged.len());
                damaged[at] = byte;
                damaged.truncate(cut.index(value.len() + 1));
            }
            for format in [format, Format::Auto] {
                for value in [value.as_bytes(), &damaged] {
                    let _ = format.decode(&key[..split.index(key.len())], &key, value, Protocol::Http1);
                    let _ = format.decode(prefix, &key[..cut.index(key.len())], value, Protocol::Http1);
                }
            }
        }
    }

    #[test]
    fn what_nothing_tells_is_not_guessed() {
        for (key, value) in [
            ("/svc/a/b/c", "10.0.0.5:8080"),
            ("/svc/a/b/c", r#"{"address":"10.0.0.5","port":8080}"#),
            ("/svc/orders", ""),
            ("/svc/orders/694d81417acd4754", ""),
            ("/svc/orders/name:80", "up"),
            ("/svc/orders/a", "leader"),
            ("/svc/orders/a", "{"),
            ("/svc/orders/10.0.0.5:80", "{"),
            ("/svc/orders/a", "{}"),
            ("/svc/orders/a", "[1]"),
        ] {
            let read = decode("/svc/", key, value.as_bytes(), Protocol::Http1);
            assert_eq!(read, Err(DecodeError::Unrecognised), "{key} {value}");
        }
        let below_a_root = decode("/services/", "/services/orders", b"10.0.0.5:8080", Protocol::Http1);
        assert!(below_a_root.is_err(), "{below_a_root:?}");
        assert!(recognised("/services/orders/", "/services/orders/host-a", "10.0.0.5:8080").is_ok());
        let broken = decode("/", "/microservices/a/1", b"{", Protocol::Http1);
        assert!(matches!(broken, Err(DecodeError::Json(_))), "the framework's own error: {broken:?}");
        let folder = decode("/", "/dubbo/a/providers", b"", Protocol::Http1);
        assert!(matches!(folder, Err(DecodeError::NoNode(_))));
    }
}
