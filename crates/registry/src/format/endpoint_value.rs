//! `endpoint-value`: the value is the node's address, the key's last part only has to be unique.

use waypost_catalog::{Node, Protocol};

use super::{DecodeError, parse_endpoint, plain_node};

pub(super) fn decode(rest: &str, value: &[u8], protocol: Protocol) -> Result<Node, DecodeError> {
    let text = String::from_utf8_lossy(value);
    Ok(plain_node(parse_endpoint(text.trim())?, rest, protocol))
}
