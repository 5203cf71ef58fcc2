//! One test's world: its directory, and every process that it started.
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, bail};
use tempfile::TempDir;

use crate::process::{Process, Slot, tail};

/// Lines of each log that a failed test prints.
const TAIL_LINES: usize = 40;

/// Owns a temporary directory and all processes started in it.
pub struct Scene {
    directory: Option<TempDir>,
    started: Mutex<Vec<Started>>,
    closed: bool,
}

struct Started {
    name: String,
    log: PathBuf,
    slot: Arc<Slot>,
}

impl Scene {
    /// A new directory under the system's temporary directory.
    pub fn new() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("waypost-").tempdir()?;
        Ok(Self { directory: Some(directory), started: Mutex::default(), closed: false })
    }

    /// The directory: for logs, configuration, data and sockets.
    pub fn path(&self) -> &Path {
        self.directory.as_ref().map_or(Path::new(""), TempDir::path)
    }

    /// A program under the scene's care, not yet started. Its log is `<name>.log`.
    pub fn process(&self, name: &str, program: PathBuf, args: impl IntoIterator<Item = String>) -> Process {
        let log = self.path().join(format!("{name}.log"));
        let process = Process::new(name, program, args.into_iter().collect(), log.clone());
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        started.push(Started { name: name.to_owned(), log, slot: process.slot() });
        process
    }

    /// Ends a test that succeeded: everything is stopped, the directory removed. An error if a process is left.
    pub fn close(mut self) -> Result<()> {
        self.closed = true;
        let left = self.kill_all();
        if let Some(directory) = self.directory.take() {
            directory.close()?;
        }
        if !left.is_empty() {
            bail!("still running after SIGKILL: {}", left.join(", "));
        }
        Ok(())
    }

    fn kill_all(&self) -> Vec<String> {
        let started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        // Newest first: Envoy before its agent, the agent before etcd.
        started.iter().rev().filter(|one| !one.slot.kill_and_reap()).map(|one| one.name.clone()).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        self.kill_all();
        for one in self.started.get_mut().unwrap_or_else(PoisonError::into_inner) {
            eprintln!("---- end of {}'s log ----\n{}", one.name, tail(&one.log, TAIL_LINES));
        }
        if let Some(directory) = self.directory.take() {
            eprintln!("---- kept: {} ----", directory.keep().display());
        }
    }
}
