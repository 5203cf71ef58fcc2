//! A wall clock that can be stepped, for one process at a time: nobody may step the machine's own. A library that is
//! preloaded adds to the time what a file says.
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::scene::Scene;
use crate::tools;

/// The clock of the processes that run with its environment.
pub struct WallClock {
    library: PathBuf,
    step: PathBuf,
}

impl WallClock {
    /// Compiles the library, and steps nothing yet.
    pub fn new(scene: &Scene) -> Result<Self> {
        let library = scene.path().join("libwall_clock.so");
        let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let compiled = Command::new(&compiler)
            .args(["--edition=2024", "--crate-type=cdylib", "-Cpanic=abort", "-o"])
            .arg(&library)
            .arg(tools::root().join("tests/wall-clock/preload.rs"))
            .output()
            .with_context(|| format!("cannot start {}", Path::new(&compiler).display()))?;
        let said = String::from_utf8_lossy(&compiled.stderr);
        ensure!(compiled.status.success(), "the preloaded clock does not compile: {said}");
        let clock = Self { library, step: scene.path().join("wall-clock") };
        clock.step(0)?;
        Ok(clock)
    }

    /// What a process has to be started with.
    pub fn environment(&self) -> Vec<(String, String)> {
        let path = |path: &Path| path.display().to_string();
        vec![("LD_PRELOAD".to_owned(), path(&self.library)), ("WAYPOST_WALL_CLOCK".to_owned(), path(&self.step))]
    }

    /// From now on the time is so many seconds off.
    pub fn step(&self, seconds: i64) -> Result<()> {
        let fresh = self.step.with_extension("new");
        std::fs::write(&fresh, seconds.to_string())?;
        Ok(std::fs::rename(fresh, &self.step)?)
    }
}
