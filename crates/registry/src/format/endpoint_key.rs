//! `endpoint-key`: the node's address is the key's last part, the value means nothing.

use waypost_catalog::Protocol;

use super::{DecodeError, Endpoint, Found};

pub(super) fn decode(rest: &str, protocol: Protocol) -> Result<Found, DecodeError> {
    Ok(Found::plain(Endpoint::parse(rest)?, rest, protocol))
}
