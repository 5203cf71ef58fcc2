//! What the guard holds, kept beside the catalog's disk copy: a restarted agent goes on holding it for as long as was
//! left, instead of taking it for registered and holding it anew.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use waypost_catalog::ServiceName;
use waypost_registry::HeldNode;

use super::{StateError, replace};

/// Shortest time from one write to the next, and the pause after one that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// The file's content: until when each node is held, in milliseconds since 1970, by service and address.
type Content = BTreeMap<String, BTreeMap<SocketAddr, u64>>;

/// What was held, if anything was. What cannot be read is logged and counts as nothing.
pub fn load(path: &Path) -> Vec<HeldNode> {
    let content = match fs::read(path).map(|bytes| serde_json::from_slice::<Content>(&bytes)) {
        Ok(Ok(content)) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Ok(Err(error)) => return unusable(path, &error),
        Err(error) => return unusable(path, &error),
    };
    let (now, wall) = (Instant::now(), SystemTime::now());
    let held = content.into_iter().flat_map(|(service, nodes)| {
        let service = ServiceName::new(&service).ok();
        nodes.into_iter().filter_map(move |(address, until)| {
            let until = UNIX_EPOCH.checked_add(Duration::from_millis(until))?;
            let left = until.duration_since(wall).unwrap_or_default();
            Some(HeldNode { service: service.clone()?, address, until: now.checked_add(left)? })
        })
    });
    held.collect()
}

fn unusable(path: &Path, error: &dyn std::error::Error) -> Vec<HeldNode> {
    warn!(path = %path.display(), %error, "what the guard held is not known: it is held anew if it is missed");
    Vec::new()
}

/// Writes what is held; without anything, removes the file.
fn save(path: &Path, held: &[HeldNode]) -> Result<(), StateError> {
    if held.is_empty() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, "cannot remove", error)),
            _ => Ok(()),
        };
    }
    let (now, wall) = (Instant::now(), SystemTime::now());
    let mut content = Content::new();
    for HeldNode { service, address, until } in held {
        let until = (wall + until.saturating_duration_since(now)).duration_since(UNIX_EPOCH).unwrap_or_default();
        let until = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        content.entry(service.to_string()).or_default().insert(*address, until);
    }
    let bytes = serde_json::to_vec(&content).map_err(|error| failed(path, "cannot encode", error.into()))?;
    replace(path, &bytes)
}

fn failed(path: &Path, action: &'static str, source: io::Error) -> StateError {
    StateError::Io { path: path.to_owned(), action, source }
}

/// Keeps the file up to date, at most a write per second, until cancelled; then writes what is newest.
pub async fn keep_saved(path: PathBuf, mut held: watch::Receiver<Vec<HeldNode>>, stop: CancellationToken) {
    // The file may name what is not held any more.
    held.mark_changed();
    let mut written = true;
    loop {
        let stopping = tokio::select! {
            changed = held.changed(), if written => changed.is_err(),
            () = tokio::time::sleep(PAUSE), if !written => false,
            () = stop.cancelled() => true,
        };
        let (newest, file) = (held.borrow_and_update().clone(), path.clone());
        written = match tokio::task::spawn_blocking(move || save(&file, &newest)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                warn!(%error, "a restarted agent would hold anew what the guard holds now");
                false
            }
            Err(error) => {
                warn!(%error, "writing what the guard holds failed");
                false
            }
        };
        if stopping {
            return;
        }
        _ = stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(seconds: u64) -> HeldNode {
        let (service, address) = (ServiceName::new("orders").unwrap(), ([10, 0, 0, 1], 80).into());
        HeldNode { service, address, until: Instant::now() + Duration::from_secs(seconds) }
    }

    /// Seconds that are left of each, rounded.
    fn left(held: &[HeldNode]) -> Vec<u64> {
        let left = |held: &HeldNode| held.until.saturating_duration_since(Instant::now()).as_secs_f64().round() as u64;
        held.iter().map(left).collect()
    }

    #[test]
    fn what_was_held_is_held_on_for_what_was_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("held.json");
        assert!(load(&path).is_empty());
        save(&path, &[held(20)]).unwrap();
        let loaded = load(&path);
        assert_eq!((loaded[0].service.as_str(), loaded[0].address), ("orders", held(0).address));
        assert!((15..=20).contains(&left(&loaded)[0]), "{loaded:?}");
        save(&path, &[]).unwrap();
        assert!(!path.exists());
        save(&path, &[]).unwrap();
    }

    #[test]
    fn what_was_held_for_long_enough_while_no_agent_ran_is_due_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("held.json");
        fs::write(&path, r#"{"orders":{"10.0.0.1:80":1000}}"#).unwrap();
        assert_eq!(left(&load(&path)), [0]);
    }

    #[test]
    fn a_damaged_file_counts_as_nothing_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("held.json");
        fs::write(&path, "{\"orders\":").unwrap();
        assert!(load(&path).is_empty());
    }

    #[tokio::test]
    async fn changes_are_written_and_the_last_one_when_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("held.json");
        let (sender, receiver) = watch::channel(Vec::new());
        let stop = CancellationToken::new();
        let task = tokio::spawn(keep_saved(path.clone(), receiver, stop.clone()));
        sender.send_replace(vec![held(20)]);
        let limit = Instant::now() + Duration::from_secs(10);
        while !path.exists() {
            assert!(Instant::now() < limit);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sender.send_replace(Vec::new());
        stop.cancel();
        task.await.unwrap();
        assert!(!path.exists());
    }
}
