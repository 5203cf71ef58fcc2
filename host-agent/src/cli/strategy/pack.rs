//! `waypost strategy pack`: a core module becomes a component.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use waypost_components::{Limits, pack};

use super::{engine, read};
use crate::cli::output::{self, text};

#[derive(Debug, Args)]
pub(in crate::cli) struct Pack {
    /// What the compiler made: a core module, with the world that wit-bindgen has written into it
    #[arg(value_name = "MODULE")]
    module: PathBuf,
    /// Where to write the component
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Document {
    file: String,
    bytes: usize,
    sha256: String,
}

impl Pack {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let from = || self.module.display().to_string();
        let packed = pack::pack(&read(&self.module)?).with_context(from)?;
        let component = engine(Limits::default())?.compile(&packed).with_context(from)?;
        // An agent may be watching: it finds the old file or the new one, and never half of it.
        let next = self.output.with_extension(format!("new{}", std::process::id()));
        let written = fs::write(&next, &packed).and_then(|()| fs::rename(&next, &self.output));
        if written.is_err() {
            // What is half written is of no use; the error below says what went wrong.
            let _ = fs::remove_file(&next);
        }
        let file = self.output.display().to_string();
        written.with_context(|| format!("cannot write {file}"))?;
        let document = Document { file, bytes: component.bytes(), sha256: component.hash().to_string() };
        if self.json {
            output::print_json(&document)?;
        } else {
            let Document { file, bytes, sha256 } = document;
            output::print(&format!("{file}: {}, sha256 {sha256}\n", text::bytes(bytes as u64)))?;
        }
        Ok(())
    }
}
