//! Consistent hashing over a group: a table, the next one while it is built, and the bound on load.
//!
//! A table holds all nodes of the group that count, healthy or not: those that may not be picked are stepped over. So a
//! node's ejection or failing health check moves its own keys and no others, needs no new table, and when it is back so
//! are its keys.

use super::plan::Member;
use crate::{
    WeightedRandom,
    chosen::Chosen,
    maglev::{Builder, Keyed, NOBODY, Table, fingerprint},
    pool::Pool,
    random::{mix, spread},
};

/// Places that are looked at for a node before any other will do.
const REACH: usize = 512;
/// And for each alternative.
const ALTERNATIVES_REACH: usize = 16;
/// Members of which the requests in flight are counted anew with each pick.
const RECOUNT: usize = 16;

#[derive(Clone, Debug)]
pub(super) struct Hashing {
    serving: Option<Seated<Table>>,
    building: Option<Seated<Builder>>,
    /// What is built after that: nodes changed while a table was being built. It is finished all the same, so that
    /// changes that come faster than tables are built do not keep an old one serving for ever.
    next: Option<Seated<Vec<Keyed>>>,
    table_size: u32,
    /// For as long as there is no table.
    sampler: WeightedRandom,
    bound: Option<Bound>,
}

/// Something about nodes, and where these are among the members: `NOBODY` for those that may not be picked.
#[derive(Clone, Debug)]
struct Seated<T> {
    of: T,
    seats: Vec<u32>,
}

/// What bounded load counts by.
#[derive(Clone, Debug)]
struct Bound {
    /// How far above the mean.
    factor: f64,
    weight: f64,
    /// Requests in flight of every member, as last counted.
    counted: Vec<u32>,
    sum: u64,
    next: usize,
}

impl Hashing {
    /// One for these members, and for nodes that count, of which members are the ones that may be picked. `seat` finds a
    /// key's member. Goes on with what there was before.
    pub(super) fn new(
        members: &[Member],
        nodes: Vec<Keyed>,
        table_size: u32,
        bounded_load: Option<f64>,
        seat: impl Fn(u64) -> u32,
        previous: Option<Self>,
    ) -> Self {
        fn seats(keys: &[u64], seat: impl Fn(u64) -> u32) -> Vec<u32> {
            keys.iter().map(|key| seat(*key)).collect()
        }
        let wanted = fingerprint(nodes.iter().copied());
        let previous = previous.filter(|previous| previous.table_size == table_size);
        let (serving, building) = previous.map_or((None, None), |previous| (previous.serving, previous.building));
        let serving = serving.map(|Seated { of, .. }| Seated { seats: seats(of.keys(), &seat), of });
        let building = building.map(|Seated { of, .. }| Seated { seats: seats(of.keys(), &seat), of });
        let mut next = None;
        let coming = building.as_ref().map(|building| building.of.fingerprint());
        if coming.or(serving.as_ref().map(|serving| serving.of.fingerprint())) != Some(wanted) {
            next = Some(Seated { seats: nodes.iter().map(|(key, _)| seat(*key)).collect(), of: nodes });
        }
        let sampler = WeightedRandom::new(members.iter().map(|member| member.weight));
        let bound = bounded_load.map(|factor| Bound {
            factor: if factor >= 1.0 { factor } else { 1.0 },
            weight: members.iter().map(|member| f64::from(member.weight)).sum(),
            counted: vec![0; members.len()],
            sum: 0,
            next: 0,
        });
        Self { serving, building, next, table_size, sampler, bound }
    }

    /// Builds on for at most `budget` steps and takes off those it made.
    pub(super) fn advance(&mut self, budget: &mut usize) {
        while *budget > 0 {
            if self.building.is_none() {
                let Some(Seated { of, seats }) = self.next.take() else { return };
                *budget = budget.saturating_sub(of.len());
                self.building = Some(Seated { of: Builder::new(of.iter().copied(), self.table_size), seats });
            }
            if let Some(mut building) = self.building.take() {
                if building.of.advance(budget) {
                    self.serving = Some(Seated { of: building.of.into_table(), seats: building.seats });
                } else {
                    self.building = Some(building);
                }
            }
        }
    }

    pub(super) fn is_building(&self) -> bool {
        self.building.is_some() || self.next.is_some()
    }

    /// The members of the places from that of a hash on.
    fn from(&self, hash: u64) -> impl Iterator<Item = usize> {
        let (places, seats) =
            self.serving.as_ref().map_or((&[][..], &[][..]), |serving| (serving.of.places(), &serving.seats));
        let (start, _) = spread(mix(hash), places.len());
        let ring = places.iter().skip(start).chain(places.iter().take(start));
        ring.map(|index| seats.get(*index as usize).map_or(usize::MAX, |seat| *seat as usize))
    }

