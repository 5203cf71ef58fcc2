//! Picking algorithms: pure, without I/O, clock or randomness of their own.
//!
//! Seeds and random numbers are passed in, so that a test can repeat a run and two workers can be kept from marching in
//! step. Every pick is O(1); weights are 0 to 2^32-1, and a node of weight 0 is never picked.
//!
//! * [`WeightedRoundRobin`]: exact proportions, with alternatives for retries, for one thread.
//! * [`Picker`]: one of the strategies named by [`Strategy`], for any number of threads: [`Random`],
//!   [`WeightedRandom`], [`RoundRobin`], [`SharedWeightedRoundRobin`].
#![forbid(unsafe_code)]
#![deny(missing_docs)]
// The filter calls this for every request, and a panic there takes the worker's VM down.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod chosen;
mod histogram;
mod maglev;
mod node;
mod outcome;
mod pool;
mod random;
mod round_robin;
mod selector;
mod settings;
mod shared_balancer;
mod shared_weighted_round_robin;
mod slow_start;
mod strategy;
mod weighted_random;
mod weighted_round_robin;

pub use chosen::CHOICES;
pub use histogram::Histogram;
pub use node::{Health, NodeView};
pub use outcome::{Outcome, OutcomeKind};
pub use pool::{Pool, Slot};
pub use random::Random;
pub use round_robin::RoundRobin;
pub use selector::{Ask, Selector};
pub use settings::{Algorithm, Ejection, Locality, Settings, SuccessRate};
pub use shared_balancer::{Picked, SharedBalancer};
pub use shared_weighted_round_robin::SharedWeightedRoundRobin;
pub use slow_start::slow_start;
pub use strategy::{Picker, Strategy, UnknownStrategy};
pub use weighted_random::WeightedRandom;
pub use weighted_round_robin::WeightedRoundRobin;
