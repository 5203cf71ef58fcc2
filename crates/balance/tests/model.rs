//! Who gets what by health, levels and zones, beside a model that asks every node every time.

use std::time::Duration;

use proptest::prelude::*;
use waypost_balance::{
    Algorithm, Ejection, Health, Locality, NodeView, Outcome, OutcomeKind, Pool, Selector, Settings, Strategy as Name,
};

/// Few enough levels and zones that each has some nodes.
fn any_nodes() -> impl Strategy<Value = Vec<(NodeView, bool)>> {
    let health = prop::sample::select(vec![Health::Passing, Health::Passing, Health::Critical, Health::Draining]);
    let weight = prop_oneof![1u32..10, 0u32..2, Just(u32::MAX)];
    let node = (any::<u64>(), weight, health, 0u8..3, 0u32..4, prop::bool::weighted(0.2));
    let node = node.prop_map(|(key, weight, health, priority, zone, ejected)| {
        (NodeView { health, priority, zone, ..NodeView::new(key, weight) }, ejected)
    });
    prop::collection::vec(node, 0..40)
}

/// Each node's share, for a strategy that goes by weight or, if not, treats all alike.
fn shares(nodes: &[(NodeView, bool)], settings: &Settings, by_weight: bool) -> Vec<f64> {
    let counting = |node: &NodeView| node.weight > 0 && node.health != Health::Draining;
    let healthy = |(node, ejected): &(NodeView, bool)| counting(node) && node.health == Health::Passing && !ejected;
    let threshold = u32::from(settings.panic_threshold.unwrap_or(0));
    let of_level = |level: u8| nodes.iter().filter(move |(node, _)| node.priority == level);
    let all = |level| of_level(level).filter(|(node, _)| counting(node)).count() as u32;
    let good = |level| of_level(level).filter(|node| healthy(node)).count() as u32;
    let levels: Vec<u8> = (0..=255).filter(|level| all(*level) > 0).collect();
    let carries = |level: &u8| (settings.overprovisioning * good(*level) / all(*level)).min(100);
    let total = levels.iter().map(carries).sum::<u32>().min(100);
    let panics = |level: &u8| total < 100 && good(*level) * 100 < threshold * all(*level);
    let everyone: u32 = levels.iter().map(|level| all(*level)).sum();
    let part = |level: &u8| match levels.iter().all(panics) {
        true => 100 * all(*level) / everyone,
        false => (carries(level) * 100).checked_div(total).unwrap_or(0),
    };
    // As in Envoy: at most what is left, and what rounding leaves over to the first that gets anything.
    let mut left = 100;
    let mut parts = Vec::new();
    for level in &levels {
        parts.push(part(level).min(left));
        left -= part(level).min(left);
    }
    if let Some(first) = parts.iter_mut().find(|part| **part > 0) {
        *first += left;
    }

    let weight = |node: &NodeView| f64::from(node.weight);
    let mut shares = vec![0.0; nodes.len()];
    for (level, part) in levels.iter().zip(parts) {
        let picked = |node: &(NodeView, bool)| {
            node.0.priority == *level && if panics(level) { counting(&node.0) } else { healthy(node) }
        };
        let picked: Vec<usize> = (0..nodes.len()).filter(|index| picked(&nodes[*index])).collect();
        let mut zones: Vec<u32> = picked.iter().map(|index| nodes[*index].0.zone).collect();
        zones.sort_unstable();
        zones.dedup();
        let in_zone = |zone: u32| picked.iter().copied().filter(move |index| nodes[*index].0.zone == zone);
        let of = |indices: &mut dyn Iterator<Item = usize>| indices.map(|index| weight(&nodes[index].0)).sum::<f64>();
        let serves = |zone: u32| of(&mut in_zone(zone)) / of(&mut picked.iter().copied());
        let locality = settings.locality.clone().unwrap_or_default();
        let callers: u64 = locality.callers.iter().map(|(_, callers)| callers).sum();
        let calls = |zone: u32| {
            let callers_of = |of: &&(u32, u64)| of.0 == zone;
            locality.callers.iter().filter(callers_of).map(|(_, callers)| *callers as f64).sum::<f64>() / callers as f64
        };
        let zoned =
            locality.zone != 0 && zones.len() > 1 && picked.len() >= locality.min_nodes as usize && !panics(level);
        let zone_part = |zone: u32| {
            let (own_serves, own_calls) = (serves(locality.zone), calls(locality.zone));
            let stays = if own_serves > 0.0 && own_serves >= own_calls { 1.0 } else { own_serves / own_calls };
            let surplus = |zone: u32| if zone == locality.zone { 0.0 } else { (serves(zone) - calls(zone)).max(0.0) };
            match zone == locality.zone {
                true => stays,
                false if stays == 1.0 => 0.0,
                false => (1.0 - stays) * surplus(zone) / zones.iter().map(|zone| surplus(*zone)).sum::<f64>(),
            }
        };
        for index in &picked {
            let zone = nodes[*index].0.zone;
            let group: Vec<usize> = if zoned { in_zone(zone).collect() } else { picked.clone() };
            let of_group = if by_weight {
                weight(&nodes[*index].0) / of(&mut group.iter().copied())
            } else {
                1.0 / group.len() as f64
            };
            shares[*index] += f64::from(part) / 100.0 * if zoned { zone_part(zone) } else { 1.0 } * of_group;
        }
    }
    shares
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn shares_are_those_of_the_model(
        mut nodes in any_nodes(),
        name in prop::sample::select(Name::ALL.to_vec()),
        threshold in 0u8..=100,
        overprovisioning in 100u32..200,
        zone in 0u32..4,
        min_nodes in 0u32..10,
    ) {
        nodes.sort_by_key(|(node, _)| node.key);
        nodes.dedup_by_key(|(node, _)| node.key);
        let mut settings = Settings {
            panic_threshold: Some(threshold),
            ejection: Some(Ejection { consecutive_failures: Some(1), max_share: 100, ..Ejection::default() }),
            locality: Some(Locality { zone, callers: vec![(1, 50), (2, 30), (3, 20)], min_nodes }),
            overprovisioning,
            ..Settings::from(Algorithm::from(name))
        };
        if let Algorithm::ConsistentHash { table_size, .. } = &mut settings.algorithm {
            *table_size = 4_001;
        }
        let views: Vec<NodeView> = nodes.iter().map(|(node, _)| *node).collect();
        let mut pool = Pool::new();
        let slots = pool.sync(views.iter().map(|node| node.key), Duration::ZERO);
        for (slot, (_, ejected)) in slots.iter().zip(&nodes) {
            pool.started(*slot);
            let kind = if *ejected { OutcomeKind::Reset } else { OutcomeKind::Success };
            pool.ended(*slot, Outcome { kind, latency: None }, Duration::ZERO, &settings);
        }
        let mut selector = Selector::new(&views, &slots, &pool, &settings, 1, true, None);
        selector.advance(usize::MAX);
        let by_weight = !matches!(name, Name::Random | Name::RoundRobin);
        let (told, expected) = (selector.shares(None), shares(&nodes, &settings, by_weight));
        // A table holds those who may not be picked, too: their places fall to whoever is next.
        if name == Name::ConsistentHash {
            let level = |shares: &[f64], level: u8| -> f64 {
                shares.iter().zip(&views).filter(|(_, node)| node.priority == level).map(|(share, _)| share).sum()
            };
            for priority in 0..3 {
                prop_assert!((level(&told, priority) - level(&expected, priority)).abs() < 1e-6);
            }
        } else {
            for (told, expected) in told.iter().zip(&expected) {
                prop_assert!((told - expected).abs() < 1e-6, "{:?}\n{:?}", told, expected);
            }
        }
    }
}
