//! What is known of a service's nodes beyond the catalog: requests in flight, latencies, ejections.

mod ejection;
mod latency;
mod slots;

use std::time::Duration;

use self::{
    ejection::{Standing, Watch},
    latency::Latency,
    slots::Slots,
};
use crate::{
    outcome::{Outcome, OutcomeKind},
    settings::{Algorithm, Settings},
};

/// A node's place in a [`Pool`]: its own as long as it is there or requests are in flight on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u32);

impl Slot {
    /// Its number, from 0; those of slots in use leave few gaps.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What is known of a service's nodes beyond the catalog. One for each service, whatever subsets of it are picked from;
/// it outlives every change of nodes.
///
/// Whoever picks says [`started`](Self::started) for each request sent and [`ended`](Self::ended) exactly once for each
/// of those; [`sync`](Self::sync) when nodes change; [`tick`](Self::tick) now and then, a few times a second or so. All
/// but `sync` and the comparison of success rates (once per [`Ejection::interval`](crate::Ejection::interval)) are
/// O(1), but for a look at ejected nodes when the time of one is up.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    slots: Slots,
    nodes: Vec<Node>,
    watch: Watch,
    in_flight: u64,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    in_flight: u32,
    latency: Latency,
    standing: Standing,
}

impl Pool {
    /// One that knows nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// These are the nodes now, by their keys. Those that stay keep what is known of them; of one that is gone
    /// everything is forgotten once no request is in flight on it. Slots come in the order of the keys.
    pub fn sync(&mut self, keys: impl IntoIterator<Item = u64>, now: Duration) -> Vec<Slot> {
        let nodes = &mut self.nodes;
        let slots = self.slots.sync(keys, |slot, new| {
            let fresh = Node { in_flight: 0, latency: Latency::unknown(now), standing: Standing::default() };
            match nodes.get_mut(slot.index()) {
                Some(node) if new => *node = fresh,
                Some(_) => {}
                None => nodes.push(fresh),
            }
        });
        let busy = |slot: Slot| nodes.get(slot.index()).is_some_and(|node| node.in_flight > 0);
        self.slots.forget_gone(busy);
        self.watch.recount(&self.nodes, &self.slots);
        slots
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The slot of the node with this key.
    pub fn slot(&self, key: u64) -> Option<Slot> {
        self.slots.of(key)
    }

    /// A request is sent to a node.
    pub fn started(&mut self, slot: Slot) {
        if let Some(node) = self.nodes.get_mut(slot.index()) {
            node.in_flight = node.in_flight.saturating_add(1);
            node.standing.started();
            self.in_flight += 1;
        }
    }

    /// A request that was [`started`](Self::started) there has ended. Whether a node was ejected or readmitted by that:
    /// then selectors are to be rebuilt.
    pub fn ended(&mut self, slot: Slot, outcome: Outcome, now: Duration, settings: &Settings) -> bool {
        let Some(node) = self.nodes.get_mut(slot.index()) else { return false };
        if node.in_flight > 0 {
            node.in_flight -= 1;
            self.in_flight = self.in_flight.saturating_sub(1);
        }
        if let Algorithm::PeakEwma { decay, default_latency } = settings.algorithm {
            node.latency.observe(outcome, now, decay, default_latency);
        }
        if node.in_flight == 0 && !self.slots.is_present(slot) {
            self.slots.free(slot);
            return false;
        }
        self.judge(slot, outcome, now, settings)
    }

    /// An attempt failed on a node on which no request counts as in flight: it was an alternative that failed, too. Whether
    /// a node was ejected by that.
    pub fn failed_try(&mut self, slot: Slot, kind: OutcomeKind, now: Duration, settings: &Settings) -> bool {
        self.judge(slot, Outcome { kind, latency: None }, now, settings)
    }

    fn judge(&mut self, slot: Slot, outcome: Outcome, now: Duration, settings: &Settings) -> bool {
        let Some(ejection) = &settings.ejection else { return false };
        if !self.slots.is_present(slot) {
            return false;
        }
        let nodes = self.slots.len();
        let Some(node) = self.nodes.get_mut(slot.index()) else { return false };
        self.watch.judge(slot, &mut node.standing, outcome, now, ejection, nodes)
    }

    /// Time passes: nodes whose time is up are to be probed, and once per interval success rates are compared and
    /// ejections forgiven. Whether any node was ejected or readmitted since the last call: then selectors are to be
    /// rebuilt.
    pub fn tick(&mut self, now: Duration, settings: &Settings) -> bool {
        match &settings.ejection {
            Some(ejection) => self.watch.tick(&mut self.nodes, &self.slots, now, ejection),
            None => self.watch.release_all(&mut self.nodes),
        }
        self.watch.take_changed()
    }

    /// Grows with each ejection, each node that is to be probed, and each readmission: selectors built before are out of
    /// date.
    pub fn version(&self) -> u64 {
        self.watch.version()
    }

    /// Requests in flight on a node.
    pub fn in_flight(&self, slot: Slot) -> u32 {
        self.nodes.get(slot.index()).map_or(0, |node| node.in_flight)
    }

    /// Requests in flight on all nodes, those that are gone included.
    pub fn total_in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Whether a node is left out, for a time or until a probe has succeeded.
    pub fn is_ejected(&self, slot: Slot) -> bool {
        self.nodes.get(slot.index()).is_some_and(|node| node.standing.is_out())
    }

    /// Whether a node was ejected, its time is up, and one request after the other is to show whether it works.
    pub fn is_probing(&self, slot: Slot) -> bool {
        self.nodes.get(slot.index()).is_some_and(|node| node.standing.is_probing())
    }

    /// Whether a request is to be sent to an ejected node now, to see whether it works.
    pub(crate) fn wants_probe(&self, slot: Slot) -> bool {
        self.nodes.get(slot.index()).is_some_and(|node| node.standing.wants_probe())
    }

    /// Nodes that are left out now.
    pub fn ejected(&self) -> usize {
        self.watch.ejected()
    }

    /// How often a node was ejected, less what was forgiven: its next ejection lasts that much longer.
    pub fn ejections(&self, slot: Slot) -> u32 {
        self.nodes.get(slot.index()).map_or(0, |node| node.standing.ejections())
    }

    /// A node's latency as [`Algorithm::PeakEwma`] sees it now; `None` until an answer was seen.
    pub fn latency(&self, slot: Slot, now: Duration, settings: &Settings) -> Option<Duration> {
        let Algorithm::PeakEwma { decay, default_latency } = settings.algorithm else { return None };
        let latency = self.nodes.get(slot.index())?.latency;
        let seconds = latency.is_known().then(|| latency.at(now, decay, default_latency))?;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// Latency now, in seconds, and requests in flight.
    pub(crate) fn pace(&self, slot: Slot, now: Duration, decay: Duration, default: Duration) -> (f64, u32) {
        let pace = |node: &Node| (node.latency.at(now, decay, default), node.in_flight);
        self.nodes.get(slot.index()).map_or((default.as_secs_f64(), 0), pace)
    }
}
