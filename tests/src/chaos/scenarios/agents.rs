//! Agents that do nothing for longer than their lease lives, or whose clock is wrong.
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use tokio::time::sleep;

use super::{between, churn};
use crate::chaos::world::{TTL, World};
use crate::wait::eventually;

pub(super) async fn killed(world: &World, random: &mut Rng) -> Result<()> {
    let agent = random.usize(..world.agents.len());
    world.kill_agent(agent).await?;
    churn(world, random)?;
    sleep(TTL + between(random, 1.5, 2.5)).await;
    world.start_agent(agent).await?;
    // And once more, too quickly for anything to be missed.
    world.kill_agent(agent).await?;
    world.start_agent(agent).await
}

pub(super) async fn frozen(world: &World, random: &mut Rng) -> Result<()> {
    let agent = random.usize(..world.agents.len());
    world.freeze_agent(agent)?;
    churn(world, random)?;
    sleep(TTL + between(random, 1.5, 2.5)).await;
    world.thaw_agent(agent)
}

pub(super) async fn clock_stepped(world: &World, random: &mut Rng) -> Result<()> {
    const HOUR: i64 = 3600;
    let agent = world.agent(0)?;
    for step in [10 * 365 * 24 * HOUR, -10 * 365 * 24 * HOUR, HOUR, -random.i64(2..HOUR), 0] {
        world.step_clock(step)?;
        churn(world, random)?;
        sleep(between(random, 0.5, 1.5)).await;
    }
    // An agent that starts in another time than the one in which it wrote its state.
    world.step_clock(-HOUR)?;
    world.kill_agent(0).await?;
    world.start_agent(0).await?;
    world.step_clock(HOUR)?;
    world.kill_agent(0).await?;
    world.start_agent(0).await?;
    // What it writes shows that the step was real.
    world.step_clock(10 * 365 * 24 * HOUR)?;
    world.reweigh(0, 77)?;
    let key = agent.key(0)?;
    let year = |text: &str| text.get(..4).and_then(|year| year.parse::<i32>().ok());
    eventually(Duration::from_secs(10), "a time stamp ten years ahead", || async {
        let found = world.etcd.get(&key).await?.context("no key")?;
        let value: serde_json::Value = serde_json::from_str(&found.value)?;
        let years = ["registered_at", "updated_at"].map(|name| value.get(name).and_then(|at| year(at.as_str()?)));
        ensure!(matches!(years, [Some(registered), Some(updated)] if updated >= registered + 9), "{years:?}");
        Ok(())
    })
    .await?;
    world.step_clock(0)
}
