//! The proxy-wasm filter that picks the upstream node of every request.
//!
//! Each of Envoy's threads runs one VM of it. The VM holds a copy of the catalog ([`services`]), which the agent keeps
//! up to date over a stream ([`stream`]) and which a VM that replaces a crashed one finds in Envoy's shared data
//! ([`shared`]). For a request it names the service, by routes in etcd if it is told to, picks as the service's policy says
//! ([`service`]), and writes the candidates ([`filter`]). What becomes of requests is told to the pickers and, once a
//! second, to the agent ([`outcomes`]).
//!
//! All of that is plain code against the traits in [`host`], and tested natively. Only `abi`, which exists in the
//! module alone, knows proxy-wasm.
//!
//! Nothing here may panic: a panic takes down the VM and with it the requests of its thread that are under way.
#![deny(missing_docs, unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::unreachable,
        clippy::integer_division_remainder_used
    )
)]

#[cfg(target_arch = "wasm32")]
mod abi;
pub mod config;
pub mod counters;
pub mod filter;
pub mod host;
pub mod outcomes;
pub mod service;
pub mod services;
pub mod shared;
pub mod stream;
mod target;
mod view;
