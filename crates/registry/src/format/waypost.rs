//! `waypost`: the key names service and instance, the value is JSON. Only address and port have to be in it.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use waypost_catalog::{Health, Node, Protocol};

use super::{DecodeError, EncodeError, Endpoint, Found, Timestamps, foreign::text, parse_host, timestamp::rfc3339};
use crate::host::Host;

/// What is read. Unknown fields are left alone: they may be a newer version's.
#[derive(Deserialize)]
struct Incoming {
    address: Option<String>,
    port: Option<u16>,
    weight: Option<u32>,
    zone: Option<String>,
    version: Option<String>,
    tags: Option<Vec<String>>,
    metadata: Option<BTreeMap<String, serde_json::Value>>,
    health: Option<HealthName>,
    protocol: Option<ProtocolName>,
}

/// What is written.
#[derive(Serialize)]
struct Outgoing<'a> {
    address: IpAddr,
    port: u16,
    weight: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    zone: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    tags: &'a [String],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: &'a BTreeMap<String, String>,
    health: &'static str,
    protocol: &'static str,
    registered_at: String,
    updated_at: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum HealthName {
    Passing,
    Critical,
    Draining,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ProtocolName {
    Http1,
    Http2,
}

pub(super) fn decode(rest: &str, value: &[u8], protocol: Protocol) -> Result<Found, DecodeError> {
    if rest.contains('/') {
        return Err(DecodeError::KeyShape { expected: "<prefix><service>/<instance>" });
    }
    decode_value(value, None, rest, protocol)
}

/// The node of a value; `host` is that of the key, if it says one, for a value that does not.
pub(super) fn decode_value(
    value: &[u8],
    host: Option<Host>,
    id: &str,
    protocol: Protocol,
) -> Result<Found, DecodeError> {
    let incoming: Incoming = serde_json::from_slice(value).map_err(|error| DecodeError::Json(error.to_string()))?;
    let host = match (incoming.address, host) {
        (Some(address), _) => parse_host(&address)?,
        (None, Some(host)) => host,
        (None, None) => return Err(DecodeError::Missing("address")),
    };
    let port = incoming.port.filter(|port| *port != 0).ok_or(DecodeError::Missing("port (1 to 65535)"))?;
    let metadata = incoming.metadata.unwrap_or_default().into_iter().map(|(name, value)| (name, text(value)));
    Ok(Found::plain(Endpoint { host, port }, id, protocol).with(|node| Node {
        weight: incoming.weight.unwrap_or(1),
        health: match incoming.health {
            None | Some(HealthName::Passing) => Health::Passing,
            Some(HealthName::Critical) => Health::Critical,
            Some(HealthName::Draining) => Health::Draining,
        },
        protocol: match incoming.protocol {
            None => node.protocol,
            Some(ProtocolName::Http1) => Protocol::Http1,
            Some(ProtocolName::Http2) => Protocol::Http2,
        },
        zone: incoming.zone.unwrap_or_default(),
        version: incoming.version.unwrap_or_default(),
        tags: incoming.tags.unwrap_or_default(),
        metadata: metadata.collect(),
        ..node
    }))
}

pub(super) fn encode(node: &Node, times: Timestamps) -> Result<Vec<u8>, EncodeError> {
    let outgoing = Outgoing {
        address: node.address.ip(),
        port: node.address.port(),
        weight: node.weight,
        zone: &node.zone,
        version: &node.version,
        tags: &node.tags,
        metadata: &node.metadata,
        health: node.health.as_str(),
        protocol: node.protocol.as_str(),
        registered_at: rfc3339(times.registered_at),
        updated_at: rfc3339(times.updated_at),
    };
    serde_json::to_vec(&outgoing).map_err(|error| EncodeError::Json(error.to_string()))
}
