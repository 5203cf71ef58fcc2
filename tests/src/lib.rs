//! End-to-end harness on real etcd, real Envoy, the real agent and real HTTP servers.
//!
//! A [`Scene`] is one test's world: its temporary directory and every process it started. Processes die with the
//! scene, and with the test process however that ends. A test ends with [`Scene::close`]; a scene dropped without it
//! has failed, so the tails of its logs are printed and the directory is kept.
//!
//! Everything listens on loopback, on ports of its own, and every wait has a deadline.
#![deny(unsafe_code)]
#![deny(missing_docs)]

pub mod agent;
pub mod authority;
pub mod chaos;
pub mod envoy;
pub mod etcd;
pub mod fault_proxy;
pub mod fleet;
pub mod grpc;
pub mod http;
pub mod load;
pub mod ports;
pub mod process;
pub mod scene;
pub mod stats;
pub mod tools;
pub mod upstream;
pub mod wait;
pub mod world;

pub use agent::{Agent, AgentConfig, CheckConfig, GuardConfig, ServiceConfig, WatchConfig};
pub use authority::{Authority, Identity};
pub use envoy::{Envoy, EnvoyOptions};
pub use etcd::{Etcd, EtcdOptions};
pub use fault_proxy::{Fault, FaultProxy};
pub use fleet::{Fleet, Member};
pub use load::{Load, LoadPlan, Report};
pub use process::{Process, Signal};
pub use scene::Scene;
pub use upstream::{Upstream, UpstreamProcess};
pub use wait::{eventually, holds_for};
