//! What strategy components have decided, the last good answer of each service, and what they are to be asked next. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use waypost_catalog::{Node, Placement, ServiceName};
use waypost_policy::Component;

/// What a component has decided about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Its weight, in place of the registry's.
    pub weight: u32,
    /// Its level.
    pub priority: u8,
}

/// What a component has decided about a service's nodes, by address.
pub type Decisions = BTreeMap<SocketAddr, Decided>;

/// A service whose nodes a component is to weigh.
#[derive(Clone, Debug)]
pub struct Question {
    /// The service.
    pub service: ServiceName,
    /// Which component, and its parameters.
    pub component: Component,
    /// The nodes, in the order of their addresses, with the priority that the policy gives them.
    pub nodes: Vec<Arc<Node>>,
    /// What was decided about them before.
    pub previous: Decisions,
}

/// A change for whoever runs components.
#[derive(Clone, Debug)]
pub enum Request {
    /// To be weighed; takes the place of an earlier question about the service.
    Weigh(Question),
    /// No component has a say in this service any more.
    Forget(ServiceName),
}

/// What a component has answered about a service.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The service.
    pub service: ServiceName,
    /// The decisions about its nodes.
    pub decisions: Decisions,
}

#[derive(Debug)]
struct Asked {
    component: Component,
    nodes: Vec<Arc<Node>>,
    decisions: Decisions,
}

/// The answers.
#[derive(Debug, Default)]
pub(super) struct Weights {
    /// What each was asked last.
    asked: HashMap<ServiceName, Asked>,
    requests: Vec<Request>,
}

impl Weights {
    /// The service's nodes are these, with the placement that its policy gives them, and this component is to have a
    /// say in it. Sets what it has decided; asks it if it has not been asked about just this.
    pub(super) fn weigh(&mut self, service: &ServiceName, component: &Component, nodes: &mut [Placed]) {
        let known = self.asked.get(service);
        // Neither another component nor other parameters take back what stands: the new answer is on its way.
        let same = known.is_some_and(|asked| {
            let is_same = |(old, new): (&Arc<Node>, &Placed)| Arc::ptr_eq(old, &new.node) || **old == *new.as_asked();
            asked.component == *component
                && asked.nodes.len() == nodes.len()
                && asked.nodes.iter().zip(nodes.iter()).all(is_same)
        });
        if !same {
            let decisions = known.map(|asked| asked.decisions.clone()).unwrap_or_default();
            let asked: Vec<_> = nodes.iter().map(Placed::as_asked).collect();
            self.requests.push(Request::Weigh(Question {
                service: service.clone(),
                component: component.clone(),
                nodes: asked.clone(),
                previous: decisions.clone(),
            }));
            self.asked.insert(service.clone(), Asked { component: component.clone(), nodes: asked, decisions });
        }
        let Some(asked) = self.asked.get(service) else { return };
        for placed in nodes {
            if let Some(decided) = asked.decisions.get(&placed.node.address) {
                placed.placement.weight = Some(if placed.node.weight == 0 { 0 } else { decided.weight });
                placed.placement.priority = decided.priority;
            }
        }
    }

    /// No component has a say in the service any more.
    pub(super) fn forget(&mut self, service: &ServiceName) {
        if self.asked.remove(service).is_some() {
            self.requests.push(Request::Forget(service.clone()));
        }
    }

    /// A component has answered. Whether that changes anything.
    pub(super) fn decided(&mut self, service: &ServiceName, decisions: Decisions) -> bool {
        let Some(asked) = self.asked.get_mut(service) else { return false };
        let differs = asked.decisions != decisions;
        asked.decisions = decisions;
        differs
    }

    /// What is to be asked since the last call.
    pub(super) fn take_requests(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.requests)
    }
}

/// A node on its way into the catalog.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) node: Arc<Node>,
    pub(super) placement: Placement,
}

impl Placed {
    /// As a component is to see it: with the level that the policy gives it, and nothing else of a placement.
    fn as_asked(&self) -> Arc<Node> {
        let placement = Placement { priority: self.placement.priority, ..Placement::default() };
        if self.node.placement == placement {
            return Arc::clone(&self.node);
        }
        Arc::new(Node { placement, ..Node::clone(&self.node) })
    }
}
