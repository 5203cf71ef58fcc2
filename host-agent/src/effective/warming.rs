//! Since when nodes have been ready, as far as slow start needs to know. Pure: the time comes in.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};

use waypost_balance::slow_start;
use waypost_catalog::{Placement, ServiceName};

/// Steps in which a node's share grows over the window, at most one each [`SHORTEST_STEP`].
const STEPS: u32 = 50;
const SHORTEST_STEP: Duration = Duration::from_millis(200);

/// How a service's nodes start slowly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    /// How long it takes.
    pub window: Duration,
    /// 1: the share grows with the time; above: faster at first.
    pub aggression: f64,
    /// The share at the beginning, in percent.
    pub min_share: u8,
}

impl SlowStart {
    fn step(&self) -> Duration {
        SHORTEST_STEP.max(self.window / STEPS)
    }
}

/// Nodes that have not been ready for long.
#[derive(Debug, Default)]
pub struct Warming {
    since: HashMap<ServiceName, BTreeMap<SocketAddr, Instant>>,
    /// When the shares of a service's nodes are to be looked at again.
    due: BTreeMap<ServiceName, Instant>,
}

impl Warming {
    /// What counts of a node's weight now, in thousandths. `ready`: it passes; `was_ready`: it did so before this.
    ///
    /// To be called for each node of the service; [`Self::settle`] then says when to do so again.
    pub fn share(
        &mut self,
        service: &ServiceName,
        address: SocketAddr,
        slow: SlowStart,
        (was_ready, ready): (bool, bool),
        now: Instant,
    ) -> u16 {
        let known = self.since.get(service).and_then(|nodes| nodes.get(&address)).copied();
        let since = match (known, was_ready, ready) {
            (_, _, false) => None,
            (Some(since), _, true) => Some(since),
            (None, true, true) => None,
            (None, false, true) => Some(now),
        };
        let passed = since.map(|since| now.saturating_duration_since(since)).filter(|passed| *passed < slow.window);
        match (since, passed) {
            (Some(since), Some(passed)) => {
                self.since.entry(service.clone()).or_default().insert(address, since);
                slow_start(passed, slow.window, slow.aggression, slow.min_share)
            }
            _ => {
                if let Some(nodes) = self.since.get_mut(service) {
                    nodes.remove(&address);
                }
                Placement::WARM
            }
        }
    }

    /// Every node of the service has been looked at. Those that are not `present` any more are forgotten.
    pub fn settle(
        &mut self,
        service: &ServiceName,
        slow: SlowStart,
        present: impl Fn(SocketAddr) -> bool,
        now: Instant,
    ) {
        let Some(nodes) = self.since.get_mut(service) else { return };
        nodes.retain(|address, _| present(*address));
        if nodes.is_empty() {
            self.forget(service);
        } else {
            self.due.insert(service.clone(), now + slow.step());
        }
    }

    /// The service starts nothing slowly.
    pub fn forget(&mut self, service: &ServiceName) {
        self.since.remove(service);
        self.due.remove(service);
    }

    /// Services whose shares are to be looked at again.
    pub fn take_due(&mut self, now: Instant) -> Vec<ServiceName> {
        let due: Vec<_> = self.due.iter().filter(|(_, at)| now >= **at).map(|(service, _)| service.clone()).collect();
        for service in &due {
            self.due.remove(service);
        }
        due
    }

    /// When that will be.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }
}
