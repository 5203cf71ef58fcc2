//! The state directory: what outlives a restart of the agent.
//!
//! * `lock`: held while an agent runs, so that two never share a directory.
//! * `catalog.bin`: the last good catalog, see [`catalog`].
//! * `held.json`: what of it only the guard keeps, see [`held`].
//! * `leases.json`: the leases to adopt, see [`leases`].
//! * `registrations.json`: what the API has registered and put into maintenance, see [`registrations`].

pub mod catalog;
pub mod held;
pub mod leases;
pub mod registrations;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be made, read or written.
    #[error("{}: {action}: {source}; check state_dir and who may write there", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Another agent runs on it.
    #[error("{}: another agent uses this state directory: stop it, or set another state_dir", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
}

impl StateError {
    /// Whether another agent is in the way.
    pub fn is_held(&self) -> bool {
        matches!(self, Self::Locked { .. })
    }
}

/// The state directory, locked for as long as this lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the directory (for its owner alone) if it is missing, and locks it.
    ///
    /// # Errors
    /// [`StateError`] if it cannot be used or another agent uses it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |path: &Path, action| {
            let path = path.to_owned();
            move |source| StateError::Io { path, action, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed(path, "cannot make the directory"))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
        let lock = lock.map_err(failed(&lock_path, "cannot open the lock"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::Locked { path: path.to_owned() }),
            Err(errno) => Err(failed(&lock_path, "cannot lock")(errno.into())),
        }
    }

    /// Path of the catalog's disk copy.
    pub fn catalog_path(&self) -> PathBuf {
        self.path.join("catalog.bin")
    }

    /// Path of what the API has registered.
    pub fn registrations_path(&self) -> PathBuf {
        self.path.join("registrations.json")
    }

    /// Path of what the guard holds.
    pub fn held_path(&self) -> PathBuf {
        self.path.join("held.json")
    }

    /// Path of the leases to adopt.
    pub fn leases_path(&self) -> PathBuf {
        self.path.join("leases.json")
    }
}

/// Replaces a file's content in one piece: whoever reads it, also after a power cut, finds the old or the new.
fn replace(path: &Path, content: &[u8]) -> Result<(), StateError> {
    let temporary = path.with_extension("new");
    let written = (|| {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // The rename is on disk only once the directory is.
        path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    })();
    written.map_err(|source| StateError::Io { path: path.to_owned(), action: "cannot write", source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_directory_is_made_for_its_owner_alone() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let _state = StateDir::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_second_agent_is_kept_out_until_the_first_is_gone() {
        let parent = tempfile::tempdir().unwrap();
        let first = StateDir::open(parent.path()).unwrap();
        assert!(matches!(StateDir::open(parent.path()), Err(StateError::Locked { .. })));
        drop(first);
        StateDir::open(parent.path()).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("file");
        fs::write(&path, "").unwrap();
        let error = StateDir::open(&path).unwrap_err().to_string();
        assert!(error.contains("file: cannot make the directory"), "{error}");
    }
}
