//! The Unix socket, and the catalog stream to the filters on it.
//!
//! * [`socket`]: binding it, so that a stale one is replaced and a live one is not.
//! * [`server`]: the gRPC server with both services, the catalog stream and xDS.
//! * [`coordination`]: which of the two learns of a change first.
//! * [`outbox`]: the bounded way to one client, and what happens to one that does not read.
//! * [`metrics`]: what is counted of both services.

pub mod coordination;
pub mod metrics;
pub mod outbox;
pub mod server;
pub mod socket;

mod session;
