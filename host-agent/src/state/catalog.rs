//! The catalog's disk copy: what is served after a restart while etcd cannot be reached.
//!
//! The file is the magic and format version, the xxh3 of what follows (8 bytes, little endian), and a `StoredCatalog`.
//! What is damaged, or of another version, is refused whole. The file's modification time says when its content was
//! last known to be current, which may be long after it last changed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use prost::Message as _;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use waypost_catalog::{
    Catalog,
    wire::{StoredCatalog, WireError},
};
use xxhash_rust::xxh3::xxh3_64;

use super::{StateError, replace};
use crate::published::{CatalogReceiver, Staleness};

const MAGIC: &[u8; 8] = b"WAYPCAT\x01";
const HEADER: usize = 16;
/// Shortest time from one write to the next.
const DEBOUNCE: Duration = Duration::from_secs(1);
/// Pause after a write that failed.
const RETRY: Duration = Duration::from_secs(10);
/// How often a copy that needs no change is marked as current.
const REFRESH: Duration = Duration::from_secs(60);

/// Why a disk copy is not used.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It does not begin as one.
    #[error("is no catalog of this version of Waypost")]
    Foreign,
    /// Its content is not what was written.
    #[error("is damaged: its checksum does not match")]
    Checksum,
    /// Its content decodes to something that cannot be.
    #[error("is damaged: {0}")]
    Content(#[from] WireError),
    /// Its content does not decode.
    #[error("is damaged: {0}")]
    Undecodable(#[from] prost::DecodeError),
}

/// A disk copy.
#[derive(Debug)]
pub struct DiskCopy {
    /// What was kept.
    pub catalog: Catalog,
    /// How long ago it was last known to be current.
    pub age: Duration,
}

/// The disk copy, if there is one that is whole; what is wrong with any other is logged.
pub fn load(path: &Path) -> Option<DiskCopy> {
    match read(path) {
        Ok(copy) => {
            let (services, nodes) = (copy.catalog.services().len(), copy.catalog.node_count());
            info!(path = %path.display(), services, nodes, age = ?copy.age, "catalog loaded from disk");
            Some(copy)
        }
        Err(StoredError::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            warn!(path = %path.display(), %error, "the catalog's disk copy is not used: starting without one");
            None
        }
    }
}

fn read(path: &Path) -> Result<DiskCopy, StoredError> {
    let bytes = fs::read(path)?;
    let catalog = decode(&bytes)?;
    let written = fs::metadata(path)?.modified()?;
    Ok(DiskCopy { catalog, age: SystemTime::now().duration_since(written).unwrap_or_default() })
}

fn encode(catalog: &Catalog) -> Vec<u8> {
    let content = catalog.to_stored().encode_to_vec();
    let mut bytes = Vec::with_capacity(HEADER + content.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&xxh3_64(&content).to_le_bytes());
    bytes.extend_from_slice(&content);
    bytes
}

fn decode(bytes: &[u8]) -> Result<Catalog, StoredError> {
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(StoredError::Foreign)?;
    if magic != MAGIC {
        return Err(StoredError::Foreign);
    }
    let (checksum, content) = rest.split_first_chunk::<8>().ok_or(StoredError::Checksum)?;
    if u64::from_le_bytes(*checksum) != xxh3_64(content) {
        return Err(StoredError::Checksum);
    }
    Ok(Catalog::from_stored(StoredCatalog::decode(content)?)?)
}

/// Writes the disk copy.
///
/// # Errors
/// [`StateError`] if it cannot be written; the previous copy then stays.
pub fn save(path: &Path, catalog: &Catalog) -> Result<(), StateError> {
    replace(path, &encode(catalog))
}

/// Marks the disk copy as last known to be current so long ago.
fn mark(path: &Path, stale_for: Duration) -> Result<(), StateError> {
    let current_at = SystemTime::now().checked_sub(stale_for).unwrap_or(SystemTime::UNIX_EPOCH);
    let marked = fs::File::options().write(true).open(path).and_then(|file| file.set_modified(current_at));
    marked.map_err(|source| StateError::Io { path: path.to_owned(), action: "cannot mark as current", source })
}

/// Keeps the disk copy up to date, at most a write per second, until cancelled; then writes what is newest. `saved` is
/// the version that the disk has already.
pub async fn keep_saved(
    path: PathBuf,
    mut catalog: CatalogReceiver,
    staleness: Arc<dyn Staleness>,
    mut saved: Option<u64>,
    stop: CancellationToken,
) {
    let mut stopping = false;
    loop {
        let mut next = REFRESH;
        let newest = catalog.borrow_and_update().clone();
        if let Some(newest) = newest {
            let (version, path, stale_for) = (newest.version(), path.clone(), staleness.stale_for());
            let changed = saved != Some(version);
            let written = tokio::task::spawn_blocking(move || {
                if changed {
                    save(&path, &newest)?;
                }
                mark(&path, stale_for)
            });
            match written.await {
                Ok(Ok(())) => saved = Some(version),
                Ok(Err(error)) => {
                    warn!(%error, "the catalog's disk copy is not up to date");
                    // It may also be gone.
                    (saved, next) = (None, RETRY);
                }
                Err(error) => {
                    warn!(%error, "writing the catalog's disk copy failed");
                    next = RETRY;
                }
            }
            if !stopping && changed {
                _ = stop.run_until_cancelled(tokio::time::sleep(DEBOUNCE)).await;
            }
        }
        if stopping {
            return;
        }
        stopping = tokio::select! {
            changed = catalog.changed() => changed.is_err(),
            () = stop.cancelled() => true,
            () = tokio::time::sleep(next) => false,
        };
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;
    use waypost_catalog::{Node, ServiceName};

    use super::*;

    fn catalog(nodes: u16) -> Catalog {
        let nodes = (0..nodes).map(|n| Node::at(([10, 0, 0, 1], 8000 + n).into())).collect();
        Catalog::default().updated([(ServiceName::new("orders").unwrap(), nodes)]).0.unwrap()
    }

    #[test]
    fn a_written_copy_is_read_back_as_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.bin");
        assert!(load(&path).is_none());
        save(&path, &catalog(3)).unwrap();
        let copy = load(&path).unwrap();
        assert_eq!((copy.catalog.hash(), copy.catalog.version()), (catalog(3).hash(), 1));
        assert!(copy.age < Duration::from_secs(60));
    }

    #[test]
    fn a_copy_with_any_bit_flipped_or_cut_anywhere_is_refused() {
        let bytes = encode(&catalog(3));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(decode(&damaged).is_err(), "bit flipped at {at}");
            assert!(decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert!(decode(&bytes).is_ok());
    }

    #[test]
    fn a_failed_write_leaves_the_old_copy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.bin");
        save(&path, &catalog(3)).unwrap();
        fs::create_dir(dir.path().join("catalog.new")).unwrap();
        assert!(save(&path, &catalog(5)).is_err());
        assert_eq!(load(&path).unwrap().catalog.node_count(), 3);
    }

    struct StaleFor(Duration);

    impl Staleness for StaleFor {
        fn stale_for(&self) -> Duration {
            self.0
        }
    }

    #[tokio::test]
    async fn a_copy_that_needs_no_change_is_as_old_as_it_was_last_known_to_be_current() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.bin");
        save(&path, &catalog(1)).unwrap();
        mark(&path, Duration::from_secs(3600)).unwrap();
        assert!(load(&path).unwrap().age >= Duration::from_secs(3600));
        let (_sender, receiver) = watch::channel(Some(Arc::new(catalog(1))));
        let stop = CancellationToken::new();
        stop.cancel();
        keep_saved(path.clone(), receiver, Arc::new(StaleFor(Duration::from_secs(9))), Some(1), stop).await;
        let age = load(&path).unwrap().age;
        assert!((9..60).contains(&age.as_secs()), "{age:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_write_is_tried_again_though_nothing_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.bin");
        let in_the_way = dir.path().join("catalog.new");
        fs::create_dir(&in_the_way).unwrap();
        let (_sender, receiver) = watch::channel(Some(Arc::new(catalog(1))));
        let stop = CancellationToken::new();
        let staleness = Arc::new(StaleFor(Duration::ZERO));
        let task = tokio::spawn(keep_saved(path.clone(), receiver, staleness, None, stop.clone()));
        tokio::time::sleep(RETRY * 2).await;
        assert!(!path.exists());
        fs::remove_dir(&in_the_way).unwrap();
        tokio::time::sleep(RETRY * 2).await;
        assert!(path.exists());
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn changes_are_written_and_the_last_one_when_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.bin");
        let (sender, receiver) = watch::channel(None);
        let stop = CancellationToken::new();
        let staleness = Arc::new(StaleFor(Duration::ZERO));
        let task = tokio::spawn(keep_saved(path.clone(), receiver, staleness, None, stop.clone()));
        sender.send_replace(Some(Arc::new(catalog(1))));
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let second =
            catalog(1).updated([(ServiceName::new("users").unwrap(), vec![Node::at(([10, 0, 0, 2], 1).into())])]);
        sender.send_replace(Some(Arc::new(second.0.unwrap())));
        stop.cancel();
        task.await.unwrap();
        assert_eq!(load(&path).unwrap().catalog.version(), 2);
    }
}
