//! How services and nodes are written in etcd's keys and values: one file per format.

mod endpoint_key;
mod endpoint_value;
mod ip_pid;
mod timestamp;
mod waypost;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::SystemTime,
};

use waypost_catalog::{Node, Protocol, ServiceName, model::InvalidServiceName};

/// Largest value that is looked at, in bytes: a node on the wire may not be larger either.
pub const MAX_VALUE_BYTES: usize = waypost_catalog::wire::limits::NODE_BYTES;

/// A way to keep nodes in etcd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// `<root>/<service>/<instance>`, JSON.
    #[default]
    Waypost,
    /// `<root>/<service>/<ip:port>`, no value.
    EndpointKey,
    /// `<root>/<service>/<anything>`, `ip:port`.
    EndpointValue,
    /// `<root>/<service>/<ip>/<pid>`, JSON or `ip:port`.
    IpPid,
}

/// Why a key and value are no node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The key is not below the prefix.
    #[error("the key does not begin with {prefix:?}")]
    OutsidePrefix {
        /// The prefix.
        prefix: String,
    },
    /// The key's parts are not those of the format.
    #[error("the key is not of the form {expected}")]
    KeyShape {
        /// The form.
        expected: &'static str,
    },
    /// The service's name is not allowed.
    #[error(transparent)]
    Service(#[from] InvalidServiceName),
    /// The value is too large.
    #[error("the value has {0} bytes, more than the {MAX_VALUE_BYTES} allowed")]
    TooLarge(usize),
    /// The value is not the JSON that was expected.
    #[error("the value is not the JSON expected: {0}")]
    Json(String),
    /// No address that a request can be sent to.
    #[error("{text:?} is no {expected}")]
    Address {
        /// What was found (cut to 80 characters).
        text: String,
        /// What was expected.
        expected: &'static str,
    },
    /// Something is missing.
    #[error("the value says no {0}")]
    Missing(&'static str),
}

/// Why a node cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The instance's name cannot be a part of a key.
    #[error(
        "instance {0:?} cannot be a part of a key: 1 to 255 characters without / and control characters are allowed"
    )]
    Instance(String),
    /// The value would be too large.
    #[error("the value would have {0} bytes, more than the {MAX_VALUE_BYTES} allowed: shorten metadata or tags")]
    TooLarge(usize),
    /// The value could not be written as JSON.
    #[error("the value cannot be written: {0}")]
    Json(String),
}

/// No format is called so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no format: waypost, endpoint-key, endpoint-value and ip-pid are")]
pub struct UnknownFormat(pub String);

/// When a node was registered and last changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamps {
    /// When it was registered.
    pub registered_at: SystemTime,
    /// When its value last changed.
    pub updated_at: SystemTime,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Waypost, Self::EndpointKey, Self::EndpointValue, Self::IpPid];

    /// Its name in configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waypost => "waypost",
            Self::EndpointKey => "endpoint-key",
            Self::EndpointValue => "endpoint-value",
            Self::IpPid => "ip-pid",
        }
    }

    /// Whether a value can say that its node is critical or draining. Otherwise such a node's key is deleted.
    pub const fn carries_health(self) -> bool {
        matches!(self, Self::Waypost)
    }

    /// The node that a key below `prefix` and its value stand for. `protocol` is that of nodes which do not say.
    ///
    /// # Errors
    /// [`DecodeError`] saying what is wrong with it.
    pub fn decode(
        self,
        prefix: &str,
        key: &str,
        value: &[u8],
        protocol: Protocol,
    ) -> Result<(ServiceName, Node), DecodeError> {
        let outside = || DecodeError::OutsidePrefix { prefix: prefix.into() };
        let path = key.strip_prefix(prefix).ok_or_else(outside)?;
        if value.len() > MAX_VALUE_BYTES {
            return Err(DecodeError::TooLarge(value.len()));
        }
        let (service, rest) = path.split_once('/').ok_or(DecodeError::KeyShape { expected: self.key_shape() })?;
        if rest.is_empty() {
            return Err(DecodeError::KeyShape { expected: self.key_shape() });
        }
        let service = ServiceName::new(service)?;
        let node = match self {
            Self::Waypost => waypost::decode(rest, value, protocol),
            Self::EndpointKey => endpoint_key::decode(rest, protocol),
            Self::EndpointValue => endpoint_value::decode(rest, value, protocol),
            Self::IpPid => ip_pid::decode(rest, value, protocol),
        };
        Ok((service, node?))
    }

    /// Key and value that stand for a node.
    ///
    /// # Errors
    /// [`EncodeError`] if the instance's name cannot be in a key, or the value is too large.
    pub fn encode(
        self,
        root: &str,
        service: &ServiceName,
        instance: &str,
        node: &Node,
        times: Timestamps,
    ) -> Result<(String, Vec<u8>), EncodeError> {
        let fits =
            |text: &str| !text.is_empty() && text.len() <= 255 && !text.contains(|c: char| c == '/' || c.is_control());
        if !fits(instance) {
            return Err(EncodeError::Instance(instance.chars().take(80).collect()));
        }
        let (rest, value) = match self {
            Self::Waypost => (instance.to_owned(), waypost::encode(node, times)?),
            Self::EndpointKey => (node.address.to_string(), Vec::new()),
            Self::EndpointValue => (instance.to_owned(), node.address.to_string().into_bytes()),
            Self::IpPid => (format!("{}/{instance}", node.address.ip()), waypost::encode(node, times)?),
        };
        if value.len() > MAX_VALUE_BYTES {
            return Err(EncodeError::TooLarge(value.len()));
        }
        Ok((format!("{}/{service}/{rest}", root.trim_end_matches('/')), value))
    }

    const fn key_shape(self) -> &'static str {
        match self {
            Self::Waypost => "<prefix><service>/<instance>",
            Self::EndpointKey => "<prefix><service>/<ip:port>",
            Self::EndpointValue => "<prefix><service>/<anything>",
            Self::IpPid => "<prefix><service>/<ip>/<pid>",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        let unknown = || UnknownFormat(text.chars().take(80).collect());
        Self::ALL.into_iter().find(|format| format.as_str() == text).ok_or_else(unknown)
    }
}

/// A node of which only address, protocol and name are known.
fn plain_node(address: SocketAddr, id: &str, protocol: Protocol) -> Node {
    Node { id: id.to_owned(), protocol, ..Node::at(address) }
}

/// An `ip:port` that a request can be sent to.
fn parse_endpoint(text: &str) -> Result<SocketAddr, DecodeError> {
    let expected = "address of the form ip:port (host names are not resolved)";
    let bad = || DecodeError::Address { text: text.chars().take(80).collect(), expected };
    let address: SocketAddr = text.parse().map_err(|_| bad())?;
    if address.port() == 0 || !is_host(address.ip()) { Err(bad()) } else { Ok(address) }
}

/// An IP address that a request can be sent to; IPv6 also in brackets.
fn parse_ip(text: &str) -> Result<IpAddr, DecodeError> {
    let expected = "IP address of a host (host names are not resolved)";
    let bad = || DecodeError::Address { text: text.chars().take(80).collect(), expected };
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let ip: IpAddr = bare.parse().map_err(|_| bad())?;
    if is_host(ip) { Ok(ip) } else { Err(bad()) }
}

/// `0.0.0.0` would be taken for this very host, a multicast group for nobody.
fn is_host(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast()
}

#[cfg(test)]
mod tests;
