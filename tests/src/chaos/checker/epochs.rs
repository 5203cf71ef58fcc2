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

    /// The last revision that is known.
    pub(super) fn end(&self) -> i64 {
        self.changes.last().map_or(self.base_revision, |change| change.revision())
    }

    /// How many changes led to a revision, and what the state was then.
    pub(super) fn at(&self, revision: i64) -> (usize, BTreeMap<&'a str, &'a Entry>) {
        let mut state: BTreeMap<&str, &Entry> = self.base.iter().map(|entry| (entry.key.as_str(), *entry)).collect();
        let count = self.changes.partition_point(|change| change.revision() <= revision);
        for change in self.changes.iter().take(count) {
            match change {
                Change::Put(entry) => _ = state.insert(&entry.key, entry),
                Change::Deleted { key, .. } => _ = state.remove(key.as_str()),
            }
        }
        (count, state)
    }
}

/// Where two states differ, in words: what is told, and what etcd holds.
pub(super) fn difference(told: &BTreeMap<&str, &Entry>, held: &BTreeMap<&str, &Entry>) -> Option<String> {
    let mut keys = told.keys().chain(held.keys()).filter(|key| told.get(*key) != held.get(*key));
    let first = keys.next()?;
    let (told, held) = (shown(told.get(first)), shown(held.get(first)));
    Some(format!("key {first} is told as {told} and is {held} in etcd; {} more differ", keys.count()))
}

pub(super) fn shown(entry: Option<&&Entry>) -> String {
    match entry {
        Some(Entry { value, lease, revision, .. }) => format!("{value:?} (revision {revision}, lease {lease:x})"),
        None => "absent".into(),
    }
}
