//! One service as this VM picks from it: its nodes, its policy, and a selector for all of it and for each subset that was
//! asked for.

use std::{rc::Rc, time::Duration};

use fastrand::Rng;
use waypost_balance::{Ask, CHOICES, Health, NodeView, Selector, Settings, Slot};
use waypost_catalog::{
    model::{Health as CatalogHealth, node_key},
    replica::ReplicaService,
};
use waypost_policy::{Compiled, SubsetChoice, zone_number};

use crate::outcomes::{Running, SharedLedger};

/// Steps that a tick spends on a hash table under construction: about a millisecond, and a table takes seven of them.
const TABLE_STEP: usize = 128 * 1024;

/// What a request asks of the service.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// Its subset.
    pub subset: SubsetChoice,
    /// What a hashing strategy goes by.
    pub hash: Option<u64>,
    /// The node that a cookie names.
    pub preferred: Option<u64>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pick {
    /// The nodes, by their index in the service.
    choices: [usize; CHOICES],
    /// How many; 0 if none may be picked.
    pub count: usize,
    /// Whether all nodes were eligible, since too few were healthy.
    pub panicking: bool,
}

/// A service.
#[derive(Debug)]
pub struct Service {
    /// Its policy.
    pub policy: Rc<Compiled>,
    settings: Rc<Settings>,
    /// Every address, one after the other: a copy, so that a pick is one look-up, and changes that are not verified yet
    /// do not touch it.
    addresses: String,
    /// Where each address ends.
    ends: Vec<u32>,
    views: Vec<NodeView>,
    slots: Vec<Slot>,
    /// The subsets that each belongs to.
    memberships: Vec<u64>,
    ledger: SharedLedger,
    /// The pool's version that the selectors were built at.
    pool_version: u64,
    /// Of the whole service, and then of each subset; none before it is asked for.
    groups: Vec<Option<Group>>,
    outcomes_known: bool,
}

/// A selector, and which of the service's nodes it chooses from.
#[derive(Debug)]
struct Group {
    selector: Selector,
    /// Their indices in the service.
    members: Members,
    /// The nodes are others, or some were ejected or readmitted, since it was built.
    stale: bool,
}

#[derive(Debug)]
enum Members {
    All,
    Some(Vec<u32>),
}

impl Service {
    /// The service as the catalog has it.
    pub fn new(
        service: &ReplicaService,
        policy: Rc<Compiled>,
        ledger: SharedLedger,
        outcomes_known: bool,
        now: Duration,
    ) -> Self {
        let mut this = Self {
            settings: Rc::new(policy.settings()),
            policy,
            addresses: String::new(),
            ends: Vec::new(),
            views: Vec::new(),
            slots: Vec::new(),
            memberships: Vec::new(),
            ledger,
            pool_version: 0,
            groups: Vec::new(),
            outcomes_known,
        };
        this.take(service, now);
        this
    }

    /// Takes its nodes as they are now, under the policy that it has now. Selectors are rebuilt when they are next
    /// asked.
    pub fn update(&mut self, service: &ReplicaService, policy: Rc<Compiled>, now: Duration) {
        if self.policy != policy {
            self.settings = Rc::new(policy.settings());
            self.policy = policy;
        }
        self.take(service, now);
        self.groups.iter_mut().flatten().for_each(|group| group.stale = true);
    }

    fn take(&mut self, service: &ReplicaService, now: Duration) {
        self.addresses.clear();
        self.ends.clear();
        self.views.clear();
        self.memberships.clear();
        for node in service.nodes() {
            self.addresses.push_str(&node.address);
            self.ends.push(self.addresses.len() as u32);
            self.memberships.push(node.subsets);
            self.views.push(NodeView {
                key: node_key(&node.address),
                weight: node.weight,
                warmup: node.warmup,
                health: match node.health {
                    CatalogHealth::Passing => Health::Passing,
                    CatalogHealth::Critical => Health::Critical,
                    CatalogHealth::Draining => Health::Draining,
                },
                priority: node.priority,
                zone: zone_number(&node.zone),
            });
        }
        let nodes = service.nodes().iter().zip(&self.views).map(|(node, view)| (&*node.address, view.key));
        if let Ok(mut ledger) = self.ledger.try_borrow_mut() {
            self.slots = ledger.sync(nodes, now);
        }
    }

    /// Chooses nodes. A subset without any that may be picked means the whole service, unless the policy is strict.
    pub fn pick(&mut self, wish: &Wish, rng: &mut Rng, now: Duration) -> Pick {
        let strict = self.policy.policy.strict_subsets;
        let pick = match wish.subset {
            SubsetChoice::Whole => return self.pick_from(None, wish, rng, now),
            SubsetChoice::Subset(subset) => self.pick_from(Some(subset), wish, rng, now),
            SubsetChoice::Unknown => Pick::default(),
        };
        if pick.count > 0 || strict { pick } else { self.pick_from(None, wish, rng, now) }
    }

