//! What the user sees: lines that stay, and on a terminal a block below them that is redrawn in place.
use std::env;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use crate::model::{Model, State};
use crate::steps::Verdict;
use crate::traffic::{RATES, Traffic};

/// The span that the share seen is taken from.
const RECENT: Duration = Duration::from_secs(3);

/// Standard output.
pub struct Screen {
    terminal: bool,
    colour: bool,
    /// Lines of the block that the cursor stands below.
    drawn: usize,
}

/// How a piece of text looks where there is colour.
#[derive(Clone, Copy)]
pub enum Look {
    Strong,
    Faint,
    Good,
    Bad,
    Odd,
}

impl Screen {
    pub fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        let colour = terminal && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { terminal, colour, drawn: 0 }
    }

    /// Whether somebody watches.
    pub fn terminal(&self) -> bool {
        self.terminal
    }

    /// Text in a look.
    pub fn paint(&self, look: Look, text: &str) -> String {
        let code = match look {
            Look::Strong => "1",
            Look::Faint => "2",
            Look::Good => "32",
            Look::Bad => "31;1",
            Look::Odd => "33",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Lines that stay, above the block.
    pub fn print(&mut self, lines: &[String]) {
        let text = self.erase() + &lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        write(&text);
    }

    /// Replaces the block; on anything but a terminal there is none.
    pub fn redraw(&mut self, lines: &[String]) {
        if !self.terminal {
            return;
        }
        // Without line wrapping a narrow window cuts lines off instead of breaking the count of them.
        let block: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let text = format!("{}\x1b[?7l{block}\x1b[?7h", self.erase());
        self.drawn = lines.len();
        write(&text);
    }

    /// Leaves the block as it is: what comes next stands below it.
    pub fn leave(&mut self) {
        self.drawn = 0;
    }

    fn erase(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\r\x1b[0J"),
        }
    }

    /// The nodes and what they get.
    pub fn table(&self, model: &Model, traffic: &Traffic) -> Vec<String> {
        let head = format!(
            "  {:<8} {:<9} {:<16} {:<8} {:>6} {:>9} {:>8} {:>10} {:>13}",
            "service", "node", "address", "state", "weight", "expected", "seen", "requests", "failed tries"
        );
        let mut lines = vec![self.paint(Look::Strong, &head)];
        for (service, _) in RATES {
            let expected = model.expected(service);
            let from = traffic.now().saturating_sub(RECENT);
            let (seen, _) = traffic.read(service, |series| series.shares(from));
            for (index, node) in model.nodes.iter().filter(|node| node.service == service).enumerate() {
                let expected = expected.get(node.name).copied().unwrap_or(0.0);
                let seen = seen.get(node.name).copied().unwrap_or(0.0);
                let address = node.address.to_string();
                let tries = traffic.tries(|tries| tries.failed(&address));
                let answers = traffic.read(service, |series| series.answers(node.name));
                let look = if (seen - expected).abs() < 0.03 { Look::Good } else { Look::Odd };
                lines.push(format!(
                    "  {:<8} {:<9} {address:<16} {} {:>6} {:>9} {} {:>10} {:>13}",
                    if index == 0 { service } else { "" },
                    node.name,
                    self.state(node.state),
                    node.weight,
                    percent(expected),
                    self.paint(look, &format!("{:>8}", percent(seen))),
                    grouped(answers),
                    grouped(tries),
                ));
            }
        }
        let (requests, failed) = traffic.totals();
        let look = if failed == 0 { Look::Good } else { Look::Bad };
        let failed = self.paint(look, &format!("{} failed", grouped(failed)));
        let note = "a failed try was repeated on the next candidate";
        lines.push(format!("  {} requests, {failed}   {}", grouped(requests), self.paint(Look::Faint, note)));
        lines
    }

    fn state(&self, state: State) -> String {
        match state {
            State::Serving => self.paint(Look::Good, &format!("{:<8}", "serving")),
            State::Down => self.paint(Look::Bad, &format!("{:<8}", "down")),
            State::Drained => self.paint(Look::Odd, &format!("{:<8}", "drained")),
        }
    }

    /// A step and how it went.
    pub fn verdict(&self, number: usize, verdict: &Verdict) -> Vec<String> {
        let mark = if verdict.met { self.paint(Look::Good, "ok     ") } else { self.paint(Look::Bad, "NOT MET") };
        vec![
            format!("{mark}  {}", self.paint(Look::Strong, &format!("{number}. {}", verdict.what))),
            format!("         stated  {}", verdict.stated),
            format!("         seen    {}", verdict.seen),
        ]
    }
}

/// `16.7 %`
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A difference of shares: `0.4 points`
pub fn points(difference: f64) -> String {
    format!("{:.1} points", difference * 100.0)
}

/// `0.31 s`
pub fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// `12 345`
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(" ")
}

/// Whoever read us may have gone (`| head`): the demo ends as it would otherwise.
fn write(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(
            [grouped(0), grouped(999), grouped(1_000), grouped(12_345_678)],
            ["0", "999", "1 000", "12 345 678"]
        );
        assert_eq!(
            (percent(1.0 / 6.0), seconds(Duration::from_millis(305))),
            ("16.7 %".to_owned(), "0.30 s".to_owned())
        );
    }
}
