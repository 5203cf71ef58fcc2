//! Policies and routes: how operators say which node a request goes to.
//!
//! * [`Policy`]: how the nodes of one service are chosen among, the document `/waypost/policies/<service>`.
//! * [`Route`]: which requests go to which service, the document `/waypost/routes/<id>`; [`RouteTable`] finds the one
//!   that a request meets.
//! * [`RequestView`]: a request as both see it, read piece by piece and only as far as a rule needs it.
//! * [`HashKey`], [`Split`], [`StickyCookie`]: what of a request decides when it is to be decided alike again.
//! * [`Compiled`]: a policy as filters get it, with what only the agent knows.
//! * [`explain`](mod@explain): the same decisions with their reasons.
//! * [`schema`]: both documents as JSON Schema.
//!
//! A document is refused with everything that is wrong in it, each named with its path; one that is accepted has a
//! canonical form ([`Policy::to_json`], [`Route::to_json`]) that says the same. Nothing here does I/O or keeps a clock,
//! and random numbers are passed in: the crate builds for the filter's VM and for the agent.
#![forbid(unsafe_code)]
#![deny(missing_docs)]
// The filter calls this for every request, and a panic there takes the worker's VM down.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod compiled;
mod cookie;
mod duration;
pub mod explain;
mod hash_key;
mod json;
mod names;
mod nearest;
mod policy;
mod prefix_index;
mod priority;
mod problem;
mod reader;
mod request;
mod route;
pub mod schema;
mod split;
mod subsets;
mod table;

pub use compiled::{Compiled, zone_number};
pub use cookie::{StickyCookie, cookie};
pub use duration::{format_duration, parse_duration};
pub use explain::{Explanation, explain};
pub use hash_key::HashKey;
pub use policy::{
    Component, ComponentSource, ConsistentHash, Ejection, Locality, Policy, SlowStart, Strategy, SubsetArm, SuccessRate,
};
pub use priority::{MAX_LEVEL, Priority};
pub use problem::{Problem, Problems};
pub use request::{Remembering, RequestView};
pub use route::{Destination, HeaderMatch, HostPattern, Match, PathMatch, Route, Segment, Target};
pub use split::{Arm, Split, Sticky};
pub use subsets::{Predicate, SubsetChoice, Subsets};
pub use table::RouteTable;

/// The longest document, in bytes.
pub const MAX_DOCUMENT: usize = 64 * 1024;
/// The most subsets of a policy: one bit of a mask each.
pub const MAX_SUBSETS: usize = 64;
/// The most arms of a split.
pub const MAX_ARMS: usize = 64;
