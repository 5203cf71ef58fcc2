//! The rules about keys in etcd: registered again in time, gone in time, and no other key touched.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::{Rule, Span, Verdict, back_within, gone_within};
use crate::chaos::history::{Change, Entry, History, Key, Wanted, What};

struct Owner {
    ttl: Duration,
    alive: bool,
    linked: bool,
    /// Nothing is asked of it before.
    excused_until: Duration,
}

struct Claim {
    owner: String,
    wanted: Wanted,
    deviates_since: Option<Duration>,
    /// When its owner ended, or etcd began to answer after that.
    orphan_since: Option<Duration>,
}

impl Claim {
    fn new(owner: &str) -> Self {
        Self { owner: owner.to_owned(), wanted: Wanted::Absent, deviates_since: None, orphan_since: None }
    }
}

struct Pass<'a> {
    owners: BTreeMap<&'a str, Owner>,
    claims: BTreeMap<Key, Claim>,
    present: HashMap<Key, Entry>,
    answering: bool,
    /// What others said that they would write, or delete.
    foreign: HashMap<Key, BTreeSet<Option<String>>>,
    verdict: &'a mut Verdict,
}

pub(super) fn check(history: &History, verdict: &mut Verdict) {
    let owner = |ttl: &Duration| Owner { ttl: *ttl, alive: true, linked: true, excused_until: Duration::ZERO };
    let mut pass = Pass {
        owners: history.owners.iter().map(|(name, ttl)| (name.as_str(), owner(ttl))).collect(),
        claims: BTreeMap::new(),
        present: HashMap::new(),
        answering: false,
        foreign: HashMap::new(),
        verdict,
    };
    for record in &history.records {
        pass.take(&record.what, record.at);
    }
    if let Some(last) = history.records.last() {
        pass.end(last.at);
    }
}

