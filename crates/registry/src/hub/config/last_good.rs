//! The settings of keys: each with its last good value. Pure.

use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::{hub::key_state::KeyEvent, mirror::KeyValue};

/// Why a value is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the value of {key} at revision {revision} is not used: {cause}")]
pub struct ConfigError {
    /// The key.
    pub key: String,
    /// The revision at which it was written.
    pub revision: i64,
    /// What is wrong with it.
    pub cause: String,
}

/// What a key holds, as the program understands it.
pub struct Setting<T> {
    /// The last good value since the key is there. None if there was none, or there is no such key.
    pub value: Option<Arc<T>>,
    /// What is wrong with the present value, which then is not the one above.
    pub error: Option<ConfigError>,
    /// The key as it is in etcd; none if it is not there.
    pub entry: Option<Arc<KeyValue>>,
}

impl<T> Clone for Setting<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), error: self.error.clone(), entry: self.entry.clone() }
    }
}

impl<T> Default for Setting<T> {
    fn default() -> Self {
        Self { value: None, error: None, entry: None }
    }
}

impl<T: fmt::Debug> fmt::Debug for Setting<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { value, error, entry } = self;
        f.debug_struct("Setting").field("value", value).field("error", error).field("entry", entry).finish()
    }
}

/// Makes a value of bytes, or says what is wrong with them.
pub(super) type Decode<T> = Box<dyn Fn(&[u8]) -> Result<T, String> + Send + Sync>;

/// The settings of keys.
pub(super) struct LastGood<T> {
    pub(super) settings: BTreeMap<String, Setting<T>>,
    decode: Decode<T>,
}

impl<T> LastGood<T> {
    pub(super) fn new(decode: Decode<T>) -> Self {
        Self { settings: BTreeMap::new(), decode }
    }

    /// Takes in what happened to the keys. Whether any setting changed.
    pub(super) fn take_in(&mut self, event: &KeyEvent) -> bool {
        match event {
            KeyEvent::Added(new) | KeyEvent::Changed { new, .. } => self.put(new),
            KeyEvent::Removed { old, .. } => self.settings.remove(&old.key).is_some(),
            KeyEvent::Resynchronised { entries, .. } => {
                let before = self.settings.len();
                let is_there = |key: &String| entries.binary_search_by(|entry| entry.key.cmp(key)).is_ok();
                self.settings.retain(|key, _| is_there(key));
                let gone = self.settings.len() < before;
                entries.iter().fold(gone, |changed, entry| self.put(entry) || changed)
            }
        }
    }

    fn put(&mut self, entry: &Arc<KeyValue>) -> bool {
        let setting = self.settings.entry(entry.key.clone()).or_default();
        if setting.entry.as_ref() == Some(entry) {
            return false;
        }
        setting.entry = Some(Arc::clone(entry));
        match (self.decode)(&entry.value) {
            Ok(value) => (setting.value, setting.error) = (Some(Arc::new(value)), None),
            Err(cause) => {
                let error = ConfigError { key: entry.key.clone(), revision: entry.mod_revision, cause };
                tracing::warn!(last_good_kept = setting.value.is_some(), "{error}");
                setting.error = Some(error);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::feed::Restart;

    fn key(key: &str, value: &str, mod_revision: i64) -> Arc<KeyValue> {
        Arc::new(KeyValue { key: key.into(), value: value.into(), mod_revision, create_revision: 1, lease: 0 })
    }

    fn numbers() -> LastGood<u32> {
        LastGood::new(Box::new(|bytes| serde_json::from_slice(bytes).map_err(|error| error.to_string())))
    }

    fn value(settings: &LastGood<u32>, key: &str) -> Option<u32> {
        settings.settings.get(key)?.value.as_deref().copied()
    }

    #[test]
    fn a_bad_value_is_an_error_beside_the_last_good_one() {
        let mut settings = numbers();
        assert!(settings.take_in(&KeyEvent::Added(key("a", "1", 1))));
        assert!(settings.take_in(&KeyEvent::Changed { old: key("a", "1", 1), new: key("a", "one", 2) }));
        assert_eq!(value(&settings, "a"), Some(1));
        let setting = &settings.settings["a"];
        let error = setting.error.as_ref().unwrap();
        assert_eq!((error.key.as_str(), error.revision), ("a", 2));
        assert!(error.to_string().starts_with("the value of a at revision 2 is not used: expected value"), "{error}");
        assert_eq!(setting.entry.as_ref().unwrap().mod_revision, 2);
        assert!(settings.take_in(&KeyEvent::Changed { old: key("a", "one", 2), new: key("a", "3", 3) }));
        assert!(value(&settings, "a") == Some(3) && settings.settings["a"].error.is_none());
    }

    #[test]
    fn a_key_that_is_gone_has_no_last_good_value() {
        let mut settings = numbers();
        settings.take_in(&KeyEvent::Added(key("a", "1", 1)));
        assert!(settings.take_in(&KeyEvent::Removed { old: key("a", "1", 1), revision: 2 }));
        settings.take_in(&KeyEvent::Added(key("a", "x", 3)));
        assert_eq!(value(&settings, "a"), None);
        assert!(settings.settings["a"].error.is_some());
    }

    #[test]
    fn a_full_state_changes_only_what_differs() {
        let mut settings = numbers();
        let full = |entries: &[Arc<KeyValue>]| KeyEvent::Resynchronised {
            reason: Restart::Lagged,
            entries: entries.into(),
            revision: 9,
        };
        assert!(settings.take_in(&full(&[key("a", "1", 1), key("b", "2", 1)])));
        assert!(!settings.take_in(&full(&[key("a", "1", 1), key("b", "2", 1)])));
        assert!(settings.take_in(&full(&[key("b", "x", 3), key("c", "3", 3)])));
        assert_eq!(["a", "b", "c"].map(|key| value(&settings, key)), [None, Some(2), Some(3)]);
    }
}
