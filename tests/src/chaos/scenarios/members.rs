//! Members of etcd that go, and come back: with their data, without it, or with older data.
use anyhow::Result;
use fastrand::Rng;
use tokio::time::sleep;

use super::{between, churn};
use crate::chaos::world::{TTL, World};

pub(super) async fn leader_killed(world: &World, random: &mut Rng) -> Result<()> {
    // Twice: who is connected to a follower only loses its leader.
    for _ in 0..2 {
        let leader = world.etcd.leader().await?;
        churn(world, random)?;
        world.kill_member(leader).await?;
        churn(world, random)?;
        sleep(between(random, 0.5, 2.0)).await;
        world.start_member(leader).await?;
    }
    Ok(())
}

pub(super) async fn rolling_restart(world: &World, random: &mut Rng) -> Result<()> {
    for member in 0..world.plan.members {
        churn(world, random)?;
        world.kill_member(member).await?;
        sleep(between(random, 0.2, 1.5)).await;
        world.start_member(member).await?;
    }
    Ok(())
}

pub(super) async fn stopped(world: &World, random: &mut Rng) -> Result<()> {
    world.stop_etcd().await?;
    churn(world, random)?;
    sleep(TTL + between(random, 0.5, 3.0)).await;
    world.start_etcd().await
}

pub(super) async fn wiped(world: &World, random: &mut Rng) -> Result<()> {
    // The second time there are more revisions to lose than the new etcd soon has.
    for noise in [0, 300] {
        for _ in 0..noise {
            world.put("/app/noise", &random.u32(..).to_string()).await?;
        }
        churn(world, random)?;
        world.wipe_etcd().await?;
        world.bystanders().await?;
        sleep(between(random, 0.0, 2.0)).await;
    }
    Ok(())
}

pub(super) async fn restored(world: &World, random: &mut Rng) -> Result<()> {
    let snapshot = world.save_snapshot().await?;
    for _ in 0..5 {
        churn(world, random)?;
        world.put("/app/after-the-snapshot", &random.u32(..).to_string()).await?;
        sleep(between(random, 0.1, 0.5)).await;
    }
    world.restore_snapshot(&snapshot).await
}
