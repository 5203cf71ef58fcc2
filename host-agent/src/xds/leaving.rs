//! Nodes that the catalog has no more, and that clusters keep until the filters have dropped them.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Instant};

use waypost_catalog::{Node, Service, ServiceName, model::NodeEntry};

use crate::stream::coordination::REMOVE_LIMIT;

/// The nodes that leave, by service.
#[derive(Debug, Default)]
pub struct Leaving {
    services: BTreeMap<ServiceName, BTreeMap<SocketAddr, Leaver>>,
}

#[derive(Debug)]
struct Leaver {
    node: Arc<NodeEntry>,
    /// The version that first was without it.
    gone_in: u64,
    until: Instant,
}

impl Leaving {
    /// Takes in that a service changed, with version `gone_in` of the catalog.
    pub fn step(
        &mut self,
        name: &ServiceName,
        old: Option<&Service>,
        new: Option<&Service>,
        gone_in: u64,
        now: Instant,
    ) {
        let stays = |address: &SocketAddr| new.is_some_and(|new| new.entries().contains_key(address));
        let mut leavers = self.services.remove(name).unwrap_or_default();
        leavers.retain(|address, _| !stays(address));
        let gone = old.into_iter().flat_map(Service::entries).filter(|(address, _)| !stays(address));
        leavers.extend(
            gone.map(|(address, node)| {
                (*address, Leaver { node: Arc::clone(node), gone_in, until: now + REMOVE_LIMIT })
            }),
        );
        if !leavers.is_empty() {
            self.services.insert(name.clone(), leavers);
        }
    }

    /// Lets go of those that the filters have dropped, who are all at version `filters`, and those whose time is up.
    /// The services that lost one.
    pub fn release(&mut self, filters: u64, now: Instant) -> Vec<ServiceName> {
        let mut changed = Vec::new();
        self.services.retain(|name, leavers| {
            let before = leavers.len();
            leavers.retain(|_, leaver| leaver.gone_in > filters && leaver.until > now);
            if leavers.len() < before {
                changed.push(name.clone());
            }
            !leavers.is_empty()
        });
        changed
    }

    /// Those of a service.
    pub fn of(&self, service: &str) -> impl Iterator<Item = &Node> {
        self.services.get(service).into_iter().flat_map(BTreeMap::values).map(|leaver| leaver.node.node())
    }

    /// When the time of the next one is up.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.services.values().flat_map(BTreeMap::values).map(|leaver| leaver.until).min()
    }
}
