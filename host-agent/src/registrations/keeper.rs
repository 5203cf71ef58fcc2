//! Keeps one service in the registry as its configuration and its check say, until it has left.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use waypost_catalog::Health;
use waypost_registry::{Format, Registrar, Registration, RegistrationHandle, format::Timestamps};

use super::board::{Board, ServiceId};
use crate::{
    check::{CheckState, probe, schedule},
    config::Service,
};

const ADDRESS_RETRY: Duration = Duration::from_secs(2);
const DEREGISTER_LIMIT: Duration = Duration::from_secs(5);

/// What a keeper is to do.
#[derive(Clone, Debug)]
pub(super) struct Desired {
    pub(super) service: Arc<Service>,
    pub(super) phase: Phase,
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

/// The keeper of one service.
pub(super) struct Keeper {
    id: ServiceId,
    registrar: Arc<Registrar>,
    /// Whether the registry may hold the service from the agent's previous run.
    adopts: bool,
    desired: watch::Receiver<Desired>,
    progress: watch::Sender<Progress>,
    board: Arc<Board>,
    /// Cancelled: leave without waiting for the drain.
    cut: CancellationToken,
    check: Option<CheckState>,
    handle: Option<RegistrationHandle>,
    target: Option<SocketAddr>,
    registered_at: SystemTime,
}

impl Keeper {
    pub(super) fn new(
        id: ServiceId,
        registrar: Arc<Registrar>,
        adopts: bool,
        desired: watch::Receiver<Desired>,
        progress: watch::Sender<Progress>,
        board: Arc<Board>,
        cut: CancellationToken,
    ) -> Self {
        let registered_at = SystemTime::now();
        let (check, handle, target) = (None, None, None);
        Self { id, registrar, adopts, desired, progress, board, cut, check, handle, target, registered_at }
    }

    /// Runs until nobody can ask for anything any more.
    pub(super) async fn run(mut self) {
        let mut changes = self.desired.clone();
        loop {
            let Desired { service, phase } = changes.borrow_and_update().clone();
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
        let target = SocketAddr::new(self.address(service).await, service.port);
        self.target = Some(target);
        self.board.update(&self.id, |status| status.address = Some(target));
        let Some(check) = &service.check else {
            self.check = None;
            self.show(service, target, Health::Passing);
            return;
        };
        let known = self.adopts || self.handle.is_some();
        let (rise, fall) = (check.rise, check.fall);
        let start = || if known { CheckState::adopted(rise, fall) } else { CheckState::new(rise, fall) };
        let state = self.check.get_or_insert_with(start);
        state.set_thresholds(rise, fall);
        if let Some(health) = state.health() {
            self.show(service, target, health);
        }
        let mut delay = schedule::first_delay(check.interval, fastrand::f64());
        loop {
            tokio::time::sleep(delay).await;
            delay = schedule::next_delay(check.interval, fastrand::f64());
            let outcome = probe(check, target, service.protocol).await;
            let problem = outcome.as_ref().err().map(ToString::to_string);
            debug!(service = %self.id.name, instance = self.id.instance, problem, "probed");
            self.board.update(&self.id, |status| status.problem.clone_from(&problem));
            let Some(state) = &mut self.check else { return };
            if !state.observe(outcome.is_ok()) {
                continue;
            }
            let Some(health) = state.health() else { continue };
            match problem {
                None => info!(service = %self.id.name, instance = self.id.instance, "check passes"),
                Some(problem) => warn!(service = %self.id.name, instance = self.id.instance, problem, "check fails"),
            }
            self.show(service, target, health);
        }
    }

    /// The service's address. While there is none, as before the network is up, it is looked for again and again.
    async fn address(&self, service: &Service) -> IpAddr {
        let mut told = None;
        loop {
            match service.address.resolve() {
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

    /// Has the registry say this health: in the value, or by the key's absence where the format knows no health.
    fn show(&mut self, service: &Service, target: SocketAddr, health: Health) {
        let node = service.node_at(target, health);
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
            Some(handle) if handle.key() == key => {
                if present {
                    handle.update(value)
                } else {
                    handle.withdraw()
                }
            }
            // Nothing was written, and what an earlier run wrote need not go: there is nothing to do.
            None if !present && !self.adopts => {}
            _ => {
                let handle = self.registrar.register(Registration { key, value });
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

    /// Shows the service as draining, waits, and takes it out of the registry.
    async fn leave(&mut self, service: &Service, drain: Duration) {
        if *self.progress.borrow() == Progress::Gone {
            return;
        }
        if let Some(target) = self.target.filter(|_| self.handle.is_some() || self.adopts) {
            self.show(service, target, Health::Draining);
            tokio::select! {
                () = tokio::time::sleep(drain) => {}
                () = self.cut.cancelled() => {}
            }
        }
        self.adopts = false;
        self.check = None;
        if let Some(handle) = self.handle.take() {
            match tokio::time::timeout(DEREGISTER_LIMIT, handle.deregister()).await {
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

/// Whether a service of this health has a key at all.
fn shows(format: Format, health: Health) -> bool {
    health == Health::Passing || format.carries_health()
}
