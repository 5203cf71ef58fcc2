//! Strategies as WebAssembly components: what `wit/strategy.wit` promises, kept.
//!
//! * [`model`]: the contract's question and answer.
//! * [`engine`]: compiles components and refuses what does not keep to the contract.
//! * [`runner`]: asks one, under a deadline and a memory limit, and checks its answer.
//! * [`directory`] and [`parts`]: where components come from, files and keys of etcd.
//! * [`strategies`]: the ones that policies name, compiled once, the last good one kept.
//! * [`pack`]: a core module becomes a component. [`trial`]: a component is tried by hand, on [`nodes_file`].
//!
//! Everything here blocks, and compiles for seconds if the component is large: it belongs on a thread of its own, never
//! on that of a request. Nothing here needs a runtime, reads the configuration or writes to the log: what components say
//! is handed over with their answer.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod directory;
pub mod engine;
mod hash;
mod host;
pub mod limits;
pub mod model;
pub mod nodes_file;
pub mod pack;
pub mod parts;
pub mod runner;
pub mod strategies;
#[cfg(test)]
mod testing;
mod ticker;
pub mod trial;

pub use engine::{Component, Engine, LoadError};
pub use hash::{Hash, InvalidHash};
pub use host::{Level, Line, Log};
pub use limits::Limits;
pub use model::{Answer, Decision, Health, Input, Latency, Locality, Node, Outcomes};
pub use runner::{Nonsense, RunError, Runner};
pub use strategies::{Reference, Strategies};

/// The contract, as authors of strategies get it.
pub const WIT: &str = include_str!("../../../wit/strategy.wit");
