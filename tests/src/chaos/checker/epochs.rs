//! etcd's own word, as stretches of unbroken history: after a wipe or a restore another one begins.
use std::collections::BTreeMap;
use std::time::Duration;

use crate::chaos::history::{Change, Entry, History, What};

/// One stretch.
#[derive(Debug)]
pub(super) struct Epoch<'a> {
    pub(super) began: Duration,
    /// The first state.
    pub(super) base: Vec<&'a Entry>,
    /// Its revision.
    base_revision: i64,
    /// In etcd's order.
    changes: Vec<&'a Change>,
}

pub(super) fn read(history: &History) -> Vec<Epoch<'_>> {
    let mut epochs: Vec<Epoch<'_>> = Vec::new();
    for record in &history.records {
        match &record.what {
            What::Epoch { revision, entries } => epochs.push(Epoch {
                began: record.at,
                base: entries.iter().collect(),
                base_revision: *revision,
                changes: Vec::new(),
            }),
            What::Said { change } => {
                if let Some(epoch) = epochs.last_mut() {
                    epoch.changes.push(change);
                }
            }
            _ => {}
        }
    }
    epochs
}

/// The part of a stretch that concerns one prefix.
pub(super) struct Part<'a> {
    base: Vec<&'a Entry>,
    base_revision: i64,
    pub(super) changes: Vec<&'a Change>,
}

impl<'a> Part<'a> {
    pub(super) fn of(epoch: &Epoch<'a>, prefix: &str) -> Self {
        let base = epoch.base.iter().copied().filter(|entry| entry.key.starts_with(prefix)).collect();
        let changes = epoch.changes.iter().copied().filter(|change| change.key().starts_with(prefix)).collect();
        Self { base, base_revision: epoch.base_revision, changes }
    }

    /// The revision that so many changes led to.
    pub(super) fn revision_after(&self, count: usize) -> i64 {
        let last = count.checked_sub(1).and_then(|last| self.changes.get(last));
        match last {
            Some(Change::Put(entry)) => entry.revision,
            Some(Change::Deleted { revision, .. }) => revision.unwrap_or_default(),
            None => self.base_revision,
        }
    }

    /// After how many changes the state was this one, and one of `not_before` at least; and, if it never was, what
    /// differs where the fewest keys did.
    pub(super) fn places(&self, state: &[Entry], not_before: i64) -> Result<Vec<usize>, Nearest> {
        let told: BTreeMap<&str, &Entry> = state.iter().map(|entry| (entry.key.as_str(), entry)).collect();
        let mut held: BTreeMap<&str, &Entry> = self.base.iter().map(|entry| (entry.key.as_str(), *entry)).collect();
        let mut differing: BTreeMap<&str, ()> = BTreeMap::new();
        let mut found = Vec::new();
        let mut nearest = Nearest { count: usize::MAX, what: String::new(), only_lacks: false };
        for key in told.keys().chain(held.keys()).filter(|key| told.get(*key) != held.get(*key)) {
            differing.insert(key, ());
        }
        for count in 0..=self.changes.len() {
            if let Some(change) = count.checked_sub(1).and_then(|last| self.changes.get(last)) {
                let key = change.key();
                match change {
                    Change::Put(entry) => _ = held.insert(key, entry),
                    Change::Deleted { .. } => _ = held.remove(key),
                }
                if told.get(key) == held.get(key) {
                    differing.remove(key);
                } else {
                    differing.insert(key, ());
                }
            }
            if self.revision_after(count) < not_before && count < self.changes.len() {
                continue;
            }
            if differing.is_empty() {
                found.push(count);
            } else if differing.len() < nearest.count
                && let Some((key, ())) = differing.first_key_value()
            {
                let what = format!(
                    "at revision {} key {key} is {} in etcd and {} in the mirror, and {} keys differ",
                    self.revision_after(count),
                    shown(held.get(key)),
                    shown(told.get(key)),
                    differing.len()
                );
                nearest = Nearest { count: differing.len(), what, only_lacks: false };
            }
        }
        nearest.only_lacks = differing.keys().all(|key| !told.contains_key(key));
        if found.is_empty() { Err(nearest) } else { Ok(found) }
    }
}

/// The state most like one that never was.
pub(super) struct Nearest {
    count: usize,
    pub(super) what: String,
    /// The state has nothing that etcd did not hold in the end.
    pub(super) only_lacks: bool,
}

fn shown(entry: Option<&&Entry>) -> String {
    match entry {
        Some(Entry { value, lease, revision, .. }) => format!("{value:?} (revision {revision}, lease {lease:x})"),
        None => "absent".into(),
    }
}
