//! Developer commands: `cargo xtask setup`, `build`, `test`, `demo`, `bench`, `interop`, `chaos`.
//!
//! This crate imports nothing else of the workspace: it brings the protoc that the rest needs to be compiled.
#![forbid(unsafe_code)]

mod artefacts;
mod etcds;
mod exports;
mod interop;
mod pins;
mod places;
mod process;
mod setup;
mod strategies;
mod tests_run;
mod toolchain;
mod ui;

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::artefacts::Scope;
use crate::places::Places;
use crate::tests_run::Selection;
use crate::ui::Ui;

/// Waypost's developer commands. Each one first fetches and builds what it needs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Fetch the tools into .tools: Envoy, etcd, protoc, componentize-py, and the compiler's wasm target
    ///
    /// WAYPOST_WASM_TOOLCHAIN=rustup or =debian forces one of the two compilers for wasm.
    Setup {
        /// Also rustfmt, clippy and cargo-deny
        #[arg(long)]
        ci: bool,
    },
    /// Build the agent (target/release/waypost), the wasm modules and the example strategies (target/waypost)
    Build,
    /// Run the tests, unit and end-to-end, in the release profile
    Test {
        /// Only tests whose name contains this
        filter: Option<String>,
        /// Only unit and documentation tests
        #[arg(long, conflicts_with = "e2e")]
        unit: bool,
        /// Only integration and end-to-end tests, on real etcd and real Envoy
        #[arg(long)]
        e2e: bool,
    },
    /// Run it beside other frameworks' own Go libraries, and on etcd 3.4 and 3.6
    ///
    /// Needs Go and, for etcd 3.4, Debian's packages.
    Interop {
        /// Name what this machine cannot get, and pass without it
        #[arg(long)]
        if_available: bool,
    },
    /// Do every fault to etcd, its links and the agents, in rounds drawn from a seed, and judge what came of it
    ///
    /// Ends with the first round that breaks a promise of docs/robustness.md; the round's history is kept.
    Chaos {
        /// Draw the rounds from this; without it from a seed of its own, which is printed
        #[arg(long)]
        seed: Option<u64>,
        /// Begin no round after so many; one is run at least
        #[arg(long, default_value_t = 5.0)]
        minutes: f64,
        /// The folder of another version of etcd, with its etcd, etcdctl and, from 3.5 on, etcdutl
        #[arg(long, value_name = "FOLDER")]
        etcd: Option<PathBuf>,
        /// This fault alone, again and again
        #[arg(long, value_name = "NAME")]
        scenario: Option<String>,
    },
    /// Show it at work: etcd, two agents, five servers, Envoy, and what happens when things change and fail
    Demo,
    /// Print the figures: a request, a pick, a strategy's answer, a change, a registration, a lock, many of each, memory
    Bench {
        /// Short runs: rough figures in a few minutes
        #[arg(long)]
        quick: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    let places = Places::find()?;
    let ui = Ui::new(!matches!(task, Task::Setup { .. }));
    setup::setup(&places, &ui, matches!(task, Task::Setup { ci: true }))?;
    match task {
        Task::Setup { .. } => Ok(()),
        Task::Build => {
            artefacts::build(&places, &ui, Scope::All, &[])?;
            strategies::build(&places, &ui)
        }
        Task::Test { filter, unit, e2e } => {
            artefacts::build(&places, &ui, Scope::All, &[])?;
            strategies::build(&places, &ui)?;
            strategies::build_a_new_one(&places, &ui)?;
            tests_run::test(&places, &ui, &Selection { unit: !e2e, end_to_end: !unit, filter })
        }
        Task::Interop { if_available } => {
            artefacts::build(&places, &ui, Scope::Filter, &["interop"])?;
            interop::interop(&places, &ui, &places.release("interop"), if_available)
        }
        Task::Chaos { seed, minutes, etcd, scenario } => {
            artefacts::build(&places, &ui, Scope::Filter, &["chaos"])?;
            let seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish() >> 32);
            let mut chaos = program(&places, "chaos");
            chaos.arg((minutes.max(0.0) * 60.0).round().to_string()).arg(seed.to_string()).args(scenario);
            if let Some(folder) = etcd {
                let folder = folder.canonicalize().with_context(|| format!("there is no {}", folder.display()))?;
                chaos.env("WAYPOST_ETCD_BIN", folder);
            }
            Err(process::become_program(&mut chaos))
        }
        Task::Demo => {
            artefacts::build(&places, &ui, Scope::Filter, &["demo"])?;
            Err(process::become_program(&mut program(&places, "demo")))
        }
        Task::Bench { quick } => {
            artefacts::build(&places, &ui, Scope::All, &["bench"])?;
            strategies::build(&places, &ui)?;
            let quick = if quick { vec!["--quick"] } else { Vec::new() };
            for (heading, package, bench) in
                [("one pick", "waypost-balance", "pick"), ("one answer of a strategy", "waypost-components", "answer")]
            {
                ui.heading(heading);
                let mut command = process::cargo(&places.root);
                process::run(command.args(["bench", "--package", package, "--bench", bench, "--"]).args(&quick))?;
            }
            Err(process::become_program(program(&places, "bench").args(&quick)))
        }
    }
}

/// A release binary of `waypost-tests`, run in the checkout.
fn program(places: &Places, name: &str) -> Command {
    let mut command = Command::new(places.release(name));
    command.current_dir(&places.root);
    command
}
