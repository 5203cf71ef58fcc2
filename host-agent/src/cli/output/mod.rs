//! What is written to stdout: tables and lines for people, JSON for programs.

pub(super) mod style;
pub(super) mod table;
pub(super) mod text;

use std::io::{self, Write as _};

use anyhow::Context as _;
use serde::Serialize;

pub(super) use self::{
    style::{Paint, Tone},
    table::{Align, Cell, Table},
};

/// Whether the reader still reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// What was written has been taken.
    Listens,
    /// It has gone, as `head` does: nothing more needs to be said.
    Gone,
}

/// Writes to stdout at once. A reader that has gone is no error.
pub(super) fn print(text: &str) -> anyhow::Result<Reader> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(Reader::Listens),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(error).context("cannot write to stdout"),
    }
}

/// One JSON document, as one line.
pub(super) fn json_line(document: &impl Serialize) -> anyhow::Result<String> {
    let mut line = serde_json::to_string(document).context("cannot be written as JSON")?;
    line.push('\n');
    Ok(line)
}

/// Prints one JSON document as one line.
pub(super) fn print_json(document: &impl Serialize) -> anyhow::Result<Reader> {
    print(&json_line(document)?)
}
