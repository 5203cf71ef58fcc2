//! Less for nodes that fail or are slow: weights follow what became of requests.
//!
//! A node's share of its weight in the registry is its success rate squared, times how its median latency compares with
//! the service's if it is more than `tolerance` times that. It never falls below `min_share`, so that a node that has
//! recovered is seen to have. Each answer goes half the way from the last one: a single bad window moves no mountains.
//!
//! Parameters, all optional: `{"min_requests": 20, "min_share": 0.1, "tolerance": 1.5}`. A node with fewer requests in
//! the window than `min_requests` is on its way back to its full weight.
#![expect(missing_docs, clippy::too_many_arguments, reason = "of the bindings, which are generated")]

use serde::Deserialize;

use crate::waypost::strategy::types::{Decision, Node, Outcomes};

wit_bindgen::generate!({ path: "../../../wit/strategy.wit", world: "strategy" });

struct Following;

export!(Following);

/// The weight of a node with all of its share, for each 1 of its weight in the registry.
const FULL: f64 = 1000.0;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Parameters {
    min_requests: u64,
    min_share: f64,
    tolerance: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { min_requests: 20, min_share: 0.1, tolerance: 1.5 }
    }
}

impl Guest for Following {
    fn weigh(input: Input) -> Result<Answer, String> {
        let parameters: Parameters = serde_json::from_str(&input.parameters).map_err(|error| error.to_string())?;
        if !(0.0..=1.0).contains(&parameters.min_share) {
            return Err(format!("min_share: {} is no share from 0 to 1", parameters.min_share));
        }
        let usual = parameters.usual_latency(&input.nodes);
        let decide = |node: &Node| {
            let last = last_share(node);
            let share = last + (parameters.share(node, usual) - last) / 2.0;
            // `as` makes the largest weight of what is beyond it.
            let weight = (f64::from(node.weight) * FULL * share).round() as u32;
            Decision { weight: weight.max(u32::from(node.weight > 0)), priority: node.priority }
        };
        Ok(Answer { decisions: input.nodes.iter().map(decide).collect(), ask_again_seconds: None })
    }
}

impl Parameters {
    /// What is known of a node, if that is enough to judge by.
    fn judged<'a>(&self, node: &'a Node) -> Option<&'a Outcomes> {
        node.outcomes.as_ref().filter(|outcomes| outcomes.requests >= self.min_requests.max(1))
    }

    /// The median of the nodes' median latencies.
    fn usual_latency(&self, nodes: &[Node]) -> Option<f64> {
        let mut latencies: Vec<f64> =
            nodes.iter().filter_map(|node| Some(self.judged(node)?.latency?.p50_ms)).collect();
        latencies.sort_by(f64::total_cmp);
        latencies.get(latencies.len().saturating_sub(1) / 2).copied()
    }

    /// Where a node's share should go, from `min_share` to 1.
    fn share(&self, node: &Node, usual: Option<f64>) -> f64 {
        let Some(outcomes) = self.judged(node) else { return 1.0 };
        let success = 1.0 - outcomes.failures as f64 / outcomes.requests as f64;
        let speed = match (outcomes.latency, usual) {
            (Some(latency), Some(usual)) if latency.p50_ms > usual * self.tolerance => usual / latency.p50_ms,
            _ => 1.0,
        };
        (success * success * speed).clamp(self.min_share, 1.0)
    }
}

/// The share that the last answer left the node; all, if there was none.
fn last_share(node: &Node) -> f64 {
    match node.previous {
        Some(previous) if node.weight > 0 => {
            (f64::from(previous.weight) / (f64::from(node.weight) * FULL)).clamp(0.0, 1.0)
        }
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::waypost::strategy::types::{Health, Latency, Locality};

    fn node(requests: u64, failures: u64, p50_ms: f64) -> Node {
        Node {
            id: String::new(),
            address: String::new(),
            weight: 2,
            priority: 1,
            health: Health::Passing,
            zone: String::new(),
            version: String::new(),
            tags: Vec::new(),
            metadata: Vec::new(),
            age_seconds: None,
            outcomes: Some(Outcomes {
                window_seconds: 10.0,
                requests,
                failures,
                rate: requests as f64 / 10.0,
                in_flight: 0,
                latency: Some(Latency { p50_ms, p99_ms: 2.0 * p50_ms }),
            }),
            previous: None,
        }
    }

    /// The weights after so many answers, each knowing the one before.
    fn weights(nodes: &[Node], answers: usize) -> Vec<u32> {
        let mut nodes = nodes.to_vec();
        for _ in 0..answers {
            let local = Locality { zone: String::new(), host: String::new() };
            let input = Input { service: String::new(), nodes: nodes.clone(), parameters: "{}".to_owned(), local };
            let answer = Following::weigh(input).unwrap();
            nodes.iter_mut().zip(answer.decisions).for_each(|(node, decision)| node.previous = Some(decision));
        }
        nodes.iter().map(|node| node.previous.map_or(0, |previous| previous.weight)).collect()
    }

    #[test]
    fn a_node_that_fails_gets_less_step_by_step_and_never_nothing() {
        let nodes = [node(100, 0, 10.0), node(100, 50, 10.0), node(100, 100, 10.0)];
        assert_eq!(weights(&nodes, 1), [2000, 1250, 1100]);
        // From above, rounding ends half a point before the least share.
        assert_eq!(weights(&nodes, 30), [2000, 500, 201]);
    }

    #[test]
    fn a_slow_node_gets_less_and_small_differences_change_nothing() {
        assert_eq!(weights(&[node(100, 0, 10.0), node(100, 0, 12.0), node(100, 0, 48.0)], 30), [2000, 2000, 500]);
    }

    #[test]
    fn a_node_that_recovers_or_is_little_known_comes_back() {
        let mut recovered = node(100, 0, 10.0);
        recovered.previous = Some(Decision { weight: 200, priority: 1 });
        let mut unknown = node(19, 19, 10.0);
        unknown.previous = recovered.previous;
        assert_eq!(weights(&[recovered.clone(), unknown.clone()], 1), [1100, 1100]);
        assert_eq!(weights(&[recovered, unknown], 30), [2000, 2000]);
    }

    #[test]
    fn where_nothing_is_known_the_registry_counts() {
        let silent = Node { outcomes: None, ..node(0, 0, 0.0) };
        let off = Node { weight: 0, ..node(100, 100, 1.0) };
        assert_eq!(weights(&[silent, off], 3), [2000, 0]);
        assert_eq!(weights(&[], 1), [0; 0]);
    }
}
