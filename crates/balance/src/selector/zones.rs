//! How a level's requests are spread over zones: zone aware routing by Envoy's arithmetic.

use crate::settings::Locality;

/// The nodes of a zone that may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Zone {
    pub(super) name: u32,
    pub(super) nodes: u32,
    /// Sum of their weights: a zone's share of what the level can serve goes by weight, as with Envoy's
    /// `HEALTHY_HOSTS_WEIGHT`.
    pub(super) weight: u64,
}

/// What part of the requests of a caller in `locality.zone` goes to each zone; `None` if zones do not matter: where the
/// caller is is unknown, there is one zone only, or there are too few nodes.
///
/// If the own zone has at least the share of what can serve that it has of the callers, everything stays in it. If not,
/// as much stays as it can take; the rest goes to zones that have more to serve with than callers, in proportion to that
/// surplus.
pub(super) fn split(zones: &[Zone], locality: &Locality) -> Option<Vec<f64>> {
    let nodes: u64 = zones.iter().map(|zone| u64::from(zone.nodes)).sum();
    if locality.zone == 0 || zones.len() < 2 || nodes < u64::from(locality.min_nodes) {
        return None;
    }
    let weight: f64 = zones.iter().map(|zone| zone.weight as f64).sum();
    let callers: f64 = locality.callers.iter().map(|(_, callers)| *callers as f64).sum();
    let own = zones.iter().position(|zone| zone.name == locality.zone);
    // The own zone calls too, with nodes or without.
    let calling = zones.len() + usize::from(own.is_none());
    let calls = |name: u32| {
        if callers > 0.0 {
            let of_zone = locality.callers.iter().filter(|(zone, _)| *zone == name).map(|(_, callers)| *callers as f64);
            of_zone.sum::<f64>() / callers
        } else {
            1.0 / calling as f64
        }
    };
    let serves = |zone: &Zone| zone.weight as f64 / weight;
    let (own_calls, own_serves) = (calls(locality.zone), own.and_then(|own| zones.get(own)).map_or(0.0, serves));
    // A hair's breadth: shares that are equal may not come out as equal.
    let stays = if own_serves > 0.0 && own_serves + 1e-9 >= own_calls { 1.0 } else { own_serves / own_calls.max(1e-9) };
    let surplus = |(index, zone): (usize, &Zone)| match Some(index) == own {
        true => 0.0,
        false => (serves(zone) - calls(zone.name)).max(0.0),
    };
    let mut surpluses: Vec<f64> = zones.iter().enumerate().map(surplus).collect();
    let mut total: f64 = surpluses.iter().sum();
    if total <= 0.0 {
        // Only where callers and shares contradict each other.
        let others = |(index, zone): (usize, &Zone)| if Some(index) == own { 0.0 } else { serves(zone) };
        surpluses = zones.iter().enumerate().map(others).collect();
        total = surpluses.iter().sum();
    }
    let part = |(index, surplus): (usize, f64)| match Some(index) == own {
        true => stays,
        false => (1.0 - stays) * surplus / total,
    };
    Some(surpluses.into_iter().enumerate().map(part).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn zones(weights: &[u64]) -> Vec<Zone> {
        (1..).zip(weights).map(|(name, weight)| Zone { name, nodes: *weight as u32, weight: *weight }).collect()
    }

    fn parts(weights: &[u64], zone: u32, callers: &[u64]) -> Option<Vec<f64>> {
        let callers = (1..).zip(callers.iter().copied()).collect();
        let parts = split(&zones(weights), &Locality { zone, callers, min_nodes: 6 })?;
        Some(parts.into_iter().map(|part| (part * 10_000.0).round() / 10_000.0).collect())
    }

    #[test]
    fn a_zone_keeps_what_it_can_take_and_spills_the_rest_by_surplus() {
        // Callers 40, 40, 20 %; nodes 25, 50, 25 %: the example in Envoy's source.
        assert_eq!(parts(&[25, 50, 25], 1, &[40, 40, 20]), Some(vec![0.625, 0.25, 0.125]));
        assert_eq!(parts(&[25, 50, 25], 2, &[40, 40, 20]), Some(vec![0.0, 1.0, 0.0]));
        // Equal shares stay at home.
        assert_eq!(parts(&[3, 3, 3], 3, &[1, 1, 1]), Some(vec![0.0, 0.0, 1.0]));
        assert_eq!(parts(&[3, 3, 3], 3, &[]), Some(vec![0.0, 0.0, 1.0]));
        // The own zone has nobody: its calls go where there is a surplus.
        assert_eq!(parts(&[5, 5], 3, &[20, 30, 50]), Some(vec![0.6, 0.4]));
        assert_eq!(parts(&[5, 5], 3, &[]), Some(vec![0.5, 0.5]));
    }

    #[test]
    fn zones_do_not_matter_with_few_nodes_one_zone_or_an_unknown_one() {
        assert_eq!(parts(&[2, 3], 1, &[1, 1]), None);
        assert_eq!(parts(&[9], 1, &[1, 1]), None);
        assert_eq!(parts(&[9, 9], 0, &[1, 1]), None);
        assert_eq!(parts(&[], 1, &[1, 1]), None);
    }

    proptest! {
        #[test]
        fn all_callers_together_load_every_zone_by_its_share(
            both in prop::collection::vec((1u64..1_000, 1u64..1_000), 2..8),
        ) {
            let (weights, callers): (Vec<u64>, Vec<u64>) = both.into_iter().unzip();
            let zones = zones(&weights);
            let callers: Vec<(u32, u64)> = (1..).zip(callers).collect();
            let mut load = vec![0.0; zones.len()];
            let calling: u64 = callers.iter().map(|(_, callers)| callers).sum();
            for (zone, calls) in &callers {
                let locality = Locality { zone: *zone, callers: callers.clone(), min_nodes: 0 };
                let parts = split(&zones, &locality).unwrap();
                prop_assert!((parts.iter().sum::<f64>() - 1.0).abs() < 1e-6);
                for (load, part) in load.iter_mut().zip(&parts) {
                    prop_assert!(*part >= 0.0);
                    *load += part * *calls as f64 / calling as f64;
                }
            }
            let serving: u64 = weights.iter().sum();
            for (load, weight) in load.iter().zip(&weights) {
                prop_assert!((load - *weight as f64 / serving as f64).abs() < 1e-6);
            }
        }

        #[test]
        fn whatever_callers_there_are_the_parts_make_one(
            both in prop::collection::vec((1u64..=u64::from(u32::MAX) * 10_000, 0u64..=u64::MAX / 16), 2..8),
            zone in 1u32..10,
        ) {
            let zones: Vec<_> = (1..).zip(&both).map(|(name, (weight, _))| Zone { name, nodes: 9, weight: *weight }).collect();
            let callers = (1..).zip(both.iter().map(|(_, callers)| *callers)).collect();
            let parts = split(&zones, &Locality { zone, callers, min_nodes: 0 }).unwrap();
            prop_assert!((parts.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{:?}", parts);
            prop_assert!(parts.iter().all(|part| (0.0..=1.0 + 1e-9).contains(part)), "{:?}", parts);
        }
    }
}
