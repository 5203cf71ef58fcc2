//! Health checks: [`runner`] keeps one going, [`state`] decides from single outcomes, [`mod@probe`] gets them,
//! [`schedule`] says when, [`report`] is what can be read of the last one.

pub mod probe;
pub mod report;
pub mod runner;
pub mod schedule;
pub mod state;

pub use probe::{ProbeError, probe};
pub use report::{CheckReport, CheckStatus};
pub use runner::{Beat, Runner};
pub use state::CheckState;