impl Pass<'_> {
    fn take(&mut self, what: &What, at: Duration) {
        match what {
            What::Intended { owner, key, wanted } => {
                self.settle(key, at);
                let claim = self.claims.entry(key.clone()).or_insert_with(|| Claim::new(owner));
                claim.wanted = wanted.clone();
                self.look(key, at);
            }
            What::Alive { owner, alive } => {
                self.change(owner, |owner| owner.alive = *alive);
                self.look_at_all(at);
                for key in self.keys_of(owner) {
                    self.orphan(&key, at);
                }
            }
            What::Linked { owner, linked, grace } => {
                self.change(owner, |owner| {
                    owner.linked = *linked;
                    owner.excused_until = at + *grace;
                });
                self.look_at_all(at);
            }
            What::Answering { answering } => {
                self.answering = *answering;
                self.look_at_all(at);
                for key in self.claims.keys().cloned().collect::<Vec<_>>() {
                    self.orphan(&key, at);
                }
            }
            What::Foreign { key, value } => _ = self.foreign.entry(key.clone()).or_default().insert(value.clone()),
            What::Epoch { entries, .. } => {
                self.present = entries.iter().map(|entry| (entry.key.clone(), entry.clone())).collect();
                self.look_at_all(at);
            }
            What::Said { change: Change::Put(entry) } => {
                self.touched(&entry.key, Some(&entry.value), at);
                self.present.insert(entry.key.clone(), entry.clone());
                self.look(&entry.key, at);
            }
            What::Said { change: Change::Deleted { key, .. } } => {
                self.touched(key, None, at);
                self.present.remove(key);
                self.gone(key, at);
                self.look(key, at);
            }
            What::Note { .. }
            | What::Told { .. }
            | What::ToldOld { .. }
            | What::ToldChanges { .. }
            | What::Catalog { .. } => {}
        }
    }

    fn change(&mut self, owner: &str, change: impl FnOnce(&mut Owner)) {
        if let Some(owner) = self.owners.get_mut(owner) {
            change(owner);
        }
    }

    fn keys_of(&self, owner: &str) -> Vec<Key> {
        self.claims.iter().filter(|(_, claim)| claim.owner == owner).map(|(key, _)| key.clone()).collect()
    }

    fn look_at_all(&mut self, at: Duration) {
        for key in self.claims.keys().cloned().collect::<Vec<_>>() {
            self.look(&key, at);
        }
    }

    /// Whether the key deviates, and for how long it did.
    fn look(&mut self, key: &Key, at: Duration) {
        let Some(claim) = self.claims.get_mut(key) else { return };
        let Some(owner) = self.owners.get(claim.owner.as_str()) else { return };
        let obliged = self.answering && owner.alive && owner.linked;
        if obliged && !claim.wanted.is_met_by(self.present.get(key)) {
            claim.deviates_since.get_or_insert(at.max(owner.excused_until));
        } else {
            self.settle(key, at);
        }
    }

    /// The deviation ends here.
    fn settle(&mut self, key: &Key, at: Duration) {
        let Some(claim) = self.claims.get_mut(key) else { return };
        let (Some(since), Some(owner)) = (claim.deviates_since.take(), self.owners.get(claim.owner.as_str())) else {
            return;
        };
        let span = Span { took: at.saturating_sub(since), bound: back_within(owner.ttl) };
        Span::longer(&mut self.verdict.back, span);
        if span.took > span.bound {
            let what = format!(
                "key {key} of {} was not as intended for {:?}, and may be for {:?}",
                claim.owner, span.took, span.bound
            );
            self.verdict.violation(Rule::Registered, at, what);
        }
    }

    /// Whether the key's owner is gone while the key is there, and since when its lease runs.
    fn orphan(&mut self, key: &Key, at: Duration) {
        self.gone(key, at);
        let (Some(claim), present) = (self.claims.get_mut(key), self.present.contains_key(key)) else { return };
        let alive = self.owners.get(claim.owner.as_str()).is_none_or(|owner| owner.alive);
        if present && !alive && self.answering {
            claim.orphan_since = Some(at);
        }
    }

    /// The key is gone, or its owner is back, or etcd does not answer.
    fn gone(&mut self, key: &Key, at: Duration) {
        let Some(claim) = self.claims.get_mut(key) else { return };
        let (Some(since), Some(owner)) = (claim.orphan_since.take(), self.owners.get(claim.owner.as_str())) else {
            return;
        };
        let span = Span { took: at.saturating_sub(since), bound: gone_within(owner.ttl) };
        Span::longer(&mut self.verdict.outlived, span);
        if span.took > span.bound {
            let what = format!("key {key} outlived {} by {:?}, and may by {:?}", claim.owner, span.took, span.bound);
            self.verdict.violation(Rule::Outlived, at, what);
        }
    }

    /// Whether somebody may have written that.
    fn touched(&mut self, key: &Key, value: Option<&String>, at: Duration) {
        let announced = self.foreign.get(key).is_some_and(|values| values.contains(&value.cloned()));
        if announced || self.claims.contains_key(key) {
            return;
        }
        let what = match value {
            Some(value) => format!("key {key} was put as {value:?} by none who said so"),
            None => format!("key {key} was deleted by none who said so"),
        };
        self.verdict.violation(Rule::Touched, at, what);
    }

    fn end(&mut self, at: Duration) {
        for (key, claim) in std::mem::take(&mut self.claims) {
            let found = self.present.get(&key);
            if claim.deviates_since.is_some() {
                let what =
                    format!("key {key} of {} should be {:?} at the end, and is {found:?}", claim.owner, claim.wanted);
                self.verdict.violation(Rule::Registered, at, what);
            }
            let limit = self.owners.get(claim.owner.as_str()).map_or(Duration::ZERO, |owner| gone_within(owner.ttl));
            if claim.orphan_since.is_some_and(|since| at.saturating_sub(since) > limit) {
                let what = format!("key {key} is still there at the end, and {} is long gone", claim.owner);
                self.verdict.violation(Rule::Outlived, at, what);
            }
        }
    }
}
