//! `ip-pid`: the key says IP and process id; the value is JSON with at least a port, or `ip:port`.

use waypost_catalog::{Node, Protocol};

use super::{DecodeError, parse_endpoint, parse_ip, plain_node, waypost};

const SHAPE: DecodeError = DecodeError::KeyShape { expected: "<prefix><service>/<ip>/<pid>" };

pub(super) fn decode(rest: &str, value: &[u8], protocol: Protocol) -> Result<Node, DecodeError> {
    let (ip, pid) = rest.split_once('/').ok_or(SHAPE)?;
    if pid.is_empty() || pid.contains('/') {
        return Err(SHAPE);
    }
    let ip = parse_ip(ip)?;
    if value.trim_ascii_start().starts_with(b"{") {
        return waypost::decode_value(value, Some(ip), pid, protocol);
    }
    let text = String::from_utf8_lossy(value);
    Ok(plain_node(parse_endpoint(text.trim())?, pid, protocol))
}
