//! Keys under a lease, asserted for ever.
//!
//! What should be in etcd is remembered, and compared with what is there again and again; whatever became of the keys,
//! they are back within a third of the lease's time to live. One task owns the lease and makes every request; what to
//! do is decided by `lease_machine`, whose page says how.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    connection::Connector,
    lease_machine::{Id, LeaseMachine, Step},
    session::Session,
};

/// How the lease is kept.
#[derive(Clone, Debug)]
pub struct RegistrarOptions {
    /// Time to live: how long the keys outlast this process. etcd counts whole seconds, and raises what is below its
    /// election timeout.
    pub ttl: Duration,
    /// Lease of an earlier run, to go on with if it still lives and its TTL is `ttl` at least.
    pub adopt: Option<i64>,
}

/// A key to keep in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
}

/// How a registration stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistrationState {
    /// Not in etcd yet.
    Pending,
    /// In etcd, as intended.
    Registered,
    /// Not known to be in etcd as intended, and tried again.
    Retrying {
        /// What the last attempt ended with.
        cause: String,
    },
    /// Taken out of etcd, as intended.
    Withdrawn,
    /// Nobody looks after it any more.
    Closed,
}

/// How often things went wrong and were put right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistrarStats {
    /// Leases granted.
    pub leases_granted: u64,
    /// Leases that were gone before their time.
    pub leases_lost: u64,
    /// Keys that had to be put again because they were not as intended any more.
    pub reasserts: u64,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// What becomes of the keys at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// They are deleted, with the lease.
    Deregister,
    /// They stay until the lease ends, for the next run to adopt.
    Leave,
}

/// Why a registration could not be ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Nobody looks after it any more.
    #[error("key {key} is not looked after any more: its registrar has been shut down")]
    Closed {
        /// Its key.
        key: String,
    },
    /// etcd did not confirm in time.
    #[error(
        "etcd did not confirm within {after:?} that key {key} is deleted ({cause}); it is tried on, and the lease's end deletes it at the latest"
    )]
    Unconfirmed {
        /// Its key.
        key: String,
        /// How long it was waited for.
        after: Duration,
        /// How it stood last.
        cause: String,
    },
}

/// Looks after keys: one lease, one task.
#[derive(Debug)]
pub struct Registrar {
    commands: mpsc::UnboundedSender<Command>,
    next_id: Arc<AtomicU64>,
    lease: watch::Receiver<Option<i64>>,
    stats: watch::Receiver<RegistrarStats>,
    /// How long etcd is given to confirm the end of a registration.
    patience: Duration,
    task: JoinHandle<()>,
    stop: DropGuard,
}

/// What registrar and handles ask the task for. The task takes commands at all times, also while etcd is away: they
/// only change what is intended, and do not pile up.
#[derive(Debug)]
enum Command {
    Register { id: Id, registration: Registration, state: watch::Sender<RegistrationState> },
    Update { id: Id, value: Vec<u8> },
    Withdraw { id: Id },
    Deregister { id: Id, done: oneshot::Sender<()> },
    Settled { id: Id, done: oneshot::Sender<()> },
    Prune,
    End,
}

impl Registrar {
    /// Starts, on the present Tokio runtime. Dropping the registrar ends it as [`Shutdown::Leave`] does.
    pub fn start(connector: Connector, options: RegistrarOptions) -> Self {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (lease_sender, lease) = watch::channel(options.adopt);
        let (stats_sender, stats) = watch::channel(RegistrarStats::default());
        let (connect, request) = (connector.connect_timeout(), connector.request_timeout());
        let stop = CancellationToken::new();
        let task = Task {
            books: Books {
                machine: LeaseMachine::new(options.ttl, options.adopt, connect, request, now()),
                states: HashMap::new(),
                ending: HashMap::new(),
                settling: HashMap::new(),
                lease: lease_sender,
                stats: stats_sender,
            },
            session: Session::new(connector),
            commands: receiver,
        };
        Self {
            commands,
            next_id: Arc::default(),
            lease,
            stats,
            patience: connect + request * 2,
            task: tokio::spawn(task.run(stop.clone())),
            stop: stop.drop_guard(),
        }
    }

