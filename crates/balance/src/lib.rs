//! Picking algorithms: pure, without I/O, clock or randomness of their own.
//!
//! Seeds are passed in, so that a test can repeat a run and two workers can be kept from marching in step.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
// The filter calls this for every request, and a panic there takes the worker's VM down.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod weighted_round_robin;

pub use weighted_round_robin::{CHOICES, WeightedRoundRobin};
