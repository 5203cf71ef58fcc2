//! What a selector is told of a node.

/// What health checks and the node itself say of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Health {
    /// It can serve.
    #[default]
    Passing,
    /// A health check fails: not picked, but for a panic.
    Critical,
    /// It is about to stop: never picked, not even in a panic, and in no count. To send requests to a node that will
    /// cut them off is no better than to have too few nodes.
    Draining,
}

/// A node as a [`Selector`](crate::Selector) sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Stays the same for the same node, is another one for every other node, and is spread evenly over all numbers: a
    /// hash of its address.
    pub key: u64,
    /// Its share beside the others'; with 0 it is never picked.
    pub weight: u32,
    /// Per mille of its weight that count for now, while it starts slowly; 1000 and more: all.
    pub warmup: u16,
    /// Its health.
    pub health: Health,
    /// Its priority level; 0 is picked first.
    pub priority: u8,
    /// Its zone, by a number that the caller gave it; 0 is unknown.
    pub zone: u32,
}

impl NodeView {
    /// A passing node of this key and weight.
    pub fn new(key: u64, weight: u32) -> Self {
        Self { key, weight, warmup: 1000, health: Health::Passing, priority: 0, zone: 0 }
    }

    /// The weight that counts now: at least 1 unless its weight is 0.
    pub(crate) fn effective_weight(&self) -> u32 {
        let part = u64::from(self.weight) * u64::from(self.warmup.min(1000)) / 1000;
        (part as u32).max(self.weight.min(1))
    }

    /// Whether it counts at all, healthy or not.
    pub(crate) fn counts(&self) -> bool {
        self.weight > 0 && self.health != Health::Draining
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_cut_by_slow_start_but_never_to_nothing() {
        let weight = |weight, warmup| NodeView { warmup, ..NodeView::new(1, weight) }.effective_weight();
        assert_eq!(weight(200, 100), 20);
        assert_eq!(weight(u32::MAX, 1000), u32::MAX);
        assert_eq!(weight(u32::MAX, u16::MAX), u32::MAX);
        assert_eq!((weight(3, 0), weight(1, 1), weight(0, 1000), weight(0, 0)), (1, 1, 0, 0));
    }
}
