//! `test`: runs the tests with their output shown, and adds up what `cargo test` says.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::places::Places;
use crate::process::cargo;
use crate::ui::{Ui, seconds};

/// What to run.
pub struct Selection {
    /// Unit and documentation tests.
    pub unit: bool,
    /// The tests in folders called `tests`: most start real etcd, real agents and real Envoy.
    pub end_to_end: bool,
    /// Only tests whose name contains this.
    pub filter: Option<String>,
}

/// Counts of finished tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that held.
    pub passed: usize,
    /// Those that did not.
    pub failed: usize,
    /// Those that were not run.
    pub ignored: usize,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// How many end-to-end tests run side by side: each starts a cluster of processes of its own and measures time.
pub const END_TO_END_THREADS: &str = "2";

/// Runs the selected tests in the release profile, which `build` has filled: they measure time and traffic, and two
/// profiles would compile everything twice.
pub fn test(places: &Places, ui: &Ui, selection: &Selection) -> Result<()> {
    let started = Instant::now();
    let mut total = Counts::default();
    let mut broken = Vec::new();
    let parts: [(&str, bool, &[&str], &[&str]); 3] = [
        ("unit tests", selection.unit, &["--lib", "--bins"], &[]),
        ("documentation tests", selection.unit, &["--doc"], &[]),
        (
            "integration and end-to-end tests",
            selection.end_to_end,
            &["--test", "*"],
            &["--test-threads", END_TO_END_THREADS],
        ),
    ];
    for (name, wanted, targets, harness) in parts {
        if !wanted {
            continue;
        }
        ui.heading(name);
        // The same packages each time, so that features are resolved the same way and nothing is compiled twice. The
        // no-op filter imports functions that only Envoy has.
        let mut command = cargo(&places.root);
        command
            .args(["test", "--release", "--workspace", "--exclude", "waypost-noop-filter", "--no-fail-fast"])
            .args(targets)
            .args(selection.filter.as_slice())
            .arg("--")
            .args(harness);
        if std::io::stdout().is_terminal() {
            command.args(["--color", "always"]);
        }
        let part = Instant::now();
        let (counts, ok) = run_counting(&mut command)?;
        total.add(counts);
        if !ok && counts.failed == 0 {
            broken.push(name);
        }
        let text = format!("{name}: {} passed, {} failed, {}", counts.passed, counts.failed, seconds(part.elapsed()));
        ui.closing(ok, &text);
    }
    println!(
        "{} passed, {} failed, {} ignored in {}",
        total.passed,
        total.failed,
        total.ignored,
        seconds(started.elapsed())
    );
    if !broken.is_empty() {
        bail!("did not run to the end: {}", broken.join(", "));
    }
    if total.failed > 0 {
        bail!("{} tests failed", total.failed);
    }
    if total.passed == 0 {
        bail!(
            "no test ran{}",
            selection.filter.as_ref().map_or(String::new(), |f| format!(": none is named like `{f}`"))
        );
    }
    Ok(())
}

/// Runs a `cargo test`, passes its output on line by line, and counts; false if it failed.
pub fn run_counting(command: &mut Command) -> Result<(Counts, bool)> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo test")?;
    let stdout = child.stdout.take().context("cargo test has no output")?;
    let mut counts = Counts::default();
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).context("cannot read what cargo test says")? > 0 {
        // Whoever read us may have gone (`| head`): the tests still run to their end.
        let _ = std::io::stdout().write_all(&line);
        let _ = std::io::stdout().flush();
        if let Some(found) = parse_result(&String::from_utf8_lossy(&line)) {
            counts.add(found);
        }
        line.clear();
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    Ok((counts, status.success()))
}

/// Reads libtest's closing line: `test result: ok. 3 passed; 0 failed; 1 ignored; ...`, coloured or not.
fn parse_result(line: &str) -> Option<Counts> {
    let rest = line.trim().strip_prefix("test result:")?;
    let count = |what: &str| -> Option<usize> {
        let before = rest.split(what).next().filter(|before| before.len() < rest.len())?;
        before.trim().rsplit([' ', ';']).next()?.parse().ok()
    };
    Some(Counts { passed: count("passed")?, failed: count("failed")?, ignored: count("ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_of_a_test_binary_is_read_coloured_or_not() {
        let plain = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";
        assert_eq!(parse_result(plain), Some(Counts { passed: 12, failed: 0, ignored: 1 }));
        let coloured = "test result: \x1b[31mFAILED\x1b[m. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(parse_result(coloured), Some(Counts { passed: 3, failed: 2, ignored: 0 }));
    }

    #[test]
    fn other_lines_count_for_nothing() {
        assert_eq!(parse_result("test a_test_that_passed ... ok"), None);
        assert_eq!(parse_result("test result: what is this"), None);
    }
}
