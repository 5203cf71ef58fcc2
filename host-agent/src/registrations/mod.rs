//! This host's services in the registry: one keeper per service, one registrar (and lease) per TTL.
//!
//! [`Registrations::apply`] takes the configuration's services at start and at every reload: new ones are registered,
//! changed ones updated where they are, and those that are gone drain and leave without holding up the others.

mod board;
mod desk;
mod heartbeats;
mod keeper;
mod merge_patch;
mod roster;
mod upstreams;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use waypost_registry::{Connector, Registrar, RegistrarOptions, Shutdown};

pub use self::{
    board::{Board, ServiceId, ServiceStatus},
    desk::{Desk, DeskError, DeskHandle, Done, Listing, Request},
    heartbeats::{HeartbeatError, Heartbeats},
    roster::{Listed, Name, Refused, Saved, Upkeep},
};
use self::{
    keeper::{Desired, Keeper, Phase, Progress, Shared},
    upstreams::Upstreams,
};
use crate::{
    config::{Check, Service},
    state::leases::Leases,
};

/// What leaving may take beyond the drain: the draining put, the delete, and their retries.
const LEAVE_MARGIN: Duration = Duration::from_secs(10);
/// How long the slowest check is waited for, beyond the time that it needs to fail.
const DECIDE_MARGIN: Duration = Duration::from_secs(30);
/// Pause before a lease that could not be noted is noted again.
const NOTE_RETRY: Duration = Duration::from_secs(10);

/// All registrations of this host.
#[derive(Debug)]
pub struct Registrations {
    connector: Connector,
    leases: Arc<Leases>,
    board: Arc<Board>,
    heartbeats: Heartbeats,
    registrars: BTreeMap<u64, LeasedRegistrar>,
    keepers: BTreeMap<ServiceId, RunningKeeper>,
    /// Why which services are in maintenance.
    maintenance: BTreeMap<ServiceId, Arc<str>>,
    upstreams: Upstreams,
    /// Cut short, no leaving service waits for its drain any more.
    cut: CancellationToken,
    started: bool,
}

/// A registrar, and the tasks around it, which share it.
#[derive(Debug)]
struct LeasedRegistrar {
    registrar: Arc<Registrar>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct RunningKeeper {
    desired: watch::Sender<Desired>,
    progress: watch::Receiver<Progress>,
    task: JoinHandle<()>,
}

/// A service on its way out of the registry.
#[derive(Debug)]
pub struct Departure {
    /// How long it drains.
    pub drain: Duration,
    progress: Option<watch::Receiver<Progress>>,
}

impl Departure {
    /// Completes when it is out of the registry, for ever if another request brings it back.
    pub async fn gone(mut self) {
        if let Some(progress) = &mut self.progress {
            // An error means that the keeper has ended, which is as good.
            _ = progress.wait_for(|progress| *progress == Progress::Gone).await;
        }
    }
}

impl Registrations {
    /// No registrations yet. Cancelling `cut` ends the waiting of services that leave.
    pub fn new(connector: Connector, leases: Arc<Leases>, cut: CancellationToken) -> Self {
        Self {
            upstreams: Upstreams::new(connector.clone()),
            connector,
            leases,
            board: Arc::default(),
            heartbeats: Heartbeats::default(),
            registrars: BTreeMap::new(),
            keepers: BTreeMap::new(),
            maintenance: BTreeMap::new(),
            cut,
            started: false,
        }
    }

    /// Where the services' state can be seen.
    pub fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// Where applications report how they are.
    pub fn heartbeats(&self) -> Heartbeats {
        self.heartbeats.clone()
    }

    /// Says why which services are in maintenance, from the next [`Self::apply`] on.
    pub fn set_maintenance(&mut self, maintenance: BTreeMap<ServiceId, Arc<str>>) {
        self.maintenance = maintenance;
    }

