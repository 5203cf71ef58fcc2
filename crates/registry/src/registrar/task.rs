//! The registrar's task: carries out what the machine asks for, and tells everybody how things stand.

use std::{collections::HashMap, time::Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{RegistrarOptions, RegistrarStats, Registration, RegistrationState, RegistryError, registration::failed};
use crate::{
    connection::Connector,
    lease_machine::{Id, LeaseMachine, Step},
    session::Session,
};

/// What registrar and handles ask the task for. The task takes commands at all times, also while etcd is away: they
/// only change what is intended, and do not pile up.
#[derive(Debug)]
pub(super) enum Command {
    Register { id: Id, registration: Registration, watchers: Watchers },
    Update { id: Id, value: Vec<u8> },
    Withdraw { id: Id },
    Deregister { id: Id, done: Done },
    Settled { id: Id, done: Done },
    Prune,
    End,
}

/// Tells who waits. Dropped, it says that nobody looks after the registration any more.
type Done = oneshot::Sender<Result<(), RegistryError>>;

/// Who is told of a registration.
#[derive(Debug)]
pub(super) struct Watchers {
    state: watch::Sender<RegistrationState>,
    key: watch::Sender<Option<String>>,
    /// Who waits until the key is gone for good.
    ending: Option<Done>,
    /// Who waits until etcd has what is intended.
    settling: Vec<Done>,
}

impl Watchers {
    pub(super) fn new(state: watch::Sender<RegistrationState>, key: watch::Sender<Option<String>>) -> Self {
        Self { state, key, ending: None, settling: Vec::new() }
    }

    /// Says how it stands, if that is new.
    fn tell(&mut self, state: RegistrationState) {
        if matches!(state, RegistrationState::Registered | RegistrationState::Withdrawn) {
            self.settled(&Ok(()));
        }
        if *self.state.borrow() != state {
            log_change(&self.state.borrow(), &state);
            self.state.send_replace(state);
        }
    }

    fn settled(&mut self, outcome: &Result<(), RegistryError>) {
        for done in self.settling.drain(..) {
            // Nobody may be waiting any more.
            let _ = done.send(outcome.clone());
        }
    }
}

/// The thin ring round the machine.
pub(super) struct Task {
    books: Books,
    session: Session,
    commands: mpsc::UnboundedReceiver<Command>,
}

/// The machine, and who is told of what.
struct Books {
    machine: LeaseMachine,
    watchers: HashMap<Id, Watchers>,
    lease: watch::Sender<Option<i64>>,
    stats: watch::Sender<RegistrarStats>,
}

impl Task {
    pub(super) fn new(
        connector: Connector,
        options: &RegistrarOptions,
        commands: mpsc::UnboundedReceiver<Command>,
        lease: watch::Sender<Option<i64>>,
        stats: watch::Sender<RegistrarStats>,
    ) -> Self {
        let (connect, request) = (connector.connect_timeout(), connector.request_timeout());
        let machine = LeaseMachine::new(options.ttl, options.adopt, connect, request, now());
        let books = Books { machine, watchers: HashMap::new(), lease, stats };
        Self { books, session: Session::new(connector), commands }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        // Dropping the work at whatever it waits for ends the task: etcd keeps what it has.
        stop.run_until_cancelled(self.work()).await;
        for watchers in self.books.watchers.values() {
            watchers.state.send_replace(RegistrationState::Closed);
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
            Command::Register { id, registration, watchers } => {
                self.watchers.insert(id, watchers);
                let replaced = self.machine.register(id, registration);
                if let Some(watchers) = replaced.and_then(|id| self.watchers.remove(&id)) {
                    watchers.state.send_replace(RegistrationState::Closed);
                }
            }
            Command::Update { id, value } => self.machine.update(id, value),
            Command::Withdraw { id } => self.machine.withdraw(id),
            Command::Deregister { id, done } => {
                if let Some(watchers) = self.watchers.get_mut(&id).filter(|_| self.machine.deregister(id)) {
                    watchers.ending = Some(done);
                }
            }
            Command::Settled { id, done } => {
                if let Some(watchers) = self.watchers.get_mut(&id) {
                    watchers.settling.push(done);
                }
            }
            Command::Prune => self.machine.prune(),
            Command::End => self.machine.end(),
        }
    }

    fn publish(&mut self) {
        for id in self.machine.take_ended() {
            let Some(mut watchers) = self.watchers.remove(&id) else { continue };
            watchers.tell(RegistrationState::Withdrawn);
            if let Some(done) = watchers.ending.take() {
                // Nobody may be waiting any more.
                let _ = done.send(Ok(()));
            }
        }
        for (id, key, holder) in self.machine.take_failed() {
            let Some(mut watchers) = self.watchers.remove(&id) else { continue };
            let cause = failed(&key, holder);
            watchers.tell(RegistrationState::Failed { cause: cause.clone() });
            watchers.settled(&Err(RegistryError::Held { key, cause }));
        }
        for (id, number, state) in self.machine.states(now()) {
            let Some(watchers) = self.watchers.get_mut(&id) else { continue };
            if number.is_some() && watchers.key.borrow().as_deref() != number {
                watchers.key.send_replace(number.map(str::to_owned));
            }
            watchers.tell(state);
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
        (RegistrationState::Retrying { .. }, RegistrationState::Retrying { cause })
        | (RegistrationState::Lost { .. }, RegistrationState::Lost { cause }) => tracing::debug!("still: {cause}"),
        (_, RegistrationState::Retrying { cause }) => tracing::warn!("a key is not in etcd as intended: {cause}"),
        (_, RegistrationState::Lost { cause }) => tracing::warn!("a key is lost, and put again: {cause}"),
        (_, RegistrationState::Failed { cause }) => tracing::error!("a key is given up: {cause}"),
        (_, state) => tracing::debug!(?state, "registration"),
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
