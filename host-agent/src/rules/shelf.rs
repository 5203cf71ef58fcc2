//! Documents below a prefix of etcd, the last good one of each key. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use waypost_registry::{KeyChange, KeyValue, MirrorEvent};

/// Why a document is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its key.
    pub key: String,
    /// The revision that wrote it.
    pub revision: i64,
    /// All that is wrong with it, each with its place.
    pub problems: Vec<String>,
    /// Whether an earlier document of the key goes on being used.
    pub last_good: bool,
}

/// A document as read: under its name below the prefix.
pub type Parse<T> = fn(name: &str, document: &[u8]) -> Result<T, Vec<String>>;

#[derive(Debug)]
struct Entry<T> {
    good: Option<Arc<T>>,
    refused: Option<(i64, Vec<String>)>,
}

impl<T> Default for Entry<T> {
    fn default() -> Self {
        Self { good: None, refused: None }
    }
}

/// The documents.
#[derive(Debug)]
pub struct Shelf<T> {
    prefix: &'static str,
    parse: Parse<T>,
    entries: BTreeMap<String, Entry<T>>,
    synced: bool,
    refusals_total: u64,
}

impl<T: PartialEq> Shelf<T> {
    /// The shelf of a prefix, with what was known before.
    pub fn new(prefix: &'static str, parse: Parse<T>, known: impl IntoIterator<Item = (String, T)>) -> Self {
        let entry = |good| Entry { good: Some(Arc::new(good)), refused: None };
        let entries = known.into_iter().map(|(name, good)| (name, entry(good))).collect();
        Self { prefix, parse, entries, synced: false, refusals_total: 0 }
    }

    /// Whether it has had its full state.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// The last good document of each name.
    pub fn good(&self) -> impl Iterator<Item = (&str, &Arc<T>)> {
        self.entries.iter().filter_map(|(name, entry)| Some((name.as_str(), entry.good.as_ref()?)))
    }

    /// The last good document of a name.
    pub fn get(&self, name: &str) -> Option<&Arc<T>> {
        self.entries.get(name)?.good.as_ref()
    }

    /// Documents that are not used.
    pub fn refusals(&self) -> Vec<Refusal> {
        let refusal = |(name, entry): (&String, &Entry<T>)| {
            let (revision, problems) = entry.refused.clone()?;
            let key = format!("{}{name}", self.prefix);
            Some(Refusal { key, revision, problems, last_good: entry.good.is_some() })
        };
        self.entries.iter().filter_map(refusal).collect()
    }

    /// How many documents were refused so far.
    pub fn refusals_total(&self) -> u64 {
        self.refusals_total
    }

    /// Takes an event of the prefix' mirror in. The names whose good document is another one now, or gone.
    pub fn apply(&mut self, event: &MirrorEvent) -> BTreeSet<String> {
        let mut changed = BTreeSet::new();
        match event {
            MirrorEvent::Synced { entries, .. } => {
                self.synced = true;
                let present: BTreeSet<_> = entries.iter().filter_map(|entry| self.name(&entry.key)).collect();
                self.entries.retain(|name, entry| {
                    let stays = present.contains(name);
                    if !stays && entry.good.is_some() {
                        changed.insert(name.clone());
                    }
                    stays
                });
                for entry in entries {
                    changed.extend(self.put(entry));
                }
            }
            MirrorEvent::Changed { changes, .. } => {
                for change in changes {
                    match change {
                        KeyChange::Put(put) => changed.extend(self.put(put)),
                        KeyChange::Delete { key, .. } => {
                            let Some(name) = self.name(key) else { continue };
                            if self.entries.remove(&name).is_some_and(|entry| entry.good.is_some()) {
                                changed.insert(name);
                            }
                        }
                    }
                }
            }
        }
        changed
    }

