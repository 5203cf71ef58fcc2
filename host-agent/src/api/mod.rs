//! The local HTTP API: what the agent knows and does for this host's programs, under `/v1`.
//!
//! * [`types`]: the bodies of requests and answers, for the server, its clients and the OpenAPI document alike.

pub mod types;
