//! Runs a mirror per watch, has the names of nodes' hosts looked up, and publishes what comes of it as the catalog.
//!
//! All queued events are taken in before a version is published: thousands of puts at once make a few versions, and a
//! single put goes out at once.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::{StreamExt as _, StreamMap, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use waypost_catalog::Catalog;
use waypost_registry::{Connector, HeldNode, Mirror, MirrorEvent, MirrorOptions, MirrorStatus, Resolver, SystemLookup};

use crate::{
    config::{self, Watch},
    effective::{Answer, Effective, Figures, Question, Request},
    published::{CatalogReceiver, Staleness},
    rules::RuleKind,
    state::catalog::DiskCopy,
};

/// Events taken in before a version is published, however many more there are.
const BATCH: usize = 4096;

/// Everything that may change at a reload.
#[derive(Clone, Debug, PartialEq)]
pub struct MirrorSettings {
    /// What is watched.
    pub watches: Vec<Watch>,
    /// The guard.
    pub guard: config::Guard,
    /// Failure domain of this host; empty if unknown.
    pub zone: String,
}

/// The ends of whoever runs strategy components.
#[derive(Debug)]
pub struct Components {
    /// What they are to be asked.
    pub requests: mpsc::UnboundedSender<Request>,
    /// What they have answered.
    pub answers: mpsc::UnboundedReceiver<Answer>,
}

/// How the mirrors stand, for metrics, the admin server and the stream's heartbeats.
#[derive(Debug)]
pub struct MirrorBoard {
    mirrors: Mutex<Vec<ShownMirror>>,
    figures: watch::Receiver<Figures>,
}

#[derive(Debug)]
struct ShownMirror {
    watch: Watch,
    status: watch::Receiver<MirrorStatus>,
    /// How old what is served of it before its first full mirror is.
    before: Instant,
}

impl MirrorBoard {
    /// Every watch and the state of its mirror.
    pub fn mirrors(&self) -> Vec<(Watch, MirrorStatus)> {
        let mirrors = self.mirrors.lock().unwrap_or_else(PoisonError::into_inner);
        mirrors.iter().map(|mirror| (mirror.watch.clone(), mirror.status.borrow().clone())).collect()
    }

    /// Figures of the merge.
    pub fn figures(&self) -> Figures {
        self.figures.borrow().clone()
    }
}

impl Staleness for MirrorBoard {
    fn stale_for(&self) -> Duration {
        let mirrors = self.mirrors.lock().unwrap_or_else(PoisonError::into_inner);
        let current = |mirror: &ShownMirror| match &*mirror.status.borrow() {
            MirrorStatus { revision: 0, .. } => mirror.before,
            status => status.last_contact,
        };
        let oldest = mirrors.iter().map(current).min();
        oldest.map_or(Duration::ZERO, |oldest| oldest.elapsed())
    }
}

