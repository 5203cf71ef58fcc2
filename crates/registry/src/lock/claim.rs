//! A claim's task, and the handle to what it holds.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp, TxnOpResponse, TxnResponse};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{
    error::{LockError, LostCause},
    machine::{Claim, Standing, Step, Wish},
    wire::{Events, Wire},
};
use crate::{connection::Connector, lease_machine::Failure, session::failure};

/// Makes claims of one name, and knows their tasks.
#[derive(Clone, Debug)]
pub(crate) struct Claims {
    connector: Connector,
    name: String,
    ttl: Duration,
    tasks: TaskTracker,
}

impl Claims {
    pub(crate) fn new(connector: Connector, name: String, ttl: Duration) -> Result<Self, LockError> {
        if name.is_empty() {
            return Err(LockError::NoName);
        }
        let tasks = TaskTracker::new();
        // Closed only means that an empty tracker counts as done: tasks can be added all the same.
        tasks.close();
        Ok(Self { connector, name, ttl, tasks })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Waits until it is ours.
    pub(crate) async fn wait(&self, value: Vec<u8>, deadline: Duration) -> Result<Held, LockError> {
        let held = self.claim(value, true, deadline).await?;
        held.ok_or_else(|| self.timed_out(deadline, "somebody else is first".into()))
    }

    /// Takes it if nobody has it.
    pub(crate) async fn attempt(&self, deadline: Duration) -> Result<Option<Held>, LockError> {
        self.claim(Vec::new(), false, deadline).await
    }

    pub(crate) async fn wind_up(&self, deadline: Duration) {
        // What is not done by then ends with its lease.
        let _ = tokio::time::timeout(deadline, self.tasks.wait()).await;
    }

    async fn claim(&self, value: Vec<u8>, waits: bool, deadline: Duration) -> Result<Option<Held>, LockError> {
        let wish = Wish { name: self.name.clone(), value: value.into(), ttl: self.ttl, waits };
        let (connect, request) = (self.connector.connect_timeout(), self.connector.request_timeout());
        let claim = Claim::new(wish, connect, request, now());
        let (sender, mut standing) = watch::channel(claim.standing());
        let sender = Arc::new(sender);
        let stop = CancellationToken::new();
        let task = Task {
            claim,
            wire: Wire::new(self.connector.clone()),
            standing: Arc::clone(&sender),
            // Later, the lease has ended anyway.
            patience: (connect + request * 2).min(self.ttl),
        };
        let client = task.wire.client();
        let task = self.tasks.spawn(task.run(stop.clone()));
        // Dropped on each way out but the one that hands it on: the place in line is given up in the background.
        let stop = stop.drop_guard();

        let settled = standing.wait_for(|standing| !matches!(standing, Standing::Waiting(_)));
        let settled = match tokio::time::timeout(deadline, settled).await {
            Ok(settled) => settled.map_or(Standing::Lost(LostCause::Released), |standing| standing.clone()),
            Err(_) => sender.borrow().clone(),
        };
        match settled {
            Standing::Held { key, token, lease, .. } => {
                let name = self.name.clone();
                Ok(Some(Held { name, key, token, lease, standing: sender, client, request, task, stop }))
            }
            Standing::Taken => Ok(None),
            Standing::Refused(cause) => Err(LockError::Refused { name: self.name.clone(), cause }),
            Standing::Lost(cause) => Err(LockError::Lost { name: self.name.clone(), cause }),
            Standing::Waiting(cause) => Err(self.timed_out(deadline, cause)),
        }
    }

    fn timed_out(&self, after: Duration, cause: String) -> LockError {
        LockError::TimedOut { name: self.name.clone(), after, cause }
    }
}

/// A lock that is held, until it is released, dropped or lost. Its lease is renewed in the background.
///
/// Dropping it releases it without waiting for etcd; if etcd cannot be told, the lease's end releases it.
pub struct Held {
    name: String,
    key: String,
    token: i64,
    lease: i64,
    standing: Arc<watch::Sender<Standing>>,
    client: watch::Receiver<Option<Client>>,
    /// Limit for etcd to answer one request.
    request: Duration,
    task: JoinHandle<bool>,
    stop: DropGuard,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("key", &self.key).field("token", &self.token).finish_non_exhaustive()
    }
}

impl Held {
    /// The lock's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key in etcd that stands for it.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The key's create revision: larger for each later holder, as long as etcd keeps its data.
    pub fn fencing_token(&self) -> i64 {
        self.token
    }

    /// The lease that the key lives by. Other keys put under it go when the lock goes.
    pub fn lease(&self) -> i64 {
        self.lease
    }

    /// Whether it is held, as far as can be known here: the clock is read, so that a process that slept is not misled.
    ///
    /// # Errors
    /// [`LockError::Lost`].
    pub fn check(&self) -> Result<(), LockError> {
        self.time_left().map(|_| ())
    }

    /// Completes when it is lost, or released.
    pub fn lost(&self) -> impl Future<Output = LostCause> + Send + use<> {
        let mut standing = self.standing.subscribe();
        async move {
            let gone = standing.wait_for(|standing| !matches!(standing, Standing::Held { .. })).await;
            match gone.as_deref() {
                Ok(Standing::Lost(cause)) => cause.clone(),
                _ => LostCause::Released,
            }
        }
    }

    /// The comparison that holds as long as the lock does: for transactions that are made elsewhere.
    pub fn fence(&self) -> Compare {
        Compare::create_revision(self.key.as_str(), CompareOp::Equal, self.token)
    }

