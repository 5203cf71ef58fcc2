//! Faults on a world of real parts, the record of what came of them, and the rules that the record is held to.
//!
//! * [`history`]: what was intended, what etcd said, what mirrors and agents said, in one order of time.
//! * [`checker`]: the rules, as pure functions of a history.
//! * [`recorder`]: etcd's own word, watched apart from everything that is tested.
//! * [`world`]: etcd behind fault proxies, agents, and users of the registry in this process.
//! * [`scenarios`]: one fault after the other, by name; [`random`]: many of them from one seed.
pub mod access;
pub mod checker;
pub mod clock;
pub mod history;
pub mod random;
pub mod recorder;
pub mod scenarios;
pub mod users;
pub mod world;

pub use checker::{Verdict, check};
pub use history::{History, Log};
