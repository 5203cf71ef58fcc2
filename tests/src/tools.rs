//! Where the tools and the built artefacts are, or what to run to get them.
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The checkout's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// A tool fetched by `cargo xtask setup`: `envoy`, `etcd`, `etcdctl`. `WAYPOST_TOOLS` names another folder, and
/// `WAYPOST_ETCD_BIN` that of another version of etcd, its `etcd`, `etcdctl` and, from 3.5 on, `etcdutl`.
pub fn tool(name: &str) -> Result<PathBuf> {
    let other_etcd = std::env::var_os("WAYPOST_ETCD_BIN").filter(|_| name.starts_with("etcd"));
    let folder = other_etcd.or_else(|| std::env::var_os("WAYPOST_TOOLS"));
    existing(folder.map_or_else(|| root().join(".tools/bin"), PathBuf::from).join(name))
}

/// Whether this version of etcd has a setting.
pub fn etcd_knows(setting: &str) -> Result<bool> {
    let help = std::process::Command::new(tool("etcd")?).arg("--help").output()?;
    let text = [help.stdout, help.stderr].concat();
    Ok(String::from_utf8_lossy(&text).contains(&format!("--{setting}")))
}

/// The `waypost` binary of the release build, or the one that `WAYPOST_BIN` names.
pub fn waypost() -> Result<PathBuf> {
    existing(match std::env::var_os("WAYPOST_BIN") {
        Some(path) => PathBuf::from(path),
        None => target().join("release/waypost"),
    })
}

/// The filter as it is shipped.
pub fn plugin_wasm() -> Result<PathBuf> {
    existing(target().join("waypost/waypost_plugin.wasm"))
}

/// The filter that hears nothing of what becomes of requests.
pub fn lean_wasm() -> Result<PathBuf> {
    existing(target().join("waypost/waypost_plugin_lean.wasm"))
}

/// The filter whose VM traps on the request header `x-waypost-trap`.
pub fn trap_wasm() -> Result<PathBuf> {
    existing(target().join("waypost/waypost_plugin_trap.wasm"))
}

/// A strategy component that is built with the tests: one of the examples, or the one that fails as it is told.
pub fn strategy_wasm(name: &str) -> Result<PathBuf> {
    existing(target().join("waypost/strategies").join(format!("{name}.wasm")))
}

/// The filter that does nothing.
pub fn noop_wasm() -> Result<PathBuf> {
    existing(target().join("waypost/noop_filter.wasm"))
}

fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from) {
        Some(path) if path.is_absolute() => path,
        Some(path) => root().join(path),
        None => root().join("target"),
    }
}

fn existing(path: PathBuf) -> Result<PathBuf> {
    if !path.is_file() {
        bail!("{} is missing: run `cargo xtask build`", path.display());
    }
    Ok(path)
}
