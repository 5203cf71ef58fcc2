//! The raw keys under a prefix: read at any time, followed change by change.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    HubError, Scope,
    feed::{Feed, Subscriber},
    key_state::{KeyEvent, KeyState},
};
use crate::mirror::{KeyValue, MirrorStatus};

/// The keys under a prefix, kept in step with etcd. Cheap to clone; the watch ends with the last clone and the last
/// [`Subscription`].
///
/// A key's *name* is what stands behind the prefix; that of a single key ([`Registry::key`](super::Registry::key)) is
/// the key itself.
///
/// ```
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let etcd = waypost_registry_testing::Etcd::start().await;
/// # let mut client = etcd.client().await;
/// # client.put("/workers/b", "1", None).await?;
/// # client.put("/workers/a", "1", None).await?;
/// # let registry = waypost_registry::Registry::new(etcd.connector());
/// use std::time::Duration;
/// use waypost_registry::KeyEvent;
///
/// let workers = registry.keys("/workers/")?;
/// workers.ready(Duration::from_secs(5)).await?;
/// assert_eq!(workers.names(), ["a", "b"]);
/// let leader = workers.leader().expect("there are workers");
/// assert_eq!(workers.name_of(&leader), "b", "it was there first");
///
/// let mut events = workers.subscribe();
/// # client.put("/workers/a", "2", None).await?;
/// # client.delete("/workers/b", None).await?;
/// while let Some(event) = events.next().await {
///     match event {
///         KeyEvent::Resynchronised { reason, entries, .. } => println!("{reason}: these {} now", entries.len()),
///         KeyEvent::Added(new) => println!("{} came", workers.name_of(&new)),
///         KeyEvent::Changed { old, new } => assert!(old.value == b"1" && new.value == b"2"),
///         KeyEvent::Removed { old, .. } => {
///             println!("{} went", workers.name_of(&old));
///             break;
///         }
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Keys {
    shared: Arc<Shared>,
}

/// What the users of one prefix share. The last one's end is the watch's.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) scope: Scope,
    pub(super) feed: Arc<Feed<KeyState>>,
    pub(super) queue: usize,
    pub(super) status: watch::Receiver<MirrorStatus>,
    /// Whether the first full state is there.
    pub(super) ready: watch::Receiver<bool>,
    /// Cancelled once the watch has ended.
    pub(super) ended: CancellationToken,
    pub(super) _stop: DropGuard,
}

impl Keys {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// How many batches of events wait for slow subscribers.
    pub(super) fn queue(&self) -> usize {
        self.shared.queue
    }

    /// Waits until the keys have been fetched. Before that there seem to be none.
    ///
    /// # Errors
    /// [`HubError::NotReady`] with the cause if that takes longer than `deadline`; [`HubError::Closed`].
    pub async fn ready(&self, deadline: Duration) -> Result<(), HubError> {
        self.ready_as(&self.shared.ready, deadline).await
    }

    /// Waits until something that follows from the keys is ready, or says why it is not.
    pub(super) async fn ready_as(&self, ready: &watch::Receiver<bool>, deadline: Duration) -> Result<(), HubError> {
        wait_ready(ready, &self.shared.status, self.prefix(), deadline).await
    }

    /// Every key, in order.
    pub fn all(&self) -> Vec<Arc<KeyValue>> {
        self.shared.feed.read(|state| state.entries().values().cloned().collect())
    }

    /// The names of all keys, in order.
    pub fn names(&self) -> Vec<String> {
        self.shared.feed.read(|state| state.entries().values().map(|entry| self.name_of(entry).to_owned()).collect())
    }

    /// The values of all keys, in the order of their names.
    pub fn values(&self) -> Vec<Vec<u8>> {
        self.shared.feed.read(|state| state.entries().values().map(|entry| entry.value.clone()).collect())
    }

    /// A key by its name.
    pub fn get(&self, name: &str) -> Option<Arc<KeyValue>> {
        let key = self.shared.scope.key_of(name);
        self.shared.feed.read(|state| state.entries().get(&*key).cloned())
    }

    /// The value of a key by its name.
    pub fn value(&self, name: &str) -> Option<Vec<u8>> {
        self.get(name).map(|entry| entry.value.clone())
    }

    /// The key that has been there longest, by its create revision: the leader, where several contend by creating keys
    /// under one prefix. Looks at every key.
    pub fn leader(&self) -> Option<Arc<KeyValue>> {
        let age = |entry: &&Arc<KeyValue>| entry.create_revision;
        self.shared.feed.read(|state| state.entries().values().min_by_key(age).cloned())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.shared.feed.read(|state| state.entries().len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The prefix, or the single key.
    pub fn prefix(&self) -> &str {
        self.shared.scope.text()
    }

    /// The name of one of these keys.
    pub fn name_of<'a>(&self, entry: &'a KeyValue) -> &'a str {
        self.shared.scope.name_of(&entry.key)
    }

    /// Follows the changes. The first event is [`KeyEvent::Resynchronised`] with everything.
    pub fn subscribe(&self) -> Subscription {
        Subscription { subscriber: self.shared.feed.subscribe(), keys: self.clone() }
    }

    /// How the mirror stands, now and whenever that changes.
    pub fn status(&self) -> watch::Receiver<MirrorStatus> {
        self.shared.status.clone()
    }

    /// Returns once the watch has ended for good, as [`Registry::shutdown`](super::Registry::shutdown) has it. What
    /// was last known can still be read.
    pub async fn closed(&self) {
        self.shared.ended.cancelled().await;
    }

    /// Gives it up. If this was the last user of the prefix, it returns when the watch has ended.
    pub async fn close(self) {
        let ended = self.shared.ended.clone();
        if Arc::into_inner(self.shared).map(drop).is_some() {
            ended.cancelled().await;
        }
    }
}

/// The changes of a prefix's keys, in etcd's order and without a gap.
///
/// Events wait for a slow subscriber, up to [`HubOptions::queue`](super::HubOptions::queue). If he falls further
/// behind, events are dropped, and the next thing he gets is [`KeyEvent::Resynchronised`] for
/// [`Restart::Lagged`](super::Restart::Lagged).
#[derive(Debug)]
pub struct Subscription {
    subscriber: Subscriber<KeyState>,
    /// Keeps the watch.
    keys: Keys,
}

impl Subscription {
    /// The next event; `None` after the registry's shutdown. Nothing is lost if the future is dropped before.
    pub async fn next(&mut self) -> Option<KeyEvent> {
        self.subscriber.next().await
    }

    /// The next event, if there is one already.
    pub fn try_next(&mut self) -> Option<KeyEvent> {
        self.subscriber.try_next()
    }

    /// The keys that it follows.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }
}

/// Waits for the first full state, or says why there is none.
pub(super) async fn wait_ready(
    ready: &watch::Receiver<bool>,
    status: &watch::Receiver<MirrorStatus>,
    prefix: &str,
    deadline: Duration,
) -> Result<(), HubError> {
    let mut ready = ready.clone();
    match tokio::time::timeout(deadline, ready.wait_for(|ready| *ready)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_)) => Err(HubError::Closed),
        Err(_) => {
            let cause = status.borrow().cause.clone().unwrap_or_else(|| "etcd has not answered yet".into());
            Err(HubError::NotReady { prefix: prefix.into(), after: deadline, cause })
        }
    }
}
