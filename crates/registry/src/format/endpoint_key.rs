//! `endpoint-key`: the node's address is the key's last part, the value means nothing.

use waypost_catalog::{Node, Protocol};

use super::{DecodeError, parse_endpoint, plain_node};

pub(super) fn decode(rest: &str, protocol: Protocol) -> Result<Node, DecodeError> {
    Ok(plain_node(parse_endpoint(rest)?, rest, protocol))
}
