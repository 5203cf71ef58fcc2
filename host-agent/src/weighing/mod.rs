//! Runs the strategy components that policies name: when nodes change, when outcomes are in, when a component asked to be
//! asked again, and when its file was replaced. Never on the way of a request.
//!
//! ```text
//! effective catalog -- requests --> desk: debounce, which are due --> one worker per component, on a thread of its own
//!        ^                                                                 |
//!        +----------------------------- answers ---------------------------+
//! ```
//!
//! A component that hangs until its deadline, or takes half a minute to compile, holds up its own services alone.

//!
//! Without the feature `components` nothing runs, and policies' components have no say.

mod board;
#[cfg(feature = "components")]
mod desk;
#[cfg(feature = "components")]
mod source;
#[cfg(feature = "components")]
mod worker;

pub use self::board::{Board, ComponentState};
#[cfg(feature = "components")]
pub use self::desk::Weighing;
