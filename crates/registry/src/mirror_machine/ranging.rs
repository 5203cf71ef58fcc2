//! A full state, put together from pages of one revision.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Instant,
};

use super::{Page, Range, range_start};
use crate::mirror::{KeyChange, KeyValue, MirrorOptions};

/// Pages so far.
#[derive(Debug, Default)]
pub(super) struct Ranging {
    /// Cluster and revision of the first page, and when it was asked for.
    first: Option<(u64, i64, Instant)>,
    entries: Vec<Arc<KeyValue>>,
    last_key: Vec<u8>,
    skipped: Vec<(Vec<u8>, i64)>,
}

/// Everything, as it was at one revision.
#[derive(Debug)]
pub(super) struct FullState {
    pub(super) cluster_id: u64,
    pub(super) revision: i64,
    /// When the first page was asked for.
    pub(super) began_at: Instant,
    pub(super) entries: Vec<Arc<KeyValue>>,
    /// Keys that are no UTF-8, with the revision of their last change.
    pub(super) skipped: HashMap<Vec<u8>, i64>,
}

pub(super) enum Collected {
    /// There is more to ask for.
    Part,
    All(FullState),
    /// The page is of another history than those before it.
    Replaced,
}

impl Ranging {
    /// The page to ask for.
    pub(super) fn next_page(&self, options: &MirrorOptions, limit: i64) -> Range {
        match self.first {
            None => Range { from: range_start(&options.prefix), revision: 0, limit },
            Some((_, revision, _)) => {
                let mut from = self.last_key.clone();
                from.push(0);
                Range { from, revision, limit }
            }
        }
    }

    pub(super) fn collect(&mut self, page: Page, asked_at: Instant) -> Collected {
        let (cluster_id, revision, began_at) = *self.first.get_or_insert((page.cluster_id, page.revision, asked_at));
        if page.cluster_id != cluster_id || page.revision < revision {
            return Collected::Replaced;
        }
        self.skipped.extend(page.skipped);
        self.entries.extend(page.entries);
        if page.more && !page.last_key.is_empty() {
            self.last_key = page.last_key;
            return Collected::Part;
        }
        let entries = std::mem::take(&mut self.entries);
        let skipped = std::mem::take(&mut self.skipped).into_iter().collect();
        Collected::All(FullState { cluster_id, revision, began_at, entries, skipped })
    }
}

impl FullState {
    /// Brings it up to the last of these changes, if it is before that: then it returns true.
    pub(super) fn put_on_top(&mut self, changes: Vec<KeyChange>) -> bool {
        let later: Vec<KeyChange> = changes.into_iter().filter(|change| change.revision() > self.revision).collect();
        if later.is_empty() {
            return false;
        }
        let mut entries: BTreeMap<String, Arc<KeyValue>> =
            std::mem::take(&mut self.entries).into_iter().map(|entry| (entry.key.clone(), entry)).collect();
        for change in later {
            self.revision = change.revision();
            match change {
                KeyChange::Put(put) => _ = entries.insert(put.key.clone(), put),
                KeyChange::Delete { key, .. } => _ = entries.remove(&key),
            }
        }
        self.entries = entries.into_values().collect();
        true
    }
}