    /// Makes a transaction in etcd, but only if the lock is still held at that moment, by etcd's own judgement.
    ///
    /// # Errors
    /// [`LockError::Lost`]: nothing was written. [`LockError::Refused`]: etcd refuses the transaction.
    /// [`LockError::Unconfirmed`]: there is no connection, or the answer did not come.
    pub async fn transaction(&self, transaction: Txn) -> Result<TxnResponse, LockError> {
        let limit = self.time_left()?.min(self.request);
        match tokio::time::timeout(limit, self.fenced(transaction)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.time_left()?;
                Err(self.unconfirmed(format!("etcd did not answer within {limit:?}")))
            }
        }
    }

    async fn fenced(&self, transaction: Txn) -> Result<TxnResponse, LockError> {
        let mut connection = self.client.clone();
        let client = connection.wait_for(Option::is_some).await.ok().and_then(|client| client.clone());
        let mut client = client.ok_or_else(|| self.lose(LostCause::Released))?;
        // Nested: the answer tells the lock's comparison from the caller's own.
        let fenced = Txn::new().when([self.fence()]).and_then([TxnOp::txn(transaction)]);
        let answer = client.txn(fenced).await.map_err(|error| match failure("in use", &error) {
            Failure::Refused(cause) => LockError::Refused { name: self.name.clone(), cause },
            Failure::LeaseGone => {
                LockError::Refused { name: self.name.clone(), cause: "a lease that is named in it is gone".into() }
            }
            Failure::Broken(cause) => self.unconfirmed(cause),
        })?;
        if !answer.succeeded() {
            return Err(self.lose(LostCause::KeyDeleted));
        }
        answer
            .op_responses()
            .into_iter()
            .find_map(|answer| match answer {
                TxnOpResponse::Txn(answer) => Some(answer),
                _ => None,
            })
            .ok_or_else(|| self.unconfirmed("etcd's answer was not understood".into()))
    }

    /// Gives it back: the lease is revoked, and the key deleted with it.
    ///
    /// # Errors
    /// [`LockError::Lost`] if it was lost before: what was done under it was not protected to the end.
    /// [`LockError::Unconfirmed`] if etcd did not answer: the lease's end releases it.
    pub async fn release(self) -> Result<(), LockError> {
        let kept = self.check();
        let unconfirmed = self.unconfirmed("the lease ends by itself, and the key with it".into());
        drop(self.stop);
        let released = self.task.await.unwrap_or(false);
        kept.and(if released { Ok(()) } else { Err(unconfirmed) })
    }

    /// How long it is held from now on at least, whatever becomes of the connection to etcd: until then nobody else
    /// has it, unless somebody deletes its key or revokes its lease. Renewals in the background lengthen it.
    ///
    /// # Errors
    /// [`LockError::Lost`].
    pub fn time_left(&self) -> Result<Duration, LockError> {
        let left = match &*self.standing.borrow() {
            Standing::Held { until, .. } => Ok(until.saturating_duration_since(now())),
            Standing::Lost(cause) => Err(cause.clone()),
            _ => Err(LostCause::Released),
        };
        match left {
            Ok(Duration::ZERO) => {
                Err(self.lost_by(LostCause::Expired { after: Duration::ZERO, cause: "this process slept".into() }))
            }
            Ok(left) => Ok(left),
            Err(cause) => Err(self.lost_by(cause)),
        }
    }

    /// Remembers that it is lost, so that everybody is told the same.
    fn lose(&self, cause: LostCause) -> LockError {
        publish(&self.standing, Standing::Lost(cause.clone()));
        self.lost_by(cause)
    }

    fn lost_by(&self, cause: LostCause) -> LockError {
        LockError::Lost { name: self.name.clone(), cause }
    }

    fn unconfirmed(&self, cause: String) -> LockError {
        LockError::Unconfirmed { name: self.name.clone(), cause }
    }
}

/// The thin ring round the machine.
struct Task {
    claim: Claim,
    wire: Wire,
    standing: Arc<watch::Sender<Standing>>,
    /// How long etcd is given to confirm the end.
    patience: Duration,
}

impl Task {
    /// Works until stopped, and then takes the claim out of etcd. True if etcd has confirmed that.
    async fn run(mut self, stop: CancellationToken) -> bool {
        // A request that is under way is dropped: whatever became of it, the lease's end undoes it.
        stop.run_until_cancelled(self.work()).await;
        publish(&self.standing, Standing::Lost(LostCause::Released));
        self.claim.end();
        let ended = tokio::time::timeout(self.patience, self.work()).await.is_ok();
        if !ended {
            tracing::warn!("etcd did not confirm within {:?} that a lock's lease is revoked", self.patience);
        }
        ended
    }

    async fn work(&mut self) {
        loop {
            let step = self.claim.next(now());
            publish(&self.standing, self.claim.standing());
            match step {
                Step::Finished => return,
                Step::Idle => std::future::pending().await,
                Step::Wait(until) => tokio::time::sleep_until(until.into()).await,
                Step::Do(op, limit) => {
                    let outcome = self.wire.perform(&op, limit).await;
                    if let Err(failure) = &outcome {
                        tracing::debug!(?op, ?failure, "etcd request failed");
                    }
                    self.claim.done(&op, outcome, now(), fastrand::f64());
                }
                Step::Watch { key, from, until, limit } => {
                    let watched = self.wire.watch(&key, Events::Deletion, from, until, limit).await;
                    self.claim.watched(watched, now(), fastrand::f64());
                }
            }
        }
    }
}

/// Tells how it stands. What is lost stays lost.
fn publish(standing: &watch::Sender<Standing>, new: Standing) {
    standing.send_if_modified(|old| {
        let changed = !matches!(old, Standing::Lost(_)) && *old != new;
        if changed {
            *old = new;
        }
        changed
    });
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
