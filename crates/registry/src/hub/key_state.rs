//! The keys of a prefix, and what a mirror's events make of them: what was added, changed and removed.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use super::feed::{Restart, State};
use crate::mirror::{KeyChange, KeyValue, MirrorEvent, ResyncReason};

/// What happened to the keys, in etcd's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyEvent {
    /// A key that was not there.
    Added(Arc<KeyValue>),
    /// A key was written again.
    Changed {
        /// As it was.
        old: Arc<KeyValue>,
        /// As it is.
        new: Arc<KeyValue>,
    },
    /// A key was deleted, or its lease ended.
    Removed {
        /// As it was.
        old: Arc<KeyValue>,
        /// The revision in which it went.
        revision: i64,
    },
    /// Everything, as it is now: what is not in it is gone. Later events go on from here.
    Resynchronised {
        /// Why.
        reason: Restart,
        /// Every key, in order.
        entries: Arc<[Arc<KeyValue>]>,
        /// The revision at which it was so.
        revision: i64,
    },
}

impl KeyEvent {
    /// The revision of etcd that it brings its receiver to. One transaction's events have the same one.
    pub fn revision(&self) -> i64 {
        match self {
            Self::Added(new) | Self::Changed { new, .. } => new.mod_revision,
            Self::Removed { revision, .. } | Self::Resynchronised { revision, .. } => *revision,
        }
    }

    /// What makes `new` out of `old`, both in the order of their keys and `new` of this revision: for receivers of
    /// [`Self::Resynchronised`] who want to know what it changes for them.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use waypost_registry::{KeyEvent, KeyValue};
    /// let key = |key: &str, mod_revision| {
    ///     Arc::new(KeyValue { key: key.into(), value: vec![], mod_revision, create_revision: 1, lease: 0 })
    /// };
    /// let old = [key("a", 1), key("b", 1)];
    /// let new = [key("b", 4), key("c", 3)];
    /// let changes = KeyEvent::between(&old, &new, 5);
    /// assert_eq!(
    ///     changes,
    ///     [
    ///         KeyEvent::Removed { old: key("a", 1), revision: 5 },
    ///         KeyEvent::Changed { old: key("b", 1), new: key("b", 4) },
    ///         KeyEvent::Added(key("c", 3)),
    ///     ]
    /// );
    /// ```
    pub fn between(old: &[Arc<KeyValue>], new: &[Arc<KeyValue>], revision: i64) -> Vec<Self> {
        let mut changes = Vec::new();
        let mut new = new.iter().peekable();
        for old in old {
            while let Some(added) = new.next_if(|entry| entry.key < old.key) {
                changes.push(Self::Added(Arc::clone(added)));
            }
            match new.next_if(|entry| entry.key == old.key) {
                Some(same) if same == old => {}
                Some(entry) => changes.push(Self::Changed { old: Arc::clone(old), new: Arc::clone(entry) }),
                None => changes.push(Self::Removed { old: Arc::clone(old), revision }),
            }
        }
        changes.extend(new.cloned().map(Self::Added));
        changes
    }
}

/// The keys as they are.
#[derive(Debug, Default)]
pub(super) struct KeyState {
    entries: BTreeMap<String, Arc<KeyValue>>,
    /// 0 before the first full state.
    revision: i64,
}

impl KeyState {
    pub(super) fn entries(&self) -> &BTreeMap<String, Arc<KeyValue>> {
        &self.entries
    }

    /// Takes in what the mirror tells; what follows from it for those who hold the state as it was.
    pub(super) fn apply(&mut self, event: MirrorEvent) -> Vec<KeyEvent> {
        match event {
            MirrorEvent::Synced { entries, revision, reason } => {
                if reason == ResyncReason::Refreshed {
                    if entries.len() == self.entries.len() && self.entries.values().eq(&entries) {
                        return Vec::new();
                    }
                    tracing::warn!(keys = entries.len(), revision, "the watch had missed changes");
                }
                self.entries = entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
                self.revision = revision;
                self.full(Restart::Mirror(reason)).into_iter().collect()
            }
            MirrorEvent::Changed { changes, revision } => {
                self.revision = revision;
                changes.into_iter().filter_map(|change| self.change(change)).collect()
            }
        }
    }

