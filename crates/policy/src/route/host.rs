//! Hosts of a route: exact ones, and all below one.

use std::{fmt, net::Ipv6Addr};

use crate::json::quoted;

/// One host, or all below one. Ports do not count, and neither does the case of letters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// This one, in lower case.
    Exact(String),
    /// Every one that ends in a dot and this, in lower case: `*.example.com` is `a.example.com` and `a.b.example.com`,
    /// not `example.com`.
    Below(String),
}

impl HostPattern {
    /// Reads `api.example.com`, `*.example.com`, `10.0.0.1` or `[::1]`.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("{} is no host: {why}", quoted(text)));
        let host = text.to_ascii_lowercase();
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Some(address) = bracketed {
            let fits = address.parse::<Ipv6Addr>().is_ok();
            return if fits { Ok(Self::Exact(host)) } else { wrong("an IPv6 address is written as \"[::1]\"") };
        }
        if host == "*" {
            return wrong("leave hosts out for any host");
        }
        if host.contains(':') {
            return wrong("ports do not count, leave it out");
        }
        let (below, name) = match host.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, host.as_str()),
        };
        let fits =
            |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        if host.len() > 253 || !name.split('.').all(fits) {
            return wrong("write one such as \"api.example.com\", or \"*.example.com\" for all below it");
        }
        Ok(if below { Self::Below(name.to_owned()) } else { Self::Exact(host) })
    }

    /// Whether a host, in lower case and without port, is meant.
    pub fn takes(&self, host: &[u8]) -> bool {
        match self {
            Self::Exact(name) => host == name.as_bytes(),
            Self::Below(name) => {
                let before = host.strip_suffix(name.as_bytes()).and_then(|before| before.strip_suffix(b"."));
                before.is_some_and(|before| !before.is_empty() && !before.starts_with(b"."))
            }
        }
    }

    /// As the beginning of what [`reversed`] makes of each host that is meant.
    pub(crate) fn reversed(&self) -> Vec<u8> {
        match self {
            Self::Exact(name) => reversed(name.as_bytes()),
            Self::Below(name) => name.bytes().rev().chain([b'.']).collect(),
        }
    }
}

/// A host back to front, with an end that no other host has: so that both an exact host and one that all others are
/// below is a beginning of it.
pub(crate) fn reversed(host: &[u8]) -> Vec<u8> {
    let mut reversed = Vec::with_capacity(host.len() + 1);
    reversed.extend(host.iter().rev());
    reversed.push(0);
    reversed
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_shown_as_it_was_written_in_lower_case() {
        for text in ["api.Example.com", "*.example.com", "10.0.0.1", "[::1]", "orders", "a_b.c"] {
            assert_eq!(HostPattern::parse(text).unwrap().to_string(), text.to_ascii_lowercase());
        }
        for wrong in
            ["", "*", "*.", "a..b", "a.", ".a", "a*.b", "a.*", "*.*.a", "a:80", "[::1]:80", "[]", "[x]", "a/b", "ä"]
        {
            assert!(HostPattern::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn all_below_a_host_are_meant_and_not_the_host_itself() {
        let takes = |pattern: &str, host: &str| {
            let pattern = HostPattern::parse(pattern).unwrap();
            let takes = pattern.takes(host.as_bytes());
            // The index finds the same.
            let begins = reversed(host.as_bytes()).starts_with(&pattern.reversed());
            assert!(begins == takes || host.starts_with('.'), "{pattern} {host}");
            takes
        };
        assert!(takes("*.example.com", "a.example.com") && takes("*.example.com", "a.b.example.com"));
        for host in ["example.com", ".example.com", "aexample.com", "a.example.com.", "a.example.org", ""] {
            assert!(!takes("*.example.com", host), "{host}");
        }
        assert!(takes("a.b", "a.b") && !takes("a.b", "xa.b") && !takes("a.b", "a.bx"));
    }
}
