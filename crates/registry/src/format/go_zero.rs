//! `go-zero`: `<Etcd.Key>/<id>`, a positive decimal number, and the node's address as value.

use waypost_catalog::Protocol;

use super::{DecodeError, Found, endpoint_value};

pub(super) fn decode(rest: &str, value: &[u8], protocol: Protocol) -> Result<Found, DecodeError> {
    endpoint_value::decode(rest, value, protocol)
}

/// The number that an instance gets, as with `Etcd.ID`: its name, if that is one, and otherwise always the same made
/// of the name. (go-zero's other way, the lease's number, changes with each lease.)
pub(super) fn id(instance: &str) -> i64 {
    if let Some(id) = instance.parse::<i64>().ok().filter(|id| *id > 0 && id.to_string() == instance) {
        return id;
    }
    // FNV-1a.
    let hash = instance
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    i64::try_from(hash >> 1).unwrap_or(i64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::format::Format::GoZero;

    #[test]
    fn a_key_of_go_zero_is_read_with_and_without_a_namespace() {
        let (service, node) = decode_at(GoZero, "rpc/", "rpc/user.rpc/7587870460981504265", "10.0.0.5:8080").unwrap();
        assert_eq!((&*service, node.address.to_string().as_str(), node.weight), ("user.rpc", "10.0.0.5:8080", 1));
        assert_eq!(node.id, "7587870460981504265");
        let (service, node) = decode_at(GoZero, "user.rpc/", "user.rpc/7", "10.0.0.5:8080").unwrap();
        assert_eq!((&*service, node.id.as_str()), ("user.rpc", "7"));
        let (service, _) = decode_at(GoZero, "shop/user.rpc/", "shop/user.rpc/7", "10.0.0.5:8080").unwrap();
        assert_eq!(&*service, "user.rpc");
    }

    #[test]
    fn what_no_request_can_be_sent_to_is_refused() {
        for value in ["", ":8080", "0.0.0.0:8080", "10.0.0.5", "user"] {
            assert!(decode_at(GoZero, "user.rpc/", "user.rpc/7", value).is_err(), "{value}");
        }
        assert!(decode_at(GoZero, "/", "/7", "10.0.0.5:8080").is_err(), "no service");
        assert!(decode_at(GoZero, "user.rpc/", "user.rpc/", "10.0.0.5:8080").is_err(), "no id");
    }

    #[test]
    fn a_key_is_written_with_a_decimal_number_that_stays() {
        let node = node("10.0.0.5:8080");
        let (key, value) = encoded(GoZero, "", "user.rpc", "42", &node);
        assert_eq!((key.as_str(), value.as_str()), ("user.rpc/42", "10.0.0.5:8080"));
        let (key, _) = encoded(GoZero, "shop/", "user.rpc", "host-a-8080", &node);
        assert_eq!(key, format!("shop/user.rpc/{}", id("host-a-8080")));
        for instance in ["host-a-8080", "0", "-1", "007", "99999999999999999999", ""] {
            assert!(id(instance) > 0);
            assert_ne!(id(instance).to_string(), instance);
        }
        assert_ne!(id("host-a-8080"), id("host-b-8080"));
    }
}