    /// Makes `services` what is registered. Those that are no longer named drain for `drain`.
    pub fn apply(&mut self, services: &[Service], drain: Duration) {
        let wanted: BTreeMap<ServiceId, Arc<Service>> =
            services.iter().map(|service| (ServiceId::of(service), Arc::new(service.clone()))).collect();
        self.heartbeats.expect_from(&wanted);
        self.upstreams.apply(services, drain);
        let shared = self.shared();
        for (id, keeper) in &self.keepers {
            if !wanted.contains_key(id) && keeper.leave(drain) {
                info!(service = %id.name, instance = id.instance, ?drain, "service removed: draining it");
            }
        }
        for (id, service) in wanted {
            let maintenance = self.maintenance.get(&id).cloned();
            match self.keepers.entry(id) {
                Entry::Occupied(entry) => entry.get().serve(service, maintenance),
                Entry::Vacant(entry) => {
                    let ttl = service.ttl.as_secs();
                    let adopts = self.leases.get(ttl).filter(|_| !self.started);
                    let registrar = self
                        .registrars
                        .entry(ttl)
                        .or_insert_with(|| start_registrar(&self.connector, &self.leases, &self.board, service.ttl));
                    let registrar = Arc::clone(&registrar.registrar);
                    let (id, shared) = (entry.key().clone(), shared.clone());
                    entry.insert(RunningKeeper::start(
                        |desired, progress| Keeper::new(id, registrar, adopts, desired, progress, shared),
                        Desired { service, phase: Phase::Serve, maintenance },
                    ));
                }
            }
        }
        if !self.started {
            self.prune_when_decided();
        }
        self.started = true;
        // A keeper whose service has left ends when nobody can ask it to serve again.
        self.keepers.retain(|_, keeper| *keeper.progress.borrow() != Progress::Gone || keeper.is_to_serve());
    }

    /// How far a service is that was told to leave.
    pub fn departure(&self, id: &ServiceId, drain: Duration) -> Departure {
        Departure { drain, progress: self.keepers.get(id).map(|keeper| keeper.progress.clone()) }
    }

    fn shared(&self) -> Shared {
        let (board, heartbeats, cut) = (self.board(), self.heartbeats(), self.cut.clone());
        Shared { board, heartbeats, cut }
    }

    fn prune_when_decided(&mut self) {
        for (ttl, leased) in &mut self.registrars {
            let of_ttl = || self.keepers.values().filter(|keeper| keeper.ttl() == *ttl);
            let keepers = of_ttl().map(|keeper| keeper.progress.clone()).collect();
            let limit = DECIDE_MARGIN + of_ttl().map(RunningKeeper::time_to_fail).max().unwrap_or_default();
            leased.tasks.push(tokio::spawn(prune_once_decided(Arc::clone(&leased.registrar), keepers, limit)));
        }
    }

    /// Drains every service, deregisters them and gives the leases up.
    pub async fn leave(mut self, drain: Duration) {
        for keeper in self.keepers.values() {
            keeper.leave(drain);
        }
        let gone = async {
            for keeper in self.keepers.values_mut() {
                // An error means that the keeper has ended, which is as good.
                _ = keeper.progress.wait_for(|progress| *progress == Progress::Gone).await;
            }
        };
        if tokio::time::timeout(drain + LEAVE_MARGIN, gone).await.is_err() {
            warn!("not every service could be deregistered in time: their leases expire by themselves");
        }
        self.upstreams.leave().await;
        self.end(Shutdown::Deregister).await;
    }

    /// Stops without touching the registry, so that the next run adopts what is registered.
    pub async fn abandon(self) {
        self.end(Shutdown::Leave).await;
    }

