//! The protobuf messages, and the limits every decoder holds them to.

use std::net::SocketAddr;

pub use generated::*;
use prost::Message as _;

use crate::model::{Health as ModelHealth, InvalidServiceName, Placement};

#[allow(missing_docs, unused_qualifications, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/waypost.catalog.v1.rs"));
}

/// Version of the stream's protocol.
pub const PROTOCOL_VERSION: u32 = 2;

/// Limits on size. A sender keeps them, a receiver refuses what is beyond.
pub mod limits {
    /// Encoded size of one node, in bytes.
    pub const NODE_BYTES: usize = 64 * 1024;
    /// What a sender aims to stay under with one message, in bytes: small enough that a VM never stalls on one.
    pub const MESSAGE_TARGET_BYTES: usize = 256 * 1024;
    /// Largest message that a receiver accepts, in bytes.
    pub const MESSAGE_BYTES: usize = 1024 * 1024;
    /// A service's policy, in bytes.
    pub const POLICY_BYTES: usize = 64 * 1024;
    /// All routes together, in bytes: they go out in one message.
    pub const ROUTES_BYTES: usize = 768 * 1024;
    /// Parts of one service.
    pub const PARTS: u32 = 16_384;
}

/// What is wrong with something that came over the wire or is to go out on it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A node's encoding is beyond [`limits::NODE_BYTES`].
    #[error(
        "node {address} takes {bytes} bytes, more than the {} allowed: shorten its metadata or tags",
        limits::NODE_BYTES
    )]
    NodeTooLarge {
        /// The node's address, if it is known.
        address: String,
        /// Its encoded size.
        bytes: usize,
    },
    /// A message is beyond [`limits::MESSAGE_BYTES`].
    #[error("a message of {0} bytes is larger than the {max} allowed", max = limits::MESSAGE_BYTES)]
    MessageTooLarge(usize),
    /// The bytes are no protobuf message of the expected kind.
    #[error("undecodable message: {0}")]
    Undecodable(String),
    /// A message without content: from a newer peer.
    #[error("a message of a kind this version does not know")]
    UnknownMessage,
    /// An address that is no `ip:port`.
    #[error("{0:?} is no address of the form ip:port")]
    BadAddress(String),
    /// An enum's number that this version does not know.
    #[error("{field} has no value {value}")]
    UnknownEnum {
        /// The field.
        field: &'static str,
        /// Its number.
        value: i32,
    },
    /// A service's name that is not allowed.
    #[error(transparent)]
    BadServiceName(#[from] InvalidServiceName),
    /// Content and hash disagree.
    #[error("the content of {what} does not match its hash")]
    HashMismatch {
        /// A service's name, or `catalog`.
        what: String,
    },
    /// A message that may not come at this point.
    #[error("out of order: {0}")]
    OutOfOrder(&'static str),
}

/// Decodes a message of the stream within the limits.
///
/// # Errors
/// [`WireError::MessageTooLarge`], [`WireError::Undecodable`], [`WireError::UnknownMessage`].
pub fn decode_server_message(bytes: &[u8]) -> Result<server_message::Kind, WireError> {
    if bytes.len() > limits::MESSAGE_BYTES {
        return Err(WireError::MessageTooLarge(bytes.len()));
    }
    let message = ServerMessage::decode(bytes).map_err(|error| WireError::Undecodable(error.to_string()))?;
    message.kind.ok_or(WireError::UnknownMessage)
}

pub(crate) fn decode_node(bytes: &[u8]) -> Result<Node, WireError> {
    if bytes.len() > limits::NODE_BYTES {
        return Err(WireError::NodeTooLarge { address: "(unread)".into(), bytes: bytes.len() });
    }
    Node::decode(bytes).map_err(|error| WireError::Undecodable(error.to_string()))
}

pub(crate) fn parse_address(text: &str) -> Result<SocketAddr, WireError> {
    text.parse().map_err(|_| WireError::BadAddress(text.chars().take(80).collect()))
}

pub(crate) fn parse_health(value: i32) -> Result<ModelHealth, WireError> {
    match Health::try_from(value) {
        Ok(Health::Unspecified | Health::Passing) => Ok(ModelHealth::Passing),
        Ok(Health::Critical) => Ok(ModelHealth::Critical),
        Ok(Health::Draining) => Ok(ModelHealth::Draining),
        Err(_) => Err(WireError::UnknownEnum { field: "health", value }),
    }
}

/// What lies beyond what can be means the nearest that can: a newer agent must not cost a filter the node.
pub(crate) fn placement(node: &Node) -> Placement {
    Placement {
        weight: node.placed_weight,
        priority: u8::try_from(node.priority).unwrap_or(u8::MAX),
        warmup: node.warmup.map_or(Placement::WARM, |warmup| warmup.min(Placement::WARM.into()) as u16),
        subsets: node.subsets,
    }
}
