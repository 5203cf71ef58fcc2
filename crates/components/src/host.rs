//! What a component can call, a log and two clocks, and the meter of its memory.

use std::{
    sync::LazyLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use wasmtime::{
    ResourceLimiter, StoreContextMut,
    component::{ComponentType, Lift, Linker},
};

use crate::limits::{INSTANCES, TABLE_ENTRIES};

/// The interfaces that a component may import, without their version.
pub(crate) const IMPORTS: [&str; 2] = ["waypost:strategy/host", "waypost:strategy/types"];
/// The contract's version.
pub(crate) const VERSION: &str = "0.1.0";

/// Longest line of the log, and longest reason of a refusal, in bytes.
pub(crate) const LINE_BYTES: usize = 1024;
/// Lines that may be written at once.
const BURST: u32 = 20;
/// For how long each of them counts.
const PER_LINE: Duration = Duration::from_secs(1);

/// How much a line of the log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
pub enum Level {
    /// For whoever looks closely.
    #[component(name = "debug")]
    Debug,
    /// Worth knowing.
    #[component(name = "info")]
    Info,
    /// May need a look.
    #[component(name = "warning")]
    Warning,
    /// Needs a look.
    #[component(name = "error")]
    Error,
}

impl Level {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A line that a component wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// How much it matters.
    pub level: Level,
    /// At most 1 KiB, without control characters.
    pub message: String,
}

/// What a component wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// The lines, in their order.
    pub lines: Vec<Line>,
    /// How many were dropped since there were too many.
    pub dropped: u64,
}

/// How many lines may still be written: a bucket that fills with time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogBudget {
    lines: u32,
    filled: Instant,
}

impl LogBudget {
    pub(crate) fn full(now: Instant) -> Self {
        Self { lines: BURST, filled: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let due = now.saturating_duration_since(self.filled).as_nanos() / PER_LINE.as_nanos();
        match u32::try_from(due) {
            Ok(due) if self.lines.saturating_add(due) < BURST => {
                self.lines += due;
                self.filled += PER_LINE * due;
            }
            _ => *self = Self::full(now),
        }
        let left = self.lines > 0;
        self.lines = self.lines.saturating_sub(1);
        left
    }
}

/// What people are shown of a component's text: a part of it, in one line, with nothing that moves a terminal's cursor.
pub(crate) fn shown(text: &str) -> String {
    let cut = &text[..text.floor_char_boundary(LINE_BYTES)];
    cut.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// How much an instance has taken, and of what it was denied more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter {
    limit: usize,
    memory: usize,
    table_entries: usize,
    denied: bool,
}

impl Meter {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, memory: 0, table_entries: 0, denied: false }
    }

    /// Bytes of linear memory. They never become fewer.
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    /// Whether it asked for more than it may have.
    pub(crate) fn denied(&self) -> bool {
        self.denied
    }

    /// Takes what a memory or table grows by, if that leaves the total within the limit.
    fn grow(total: &mut usize, limit: usize, current: usize, desired: usize) -> bool {
        let next = total.saturating_add(desired.saturating_sub(current));
        let allowed = next <= limit;
        if allowed {
            *total = next;
        }
        allowed
    }
}

impl ResourceLimiter for Meter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let allowed = Self::grow(&mut self.memory, self.limit, current, desired);
        self.denied |= !allowed;
        Ok(allowed)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let allowed = Self::grow(&mut self.table_entries, TABLE_ENTRIES, current, desired);
        self.denied |= !allowed;
        Ok(allowed)
    }

    fn instances(&self) -> usize {
        INSTANCES
    }

    fn tables(&self) -> usize {
        INSTANCES
    }

    fn memories(&self) -> usize {
        INSTANCES
    }
}

/// What belongs to one instance.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) meter: Meter,
    pub(crate) budget: LogBudget,
    pub(crate) log: Log,
}

impl State {
    fn write(&mut self, level: Level, message: &str, now: Instant) {
        if self.budget.take(now) {
            self.log.lines.push(Line { level, message: shown(message) });
        } else {
            self.log.dropped += 1;
        }
    }
}

/// Gives components what they may import.
pub(crate) fn provide(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);
    LazyLock::force(&STARTED);

    let [host, types] = IMPORTS.map(|name| format!("{name}@{VERSION}"));
    linker.instance(&types)?;
    let mut host = linker.instance(&host)?;
    host.func_wrap("log", |mut store: StoreContextMut<'_, State>, (level, message): (Level, String)| {
        store.data_mut().write(level, &message, Instant::now());
        Ok(())
    })?;
    host.func_wrap("monotonic-now", |_: StoreContextMut<'_, State>, (): ()| {
        Ok((u64::try_from(STARTED.elapsed().as_nanos()).unwrap_or(u64::MAX),))
    })?;
    host.func_wrap("wall-now", |_: StoreContextMut<'_, State>, (): ()| {
        // A clock before 1970 says nothing; 0 is what people will understand.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok((u64::try_from(since.as_millis()).unwrap_or(u64::MAX),))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_beyond_the_budget_are_counted_until_time_has_passed() {
        let start = Instant::now();
        let mut state = State { meter: Meter::new(0), budget: LogBudget::full(start), log: Log::default() };
        (0..25).for_each(|n| state.write(Level::Info, &n.to_string(), start));
        assert_eq!((state.log.lines.len(), state.log.dropped), (20, 5));
        assert_eq!(state.log.lines[19], Line { level: Level::Info, message: "19".to_owned() });
        (0..5).for_each(|_| state.write(Level::Error, "later", start + Duration::from_millis(2500)));
        assert_eq!((state.log.lines.len(), state.log.dropped), (22, 8));
        (0..5).for_each(|_| state.write(Level::Error, "later", start + Duration::from_secs(3)));
        assert_eq!((state.log.lines.len(), state.log.dropped), (23, 12), "the half second was not lost");
        (0..50).for_each(|_| state.write(Level::Error, "much later", start + Duration::from_secs(1_000_000)));
        assert_eq!(state.log.lines.len(), 43);
    }

    #[test]
    fn a_line_is_cut_and_cannot_move_the_cursor() {
        assert_eq!(shown("a\x1b[2Jb\nc\u{9b}d"), "a [2Jb c d");
        let long = shown(&"ä".repeat(1000));
        assert_eq!(long, "ä".repeat(512));
        assert_eq!(shown(&format!("x{}", "ä".repeat(1000))).len(), 1023);
    }

    proptest! {
        #[test]
        fn the_meter_never_lets_the_total_pass_the_limit(
            steps in prop::collection::vec((0..1000usize, 0..1000usize), 0..50),
        ) {
            let mut meter = Meter::new(2000);
            let mut taken = 0;
            for (current, more) in steps {
                let allowed = meter.memory_growing(current, current + more, None).unwrap();
                prop_assert_eq!(allowed, taken + more <= 2000);
                taken += if allowed { more } else { 0 };
                prop_assert_eq!(meter.memory(), taken);
            }
        }
    }
}
