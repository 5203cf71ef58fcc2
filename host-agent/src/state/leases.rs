//! The leases to adopt after a restart, by their TTL in seconds: registrations outlive the agent that long.

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{StateError, replace};

/// The file of lease ids.
#[derive(Debug)]
pub struct Leases {
    path: PathBuf,
    known: Mutex<Known>,
}

/// The file's content.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Known {
    /// Whose they are: a disk may be copied to another host, whose agent must not adopt this one's.
    node: String,
    leases: BTreeMap<u64, i64>,
}

impl Leases {
    /// The leases of this node's previous run. A file that cannot be read is logged and counts as empty: the
    /// registrations are then made anew, and the old ones expire.
    pub fn load(path: PathBuf, node: &str) -> Self {
        let known = match fs::read(&path).map(|bytes| serde_json::from_slice::<Known>(&bytes)) {
            Ok(Ok(known)) if known.node == node => known.leases,
            Ok(Ok(known)) => {
                info!(path = %path.display(), node = known.node, "the leases are another node's: none is adopted");
                BTreeMap::new()
            }
            Ok(Err(error)) => {
                warn!(path = %path.display(), %error, "the file of leases is damaged: no lease is adopted");
                BTreeMap::new()
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    warn!(path = %path.display(), %error, "the file of leases cannot be read: no lease is adopted");
                }
                BTreeMap::new()
            }
        };
        Self { path, known: Mutex::new(Known { node: node.to_owned(), leases: known }) }
    }

    /// The lease of a TTL, if one is known.
    pub fn get(&self, ttl: u64) -> Option<i64> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).leases.get(&ttl).copied()
    }

    /// Notes the lease of a TTL (`None`: it has none any more), and writes the file if that is a change. Blocks.
    ///
    /// # Errors
    /// [`StateError`] if it cannot be written; nothing is noted then.
    pub fn set(&self, ttl: u64, lease: Option<i64>) -> Result<(), StateError> {
        // Held while writing, so that the last change is also the last one written.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.leases.get(&ttl).copied() == lease {
            return Ok(());
        }
        let mut next = known.clone();
        match lease {
            Some(lease) => _ = next.leases.insert(ttl, lease),
            None => _ = next.leases.remove(&ttl),
        }
        let bytes = serde_json::to_vec(&next).map_err(|error| StateError::Io {
            path: self.path.clone(),
            action: "cannot encode",
            source: error.into(),
        })?;
        replace(&self.path, &bytes)?;
        *known = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_outlive_the_agent_and_are_forgotten_when_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases.json");
        let leases = Leases::load(path.clone(), "a");
        leases.set(5, Some(7587862094)).unwrap();
        leases.set(10, Some(42)).unwrap();
        leases.set(10, None).unwrap();
        let again = Leases::load(path.clone(), "a");
        assert_eq!((again.get(5), again.get(10)), (Some(7587862094), None));
        assert_eq!(Leases::load(path, "b").get(5), None, "another node's are not adopted");
    }

    #[test]
    fn what_could_not_be_written_is_not_known_and_can_be_noted_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases.json");
        let leases = Leases::load(path.clone(), "a");
        fs::create_dir(dir.path().join("leases.new")).unwrap();
        leases.set(5, Some(42)).unwrap_err();
        assert_eq!(leases.get(5), None);
        fs::remove_dir(dir.path().join("leases.new")).unwrap();
        leases.set(5, Some(42)).unwrap();
        assert_eq!(Leases::load(path, "a").get(5), Some(42));
    }

    #[test]
    fn a_damaged_file_counts_as_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases.json");
        fs::write(&path, "{\"5\": ").unwrap();
        assert_eq!(Leases::load(path, "a").get(5), None);
    }
}
