//! The binary `waypost`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use waypost_agent::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("waypost: {error:#}");
            ExitCode::FAILURE
        }
    }
}
