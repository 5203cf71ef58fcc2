//! When the configuration may have changed, and which of its changes need a restart.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use crate::config::Config;

/// Quiet time after an event before the file is read: editors and deployments write in several steps.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// The longest wait for quiet: somebody may write a log into the same directory.
const DEBOUNCE_LIMIT: Duration = Duration::from_secs(2);

/// Watches the directory of a file, so that files which are replaced by a rename, or reached through links that are
/// switched over, are seen too.
#[derive(Debug)]
pub struct FileWatcher {
    _watcher: RecommendedWatcher,
    events: mpsc::Receiver<()>,
}

impl FileWatcher {
    /// Starts watching.
    ///
    /// # Errors
    /// The system's reason, such as too many watches.
    pub fn start(path: &Path) -> notify::Result<Self> {
        // One place in the queue: an event that waits stands for all that follow.
        let (sender, events) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the file is an event too, and no reason to read it again.
            if !matches!(event, Ok(notify::Event { kind: EventKind::Access(_), .. })) {
                _ = sender.try_send(());
            }
        })?;
        for directory in directories(path) {
            watcher.watch(&directory, RecursiveMode::NonRecursive)?;
        }
        Ok(Self { _watcher: watcher, events })
    }

    /// Waits until something happened in the directory, and has been over for a moment. The file itself may be as it
    /// was.
    pub async fn changed(&mut self) {
        if self.events.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        let limit = Instant::now() + DEBOUNCE_LIMIT;
        while let Ok(Some(())) = timeout_at(limit.min(Instant::now() + DEBOUNCE), self.events.recv()).await {}
    }
}

/// The directory in which the file is named, and that of the file which a link there leads to.
fn directories(path: &Path) -> Vec<PathBuf> {
    let parent = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut directories = vec![parent(path)];
    if let Ok(target) = path.canonicalize() {
        let target = parent(&target);
        if directories[0].canonicalize().ok().as_ref() != Some(&target) {
            directories.push(target);
        }
    }
    directories
}

/// Puts back what cannot change while the agent runs, and names the keys for which that made a difference.
pub fn keep_fixed(current: &Config, new: &mut Config) -> Vec<&'static str> {
    let mut kept = Vec::new();
    let mut keep = |key, differs: bool| {
        if differs {
            kept.push(key);
        }
    };
    keep("node", current.node != new.node);
    keep("state_dir", current.state_dir != new.state_dir);
    keep("etcd", current.etcd != new.etcd);
    keep("stream.socket", current.socket != new.socket);
    keep("admin.listen", current.admin != new.admin);
    keep("api.listen", current.api != new.api);
    keep("xds", current.xds != new.xds);
    keep("strategies", current.strategies != new.strategies);
    for service in &mut new.services {
        // An instance that is named after the node keeps its name with it.
        if service.instance == format!("{}-{}", new.node, service.port) {
            service.instance = format!("{}-{}", current.node, service.port);
        }
    }
    new.node.clone_from(&current.node);
    new.state_dir.clone_from(&current.state_dir);
    new.etcd = current.etcd.clone();
    new.socket.clone_from(&current.socket);
    new.admin = current.admin;
    new.api = current.api;
    new.xds = current.xds.clone();
    new.strategies = current.strategies.clone();
    kept
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::config;

    async fn is_seen(watcher: &mut FileWatcher) -> bool {
        tokio::time::timeout(Duration::from_secs(5), watcher.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn writing_in_place_and_replacing_by_a_rename_are_both_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        fs::write(&path, "a").unwrap();
        let mut watcher = FileWatcher::start(&path).unwrap();
        fs::write(&path, "b").unwrap();
        assert!(is_seen(&mut watcher).await, "written in place");
        fs::write(dir.path().join("new"), "c").unwrap();
        assert!(is_seen(&mut watcher).await);
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert!(is_seen(&mut watcher).await, "replaced by a rename");
        fs::read(&path).unwrap();
        let read = tokio::time::timeout(Duration::from_millis(300), watcher.changed()).await;
        assert!(read.is_err(), "reading is no change");
    }

    #[tokio::test]
    async fn a_change_behind_a_link_to_another_directory_is_seen() {
        let (dir, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (path, target) = (dir.path().join("agent.toml"), data.path().join("agent.toml"));
        fs::write(&target, "a").unwrap();
        symlink(&target, &path).unwrap();
        let mut watcher = FileWatcher::start(&path).unwrap();
        fs::write(&target, "b").unwrap();
        assert!(is_seen(&mut watcher).await);
    }

    #[tokio::test]
    async fn a_busy_neighbour_in_the_directory_hides_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        fs::write(&path, "a").unwrap();
        let mut watcher = FileWatcher::start(&path).unwrap();
        let log = dir.path().join("log");
        let busy = async {
            loop {
                fs::write(&log, "line").unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            seen = is_seen(&mut watcher) => assert!(seen),
            () = busy => {}
        }
    }

    fn parse(text: &str) -> Config {
        config::parse("agent.toml", text, "host-a").unwrap()
    }

    const BASE: &str = "[etcd]\nendpoints = [\"http://127.0.0.1:2379\"]\n[[service]]\nname = \"a\"\nport = 80\n";

    #[test]
    fn what_needs_a_restart_is_named_and_kept_as_it_was() {
        let current = parse(BASE);
        let mut new = parse(&format!(
            "node = \"b\"\nstate_dir = \"/x\"\n{BASE}[stream]\nsocket = \"/x/s\"\n[guard]\nmax_loss = 1\n"
        ));
        assert_eq!(keep_fixed(&current, &mut new), ["node", "state_dir", "stream.socket"]);
        assert_eq!((&new.node, &new.state_dir, &new.socket), (&current.node, &current.state_dir, &current.socket));
        assert_eq!(new.services[0].instance, "host-a-80", "named after the node that stays");
        assert_eq!(new.guard.max_loss, 1.0, "everything else is taken");
    }

    #[test]
    fn an_unchanged_configuration_needs_nothing() {
        let current = parse(BASE);
        let mut new = parse(BASE);
        assert_eq!(keep_fixed(&current, &mut new), [""; 0]);
        assert_eq!(current, new);
    }
}
