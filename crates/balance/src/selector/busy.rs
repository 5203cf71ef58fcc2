//! Power of a few choices: nodes are drawn in proportion to their weight, and the least costly one is taken.

use std::time::Duration;

use super::plan::Member;
use crate::{WeightedRandom, chosen::Chosen, pool::Pool, random::Stream};

/// At most so many nodes are drawn.
pub(super) const MOST: usize = 10;

/// Requests in flight beside the weight.
#[derive(Clone, Copy)]
struct Load {
    in_flight: u32,
    weight: u32,
}

impl Load {
    fn is_below(&self, other: &Self) -> bool {
        u64::from(self.in_flight) * u64::from(other.weight) < u64::from(other.in_flight) * u64::from(self.weight)
    }
}

/// Least request: of the drawn, the one with the fewest requests in flight for its weight; the first of equals, so that
/// without load everyone gets what its weight says.
pub(super) fn least_request(
    sampler: &WeightedRandom,
    choices: u8,
    members: &[Member],
    pool: &Pool,
    stream: &mut Stream,
    chosen: &mut Chosen<'_>,
) {
    let load = |member: &Member| Load { in_flight: pool.in_flight(member.slot), weight: member.weight };
    least(sampler, choices.into(), members, stream, chosen, load, Load::is_below);
}

/// Peak EWMA: of two drawn, the one with the lowest latency x (1 + in flight x mean weight / weight).
pub(super) fn peak_ewma(
    (sampler, mean): (&WeightedRandom, f64),
    (decay, default_latency): (Duration, Duration),
    members: &[Member],
    (pool, now): (&Pool, Duration),
    stream: &mut Stream,
    chosen: &mut Chosen<'_>,
) {
    let cost = |member: &Member| {
        let (latency, in_flight) = pool.pace(member.slot, now, decay, default_latency);
        latency * (1.0 + f64::from(in_flight) * mean / f64::from(member.weight))
    };
    least(sampler, 2, members, stream, chosen, cost, |a, b| a < b);
}

/// Chooses the least costly of `count` distinct members that are drawn, and behind it the others as they were drawn.
///
/// Where one node outweighs the rest by far, it takes many draws to find another. They are given up after a while: a node
/// that is not found then has so small a share that it is as well not asked this time. Only if more than two are wanted,
/// and that is all there are, are they taken one after the other.
fn least<C>(
    sampler: &WeightedRandom,
    count: usize,
    members: &[Member],
    stream: &mut Stream,
    chosen: &mut Chosen<'_>,
    cost: impl Fn(&Member) -> C,
    is_below: impl Fn(&C, &C) -> bool,
) {
    let count = count.clamp(2, MOST).min(members.len());
    let Some(first) = sampler.pick(stream.next()) else { return };
    let all = count > 2 && count == members.len();
    let mut drawn = [first; MOST];
    let mut found = 0;
    let mut best: Option<(usize, C)> = None;
    for draw in 0..4 + 4 * count {
        let index = match (draw, all) {
            (0, _) => first,
            (_, true) => (first + draw) % count,
            (_, false) => sampler.pick(stream.next()).unwrap_or(first),
        };
        if drawn.iter().take(found).any(|drawn| *drawn == index) {
            continue;
        }
        let (Some(member), Some(place)) = (members.get(index), drawn.get_mut(found)) else { break };
        *place = index;
        found += 1;
        let cost = cost(member);
        if best.as_ref().is_none_or(|(_, least)| is_below(&cost, least)) {
            best = Some((index, cost));
        }
        if found == count {
            break;
        }
    }
    let best = best.map(|(index, _)| index);
    for index in best.iter().chain(drawn.iter().take(found)) {
        if let Some(member) = members.get(*index) {
            chosen.add(member.node as usize);
        }
    }
}
