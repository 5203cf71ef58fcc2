//! The command line: the built binary on a real etcd, straight and by way of a real agent.

mod agent;
mod generated;
mod hold;
mod rules;
mod straight;
#[cfg(feature = "components")]
mod strategy;
mod support;
