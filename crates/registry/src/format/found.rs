//! A node as its key and value say it: at an address, or at a host that is known by its name only.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use waypost_catalog::{Node, Protocol};

use super::DecodeError;
use crate::host::{Host, HostName};

/// A node that a key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// At port `port` of `0.0.0.0` if its host has a name.
    node: Arc<Node>,
    name: Option<HostName>,
}

impl Found {
    /// The name of its host, if that is all that is known of it.
    pub fn name(&self) -> Option<&HostName> {
        self.name.as_ref()
    }

    /// Where it listens.
    pub fn host(&self) -> Host {
        match &self.name {
            Some(name) => Host::Name(name.clone()),
            None => Host::Address(self.node.address.ip()),
        }
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.node.address.port()
    }

    /// The node, if its address is known without its host's name being looked up.
    pub fn node(&self) -> Option<&Node> {
        self.shared().map(Arc::as_ref)
    }

    /// The same, for whoever keeps it too.
    pub(crate) fn shared(&self) -> Option<&Arc<Node>> {
        Some(&self.node).filter(|_| self.name.is_none())
    }

    /// The node at each of the addresses that its host's name stands for, with its whole weight at each, as Envoy's
    /// `STRICT_DNS` clusters do. If they are several, each has a name of its own.
    pub fn at<'a>(&'a self, addresses: &'a [IpAddr]) -> impl Iterator<Item = Node> + 'a {
        addresses.iter().map(move |ip| Node {
            address: SocketAddr::new(*ip, self.port()),
            id: if addresses.len() == 1 { self.node.id.clone() } else { format!("{}@{ip}", self.node.id) },
            ..Node::clone(&self.node)
        })
    }

    /// A node of which only endpoint, protocol and name are known.
    pub(super) fn plain(endpoint: Endpoint, id: &str, protocol: Protocol) -> Self {
        let Endpoint { host, port } = endpoint;
        let (ip, name) = match host {
            Host::Address(ip) => (ip, None),
            Host::Name(name) => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), Some(name)),
        };
        let node = Node { id: id.to_owned(), protocol, ..Node::at(SocketAddr::new(ip, port)) };
        Self { node: Arc::new(node), name }
    }

    /// The same with more that is known of it.
    pub(super) fn with(self, more: impl FnOnce(Node) -> Node) -> Self {
        Self { node: Arc::new(more(Arc::unwrap_or_clone(self.node))), name: self.name }
    }

    /// Whether it gets no requests.
    pub(super) fn waits(&self) -> bool {
        self.node.weight == 0
    }

    pub(super) fn fits_the_wire(&self) -> bool {
        self.node.encode().is_ok()
    }

    #[cfg(test)]
    pub(super) fn into_node(self) -> Node {
        Arc::unwrap_or_clone(self.node)
    }
}

/// Host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) host: Host,
    pub(super) port: u16,
}

impl Endpoint {
    /// That of a text of the form `host:port`; IPv6 addresses are in brackets.
    pub(super) fn parse(text: &str) -> Result<Self, DecodeError> {
        let bad = || DecodeError::Address {
            text: text.chars().take(80).collect(),
            expected: "address of the form host:port",
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port: u16 = port.parse().ok().filter(|port| digits && *port != 0).ok_or_else(bad)?;
        let host = Host::parse(host).filter(|_| !host.contains(':') || host.starts_with('[')).ok_or_else(bad)?;
        Ok(Self { host, port })
    }
}

/// The host that a value names.
pub(super) fn parse_host(text: &str) -> Result<Host, DecodeError> {
    let expected = "IP address or name of a host";
    Host::parse(text).ok_or_else(|| DecodeError::Address { text: text.chars().take(80).collect(), expected })
}

/// A port as Go's `int`.
pub(super) fn parse_port(port: Option<i64>, field: &'static str) -> Result<u16, DecodeError> {
    let port = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
    port.ok_or(DecodeError::Missing(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_an_address_or_a_name_and_a_port() {
        let parsed = |text: &str| Endpoint::parse(text).map(|endpoint| (endpoint.host, endpoint.port)).ok();
        let name = |name| Host::Name(HostName::new(name).unwrap());
        assert_eq!(parsed("10.0.0.5:80"), Some((Host::Address([10, 0, 0, 5].into()), 80)));
        assert_eq!(parsed("[::1]:80"), Some((Host::Address("::1".parse().unwrap()), 80)));
        assert_eq!(parsed("orders.shop:65535"), Some((name("orders.shop"), 65535)));
        for bad in
            ["", ":80", "a", "a:", "a:0", "a:+1", "a:65536", "::1:80", "0.0.0.0:80", "http://a:80", "a:80,b:80", "1:80"]
        {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_name_with_several_addresses_is_a_whole_node_at_each_of_them() {
        let found = Found::plain(Endpoint::parse("orders:80").unwrap(), "orders-1", Protocol::Http2);
        let found = found.with(|node| Node { weight: 3, ..node });
        assert_eq!((found.node(), found.port()), (None, 80));
        let ips: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        let shown = |ips: &[IpAddr]| -> Vec<_> {
            found.at(ips).map(|node| (node.address.to_string(), node.id, node.weight, node.protocol)).collect()
        };
        let node = |address: &str, id: &str| (address.to_owned(), id.to_owned(), 3, Protocol::Http2);
        assert_eq!(shown(&ips[..1]), [node("10.0.0.1:80", "orders-1")]);
        let both = [node("10.0.0.1:80", "orders-1@10.0.0.1"), node("10.0.0.2:80", "orders-1@10.0.0.2")];
        assert_eq!(shown(&ips), both);
        assert!(shown(&[]).is_empty());
    }
}
