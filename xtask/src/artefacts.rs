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
    // The workspace is named whatever is built of it, and a small test with it: so features are resolved as for the tests,
    // those of their own dependencies included, and nothing is compiled twice.
    let mut native = cargo(&places.root);
    native.args(["build", "--release", "--workspace", "--exclude", "waypost-noop-filter", "--bin", "waypost"]);
    native.args(["--test", "examples"]);
    for binary in test_binaries {
        native.args(["--bin", binary]);
    }
    run(&mut native)
}

fn modules(places: &Places, ui: &Ui, scope: Scope) -> Result<()> {
    let toolchain = WasmToolchain::required()?;
    let target = toolchain.cargo_build(places).1.join(WASM_TARGET).join("wasm");
    let compile = |package: &str, features: &str| -> Result<Vec<u8>> {
        let (mut command, _) = toolchain.cargo_build(places);
        command.args(["--profile", "wasm", "--package", package, "--features", features]);
        run(&mut command)?;
        // Cargo gives a wasm module the same name whatever its features are: it is taken before the next build replaces
        // it.
        read(&target.join(format!("{}.wasm", package.replace('-', "_"))))
    };
    let make = |name: &str, features: &str, rules: &str| -> Result<()> {
        let rules_file = places.root.join("plugin").join(rules);
        let rules = fs::read_to_string(&rules_file)
            .map_err(anyhow::Error::from)
            .and_then(|text| ExportRules::parse(&text))
            .with_context(|| format!("cannot read the rules in {}", rules_file.display()))?;
        let wasm = strip_exports(&compile("waypost-plugin", features)?, &rules)
            .with_context(|| format!("cannot apply {} to {name}", rules_file.display()))?;
        keep(places, ui, name, &wasm)
    };
    make("waypost_plugin.wasm", "", "exports.txt")?;
    make("waypost_plugin_lean.wasm", "lean", "exports-lean.txt")?;
    if scope == Scope::All {
        make("waypost_plugin_trap.wasm", "trap-for-test", "exports.txt")?;
        keep(places, ui, "noop_filter.wasm", &compile("waypost-noop-filter", "")?)?;
    }
    Ok(())
}

fn keep(places: &Places, ui: &Ui, name: &str, wasm: &[u8]) -> Result<()> {
    let to = places.artefacts().join(name);
    install(wasm, &to, false)?;
    ui.closing(true, &format!("{:<58} {:>7} kB", to.display(), wasm.len() / 1000));
    Ok(())
}

fn read(path: &std::path::Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cargo built no {}", path.display()))
}
