//! `ip-pid`: the key says IP and process id; the value is JSON with at least a port, or `host:port`.

use waypost_catalog::Protocol;

use super::{DecodeError, Endpoint, Found, parse_host, waypost};
use crate::host::Host;

const SHAPE: DecodeError = DecodeError::KeyShape { expected: "<prefix><service>/<ip>/<pid>" };

pub(super) fn decode(rest: &str, value: &[u8], protocol: Protocol) -> Result<Found, DecodeError> {
    let (ip, pid) = rest.split_once('/').ok_or(SHAPE)?;
    if pid.is_empty() || pid.contains('/') {
        return Err(SHAPE);
    }
    let host = parse_host(ip)?;
    if let Host::Name(_) = host {
        return Err(SHAPE);
    }
    if value.trim_ascii_start().starts_with(b"{") {
        return waypost::decode_value(value, Some(host), pid, protocol);
    }
    let text = String::from_utf8_lossy(value);
    Ok(Found::plain(Endpoint::parse(text.trim())?, pid, protocol))
}
