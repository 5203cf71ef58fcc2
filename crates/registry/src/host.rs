//! Hosts as nodes name them: by an IP address, or by a name that has to be looked up.

use std::{fmt, net::IpAddr, sync::Arc};

/// Name of a host: labels of letters, digits, `-` and `_` with dots between them, in lower case.
///
/// Nothing that a resolver would take for an address in an odd notation is one (`1234`, `10.0.0.256`, `0x7f.1`).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

/// A text is no name of a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name of a host: labels of up to 63 letters, digits, - and _ with dots between them are allowed")]
pub struct InvalidHostName(pub String);

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// At an address that a request can be sent to.
    Address(IpAddr),
    /// At every address that the name stands for.
    Name(HostName),
}

impl HostName {
    /// The name, checked.
    ///
    /// # Errors
    /// [`InvalidHostName`] with the text (cut to 80 characters).
    pub fn new(text: &str) -> Result<Self, InvalidHostName> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let fits = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let last = name.rsplit('.').next().unwrap_or_default();
        let number = last.starts_with("0x") || last.starts_with("0X") || last.bytes().all(|byte| byte.is_ascii_digit());
        if name.len() > 253 || number || !name.split('.').all(fits) {
            return Err(InvalidHostName(text.chars().take(80).collect()));
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Host {
    /// The host that a text names; IPv6 addresses also in brackets.
    pub fn parse(text: &str) -> Option<Self> {
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        match bare.unwrap_or(text).parse::<IpAddr>() {
            Ok(ip) => is_host(ip).then_some(Self::Address(ip)),
            Err(_) => HostName::new(text).ok().map(Self::Name),
        }
    }
}

/// Whether a request can be sent there: `0.0.0.0` would be taken for this very host, a multicast group for nobody.
pub(crate) fn is_host(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast()
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_addresses_and_from_what_is_neither() {
        for name in ["localhost", "orders-1.shop.svc.cluster.local", "a_b", "10.0.0.5.nip.io", "Orders.", "1a"] {
            assert!(matches!(Host::parse(name), Some(Host::Name(_))), "{name}");
        }
        for address in ["10.0.0.5", "::1", "[::1]", "127.0.0.1"] {
            assert!(matches!(Host::parse(address), Some(Host::Address(_))), "{address}");
        }
        let long = ["x"; 64].concat();
        for neither in [
            "",
            ".",
            "..",
            "a..b",
            "-a",
            "a-",
            "a b",
            "a/b",
            "a:1",
            "1234",
            "10.0.0.256",
            "0x7f.0x1",
            "0.0.0.0",
            "::",
            &long,
        ] {
            assert_eq!(Host::parse(neither), None, "{neither}");
        }
        assert_eq!(HostName::new("Orders.Shop"), HostName::new("orders.shop"), "names know no case");
    }
}
