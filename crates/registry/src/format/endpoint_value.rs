//! `endpoint-value`: the value is the node's address, the key's last part only has to be unique.

use waypost_catalog::Protocol;

use super::{DecodeError, Endpoint, Found};

pub(super) fn decode(rest: &str, value: &[u8], protocol: Protocol) -> Result<Found, DecodeError> {
    let text = String::from_utf8_lossy(value);
    Ok(Found::plain(Endpoint::parse(text.trim())?, rest, protocol))
}
