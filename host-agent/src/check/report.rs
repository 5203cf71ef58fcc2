//! What a check said last, bounded: a probe may meet a service or a command that never stops talking.

use std::time::{Duration, SystemTime};

/// Most of an output's bytes that are kept of its beginning, and as many again of its end.
const KEPT: usize = 2 * 1024;

/// A probe's outcome, or what the application reported of itself, or that it did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// Whether it speaks for the service. What that makes of the service's health is for its thresholds to say.
    pub status: CheckStatus,
    /// What was answered, printed or reported, or why there was nothing; a few KiB at most.
    pub output: String,
    /// When.
    pub at: SystemTime,
    /// How long it took to find out.
    pub took: Duration,
}

/// Whether a check's single outcome speaks for the service or against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckStatus {
    /// For it.
    Passed,
    /// Against it.
    Failed,
}

impl CheckStatus {
    /// Of a probe that passed or did not.
    pub fn of(passed: bool) -> Self {
        if passed { Self::Passed } else { Self::Failed }
    }

    /// As it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
        }
    }
}

/// The beginning and the end of an output of any length.
#[derive(Debug, Default)]
pub struct Excerpt {
    head: Vec<u8>,
    /// What came after the head: at least its last [`KEPT`] bytes, and not much more.
    tail: Vec<u8>,
    left_out: usize,
}

impl Excerpt {
    /// Takes in what was said next.
    pub fn push(&mut self, bytes: &[u8]) {
        let (head, rest) = bytes.split_at(bytes.len().min(KEPT - self.head.len()));
        self.head.extend_from_slice(head);
        // Of one long piece only the end can matter.
        let skipped = rest.len().saturating_sub(KEPT);
        self.tail.extend_from_slice(&rest[skipped..]);
        self.left_out += skipped;
        if self.tail.len() > 2 * KEPT {
            self.drop_all_but_the_end();
        }
    }

    fn drop_all_but_the_end(&mut self) {
        let beyond = self.tail.len().saturating_sub(KEPT);
        self.tail.drain(..beyond);
        self.left_out += beyond;
    }

    /// As text, without the line end; bytes that are no UTF-8 are replaced.
    pub fn into_text(mut self) -> String {
        self.drop_all_but_the_end();
        if self.left_out == 0 {
            self.head.append(&mut self.tail);
            return String::from_utf8_lossy(&self.head).trim_end().to_owned();
        }
        let (head, tail) = (String::from_utf8_lossy(&self.head), String::from_utf8_lossy(&self.tail));
        format!("{head}\n[{} bytes left out]\n{}", self.left_out, tail.trim_end())
    }
}

/// An output that is there as a whole, bounded.
pub fn excerpt(output: &str) -> String {
    let mut excerpt = Excerpt::default();
    excerpt.push(output.as_bytes());
    excerpt.into_text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_output_is_kept_as_it_is() {
        assert_eq!(excerpt(""), "");
        assert_eq!(excerpt("all is well\n"), "all is well");
        let most = "x".repeat(2 * KEPT);
        assert_eq!(excerpt(&most), most);
    }

    #[test]
    fn of_a_long_output_the_beginning_and_the_end_are_kept_however_it_comes() {
        let text: String = (0..10_000).map(|n| format!("{n:05}\n")).collect();
        let whole = excerpt(&text);
        assert!(whole.starts_with("00000\n00001\n") && whole.ends_with("09998\n09999"), "{whole}");
        let left_out = text.len() - 2 * KEPT;
        assert!(whole.contains(&format!("\n[{left_out} bytes left out]\n")), "{whole}");
        for piece in [1, 7, KEPT, 3 * KEPT] {
            let mut excerpt = Excerpt::default();
            text.as_bytes().chunks(piece).for_each(|piece| excerpt.push(piece));
            assert!(excerpt.tail.capacity() <= 8 * KEPT, "{}", excerpt.tail.capacity());
            assert_eq!(excerpt.into_text(), whole, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_is_no_text_is_replaced() {
        let mut excerpt = Excerpt::default();
        excerpt.push(b"a\xffb\n");
        assert_eq!(excerpt.into_text(), "a\u{fffd}b");
    }
}
