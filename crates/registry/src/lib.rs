//! etcd as a service registry: registration that is never lost, and a mirror that never lies.
//!
//! * [`connection`]: one connection to one of several endpoints, the next one after a failure.
//! * [`registrar`]: keys under a lease, asserted for ever: whatever happens to etcd, they come back.
//! * [`address`]: this host's address, for what is registered.
//! * [`key_template`]: keys such as `/apps/{service}/{ip}/{pid}`.
//! * [`mirror`]: everything under a prefix, ranged and then watched, with every way out of step noticed.
//! * [`mod@format`]: how services and nodes are written in keys and values.
//! * [`view`]: a mirror's keys as nodes, the last good value of each.
//! * [`resolve`]: the names of nodes' hosts as addresses, looked up again and again.
//! * [`hub`]: all that a program wants to know from etcd, each prefix watched once.
//! * [`apisix`]: nodes in keys that hold those of all hosts, written by one elected writer.
//! * [`lock`] and [`election`]: one holder at a time, in the layout of etcd's own concurrency package.
//! * [`guard`]: nodes kept for a while when too many vanish at once.
//!
//! Decisions are made by pure state machines that are told the time and the outcome of each request
//! (`lease_machine`, `mirror_machine`); `registrar` and `mirror` only carry out what these ask for.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod address;
pub mod apisix;
pub mod backoff;
pub mod connection;
pub mod election;
pub mod format;
pub mod guard;
pub mod host;
pub mod hub;
pub mod key_template;
mod lease_machine;
pub mod lock;
pub mod mirror;
mod mirror_machine;
pub mod registrar;
pub mod resolve;
mod session;
pub mod view;

pub use apisix::{Upstream, UpstreamWriter};
pub use connection::{ConnectError, ConnectOptions, Connector, Credentials, TlsOptions};
pub use election::{Election, Leader, Leadership, Observer};
pub use etcd_client;
pub use format::Format;
pub use guard::{Guard, GuardOptions, HeldNode};
pub use hub::{
    ConfigError, ConfigMap, ConfigWatch, Discovery, HubError, HubOptions, KeyEvent, Keys, NodeEvent, NodeEvents, Nodes,
    Registry, Restart, Setting, Subscription,
};
pub use key_template::{KeyFields, KeyTemplate};
pub use lock::{Held, Lock, LockError, LostCause};
pub use mirror::{KeyChange, KeyValue, Mirror, MirrorEvent, MirrorOptions, MirrorStatus, ResyncReason};
pub use registrar::{
    IfHeld, Registrar, RegistrarOptions, RegistrarStats, Registration, RegistrationHandle, RegistrationState,
    RegistryError, Shutdown,
};
pub use resolve::{Addresses, Resolution, Resolver, SystemLookup};
pub use view::View;
pub use waypost_balance as balance;
pub use waypost_balance::Strategy;
pub use waypost_catalog as catalog;

/// The guide's examples, compiled as those of this documentation.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/library.md")]
struct Guide;
