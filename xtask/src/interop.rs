//! `interop`: other frameworks' Go libraries beside Waypost, and the tests of the registry and of its recovery, on every
//! version of etcd.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::etcds::{self, DEFAULT, Release};
use crate::places::Places;
use crate::process::{cargo, run};
use crate::tests_run::{END_TO_END_THREADS, run_counting};
use crate::ui::{Outcome, Ui, seconds};

/// Names the folder of another etcd to the harness and to all tests.
const ETCD: &str = "WAYPOST_ETCD_BIN";
/// How many faults are done side by side: most of their time is waiting.
const FAULT_THREADS: &str = "4";

/// Runs `driver`, the harness' side of it, and the tests of registry and recovery. What cannot be had on this machine is named; it is
/// an error as well unless `if_available`.
pub fn interop(places: &Places, ui: &Ui, driver: &Path, if_available: bool) -> Result<()> {
    let started = Instant::now();
    let libraries = places.artefacts().join("go-libraries");
    let compiled = ui.step("Go libraries", "compiling", || {
        etcds::go_build(&places.root.join("tests/interop"), ".", &libraries)?;
        Ok(Outcome::Done("built".into()))
    });
    let mut missing: Vec<String> =
        compiled.as_ref().err().map(|e| format!("Go libraries: {e:#}")).into_iter().collect();
    let mut held = Vec::new();
    for Release { series, folder } in etcds::fetch(places, ui) {
        let folder = match folder {
            Ok(folder) => folder,
            Err(error) => {
                missing.push(format!("etcd {series}: {error:#}"));
                continue;
            }
        };
        if compiled.is_ok() {
            ui.heading(&format!("Go libraries, etcd {series}"));
            run(Command::new(driver).arg(&libraries).current_dir(&places.root).env(ETCD, &folder))?;
            held.push(format!("Go libraries on {series}"));
        }
        // `cargo xtask test` runs them on that one.
        if series != DEFAULT {
            ui.heading(&format!("tests of crates/registry and of every fault, etcd {series}"));
            recovery_tests(places, &folder)?;
            held.push(format!("registry and recovery on {series}"));
        }
    }
    for what in &missing {
        println!("not run: {what}");
    }
    println!("held: {} in {}", held.join(", "), seconds(started.elapsed()));
    if !missing.is_empty() && !if_available {
        bail!("{} not run", if missing.len() == 1 { "one part was" } else { "some parts were" });
    }
    Ok(())
}

/// All that `crates/registry` tests on a real etcd, and every fault of `docs/robustness.md`.
fn recovery_tests(places: &Places, etcd: &Path) -> Result<()> {
    tests(places, etcd, &test_files(&places.root.join("crates/registry/tests"))?, END_TO_END_THREADS)?;
    tests(places, etcd, &["chaos".into()], FAULT_THREADS)
}

/// Runs these test programs on the etcd in that folder.
fn tests(places: &Places, etcd: &Path, names: &[OsString], threads: &str) -> Result<()> {
    let mut command = cargo(&places.root);
    // The packages of `cargo xtask test`, so that nothing is compiled twice.
    command.args(["test", "--release", "--workspace", "--exclude", "waypost-noop-filter", "--no-fail-fast"]);
    for name in names {
        command.arg("--test").arg(name);
    }
    command.args(["--", "--test-threads", threads]).env(ETCD, etcd);
    let (counts, ok) = run_counting(&mut command)?;
    if !ok || counts.passed == 0 {
        bail!("{} tests of registry and recovery failed on the etcd in {}", counts.failed, etcd.display());
    }
    Ok(())
}

/// Names of a folder's test programs.
fn test_files(folder: &Path) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if let (Some("rs"), Some(name)) = (path.extension().and_then(|e| e.to_str()), path.file_stem()) {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}
