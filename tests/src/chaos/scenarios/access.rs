//! Tokens that end, a password and certificates that are replaced.
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use tokio::time::sleep;

use super::{between, churn};
use crate::chaos::world::World;

pub(super) async fn token_expired(world: &World, random: &mut Rng) -> Result<()> {
    // A token ends within about a second in which it is not used: registrations are verified about as often.
    for _ in 0..6 {
        sleep(Duration::from_secs(1)).await;
        churn(world, random)?;
    }
    Ok(())
}

pub(super) async fn password_changed(world: &World, random: &mut Rng) -> Result<()> {
    world.change_password().await?;
    churn(world, random)?;
    // Some are refused meanwhile, with the old one.
    sleep(between(random, 1.0, 3.0)).await;
    world.renew_access()
}

pub(super) async fn restarted(world: &World, random: &mut Rng) -> Result<()> {
    for _ in 0..2 {
        churn(world, random)?;
        world.stop_etcd().await?;
        world.start_etcd().await?;
        sleep(between(random, 0.5, 1.5)).await;
    }
    Ok(())
}

pub(super) async fn certificates_replaced(world: &World, random: &mut Rng) -> Result<()> {
    world.stop_etcd().await?;
    world.replace_certificates()?;
    world.start_etcd().await?;
    churn(world, random)?;
    sleep(between(random, 0.5, 1.5)).await;
    world.renew_access()
}