    fn pick_from(&mut self, subset: Option<usize>, wish: &Wish, rng: &mut Rng, now: Duration) -> Pick {
        let Ok(ledger) = self.ledger.try_borrow() else { return Pick::default() };
        let pool = &ledger.pool;
        if pool.version() != self.pool_version {
            self.pool_version = pool.version();
            self.groups.iter_mut().flatten().for_each(|group| group.stale = true);
        }
        let index = subset.map_or(0, |subset| subset + 1);
        if self.groups.len() <= index {
            self.groups.resize_with(index + 1, || None);
        }
        let Some(place) = self.groups.get_mut(index) else { return Pick::default() };
        if place.as_ref().is_none_or(|group| group.stale) {
            let previous = place.take().map(|group| group.selector);
            let build = |views: &[NodeView], slots: &[Slot]| {
                let seed = rng.u64(..);
                Selector::new(views, slots, pool, &self.settings, seed, self.outcomes_known, previous)
            };
            *place = Some(match subset {
                None => Group { selector: build(&self.views, &self.slots), members: Members::All, stale: false },
                Some(subset) => {
                    let bit = 1u64.checked_shl(subset as u32).unwrap_or(0);
                    let numbered = (0u32..).zip(&self.memberships);
                    let members: Vec<u32> =
                        numbered.filter(|(_, memberships)| **memberships & bit != 0).map(|(node, _)| node).collect();
                    let of = || members.iter().map(|node| *node as usize);
                    let views: Vec<_> = of().filter_map(|node| self.views.get(node)).copied().collect();
                    let slots: Vec<_> = of().filter_map(|node| self.slots.get(node)).copied().collect();
                    Group { selector: build(&views, &slots), members: Members::Some(members), stale: false }
                }
            });
        }
        let Some(group) = place else { return Pick::default() };
        let mut pick = Pick { panicking: group.selector.is_panicking(), ..Pick::default() };
        let ask = Ask { now, random: rng.u64(..), hash: wish.hash, preferred: wish.preferred };
        pick.count = group.selector.choose(pool, &ask, &mut pick.choices);
        if let Members::Some(indices) = &group.members {
            for choice in &mut pick.choices {
                *choice = indices.get(*choice).map_or(usize::MAX, |index| *index as usize);
            }
        }
        pick
    }

    /// Appends the addresses of what was picked to `candidates`, at most `limit` of them: `ip:port[,ip:port...]`.
    pub fn write(&self, pick: &Pick, limit: usize, candidates: &mut String) {
        for address in pick.choices.iter().take(pick.count.min(limit)).filter_map(|node| self.address(*node)) {
            if !candidates.is_empty() {
                candidates.push(',');
            }
            candidates.push_str(address);
        }
    }

    /// The cookie that is to lead the client back to the first choice, if the policy wants one and the client has not got
    /// it.
    pub fn cookie(&self, pick: &Pick, wish: &Wish) -> Option<String> {
        // The lean module sees no answers.
        let sticky = self.policy.policy.sticky.as_ref().filter(|_| self.outcomes_known)?;
        let [first, ..] = pick.choices;
        let key = self.views.get(first).filter(|_| pick.count > 0)?.key;
        (wish.preferred != Some(key)).then(|| sticky.set_cookie_header(key))
    }

    /// Whether it matters what becomes of a request.
    pub fn wants_outcomes(&self) -> bool {
        self.outcomes_known && (self.policy.policy.outcomes || self.policy.policy.needs_outcomes())
    }

    /// Whether its strategy and its ejection hear what they go by, and its cookies reach an answer.
    pub fn hears_what_it_needs(&self) -> bool {
        self.outcomes_known || !(self.policy.policy.needs_outcomes() || self.policy.policy.sticky.is_some())
    }

    /// The request is on its way.
    pub fn start(&self, pick: &Pick) -> Option<Running> {
        let slot = |node: usize| self.slots.get(node).copied();
        let [first, second, third] = pick.choices;
        let first = slot(first)?;
        let choices = [first, slot(second).unwrap_or(first), slot(third).unwrap_or(first)];
        let reported = self.policy.policy.outcomes;
        Some(Running::start(&self.ledger, &self.settings, choices, pick.count, reported))
    }

    /// Time passes: ejections end, and tables are built further, so many of them at most, less those that are.
    pub fn tick(&mut self, now: Duration, tables: &mut usize) {
        if let Ok(mut ledger) = self.ledger.try_borrow_mut() {
            ledger.pool.tick(now, &self.settings);
        }
        for group in self.groups.iter_mut().flatten().filter(|group| group.selector.is_building()).take(*tables) {
            group.selector.advance(TABLE_STEP);
            *tables = tables.saturating_sub(1);
        }
    }

    /// The request went out while too few nodes were healthy.
    pub fn panicked(&self) {
        if let Ok(mut ledger) = self.ledger.try_borrow_mut() {
            ledger.panicked();
        }
    }

    fn address(&self, node: usize) -> Option<&str> {
        let start = match node.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.addresses.get(start as usize..*self.ends.get(node)? as usize)
    }
}