    pub(super) fn pick(&mut self, members: &[Member], pool: &Pool, hash: u64, chosen: &mut Chosen<'_>) {
        if let Some(bound) = &mut self.bound {
            bound.count(members, pool);
        }
        let fits = |member: &Member| self.bound.as_ref().is_none_or(|bound| bound.fits(member, pool));
        let present = |seat: usize| members.get(seat);
        if self.serving.is_none() {
            // As good as a table until nodes change.
            let first = self.sampler.pick(mix(hash)).unwrap_or(0);
            let mut ring = members.iter().skip(first).chain(members.iter().take(first)).take(REACH);
            if let Some(member) = ring.find(|member| fits(member)).or(members.get(first)) {
                chosen.add(member.node as usize);
            }
            return;
        }
        let mut ring = self.from(hash);
        let mut least: Option<&Member> = None;
        let mut found = None;
        for member in ring.by_ref().take(REACH).filter_map(present) {
            if fits(member) {
                found = Some(member);
                break;
            }
            let load = |member: &Member| f64::from(pool.in_flight(member.slot)) / f64::from(member.weight);
            if least.is_none_or(|least| load(member) < load(least)) {
                least = Some(member);
            }
        }
        // Nobody of the table is there any more: whoever is, by the hash.
        let any = || members.get(self.sampler.pick(mix(hash))?);
        if let Some(member) = found.or(least).or_else(any) {
            chosen.add(member.node as usize);
        }
        for member in ring.take(2 * ALTERNATIVES_REACH).filter_map(present) {
            if chosen.is_full() {
                break;
            }
            if fits(member) {
                chosen.add(member.node as usize);
            }
        }
    }

    /// The member that has a hash, whatever its load; or how likely each is.
    pub(super) fn shares(&self, members: &[Member], hash: Option<u64>) -> Vec<f64> {
        let mut shares = vec![0.0; members.len()];
        let mut give = |seat: usize, share: f64| {
            if let Some(of) = shares.get_mut(seat) {
                *of += share;
            }
        };
        match (hash, &self.serving) {
            (Some(hash), _) => {
                let table = self.from(hash).take(REACH).find(|seat| *seat < members.len());
                if let Some(seat) = table.or_else(|| self.sampler.pick(mix(hash))) {
                    give(seat, 1.0);
                }
            }
            (None, Some(serving)) => {
                let seat = |index: &u32| serving.seats.get(*index as usize).map_or(NOBODY, |seat| *seat) as usize;
                let places = serving.of.places();
                // A place of somebody who is gone belongs to whom the next place that has anybody belongs to.
                let first = places.iter().map(seat).find(|seat| *seat < members.len());
                let mut owner = first;
                for place in places.iter().rev() {
                    owner = Some(seat(place)).filter(|seat| *seat < members.len()).or(owner);
                    match owner {
                        Some(owner) => give(owner, 1.0 / places.len() as f64),
                        None => break,
                    }
                }
                if first.is_none() {
                    (0..members.len()).for_each(|seat| give(seat, share_by_weight(members, seat)));
                }
            }
            (None, None) => (0..members.len()).for_each(|seat| give(seat, share_by_weight(members, seat))),
        }
        shares
    }
}

fn share_by_weight(members: &[Member], seat: usize) -> f64 {
    let total: f64 = members.iter().map(|member| f64::from(member.weight)).sum();
    members.get(seat).map_or(0.0, |member| f64::from(member.weight) / total)
}

impl Bound {
    /// Counts some members anew, all of them in turn.
    fn count(&mut self, members: &[Member], pool: &Pool) {
        for _ in 0..RECOUNT.min(members.len()) {
            if self.next >= members.len() {
                self.next = 0;
            }
            if let (Some(member), Some(counted)) = (members.get(self.next), self.counted.get_mut(self.next)) {
                let now = pool.in_flight(member.slot);
                self.sum = (self.sum + u64::from(now)).saturating_sub(u64::from(*counted));
                *counted = now;
            }
            self.next += 1;
        }
    }

    /// Whether one more request stays within what a member of this weight may have.
    fn fits(&self, member: &Member, pool: &Pool) -> bool {
        let most = self.factor * (self.sum + 1) as f64 * f64::from(member.weight) / self.weight;
        f64::from(pool.in_flight(member.slot)) < most.ceil()
    }
}
