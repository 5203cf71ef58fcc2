//! Everything under a prefix, in step with etcd.
//!
//! The full state first, at one revision, and from there on every change; after any doubt the full state again. What
//! to do is decided by `mirror_machine`, whose page says how; the task here carries it out.

mod wire;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use etcd_client::{Client, GetOptions, WatchOptions, WatchStream};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    connection::{Connector, describe},
    mirror_machine::{Beside, MirrorMachine, Page, Range, RangeFailure, Step, prefix_end, range_start},
    session::MAX_ANSWER_BYTES,
};

/// Events on their way to the consumer.
const QUEUE: usize = 64;

/// What to mirror, and how closely.
#[derive(Clone, Debug)]
pub struct MirrorOptions {
    /// Every key that begins so.
    pub prefix: String,
    /// Keys asked for at once.
    pub page_size: i64,
    /// How often etcd is asked how far it is when nothing happens.
    pub progress_interval: Duration,
    /// A stream silent for that long is dead.
    pub silence_limit: Duration,
    /// Only the key that *is* `prefix`, not those that begin with it.
    pub single_key: bool,
    /// About how often everything is fetched anew beside the watch, for whoever trusts no watch: one second at least;
    /// `None`, the default, for never. What follows is a [`MirrorEvent::Synced`] for [`ResyncReason::Refreshed`].
    pub refresh: Option<Duration>,
}

impl MirrorOptions {
    /// The usual settings for a prefix.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
            page_size: 1000,
            progress_interval: Duration::from_secs(5),
            silence_limit: Duration::from_secs(12),
            single_key: false,
            refresh: None,
        }
    }

    /// The usual settings for one key.
    pub fn single_key(key: impl Into<String>) -> Self {
        Self { single_key: true, ..Self::new(key) }
    }

    /// The first key behind the mirrored ones, or `\0` for "no end".
    fn range_end(&self) -> Vec<u8> {
        if !self.single_key {
            return prefix_end(self.prefix.as_bytes());
        }
        let mut end = range_start(&self.prefix);
        end.push(0);
        end
    }
}

/// A key and what etcd holds for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// Revision of its last change.
    pub mod_revision: i64,
    /// Revision in which it was created.
    pub create_revision: i64,
    /// Its lease; 0 if it has none.
    pub lease: i64,
}

/// What happened to the keys.
#[derive(Clone, Debug)]
pub enum MirrorEvent {
    /// The full state: what is not in it is gone.
    Synced {
        /// Every key, in order.
        entries: Vec<Arc<KeyValue>>,
        /// The revision at which it was so.
        revision: i64,
        /// Why it was fetched.
        reason: ResyncReason,
    },
    /// What changed since: every change, in etcd's order. A key may come more than once.
    Changed {
        /// The changes; at least one.
        changes: Vec<KeyChange>,
        /// Revision of the last of them.
        revision: i64,
    },
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyChange {
    /// It was written.
    Put(Arc<KeyValue>),
    /// It was deleted, or its lease ended.
    Delete {
        /// The key.
        key: String,
        /// The revision in which it went.
        revision: i64,
    },
}

impl KeyChange {
    /// The key.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(put) => &put.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The revision in which it changed.
    pub fn revision(&self) -> i64 {
        match self {
            Self::Put(put) => put.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// Why the full state was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResyncReason {
    /// The first time.
    First,
    /// The stream broke off.
    Reconnected,
    /// etcd had forgotten the revisions in between.
    Compacted,
    /// etcd went back to an earlier revision: wiped, or restored from a backup.
    RevisionRegressed,
    /// Another cluster answered.
    ClusterChanged,
    /// It was time to, as [`MirrorOptions::refresh`] asks. The watch goes on meanwhile, and nothing was missed unless
    /// what is now handed over differs from what the events before it made.
    Refreshed,
}

impl ResyncReason {
    /// Every reason.
    pub const ALL: [Self; 6] = [
        Self::First,
        Self::Reconnected,
        Self::Compacted,
        Self::RevisionRegressed,
        Self::ClusterChanged,
        Self::Refreshed,
    ];

    /// The name used in metrics and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Reconnected => "reconnected",
            Self::Compacted => "compacted",
            Self::RevisionRegressed => "revision_regressed",
            Self::ClusterChanged => "cluster_changed",
            Self::Refreshed => "refreshed",
        }
    }
}

impl std::fmt::Display for ResyncReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// How the mirror stands.
#[derive(Clone, Debug)]
pub struct MirrorStatus {
    /// In step with etcd now: the full state was delivered and the stream lives.
    pub synced: bool,
    /// The revision it stands at; 0 before the first full state.
    pub revision: i64,
    /// The cluster's id; 0 before the first full state.
    pub cluster_id: u64,
    /// When it was last known to be current; the time of its start before the first full state.
    pub last_contact: Instant,
    /// How often the full state was fetched, in the order of [`ResyncReason::ALL`].
    pub resyncs: [(ResyncReason, u64); ResyncReason::ALL.len()],
    /// Keys left out because they are no UTF-8; each counts once until it changes.
    pub skipped_keys: u64,
    /// Why it is not in step.
    pub cause: Option<String>,
}

/// Keeps a copy of a prefix in step with etcd, for ever. One watch a mirror: to share one among many users, take a
/// [`crate::Registry`].
///
/// ```
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let etcd = waypost_registry_testing::Etcd::start().await;
/// # let endpoint = etcd.url();
/// use waypost_registry::{ConnectOptions, Connector, KeyChange, Mirror, MirrorEvent, MirrorOptions};
///
/// let connector = Connector::new(ConnectOptions::new([endpoint]))?;
/// let (mirror, mut events) = Mirror::start(connector.clone(), MirrorOptions::new("/jobs/"));
/// // The full state first, and again whenever there is doubt.
/// let Some(MirrorEvent::Synced { entries, .. }) = events.recv().await else { return Err("no full state".into()) };
/// assert!(entries.is_empty());
///
/// connector.connect().await?.put("/jobs/1", "print", None).await?;
/// let Some(MirrorEvent::Changed { changes, .. }) = events.recv().await else { return Err("no change".into()) };
/// assert!(matches!(&changes[..], [KeyChange::Put(entry)] if entry.key == "/jobs/1" && entry.value == b"print"));
/// mirror.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Mirror {
    status: watch::Receiver<MirrorStatus>,
    task: JoinHandle<()>,
    stop: DropGuard,
}

