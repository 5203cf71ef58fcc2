//! How services and nodes are written in etcd's keys and values: one file per format.

mod apisix;
mod auto;
mod biregister;
mod dubbo;
mod dubbo_app;
mod dubbo_interface;
mod endpoint_key;
mod endpoint_value;
mod foreign;
mod found;
mod go_micro;
mod go_zero;
mod grpc_naming;
mod ip_pid;
mod kitex;
mod kratos;
mod skydns;
mod timestamp;
mod waypost;

use std::{fmt, str::FromStr, time::SystemTime};

use waypost_catalog::{Node, Protocol, ServiceName, model::InvalidServiceName};

pub(crate) use self::apisix::DEFAULT_PORT as APISIX_PORT;
use self::found::{Endpoint, parse_host, parse_port};
pub use self::{found::Found, timestamp::rfc3339};

/// Largest value that is looked at, in bytes: a node on the wire may not be larger either.
pub const MAX_VALUE_BYTES: usize = waypost_catalog::wire::limits::NODE_BYTES;
/// The same of a value that holds all nodes of a service: etcd itself takes no more, unless it is told to.
const MAX_SHARED_BYTES: usize = 2 * 1024 * 1024;

/// A way to keep nodes in etcd. Its name is read and printed as in the configuration: `waypost`, `go-zero`.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use waypost_catalog::{Node, Protocol, ServiceName};
/// use waypost_registry::{Format, format::Timestamps};
///
/// let format: Format = "kitex".parse()?;
/// let value = br#"{"network":"tcp","address":"10.0.0.5:8888","weight":20}"#;
/// let key = "kitex/registry-etcd/orders/10.0.0.5:8888";
/// let (service, nodes) = format.decode("kitex/registry-etcd/", key, value, Protocol::Http1)?;
/// assert_eq!((service.as_str(), nodes.len()), ("orders", 1));
///
/// // What is to be registered, as that framework would write it.
/// let node = Node { weight: 20, ..Node::at("10.0.0.5:8888".parse()?) };
/// let now = std::time::SystemTime::now();
/// let times = Timestamps { registered_at: now, updated_at: now };
/// let (key, value) = Format::GoZero.encode("", &ServiceName::new("orders")?, "1", &node, times)?;
/// assert_eq!((&*key, &*value), ("orders/1", &b"10.0.0.5:8888"[..]));
/// # Ok(()) }
/// ```
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
    /// go-zero's: `<Etcd.Key>/<number>`, `ip:port`.
    GoZero,
    /// Kratos's: `<namespace>/<name>/<id>`, JSON.
    Kratos,
    /// go-micro's: `<root>/<service>/<node id>`, JSON.
    GoMicro,
    /// That of etcd's Go client for gRPC: `<target>/<anything>`, JSON.
    GrpcNaming,
    /// Kitex's: `<root>/<service>/<ip:port>`, JSON.
    Kitex,
    /// Hertz's: the same below another root.
    Hertz,
    /// dubbo-go's registration of applications: `<root>/<application>/<ip:port>`, JSON.
    DubboApp,
    /// Dubbo's registration of interfaces: `<root>/<interface>/providers/<URL>`, no value.
    DubboInterface,
    /// That of CoreDNS: `<root>/<labels of the name, last first>/<id>`, JSON.
    SkyDns,
    /// APISIX's upstreams: `<root>/<id>`, JSON with all nodes.
    Apisix,
    /// That of biregister: `<prefix><name>`, `ip:port` or JSON.
    Biregister,
    /// Each key in the format that it is in.
    Auto,
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
    #[error("the value has {size} bytes, more than the {allowed} allowed")]
    TooLarge {
        /// Its size.
        size: usize,
        /// What is allowed.
        allowed: usize,
    },
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
    /// The key's service is not the value's.
    #[error("the value is that of service {0:?}, the key another's")]
    OtherService(String),
    /// None of the endpoints can be reached with the protocol.
    #[error("no {wanted}:// endpoint, which protocol {protocol} needs, among {found:?}")]
    NoEndpoint {
        /// The scheme that would fit best.
        wanted: &'static str,
        /// The protocol.
        protocol: &'static str,
        /// What there is (cut).
        found: String,
    },
    /// The node takes more room than it may on the wire.
    #[error("the node takes more than the {MAX_VALUE_BYTES} bytes allowed")]
    NodeTooLarge,
    /// Of a key that may be in any format.
    #[error("key and value are of no known format")]
    Unrecognised,
    /// One of the keys that the framework has beside its nodes: nothing is wrong with it.
    #[error("the key is {0}")]
    NoNode(&'static str),
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
    /// Nodes are read in this format, and not written.
    #[error("format {0} is read only: register in another one")]
    ReadOnly(Format),
    /// The value could not be written as JSON.
    #[error("the value cannot be written: {0}")]
    Json(String),
    /// The format has no way to say that a node gets no requests.
    #[error(
        "format {0} cannot say a weight of 0, its clients would take the node for a full one: write another weight"
    )]
    ZeroWeight(Format),
    /// The service's name can be no upstream's id.
    #[error("service name {0:?} is no id of an upstream: 1 to 64 letters, digits and - _ . are allowed")]
    UpstreamId(String),
    /// The service's name cannot be asked for in DNS.
    #[error("service name {0:?} is no DNS name: 1 to 63 characters are needed before, between and after its dots")]
    DnsName(String),
}

