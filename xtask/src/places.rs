//! Where things are: the checkout, the tools, the target directory.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folders that the commands work in.
pub struct Places {
    /// The checkout.
    pub root: PathBuf,
    /// `.tools`: ignored by git, may be deleted at any time.
    pub tools: PathBuf,
    /// `target`, or what `CARGO_TARGET_DIR` names.
    pub target: PathBuf,
}

impl Places {
    /// Finds them from where xtask was compiled.
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask lies in no workspace: run it from a checkout with `cargo xtask`")?
            .to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            // Cargo takes a relative one from the working directory.
            Some(named) => env::current_dir().context("cannot tell the working directory")?.join(named),
            None => root.join("target"),
        };
        Ok(Self { tools: root.join(".tools"), root, target })
    }

    /// The folder of the tools' binaries.
    pub fn tools_bin(&self) -> PathBuf {
        self.tools.join("bin")
    }

    /// A program of the release build.
    pub fn release(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    /// Where wasm modules and components go.
    pub fn artefacts(&self) -> PathBuf {
        self.target.join("waypost")
    }
}

/// Puts `bytes` at `to` in one step, so that whoever runs or reads the old file keeps it whole; `false` when it already
/// holds just that.
pub fn install(bytes: &[u8], to: &Path, executable: bool) -> Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    let folder = to.parent().with_context(|| format!("{} has no parent folder", to.display()))?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let next = to.with_extension(format!("new{}", std::process::id()));
    let written = fs::write(&next, bytes)
        .and_then(|()| fs::set_permissions(&next, fs::Permissions::from_mode(if executable { 0o755 } else { 0o644 })))
        .and_then(|()| fs::rename(&next, to));
    if written.is_err() {
        // The half-written file is of no use to anybody; the error below tells what went wrong.
        let _ = fs::remove_file(&next);
    }
    written.with_context(|| format!("cannot write {}", to.display()))?;
    Ok(true)
}

/// A folder that is gone when this is dropped.
pub struct Scratch {
    /// Where it is.
    pub path: PathBuf,
}

impl Scratch {
    /// Creates it.
    pub fn new(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays lies in an ignored folder and is harmless.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installing_the_same_bytes_again_changes_nothing() {
        let folder = env::temp_dir().join(format!("waypost-xtask-{}", std::process::id()));
        let file = folder.join("tool");
        assert!(install(b"one", &file, true).unwrap());
        assert!(!install(b"one", &file, true).unwrap());
        assert!(install(b"two", &file, true).unwrap());
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "no half-written file stays");
        fs::remove_dir_all(&folder).unwrap();
    }
}
