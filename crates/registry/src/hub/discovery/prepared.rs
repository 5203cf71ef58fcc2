//! A service's nodes, made ready to be picked from. Pure: random numbers are passed in.

use std::sync::{Arc, OnceLock};

use waypost_balance::{Picker, Strategy};
use waypost_catalog::Node;

/// Nodes that several share.
pub type Nodes = Arc<[Arc<Node>]>;

/// A service's nodes as they are between two changes.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) nodes: Nodes,
    /// Those that may be picked.
    pub(super) healthy: Nodes,
    /// In the order of [`Strategy::ALL`]; made at the first pick.
    pickers: [OnceLock<Picker>; Strategy::ALL.len()],
}

impl Prepared {
    pub(super) fn new(nodes: Nodes) -> Self {
        let healthy = nodes.iter().filter(|node| node.is_pickable()).cloned().collect();
        Self { nodes, healthy, pickers: Default::default() }
    }

    /// What follows when the nodes change: strategies in use are ready, so that no pick waits for them.
    pub(super) fn followed_by(&self, nodes: Nodes, mut random: impl FnMut() -> u64) -> Self {
        let next = Self::new(nodes);
        for (strategy, used) in Strategy::ALL.into_iter().zip(&self.pickers) {
            if used.get().is_some() {
                next.picker(strategy, random());
            }
        }
        next
    }

    fn picker(&self, strategy: Strategy, seed: u64) -> &Picker {
        self.pickers[strategy as usize]
            .get_or_init(|| Picker::new(strategy, self.healthy.iter().map(|node| node.weight), seed))
    }

    pub(super) fn pick(&self, strategy: Strategy, random: u64) -> Option<Arc<Node>> {
        let index = self.picker(strategy, random).pick(random)?;
        self.healthy.get(index).cloned()
    }
}

#[cfg(test)]
mod tests {
    use waypost_catalog::Health;

    use super::*;

    fn nodes(weights: &[(u32, Health)]) -> Nodes {
        let node = |(port, (weight, health)): (u16, &(u32, Health))| {
            Arc::new(Node { weight: *weight, health: *health, ..Node::at(([10, 0, 0, 1], port).into()) })
        };
        (1..).zip(weights).map(node).collect()
    }

    #[test]
    fn only_passing_nodes_with_a_weight_are_picked_by_any_strategy() {
        use Health::{Critical, Draining, Passing};
        let prepared = Prepared::new(nodes(&[(1, Critical), (3, Passing), (0, Passing), (9, Draining), (1, Passing)]));
        assert_eq!((prepared.nodes.len(), prepared.healthy.len()), (5, 2));
        for strategy in Strategy::PLAIN {
            let mut counts = [0; 6];
            for pick in 0..4_000u64 {
                let random = u64::MAX / 4_000 * pick;
                counts[usize::from(prepared.pick(strategy, random).unwrap().address.port())] += 1;
            }
            let expected = match strategy {
                Strategy::Random | Strategy::RoundRobin => 2_000i32,
                _ => 3_000,
            };
            assert!((counts[2] - expected).abs() <= 2, "{strategy}: {counts:?}");
            assert_eq!(counts[2] + counts[5], 4_000, "{strategy}: {counts:?}");
        }
        assert_eq!(Prepared::new(nodes(&[(1, Critical)])).pick(Strategy::Random, 7), None);
    }

    #[test]
    fn strategies_in_use_are_ready_after_a_change_and_others_are_not_made() {
        let before = Prepared::new(nodes(&[(1, Health::Passing)]));
        before.pick(Strategy::WeightedRandom, 1);
        let after = before.followed_by(nodes(&[(1, Health::Passing); 2]), || 1);
        let ready: Vec<_> = after.pickers.iter().map(|picker| picker.get().is_some()).collect();
        assert_eq!(ready, Strategy::ALL.map(|strategy| strategy == Strategy::WeightedRandom));
    }
}
