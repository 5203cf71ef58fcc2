//! Progress lines: one a step, aligned, with its duration; colour and rewriting on a terminal only.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Result;

/// How a step ended, when it did not fail.
pub enum Outcome {
    /// There was nothing to do.
    Ready(String),
    /// Something was done.
    Done(String),
}

/// Where progress goes: stderr, so that stdout stays the command's own.
pub struct Ui {
    terminal: bool,
    colour: bool,
    quiet_when_ready: bool,
}

impl Ui {
    /// `quiet_when_ready` leaves out steps that had nothing to do.
    pub fn new(quiet_when_ready: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let colour = terminal && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { terminal, colour, quiet_when_ready }
    }

    /// Runs one step behind one line. `doing` is shown while it runs, on a terminal.
    pub fn step(&self, name: &str, doing: &str, work: impl FnOnce() -> Result<Outcome>) -> Result<()> {
        if self.terminal {
            eprint!("  {} {name:<22} {doing} ...", self.paint("36", "…"));
            flush();
        }
        let started = Instant::now();
        let result = work();
        if self.terminal {
            eprint!("\r\x1b[2K");
        }
        let took = seconds(started.elapsed());
        match &result {
            Ok(Outcome::Ready(_)) if self.quiet_when_ready => flush(),
            Ok(Outcome::Ready(what)) => eprintln!("  {} {name:<22} {what}", self.paint("32", "✓")),
            Ok(Outcome::Done(what)) => eprintln!("  {} {name:<22} {what:<44} {took:>8}", self.paint("32", "✓")),
            Err(_) => eprintln!("  {} {name:<22} failed {took:>46}", self.paint("31", "✗")),
        }
        result.map(drop)
    }

    /// A heading above output that a child writes itself.
    pub fn heading(&self, text: &str) {
        eprintln!("{}", self.paint("1", &format!("== {text}")));
    }

    /// The closing line of such a part.
    pub fn closing(&self, ok: bool, text: &str) {
        let (code, mark) = if ok { ("32", "✓") } else { ("31", "✗") };
        eprintln!("{} {text}", self.paint(code, mark));
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A duration as people read it: `0.4 s`, `12.0 s`, `3 min 05 s`.
pub fn seconds(duration: Duration) -> String {
    let whole = duration.as_secs();
    if whole >= 60 {
        format!("{} min {:02} s", whole / 60, whole % 60)
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

fn flush() {
    // A closed stderr must not stop the work.
    let _ = io::stderr().flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_say_them() {
        assert_eq!(seconds(Duration::from_millis(440)), "0.4 s");
        assert_eq!(seconds(Duration::from_secs(59)), "59.0 s");
        assert_eq!(seconds(Duration::from_secs(185)), "3 min 05 s");
    }
}
