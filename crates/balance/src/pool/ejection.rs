//! Passive ejection: nodes that fail are left out for a while, and readmitted by a probe. After Envoy's outlier
//! detection, but for the probe: Envoy readmits with everything when the time is up.

use std::time::Duration;

use super::{Node, Slot, slots::Slots};
use crate::{
    outcome::{Outcome, OutcomeKind},
    settings::{Ejection, SuccessRate},
};

/// How a node stands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Standing {
    state: State,
    /// Failures since the last success.
    failures: u32,
    /// How often it was ejected, less what was forgiven.
    ejections: u32,
    /// In this interval.
    successes: u32,
    requests: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    In,
    Out {
        until: Duration,
    },
    /// One request after the other shows whether it works. What began before does not count.
    Probing {
        since: Duration,
        sent: bool,
    },
}

impl Standing {
    pub(super) fn is_out(&self) -> bool {
        self.state != State::In
    }

    pub(super) fn is_probing(&self) -> bool {
        matches!(self.state, State::Probing { .. })
    }

    pub(super) fn wants_probe(&self) -> bool {
        matches!(self.state, State::Probing { sent: false, .. })
    }

    pub(super) fn ejections(&self) -> u32 {
        self.ejections
    }

    pub(super) fn started(&mut self) {
        if let State::Probing { sent, .. } = &mut self.state {
            *sent = true;
        }
    }
}

/// What is known of all nodes together.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    /// Those that are out or probed.
    out: Vec<Slot>,
    /// When the first of them is to be probed.
    next: Option<Duration>,
    interval_ends: Option<Duration>,
    version: u64,
    told: u64,
}