    fn put(&mut self, put: &KeyValue) -> Option<String> {
        let name = self.name(&put.key)?;
        let entry = self.entries.entry(name.clone()).or_default();
        match (self.parse)(&name, &put.value) {
            Ok(good) => {
                entry.refused = None;
                if entry.good.as_deref() == Some(&good) {
                    return None;
                }
                entry.good = Some(Arc::new(good));
                Some(name)
            }
            Err(problems) => {
                // A full state tells again what is known.
                if entry.refused.as_ref().is_none_or(|(revision, _)| *revision != put.mod_revision) {
                    self.refusals_total += 1;
                    let (key, last_good) = (&put.key, entry.good.is_some());
                    tracing::warn!(key, last_good, problems = problems.join("; "), "a document in etcd is refused");
                }
                entry.refused = Some((put.mod_revision, problems));
                None
            }
        }
    }

    fn name(&self, key: &str) -> Option<String> {
        key.strip_prefix(self.prefix).filter(|name| !name.is_empty()).map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use waypost_registry::ResyncReason;

    use super::*;

    fn parse(name: &str, document: &[u8]) -> Result<u32, Vec<String>> {
        let text = std::str::from_utf8(document).map_err(|error| vec![error.to_string()])?;
        text.parse().map_err(|_| vec![format!("{name}: {text:?} is no number")])
    }

    fn shelf() -> Shelf<u32> {
        Shelf::new("/waypost/policies/", parse, [("old".to_owned(), 7)])
    }

    fn entry(name: &str, value: &str, mod_revision: i64) -> Arc<KeyValue> {
        let key = format!("/waypost/policies/{name}");
        Arc::new(KeyValue { key, value: value.into(), mod_revision, create_revision: 1, lease: 0 })
    }

    fn synced(entries: Vec<Arc<KeyValue>>) -> MirrorEvent {
        MirrorEvent::Synced { entries, revision: 9, reason: ResyncReason::First }
    }

    fn put(name: &str, value: &str, revision: i64) -> MirrorEvent {
        MirrorEvent::Changed { changes: vec![KeyChange::Put(entry(name, value, revision))], revision }
    }

    fn delete(name: &str) -> MirrorEvent {
        let change = KeyChange::Delete { key: format!("/waypost/policies/{name}"), revision: 99 };
        MirrorEvent::Changed { changes: vec![change], revision: 99 }
    }

    fn names(changed: BTreeSet<String>) -> Vec<String> {
        changed.into_iter().collect()
    }

    #[test]
    fn what_was_known_before_stays_until_the_full_state_says_otherwise() {
        let mut shelf = shelf();
        assert_eq!((shelf.get("old").map(|good| **good), shelf.is_synced()), (Some(7), false));
        assert_eq!(names(shelf.apply(&synced(vec![entry("a", "1", 2)]))), ["a", "old"]);
        assert_eq!((shelf.get("old"), shelf.is_synced()), (None, true));
        assert_eq!(names(shelf.apply(&synced(vec![entry("a", "1", 2)]))), [""; 0], "nothing new");
    }

    #[test]
    fn a_bad_document_is_told_and_the_last_good_one_stays() {
        let mut shelf = shelf();
        shelf.apply(&synced(vec![entry("a", "1", 2)]));
        assert!(shelf.apply(&put("a", "x", 3)).is_empty());
        assert_eq!(shelf.get("a").map(|good| **good), Some(1));
        assert!(shelf.apply(&put("b", "y", 4)).is_empty());
        let problems = |name: &str, text: &str| vec![format!("{name}: {text:?} is no number")];
        let refused = |name: &str, revision, text: &str, last_good| {
            let key = format!("/waypost/policies/{name}");
            Refusal { key, revision, problems: problems(name, text), last_good }
        };
        assert_eq!(shelf.refusals(), [refused("a", 3, "x", true), refused("b", 4, "y", false)]);
        // The full state tells the same again.
        shelf.apply(&synced(vec![entry("a", "x", 3), entry("b", "y", 4)]));
        assert_eq!((shelf.refusals().len(), shelf.refusals_total()), (2, 2));
        assert_eq!(names(shelf.apply(&put("a", "2", 5))), ["a"]);
        assert_eq!(shelf.refusals().len(), 1);
        assert!(shelf.apply(&delete("b")).is_empty());
        assert_eq!(names(shelf.apply(&delete("a"))), ["a"]);
        assert_eq!((shelf.refusals(), shelf.good().count()), (vec![], 0));
    }
}
