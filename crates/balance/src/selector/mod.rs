//! Chooses nodes: built when nodes or their state change, asked for every request.

mod busy;
mod engine;
mod hashing;
mod levels;
mod plan;
mod zones;

use std::{ops::Range, time::Duration};

use self::{
    engine::{Circumstances, Engine},
    plan::{Group, Member, Plan},
};
use crate::{
    chosen::{CHOICES, Chosen},
    maglev::{NOBODY, fingerprint},
    node::NodeView,
    pool::{Pool, Slot},
    random::{Stream, mix},
    settings::{Algorithm, Settings},
};

/// What a request brings to a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Time since some start, the same for everything that is told the pool.
    pub now: Duration,
    /// Any number, another one for each request.
    pub random: u64,
    /// Hash of the request's key, for strategies that hash. Without one, such a request goes anywhere.
    pub hash: Option<u64>,
    /// Key of the node that this client had before: it comes first if it may be picked.
    pub preferred: Option<u64>,
}

/// Chooses among a service's nodes or a subset of them.
///
/// It is built anew, from the one before, when nodes change or when the [`Pool`] says that ejections do. O(n log n) in the
/// number of nodes at worst; what did not change is taken over. A choice is O(1) and allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    /// Those that may be picked, by level and zone.
    members: Vec<Member>,
    /// By slot: which member.
    seats: Vec<u32>,
    levels: Vec<Range<usize>>,
    groups: Vec<Working>,
    /// Of each group: the random numbers below this one, and not below that of the group before, are its own.
    bounds: Vec<u64>,
    probes: Vec<(u32, Slot)>,
    panicking: bool,
    nodes: usize,
}

/// A group at work.
#[derive(Clone, Debug)]
struct Working {
    group: Group,
    algorithm: Algorithm,
    /// Of the members' keys and weights.
    fingerprint: u64,
    engine: Engine,
}

impl Selector {
    /// One for these nodes, whose slots the pool gave.
    ///
    /// Without knowledge of outcomes, strategies that need it act as weighted round robin, and load is not bounded.
    /// `seed` decides where those that go round begin. `previous` is the selector that this one replaces, for the same
    /// pool: what it knew of nodes that are still there is kept.
    pub fn new(
        nodes: &[NodeView],
        slots: &[Slot],
        pool: &Pool,
        settings: &Settings,
        seed: u64,
        outcomes_known: bool,
        previous: Option<Self>,
    ) -> Self {
        let Plan { members, levels, groups, probes, panicking } = Plan::new(nodes, slots, pool, settings);
        let algorithm = if outcomes_known { settings.algorithm } else { settings.algorithm.without_outcomes() };
        let mut seats = vec![NOBODY; slots.iter().map(|slot| slot.index() + 1).max().unwrap_or(0)];
        for (seat, member) in (0u32..).zip(&members) {
            if let Some(of) = seats.get_mut(member.slot.index()) {
                *of = seat;
            }
        }
        let mut before = previous.map_or_else(Vec::new, |previous| previous.groups);
        let mut seeds = Stream::new(seed);
        let mut start = |group: Group| {
            let own = members.get(group.range.clone()).unwrap_or_default();
            let key = |member: &Member| nodes.get(member.node as usize).map_or(0, |node| node.key);
            let fingerprint = fingerprint(own.iter().map(|member| (key(member), member.weight)));
            let found = before.iter().position(|old| {
                (old.group.priority, old.group.zone, old.algorithm) == (group.priority, group.zone, algorithm)
            });
            let old = found.map(|found| before.swap_remove(found));
            let same = |old: &Working| {
                old.fingerprint == fingerprint
                    && old.group.range.len() == own.len()
                    && !matches!(old.engine, Engine::ConsistentHash(_))
            };
            let engine = match old {
                Some(old) if same(&old) => old.engine,
                old => {
                    let counting = nodes.iter().filter(|node| group.holds(node));
                    let counting = counting.map(|node| (node.key, node.effective_weight()));
                    let seat = |key: u64| {
                        let seat = pool.slot(key).and_then(|slot| seats.get(slot.index()).copied());
                        let seat = seat.filter(|seat| group.range.contains(&(*seat as usize)));
                        seat.map_or(NOBODY, |seat| seat - group.range.start as u32)
                    };
                    Engine::new(algorithm, own, seeds.next(), counting, seat, old.map(|old| old.engine))
                }
            };
            Working { group, algorithm, fingerprint, engine }
        };
        let groups: Vec<Working> = groups.into_iter().map(&mut start).collect();
        let parts = groups.iter().scan(0.0, |sum, working| {
            *sum += working.group.part;
            // Beyond the range: to its end.
            Some((*sum * 2f64.powi(64)) as u64)
        });
        let bounds = parts.collect();
        Self { members, seats, levels, groups, bounds, probes, panicking, nodes: nodes.len() }
    }