    /// Looks after a key from now on. One registration per key: a second one replaces the first.
    pub fn register(&self, registration: Registration) -> RegistrationHandle {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, state) = watch::channel(RegistrationState::Pending);
        let key = registration.key.clone();
        let command = Command::Register { id, registration, state: sender };
        let handle = RegistrationHandle { id, key, state, commands: self.commands.clone(), patience: self.patience };
        handle.send(command);
        handle
    }

    /// Deletes what is under the lease and belongs to no registration: what an earlier run, whose lease was adopted,
    /// looked after and this one does not. Call it when everything is registered.
    pub fn prune(&self) {
        // Only a task that has ended takes no commands, and then there is nothing to prune.
        let _ = self.commands.send(Command::Prune);
    }

    /// The lease that is held or about to be adopted: keep it for the next run.
    pub fn lease(&self) -> watch::Receiver<Option<i64>> {
        self.lease.clone()
    }

    /// How often things went wrong.
    pub fn stats(&self) -> RegistrarStats {
        self.stats.borrow().clone()
    }

    /// Ends it, within a deadline: an etcd that does not answer ends the keys by the lease.
    pub async fn shutdown(self, mode: Shutdown) {
        let mut task = self.task;
        if mode == Shutdown::Deregister && self.commands.send(Command::End).is_ok() {
            match tokio::time::timeout(self.patience, &mut task).await {
                Ok(_) => return,
                Err(_) => tracing::warn!(
                    "etcd did not confirm within {:?} that the lease is revoked: it ends by itself, and its keys with it",
                    self.patience
                ),
            }
        }
        drop(self.stop);
        // The task heeds the token wherever it waits.
        let _ = task.await;
    }
}

/// One registration. Dropping it changes nothing: the key stays looked after.
#[derive(Debug)]
pub struct RegistrationHandle {
    id: Id,
    key: String,
    state: watch::Receiver<RegistrationState>,
    commands: mpsc::UnboundedSender<Command>,
    patience: Duration,
}

impl RegistrationHandle {
    /// The key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Intends another value, and puts it at once. The newest value wins.
    pub fn update(&self, value: Vec<u8>) {
        self.send(Command::Update { id: self.id, value });
    }

    /// Intends the key to be absent. A later [`Self::update`] puts it again.
    pub fn withdraw(&self) {
        self.send(Command::Withdraw { id: self.id });
    }

    /// How it stands, now and whenever that changes.
    pub fn state(&self) -> watch::Receiver<RegistrationState> {
        self.state.clone()
    }

    /// Waits until etcd has confirmed what was intended last, for as long as that takes.
    ///
    /// # Errors
    /// [`RegistryError::Closed`] if nobody looks after the key any more, or somebody else began to wait.
    pub async fn settled(&self) -> Result<(), RegistryError> {
        let (done, confirmed) = oneshot::channel();
        self.send(Command::Settled { id: self.id, done });
        confirmed.await.map_err(|_| RegistryError::Closed { key: self.key.clone() })
    }

    /// Ends the registration and waits until etcd has confirmed that the key is gone.
    ///
    /// # Errors
    /// [`RegistryError`] if that cannot be said. The key is still being deleted then.
    pub async fn deregister(self) -> Result<(), RegistryError> {
        let (done, confirmed) = oneshot::channel();
        self.send(Command::Deregister { id: self.id, done });
        match tokio::time::timeout(self.patience, confirmed).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(RegistryError::Closed { key: self.key }),
            Err(_) => {
                let cause = match &*self.state.borrow() {
                    RegistrationState::Retrying { cause } => cause.clone(),
                    _ => "no answer yet".into(),
                };
                Err(RegistryError::Unconfirmed { key: self.key, after: self.patience, cause })
            }
        }
    }

    fn send(&self, command: Command) {
        // A task that has ended takes no commands; the state says so.
        let _ = self.commands.send(command);
    }
}

/// The thin ring round the machine.
struct Task {
    books: Books,
    session: Session,
    commands: mpsc::UnboundedReceiver<Command>,
}

