//! A strategy at work among the members of a group.

use std::time::Duration;

use super::{busy, hashing::Hashing, plan::Member};
use crate::{
    Random, WeightedRandom, WeightedRoundRobin,
    chosen::{CHOICES, Chosen},
    maglev::Keyed,
    pool::Pool,
    random::{Stream, spread},
    settings::Algorithm,
};

#[derive(Clone, Debug)]
pub(super) enum Engine {
    Random(Random),
    WeightedRandom(WeightedRandom),
    RoundRobin { next: usize },
    WeightedRoundRobin(WeightedRoundRobin),
    LeastRequest { sampler: WeightedRandom, choices: u8 },
    PeakEwma { sampler: WeightedRandom, mean: f64, decay: Duration, default_latency: Duration },
    ConsistentHash(Box<Hashing>),
}

/// What a pick goes by.
pub(super) struct Circumstances<'a> {
    pub(super) pool: &'a Pool,
    pub(super) now: Duration,
    pub(super) hash: u64,
}

impl Engine {
    /// `nodes` are those of the group that count, healthy or not, and `seat` finds a key's member; both matter for
    /// hashing alone. `previous` is what the group had before.
    pub(super) fn new(
        algorithm: Algorithm,
        members: &[Member],
        seed: u64,
        nodes: impl Iterator<Item = Keyed>,
        seat: impl Fn(u64) -> u32,
        previous: Option<Self>,
    ) -> Self {
        let weights = || members.iter().map(|member| member.weight);
        match algorithm {
            Algorithm::Random => Self::Random(Random::new(weights())),
            Algorithm::WeightedRandom => Self::WeightedRandom(WeightedRandom::new(weights())),
            Algorithm::RoundRobin => match previous {
                Some(Self::RoundRobin { next }) => Self::RoundRobin { next },
                _ => Self::RoundRobin { next: spread(Stream::new(seed).next(), members.len()).0 },
            },
            Algorithm::WeightedRoundRobin => Self::WeightedRoundRobin(WeightedRoundRobin::new(weights(), seed)),
            Algorithm::LeastRequest { choices } => {
                Self::LeastRequest { sampler: WeightedRandom::new(weights()), choices }
            }
            Algorithm::PeakEwma { decay, default_latency } => {
                let mean = weights().map(f64::from).sum::<f64>() / members.len().max(1) as f64;
                Self::PeakEwma { sampler: WeightedRandom::new(weights()), mean, decay, default_latency }
            }
            Algorithm::ConsistentHash { table_size, bounded_load } => {
                let previous = match previous {
                    Some(Self::ConsistentHash(hashing)) => Some(*hashing),
                    _ => None,
                };
                let hashing = Hashing::new(members, nodes.collect(), table_size, bounded_load, seat, previous);
                Self::ConsistentHash(Box::new(hashing))
            }
        }
    }

    /// Chooses a member, and others behind it as far as they come at little cost.
    pub(super) fn pick(
        &mut self,
        members: &[Member],
        circumstances: &Circumstances<'_>,
        stream: &mut Stream,
        chosen: &mut Chosen<'_>,
    ) {
        let node = |index: usize| members.get(index).map(|member| member.node as usize);
        match self {
            Self::Random(random) => {
                if let Some(node) = random.pick(stream.next()).and_then(node) {
                    chosen.add(node);
                }
            }
            Self::WeightedRandom(sampler) => {
                for _ in 0..2 * CHOICES {
                    if chosen.is_full() {
                        break;
                    }
                    if let Some(node) = sampler.pick(stream.next()).and_then(node) {
                        chosen.add(node);
                    }
                }
            }
            Self::RoundRobin { next } => {
                if *next >= members.len() {
                    *next = 0;
                }
                let ring = members.iter().skip(*next).chain(members.iter().take(*next));
                ring.take(CHOICES).for_each(|member| chosen.add(member.node as usize));
                *next += 1;
            }
            Self::WeightedRoundRobin(scheduler) => {
                let mut choices = [0; CHOICES];
                let count = scheduler.pick_with_alternatives(&mut choices);
                choices.into_iter().take(count).filter_map(node).for_each(|node| chosen.add(node));
            }
            Self::LeastRequest { sampler, choices } => {
                busy::least_request(sampler, *choices, members, circumstances.pool, stream, chosen);
            }
            Self::PeakEwma { sampler, mean, decay, default_latency } => {
                let (of, at) = ((*decay, *default_latency), (circumstances.pool, circumstances.now));
                busy::peak_ewma((sampler, *mean), of, members, at, stream, chosen);
            }
            Self::ConsistentHash(hashing) => hashing.pick(members, circumstances.pool, circumstances.hash, chosen),
        }
    }

    /// How likely each member is, or the one that a hash belongs to.
    pub(super) fn shares(&self, members: &[Member], hash: Option<u64>) -> Vec<f64> {
        let by_weight = |weight: &dyn Fn(&Member) -> f64| {
            let total: f64 = members.iter().map(weight).sum();
            members.iter().map(|member| weight(member) / total).collect()
        };
        match self {
            Self::Random(_) | Self::RoundRobin { .. } => by_weight(&|_| 1.0),
            Self::ConsistentHash(hashing) => hashing.shares(members, hash),
            _ => by_weight(&|member| f64::from(member.weight)),
        }
    }
}
