//! `cargo xtask bench`: the figures that Waypost is judged by, measured on real etcd and real Envoy.
//!
//! Machines are shared and noisy, so what can be a ratio is one, taken within one run from short interleaved pieces.
//! Nothing here passes or fails.

mod cpu;
mod etcd_requests;
mod fleet;
mod mirror;
mod native;
mod propagation;
mod registry;
mod request_cost;
mod scale;
mod slow_node;
mod table;
mod worker_memory;

use anyhow::{Result, bail};

/// How much is measured.
#[derive(Clone, Copy)]
struct Effort {
    /// Rounds of the comparison of requests.
    rounds: usize,
    /// Requests of each variant in a round.
    requests: u64,
    /// Changes whose way through the system is timed.
    changes: usize,
}

const FULL: Effort = Effort { rounds: 15, requests: 4_000, changes: 200 };
const PARTS: [&str; 8] =
    ["requests", "slow-node", "propagation", "scale", "worker-memory", "registry", "fleet", "mirror"];
const QUICK: Effort = Effort { rounds: 3, requests: 1_000, changes: 20 };

#[tokio::main]
async fn main() -> Result<()> {
    let mut effort = FULL;
    let mut parts = Vec::new();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--quick" => effort = QUICK,
            part if PARTS.contains(&part) => parts.push(argument),
            other => bail!("unknown argument {other:?}: --quick, and any of {}", PARTS.join(", ")),
        }
    }
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    if wanted("requests") {
        request_cost::run(effort).await?;
    }
    if wanted("slow-node") {
        slow_node::run(effort).await?;
    }
    if wanted("propagation") {
        propagation::run(effort).await?;
    }
    if wanted("scale") {
        scale::run().await?;
    }
    if wanted("worker-memory") {
        worker_memory::run().await?;
    }
    if wanted("registry") {
        registry::run(effort).await?;
    }
    if wanted("fleet") {
        fleet::run().await?;
    }
    if wanted("mirror") {
        mirror::run(effort).await?;
    }
    Ok(())
}
