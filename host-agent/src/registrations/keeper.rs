//! Keeps one service in the registry as its configuration and its check say, until it has left.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use waypost_catalog::Health;
use waypost_registry::{
    Format, Registrar, Registration, RegistrationHandle, address::AddressError, format::Timestamps,
};

use super::{
    board::{Board, ServiceId},
    heartbeats::Heartbeats,
};
use crate::{
    check::{
        CheckStatus, Runner,
        probe::Target,
        runner::{Cue, Verdict},
    },
    config::Service,
};

const ADDRESS_RETRY: Duration = Duration::from_secs(2);
/// How often an address that may change is looked for again.
const ADDRESS_INTERVAL: Duration = Duration::from_secs(5);
/// How long etcd is given to confirm that a service drains, before the drain is timed all the same.
const DRAIN_CONFIRM_LIMIT: Duration = Duration::from_secs(3);
const DEREGISTER_LIMIT: Duration = Duration::from_secs(5);

/// Name of the metadata by which others see why a node is in maintenance.
const MAINTENANCE: &str = "maintenance";

/// What a keeper is to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Desired {
    pub(super) service: Arc<Service>,
    pub(super) phase: Phase,
    /// Why it is in maintenance, if it is.
    pub(super) maintenance: Option<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Serve,
    Leave { drain: Duration },
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Not decided yet whether the service passes.
    Deciding,
    /// Written to the registry as it is.
    Here,
    /// Out of the registry.
    Gone,
}

/// What all keepers share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) board: Arc<Board>,
    pub(super) heartbeats: Heartbeats,
    /// Cancelled: leave without waiting for the drain.
    pub(super) cut: CancellationToken,
}

/// The keeper of one service.
pub(super) struct Keeper {
    id: ServiceId,
    registrar: Arc<Registrar>,
    /// The lease under which the registry may hold the service from the agent's previous run.
    adopts: Option<i64>,
    desired: watch::Receiver<Desired>,
    progress: watch::Sender<Progress>,
    board: Arc<Board>,
    heartbeats: Heartbeats,
    cut: CancellationToken,
    check: Option<Runner>,
    maintenance: Option<Arc<str>>,
    handle: Option<RegistrationHandle>,
    target: Option<SocketAddr>,
    registered_at: SystemTime,
}

impl Keeper {
    pub(super) fn new(
        id: ServiceId,
        registrar: Arc<Registrar>,
        adopts: Option<i64>,
        desired: watch::Receiver<Desired>,
        progress: watch::Sender<Progress>,
        shared: Shared,
    ) -> Self {
        let Shared { board, heartbeats, cut } = shared;
        let registered_at = SystemTime::now();
        let (check, maintenance, handle, target) = (None, None, None, None);
        Self {
            id,
            registrar,
            adopts,
            desired,
            progress,
            board,
            heartbeats,
            cut,
            check,
            maintenance,
            handle,
            target,
            registered_at,
        }
    }

