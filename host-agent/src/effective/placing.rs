//! What a service's policy makes of its nodes. Pure: the time comes in.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use waypost_catalog::{Catalog, Change, Health, Node, Placement, ServiceName};
use waypost_policy::{Compiled, Policy};

use super::{
    warming::{SlowStart, Warming},
    weights::{Decisions, Placed, Request, Weights},
};

/// A policy, and who calls its service.
#[derive(Clone, Copy, Debug)]
pub(super) struct PolicyOf<'a> {
    pub(super) policy: &'a Policy,
    /// The nodes of the service that the policy names as its callers.
    pub(super) callers: &'a [Arc<Node>],
}

/// What is kept between two looks at a service.
#[derive(Debug)]
pub(super) struct Placing {
    /// Of this host; empty if unknown.
    zone: String,
    warming: Warming,
    weights: Weights,
}

impl Placing {
    pub(super) fn new(zone: String) -> Self {
        Self { zone, warming: Warming::default(), weights: Weights::default() }
    }

    /// Takes another zone of this host; whether it is another one.
    pub(super) fn set_zone(&mut self, zone: &str) -> bool {
        let differs = self.zone != zone;
        self.zone = zone.to_owned();
        differs
    }

    /// What components are to be asked since the last call.
    pub(super) fn take_requests(&mut self) -> Vec<Request> {
        self.weights.take_requests()
    }

    /// A component has answered. Whether the service is to be looked at again.
    pub(super) fn decided(&mut self, service: &ServiceName, decisions: Decisions) -> bool {
        self.weights.decided(service, decisions)
    }

    /// Services to be looked at again since time has passed.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<ServiceName> {
        self.warming.take_due(now)
    }

    /// When that will be.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.warming.next_deadline()
    }

    /// The service as it is to be served, these being its nodes. `before` is what is served now, if anything has been
    /// yet: nodes that are there from the beginning have been ready for who knows how long.
    pub(super) fn place(
        &mut self,
        service: ServiceName,
        nodes: Vec<Arc<Node>>,
        policy: Option<PolicyOf<'_>>,
        before: &Catalog,
        published: bool,
        now: Instant,
    ) -> Change<Arc<Node>> {
        let known = before.services().get(&service);
        let slow = policy.as_ref().and_then(|of| of.policy.slow_start.as_ref()).map(|slow| SlowStart {
            window: slow.window,
            aggression: slow.aggression,
            min_share: slow.min_share,
        });
        if slow.is_none() {
            self.warming.forget(&service);
        }
        let mut nodes: Vec<_> = nodes
            .into_iter()
            .map(|node| {
                let served = known.and_then(|known| known.entries().get(&node.address));
                let mut placement = Placement::default();
                if let Some(PolicyOf { policy, .. }) = policy {
                    placement.subsets = policy.subsets.mask(&node.version, &node.tags, &node.metadata);
                    placement.priority =
                        policy.priority.as_ref().map_or(0, |priority| priority.level(&node.zone, &node.metadata));
                }
                if let Some(slow) = slow {
                    // A service that is new as a whole has nobody who could take the requests meanwhile.
                    let was_ready = match served {
                        Some(entry) => entry.node().health == Health::Passing,
                        None => !published || known.is_none(),
                    };
                    let ready = (was_ready, node.health == Health::Passing);
                    placement.warmup = self.warming.share(&service, node.address, slow, ready, now);
                }
                Placed { node, placement }
            })
            .collect();
        match policy.as_ref().and_then(|of| of.policy.component.as_ref()) {
            Some(component) if !nodes.is_empty() => {
                nodes.sort_by_key(|placed| placed.node.address);
                self.weights.weigh(&service, component, &mut nodes);
            }
            _ => self.weights.forget(&service),
        }
        let nodes: Vec<_> = nodes
            .into_iter()
            .map(|Placed { node, placement }| {
                if node.placement == placement {
                    return node;
                }
                // Most often it is just as it is served: then it is not in memory another time.
                let placed = Node { placement, ..Node::clone(&node) };
                match known.and_then(|known| known.entries().get(&node.address)) {
                    Some(entry) if *entry.node() == placed => Arc::clone(entry.shared()),
                    _ => Arc::new(placed),
                }
            })
            .collect();
        if let Some(slow) = slow {
            let present = |address| nodes.iter().any(|node| node.address == address);
            self.warming.settle(&service, slow, present, now);
        }
        let policy = policy.map_or_else(Bytes::new, |of| self.compiled(of).into());
        Change { service, nodes, policy }
    }

    /// The policy as filters get it: with what they cannot know.
    fn compiled(&self, PolicyOf { policy, callers }: PolicyOf<'_>) -> String {
        let zone = policy.locality.as_ref().map(|_| self.zone.clone()).unwrap_or_default();
        let callers = callers.iter().filter(|node| node.health == Health::Passing);
        Compiled::new(policy.clone(), zone, callers.map(|node| node.zone.as_str())).to_json()
    }
}
