//! Words and figures in output: times, shares, counts, and text of others made safe for a terminal.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Text of others, with what a terminal would obey written out.
pub(in crate::cli) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// Time of the day in UTC, as the agent's logs have it: `06:15:13.120`.
pub(in crate::cli) fn clock(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let second = since.as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}.{:03}", second / 3_600, second / 60 % 60, second % 60, since.subsec_millis())
}

/// A share as people read it: `57.1 %`.
pub(in crate::cli) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A number and its noun: `1 node`, `3 nodes`.
pub(in crate::cli) fn count(number: usize, noun: &str) -> String {
    let end = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{end}")
}

/// How long something has lasted, in its two largest units: `350 ms`, `12 s`, `3 min 20 s`, `2 d 5 h`.
pub(in crate::cli) fn lasted(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// Bytes in the unit that suits them: `12.3 MiB`.
pub(in crate::cli) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // The precision of a float is far beyond the one decimal that is shown.
    let mut value = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_that_of_utc() {
        let at = |ms| clock(UNIX_EPOCH + Duration::from_millis(ms));
        assert_eq!(at(0), "00:00:00.000");
        assert_eq!(at(86_400_000 + 22_513_120), "06:15:13.120");
    }

    #[test]
    fn figures_carry_their_units() {
        assert_eq!(percent(4.0 / 7.0), "57.1 %");
        assert_eq!((count(1, "node"), count(0, "node")), ("1 node".into(), "0 nodes".into()));
        assert_eq!(lasted(Duration::from_millis(350)), "350 ms");
        assert_eq!(lasted(Duration::from_secs(200)), "3 min 20 s");
        assert_eq!(lasted(Duration::from_secs(190_800)), "2 d 5 h");
        assert_eq!((bytes(17), bytes(20_480), bytes(3 << 30)), ("17 B".into(), "20.0 KiB".into(), "3.0 GiB".into()));
    }
}