/// The running mirrors.
#[derive(Debug)]
pub struct Mirroring {
    settings: watch::Sender<MirrorSettings>,
    board: Arc<MirrorBoard>,
    held: watch::Receiver<Vec<HeldNode>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Mirroring {
    /// Starts. The receiver has the disk copy at once, if there is one; the guard goes on holding what it `held`.
    pub fn start(
        connector: Connector,
        settings: MirrorSettings,
        disk: Option<DiskCopy>,
        held: Vec<HeldNode>,
        components: Option<Components>,
    ) -> (Self, CatalogReceiver) {
        let now = Instant::now();
        let before = disk.as_ref().and_then(|copy| now.checked_sub(copy.age)).unwrap_or(now);
        let MirrorSettings { watches, guard, zone } = settings.clone();
        let mut effective = Effective::new(watches, guard, zone, disk.map(|copy| copy.catalog), now);
        effective.hold(held, now);
        let (catalog, catalog_receiver) = watch::channel(effective.current());
        let (figures, figures_receiver) = watch::channel(effective.figures());
        let board = Arc::new(MirrorBoard { mirrors: Mutex::default(), figures: figures_receiver });
        let (held, held_receiver) = watch::channel(effective.held());
        let (settings, settings_receiver) = watch::channel(settings);
        let stop = CancellationToken::new();
        let mut worker = Worker {
            connector,
            settings: settings_receiver,
            effective,
            mirrors: Vec::new(),
            events: StreamMap::new(),
            rules: Vec::new(),
            rule_events: StreamMap::new(),
            components,
            resolver: Resolver::start(SystemLookup),
            catalog,
            figures,
            held,
            board: Arc::clone(&board),
        };
        worker.start_rules();
        worker.start_mirrors(before);
        let task = tokio::spawn(worker.run(stop.clone()));
        (Self { settings, board, held: held_receiver, stop, task }, catalog_receiver)
    }

    /// How the mirrors stand.
    pub fn board(&self) -> Arc<MirrorBoard> {
        Arc::clone(&self.board)
    }

    /// What the guard holds.
    pub fn held(&self) -> watch::Receiver<Vec<HeldNode>> {
        self.held.clone()
    }

    /// Takes other settings. Watches that stay go on undisturbed.
    pub fn apply(&self, settings: MirrorSettings) {
        self.settings.send_if_modified(|current| {
            let changed = *current != settings;
            *current = settings;
            changed
        });
    }

    /// Ends all mirrors.
    pub async fn shutdown(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            warn!(%error, "the mirrors ended badly");
        }
    }
}

struct RunningMirror {
    watch: Watch,
    mirror: Mirror,
    before: Instant,
}

struct Worker {
    connector: Connector,
    settings: watch::Receiver<MirrorSettings>,
    effective: Effective,
    mirrors: Vec<RunningMirror>,
    events: StreamMap<Watch, ReceiverStream<MirrorEvent>>,
    /// The mirrors of policies and routes.
    rules: Vec<Mirror>,
    rule_events: StreamMap<RuleKind, ReceiverStream<MirrorEvent>>,
    components: Option<Components>,
    resolver: Resolver,
    catalog: watch::Sender<Option<Arc<Catalog>>>,
    figures: watch::Sender<Figures>,
    held: watch::Sender<Vec<HeldNode>>,
    board: Arc<MirrorBoard>,
}

