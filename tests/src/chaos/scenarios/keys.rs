//! What others do to keys: delete, overwrite, compact, flood, and fill with nonsense.
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use fastrand::Rng;
use tokio::time::sleep;

use super::{between, churn};
use crate::chaos::history::{History, What};
use crate::chaos::users::Keys;
use crate::chaos::world::World;
use crate::fault_proxy::Fault;
use crate::wait::eventually;
use crate::world::entry;

const DEADLINE: Duration = Duration::from_secs(30);

pub(super) async fn compacted_during_cut(world: &World, random: &mut Rng) -> Result<()> {
    for fault in [Fault::Refuse, Fault::Swallow] {
        world.put("/app/gone-meanwhile", &random.u32(..).to_string()).await?;
        for client in 0..world.clients() {
            world.fault(client, fault)?;
        }
        for _ in 0..20 {
            world.put("/app/noise", &random.u32(..).to_string()).await?;
        }
        world.delete("/app/gone-meanwhile").await?;
        churn(world, random)?;
        world.compact().await?;
        super::links::pass(world)?;
    }
    Ok(())
}

pub(super) async fn compacted_before_watch(world: &World, random: &mut Rng) -> Result<()> {
    let users = world.clients() - 1;
    let before = world.log.read(|history| resyncs(history, "compacted"));
    // Range and watch are so far apart that something changes and is compacted away in between.
    world.fault(users, Fault::Delay(Duration::from_millis(250)))?;
    world.fault(users, Fault::Reset)?;
    world.fault(users, Fault::Delay(Duration::from_millis(250)))?;
    eventually(DEADLINE, "a full state because of a compaction", || async {
        world.compact().await?;
        ensure!(world.log.read(|history| resyncs(history, "compacted")) > before);
        Ok(())
    })
    .await?;
    churn(world, random)?;
    super::links::pass(world)
}

fn resyncs(history: &History, because: &str) -> usize {
    let told =
        history.records.iter().filter(|record| matches!(&record.what, What::Told { reason, .. } if reason == because));
    told.count()
}

pub(super) async fn deleted(world: &World, random: &mut Rng) -> Result<()> {
    for _ in 0..3 {
        let number = random.usize(..world.plan.keys);
        world.keys.want(number, "to be meddled with");
        let agent = world.agent(random.usize(..world.agents.len()))?.key(0)?;
        for key in [Keys::name(number), agent] {
            // It may be missing because of the last round.
            eventually(DEADLINE, "the key to be there", || world.delete(&key)).await?;
        }
        sleep(between(random, 0.0, 1.5)).await;
        world.put(&Keys::name(number), "meddled with").await?;
        sleep(between(random, 0.0, 1.5)).await;
    }
    Ok(())
}

pub(super) async fn revoked(world: &World, random: &mut Rng) -> Result<()> {
    for _ in 0..2 {
        churn(world, random)?;
        let agent = world.agent(random.usize(..world.agents.len()))?.key(1)?;
        eventually(DEADLINE, "the lease to be there", || world.revoke_lease_of(&agent)).await?;
        eventually(DEADLINE, "the registrar to have a lease", || async {
            world.etcd.revoke(world.keys.lease()?).await
        })
        .await?;
        sleep(between(random, 0.0, 2.0)).await;
    }
    Ok(())
}

pub(super) async fn many(world: &World, _: &mut Rng) -> Result<()> {
    let nodes: Vec<_> = (0..10_000_u16)
        .map(|n| {
            let [high, low] = n.to_be_bytes();
            entry(&format!("many-{}", n % 50), &n.to_string(), SocketAddr::from(([127, 1, high, low], 80)), 1)
        })
        .collect();
    world.put_many(&nodes).await?;
    world.delete_many("/waypost/services/many-", nodes.into_iter().map(|(key, _)| key)).await
}

pub(super) async fn slow_subscriber(world: &World, random: &mut Rng) -> Result<()> {
    let before = world.log.read(|history| resyncs(history, "lagged"));
    for _ in 0..400 {
        world.put(&format!("/app/busy-{}", random.u8(..50)), &random.u32(..).to_string()).await?;
    }
    // It is told so, and gets all there is.
    eventually(DEADLINE, "the slow subscriber to fall behind", || async {
        ensure!(world.log.read(|history| resyncs(history, "lagged")) > before);
        Ok(())
    })
    .await
}

pub(super) async fn vanishing(world: &World, random: &mut Rng) -> Result<()> {
    let name = |n| if n == 0 { "stays".to_owned() } else { format!("goes-{n}") };
    let node = |n| entry("crowd", &name(n), SocketAddr::from(([127, 0, 7, n], 80)), 1);
    let nodes: Vec<_> = (0..10_u8).map(node).collect();
    world.put_many(&nodes).await?;
    let served = |number: usize| {
        let agent = world.agent(0)?.name();
        let count = world.log.read(|history| crowd(history, &agent));
        ensure!(count == Some(number), "{count:?} nodes are served instead of {number}");
        Ok(())
    };
    eventually(DEADLINE, "ten nodes to be served", || async { served(10) }).await?;
    let keys = nodes.into_iter().map(|(key, _)| key).skip(1);
    world.delete_many("/waypost/services/crowd/goes-", keys).await?;
    // The guard holds them for two seconds.
    sleep(between(random, 0.8, 1.2)).await;
    served(10)?;
    eventually(DEADLINE, "one node to be served", || async { served(1) }).await
}

/// How many nodes of the crowd an agent served last.
fn crowd(history: &History, name: &str) -> Option<usize> {
    history.records.iter().rev().find_map(|record| match &record.what {
        What::Catalog { agent, services } if agent == name => {
            Some(services.get("crowd").map_or(0, |nodes| nodes.iter().collect::<BTreeSet<_>>().len()))
        }
        _ => None,
    })
}

pub(super) async fn malformed(world: &World, random: &mut Rng) -> Result<()> {
    let bad = [
        "",
        "}{",
        "null",
        "[]",
        r#"{"address":5,"port":1}"#,
        r#"{"address":"127.0.7.1","port":70000}"#,
        r#"{"address":"127.0.7.1"}"#,
        r#"{"address":"127.0.7.1","port":80,"weight":-1}"#,
        &"x".repeat(200_000),
    ];
    for (number, value) in bad.iter().enumerate() {
        // One that was never good, and one that was, and is again later.
        world.put(&format!("/waypost/services/odd/never-{number}"), value).await?;
        let address = SocketAddr::from(([127, 0, 6, u8::try_from(number + 1)?], 80));
        let (key, good) = entry("odd", &format!("once-{number}"), address, 1);
        world.put(&key, &good).await?;
        world.put(&key, value).await?;
        if random.bool() {
            world.put(&key, &good).await?;
        }
    }
    world
        .put("/waypost/services/odd/too/deep", &entry("odd", "x", SocketAddr::from(([127, 0, 6, 99], 80)), 1).1)
        .await?;
    Ok(())
}
