//! A new version gets more and more of the requests, by the clock: from one share to another, over some minutes.
//!
//! Parameters: `{"version": "2.1", "begin": 1790000000, "minutes": 60, "from_percent": 1, "to_percent": 100}`, where
//! `begin` is in seconds since 1970 (`date +%s`) and the percentages are optional. Within each version, requests are
//! shared out by the weights in the registry. While only one of the versions is there, it gets them all.
#![expect(missing_docs, clippy::too_many_arguments, reason = "of the bindings, which are generated")]

use serde::Deserialize;

use crate::waypost::strategy::{
    host::wall_now,
    types::{Decision, Health, Node},
};

wit_bindgen::generate!({ path: "../../../wit/strategy.wit", world: "strategy" });

struct Canary;

export!(Canary);

/// The sum of all weights: fine enough for a thousandth of a percent.
const WHOLE: f64 = 1e6;
/// How often the shares are moved on.
const STEP_SECONDS: u32 = 5;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    version: String,
    begin: u64,
    minutes: f64,
    #[serde(default = "one")]
    from_percent: f64,
    #[serde(default = "hundred")]
    to_percent: f64,
}

fn one() -> f64 {
    1.0
}

fn hundred() -> f64 {
    100.0
}

impl Guest for Canary {
    fn weigh(input: Input) -> Result<Answer, String> {
        let parameters: Parameters = serde_json::from_str(&input.parameters).map_err(|error| error.to_string())?;
        let progress = parameters.progress(wall_now())?;
        Ok(Answer {
            decisions: parameters.decide(&input.nodes, parameters.share(progress)),
            ask_again_seconds: (progress < 1.0).then_some(STEP_SECONDS),
        })
    }
}

impl Parameters {
    /// How much of the way is behind us, from 0 to 1.
    fn progress(&self, now_ms: u64) -> Result<f64, String> {
        let percentages = [("from_percent", self.from_percent), ("to_percent", self.to_percent)];
        if let Some((name, value)) = percentages.into_iter().find(|(_, value)| !(0.0..=100.0).contains(value)) {
            return Err(format!("{name}: {value} is no percentage"));
        }
        if self.minutes.is_nan() || self.minutes < 0.0 {
            return Err(format!("minutes: {} is no duration", self.minutes));
        }
        let since = now_ms as f64 / 1000.0 - self.begin as f64;
        let over = self.minutes * 60.0;
        Ok(if since >= over { 1.0 } else { (since / over).max(0.0) })
    }

    /// The new version's share, from 0 to 1.
    fn share(&self, progress: f64) -> f64 {
        (self.from_percent + (self.to_percent - self.from_percent) * progress) / 100.0
    }

    fn decide(&self, nodes: &[Node], share: f64) -> Vec<Decision> {
        let is_new = |node: &Node| node.version == self.version;
        let weight_of = |new: bool| -> f64 {
            let counted = nodes.iter().filter(|node| node.health == Health::Passing && is_new(node) == new);
            counted.map(|node| f64::from(node.weight)).sum()
        };
        let (new, old) = (weight_of(true), weight_of(false));
        let decide = |node: &Node| {
            let weight = if new == 0.0 || old == 0.0 {
                node.weight
            } else if is_new(node) {
                weight(f64::from(node.weight) / new * share)
            } else {
                weight(f64::from(node.weight) / old * (1.0 - share))
            };
            Decision { weight, priority: node.priority }
        };
        nodes.iter().map(decide).collect()
    }
}

/// Any share above 0 is a weight above 0.
fn weight(share: f64) -> u32 {
    ((share * WHOLE).round() as u32).max(u32::from(share > 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(version: &str, weight: u32, health: Health) -> Node {
        Node {
            id: String::new(),
            address: String::new(),
            weight,
            priority: 0,
            health,
            zone: String::new(),
            version: version.to_owned(),
            tags: Vec::new(),
            metadata: Vec::new(),
            age_seconds: None,
            outcomes: None,
            previous: None,
        }
    }

    fn parameters() -> Parameters {
        Parameters { version: "2".to_owned(), begin: 1000, minutes: 10.0, from_percent: 5.0, to_percent: 55.0 }
    }

    #[test]
    fn the_share_grows_with_time_and_stays_within_its_ends() {
        let parameters = parameters();
        let share = |seconds: u64| parameters.share(parameters.progress(seconds * 1000).unwrap());
        assert_eq!([0, 1000, 1300, 1600, 9999].map(share), [0.05, 0.05, 0.3, 0.55, 0.55]);
        let at_once = Parameters { minutes: 0.0, ..parameters };
        assert_eq!(at_once.progress(1_000_000), Ok(1.0));
        assert!(Parameters { to_percent: 101.0, ..at_once }.progress(0).unwrap_err().contains("to_percent"));
    }

    #[test]
    fn versions_share_as_they_should_and_nodes_by_their_weights() {
        let nodes = [
            node("1", 3, Health::Passing),
            node("1", 1, Health::Passing),
            node("1", 9, Health::Critical),
            node("2", 5, Health::Passing),
        ];
        let weights = |nodes: &[Node], share| -> Vec<u32> {
            parameters().decide(nodes, share).iter().map(|decision| decision.weight).collect()
        };
        let decided = weights(&nodes, 0.2);
        assert_eq!((decided[0], decided[1], decided[3]), (600_000, 200_000, 200_000));
        assert_eq!(weights(&nodes, 0.0)[3], 0);
        assert_eq!(weights(&nodes, 1e-9)[3], 1);
        assert_eq!(weights(&nodes[..3], 0.2), [3, 1, 9], "the new version is not there yet");
        assert_eq!(weights(&nodes[2..], 0.2), [9, 5], "nothing else may get requests");
    }
}
