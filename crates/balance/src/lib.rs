//! Picking algorithms: pure, without I/O, clock or randomness of their own.
//!
//! Seeds, random numbers and the time are passed in, so that a test can repeat a run and two workers can be kept from
//! marching in step. A pick is O(1) and allocates nothing; weights are 0 to 2^32-1, and a node of weight 0 is never picked.
//!
//! # By weight alone
//! * [`WeightedRoundRobin`]: exact proportions, with alternatives for retries, for one thread.
//! * [`Picker`]: one of the [plain](Strategy::PLAIN) strategies, for any number of threads and without a lock:
//!   [`Random`], [`WeightedRandom`], [`RoundRobin`], [`SharedWeightedRoundRobin`].
//!
//! # By everything that is known
//! A service has a [`Pool`], which keeps what requests showed of its nodes (in flight, latency, ejection) whatever else
//! changes, and for itself and each of its subsets a [`Selector`], which is rebuilt when nodes or ejections change.
//! [`Settings`] say how. [`SharedBalancer`] is both behind a mutex, for threads.
//!
//! ```
//! use std::time::Duration;
//!
//! use waypost_balance::{Ask, CHOICES, Ejection, NodeView, Outcome, Pool, Selector, Settings};
//!
//! let settings = Settings { ejection: Some(Ejection::default()), ..Settings::default() };
//! let nodes = [NodeView::new(0x1234, 1), NodeView::new(0x5678, 3)];
//! let mut pool = Pool::new();
//! let slots = pool.sync(nodes.iter().map(|node| node.key), Duration::ZERO);
//! let mut selector = Selector::new(&nodes, &slots, &pool, &settings, 7, true, None);
//!
//! // For each request:
//! let now = Duration::from_millis(1);
//! let mut choices = [0; CHOICES];
//! let count = selector.choose(&pool, &Ask { now, random: 42, ..Ask::default() }, &mut choices);
//! assert_eq!(count, 2, "the first choice and the only alternative");
//! let slot = slots[choices[0]];
//! pool.started(slot);
//! let took = Duration::from_millis(5);
//! let changed = pool.ended(slot, Outcome::success(took), now + took, &settings);
//!
//! // Now and then, and whenever an end or a tick says that availability changed:
//! if changed || pool.tick(now + took, &settings) {
//!     selector = Selector::new(&nodes, &slots, &pool, &settings, 7, true, Some(selector));
//! }
//! # selector.advance(0);
//! ```
//!
//! A choice is made in this order:
//! 1. Nodes of weight 0 and draining ones count for nothing. Of the rest the healthy ones may be picked: passing and not
//!    ejected. Where [too few](Settings::panic_threshold) are, all may.
//! 2. Priority levels get their parts by how many of their nodes are healthy, and in each the zones theirs, as Envoy
//!    defines both. By a random number, or by the request's hash if the strategy hashes, one level and zone is taken.
//! 3. The strategy chooses in there. Before that come the node that the client [had before](Ask::preferred), and an ejected
//!    node to which a probe is due.
//! 4. Alternatives come from the same zone, then from the same level, then from others.
//!
//! | strategy | first choice | needs |
//! |---|---|---|
//! | random, weighted random | drawn, for weights from an alias table | - |
//! | round robin, weighted round robin | in turn, for weights by a static stride | - |
//! | least request | the least of some drawn by weight, by requests in flight / weight | outcomes |
//! | peak EWMA | the lower of two drawn by weight, by latency x (1 + in flight x mean weight / weight) | outcomes |
//! | consistent hashing | who has the hash's place in a table (weighted Maglev), or the next one whose load is bounded | a hash |
//!
//! Beside them: [`slow_start`], by which a new node gets its weight bit by bit, and [`Histogram`] for latencies.
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
