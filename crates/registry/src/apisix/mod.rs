//! Our nodes in APISIX's upstreams: one key holds the nodes of all hosts, so one elected writer puts them in.
//!
//! ```text
//! /waypost/apisix/<root><id>/nodes/<instance>   a node that its agent registers, under its own lease
//! /waypost/apisix/<root><id>/leader/<lease>     the election of the writer
//! /waypost/apisix/<root><id>/written            the nodes in the upstream that are ours
//! <root><id>                                    the upstream: no lease, and not ours alone
//! ```
//!
//! The leader reads all of it at one revision, composes the value (`compose`) and writes it together with `written`, in
//! one transaction that compares the revision of either and its own leadership: what somebody else writes in between is
//! never lost, and no leader of before can write. It does so whenever a node comes, changes or goes, and whenever the
//! upstream changes by another hand. If it dies, the next one finds in `written` what was put in.

mod compose;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    pin::pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use waypost_catalog::{Health, Protocol, ServiceName};

use self::compose::{ComposeError, Composed, Wanted, compose};
use crate::{
    Election, Leadership, LockError, Mirror, MirrorOptions, backoff::Backoff, connection::Connector, format::Format,
};

/// Under which Waypost keeps what belongs to upstreams.
const BASE: &str = "/waypost/apisix/";
/// How long a dead writer is missed.
const TTL: Duration = Duration::from_secs(5);
const RETRY_BASE: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// An upstream of APISIX's, and where Waypost keeps what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Upstream {
    id: ServiceName,
    key: String,
    base: String,
}

impl Upstream {
    /// The upstream `<root><id>`.
    pub fn new(root: &str, id: &ServiceName) -> Self {
        let key = format!("{}/{id}", root.trim_end_matches('/'));
        let base = format!("{BASE}{}", key.trim_start_matches('/'));
        Self { id: id.clone(), key, base }
    }

    /// Its key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Before the keys of the nodes that are to be in it.
    pub fn nodes_prefix(&self) -> String {
        format!("{}/nodes/", self.base)
    }

    /// The name of the election of its writer.
    pub fn election(&self) -> String {
        format!("{}/leader", self.base)
    }

    fn written_key(&self) -> String {
        format!("{}/written", self.base)
    }
}

/// Takes part in the election of an upstream's writer, for ever, and writes while it is the leader.
#[derive(Debug)]
pub struct UpstreamWriter {
    /// Whose nodes have to be gone before this one may go.
    leaving: watch::Sender<Option<BTreeSet<String>>>,
    task: JoinHandle<()>,
    stop: DropGuard,
}

impl UpstreamWriter {
    /// Starts, on the present Tokio runtime. `candidate` is what the election shows of it. Dropping it ends it.
    ///
    /// # Errors
    /// None in practice: the election's name is not empty.
    pub fn start(connector: Connector, upstream: Upstream, candidate: impl Into<String>) -> Result<Self, LockError> {
        let election = Election::new(connector.clone(), upstream.election(), TTL)?;
        let (leaving, leaving_receiver) = watch::channel(None);
        let stop = CancellationToken::new();
        let backoff = Backoff::new(RETRY_BASE, RETRY_MAX);
        let candidate = candidate.into();
        let task = Task { connector, upstream, candidate, election, leaving: leaving_receiver, backoff, problem: None };
        Ok(Self { leaving, task: tokio::spawn(task.run(stop.clone())), stop: stop.drop_guard() })
    }

    /// Ends it when it is not needed any more: a leader stays until none of these instances is in the upstream, so that
    /// what this host put in does not outlive it. After `limit` it goes in any case, and the next leader takes them out.
    pub async fn leave(self, instances: BTreeSet<String>, limit: Duration) {
        self.leaving.send_replace(Some(instances));
        let mut task = self.task;
        if tokio::time::timeout(limit, &mut task).await.is_err() {
            drop(self.stop);
            // The task heeds the token wherever it waits, and gives its place up within a deadline.
            let _ = task.await;
        }
    }
}

/// How a term ended.
enum Ended {
    Lost,
    Left,
}

