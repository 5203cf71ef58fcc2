//! The catalog: what Waypost knows of services and their nodes, and how that travels.
//!
//! * [`model`]: nodes, services with their policies, routes and the catalog, with content hashes that can be kept up to date node by node.
//! * [`wire`]: the protobuf messages, and the limits every decoder holds them to.
//! * [`sender`]: a catalog, or the difference of two, as bounded messages.
//! * [`replica`]: the receiving side, a state machine that applies messages and says when something does not add up.
//!
//! Nothing here does I/O, and nothing needs a runtime: the crate builds for the filter's VM and for the agent.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod model;
pub mod replica;
pub mod sender;
pub mod wire;

pub use model::{Catalog, Change, Health, Node, Placement, Protocol, Routes, Service, ServiceName};
pub use replica::Replica;