    fn change(&mut self, change: KeyChange) -> Option<KeyEvent> {
        match change {
            KeyChange::Put(new) => Some(match self.entries.entry(new.key.clone()) {
                Entry::Vacant(entry) => KeyEvent::Added(Arc::clone(entry.insert(new))),
                Entry::Occupied(mut entry) => {
                    let old = entry.insert(Arc::clone(&new));
                    KeyEvent::Changed { old, new }
                }
            }),
            KeyChange::Delete { key, revision } => {
                self.entries.remove(&key).map(|old| KeyEvent::Removed { old, revision })
            }
        }
    }
}

impl State for KeyState {
    type Event = KeyEvent;

    fn full(&self, reason: Restart) -> Option<KeyEvent> {
        let entries = || self.entries.values().cloned().collect();
        (self.revision > 0).then(|| KeyEvent::Resynchronised { reason, entries: entries(), revision: self.revision })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(key: &str, mod_revision: i64) -> Arc<KeyValue> {
        Arc::new(KeyValue { key: key.into(), value: vec![], mod_revision, create_revision: 1, lease: 0 })
    }

    fn synced(entries: &[Arc<KeyValue>], revision: i64, reason: ResyncReason) -> MirrorEvent {
        MirrorEvent::Synced { entries: entries.to_vec(), revision, reason }
    }

    #[test]
    fn every_change_is_told_with_what_was_there_before() {
        let mut state = KeyState::default();
        assert_eq!(state.full(Restart::Subscribed), None);
        let first = state.apply(synced(&[key("a", 1)], 1, ResyncReason::First));
        let reason = Restart::Mirror(ResyncReason::First);
        assert_eq!(first, [KeyEvent::Resynchronised { reason, entries: [key("a", 1)].into(), revision: 1 }]);
        let delete = |key: &str, revision| KeyChange::Delete { key: key.into(), revision };
        let changes = vec![
            KeyChange::Put(key("b", 2)),
            KeyChange::Put(key("a", 3)),
            delete("b", 4),
            delete("b", 5),
            KeyChange::Put(key("b", 6)),
        ];
        let told = state.apply(MirrorEvent::Changed { changes, revision: 6 });
        assert_eq!(
            told,
            [
                KeyEvent::Added(key("b", 2)),
                KeyEvent::Changed { old: key("a", 1), new: key("a", 3) },
                KeyEvent::Removed { old: key("b", 2), revision: 4 },
                KeyEvent::Added(key("b", 6)),
            ]
        );
        assert_eq!(told.iter().map(KeyEvent::revision).collect::<Vec<_>>(), [2, 3, 4, 6]);
    }

    #[test]
    fn a_full_state_fetched_beside_the_watch_is_told_only_if_the_watch_had_missed_something() {
        let mut state = KeyState::default();
        state.apply(synced(&[key("a", 1)], 1, ResyncReason::First));
        assert_eq!(state.apply(synced(&[key("a", 1)], 5, ResyncReason::Refreshed)), []);
        assert_eq!(state.apply(synced(&[key("a", 4)], 6, ResyncReason::Refreshed)).len(), 1);
        // After a break there may have been keys that came and went.
        assert_eq!(state.apply(synced(&[key("a", 4)], 6, ResyncReason::Reconnected)).len(), 1);
    }

    proptest! {
        #[test]
        fn the_changes_between_two_states_lead_from_one_to_the_other(
            old in prop::collection::btree_map("[a-f]{1,2}", 1i64..4, 0..12),
            new in prop::collection::btree_map("[a-f]{1,2}", 1i64..4, 0..12),
        ) {
            let entries = |state: &BTreeMap<String, i64>| -> Vec<_> {
                state.iter().map(|(name, revision)| key(name, *revision)).collect()
            };
            let (old, new) = (entries(&old), entries(&new));
            let mut copy: BTreeMap<_, _> = old.iter().map(|entry| (entry.key.clone(), Arc::clone(entry))).collect();
            for change in KeyEvent::between(&old, &new, 9) {
                match change {
                    KeyEvent::Added(new) => prop_assert!(copy.insert(new.key.clone(), new).is_none()),
                    KeyEvent::Changed { old, new } => {
                        prop_assert_ne!(&old, &new);
                        prop_assert_eq!(copy.insert(new.key.clone(), new), Some(old));
                    }
                    KeyEvent::Removed { old, .. } => prop_assert_eq!(copy.remove(&old.key), Some(old)),
                    KeyEvent::Resynchronised { .. } => prop_assert!(false),
                }
            }
            prop_assert!(copy.into_values().eq(new));
        }
    }
}