impl Mirror {
    /// Starts, on the present Tokio runtime. Events come through the receiver; a slow receiver delays the mirror, and
    /// loses nothing. Dropping the receiver or the mirror ends it.
    pub fn start(connector: Connector, options: MirrorOptions) -> (Self, mpsc::Receiver<MirrorEvent>) {
        Self::start_after(std::future::ready(()), connector, options)
    }

    /// As [`Self::start`], once something else has ended.
    pub(crate) fn start_after(
        other: impl Future<Output = ()> + Send + 'static,
        connector: Connector,
        options: MirrorOptions,
    ) -> (Self, mpsc::Receiver<MirrorEvent>) {
        let (events, receiver) = mpsc::channel(QUEUE);
        let machine = MirrorMachine::new(options.clone(), now());
        let (status_sender, status) = watch::channel(machine.status().clone());
        let stop = CancellationToken::new();
        let task = Task {
            limit: connector.request_timeout(),
            connector,
            range_end: options.range_end(),
            prefix: options.prefix,
            machine,
            events,
            status: status_sender,
            client: None,
            stream: None,
            page: None,
        };
        let task = tokio::spawn(task.run(other, stop.clone()));
        (Self { status, task, stop: stop.drop_guard() }, receiver)
    }

    /// How it stands, now and whenever that changes.
    pub fn status(&self) -> watch::Receiver<MirrorStatus> {
        self.status.clone()
    }

    /// Ends it, and returns when it has ended.
    pub async fn shutdown(self) {
        drop(self.stop);
        // The task heeds the token wherever it waits.
        let _ = self.task.await;
    }
}

/// The thin ring round the machine.
struct Task {
    connector: Connector,
    limit: Duration,
    prefix: String,
    range_end: Vec<u8>,
    machine: MirrorMachine,
    events: mpsc::Sender<MirrorEvent>,
    status: watch::Sender<MirrorStatus>,
    client: Option<Client>,
    stream: Option<WatchStream>,
    /// The page that is fetched beside the watch.
    page: Option<PendingPage>,
}

/// When a page was asked for, and what comes of it.
type PendingPage = Pin<Box<dyn Future<Output = (Instant, Result<Page, RangeFailure>)> + Send>>;

/// The receiver is gone: nobody wants to know any more.
struct NobodyListens;

impl Task {
    async fn run(mut self, other: impl Future<Output = ()>, stop: CancellationToken) {
        let work = async {
            other.await;
            self.work().await
        };
        tokio::select! {
            () = stop.cancelled() => {}
            NobodyListens = work => {}
        }
    }

