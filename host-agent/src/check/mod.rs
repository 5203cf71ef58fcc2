//! Health checks: [`state`] decides from single probes, [`mod@probe`] makes them, [`schedule`] says when.

pub mod probe;
pub mod schedule;
pub mod state;

pub use probe::{ProbeError, probe};
pub use state::CheckState;
