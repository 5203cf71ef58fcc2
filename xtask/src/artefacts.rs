//! `build`: the release binaries and the wasm modules below `target/waypost`.

use std::fs;

use anyhow::{Context, Result};

use crate::exports::{ExportRules, strip_exports};
use crate::pins::WASM_TARGET;
use crate::places::{Places, install};
use crate::process::{cargo, run};
use crate::toolchain::WasmToolchain;
use crate::ui::Ui;

/// What to build beside the agent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The filter that users run.
    Filter,
    /// Also the filter that traps on demand and the no-op filter: the tests and benchmarks need them.
    All,
}

/// Builds the agent, the named binaries of `waypost-tests`, and the wasm modules.
pub fn build(places: &Places, ui: &Ui, scope: Scope, test_binaries: &[&str]) -> Result<()> {
    ui.heading("building the filter (wasm)");
    modules(places, ui, scope)?;
    ui.heading("building the agent (release)");
    // The workspace is named whatever is built of it, so that features are resolved as for the tests and little is
    // compiled twice.
    let mut native = cargo(&places.root);
    native.args(["build", "--release", "--workspace", "--exclude", "waypost-noop-filter", "--bin", "waypost"]);
    for binary in test_binaries {
        native.args(["--bin", binary]);
    }
    run(&mut native)
}

fn modules(places: &Places, ui: &Ui, scope: Scope) -> Result<()> {
    let toolchain = WasmToolchain::required()?;
    let rules_file = places.root.join("plugin/exports.txt");
    let rules = fs::read_to_string(&rules_file)
        .map_err(anyhow::Error::from)
        .and_then(|text| ExportRules::parse(&text))
        .with_context(|| format!("cannot read the rules in {}", rules_file.display()))?;

    let (mut command, target) = toolchain.cargo_build(places);
    command.args(["--profile", "wasm", "--package", "waypost-plugin"]);
    if scope == Scope::All {
        command.args(["--package", "waypost-noop-filter"]);
    }
    run(&mut command)?;
    // Cargo gives a wasm module the same name whatever its features are: take it before the next build replaces it.
    let folder = target.join(WASM_TARGET).join("wasm");
    let mut made = vec![("waypost_plugin.wasm", read(&folder.join("waypost_plugin.wasm"))?, true)];
    if scope == Scope::All {
        made.push(("noop_filter.wasm", read(&folder.join("waypost_noop_filter.wasm"))?, false));
        let (mut command, _) = toolchain.cargo_build(places);
        run(command.args(["--profile", "wasm", "--package", "waypost-plugin", "--features", "trap-for-test"]))?;
        made.push(("waypost_plugin_trap.wasm", read(&folder.join("waypost_plugin.wasm"))?, true));
    }
    for (name, wasm, strip) in made {
        let wasm = if strip {
            strip_exports(&wasm, &rules).with_context(|| format!("cannot apply {} to {name}", rules_file.display()))?
        } else {
            wasm
        };
        let to = places.artefacts().join(name);
        install(&wasm, &to, false)?;
        ui.closing(true, &format!("{:<58} {:>7} kB", to.display(), wasm.len() / 1000));
    }
    Ok(())
}

fn read(path: &std::path::Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cargo built no {}", path.display()))
}
