//! What can be done to the world. Each deed is said in the history when it is done.
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::seat::{Seat, intend};
use super::{SETTLE, World};
use crate::chaos::access::Security;
use crate::chaos::history::{Change, Record, What};
use crate::chaos::recorder;
use crate::fault_proxy::Fault;
use crate::process::Signal;
use crate::wait::eventually;
use crate::world::entry;

/// A request under way on a link that was silent is given up within this, a quarter of the time to live.
const GRACE: Duration = Duration::from_millis(750);
/// So is an attempt to connect and sign in, whose answer is lost: connect and request timeout of the defaults.
const SIGN_IN: Duration = Duration::from_secs(5);

impl World {
    /// Keys of others, on a lease of their own and on none, that nobody may touch.
    pub async fn bystanders(&self) -> Result<()> {
        let nodes: Vec<_> =
            (1..=5).map(|n| entry("legacy", &format!("l-{n}"), SocketAddr::from(([127, 0, 9, n], 80)), 1)).collect();
        self.put_many(&nodes).await?;
        let lease = self.etcd.grant(600).await?;
        self.announce("/app/foreign", Some("theirs"));
        self.etcd.put_with_lease("/app/foreign", "theirs", lease).await
    }

    /// Somebody else puts a key.
    pub async fn put(&self, key: &str, value: &str) -> Result<i64> {
        self.announce(key, Some(value));
        self.etcd.put(key, value).await
    }

    /// Somebody else puts many.
    pub async fn put_many(&self, entries: &[(String, String)]) -> Result<()> {
        for (key, value) in entries {
            self.announce(key, Some(value));
        }
        self.etcd.put_many(entries).await
    }

    /// Somebody else deletes many, that begin so, in one revision.
    pub async fn delete_many(&self, prefix: &str, keys: impl IntoIterator<Item = String>) -> Result<()> {
        for key in keys {
            self.announce(&key, None);
        }
        self.etcd.delete_prefix(prefix).await.map(drop)
    }

    /// Somebody revokes the lease of a key.
    pub async fn revoke_lease_of(&self, key: &str) -> Result<()> {
        let found = self.etcd.get(key).await?.with_context(|| format!("no key {key}"))?;
        self.log.note(format!("the lease of {key} is revoked"));
        self.etcd.revoke(found.lease).await
    }

    /// All that was before now is compacted away; the recorder has seen it.
    pub async fn compact(&self) -> Result<()> {
        let marker = self.marker.fetch_add(1, Ordering::Relaxed).to_string();
        let revision = self.put("/app/compacted", &marker).await?;
        eventually(SETTLE, "the recorder to see what is compacted", || async {
            let seen = self.log.read(|history| {
                let said = |record: &Record| match &record.what {
                    What::Said { change: Change::Put(entry) } => entry.key == "/app/compacted" && entry.value == marker,
                    _ => false,
                };
                history.records.iter().rev().any(said)
            });
            ensure!(seen);
            Ok(())
        })
        .await?;
        self.log.note(format!("everything before revision {revision} is compacted away"));
        self.etcd.compact().await.map(drop)
    }

    /// Saves what etcd holds.
    pub async fn save_snapshot(&self) -> Result<PathBuf> {
        let path = self.scene.path().join("snapshot.db");
        self.etcd.save_snapshot(&path).await?;
        self.log.note("a snapshot is saved");
        Ok(path)
    }

    /// Every member is killed and started with the data of a snapshot.
    pub async fn restore_snapshot(&self, path: &Path) -> Result<()> {
        self.stop_etcd().await?;
        self.recorder.data_replaced();
        self.etcd.restore_snapshot(path)?;
        self.log.note("the snapshot is restored");
        self.start_etcd().await
    }

    /// The password of agents and users is another one. They learn it later.
    pub async fn change_password(&self) -> Result<()> {
        self.log.note("the password is changed in etcd");
        self.all_linked(false);
        self.access.change_password(&self.etcd).await
    }

    /// Every certificate is replaced, that of the authority too, while etcd is down.
    pub fn replace_certificates(&self) -> Result<()> {
        self.log.note("every certificate is replaced");
        self.all_linked(false);
        self.access.replace_certificates(&self.scene)
    }

    /// Agents and users are told to look at certificates and passwords again.
    pub fn renew_access(&self) -> Result<()> {
        for seat in &self.agents {
            seat.agent.reload()?;
        }
        let users = self.links.last().context("no users")?;
        self.connector.replace(self.access.users(users.endpoints(&self.access))?)?;
        self.all_linked(true);
        Ok(())
    }

    /// How long what is under way on a silent link may take to be given up.
    fn grace(&self) -> Duration {
        if self.plan.security == Security::Open { GRACE } else { SIGN_IN }
    }

    /// The agents' wall clock is so many seconds off from now on.
    pub fn step_clock(&self, seconds: i64) -> Result<()> {
        self.log.note(format!("the agents' clock is {seconds} s off"));
        self.clock.as_ref().context("the clock cannot be stepped")?.step(seconds)
    }

    fn all_linked(&self, linked: bool) {
        for owner in self.links.iter().map(|link| link.owner.clone()) {
            self.log.add(What::Linked { owner, linked, grace: Duration::ZERO });
        }
    }