    async fn end(self, mode: Shutdown) {
        for keeper in self.keepers.into_values() {
            keeper.task.abort();
            // Aborted or ended: either way it no longer shares its registrar.
            _ = keeper.task.await;
        }
        for (ttl, LeasedRegistrar { registrar, tasks }) in self.registrars {
            for task in tasks {
                task.abort();
                _ = task.await;
            }
            let deregisters = matches!(mode, Shutdown::Deregister);
            match Arc::into_inner(registrar) {
                Some(registrar) => registrar.shutdown(mode).await,
                None => warn!(ttl, "a registrar is still in use: its lease expires by itself"),
            }
            if deregisters {
                _ = note(&self.leases, ttl, None).await;
            }
        }
    }
}

fn start_registrar(connector: &Connector, leases: &Arc<Leases>, board: &Arc<Board>, ttl: Duration) -> LeasedRegistrar {
    let options = RegistrarOptions { ttl, adopt: leases.get(ttl.as_secs()) };
    let registrar = Arc::new(Registrar::start(connector.clone(), options));
    let noting = note_leases(Arc::clone(&registrar), Arc::clone(leases), Arc::clone(board), ttl.as_secs());
    LeasedRegistrar { registrar, tasks: vec![tokio::spawn(noting)] }
}

/// Keeps the file of leases up to date.
async fn note_leases(registrar: Arc<Registrar>, leases: Arc<Leases>, board: Arc<Board>, ttl: u64) {
    let mut lease = registrar.lease();
    loop {
        let held = *lease.borrow_and_update();
        board.note_leases_lost(ttl, registrar.stats().leases_lost);
        // A lost lease stays noted until there is another: adopting one that is gone does no harm.
        let noted = held.is_none() || note(&leases, ttl, held).await;
        tokio::select! {
            changed = lease.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(NOTE_RETRY), if !noted => {}
        }
    }
}

/// Once each of the keepers has decided, whatever else an adopted lease holds is of services that are not configured
/// any more. Past the limit, those that have not have no address: what is registered of them leads nowhere.
async fn prune_once_decided(registrar: Arc<Registrar>, keepers: Vec<watch::Receiver<Progress>>, limit: Duration) {
    let decided = async {
        for mut keeper in keepers {
            // An error means that the keeper has ended, which is as decided as can be.
            _ = keeper.wait_for(|progress| *progress != Progress::Deciding).await;
        }
    };
    if tokio::time::timeout(limit, decided).await.is_err() {
        warn!(?limit, "not every service is registered in time: what the previous run left of the others is deleted");
    }
    registrar.prune();
}

/// Whether the file says so now.
async fn note(leases: &Arc<Leases>, ttl: u64, lease: Option<i64>) -> bool {
    let leases = Arc::clone(leases);
    match tokio::task::spawn_blocking(move || leases.set(ttl, lease)).await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => warn!(%error, "as it is, a restarted agent would not adopt its lease but register anew"),
        Err(error) => warn!(%error, "noting a lease failed"),
    }
    false
}

impl RunningKeeper {
    fn start(
        keeper: impl FnOnce(watch::Receiver<Desired>, watch::Sender<Progress>) -> Keeper,
        desired: Desired,
    ) -> Self {
        let (desired, desired_receiver) = watch::channel(desired);
        let (progress_sender, progress) = watch::channel(Progress::Deciding);
        let task = tokio::spawn(keeper(desired_receiver, progress_sender).run());
        Self { desired, progress, task }
    }

    fn ttl(&self) -> u64 {
        self.desired.borrow().service.ttl.as_secs()
    }

    /// How long its check may take to find that the service fails.
    fn time_to_fail(&self) -> Duration {
        let service = Arc::clone(&self.desired.borrow().service);
        service.check.as_ref().map_or(Duration::ZERO, Check::time_to_fail)
    }

    fn is_to_serve(&self) -> bool {
        self.desired.borrow().phase == Phase::Serve
    }

    fn serve(&self, service: Arc<Service>, maintenance: Option<Arc<str>>) {
        self.desired.send_if_modified(|desired| {
            let mut service = service;
            if service.ttl != desired.service.ttl {
                // Another TTL is another lease: moving a living key between two would show it as gone in between.
                let (service_name, ttl) = (&service.name, desired.service.ttl);
                warn!(service = %service_name, ?ttl, "a changed ttl takes effect when the agent is restarted");
                service = Arc::new(Service { ttl, ..Service::clone(&service) });
            }
            if desired.maintenance != maintenance {
                let (on, reason) = (maintenance.is_some(), maintenance.as_deref());
                info!(service = %service.name, instance = service.instance, on, reason, "maintenance");
            }
            if desired.phase != Phase::Serve || desired.service != service {
                info!(service = %service.name, instance = service.instance, "service changed");
            }
            let next = Desired { service, phase: Phase::Serve, maintenance };
            let changed = *desired != next;
            *desired = next;
            changed
        });
    }