    async fn work(&mut self) -> NobodyListens {
        loop {
            let step = self.machine.next(now());
            let carried_out = match step {
                Step::Wait(until) => {
                    self.drop_connection();
                    tokio::select! {
                        () = tokio::time::sleep_until(until.into()) => Ok(()),
                        () = self.events.closed() => return NobodyListens,
                    }
                }
                Step::Connect => self.connect().await,
                Step::Range(range) => self.range(range).await,
                Step::Watch { from } => self.watch(from).await,
                Step::Listen { ask_at, dead_at, beside } => {
                    if let (Beside::Page(range), None) = (&beside, &self.page) {
                        self.page = self.fetch(range.clone()).ok();
                    }
                    tokio::select! {
                        carried_out = listen(&mut self.machine, self.stream.as_mut(), self.limit, ask_at, dead_at) => carried_out,
                        (asked_at, outcome) = pending(&mut self.page) => {
                            self.page = None;
                            self.machine.ranged(outcome, asked_at, now(), fastrand::f64());
                            Ok(())
                        }
                        () = due(&beside) => Ok(()),
                        () = self.events.closed() => return NobodyListens,
                    }
                }
            };
            if let Err(cause) = carried_out {
                self.drop_connection();
                self.machine.failed(cause, now(), fastrand::f64());
            }
            if self.deliver().await.is_err() {
                return NobodyListens;
            }
        }
    }

    fn drop_connection(&mut self) {
        self.page = None;
        self.stream = None;
        self.client = None;
    }

    /// Hands over what happened, and then says how the mirror stands: in this order, so that nobody who sees it
    /// current has less than that.
    async fn deliver(&mut self) -> Result<(), NobodyListens> {
        let before = now();
        while let Some(event) = self.machine.take_event() {
            self.events.send(event).await.map_err(|_| NobodyListens)?;
        }
        // While the consumer was slow nobody listened to etcd: that was not etcd's silence.
        self.machine.delayed(now().saturating_duration_since(before));
        self.status.send_replace(self.machine.status().clone());
        Ok(())
    }

    async fn connect(&mut self) -> Result<(), String> {
        let (client, endpoint) = self.connector.connect_named().await.map_err(|error| error.to_string())?;
        self.machine.connected(&endpoint);
        self.client = Some(client);
        Ok(())
    }

    async fn range(&mut self, range: Range) -> Result<(), String> {
        self.page = None;
        self.stream = None;
        let (asked_at, outcome) = self.fetch(range)?.await;
        self.machine.ranged(outcome, asked_at, now(), fastrand::f64());
        Ok(())
    }

    fn fetch(&self, range: Range) -> Result<PendingPage, String> {
        let client = self.client.as_ref().ok_or("not connected")?;
        let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
        // In the order of the keys, which is etcd's own: asking for it would make etcd fetch everything and sort it.
        let options =
            GetOptions::new().with_range(self.range_end.clone()).with_revision(range.revision).with_limit(range.limit);
        let (asked_at, limit) = (now(), self.limit);
        Ok(Box::pin(async move {
            let outcome = match tokio::time::timeout(limit, kv.get(range.from, Some(options))).await {
                Ok(answer) => answer.map_err(|error| wire::range_failure(&error)).and_then(wire::page),
                Err(_) => Err(RangeFailure::TimedOut(limit)),
            };
            (asked_at, outcome)
        }))
    }

    async fn watch(&mut self, from: i64) -> Result<(), String> {
        let client = self.client.as_ref().ok_or("not connected")?;
        let mut watch = client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES);
        let options = WatchOptions::new()
            .with_range(self.range_end.clone())
            .with_start_revision(from)
            .with_progress_notify()
            .with_fragment();
        let opened = tokio::time::timeout(self.limit, watch.watch(range_start(&self.prefix), Some(options))).await;
        let opened = opened.map_err(|_| format!("no watch within {:?}", self.limit))?;
        self.stream = Some(opened.map_err(|error| describe(&error))?);
        self.machine.opened(now());
        Ok(())
    }
}

/// The page under way; for ever if there is none.
async fn pending(page: &mut Option<PendingPage>) -> (Instant, Result<Page, RangeFailure>) {
    match page {
        Some(page) => page.await,
        None => std::future::pending().await,
    }
}

/// Until something is to be fetched.
async fn due(beside: &Beside) {
    match beside {
        Beside::NothingUntil(due) => tokio::time::sleep_until((*due).into()).await,
        Beside::Nothing | Beside::Page(_) => std::future::pending().await,
    }
}

/// Waits for a message, or until it is time to ask for one, or to give up.
async fn listen(
    machine: &mut MirrorMachine,
    stream: Option<&mut WatchStream>,
    limit: Duration,
    ask_at: Instant,
    dead_at: Instant,
) -> Result<(), String> {
    let stream = stream.ok_or("no watch")?;
    tokio::select! {
        // What has come counts before what the clock says: after a long stop of this process both are due.
        biased;
        message = stream.message() => {
            let message = message.map_err(|error| describe(&error))?.ok_or("etcd ended the watch")?;
            machine.received(wire::message(message), now(), fastrand::f64());
        }
        () = tokio::time::sleep_until(dead_at.into()) => return Err("the watch fell silent".into()),
        () = tokio::time::sleep_until(ask_at.into()) => {
            let asked = tokio::time::timeout(limit, stream.request_progress()).await;
            asked.map_err(|_| "the watch takes no requests")?.map_err(|error| describe(&error))?;
            machine.asked(now());
        }
    }
    Ok(())
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
