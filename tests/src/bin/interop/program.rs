//! The Go program as a process, and the lines of JSON that it prints among its libraries' log.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use waypost_tests::{Etcd, Process, Scene, eventually};

/// It has registered itself and serves.
#[derive(Deserialize)]
pub struct Serving {
    /// Where.
    #[serde(rename = "serving")]
    pub address: String,
    /// The library's module and version.
    pub library: String,
}

/// What the library knows of a service: addresses, and who answers there.
#[derive(Deserialize)]
struct Found {
    nodes: BTreeMap<String, String>,
}

/// A Go program that runs one library.
pub struct Program(Process);

impl Program {
    /// Starts it: `duty` is `serve` or `watch`.
    pub fn start(scene: &Scene, program: &Path, library: &str, duty: &str, etcd: &Etcd, service: &str) -> Result<Self> {
        let etcd = etcd.address(0)?.to_string();
        let args = [library.to_owned(), duty.to_owned(), etcd, service.to_owned()];
        let process = scene.process(&format!("{library}-{duty}"), program.to_path_buf(), args);
        process.start()?;
        Ok(Self(process))
    }

    /// Waits until it has registered itself.
    pub async fn serving(&self, deadline: Duration) -> Result<Serving> {
        eventually(deadline, format!("{} to register itself", self.0.name()), || async { self.last() }).await
    }

    /// Waits until it knows exactly these nodes, each with who answers there.
    pub async fn finds(&self, expected: &[(String, String)], deadline: Duration) -> Result<()> {
        let expected: BTreeMap<String, String> = expected.iter().cloned().collect();
        eventually(deadline, format!("{} to know {expected:?}", self.0.name()), || async {
            let found: Found = self.last()?;
            ensure!(found.nodes == expected, "it knows {:?}", found.nodes);
            Ok(())
        })
        .await
    }

    /// SIGKILL.
    pub async fn kill(&self) -> Result<()> {
        self.0.kill().await
    }

    /// The last whole line that is one of these.
    fn last<T: DeserializeOwned>(&self) -> Result<T> {
        self.0.ensure_running()?;
        let log = std::fs::read(self.0.log())?;
        let text = String::from_utf8_lossy(&log);
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().rev().find_map(|line| serde_json::from_str(line).ok()).context("it has not said so yet")
    }
}