impl Worker {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let deadline = self.effective.next_deadline();
            tokio::select! {
                () = stop.cancelled() => break,
                changed = self.settings.changed() => match changed {
                    Ok(()) => self.reconfigure().await,
                    Err(_) => break,
                },
                Some((watch, event)) = self.events.next() => {
                    self.take_in(&watch, &event);
                    self.take_in_queued();
                }
                Some((kind, event)) = self.rule_events.next() => self.effective.apply_rules(kind, &event),
                answer = answered(&mut self.components) => self.effective.decided(answer),
                resolution = self.resolver.next() => self.effective.resolve(&resolution),
                () = sleep_until(deadline) => {}
            }
            if let Some(names) = self.effective.take_names() {
                self.resolver.want(names);
            }
            self.publish();
        }
        for mirror in self.mirrors.into_iter().map(|running| running.mirror).chain(self.rules) {
            mirror.shutdown().await;
        }
        self.resolver.shutdown().await;
    }

    fn take_in(&mut self, watch: &Watch, event: &MirrorEvent) {
        if let MirrorEvent::Changed { changes, revision } = event {
            debug!(prefix = watch.prefix, changes = changes.len(), revision, "mirror changed");
        }
        self.effective.apply(watch, event, Instant::now());
    }

    fn take_in_queued(&mut self) {
        for _ in 1..BATCH {
            // Outside the scheduler's budget, which would end the batch long before the queue is empty.
            match tokio::task::unconstrained(self.events.next()).now_or_never().flatten() {
                Some((watch, event)) => self.take_in(&watch, &event),
                None => return,
            }
        }
    }

    fn publish(&mut self) {
        if let Some(catalog) = self.effective.publish(Instant::now()) {
            debug!(version = catalog.version(), services = catalog.services().len(), "catalog published");
            self.catalog.send_replace(Some(catalog));
        }
        for request in self.effective.take_requests() {
            match (&self.components, request) {
                // Whoever runs them ends with the agent.
                (Some(components), request) => _ = components.requests.send(request),
                (None, Request::Weigh(Question { service, .. })) => {
                    warn!(%service, "no strategy component can run in this agent: plain weights are used");
                }
                (None, Request::Forget(_)) => {}
            }
        }
        let figures = self.effective.figures();
        let before = self.figures.send_replace(figures.clone());
        // Listing what is held is dear. What is held anew raises the one, what is held no more lowers the other.
        if (before.holds, before.held_nodes) != (figures.holds, figures.held_nodes) {
            self.held.send_replace(self.effective.held());
        }
    }

    async fn reconfigure(&mut self) {
        let MirrorSettings { watches, guard, zone } = self.settings.borrow_and_update().clone();
        self.effective.set_zone(&zone);
        self.effective.set_guard(guard, Instant::now());
        self.effective.set_watches(&watches);
        let (kept, removed): (_, Vec<_>) =
            std::mem::take(&mut self.mirrors).into_iter().partition(|running| watches.contains(&running.watch));
        self.mirrors = kept;
        // What is served of a new watch is what removed ones knew until now.
        self.start_mirrors(Instant::now());
        for RunningMirror { watch, mirror, .. } in removed {
            info!(prefix = watch.prefix, "watch removed");
            self.events.remove(&watch);
            mirror.shutdown().await;
        }
    }

    fn start_rules(&mut self) {
        for kind in RuleKind::ALL {
            let (mirror, events) = Mirror::start(self.connector.clone(), MirrorOptions::new(kind.prefix()));
            self.rules.push(mirror);
            self.rule_events.insert(kind, ReceiverStream::new(events));
        }
    }

    /// Starts a mirror for each watch that has none, and shows them all on the board. `before` says how old what is
    /// served of the new ones is.
    fn start_mirrors(&mut self, before: Instant) {
        let watches = self.settings.borrow().watches.clone();
        for watch in watches {
            if self.mirrors.iter().any(|known| known.watch == watch) {
                continue;
            }
            let (mirror, events) = Mirror::start(self.connector.clone(), MirrorOptions::new(watch.prefix.clone()));
            self.events.insert(watch.clone(), ReceiverStream::new(events));
            self.mirrors.push(RunningMirror { watch, mirror, before });
        }
        let shown = |RunningMirror { watch, mirror, before }: &RunningMirror| ShownMirror {
            watch: watch.clone(),
            status: mirror.status(),
            before: *before,
        };
        let shown = self.mirrors.iter().map(shown).collect();
        *self.board.mirrors.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    }
}

/// The next answer of a strategy component; of none, never.
async fn answered(components: &mut Option<Components>) -> Answer {
    let answer = match components {
        Some(components) => components.answers.recv().await,
        None => None,
    };
    match answer {
        Some(answer) => answer,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use waypost_catalog::Protocol;
    use waypost_registry::{ConnectOptions, Format};

    use super::*;

    fn settings(prefix: &str) -> MirrorSettings {
        let watch = Watch { prefix: prefix.into(), format: Format::Waypost, protocol: Protocol::Http1 };
        MirrorSettings { watches: vec![watch], guard: config::Guard::default(), zone: String::new() }
    }

    #[tokio::test]
    async fn a_watch_added_by_a_reload_is_as_old_as_its_mirror_and_not_as_the_disk_copy() {
        let endpoints = vec!["http://127.0.0.1:1".into()];
        let connector = Connector::new(ConnectOptions { endpoints, ..ConnectOptions::default() }).unwrap();
        let disk = DiskCopy { catalog: Catalog::default(), age: Duration::from_secs(3600) };
        let (mirroring, _catalog) = Mirroring::start(connector, settings("/a/"), Some(disk), Vec::new(), None);
        let board = mirroring.board();
        assert!(board.stale_for() >= Duration::from_secs(3600));
        mirroring.apply(settings("/b/"));
        let limit = Instant::now() + Duration::from_secs(5);
        while board.mirrors()[0].0.prefix != "/b/" {
            assert!(Instant::now() < limit);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(board.stale_for() < Duration::from_secs(60), "{:?}", board.stale_for());
        mirroring.shutdown().await;
    }
}
