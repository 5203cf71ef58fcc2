//! The local HTTP API of the built agent, on a real etcd, over the Unix socket and over TCP.

mod catalog;
mod client;
mod events;
mod locks;
mod maintenance;
mod openapi;
mod registrations;
mod values;
mod world;
