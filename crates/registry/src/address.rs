//! This host's address, for what is registered: found by itself, by interface, by network, or as written.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    str::FromStr,
};

use ipnet::IpNet;

/// Where a service's address comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressSource {
    /// The address that the default route leaves from, or else that of the first interface that is up.
    Auto,
    /// This one.
    Literal(IpAddr),
    /// The first of an interface, IPv4 before IPv6.
    Interface(String),
    /// The first within a network.
    Cidr(IpNet),
}

/// A text that names no source of an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address: write \"auto\", an IP address, \"interface:eth0\" or \"cidr:10.0.0.0/8\"")]
pub struct InvalidAddressSource(String);

impl FromStr for AddressSource {
    type Err = InvalidAddressSource;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidAddressSource(text.to_owned());
        if text == "auto" {
            Ok(Self::Auto)
        } else if let Some(name) = text.strip_prefix("interface:") {
            // The kernel's names take at most 15 bytes.
            let fits = !name.is_empty() && name.len() <= 15 && !name.contains(['/', ' ']);
            if fits { Ok(Self::Interface(name.to_owned())) } else { Err(invalid()) }
        } else if let Some(net) = text.strip_prefix("cidr:") {
            net.parse().map(Self::Cidr).map_err(|_| invalid())
        } else {
            let address: IpAddr = text.parse().map_err(|_| invalid())?;
            // Nothing can be routed to these. Loopback may be meant: several hosts can be played on one.
            if address.is_unspecified() || address.is_multicast() { Err(invalid()) } else { Ok(Self::Literal(address)) }
        }
    }
}

impl fmt::Display for AddressSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Literal(address) => fmt::Display::fmt(address, f),
            Self::Interface(name) => f.pad(&format!("interface:{name}")),
            Self::Cidr(net) => f.pad(&format!("cidr:{net}")),
        }
    }
}

/// Why no address was found.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The host's interfaces cannot be listed.
    #[error("cannot list this host's interfaces: {0}")]
    Interfaces(#[from] io::Error),
    /// Only loopback is there, which no other host can reach.
    #[error("this host has only loopback addresses: bring an interface up, or set the service's address")]
    OnlyLoopback,
    /// No such interface, or it has no address.
    #[error("interface {name} has no address; this host has {}", .known.join(", "))]
    NoInterface {
        /// The interface asked for.
        name: String,
        /// What is there.
        known: Vec<String>,
    },
    /// No address lies within the network.
    #[error("no address of this host lies within {net}; this host has {}", .known.join(", "))]
    NotInNetwork {
        /// The network asked for.
        net: IpNet,
        /// What is there.
        known: Vec<String>,
    },
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface's name.
    pub name: String,
    /// Its address.
    pub ip: IpAddr,
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.ip, self.name)
    }
}

impl AddressSource {
    /// Whether what it says may change while the process runs.
    pub fn is_dynamic(&self) -> bool {
        !matches!(self, Self::Literal(_))
    }

    /// The address, found on this host now. `current` is the one found before: where several fit, it stays.
    ///
    /// # Errors
    /// [`AddressError`] if there is none.
    pub fn resolve(&self, current: Option<IpAddr>) -> Result<IpAddr, AddressError> {
        match self {
            Self::Literal(address) => Ok(*address),
            Self::Auto => match default_route_source() {
                Some(address) => Ok(address),
                None => self.choose(&interfaces()?, current),
            },
            Self::Interface(_) | Self::Cidr(_) => self.choose(&interfaces()?, current),
        }
    }

