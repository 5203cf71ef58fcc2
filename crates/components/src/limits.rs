//! What a component may use.

use std::time::Duration;

/// What a component may use. An engine has them for all its components; a runner may have its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For one answer, with the start of an instance if there is none yet.
    pub deadline: Duration,
    /// Bytes of linear memory of an instance, all its memories together.
    pub memory: usize,
    /// Bytes of a component: what is larger is not compiled.
    pub component: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { deadline: Duration::from_millis(100), memory: 64 << 20, component: 32 << 20 }
    }
}

/// Entries of an instance's tables, all of them together: functions that are called indirectly. CPython has 12,000.
pub(crate) const TABLE_ENTRIES: usize = 1 << 17;
/// Core instances, tables and memories of a component: one linked of many libraries has dozens, CPython about 30.
pub(crate) const INSTANCES: usize = 256;