/// What an attempt to bring the upstream in step came to.
enum Outcome {
    /// It is in step; these instances are in it.
    InStep(BTreeSet<String>),
    /// Somebody else wrote at the same time, or this one did: it is to be looked at again.
    Again,
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("it is left as it is: {0}")]
    Compose(#[from] ComposeError),
    #[error("etcd's answer was not understood")]
    Answer,
    #[error("what is ours in it cannot be noted: {0}")]
    Note(#[from] serde_json::Error),
}

/// Everything that decides what is to be written, at one revision.
struct Read {
    wanted: Wanted,
    instances: BTreeSet<String>,
    /// What is wrong with one of the registered nodes.
    problem: Option<String>,
    upstream: Option<KeyValue>,
    written: Option<KeyValue>,
}

struct Task {
    connector: Connector,
    upstream: Upstream,
    candidate: String,
    election: Election,
    leaving: watch::Receiver<Option<BTreeSet<String>>>,
    backoff: Backoff,
    /// What went wrong last, so that it is said once.
    problem: Option<String>,
}

impl Task {
    async fn run(mut self, stop: CancellationToken) {
        stop.run_until_cancelled(self.work()).await;
        self.election.wind_up(self.connector.request_timeout()).await;
    }

    async fn work(&mut self) {
        let mut leaving = self.leaving.clone();
        loop {
            let elected = tokio::select! {
                elected = self.election.campaign(self.candidate.clone(), Duration::MAX) => elected,
                // Somebody else leads, who will see to it.
                _ = leaving.wait_for(Option::is_some) => return,
            };
            match elected {
                Ok(leadership) => match self.lead(leadership).await {
                    Ended::Left => return,
                    Ended::Lost => {}
                },
                Err(error) => {
                    self.note_problem(&error.to_string());
                    tokio::time::sleep(self.backoff.next(fastrand::f64())).await;
                }
            }
        }
    }

    async fn lead(&mut self, leadership: Leadership) -> Ended {
        tracing::info!(upstream = self.upstream.key, "this agent writes the upstream");
        let nodes = MirrorOptions::new(self.upstream.nodes_prefix());
        let (_nodes, mut nodes) = Mirror::start(self.connector.clone(), nodes);
        let upstream = MirrorOptions::single_key(self.upstream.key());
        let (_upstream, mut upstream) = Mirror::start(self.connector.clone(), upstream);
        let mut lost = pin!(leadership.lost());
        let mut leaving = self.leaving.clone();
        loop {
            let retry = match self.bring_in_step(&leadership).await {
                Ok(Outcome::InStep(instances)) => {
                    self.backoff.reset();
                    let gone = |leaving: &Option<BTreeSet<String>>| {
                        leaving.as_ref().is_some_and(|l| l.is_disjoint(&instances))
                    };
                    if gone(&leaving.borrow_and_update()) {
                        if let Err(error) = leadership.resign().await {
                            tracing::debug!(%error, upstream = self.upstream.key, "not resigned");
                        }
                        return Ended::Left;
                    }
                    None
                }
                Ok(Outcome::Again) => Some(self.backoff.next(fastrand::f64())),
                Err(error) => {
                    self.note_problem(&error.to_string());
                    Some(RETRY_BASE + self.backoff.next(fastrand::f64()))
                }
            };
            tokio::select! {
                cause = &mut lost => {
                    tracing::info!(upstream = self.upstream.key, %cause, "this agent does not write the upstream any more");
                    return Ended::Lost;
                }
                Some(_) = nodes.recv() => empty(&mut nodes),
                Some(_) = upstream.recv() => empty(&mut upstream),
                Ok(()) = leaving.changed() => {}
                () = tokio::time::sleep_until(Instant::now() + retry.unwrap_or_default()), if retry.is_some() => {}
            }
        }
    }

    async fn bring_in_step(&mut self, leadership: &Leadership) -> Result<Outcome, WriteError> {
        let Read { wanted, instances, problem, upstream, written } = self.read(leadership).await?;
        if let Some(problem) = &problem {
            self.note_problem(problem);
        }
        let note: BTreeSet<SocketAddr> = match &written {
            Some(written) => serde_json::from_slice(written.value())?,
            None => BTreeSet::new(),
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let existing = upstream.as_ref().map(KeyValue::value);
        let Composed { value, written: ours } = compose(&self.upstream.id, existing, &note, &wanted, now)?;
        let mut ops = Vec::new();
        if let Some(value) = value {
            let leased = upstream.as_ref().is_some_and(|upstream| upstream.lease() != 0);
            let options = leased.then(|| PutOptions::new().with_ignore_lease());
            ops.push(TxnOp::put(self.upstream.key(), value, options));
        }
        if ours != note {
            let key = self.upstream.written_key();
            ops.push(match ours.is_empty() {
                true => TxnOp::delete(key, None),
                false => TxnOp::put(key, serde_json::to_vec(&ours)?, None),
            });
        }
        if ops.is_empty() {
            self.problem.take_if(|_| problem.is_none());
            return Ok(Outcome::InStep(instances));
        }
        let unchanged = [
            Compare::mod_revision(self.upstream.key(), CompareOp::Equal, revision(upstream.as_ref())),
            Compare::mod_revision(self.upstream.written_key(), CompareOp::Equal, revision(written.as_ref())),
        ];
        let answer = leadership.transaction(Txn::new().when(unchanged).and_then(ops)).await?;
        if answer.succeeded() {
            tracing::info!(upstream = self.upstream.key, nodes = ours.len(), "upstream written");
            self.backoff.reset();
        }
        Ok(Outcome::Again)
    }

    /// Under the leadership: whoever is not the leader any more learns it here.
    async fn read(&self, leadership: &Leadership) -> Result<Read, WriteError> {
        let prefix = self.upstream.nodes_prefix();
        let reading = Txn::new().and_then([
            TxnOp::get(prefix.as_str(), Some(GetOptions::new().with_prefix())),
            TxnOp::get(self.upstream.key(), None),
            TxnOp::get(self.upstream.written_key(), None),
        ]);
        let answer = leadership.transaction(reading).await?;
        let mut answers = answer.op_responses().into_iter().map(|answer| match answer {
            TxnOpResponse::Get(mut answer) => Ok(answer.take_kvs()),
            _ => Err(WriteError::Answer),
        });
        let mut next = || answers.next().unwrap_or(Err(WriteError::Answer));
        let (nodes, upstream, written) = (next()?, next()?, next()?);
        let (mut wanted, mut instances) = (Wanted::default(), BTreeSet::new());
        let mut problem = None;
        for kv in nodes {
            let key = String::from_utf8_lossy(kv.key()).into_owned();
            instances.insert(key.strip_prefix(&prefix).unwrap_or_default().to_owned());
            match node(&prefix, &key, kv.value()) {
                Ok((address, weight, protocol)) => {
                    wanted.nodes.insert(address, weight);
                    wanted.protocol = protocol;
                }
                Err(fault) => problem = Some(format!("{key} is no node: {fault}")),
            }
        }
        Ok(Read {
            wanted,
            instances,
            problem,
            upstream: upstream.into_iter().next(),
            written: written.into_iter().next(),
        })
    }

    fn note_problem(&mut self, problem: &str) {
        if self.problem.as_deref() != Some(problem) {
            tracing::warn!(upstream = self.upstream.key, problem, "the upstream is not as it should be");
            self.problem = Some(problem.to_owned());
        }
    }
}

/// Address, weight and protocol of a registered node.
fn node(prefix: &str, key: &str, value: &[u8]) -> Result<(SocketAddr, u32, Protocol), String> {
    // The folder stands for the service that a watch of Waypost's own format would find there.
    let folder = prefix.strip_suffix("nodes/").unwrap_or(prefix);
    let (_, found) = Format::Waypost.decode(folder, key, value, Protocol::Http1).map_err(|error| error.to_string())?;
    let node = found.first().and_then(|found| found.node()).ok_or("its host has a name")?;
    let weight = if node.health == Health::Passing { node.weight } else { 0 };
    Ok((node.address, weight, node.protocol))
}

fn revision(kv: Option<&KeyValue>) -> i64 {
    kv.map_or(0, KeyValue::mod_revision)
}

/// What else has happened is seen with it.
fn empty<T>(events: &mut mpsc::Receiver<T>) {
    while events.try_recv().is_ok() {}
}
