//! The leases to adopt after a restart, by their TTL in seconds: registrations outlive the agent that long.

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use tracing::warn;

use super::replace;

/// The file of lease ids.
#[derive(Debug)]
pub struct Leases {
    path: PathBuf,
    known: Mutex<BTreeMap<u64, i64>>,
}

impl Leases {
    /// The leases of the previous run. A file that cannot be read is logged and counts as empty: the registrations
    /// are then made anew, and the old ones expire.
    pub fn load(path: PathBuf) -> Self {
        let known = match fs::read(&path).map(|bytes| serde_json::from_slice(&bytes)) {
            Ok(Ok(known)) => known,
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
        Self { path, known: Mutex::new(known) }
    }

    /// The lease of a TTL, if one is known.
    pub fn get(&self, ttl: u64) -> Option<i64> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&ttl).copied()
    }

    /// Notes the lease of a TTL (`None`: it has none any more), and writes the file if that is a change. Blocks.
    pub fn set(&self, ttl: u64, lease: Option<i64>) {
        // Held while writing, so that the last change is also the last one written.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = match lease {
            Some(lease) => known.insert(ttl, lease),
            None => known.remove(&ttl),
        };
        if previous == lease {
            return;
        }
        let written = serde_json::to_vec(&*known).map_err(io::Error::from).map(|bytes| replace(&self.path, &bytes));
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "a restarted agent will register anew instead of adopting its lease"),
            Err(error) => warn!(%error, "the leases cannot be encoded"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_outlive_the_agent_and_are_forgotten_when_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases.json");
        let leases = Leases::load(path.clone());
        leases.set(5, Some(7587862094));
        leases.set(10, Some(42));
        leases.set(10, None);
        let again = Leases::load(path);
        assert_eq!((again.get(5), again.get(10)), (Some(7587862094), None));
    }

    #[test]
    fn a_damaged_file_counts_as_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases.json");
        fs::write(&path, "{\"5\": ").unwrap();
        assert_eq!(Leases::load(path).get(5), None);
    }
}