    /// Somebody else deletes a key.
    pub async fn delete(&self, key: &str) -> Result<()> {
        self.announce(key, None);
        self.etcd.delete(key).await
    }

    fn announce(&self, key: &str, value: Option<&str>) {
        self.log.add(What::Foreign { key: key.to_owned(), value: value.map(str::to_owned) });
    }

    /// Every member is killed.
    pub async fn stop_etcd(&self) -> Result<()> {
        self.log.note("every member of etcd is killed");
        self.log.add(What::Answering { answering: false });
        self.etcd.kill_all().await
    }

    /// Every member is started, and answers.
    pub async fn start_etcd(&self) -> Result<()> {
        self.etcd.start_all().await?;
        recorder::answers(&self.etcd).await?;
        self.log.note("every member of etcd runs again");
        self.log.add(What::Answering { answering: true });
        Ok(())
    }

    /// Every member is killed and loses its data.
    pub async fn wipe_etcd(&self) -> Result<()> {
        self.stop_etcd().await?;
        self.recorder.data_replaced();
        self.etcd.forget_all()?;
        self.log.note("etcd's data is wiped");
        self.start_etcd().await
    }

    /// A member is killed; the others go on once they have a leader.
    pub async fn kill_member(&self, index: usize) -> Result<()> {
        self.log.note(format!("member {index} is killed"));
        self.log.add(What::Answering { answering: false });
        self.etcd.kill_member(index).await?;
        recorder::answers(&self.etcd).await?;
        self.log.add(What::Answering { answering: true });
        Ok(())
    }

    /// A member runs again.
    pub async fn start_member(&self, index: usize) -> Result<()> {
        self.etcd.start_member(index).await?;
        self.log.note(format!("member {index} runs again"));
        Ok(())
    }

    /// Changes every link of one client: an agent's by its number, the library users' behind them.
    pub fn fault(&self, client: usize, fault: Fault) -> Result<()> {
        let link = self.links.get(client).with_context(|| format!("no client {client}"))?;
        self.log.note(format!("links of {}: {fault:?}", link.owner));
        let linked = matches!(fault, Fault::Pass | Fault::Delay(_) | Fault::Throttle(_));
        if !linked {
            self.log.add(What::Linked { owner: link.owner.clone(), linked, grace: Duration::ZERO });
        }
        let was_silent = link.proxies.iter().any(|proxy| proxy.fault() == Fault::Swallow);
        for proxy in &link.proxies {
            proxy.set(fault);
        }
        let grace = if was_silent { self.grace() } else { Duration::ZERO };
        if linked {
            self.log.add(What::Linked { owner: link.owner.clone(), linked, grace });
        }
        Ok(())
    }

    /// Every connection of one client that is open now is half-open for good.
    pub fn half_open(&self, client: usize) -> Result<()> {
        let link = self.links.get(client).with_context(|| format!("no client {client}"))?;
        self.log.note(format!("open connections of {} are half-open", link.owner));
        for proxy in &link.proxies {
            proxy.half_open();
        }
        Ok(())
    }

    /// How many clients there are.
    pub fn clients(&self) -> usize {
        self.links.len()
    }

    /// An agent, by its number.
    pub fn agent(&self, index: usize) -> Result<&Seat> {
        self.agents.get(index).with_context(|| format!("no agent {index}"))
    }

    /// An agent is killed.
    pub async fn kill_agent(&self, index: usize) -> Result<()> {
        let seat = self.agent(index)?;
        seat.agent.kill().await?;
        self.alive(seat, false);
        Ok(())
    }

    /// An agent is started again.
    pub async fn start_agent(&self, index: usize) -> Result<()> {
        let seat = self.agent(index)?;
        seat.agent.restart().await?;
        self.alive(seat, true);
        Ok(())
    }

    /// An agent is frozen: it does nothing, and its connections stay open.
    pub fn freeze_agent(&self, index: usize) -> Result<()> {
        let seat = self.agent(index)?;
        seat.agent.process().signal(Signal::STOP)?;
        self.alive(seat, false);
        Ok(())
    }

    /// A frozen agent goes on.
    pub fn thaw_agent(&self, index: usize) -> Result<()> {
        let seat = self.agent(index)?;
        seat.agent.process().signal(Signal::CONT)?;
        self.alive(seat, true);
        Ok(())
    }

    fn alive(&self, seat: &Seat, alive: bool) {
        let owner = seat.name();
        self.log.note(format!("{owner} {}", if alive { "runs" } else { "does not run" }));
        self.log.add(What::Alive { owner, alive });
    }

    /// Gives the first service of an agent another weight.
    pub fn reweigh(&self, index: usize, weight: u32) -> Result<()> {
        let seat = self.agent(index)?;
        let mut config = seat.config();
        if let Some(service) = config.services.first_mut() {
            service.weight = weight;
        }
        intend(&config, &self.log)?;
        seat.agent.configure(&config)?;
        if seat.agent.process().pid().is_some() {
            // Quicker than it sees the file by itself, in a directory where logs are written too.
            seat.agent.reload()?;
        }
        Ok(())
    }
}
