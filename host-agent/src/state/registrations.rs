//! What was registered and put into maintenance through the API, as it outlives a restart: one JSON file with a version.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::{StateError, replace};
use crate::registrations::Saved;

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct File<S> {
    version: u32,
    #[serde(flatten)]
    saved: S,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("it is of version {0}, and this agent knows version {VERSION} only")]
    Version(u64),
    #[error("it is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
}

/// What was saved. A file that cannot be used is put aside and counts as empty: this host's other services have to be
/// registered all the same.
pub fn load(path: &Path) -> Saved {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                error!(path = %path.display(), %error, "what the API has registered cannot be read: it is not registered");
            }
            return Saved::default();
        }
    };
    decode(&bytes).unwrap_or_else(|unusable| {
        let aside = path.with_extension("unusable");
        error!(path = %path.display(), error = %unusable, aside = %aside.display(),
            "what the API has registered is put aside and not registered");
        if let Err(error) = fs::rename(path, &aside) {
            warn!(path = %path.display(), %error, "it cannot be put aside: the next registration replaces it");
        }
        Saved::default()
    })
}

fn decode(bytes: &[u8]) -> Result<Saved, Unusable> {
    let value: serde_json::Value = serde_json::from_slice(bytes)?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version != u64::from(VERSION) => Err(Unusable::Version(version)),
        _ => Ok(serde_json::from_value::<File<Saved>>(value)?.saved),
    }
}

/// Replaces what was saved. Blocks.
///
/// # Errors
/// [`StateError`] if it cannot be written; what was saved before then stays.
pub fn save(path: &Path, saved: &Saved) -> Result<(), StateError> {
    let bytes = serde_json::to_vec_pretty(&File { version: VERSION, saved }).map_err(|error| StateError::Io {
        path: path.to_owned(),
        action: "cannot encode",
        source: error.into(),
    })?;
    replace(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_used_is_put_aside_and_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registrations.json");
        for content in ["{", "{\"version\": 2}", "{\"version\": 1}"] {
            fs::write(&path, content).unwrap();
            assert_eq!(load(&path), Saved::default(), "{content}");
            assert_eq!(fs::read_to_string(path.with_extension("unusable")).unwrap(), content);
            assert!(!path.exists());
        }
    }

    #[test]
    fn without_a_file_nothing_was_saved_and_what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registrations.json");
        assert_eq!(load(&path), Saved::default());
        save(&path, &Saved::default()).unwrap();
        assert_eq!(load(&path), Saved::default());
        assert!(path.exists() && !path.with_extension("unusable").exists());
    }
}