    /// Whether that is news to it.
    fn leave(&self, drain: Duration) -> bool {
        self.desired.send_if_modified(|desired| {
            let news = desired.phase == Phase::Serve;
            if news {
                desired.phase = Phase::Leave { drain };
            }
            news
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;
    use waypost_catalog::Health;
    use waypost_registry::ConnectOptions;

    use super::*;
    use crate::config;

    /// Registrations with an etcd that is not there.
    fn registrations(leases: Leases) -> Registrations {
        let connector = Connector::new(ConnectOptions {
            endpoints: vec!["http://127.0.0.1:1".into()],
            auth: None,
            tls: None,
            connect_timeout: Duration::from_millis(200),
            request_timeout: Duration::from_millis(200),
        });
        Registrations::new(connector.unwrap(), Arc::new(leases), CancellationToken::new())
    }

    fn no_leases(dir: &tempfile::TempDir) -> Leases {
        Leases::load(dir.path().join("leases.json"), "host-a")
    }

    fn services(text: &str) -> Vec<Service> {
        let text = format!("[etcd]\nendpoints = [\"http://127.0.0.1:1\"]\n{text}");
        config::parse("agent.toml", &text, "host-a").unwrap().services
    }

    const WEB: &str = "[[service]]\nname = \"web\"\nport = 80\naddress = \"127.0.0.1\"\n";
    /// Nothing listens on port 1.
    const FAILING: &str = "[[service]]\nname = \"web\"\nport = 1\naddress = \"127.0.0.1\"\n\
                           check = { type = \"tcp\", interval = \"100ms\", fall = 2 }\n";

    async fn until(board: &Board, expected: impl Fn(&[ServiceStatus]) -> bool) -> Vec<ServiceStatus> {
        let limit = Instant::now() + Duration::from_secs(5);
        loop {
            let found: Vec<_> = board.services().into_iter().map(|(_, status)| status).collect();
            if expected(&found) {
                return found;
            }
            assert!(Instant::now() < limit, "{found:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn health(status: &[ServiceStatus]) -> Option<Health> {
        status.first().and_then(|status| status.health)
    }

    #[tokio::test]
    async fn leaving_ends_in_time_though_etcd_is_down() {
        let dir = tempfile::tempdir().unwrap();
        let mut registrations = registrations(no_leases(&dir));
        let board = registrations.board();
        registrations.apply(&services(WEB), Duration::ZERO);
        until(&board, |status| health(status) == Some(Health::Passing)).await;
        let started = Instant::now();
        registrations.leave(Duration::from_millis(100)).await;
        assert!(started.elapsed() < LEAVE_MARGIN + Duration::from_secs(5), "{:?}", started.elapsed());
        assert!(board.services().is_empty());
    }

    #[tokio::test]
    async fn a_removed_service_drains_and_serves_on_if_it_is_named_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut registrations = registrations(no_leases(&dir));
        let board = registrations.board();
        registrations.apply(&services(WEB), Duration::ZERO);
        until(&board, |status| health(status) == Some(Health::Passing)).await;
        registrations.apply(&[], Duration::from_secs(60));
        until(&board, |status| health(status) == Some(Health::Draining)).await;
        registrations.apply(&services(WEB), Duration::ZERO);
        until(&board, |status| health(status) == Some(Health::Passing)).await;
        registrations.abandon().await;
    }

    #[tokio::test]
    async fn cutting_the_drain_short_lets_services_leave_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut registrations = registrations(no_leases(&dir));
        let (board, cut) = (registrations.board(), registrations.cut.clone());
        registrations.apply(&services(WEB), Duration::ZERO);
        until(&board, |status| health(status) == Some(Health::Passing)).await;
        let leaving = tokio::spawn(registrations.leave(Duration::from_secs(3600)));
        until(&board, |status| health(status) == Some(Health::Draining)).await;
        cut.cancel();
        let ended = tokio::time::timeout(LEAVE_MARGIN + Duration::from_secs(5), leaving).await;
        ended.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_new_service_whose_check_fails_is_critical_from_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let mut registrations = registrations(no_leases(&dir));
        registrations.apply(&services(FAILING), Duration::ZERO);
        let found = until(&registrations.board(), |status| health(status).is_some()).await;
        assert_eq!(health(&found), Some(Health::Critical));
        assert!(found[0].registration.is_some(), "seen, but not picked");
        registrations.abandon().await;
    }

    #[tokio::test]
    async fn a_service_of_an_adopted_lease_is_left_as_it_was_until_its_check_has_decided() {
        let dir = tempfile::tempdir().unwrap();
        let leases = no_leases(&dir);
        leases.set(5, Some(42)).unwrap();
        let mut registrations = registrations(leases);
        let board = registrations.board();
        registrations.apply(&services(FAILING), Duration::ZERO);
        let first = until(&board, |status| status.first().is_some_and(|status| status.check.is_some())).await;
        assert!(first[0].health.is_none() && first[0].registration.is_none(), "{first:?}");
        until(&board, |status| health(status) == Some(Health::Critical)).await;
        registrations.abandon().await;
    }

    #[tokio::test]
    async fn a_service_whose_address_moves_is_registered_anew_where_the_key_holds_the_address() {
        let dir = tempfile::tempdir().unwrap();
        let registrations = registrations(no_leases(&dir));
        let (leases, board) = (&registrations.leases, registrations.board());
        let ttl = Duration::from_secs(5);
        let LeasedRegistrar { registrar, .. } = start_registrar(&registrations.connector, leases, &board, ttl);
        for (format, key_of_old, key_of_new) in [
            ("waypost", "/s/web/host-a-80", "/s/web/host-a-80"),
            ("endpoint-key", "/s/web/10.0.0.1:80", "/s/web/10.0.0.2:80"),
        ] {
            let text = format!("[[service]]\nname = \"web\"\nport = 80\nformat = \"{format}\"\nroot = \"/s/\"\n");
            let service = services(&text).remove(0);
            let desired = Desired { service: Arc::new(service.clone()), phase: Phase::Serve, maintenance: None };
            let (_desired, desired) = watch::channel(desired);
            let (progress, _progress) = watch::channel(Progress::Deciding);
            let id = ServiceId::of(&service);
            let registrar = Arc::clone(&registrar);
            let mut keeper = Keeper::new(id, registrar, None, desired, progress, registrations.shared());
            keeper.follow(&service, Ok([10, 0, 0, 1].into()));
            assert_eq!(keeper.key().as_deref(), Some(key_of_old));
            keeper.follow(&service, Err(waypost_registry::address::AddressError::OnlyLoopback));
            assert_eq!(keeper.key().as_deref(), Some(key_of_old), "while there is no address it stays");
            keeper.follow(&service, Ok([10, 0, 0, 2].into()));
            assert_eq!(keeper.key().as_deref(), Some(key_of_new));
            assert_eq!(board.services()[0].1.address, Some(([10, 0, 0, 2], 80).into()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pruning_waits_for_undecided_services_but_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let registrations = registrations(no_leases(&dir));
        let (leases, board) = (&registrations.leases, registrations.board());
        let ttl = Duration::from_secs(5);
        let LeasedRegistrar { registrar, .. } = start_registrar(&registrations.connector, leases, &board, ttl);
        let (_undecided, progress) = watch::channel(Progress::Deciding);
        let started = Instant::now();
        prune_once_decided(registrar, vec![progress], DECIDE_MARGIN).await;
        assert_eq!(started.elapsed().as_secs(), DECIDE_MARGIN.as_secs());
    }

    #[tokio::test]
    async fn a_changed_ttl_waits_for_a_restart_and_other_changes_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut registrations = registrations(no_leases(&dir));
        registrations.apply(&services(WEB), Duration::ZERO);
        registrations.apply(&services(&format!("{WEB}ttl = \"9s\"\nweight = 7\n")), Duration::ZERO);
        let keeper = registrations.keepers.values().next().unwrap();
        let service = Arc::clone(&keeper.desired.borrow().service);
        assert_eq!((service.ttl, service.weight), (Duration::from_secs(5), 7));
        assert_eq!(registrations.registrars.len(), 1);
        registrations.abandon().await;
    }
}
