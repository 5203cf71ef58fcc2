//! One fault each, by name.
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::chaos::checker::Verdict;
use crate::chaos::world::{Plan, TTL, World};
use crate::scene::Scene;

/// Every scenario's name.
pub const NAMES: [&str; 2] = ["etcd-stopped", "data-wiped"];

/// Runs one in a world of its own.
pub async fn run(name: &str) -> Result<Verdict> {
    let mut world = World::start(Scene::new()?, Plan::default()).await?;
    match name {
        "etcd-stopped" => stopped(&mut world).await?,
        "data-wiped" => wiped(&mut world).await?,
        _ => anyhow::bail!("no scenario {name:?}; there are: {}", NAMES.join(", ")),
    }
    let verdict = world.finish().await?;
    ensure!(verdict.told > 0);
    Ok(verdict)
}

async fn stopped(world: &mut World) -> Result<()> {
    world.stop_etcd().await?;
    world.keys.want(0, "while etcd is away");
    world.reweigh(0, 7)?;
    tokio::time::sleep(TTL + Duration::from_secs(2)).await;
    world.start_etcd().await
}

async fn wiped(world: &mut World) -> Result<()> {
    world.wipe_etcd().await?;
    world.bystanders().await
}
