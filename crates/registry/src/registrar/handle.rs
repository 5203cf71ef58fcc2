//! One registration, in the hands of who made it.

use std::time::Duration;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    registration::{RegistrationState, RegistryError, to_json},
    task::Command,
};
use crate::lease_machine::Id;

/// One registration. Dropping it changes nothing: the key stays looked after.
///
/// ```
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let etcd = waypost_registry_testing::Etcd::start().await;
/// # let endpoint = etcd.url();
/// use waypost_registry::{ConnectOptions, Connector, Registrar, RegistrarOptions, Registration, RegistrationState};
///
/// let connector = Connector::new(ConnectOptions::new([endpoint]))?;
/// let registrar = Registrar::start(connector, RegistrarOptions::default());
/// let handle = registrar.register(Registration::json("/apps/orders/1", &["10.0.0.5:8080"])?);
/// // How it stands, now and whenever that changes.
/// let mut state = handle.state();
/// state.wait_for(|state| *state == RegistrationState::Registered).await?;
///
/// handle.update_json(&["10.0.0.5:8080", "10.0.0.5:8081"])?;
/// handle.settled().await?;
/// handle.deregister().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct RegistrationHandle {
    pub(super) id: Id,
    /// The key, or the prefix under which it is numbered.
    pub(super) place: String,
    pub(super) key: watch::Receiver<Option<String>>,
    pub(super) state: watch::Receiver<RegistrationState>,
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) patience: Duration,
}

impl RegistrationHandle {
    /// The key; of a numbered one, nothing before etcd has taken it.
    pub fn key(&self) -> Option<String> {
        self.key.borrow().clone()
    }

    /// Intends another value, bytes or text, and puts it at once, under the same lease. It replaces what this registrar
    /// put last and nothing else: what somebody else put meanwhile is looked at first. The newest value wins.
    pub fn update(&self, value: impl Into<Vec<u8>>) {
        self.send(Command::Update { id: self.id, value: value.into() });
    }

    /// As [`Self::update`], with a value that is written as JSON.
    ///
    /// # Errors
    /// [`RegistryError::Value`] if it has no form in JSON; the value before it then stays.
    pub fn update_json<T: Serialize + ?Sized>(&self, value: &T) -> Result<(), RegistryError> {
        self.update(to_json(&self.place, value)?);
        Ok(())
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
    /// [`RegistryError::Closed`] if nobody looks after the key any more, [`RegistryError::Held`] if it was given up.
    pub async fn settled(&self) -> Result<(), RegistryError> {
        let (done, confirmed) = oneshot::channel();
        self.send(Command::Settled { id: self.id, done });
        confirmed.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Waits until etcd has confirmed what was intended last, and gives the key.
    ///
    /// # Errors
    /// [`RegistryError::Unregistered`] if etcd has not confirmed it before the deadline: it is tried on all the same.
    /// Otherwise as [`Self::settled`].
    pub async fn registered(&self, deadline: Duration) -> Result<String, RegistryError> {
        match tokio::time::timeout(deadline, self.settled()).await {
            Ok(settled) => settled.map(|()| self.key_or_prefix()),
            Err(_) => {
                let (key, cause) = (self.key_or_prefix(), self.cause());
                Err(RegistryError::Unregistered { key, after: deadline, cause })
            }
        }
    }

    /// Ends the registration and waits until etcd has confirmed that the key is gone, if it is ours: what somebody
    /// else holds is left alone.
    ///
    /// # Errors
    /// [`RegistryError::Unconfirmed`] if etcd does not confirm it in time: it is still being deleted then.
    /// [`RegistryError::Closed`] if nobody looks after the key any more.
    pub async fn deregister(self) -> Result<(), RegistryError> {
        let (done, confirmed) = oneshot::channel();
        self.send(Command::Deregister { id: self.id, done });
        match tokio::time::timeout(self.patience, confirmed).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => match self.closed() {
                RegistryError::Held { .. } => Ok(()),
                closed => Err(closed),
            },
            Err(_) => {
                let (key, cause) = (self.key_or_prefix(), self.cause());
                Err(RegistryError::Unconfirmed { key, after: self.patience, cause })
            }
        }
    }

    fn key_or_prefix(&self) -> String {
        self.key().unwrap_or_else(|| self.place.clone())
    }

    /// Why nobody answers any more.
    fn closed(&self) -> RegistryError {
        let key = self.key_or_prefix();
        match &*self.state.borrow() {
            RegistrationState::Failed { cause } => RegistryError::Held { key, cause: cause.clone() },
            _ => RegistryError::Closed { key },
        }
    }

    fn cause(&self) -> String {
        self.state.borrow().cause().unwrap_or("no answer yet").to_owned()
    }

    pub(super) fn send(&self, command: Command) {
        // A task that has ended takes no commands; the state says so.
        let _ = self.commands.send(command);
    }
}
