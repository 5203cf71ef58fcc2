//! Links to etcd that break, in every way that the fault proxy knows.
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use tokio::time::sleep;

use super::{between, churn, client};
use crate::chaos::world::{TTL, World};
use crate::fault_proxy::{Direction, Fault};

pub(super) async fn half_open(world: &World, random: &mut Rng) -> Result<()> {
    for client in 0..world.clients() {
        world.half_open(client)?;
    }
    churn(world, random)?;
    sleep(between(random, 0.5, 2.0)).await;
    churn(world, random)
}

pub(super) async fn half_closed(world: &World, random: &mut Rng) -> Result<()> {
    for direction in [Direction::ToServer, Direction::ToClient] {
        for client in 0..world.clients() {
            world.fault(client, Fault::HalfClose(direction))?;
        }
        churn(world, random)?;
        sleep(between(random, 0.5, 2.0)).await;
        pass(world)?;
        sleep(between(random, 0.5, 1.0)).await;
    }
    Ok(())
}

pub(super) async fn cut(world: &World, random: &mut Rng) -> Result<()> {
    for _ in 0..5 {
        let client = client(world, random);
        world.fault(client, Fault::Reset)?;
        sleep(between(random, 0.0, 0.2)).await;
        world.fault(client, Fault::Pass)?;
    }
    for client in 0..world.clients() {
        world.fault(client, Fault::Refuse)?;
    }
    churn(world, random)?;
    sleep(TTL + between(random, 1.0, 2.0)).await;
    pass(world)
}

pub(super) async fn silent(world: &World, random: &mut Rng) -> Result<()> {
    for client in 0..world.clients() {
        world.fault(client, Fault::Swallow)?;
    }
    churn(world, random)?;
    sleep(TTL + between(random, 1.0, 2.0)).await;
    pass(world)
}

pub(super) async fn slow(world: &World, random: &mut Rng) -> Result<()> {
    for fault in [Fault::Delay(Duration::from_millis(random.u64(20..60))), Fault::Throttle(random.u32(20_000..60_000))]
    {
        for client in 0..world.clients() {
            world.fault(client, fault)?;
        }
        churn(world, random)?;
        sleep(between(random, 2.0, 3.0)).await;
    }
    pass(world)
}

/// Every link is whole again.
pub(super) fn pass(world: &World) -> Result<()> {
    (0..world.clients()).try_for_each(|client| world.fault(client, Fault::Pass))
}
