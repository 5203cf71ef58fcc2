//! How requests are spread over priority levels, by Envoy's arithmetic in whole percents.

/// The nodes of a level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Census {
    /// Those that count: of a weight above 0 and not draining.
    pub(super) nodes: u32,
    /// Of these, those that may be picked without a panic.
    pub(super) healthy: u32,
}

/// What a level gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Of all requests, in percent. All levels' sum is 100, unless nothing can be picked: then 0.
    pub(super) percent: u32,
    /// Whether its unhealthy nodes are picked too.
    pub(super) panic: bool,
}

/// Spreads requests over levels, the first of which comes first.
///
/// A level can carry `healthy / nodes x overprovisioning` percent. Each takes what it can carry of what those before it
/// left over; if all together cannot carry everything, what they carry is scaled up. Then, too, each level below the
/// threshold panics; and if every level does, requests are spread by how many nodes they have.
pub(super) fn spread(levels: &[Census], overprovisioning: u32, panic_threshold: u32) -> Vec<Load> {
    // Envoy rounds down to 0, and so would leave out one healthy node of very many.
    let carries = |level: &Census| match u64::from(level.healthy) * u64::from(overprovisioning.max(1)) {
        0 => 0,
        product => (product / u64::from(level.nodes.max(1))).clamp(1, 100) as u32,
    };
    let carried: u32 = levels.iter().map(carries).fold(0, |sum, carries| (sum + carries).min(100));
    let panics = |level: &Census| {
        carried < 100 && u64::from(level.healthy) * 100 < u64::from(panic_threshold.min(100)) * u64::from(level.nodes)
    };
    let mut loads: Vec<Load> = levels.iter().map(|level| Load { percent: 0, panic: panics(level) }).collect();
    let mut left = 100;
    if !loads.is_empty() && levels.iter().all(|level| level.nodes == 0 || panics(level)) {
        let all: u64 = levels.iter().map(|level| u64::from(level.nodes)).sum();
        for (load, level) in loads.iter_mut().zip(levels) {
            load.percent = (u64::from(level.nodes) * 100).checked_div(all).unwrap_or(0) as u32;
            left -= load.percent;
        }
    } else {
        for (load, level) in loads.iter_mut().zip(levels) {
            load.percent = (carries(level) * 100).checked_div(carried).unwrap_or(0).min(left);
            left -= load.percent;
        }
    }
    // What rounding left over.
    if let Some(first) = loads.iter_mut().find(|load| load.percent > 0) {
        first.percent += left;
    }
    loads
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn loads(levels: &[(u32, u32)]) -> Vec<(u32, bool)> {
        let levels: Vec<_> =
            levels.iter().map(|(healthy, nodes)| Census { nodes: *nodes, healthy: *healthy }).collect();
        spread(&levels, 140, 50).into_iter().map(|load| (load.percent, load.panic)).collect()
    }

    #[test]
    fn the_examples_of_envoys_documentation_hold() {
        // https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority
        let two = |healthy| loads(&[(healthy, 100), (100, 100)]).into_iter().map(|(load, _)| load).collect::<Vec<_>>();
        assert_eq!(two(100), [100, 0]);
        assert_eq!(two(72), [100, 0]);
        assert_eq!(two(71), [99, 1]);
        assert_eq!(two(50), [70, 30]);
        assert_eq!(two(25), [35, 65]);
        assert_eq!(two(0), [0, 100]);
        // .../load_balancing/panic_threshold
        assert_eq!(loads(&[(72, 100), (72, 100)]), [(100, false), (0, false)]);
        assert_eq!(loads(&[(71, 100), (71, 100)]), [(99, false), (1, false)]);
        assert_eq!(loads(&[(50, 100), (60, 100)]), [(70, false), (30, false)]);
        assert_eq!(loads(&[(25, 100), (100, 100)]), [(35, false), (65, false)]);
        assert_eq!(loads(&[(25, 100), (25, 100)]), [(50, true), (50, true)]);
        assert_eq!(loads(&[(5, 100), (65, 100)]), [(8, true), (92, false)]);
    }

    #[test]
    fn without_a_threshold_nothing_panics_and_one_healthy_node_of_many_is_found() {
        let levels = [Census { nodes: 10, healthy: 0 }, Census { nodes: 1_000, healthy: 1 }];
        let loads: Vec<_> = spread(&levels, 140, 0).into_iter().map(|load| (load.percent, load.panic)).collect();
        assert_eq!(loads, [(0, false), (100, false)]);
        let none = spread(&[Census { nodes: 3, healthy: 0 }], 140, 0);
        assert_eq!(none, [Load { percent: 0, panic: false }]);
        assert_eq!(spread(&[], 140, 50), []);
    }

    /// Envoy's own steps (`load_balancer_impl.cc`), one after the other.
    fn envoy(levels: &[Census], overprovisioning: u32, threshold: u32) -> Vec<Load> {
        let health: Vec<u32> =
            levels.iter().map(|level| (overprovisioning * level.healthy / level.nodes).min(100)).collect();
        let total = health.iter().sum::<u32>().min(100);
        let mut loads = vec![Load::default(); levels.len()];
        let mut left = 100;
        for (load, health) in loads.iter_mut().zip(&health) {
            load.percent = (health * 100).checked_div(total).unwrap_or(0).min(left);
            left -= load.percent;
        }
        if let Some(first) = loads.iter_mut().find(|load| load.percent > 0) {
            first.percent += left;
        }
        if threshold == 0 && total == 0 {
            return loads;
        }
        for (load, level) in loads.iter_mut().zip(levels) {
            load.panic =
                total < 100 && 100.0 * f64::from(level.healthy) / f64::from(level.nodes) < f64::from(threshold);
        }
        if loads.iter().all(|load| load.panic) {
            let nodes: u32 = levels.iter().map(|level| level.nodes).sum();
            let mut left = 100;
            for (load, level) in loads.iter_mut().zip(levels) {
                load.percent = 100 * level.nodes / nodes;
                left -= load.percent;
            }
            loads[0].percent += left;
        }
        loads
    }

    proptest! {
        #[test]
        fn loads_are_envoys(
            levels in prop::collection::vec((1u32..60, 0u32..60), 1..6),
            overprovisioning in 100u32..300,
            threshold in 0u32..=100,
        ) {
            let levels: Vec<_> =
                levels.into_iter().map(|(nodes, healthy)| Census { nodes, healthy: healthy.min(nodes) }).collect();
            let loads = spread(&levels, overprovisioning, threshold);
            prop_assert_eq!(loads, envoy(&levels, overprovisioning, threshold));
        }

        #[test]
        fn everything_goes_somewhere_that_can_be_picked(
            levels in prop::collection::vec((0u32..=u32::MAX, 0u32..=u32::MAX), 0..6),
            overprovisioning: u32,
            threshold: u32,
        ) {
            let levels: Vec<_> =
                levels.into_iter().map(|(nodes, healthy)| Census { nodes, healthy: healthy.min(nodes) }).collect();
            let loads = spread(&levels, overprovisioning, threshold);
            let sum: u32 = loads.iter().map(|load| load.percent).sum();
            let pickable = |(load, level): (&Load, &Census)| if load.panic { level.nodes } else { level.healthy };
            prop_assert_eq!(sum, if loads.iter().zip(&levels).any(|pair| pickable(pair) > 0) { 100 } else { 0 });
            for pair in loads.iter().zip(&levels) {
                prop_assert!(pair.0.percent == 0 || pickable(pair) > 0);
            }
        }
    }
}