    /// The address out of those of the host.
    fn choose(&self, known: &[InterfaceAddress], current: Option<IpAddr>) -> Result<IpAddr, AddressError> {
        // IPv4 first; link-local addresses of IPv6 need a scope, which a registry cannot carry.
        let mut usable: Vec<_> = known.iter().filter(|address| !is_link_local(address.ip)).collect();
        usable.sort_by_key(|address| (Some(address.ip) != current, address.ip.is_ipv6()));
        let first = |fits: &dyn Fn(&InterfaceAddress) -> bool| usable.iter().find(|a| fits(a)).map(|a| a.ip);
        let names = || known.iter().map(ToString::to_string).collect();
        match self {
            Self::Literal(address) => Ok(*address),
            Self::Auto => first(&|address| !address.ip.is_loopback()).ok_or(AddressError::OnlyLoopback),
            Self::Interface(name) => first(&|address| address.name == *name)
                .ok_or_else(|| AddressError::NoInterface { name: name.clone(), known: names() }),
            Self::Cidr(net) => first(&|address| net.contains(&address.ip))
                .ok_or_else(|| AddressError::NotInNetwork { net: *net, known: names() }),
        }
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn interfaces() -> io::Result<Vec<InterfaceAddress>> {
    let up =
        if_addrs::get_if_addrs()?.into_iter().filter(|interface| interface.is_oper_up() || interface.is_loopback());
    Ok(up.map(|interface| InterfaceAddress { ip: interface.ip(), name: interface.name }).collect())
}

/// The source address that the kernel would use towards the internet. Connecting a UDP socket sends nothing.
fn default_route_source() -> Option<IpAddr> {
    let outside: [(IpAddr, IpAddr); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    ];
    outside.into_iter().find_map(|(any, target)| {
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
        socket.connect(SocketAddr::new(target, 9)).ok()?;
        let source = socket.local_addr().ok()?.ip();
        (!source.is_loopback() && !source.is_unspecified() && !is_link_local(source)).then_some(source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(addresses: &[(&str, &str)]) -> Vec<InterfaceAddress> {
        let address = |(name, ip): &(&str, &str)| InterfaceAddress { name: (*name).into(), ip: ip.parse().unwrap() };
        addresses.iter().map(address).collect()
    }

    fn choose(source: &str, addresses: &[(&str, &str)]) -> Result<String, String> {
        let source: AddressSource = source.parse().unwrap();
        source.choose(&host(addresses), None).map(|ip| ip.to_string()).map_err(|error| error.to_string())
    }

    const HOST: [(&str, &str); 5] = [
        ("lo", "127.0.0.1"),
        ("eth0", "fe80::1"),
        ("eth0", "2001:db8::7"),
        ("eth0", "10.1.2.3"),
        ("wg0", "192.168.9.1"),
    ];

    #[test]
    fn a_source_is_read_back_as_it_was_written() {
        for text in ["auto", "10.0.0.5", "2001:db8::5", "interface:eth0", "cidr:10.0.0.0/8", "cidr:2001:db8::/32"] {
            assert_eq!(text.parse::<AddressSource>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_nothing_could_be_routed_to_is_refused() {
        for text in ["", "localhost", "0.0.0.0", "::", "224.0.0.1", "interface:", "cidr:10.0.0.0/40", "10.0.0.5:80"] {
            let error = text.parse::<AddressSource>().unwrap_err().to_string();
            assert!(error.contains("interface:eth0"), "{error}");
        }
    }

    #[test]
    fn the_first_address_that_fits_is_chosen_and_ipv4_goes_first() {
        assert_eq!(choose("auto", &HOST).unwrap(), "10.1.2.3");
        assert_eq!(choose("interface:eth0", &HOST).unwrap(), "10.1.2.3");
        assert_eq!(choose("interface:wg0", &HOST).unwrap(), "192.168.9.1");
        assert_eq!(choose("cidr:192.168.0.0/16", &HOST).unwrap(), "192.168.9.1");
        assert_eq!(choose("cidr:2001:db8::/32", &HOST).unwrap(), "2001:db8::7");
        assert_eq!(choose("interface:lo", &HOST).unwrap(), "127.0.0.1");
    }

    #[test]
    fn the_address_found_before_stays_while_it_fits() {
        let (known, current) = (host(&HOST), |ip: &str| Some(ip.parse::<IpAddr>().unwrap()));
        let again = |source: &str, ip| {
            source.parse::<AddressSource>().unwrap().choose(&known, current(ip)).unwrap().to_string()
        };
        assert_eq!(again("auto", "192.168.9.1"), "192.168.9.1", "without a default route for a moment");
        assert_eq!(again("interface:eth0", "2001:db8::7"), "2001:db8::7");
        assert_eq!(again("interface:eth0", "192.168.9.1"), "10.1.2.3", "of another interface");
        assert_eq!(again("cidr:10.0.0.0/8", "10.9.9.9"), "10.1.2.3", "gone from the host");
    }

    #[test]
    fn link_local_addresses_are_never_chosen() {
        let error = choose("interface:eth0", &[("eth0", "fe80::1")]).unwrap_err();
        assert_eq!(error, "interface eth0 has no address; this host has fe80::1 (eth0)");
    }

    #[test]
    fn a_host_with_loopback_only_is_told_so() {
        let error = choose("auto", &[("lo", "127.0.0.1"), ("lo", "::1")]).unwrap_err();
        assert!(error.contains("only loopback"), "{error}");
    }

    #[test]
    fn what_is_there_is_named_when_nothing_fits() {
        let error = choose("cidr:172.16.0.0/12", &[("eth0", "10.1.2.3")]).unwrap_err();
        assert_eq!(error, "no address of this host lies within 172.16.0.0/12; this host has 10.1.2.3 (eth0)");
    }
}
