//! The example strategies: compiled to core modules, which the agent's own `waypost strategy pack` makes components of,
//! and the one in Python, by componentize-py. All below `target/waypost/strategies`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::pins::{COMPONENTIZE_PY, WASM_TARGET};
use crate::places::{Places, Scratch};
use crate::process::{run, run_quietly};
use crate::toolchain::WasmToolchain;
use crate::ui::Ui;

/// Those in Rust: folders of `examples/strategies`, and the one of the tests.
const RUST: [&str; 4] = ["canary", "capacity", "outcomes", "misbehaving"];
/// What the crate that `waypost strategy new` writes is called here.
const NEW: &str = "fresh";

/// Builds the examples. The agent is built already.
pub fn build(places: &Places, ui: &Ui) -> Result<()> {
    ui.heading("building the example strategies (components)");
    let (mut command, target) = WasmToolchain::required()?.cargo_build(places);
    command.args(["--profile", "wasm"]);
    for name in RUST {
        command.arg("--package").arg(format!("waypost-strategy-{name}"));
    }
    run(&mut command)?;
    for name in RUST {
        let module = target.join(WASM_TARGET).join("wasm").join(format!("waypost_strategy_{name}.wasm"));
        pack(places, ui, &module, name)?;
    }
    python(places, ui)
}

/// Writes a new strategy with `waypost strategy new` and builds it as its README says, with our versions of its
/// dependencies.
pub fn build_a_new_one(places: &Places, ui: &Ui) -> Result<()> {
    let folder = places.artefacts().join("new-strategy");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    run_quietly(waypost(places).args(["strategy", "new", NEW, "--directory"]).arg(&folder))?;
    let lock = folder.join("Cargo.lock");
    fs::copy(places.root.join("Cargo.lock"), &lock).with_context(|| format!("cannot write {}", lock.display()))?;
    let (mut command, target) = WasmToolchain::required()?.cargo_build(places);
    run(command
        .args(["--release", "--manifest-path"])
        .arg(folder.join("Cargo.toml"))
        .env("CARGO_TARGET_DIR", &target))?;
    pack(places, ui, &target.join(WASM_TARGET).join("release").join(format!("{NEW}.wasm")), NEW)
}

/// The one in Python. That takes some seconds: it is left alone if it is newer than all that it is made of.
fn python(places: &Places, ui: &Ui) -> Result<()> {
    let source = places.root.join("examples/strategies/capacity-python");
    let contract = places.root.join("wit/strategy.wit");
    let tool = places.tools.join("python");
    let to = component(places, "capacity-python");
    let inputs =
        [source.join("capacity.py"), contract.clone(), places.tools.join("installed").join(COMPONENTIZE_PY.name)];
    if !is_newer(&to, &inputs) {
        // The Python inside leaves its bytecode beside the source.
        let scratch = Scratch::new(places.artefacts().join(format!("python-{}", std::process::id())))?;
        fs::copy(&inputs[0], scratch.path.join("capacity.py")).context("cannot copy the strategy in Python")?;
        run_quietly(
            Command::new("python3")
                .args(["-c", "import componentize_py; componentize_py.script()", "--wit-path"])
                .arg(&contract)
                .args(["--world", "strategy", "componentize", "--stub-wasi", "--python-path"])
                .arg(&scratch.path)
                .arg("--output")
                .arg(&to)
                .arg("capacity")
                .env("PYTHONPATH", &tool),
        )?;
    }
    say(ui, &to)
}

/// Whether a file is newer than all of these.
fn is_newer(file: &Path, than: &[PathBuf]) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let made = modified(file);
    made.is_some() && than.iter().all(|input| modified(input).is_some_and(|changed| Some(changed) < made))
}

fn pack(places: &Places, ui: &Ui, module: &Path, name: &str) -> Result<()> {
    let to = component(places, name);
    let folder = to.parent().context("it has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    run_quietly(waypost(places).args(["strategy", "pack"]).arg(module).arg("--output").arg(&to))?;
    say(ui, &to)
}

fn component(places: &Places, name: &str) -> PathBuf {
    places.artefacts().join("strategies").join(format!("{name}.wasm"))
}

fn waypost(places: &Places) -> Command {
    Command::new(places.release("waypost"))
}

fn say(ui: &Ui, path: &Path) -> Result<()> {
    let bytes = fs::metadata(path).with_context(|| format!("there is no {}", path.display()))?.len();
    ui.closing(true, &format!("{:<58} {:>7} kB", path.display(), bytes / 1000));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_depends_on_a_missing_file_or_a_newer_one_is_made_again() {
        let folder = std::env::temp_dir().join(format!("waypost-xtask-newer-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = |name: &str, seconds: u64| {
            let path = folder.join(name);
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            fs::File::create(&path).unwrap().set_modified(time).unwrap();
            path
        };
        let (older, made, newer) = (file("older", 1000), file("made", 2000), file("newer", 3000));
        assert!(is_newer(&made, std::slice::from_ref(&older)));
        assert!(!is_newer(&made, &[older.clone(), newer]));
        assert!(!is_newer(&made, &[folder.join("missing")]) && !is_newer(&folder.join("missing"), &[older]));
        fs::remove_dir_all(&folder).unwrap();
    }
}