    /// Chooses nodes by their index in what it was built of: the first choice, then distinct others to try if that
    /// fails, of the same group as far as there are any. `choices` is filled from its start; how many there are is
    /// returned, 0 if no node may be picked.
    ///
    /// An ejected node whose time is up comes first for one request, the probe: whoever takes it says
    /// [`Pool::started`] before the next choice.
    pub fn choose(&mut self, pool: &Pool, ask: &Ask, choices: &mut [usize; CHOICES]) -> usize {
        let mut stream = Stream::new(ask.random);
        let mut chosen = Chosen::new(choices);
        let preferred = ask.preferred.and_then(|key| self.pickable(pool, key));
        if let Some(node) = preferred {
            chosen.add(node as usize);
        } else if let Some((node, _)) = self.probes.iter().find(|(_, slot)| pool.wants_probe(*slot)) {
            chosen.add(*node as usize);
        }
        let hash = ask.hash.unwrap_or(ask.random);
        let index = self.group(hash, &mut stream);
        let Some(working) = self.groups.get_mut(index) else { return chosen.count() };
        let members = self.members.get(working.group.range.clone()).unwrap_or_default();
        // Clients that stay where they are do not take the turns of the others.
        if preferred.is_none() {
            working.engine.pick(members, &Circumstances { pool, now: ask.now, hash }, &mut stream, &mut chosen);
        }
        if !chosen.is_full() {
            let level = working.group.level;
            add_some(members, &mut stream, &mut chosen);
            // The rest of its level, then the levels behind it, then those before.
            for range in self.levels.iter().skip(level).chain(self.levels.iter().take(level)) {
                if chosen.is_full() {
                    break;
                }
                add_some(self.members.get(range.clone()).unwrap_or_default(), &mut stream, &mut chosen);
            }
        }
        chosen.count()
    }

    /// The group whose turn it is.
    fn group(&self, hash: u64, stream: &mut Stream) -> usize {
        if self.groups.len() < 2 {
            return 0;
        }
        // The same key goes to the same level and zone, whatever the hash decides next.
        let number = if self.is_hashing() { mix(hash ^ 0x0067_726f_7570) } else { stream.next() };
        self.bounds.partition_point(|bound| *bound <= number).min(self.groups.len() - 1)
    }

    fn is_hashing(&self) -> bool {
        self.groups.first().is_some_and(|working| matches!(working.engine, Engine::ConsistentHash(_)))
    }

    /// The node with this key, if it may be picked.
    fn pickable(&self, pool: &Pool, key: u64) -> Option<u32> {
        let seat = *self.seats.get(pool.slot(key)?.index())?;
        self.members.get(seat as usize).map(|member| member.node)
    }

    /// Whether unhealthy nodes are picked, as too few healthy ones are left.
    pub fn is_panicking(&self) -> bool {
        self.panicking
    }

    /// Whether no node may be picked.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.probes.is_empty()
    }

    /// How likely each node is the first choice: with strategies that go by outcomes, as long as all nodes are equally
    /// busy and fast; with those that hash, for the request with this hash. Without probes. O(n), and O(table) for hashing
    /// without a hash.
    pub fn shares(&self, hash: Option<u64>) -> Vec<f64> {
        let mut shares = vec![0.0; self.nodes];
        let only = hash.filter(|_| self.is_hashing()).map(|hash| self.group(hash, &mut Stream::new(0)));
        for (index, working) in self.groups.iter().enumerate() {
            let part = match only {
                Some(only) if only == index => 1.0,
                Some(_) => continue,
                None => working.group.part,
            };
            let members = self.members.get(working.group.range.clone()).unwrap_or_default();
            for (member, share) in members.iter().zip(working.engine.shares(members, hash)) {
                if let Some(of) = shares.get_mut(member.node as usize) {
                    *of += part * share;
                }
            }
        }
        shares
    }

    /// Goes on building tables for hashing, for at most `budget` steps of a few nanoseconds; called while nothing else is
    /// to be done. A table of 65,537 places takes about 800,000 steps. Until one is done the one before serves, without
    /// the nodes that are gone and those that are new; before the first, hashing is as even, but every change of nodes
    /// moves nearly all keys.
    pub fn advance(&mut self, mut budget: usize) {
        for working in &mut self.groups {
            if let Engine::ConsistentHash(hashing) = &mut working.engine {
                hashing.advance(&mut budget);
            }
        }
    }

    /// Whether [`advance`](Self::advance) has anything to do.
    pub fn is_building(&self) -> bool {
        self.groups
            .iter()
            .any(|working| matches!(&working.engine, Engine::ConsistentHash(hashing) if hashing.is_building()))
    }
}

/// Adds members, from any of them on.
fn add_some(members: &[Member], stream: &mut Stream, chosen: &mut Chosen<'_>) {
    let (start, _) = crate::random::spread(stream.next(), members.len());
    for member in members.iter().skip(start).chain(members.iter().take(start)) {
        if chosen.is_full() {
            break;
        }
        chosen.add(member.node as usize);
    }
}