impl Watch {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::replace(&mut self.told, self.version) != self.version
    }

    pub(super) fn ejected(&self) -> usize {
        self.out.len()
    }

    /// Nodes have come and gone.
    pub(super) fn recount(&mut self, nodes: &[Node], slots: &Slots) {
        let out = |(index, node): (usize, &Node)| {
            let slot = Slot(index as u32);
            (node.standing.is_out() && slots.is_present(slot)).then_some(slot)
        };
        self.out = nodes.iter().enumerate().filter_map(out).collect();
        self.find_next(nodes);
    }

    fn find_next(&mut self, nodes: &[Node]) {
        let until = |slot: &Slot| match nodes.get(slot.index())?.standing.state {
            State::Out { until } => Some(until),
            _ => None,
        };
        self.next = self.out.iter().filter_map(until).min();
    }

    /// A request has ended on one of `count` nodes. Whether the node was ejected or readmitted.
    pub(super) fn judge(
        &mut self,
        slot: Slot,
        standing: &mut Standing,
        outcome: Outcome,
        now: Duration,
        ejection: &Ejection,
        count: usize,
    ) -> bool {
        let failed = outcome.kind.is_failure();
        match &mut standing.state {
            // An old request that ends now says nothing new.
            State::Out { .. } => return false,
            State::Probing { since, .. }
                if outcome.latency.is_some_and(|latency| now.saturating_sub(latency) < *since) =>
            {
                return false;
            }
            State::Probing { sent, .. } if outcome.kind == OutcomeKind::Cancelled => {
                *sent = false;
                return false;
            }
            State::Probing { .. } if failed => {
                self.put_out(standing, now, ejection);
                return true;
            }
            State::Probing { .. } => {
                self.readmit(slot, standing);
                return true;
            }
            State::In if outcome.kind == OutcomeKind::Cancelled => return false,
            State::In => {}
        }
        standing.requests = standing.requests.saturating_add(1);
        if !failed {
            standing.successes = standing.successes.saturating_add(1);
            standing.failures = 0;
            return false;
        }
        standing.failures = standing.failures.saturating_add(1);
        let enough = ejection.consecutive_failures.is_some_and(|enough| standing.failures >= enough.max(1));
        enough && self.eject(slot, standing, now, ejection, count)
    }

    /// Ejects a node unless enough are out.
    fn eject(&mut self, slot: Slot, standing: &mut Standing, now: Duration, ejection: &Ejection, count: usize) -> bool {
        standing.failures = 0;
        let full = self.out.len() as u64 * 100 >= u64::from(ejection.max_share) * count as u64;
        if full {
            return false;
        }
        self.out.push(slot);
        self.put_out(standing, now, ejection);
        true
    }

    fn put_out(&mut self, standing: &mut Standing, now: Duration, ejection: &Ejection) {
        let max = ejection.max_time.max(ejection.base_time);
        let time = |ejections: u32| ejection.base_time.saturating_mul(ejections).min(max);
        // Beyond the longest time there is nothing to count.
        if standing.ejections == 0 || time(standing.ejections) < max {
            standing.ejections += 1;
        }
        let until = now.saturating_add(time(standing.ejections));
        *standing = Standing { state: State::Out { until }, ejections: standing.ejections, ..Standing::default() };
        self.next = Some(self.next.map_or(until, |next| next.min(until)));
        self.version += 1;
    }

    fn readmit(&mut self, slot: Slot, standing: &mut Standing) {
        *standing = Standing { ejections: standing.ejections, ..Standing::default() };
        self.out.retain(|out| *out != slot);
        self.version += 1;
    }

    /// There is no ejection any more.
    pub(super) fn release_all(&mut self, nodes: &mut [Node]) {
        if self.out.is_empty() {
            return;
        }
        for slot in std::mem::take(&mut self.out) {
            if let Some(node) = nodes.get_mut(slot.index()) {
                node.standing = Standing::default();
            }
        }
        self.next = None;
        self.version += 1;
    }

    /// Time passes.
    pub(super) fn tick(&mut self, nodes: &mut [Node], slots: &Slots, now: Duration, ejection: &Ejection) {
        if self.next.is_some_and(|next| next <= now) {
            for slot in &self.out {
                let Some(node) = nodes.get_mut(slot.index()) else { continue };
                if matches!(node.standing.state, State::Out { until } if until <= now) {
                    node.standing.state = State::Probing { since: now, sent: false };
                    self.version += 1;
                }
            }
            self.find_next(nodes);
        }
        let ends = *self.interval_ends.get_or_insert(now.saturating_add(ejection.interval));
        if ends <= now {
            self.interval_ends = Some(now.saturating_add(ejection.interval));
            if let Some(rule) = &ejection.success_rate {
                self.compare(nodes, slots, now, ejection, rule);
            }
            for node in nodes {
                let standing = &mut node.standing;
                (standing.successes, standing.requests) = (0, 0);
                if !standing.is_out() {
                    standing.ejections = standing.ejections.saturating_sub(1);
                }
            }
        }
    }

    /// Ejects nodes of which the success rate is far below the mean.
    fn compare(&mut self, nodes: &mut [Node], slots: &Slots, now: Duration, ejection: &Ejection, rule: &SuccessRate) {
        let rate = |(index, node): (usize, &Node)| {
            let Standing { state, successes, requests, .. } = node.standing;
            let slot = Slot(index as u32);
            let counts = state == State::In && requests >= rule.min_requests.max(1) && slots.is_present(slot);
            counts.then(|| (slot, f64::from(successes) / f64::from(requests)))
        };
        let rates: Vec<(Slot, f64)> = nodes.iter().enumerate().filter_map(rate).collect();
        if rates.is_empty() || rates.len() < rule.min_nodes as usize {
            return;
        }
        let count = rates.len() as f64;
        let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
        let variance = rates.iter().map(|(_, rate)| (rate - mean) * (rate - mean)).sum::<f64>() / count;
        let threshold = mean - rule.stdev_factor * variance.sqrt();
        for (slot, rate) in rates {
            // With no deviation at all, rounding must not put anyone below the mean.
            if rate + 1e-9 < threshold
                && let Some(node) = nodes.get_mut(slot.index())
            {
                self.eject(slot, &mut node.standing, now, ejection, slots.len());
            }
        }
    }
}