/// No format is called so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no format: allowed are {list}", list = Format::list())]
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
    pub const ALL: [Self; 16] = [
        Self::Waypost,
        Self::EndpointKey,
        Self::EndpointValue,
        Self::IpPid,
        Self::GoZero,
        Self::Kratos,
        Self::GoMicro,
        Self::GrpcNaming,
        Self::Kitex,
        Self::Hertz,
        Self::DubboApp,
        Self::DubboInterface,
        Self::SkyDns,
        Self::Apisix,
        Self::Biregister,
        Self::Auto,
    ];

    /// Its name in configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waypost => "waypost",
            Self::EndpointKey => "endpoint-key",
            Self::EndpointValue => "endpoint-value",
            Self::IpPid => "ip-pid",
            Self::GoZero => "go-zero",
            Self::Kratos => "kratos",
            Self::GoMicro => "go-micro",
            Self::GrpcNaming => "grpc-naming",
            Self::Kitex => "kitex",
            Self::Hertz => "hertz",
            Self::DubboApp => "dubbo-app",
            Self::DubboInterface => "dubbo-interface",
            Self::SkyDns => "skydns",
            Self::Apisix => "apisix",
            Self::Biregister => "biregister",
            Self::Auto => "auto",
        }
    }

    /// The root that is used where none is said, if there is one. That of go-zero is empty: its keys begin with the
    /// service's name.
    pub const fn default_root(self) -> Option<&'static str> {
        match self {
            Self::Waypost => Some("/waypost/services/"),
            Self::EndpointKey
            | Self::EndpointValue
            | Self::IpPid
            | Self::GrpcNaming
            | Self::Biregister
            | Self::Auto => None,
            Self::GoZero => Some(""),
            Self::Kratos => Some("/microservices/"),
            Self::GoMicro => Some("/micro/registry/"),
            Self::Kitex => Some("kitex/registry-etcd/"),
            Self::Hertz => Some("hertz/registry-etcd/"),
            Self::DubboApp => Some("/services/"),
            Self::DubboInterface => Some("/dubbo/"),
            Self::SkyDns => Some("/skydns/"),
            Self::Apisix => Some("/apisix/upstreams/"),
        }
    }

    /// The weight of a node that says none: what the framework's own clients take it for.
    pub const fn default_weight(self) -> u32 {
        match self {
            Self::Kratos => kratos::DEFAULT_WEIGHT,
            Self::Kitex | Self::Hertz => kitex::DEFAULT_WEIGHT,
            Self::DubboApp | Self::DubboInterface => dubbo::DEFAULT_WEIGHT,
            Self::SkyDns => skydns::DEFAULT_WEIGHT,
            Self::Waypost
            | Self::EndpointKey
            | Self::EndpointValue
            | Self::IpPid
            | Self::GoZero
            | Self::GoMicro
            | Self::GrpcNaming
            | Self::Apisix
            | Self::Biregister
            | Self::Auto => 1,
        }
    }

    /// Whether a value can say that its node is critical or draining. Otherwise such a node's key is deleted.
    ///
    /// `dubbo-app` has a field for it, which dubbo-go's consumers do not look at.
    pub const fn carries_health(self) -> bool {
        matches!(self, Self::Waypost)
    }

    /// Whether a weight of 0 means none, and not the default.
    const fn carries_zero_weight(self) -> bool {
        matches!(self, Self::Waypost | Self::IpPid | Self::Kratos | Self::DubboInterface | Self::Apisix)
    }

    /// The names of all, for people.
    fn list() -> String {
        let names = Self::ALL.map(|format| format!("{:?}", format.as_str()));
        match names.split_last() {
            Some((last, others)) => format!("{} and {last}", others.join(", ")),
            None => String::new(),
        }
    }

    /// The nodes that a key below `prefix` and its value stand for: one, but for [`Self::Apisix`]. `protocol` is that of
    /// nodes which do not say.
    ///
    /// # Errors
    /// [`DecodeError`] saying what is wrong with it.
    pub fn decode(
        self,
        prefix: &str,
        key: &str,
        value: &[u8],
        protocol: Protocol,
    ) -> Result<(ServiceName, Vec<Found>), DecodeError> {
        let outside = || DecodeError::OutsidePrefix { prefix: prefix.into() };
        let path = key.strip_prefix(prefix).ok_or_else(outside)?;
        let allowed = if matches!(self, Self::Apisix | Self::Auto) { MAX_SHARED_BYTES } else { MAX_VALUE_BYTES };
        if value.len() > allowed {
            return Err(DecodeError::TooLarge { size: value.len(), allowed });
        }
        let one = |(service, found)| (service, vec![found]);
        let (service, found) = match self {
            Self::DubboInterface => one(dubbo_interface::decode(path, protocol)?),
            Self::SkyDns => one(skydns::decode(path, value, protocol)?),
            Self::Apisix => apisix::decode(path, value, protocol)?,
            Self::Biregister => one(biregister::decode(prefix, path, value, protocol)?),
            Self::Auto => {
                return auto::decode(prefix, key, value, protocol).map(|(_, service, found)| (service, found));
            }
            _ => one(self.decode_in_service(prefix, path, value, protocol)?),
        };
        // Most are far too small for that, which is cheaper to see.
        if path.len() + value.len() > MAX_VALUE_BYTES / 4 && !found.iter().all(Found::fits_the_wire) {
            return Err(DecodeError::NodeTooLarge);
        }
        Ok((service, found))
    }

    /// The node of a path that begins with its service.
    fn decode_in_service(
        self,
        prefix: &str,
        path: &str,
        value: &[u8],
        protocol: Protocol,
    ) -> Result<(ServiceName, Found), DecodeError> {
        let shape = DecodeError::KeyShape { expected: self.key_shape() };
        let (service, rest) = match path.split_once('/') {
            Some(parts) => parts,
            // These frameworks know no common root: the prefix may be that of one service.
            None if matches!(self, Self::GoZero | Self::GrpcNaming) => (last_part(prefix), path),
            None => return Err(shape),
        };
        if rest.is_empty() {
            return Err(shape);
        }
        let service = ServiceName::new(service)?;
        let found = match self {
            Self::Waypost => waypost::decode(rest, value, protocol),
            Self::EndpointKey => endpoint_key::decode(rest, protocol),
            Self::EndpointValue => endpoint_value::decode(rest, value, protocol),
            Self::IpPid => ip_pid::decode(rest, value, protocol),
            Self::GoZero => go_zero::decode(rest, value, protocol),
            Self::Kratos => kratos::decode(&service, rest, value, protocol),
            Self::GoMicro => go_micro::decode(rest, value, protocol),
            Self::GrpcNaming => grpc_naming::decode(rest, value, protocol),
            Self::Kitex | Self::Hertz => kitex::decode(rest, value, protocol),
            Self::DubboApp => dubbo_app::decode(rest, value, protocol),
            Self::DubboInterface | Self::SkyDns | Self::Apisix | Self::Biregister | Self::Auto => Err(shape),
        };
        Ok((service, found?))
    }

    /// Key and value that stand for a node; for [`Self::Apisix`] those that an
    /// [`UpstreamWriter`](crate::UpstreamWriter) puts into the upstream.
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
        if node.weight == 0 && !self.carries_zero_weight() {
            return Err(EncodeError::ZeroWeight(self));
        }
        let by_instance = format!("{service}/{instance}");
        let by_address = format!("{service}/{}", node.address);
        let (path, value) = match self {
            Self::Waypost => (by_instance, waypost::encode(node, times)?),
            Self::EndpointKey => (by_address, Vec::new()),
            Self::EndpointValue => (by_instance, node.address.to_string().into_bytes()),
            Self::IpPid => (format!("{service}/{}/{instance}", node.address.ip()), waypost::encode(node, times)?),
            Self::GoZero => (format!("{service}/{}", go_zero::id(instance)), node.address.to_string().into_bytes()),
            Self::Kratos => (by_instance, kratos::encode(service, instance, node)?),
            Self::GoMicro => (by_instance, go_micro::encode(service, instance, node)?),
            Self::GrpcNaming => (by_instance, grpc_naming::encode(node)?),
            Self::Kitex | Self::Hertz => (by_address, kitex::encode(node)?),
            Self::DubboApp => (by_address, dubbo_app::encode(service, node)?),
            Self::DubboInterface => (dubbo_interface::encode(service, node), Vec::new()),
            Self::SkyDns => skydns::encode(service, instance, node)?,
            Self::Biregister => (by_instance, node.address.to_string().into_bytes()),
            // The key is not below the root.
            Self::Apisix => return apisix::encode(root, service, instance, node, times).and_then(of_allowed_size),
            Self::Auto => return Err(EncodeError::ReadOnly(self)),
        };
        let slash = if root.is_empty() { "" } else { "/" };
        of_allowed_size((format!("{}{slash}{path}", root.trim_end_matches('/')), value))
    }

    const fn key_shape(self) -> &'static str {
        match self {
            Self::Waypost => "<prefix><service>/<instance>",
            Self::EndpointKey => "<prefix><service>/<host:port>",
            Self::EndpointValue => "<prefix><service>/<anything>",
            Self::IpPid => "<prefix><service>/<ip>/<pid>",
            Self::GoZero => "<prefix><service>/<number>",
            Self::Kratos => "<prefix><name>/<id>",
            Self::GoMicro => "<prefix><service>/<node id>",
            Self::GrpcNaming => "<prefix><target>/<anything>",
            Self::Kitex | Self::Hertz => "<prefix><service>/<host:port>",
            Self::DubboApp => "<prefix><application>/<host:port>",
            Self::DubboInterface => dubbo_interface::SHAPE,
            Self::SkyDns => skydns::SHAPE,
            Self::Apisix => apisix::SHAPE,
            Self::Biregister => biregister::SHAPE,
            Self::Auto => "<prefix><service>/<instance>",
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

fn of_allowed_size((key, value): (String, Vec<u8>)) -> Result<(String, Vec<u8>), EncodeError> {
    let size = key.len().max(value.len());
    if size > MAX_VALUE_BYTES { Err(EncodeError::TooLarge(size)) } else { Ok((key, value)) }
}

/// The last part of a prefix, without what separates it from what comes after it.
fn last_part(prefix: &str) -> &str {
    let prefix = prefix.trim_end_matches(['/', '-', '_', '.', ':']);
    prefix.rsplit_once('/').map_or(prefix, |(_, last)| last)
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
