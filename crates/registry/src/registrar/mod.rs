//! Keys under a lease, asserted for ever.
//!
//! What should be in etcd is remembered, and compared with what is there again and again; whatever became of the keys,
//! they are back within a third of the lease's time to live. One task owns the lease and makes every request; what to
//! do is decided by `lease_machine`, whose page says how.

mod handle;
mod registration;
mod task;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub use handle::RegistrationHandle;
pub use registration::{IfHeld, Registration, RegistrationState, RegistryError};
pub(crate) use registration::{Place, held_by};
use task::{Command, Task, Watchers};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::connection::Connector;

/// How the lease is kept.
#[derive(Clone, Debug)]
pub struct RegistrarOptions {
    /// Time to live: how long the keys outlast this process. etcd counts whole seconds, and raises what is below its
    /// election timeout.
    pub ttl: Duration,
    /// Lease of an earlier run, to go on with if it still lives and its TTL is `ttl` at least.
    pub adopt: Option<i64>,
}

impl Default for RegistrarOptions {
    /// Five seconds, and a lease of its own.
    fn default() -> Self {
        Self { ttl: Duration::from_secs(5), adopt: None }
    }
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

/// What becomes of the keys at the end of [`Registrar::shutdown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// They are deleted, with the lease.
    Deregister,
    /// They stay until the lease ends, for the next run to adopt.
    Leave,
}

/// Looks after keys: one lease, one task.
///
/// ```
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let etcd = waypost_registry_testing::Etcd::start().await;
/// # let endpoint = etcd.url();
/// use std::time::Duration;
/// use waypost_registry::{
///     ConnectOptions, Connector, KeyFields, KeyTemplate, Registrar, RegistrarOptions, Registration, Shutdown,
/// };
///
/// let connector = Connector::new(ConnectOptions::new([endpoint]))?;
/// // The keys outlast a crash of this process by `ttl`, 5 s here.
/// let registrar = Registrar::start(connector, RegistrarOptions::default());
///
/// let template: KeyTemplate = "/apps/{service}/{ip}:{port}".parse()?;
/// let key = template.fill(&KeyFields::local().service("orders").ip("10.0.0.5".parse()?).port(8080))?;
/// let handle = registrar.register(Registration::new(key, r#"{"weight":1}"#));
/// let key = handle.registered(Duration::from_secs(10)).await?;
/// assert_eq!(key, "/apps/orders/10.0.0.5:8080");
///
/// // Put at once, under the same lease. Whatever becomes of etcd, the newest value comes back.
/// handle.update(r#"{"weight":2}"#);
///
/// // A name of its own, out of etcd's revision.
/// let member = registrar.register(Registration::numbered("/members", "10.0.0.5"));
/// assert!(member.registered(Duration::from_secs(10)).await?.starts_with("/members/0000"));
///
/// registrar.shutdown(Shutdown::Deregister).await;
/// # Ok(()) }
/// ```
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

impl Registrar {
    /// Starts, on the present Tokio runtime. Dropping the registrar ends it as [`Shutdown::Leave`] does.
    pub fn start(connector: Connector, options: RegistrarOptions) -> Self {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (lease_sender, lease) = watch::channel(options.adopt);
        let (stats_sender, stats) = watch::channel(RegistrarStats::default());
        let (connect, request) = (connector.connect_timeout(), connector.request_timeout());
        let stop = CancellationToken::new();
        let task = Task::new(connector, &options, receiver, lease_sender, stats_sender);
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
        let (place, known) = match &registration.place {
            Place::Key { key, .. } => (key.clone(), Some(key.clone())),
            Place::Numbered { prefix } => (prefix.clone(), None),
        };
        let (state_sender, state) = watch::channel(RegistrationState::Pending);
        let (key_sender, key) = watch::channel(known);
        let watchers = Watchers::new(state_sender, key_sender);
        let (commands, patience) = (self.commands.clone(), self.patience);
        let handle = RegistrationHandle { id, place, key, state, commands, patience };
        handle.send(Command::Register { id, registration, watchers });
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
