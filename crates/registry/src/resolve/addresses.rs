//! What the names of hosts stand for, as far as that is known. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::Resolution;
use crate::host::HostName;

/// The addresses of names.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    known: BTreeMap<HostName, Option<Arc<[IpAddr]>>>,
}

impl Addresses {
    /// Takes in what a name stands for. Whether that is another answer than before.
    pub fn take_in(&mut self, resolution: &Resolution) -> bool {
        let Resolution { name, addresses } = resolution;
        self.known.insert(name.clone(), addresses.clone()).as_ref() != Some(addresses)
    }

    /// The addresses of a name; none while they are not known.
    pub fn of(&self, name: &HostName) -> &[IpAddr] {
        self.known.get(name).and_then(Option::as_deref).unwrap_or_default()
    }

    /// Whether it was tried to look the name up.
    pub fn is_answered(&self, name: &HostName) -> bool {
        self.known.contains_key(name)
    }

    /// Forgets all names but these.
    pub fn retain(&mut self, names: &BTreeSet<HostName>) {
        self.known.retain(|name, _| names.contains(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_answer_is_news() {
        let name = HostName::new("h1").unwrap();
        let mut addresses = Addresses::default();
        let answer =
            |addresses: Option<&[IpAddr]>| Resolution { name: name.clone(), addresses: addresses.map(Arc::from) };
        assert!(!addresses.is_answered(&name));
        assert!(addresses.take_in(&answer(None)) && addresses.is_answered(&name));
        assert!(addresses.of(&name).is_empty() && !addresses.take_in(&answer(None)));
        let ip = [IpAddr::from([10, 0, 0, 1])];
        assert!(addresses.take_in(&answer(Some(&ip))) && !addresses.take_in(&answer(Some(&ip))));
        assert_eq!(addresses.of(&name), ip);
        addresses.retain(&BTreeSet::new());
        assert!(!addresses.is_answered(&name) && addresses.of(&name).is_empty());
    }
}
