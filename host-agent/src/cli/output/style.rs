//! Colour: on a terminal only, and not where `NO_COLOR` or a dumb terminal forbids it.

use std::{
    env,
    ffi::OsStr,
    io::{self, IsTerminal as _},
};

use anstyle::{AnsiColor, Style};

/// What a piece of text is to the reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) enum Tone {
    /// Like everything else.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// To be looked at.
    Warning,
    /// Wrong.
    Bad,
    /// Beside the point.
    Faint,
    /// A heading, or what a line is about.
    Strong,
}

/// Paints, or leaves text as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Paint {
    colour: bool,
}

impl Paint {
    /// Leaves everything plain.
    #[cfg(test)]
    pub(in crate::cli) const PLAIN: Self = Self { colour: false };

    /// What fits stdout.
    pub(in crate::cli) fn stdout() -> Self {
        let (no_color, term) = (env::var_os("NO_COLOR"), env::var_os("TERM"));
        Self::fitting(io::stdout().is_terminal(), no_color.as_deref(), term.as_deref())
    }

    fn fitting(terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> Self {
        let forbidden = no_color.is_some_and(|value| !value.is_empty()) || term.is_some_and(|term| term == "dumb");
        Self { colour: terminal && !forbidden }
    }

    /// The text in its tone.
    pub(in crate::cli) fn paint(self, tone: Tone, text: &str) -> String {
        let style = match tone {
            _ if !self.colour => Style::new(),
            Tone::Plain => Style::new(),
            Tone::Good => AnsiColor::Green.on_default(),
            Tone::Warning => AnsiColor::Yellow.on_default(),
            Tone::Bad => AnsiColor::Red.on_default().bold(),
            Tone::Faint => Style::new().dimmed(),
            Tone::Strong => Style::new().bold(),
        };
        format!("{style}{text}{style:#}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_for_terminals_that_take_it() {
        let fitting = |terminal, no_color: Option<&str>, term: Option<&str>| {
            Paint::fitting(terminal, no_color.map(OsStr::new), term.map(OsStr::new)).colour
        };
        assert!(fitting(true, None, Some("xterm")));
        assert!(fitting(true, Some(""), Some("xterm")), "an empty NO_COLOR forbids nothing");
        assert!(!fitting(true, Some("1"), Some("xterm")));
        assert!(!fitting(true, None, Some("dumb")));
        assert!(!fitting(false, None, Some("xterm")));
    }

    #[test]
    fn plain_text_stays_as_it_is() {
        assert_eq!(Paint { colour: true }.paint(Tone::Good, "up"), "\u{1b}[32mup\u{1b}[0m");
        assert_eq!(Paint { colour: true }.paint(Tone::Plain, "up"), "up");
        assert_eq!(Paint::PLAIN.paint(Tone::Bad, "down"), "down");
    }
}
