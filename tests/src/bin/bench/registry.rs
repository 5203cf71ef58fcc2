//! The registry crate beside bare etcd, each pair interleaved in one run: a registration until another process' mirror
//! has it, and a lock until its next holder has it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use etcd_client::{LockOptions, WatchOptions};
use tokio::{sync::mpsc, time::timeout};
use waypost_registry::{
    ConnectOptions, Connector, Lock, Mirror, MirrorEvent, MirrorOptions, Registrar, RegistrarOptions, Registration,
    Shutdown,
};
use waypost_tests::{Etcd, Scene, ports};

use crate::{Effort, table};

const PREFIX: &str = "/waypost/services/";
/// Outside the mirrored prefix.
const BARE_KEY: &str = "/bench/bare";
const TTL: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(10);

pub async fn run(effort: Effort) -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let times = effort.changes;
    let (bare, visible) = registrations(&etcd, times).await?;
    table::print(
        &format!("A registration, {times} times"),
        &table::TIMES,
        &[
            table::times("put to a bare etcd watcher's event", bare),
            table::times("registered to seen in another process' mirror", visible),
        ],
    );
    let (bare, ours) = hand_overs(&etcd, times).await?;
    table::print(
        &format!("A lock's way from its holder to the next in line, {times} times"),
        &table::TIMES,
        &[
            table::times("etcd's own lock service: unlock to locked", bare),
            table::times("Waypost: release to held", ours),
        ],
    );
    scene.close()
}

/// A connection of its own, as another process would have.
fn connector(etcd: &Etcd) -> Result<Connector> {
    Ok(Connector::new(ConnectOptions { endpoints: etcd.endpoints(), ..ConnectOptions::default() })?)
}

async fn registrations(etcd: &Etcd, times: usize) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let registrar = Registrar::start(connector(etcd)?, RegistrarOptions { ttl: TTL, adopt: None });
    let (mirror, mut events) = Mirror::start(connector(etcd)?, MirrorOptions::new(PREFIX));
    let mut client = etcd.client().await?;
    let mut watch = client.watch(BARE_KEY, Some(WatchOptions::new())).await?;
    // The lease is there, and the mirror stands, before anything is timed.
    let value = value(ports::local()?.port());
    let key = format!("{PREFIX}bench/first");
    registrar.register(Registration::new(key.as_str(), value.as_str())).settled().await?;
    until_seen(&mut events, &key).await?;

    let (mut bare, mut visible) = (Vec::new(), Vec::new());
    for index in 0..times {
        let start = Instant::now();
        let (put, event) = tokio::join!(client.put(BARE_KEY, value.as_str(), None), timeout(DEADLINE, watch.message()));
        put?;
        event.context("the bare watcher saw no event")??.context("the bare watcher's stream ended")?;
        bare.push(start.elapsed());

        let start = Instant::now();
        let key = format!("{PREFIX}bench/n{index}");
        let registration = registrar.register(Registration::new(key.as_str(), value.as_str()));
        until_seen(&mut events, &key).await?;
        visible.push(start.elapsed());
        registration.deregister().await?;
    }
    registrar.shutdown(Shutdown::Deregister).await;
    mirror.shutdown().await;
    Ok((bare, visible))
}

fn value(port: u16) -> String {
    format!(r#"{{"address":"127.0.0.1","port":{port}}}"#)
}

/// Takes events until one holds the key.
async fn until_seen(events: &mut mpsc::Receiver<MirrorEvent>, key: &str) -> Result<()> {
    loop {
        let event = timeout(DEADLINE, events.recv()).await.with_context(|| format!("{key} is not seen"))?;
        let seen = match event.context("the mirror has ended")? {
            MirrorEvent::Synced { entries, .. } => entries.iter().any(|entry| entry.key == key),
            MirrorEvent::Changed { changes, .. } => changes.iter().any(|change| change.key() == key),
        };
        if seen {
            return Ok(());
        }
    }
}

async fn hand_overs(etcd: &Etcd, times: usize) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    let mut clients = [etcd.client().await?, etcd.client().await?];
    let leases = [etcd.grant(600).await?, etcd.grant(600).await?];
    let locks = [Lock::new(connector(etcd)?, "bench/ours", TTL)?, Lock::new(connector(etcd)?, "bench/ours", TTL)?];
    let options = |lease| Some(LockOptions::new().with_lease(lease));
    let mut key = clients[0].lock("bench/bare", options(leases[0])).await?.key().to_vec();
    let mut held = locks[0].acquire(DEADLINE).await?;
    let mut watcher = etcd.client().await?;
    for turn in 0..times {
        let (from, to) = (turn % 2, (turn + 1) % 2);
        let mut next = clients[to].clone();
        let lease = leases[to];
        let waiting = tokio::spawn(async move {
            let locked = next.lock("bench/bare", options(lease)).await;
            (Instant::now(), locked)
        });
        until_contended(&mut watcher, "bench/bare/").await?;
        let start = Instant::now();
        clients[from].unlock(key).await?;
        let (locked_at, locked) = timeout(DEADLINE, waiting).await.context("etcd's lock is not handed over")??;
        key = locked?.key().to_vec();
        bare.push(locked_at.saturating_duration_since(start));

        let next = locks[to].clone();
        let waiting = tokio::spawn(async move {
            let held = next.acquire(DEADLINE).await;
            (Instant::now(), held)
        });
        until_contended(&mut watcher, "bench/ours/").await?;
        let start = Instant::now();
        held.release().await?;
        let (held_at, next) = timeout(DEADLINE, waiting).await.context("the lock is not handed over")??;
        held = next?;
        ours.push(held_at.saturating_duration_since(start));
    }
    held.release().await?;
    Ok((bare, ours))
}

/// Waits until the holder and the next in line have their keys.
async fn until_contended(client: &mut etcd_client::Client, prefix: &str) -> Result<()> {
    let start = Instant::now();
    let options = etcd_client::GetOptions::new().with_prefix().with_count_only();
    while client.get(prefix, Some(options.clone())).await?.count() < 2 {
        if start.elapsed() > DEADLINE {
            bail!("nobody waits for {prefix}");
        }
    }
    // The waiter's watch of the key before its own follows its put.
    tokio::time::sleep(Duration::from_millis(10)).await;
    Ok(())
}
