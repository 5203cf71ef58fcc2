//! The binary `waypost`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use waypost_agent::{cli::Cli, panics};

fn main() -> ExitCode {
    panics::end_the_process();
    Cli::parse().run()
}