    /// Runs until nobody can ask for anything any more.
    pub(super) async fn run(mut self) {
        let mut changes = self.desired.clone();
        loop {
            let Desired { service, phase, maintenance } = changes.borrow_and_update().clone();
            self.board.update(&self.id, |status| {
                status.lease = Some(self.registrar.lease());
                status.maintenance.clone_from(&maintenance);
            });
            self.maintenance = maintenance;
            let task = async {
                match phase {
                    Phase::Serve => self.serve(&service).await,
                    Phase::Leave { drain } => self.leave(&service, drain).await,
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = task => {}
                changed = changes.changed() => if changed.is_err() { break },
            }
        }
        self.board.remove(&self.id);
    }

    /// Checks and registers the service, for ever.
    async fn serve(&mut self, service: &Service) {
        let address = self.address(service).await;
        self.set_address(address, service.port);
        self.start_check(service);
        self.show(service);
        let mut lease = self.registrar.lease();
        let mut look_at = service.address.is_dynamic().then(|| Instant::now() + ADDRESS_INTERVAL);
        loop {
            let undecided = self.undecided_lease();
            tokio::select! {
                cue = cue(self.check.as_mut()) => self.check(service, cue).await,
                () = until(look_at) => {
                    self.follow(service, service.address.resolve(self.target.map(|target| target.ip())));
                    look_at = Some(Instant::now() + ADDRESS_INTERVAL);
                }
                () = not_adopted(&mut lease, undecided) => {
                    let (name, instance) = (&self.id.name, &self.id.instance);
                    info!(service = %name, instance, "the previous run's lease is not adopted: the service starts anew");
                    if let Some(check) = &mut self.check {
                        check.start_anew();
                    }
                    self.show(service);
                }
            }
        }
    }

    /// Has the service checked as it is configured now.
    fn start_check(&mut self, service: &Service) {
        let Some(check) = &service.check else {
            self.check = None;
            self.board.update(&self.id, |status| status.check = None);
            return;
        };
        let beats = self.heartbeats.of(&self.id);
        match &mut self.check {
            Some(runner) => runner.reconfigure(check, beats),
            None => {
                let known = self.handle.is_some() || self.adopts.is_some_and(|lease| self.registrar_has(lease));
                self.check = Some(Runner::new(check, known, beats));
            }
        }
    }

    fn registrar_has(&self, lease: i64) -> bool {
        *self.registrar.lease().borrow() == Some(lease)
    }

    /// The lease that keeps the service as it was while its check has not decided.
    fn undecided_lease(&self) -> Option<i64> {
        let undecided = self.check.as_ref().is_some_and(Runner::is_adopted);
        self.adopts.filter(|_| undecided && self.handle.is_none())
    }

    /// Finds out how the service is.
    async fn check(&mut self, service: &Service, cue: Cue) {
        let (Some(check), Some(address)) = (&mut self.check, self.target) else { return };
        let (name, instance) = (&self.id.name, &self.id.instance);
        let target = Target { service: name.as_str(), instance, address, protocol: service.protocol };
        let Verdict { report, turned, changed } = check.follow(cue, &target).await;
        let (outcome, output) = (report.status.as_str(), &report.output);
        if changed {
            let health = check.health().map_or("undecided", Health::as_str);
            match report.status {
                CheckStatus::Passed => info!(service = %name, instance, output, health, "check passed"),
                CheckStatus::Failed => warn!(service = %name, instance, output, health, "check failed"),
            }
        } else if turned {
            info!(service = %name, instance, output, "check {outcome}");
        } else {
            debug!(service = %name, instance, output, "check {outcome} again");
        }
        self.board.update(&self.id, |status| status.check = Some(report));
        if changed {
            self.show(service);
        }
    }

    fn set_address(&mut self, address: IpAddr, port: u16) {
        let target = SocketAddr::new(address, port);
        self.target = Some(target);
        self.board.update(&self.id, |status| status.address = Some(target));
    }

    /// Moves the registration if the service's address is another one now. While there is none it stays: the host has
    /// lost its network, and most probably etcd too.
    pub(super) fn follow(&mut self, service: &Service, found: Result<IpAddr, AddressError>) {
        let old = self.target.map(|target| target.ip());
        match found {
            Ok(new) if Some(new) != old => {
                let old = old.map(tracing::field::display);
                info!(service = %self.id.name, instance = self.id.instance, old, %new, "the service's address changed");
                self.set_address(new, service.port);
                self.show(service);
            }
            Ok(_) => {}
            Err(error) => debug!(service = %self.id.name, instance = self.id.instance, %error, "no address for now"),
        }
    }

    /// The service's address. While there is none, as before the network is up, it is looked for again and again.
    async fn address(&self, service: &Service) -> IpAddr {
        let mut told = None;
        loop {
            match service.address.resolve(self.target.map(|target| target.ip())) {
                Ok(address) => {
                    self.board.update(&self.id, |status| status.problem = None);
                    return address;
                }
                Err(error) => {
                    let problem = error.to_string();
                    if told.as_ref() != Some(&problem) {
                        warn!(service = %self.id.name, instance = self.id.instance, problem, "not registered");
                        self.board.update(&self.id, |status| status.problem = Some(problem.clone()));
                        told = Some(problem);
                    }
                    tokio::time::sleep(ADDRESS_RETRY).await;
                }
            }
        }
    }

    /// Has the registry say how the service is, unless that is undecided.
    fn show(&mut self, service: &Service) {
        let health = self.check.as_ref().map_or(Some(Health::Passing), Runner::health);
        // Whatever the check says: in maintenance it is not to be picked, and goes on being checked.
        let health = health.map(|health| if self.maintenance.is_some() { Health::Draining } else { health });
        if let (Some(target), Some(health)) = (self.target, health) {
            self.show_as(service, target, health);
        }
    }

    /// Has the registry say this health: in the value, or by the key's absence where the format knows no health.
    fn show_as(&mut self, service: &Service, target: SocketAddr, health: Health) {
        let mut node = service.node_at(target, health);
        if let Some(reason) = &self.maintenance {
            node.metadata.insert(MAINTENANCE.to_owned(), reason.to_string());
        }
        let times = Timestamps { registered_at: self.registered_at, updated_at: SystemTime::now() };
        let encoded = service.format.encode(&service.root, &service.name, &service.instance, &node, times);
        self.board.update(&self.id, |status| status.health = Some(health));
        match encoded {
            Ok((key, value)) => self.put(key, value, shows(service.format, health)),
            Err(error) => {
                warn!(service = %self.id.name, instance = self.id.instance, %error, "not registered");
                self.board.update(&self.id, |status| status.problem = Some(error.to_string()));
            }
        }
        self.progress.send_if_modified(|progress| std::mem::replace(progress, Progress::Here) != Progress::Here);
    }

    fn put(&mut self, key: String, value: Vec<u8>, present: bool) {
        match &self.handle {
            Some(handle) if handle.key().as_deref() == Some(key.as_str()) => {
                if present {
                    handle.update(value)
                } else {
                    handle.withdraw()
                }
            }
            // Nothing was written, and what an earlier run wrote need not go: there is nothing to do.
            None if !present && self.adopts.is_none() => {}
            _ => {
                let handle = self.registrar.register(Registration::new(key, value));
                if !present {
                    handle.withdraw();
                }
                let registration = handle.state();
                self.board.update(&self.id, |status| status.registration = Some(registration));
                // The new key first, so that the service is never without one.
                if let Some(old) = self.handle.replace(handle) {
                    old.withdraw();
                }
            }
        }
    }

    /// The key that is registered.
    #[cfg(test)]
    pub(super) fn key(&self) -> Option<String> {
        self.handle.as_ref().and_then(RegistrationHandle::key)
    }

    /// Waits for as long as the service is to be seen draining: nobody sees it before etcd has it.
    async fn drain(&self, drain: Duration) {
        if let Some(handle) = &self.handle
            && timeout(DRAIN_CONFIRM_LIMIT, handle.settled()).await.is_err()
        {
            warn!(service = %self.id.name, instance = self.id.instance, "etcd does not confirm that the service drains");
        }
        tokio::time::sleep(drain).await;
    }

    /// Shows the service as draining, waits, and takes it out of the registry.
    async fn leave(&mut self, service: &Service, drain: Duration) {
        if *self.progress.borrow() == Progress::Gone {
            self.board.remove(&self.id);
            return;
        }
        if let Some(target) = self.target.filter(|_| self.handle.is_some() || self.adopts.is_some()) {
            self.show_as(service, target, Health::Draining);
            let cut = self.cut.clone();
            _ = cut.run_until_cancelled(self.drain(drain)).await;
        }
        self.adopts = None;
        self.check = None;
        if let Some(handle) = self.handle.take() {
            match timeout(DEREGISTER_LIMIT, handle.deregister()).await {
                Ok(Ok(())) => info!(service = %self.id.name, instance = self.id.instance, "deregistered"),
                Ok(Err(error)) => {
                    warn!(service = %self.id.name, instance = self.id.instance, %error, "not deregistered")
                }
                Err(_) => {
                    warn!(service = %self.id.name, instance = self.id.instance, "etcd does not confirm the delete")
                }
            }
        }
        self.board.remove(&self.id);
        self.progress.send_replace(Progress::Gone);
    }
}

/// Returns once the registrar has another lease than this one; never if there is none.
async fn not_adopted(held: &mut watch::Receiver<Option<i64>>, adopts: Option<i64>) {
    if adopts.is_none() || held.wait_for(|held| *held != adopts).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What the check waits for; without one, for ever.
async fn cue(check: Option<&mut Runner>) -> Cue {
    match check {
        Some(check) => check.cue().await,
        None => std::future::pending().await,
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Whether a service of this health has a key at all.
fn shows(format: Format, health: Health) -> bool {
    health == Health::Passing || format.carries_health()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_counts_as_adopted_until_the_registrar_has_another_or_none() {
        let (lease, mut held) = watch::channel(Some(42));
        let second = Duration::from_secs(1);
        assert!(timeout(second, not_adopted(&mut held, Some(42))).await.is_err());
        assert!(timeout(second, not_adopted(&mut held, None)).await.is_err(), "nothing to adopt");
        for other in [None, Some(43)] {
            lease.send_replace(other);
            assert!(timeout(second, not_adopted(&mut held, Some(42))).await.is_ok(), "{other:?}");
        }
    }
}
