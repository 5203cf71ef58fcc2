//! What should be: the nodes, their weights, and which of them serve. Pure.
use std::net::SocketAddr;

use crate::series::Shares;

/// Registered by the agents, from their TOML.
pub const WEB: &str = "web";
/// Registers itself, in a layout of its own.
pub const LEGACY: &str = "legacy";

/// A node as the demo means it to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub service: &'static str,
    pub name: &'static str,
    pub address: SocketAddr,
    pub weight: u32,
    pub state: State,
}

/// Whether a node should get requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Serving,
    Down,
    Drained,
}

/// All nodes.
#[derive(Debug, Clone)]
pub struct Model {
    pub nodes: Vec<Node>,
    /// Whether a policy says that weights do not count for [`WEB`].
    pub even: bool,
}

impl Model {
    /// The shares that the weights of the serving nodes give.
    pub fn expected(&self, service: &str) -> Shares {
        let weight = |node: &Node| match node.state {
            State::Serving if self.even && service == WEB => 1,
            State::Serving => node.weight,
            State::Down | State::Drained => 0,
        };
        let nodes = || self.nodes.iter().filter(|node| node.service == service);
        let sum: u32 = nodes().map(weight).sum();
        nodes().map(|node| (node.name.to_owned(), f64::from(weight(node)) / f64::from(sum.max(1)))).collect()
    }

    /// Changes one node.
    pub fn change(&mut self, name: &str, change: impl FnOnce(&mut Node)) {
        if let Some(node) = self.nodes.iter_mut().find(|node| node.name == name) {
            change(node);
        }
    }

    /// Takes weights and states over from an agent's `/catalog`: once the demo has shown its steps, the user may
    /// change what they like.
    pub fn follow(&mut self, catalog: &serde_json::Value) {
        for node in &mut self.nodes {
            let address = node.address.to_string();
            let listed = catalog.get("services").and_then(|services| services.get(node.service)?.as_array());
            let listed = listed.and_then(|nodes| {
                nodes.iter().find(|listed| listed.get("address").and_then(|text| text.as_str()) == Some(&address))
            });
            let Some(listed) = listed else {
                node.state = State::Down;
                continue;
            };
            if let Some(weight) = listed.get("weight").and_then(serde_json::Value::as_u64) {
                node.weight = u32::try_from(weight).unwrap_or(u32::MAX);
            }
            node.state = match listed.get("health").and_then(|health| health.as_str()) {
                Some("critical") => State::Down,
                Some("draining") => State::Drained,
                _ => State::Serving,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        let node = |name, port, weight| Node {
            service: WEB,
            name,
            address: SocketAddr::from(([127, 0, 0, 2], port)),
            weight,
            state: State::Serving,
        };
        Model { nodes: vec![node("a", 81, 1), node("b", 82, 3)], even: false }
    }

    #[test]
    fn only_serving_nodes_have_a_share() {
        let mut model = model();
        assert_eq!(model.expected(WEB)["b"], 0.75);
        model.even = true;
        assert_eq!(model.expected(WEB)["b"], 0.5);
        model.change("b", |node| node.state = State::Drained);
        assert_eq!(model.expected(WEB), Shares::from([("a".to_owned(), 1.0), ("b".to_owned(), 0.0)]));
    }

    #[test]
    fn weights_and_health_are_taken_over_from_a_catalog() {
        let mut model = model();
        let catalog =
            serde_json::json!({"services": {"web": [{"address": "127.0.0.2:81", "weight": 7, "health": "critical"}]}});
        model.follow(&catalog);
        assert_eq!((model.nodes[0].weight, model.nodes[0].state), (7, State::Down));
        assert_eq!(model.nodes[1].state, State::Down, "it is not listed any more");
    }
}
