//! The versions of etcd that people run, each in a folder of its own below `.tools`: 3.4 out of Debian's packages, 3.5
//! by `setup`, 3.6 built from its Go modules.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::pins::ETCD_DEBIAN;
use crate::places::{Places, Scratch, install};
use crate::process::{run_quietly, works};
use crate::toolchain::may_apt_install;
use crate::ui::{Outcome, Ui};

/// One of them, on this machine.
pub struct Release {
    /// `3.4`.
    pub series: &'static str,
    /// The folder of its programs, or why there is none.
    pub folder: Result<PathBuf>,
}

/// The one that `setup` brings and that all other tests run on.
pub const DEFAULT: &str = "3.5";

/// All that can be had here; whatever cannot says why.
pub fn fetch(places: &Places, ui: &Ui) -> Vec<Release> {
    let (debian, built) = (places.tools.join("etcd-3.4"), places.tools.join("etcd-3.6"));
    let from_debian = ui.step("etcd 3.4", "downloading Debian's packages", || of_debian(places, &debian));
    let from_go = ui.step("etcd 3.6", "building its Go modules, about a minute", || of_go(places, &built));
    vec![
        Release { series: "3.4", folder: from_debian.map(|()| debian) },
        Release { series: DEFAULT, folder: Ok(places.tools_bin()) },
        Release { series: "3.6", folder: from_go.map(|()| built) },
    ]
}

/// Debian's packages, unpacked without being installed: no root is needed.
fn of_debian(places: &Places, folder: &Path) -> Result<Outcome> {
    let programs = ["etcd", "etcdctl"];
    if programs.iter().all(|name| folder.join(name).is_file()) {
        return Ok(Outcome::Ready("ready".into()));
    }
    ensure!(works("apt-get", &["--version"]), "etcd 3.4 comes in Debian's packages, and there is no apt-get here");
    let scratch = Scratch::new(places.tools.join(format!("download-etcd-3.4-{}", std::process::id())))?;
    let download = || {
        run_quietly(Command::new("apt-get").args(["download", "--quiet"]).args(ETCD_DEBIAN).current_dir(&scratch.path))
    };
    if let Err(error) = download() {
        if !may_apt_install() {
            return Err(error);
        }
        // No lists, or stale ones.
        run_quietly(Command::new("apt-get").args(["update", "--quiet"]))?;
        download()?;
    }
    let unpacked = scratch.path.join("unpacked");
    for entry in fs::read_dir(&scratch.path)? {
        let package = entry?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            run_quietly(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&unpacked))?;
        }
    }
    let version = run_quietly(Command::new(unpacked.join("usr/bin/etcd")).arg("--version"))?;
    let version = version.lines().next().unwrap_or_default();
    ensure!(version.contains(": 3.4."), "this system's package etcd-server is not 3.4 but `{version}`");
    for name in programs {
        let from = unpacked.join("usr/bin").join(name);
        let bytes = fs::read(&from).with_context(|| format!("Debian's packages hold no usr/bin/{name}"))?;
        install(&bytes, &folder.join(name), true)?;
    }
    Ok(Outcome::Done("installed".into()))
}

/// Built anew when the pins in `tests/interop/etcd-3.6` have changed.
fn of_go(places: &Places, folder: &Path) -> Result<Outcome> {
    let module = places.root.join("tests/interop/etcd-3.6");
    let pins = fs::read(module.join("go.mod")).with_context(|| format!("cannot read {}/go.mod", module.display()))?;
    let marker = places.tools.join("installed/etcd-3.6");
    let programs = [("server", "etcd"), ("etcdctl", "etcdctl"), ("etcdutl", "etcdutl")];
    if fs::read(&marker).is_ok_and(|built| built == pins)
        && programs.iter().all(|(_, name)| folder.join(name).is_file())
    {
        return Ok(Outcome::Ready("ready".into()));
    }
    let scratch = Scratch::new(places.tools.join(format!("build-etcd-3.6-{}", std::process::id())))?;
    go_build(&module, "tool", &scratch.path)?;
    for (built, name) in programs {
        let from = scratch.path.join(built);
        let bytes = fs::read(&from).with_context(|| format!("go built no {built}"))?;
        install(&bytes, &folder.join(name), true)?;
    }
    install(&pins, &marker, false)?;
    Ok(Outcome::Done("built".into()))
}

/// Builds `what` of a Go module into a folder or file, of just the versions that its go.sum has.
pub fn go_build(module: &Path, what: &str, to: &Path) -> Result<()> {
    if !works("go", &["version"]) {
        bail!("Go is not installed");
    }
    run_quietly(
        Command::new("go")
            .current_dir(module)
            .args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-o"])
            .arg(to)
            .arg(what),
    )?;
    Ok(())
}
