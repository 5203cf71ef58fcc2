//! Requests in proportion to what a node can take: its weight in the registry, times a number in its metadata.
//!
//! Parameters, all optional: `{"field": "capacity", "default": 1}`. A node that does not have the field counts as
//! `default`; so does one whose field is no number, which is logged.
#![expect(missing_docs, clippy::too_many_arguments, reason = "of the bindings, which are generated")]

use serde::Deserialize;

use crate::waypost::strategy::{
    host::{Level, log},
    types::{Decision, Node},
};

wit_bindgen::generate!({ path: "../../../wit/strategy.wit", world: "strategy" });

struct Capacity;

export!(Capacity);

/// Weights are whole numbers: hundredths of a capacity still count.
const SCALE: f64 = 100.0;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Parameters {
    field: String,
    default: f64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { field: "capacity".to_owned(), default: 1.0 }
    }
}

impl Guest for Capacity {
    fn weigh(input: Input) -> Result<Answer, String> {
        let parameters: Parameters = serde_json::from_str(&input.parameters).map_err(|error| error.to_string())?;
        let decide = |node: &Node| {
            let capacity = capacity(node, &parameters.field).unwrap_or_else(|wrong| {
                log(Level::Warning, &format!("{}: {}: {wrong:?} is no capacity", node.id, parameters.field));
                None
            });
            Decision { weight: weight(node.weight, capacity.unwrap_or(parameters.default)), priority: node.priority }
        };
        Ok(Answer { decisions: input.nodes.iter().map(decide).collect(), ask_again_seconds: None })
    }
}

/// What a node says of itself, if anything; an error if that is no number.
fn capacity<'a>(node: &'a Node, field: &str) -> Result<Option<f64>, &'a str> {
    match node.metadata.iter().find(|(name, _)| name == field) {
        None => Ok(None),
        Some((_, value)) => match value.parse() {
            Ok(capacity) if (0.0..=1e6).contains(&capacity) => Ok(Some(capacity)),
            _ => Err(value),
        },
    }
}

/// A node that can take anything at all keeps a weight; numbers beyond the largest weight become that (`as` sees to it).
fn weight(registered: u32, capacity: f64) -> u32 {
    let least = u32::from(registered > 0 && capacity > 0.0);
    ((f64::from(registered) * capacity * SCALE).round() as u32).max(least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::waypost::strategy::types::Health;

    fn node(metadata: &[(&str, &str)]) -> Node {
        Node {
            id: "host-a".to_owned(),
            address: "10.0.0.1:8080".to_owned(),
            weight: 1,
            priority: 0,
            health: Health::Passing,
            zone: String::new(),
            version: String::new(),
            tags: Vec::new(),
            metadata: metadata.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            age_seconds: None,
            outcomes: None,
            previous: None,
        }
    }

    #[test]
    fn weights_are_in_proportion_to_weight_and_capacity() {
        assert_eq!((weight(1, 8.0), weight(2, 4.0), weight(1, 0.25)), (800, 800, 25));
        assert_eq!((weight(1, 0.001), weight(0, 8.0), weight(1, 0.0)), (1, 0, 0));
        assert_eq!(weight(u32::MAX, 8.0), u32::MAX);
    }

    #[test]
    fn a_capacity_is_a_number_that_is_not_negative() {
        assert_eq!(capacity(&node(&[("zone", "b"), ("capacity", "2.5")]), "capacity"), Ok(Some(2.5)));
        assert_eq!(capacity(&node(&[("cpus", "8")]), "capacity"), Ok(None));
        for wrong in ["much", "-1", "NaN", "inf", ""] {
            assert_eq!(capacity(&node(&[("capacity", wrong)]), "capacity"), Err(wrong));
        }
    }

    #[test]
    fn a_parameter_that_means_nothing_is_refused_by_name() {
        let input = |parameters: &str| Input {
            service: "web".to_owned(),
            nodes: vec![node(&[("cpus", "3")])],
            parameters: parameters.to_owned(),
            local: waypost::strategy::types::Locality { zone: String::new(), host: String::new() },
        };
        let answer = Capacity::weigh(input(r#"{"field": "cpus"}"#)).unwrap();
        assert_eq!(answer.decisions[0].weight, 300);
        assert!(Capacity::weigh(input(r#"{"feild": "cpus"}"#)).unwrap_err().contains("feild"));
    }
}
