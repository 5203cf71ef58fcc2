//! The compiler of the wasm modules: rustup's target, or Debian's compiler with its standard library's source.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::pins::{DEBIAN_PACKAGES, WASM_TARGET};
use crate::places::Places;
use crate::process::{cargo, cargo_at, run_quietly, works};
use crate::ui::Outcome;

/// `rustup` or `debian` in this variable forces one of the two.
const CHOICE: &str = "WAYPOST_WASM_TOOLCHAIN";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// Who compiles to wasm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WasmToolchain {
    /// The compiler in use has the target's standard library.
    Target,
    /// Debian's compiler, which builds the standard library from its source package along with us.
    Debian,
}

impl WasmToolchain {
    /// The one to use as things are; `None` when neither is there yet.
    pub fn find() -> Result<Option<Self>> {
        let wanted = env::var(CHOICE).unwrap_or_default();
        Ok(match wanted.as_str() {
            "" if has_target() => Some(Self::Target),
            "" if has_debian() => Some(Self::Debian),
            "rustup" if has_target() => Some(Self::Target),
            "debian" if has_debian() => Some(Self::Debian),
            "" | "rustup" | "debian" => None,
            other => bail!("{CHOICE}={other}: allowed are `rustup` and `debian`"),
        })
    }

    /// The one to use, which `setup` has seen to.
    pub fn required() -> Result<Self> {
        Self::find()?.context("no compiler for wasm is installed: `cargo xtask setup` brings one")
    }

    /// A `cargo build` for wasm into the right target directory; returns that with the command.
    pub fn cargo_build(self, places: &Places) -> (Command, std::path::PathBuf) {
        match self {
            Self::Target => {
                let mut command = cargo(&places.root);
                command.args(["build", "--target", WASM_TARGET]);
                (command, places.target.clone())
            }
            Self::Debian => {
                // Another compiler in the same directory would drive out what the user's own has built.
                let target = places.target.join("wasm-debian");
                let mut command = cargo_at(DEBIAN_CARGO, &places.root);
                command
                    .args(["build", "--target", WASM_TARGET, "-Zbuild-std=std,panic_abort", "--target-dir"])
                    .arg(&target)
                    .env("RUSTC", DEBIAN_RUSTC)
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "wasm-ld")
                    .env_remove("RUSTUP_TOOLCHAIN");
                (command, target)
            }
        }
    }
}

/// Makes sure that wasm modules can be compiled.
pub fn ensure_wasm() -> Result<Outcome> {
    match WasmToolchain::find()? {
        Some(WasmToolchain::Target) => return Ok(Outcome::Ready(format!("ready ({WASM_TARGET})"))),
        Some(WasmToolchain::Debian) => return Ok(Outcome::Ready("ready (Debian's rustc-web)".into())),
        None => {}
    }
    let forced = env::var(CHOICE).unwrap_or_default();
    let mut why_not_rustup = String::new();
    if forced != "debian" {
        match run_quietly(Command::new("rustup").args(["target", "add", WASM_TARGET])) {
            Ok(_) if has_target() => return Ok(Outcome::Done(format!("installed ({WASM_TARGET} by rustup)"))),
            Ok(_) => {
                why_not_rustup = format!("rustup installed {WASM_TARGET} for another compiler than the one in use")
            }
            Err(error) => why_not_rustup = format!("{error:#}"),
        }
        if forced == "rustup" {
            bail!("{why_not_rustup}");
        }
    }
    let packages = DEBIAN_PACKAGES.join(" ");
    if !may_apt_install() {
        bail!(
            "no compiler for {WASM_TARGET}: {why_not_rustup}\n\
             `rustup target add {WASM_TARGET}` or, on Debian as root, `apt-get install {packages}` brings one"
        );
    }
    apt_install(&DEBIAN_PACKAGES)?;
    if !has_debian() {
        bail!("apt-get installed {packages}, but no compiler with the standard library's source is there");
    }
    Ok(Outcome::Done("installed (Debian's rustc-web)".into()))
}

/// Makes sure of the formatter and the linter.
pub fn ensure_components() -> Result<Outcome> {
    if works("cargo", &["fmt", "--version"]) && works("cargo", &["clippy", "--version"]) {
        return Ok(Outcome::Ready("ready".into()));
    }
    run_quietly(Command::new("rustup").args(["component", "add", "rustfmt", "clippy"]))?;
    Ok(Outcome::Done("installed".into()))
}

/// Whether packages may be installed without asking: root, on a system with apt-get.
pub fn may_apt_install() -> bool {
    let root = run_quietly(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    root && works("apt-get", &["--version"])
}

/// Installs Debian packages.
pub fn apt_install(packages: &[&str]) -> Result<()> {
    // Stale lists are the usual reason for a first failure; a list that cannot be refreshed may still do.
    let _ = run_quietly(Command::new("apt-get").args(["update", "--quiet"]));
    run_quietly(
        Command::new("apt-get")
            .args(["install", "--yes", "--quiet", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    Ok(())
}

/// Whether the compiler in use has the standard library for wasm.
fn has_target() -> bool {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    run_quietly(Command::new(rustc).args(["--print", "target-libdir", "--target", WASM_TARGET])).is_ok_and(|folder| {
        fs::read_dir(folder.trim()).is_ok_and(|mut entries| {
            entries.any(|e| e.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("libstd-")))
        })
    })
}

/// Whether Debian's compiler, cargo, standard library source and linker are all there.
fn has_debian() -> bool {
    run_quietly(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"]))
        .is_ok_and(|root| Path::new(root.trim()).join("lib/rustlib/src/rust/library/Cargo.lock").is_file())
        && works(DEBIAN_CARGO, &["--version"])
        && works("wasm-ld", &["--version"])
}