/// The machine, and who is told of what.
struct Books {
    machine: LeaseMachine,
    states: HashMap<Id, watch::Sender<RegistrationState>>,
    ending: HashMap<Id, oneshot::Sender<()>>,
    /// Who waits until etcd has what is intended.
    settling: HashMap<Id, oneshot::Sender<()>>,
    lease: watch::Sender<Option<i64>>,
    stats: watch::Sender<RegistrarStats>,
}

impl Task {
    async fn run(mut self, stop: CancellationToken) {
        // Dropping the work at whatever it waits for ends the task: etcd keeps what it has.
        stop.run_until_cancelled(self.work()).await;
        for state in self.books.states.values() {
            state.send_replace(RegistrationState::Closed);
        }
    }

    async fn work(&mut self) {
        loop {
            while let Ok(command) = self.commands.try_recv() {
                self.books.command(command);
            }
            let step = self.books.machine.next(now());
            self.books.publish();
            match step {
                Step::Finished => return,
                Step::Wait(until) => {
                    tokio::select! {
                        Some(command) = self.commands.recv() => self.books.command(command),
                        () = tokio::time::sleep_until(until.into()) => {}
                    }
                }
                Step::Do(op, limit) => {
                    let outcome = {
                        let performed = self.session.perform(&op, limit);
                        tokio::pin!(performed);
                        loop {
                            tokio::select! {
                                outcome = &mut performed => break outcome,
                                Some(command) = self.commands.recv() => self.books.command(command),
                            }
                        }
                    };
                    if let Err(failure) = &outcome {
                        tracing::debug!(?op, ?failure, "etcd request failed");
                    }
                    self.books.machine.done(op, outcome, now(), fastrand::f64());
                }
            }
        }
    }
}

impl Books {
    fn command(&mut self, command: Command) {
        match command {
            Command::Register { id, registration: Registration { key, value }, state } => {
                self.states.insert(id, state);
                if let Some(replaced) = self.machine.register(id, key, value) {
                    self.ending.remove(&replaced);
                    self.settling.remove(&replaced);
                    if let Some(state) = self.states.remove(&replaced) {
                        state.send_replace(RegistrationState::Closed);
                    }
                }
            }
            Command::Update { id, value } => self.machine.update(id, value),
            Command::Withdraw { id } => self.machine.withdraw(id),
            // Without such a registration `done` is dropped, and who waits for it learns that it is closed.
            Command::Deregister { id, done } => {
                if self.machine.deregister(id) {
                    self.ending.insert(id, done);
                }
            }
            Command::Settled { id, done } => {
                if self.states.contains_key(&id) {
                    self.settling.insert(id, done);
                }
            }
            Command::Prune => self.machine.prune(),
            Command::End => self.machine.end(),
        }
    }

    fn publish(&mut self) {
        for id in self.machine.take_ended() {
            if let Some(state) = self.states.remove(&id) {
                state.send_replace(RegistrationState::Withdrawn);
            }
            if let Some(done) = self.ending.remove(&id) {
                // Nobody may be waiting any more.
                let _ = done.send(());
            }
            self.settling.remove(&id);
        }
        for (id, state) in self.machine.states(now()) {
            let Some(sender) = self.states.get(&id) else { continue };
            if matches!(state, RegistrationState::Registered | RegistrationState::Withdrawn)
                && let Some(done) = self.settling.remove(&id)
            {
                // Nobody may be waiting any more.
                let _ = done.send(());
            }
            if *sender.borrow() != state {
                log_change(&sender.borrow(), &state);
                sender.send_replace(state);
            }
        }
        let lease = self.machine.lease();
        if *self.lease.borrow() != lease {
            self.lease.send_replace(lease);
        }
        let stats = self.machine.stats();
        if *self.stats.borrow() != *stats {
            self.stats.send_replace(stats.clone());
        }
    }
}

fn log_change(old: &RegistrationState, new: &RegistrationState) {
    match (old, new) {
        (RegistrationState::Retrying { .. }, RegistrationState::Retrying { cause }) => {
            tracing::debug!("still: {cause}")
        }
        (_, RegistrationState::Retrying { cause }) => tracing::warn!("a key is not in etcd as intended: {cause}"),
        (_, state) => tracing::debug!(?state, "registration"),
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
