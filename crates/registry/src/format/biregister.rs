//! `biregister`: `<prefix><name>`, with no separator between them unless the prefix has one, and a value that the
//! library leaves to its users: here `host:port`, or JSON with address and port.

use waypost_catalog::{Protocol, ServiceName};

use super::{DecodeError, Endpoint, Found, last_part, waypost};

pub(super) const SHAPE: &str = "<prefix><name>";

/// The service is the prefix's last part, or the key's next one if the prefix is a folder of several.
pub(super) fn decode(
    prefix: &str,
    path: &str,
    value: &[u8],
    protocol: Protocol,
) -> Result<(ServiceName, Found), DecodeError> {
    // A name that was taken from the revision comes after a slash in any case.
    let path = if prefix.ends_with('/') { path } else { path.strip_prefix('/').unwrap_or(path) };
    let (service, name) = match path.split_once('/') {
        Some(parts) if prefix.ends_with('/') => parts,
        _ => (last_part(prefix), path),
    };
    if name.is_empty() || name.contains('/') {
        return Err(DecodeError::KeyShape { expected: SHAPE });
    }
    Ok((ServiceName::new(service)?, decode_value(name, value, protocol)?))
}

fn decode_value(name: &str, value: &[u8], protocol: Protocol) -> Result<Found, DecodeError> {
    if value.trim_ascii_start().starts_with(b"{") {
        return waypost::decode_value(value, None, name, protocol);
    }
    let text = String::from_utf8_lossy(value);
    Ok(Found::plain(Endpoint::parse(text.trim())?, name, protocol))
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use crate::format::Format::Biregister;

    #[test]
    fn the_service_is_the_last_part_of_the_prefix_or_the_next_one_of_the_key() {
        for (prefix, key, service, id) in [
            ("/shop/orders/", "/shop/orders/host-a", "orders", "host-a"),
            ("/shop/orders/", "/shop/orders/00000000000000000042", "orders", "00000000000000000042"),
            ("/shop/orders", "/shop/orders/00000000000000000042", "orders", "00000000000000000042"),
            ("/shop/orders-", "/shop/orders-host-a", "orders", "host-a"),
            ("/shop/", "/shop/orders/host-a", "orders", "host-a"),
        ] {
            let (read, node) = decode_at(Biregister, prefix, key, "10.0.0.5:8080").unwrap();
            assert_eq!((&*read, &*node.id, node.address.port()), (service, id, 8080), "{prefix} {key}");
        }
    }

    #[test]
    fn a_value_that_names_no_address_is_refused() {
        let read = |value| decode_at(Biregister, "/shop/orders/", "/shop/orders/host-a", value);
        assert_eq!(read(r#"{"address":"10.0.0.5","port":80,"weight":3}"#).unwrap().1.weight, 3);
        for value in ["", "leader", "{", r#"{"role":"leader"}"#, "[1]"] {
            assert!(read(value).is_err(), "{value}");
        }
        for key in ["/shop/orders/", "/shop/orders/a/b/c"] {
            assert!(decode_at(Biregister, "/shop/orders/", key, "10.0.0.5:8080").is_err(), "{key}");
        }
    }

    #[test]
    fn what_is_written_is_a_name_in_a_folder_of_the_service() {
        let written = encoded(Biregister, "/shop/", "orders", "host-a", &node("10.0.0.5:8080"));
        assert_eq!(written, ("/shop/orders/host-a".into(), "10.0.0.5:8080".into()));
    }
}
