//! Values that configure a program: typed, and the last good one kept when a new one is bad.

mod last_good;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use last_good::{Decode, LastGood};

pub use last_good::{ConfigError, Setting};

use super::{HubError, Keys, Subscription};

/// Changes of keys that are taken in at once, however many more there are.
const BATCH: usize = 4096;

/// A typed value in etcd, kept in step: what one key holds. The watch ends when it is dropped.
///
/// A value that cannot be read leaves the last good one in force, with the error beside it. A key that is deleted has no
/// value: the program falls back to its default.
///
/// ```
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let etcd = waypost_registry_testing::Etcd::start().await;
/// # let mut client = etcd.client().await;
/// # client.put("/config/shop/limits", r#"{"rate":10}"#, None).await?;
/// # let registry = waypost_registry::Registry::new(etcd.connector());
/// use std::time::Duration;
///
/// #[derive(serde::Deserialize)]
/// struct Limits {
///     rate: u32,
/// }
///
/// let limits = registry.config::<Limits>("/config/shop/limits")?;
/// limits.ready(Duration::from_secs(5)).await?;
/// let rate = || limits.value().map_or(100, |limits| limits.rate);
/// assert_eq!(rate(), 10);
///
/// let mut changes = limits.changes();
/// client.put("/config/shop/limits", r#"{"rate":"fast"}"#, None).await?;
/// changes.changed().await?;
/// assert_eq!(rate(), 10, "the last good value stays");
/// println!("{}", changes.borrow_and_update().error.as_ref().expect("and the error is there"));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ConfigWatch<T> {
    followed: Followed<Setting<T>>,
}

/// Typed values in etcd, kept in step: what the keys under a prefix hold, by name. As [`ConfigWatch`] otherwise.
///
/// ```
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let etcd = waypost_registry_testing::Etcd::start().await;
/// # etcd.client().await.put("/config/shop/features/new-checkout", "true", None).await?;
/// # let registry = waypost_registry::Registry::new(etcd.connector());
/// use std::time::Duration;
///
/// let features = registry.configs::<bool>("/config/shop/features/")?;
/// features.ready(Duration::from_secs(5)).await?;
/// assert!(features.value("new-checkout").is_some_and(|on| *on));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ConfigMap<T> {
    followed: Followed<Arc<BTreeMap<String, Setting<T>>>>,
}

impl<T: Send + Sync + 'static> ConfigWatch<T> {
    pub(super) fn start(keys: Keys, decode: Decode<T>, tasks: &TaskTracker) -> Self {
        let key = keys.prefix().to_owned();
        let shown = move |settings: &BTreeMap<_, Setting<T>>| settings.get(&key).cloned().unwrap_or_default();
        Self { followed: Followed::start(keys, decode, shown, tasks) }
    }

    /// Waits until the key has been fetched, whether it is there or not. Before that there seems to be none.
    ///
    /// # Errors
    /// [`HubError::NotReady`] with the cause if that takes longer than `deadline`; [`HubError::Closed`].
    pub async fn ready(&self, deadline: Duration) -> Result<(), HubError> {
        self.followed.ready(deadline).await
    }

    /// The last good value.
    pub fn value(&self) -> Option<Arc<T>> {
        self.followed.shown.borrow().value.clone()
    }

    /// Value, error, and what etcd holds.
    pub fn setting(&self) -> Setting<T> {
        self.followed.shown.borrow().clone()
    }

    /// How it stands, and whenever that changes from now on. Ends with the registry's shutdown, or when this is dropped.
    pub fn changes(&self) -> watch::Receiver<Setting<T>> {
        self.followed.changes()
    }
}

impl<T: Send + Sync + 'static> ConfigMap<T> {
    pub(super) fn start(keys: Keys, decode: Decode<T>, tasks: &TaskTracker) -> Self {
        let prefix = keys.prefix().to_owned();
        let named = move |(key, setting): (&String, &Setting<T>)| {
            (key.strip_prefix(&prefix).unwrap_or(key).to_owned(), setting.clone())
        };
        let shown = move |settings: &BTreeMap<String, Setting<T>>| Arc::new(settings.iter().map(&named).collect());
        Self { followed: Followed::start(keys, decode, shown, tasks) }
    }

    /// Waits until the keys have been fetched. Before that there seem to be none.
    ///
    /// # Errors
    /// As [`ConfigWatch::ready`].
    pub async fn ready(&self, deadline: Duration) -> Result<(), HubError> {
        self.followed.ready(deadline).await
    }

    /// The last good value of a key, by what stands behind the prefix.
    pub fn value(&self, name: &str) -> Option<Arc<T>> {
        self.followed.shown.borrow().get(name)?.value.clone()
    }

    /// Every key with its value and error, by name.
    pub fn settings(&self) -> Arc<BTreeMap<String, Setting<T>>> {
        Arc::clone(&self.followed.shown.borrow())
    }

    /// How they stand, and whenever any of them changes from now on; changes that came together are one. Ends with the
    /// registry's shutdown, or when this is dropped.
    pub fn changes(&self) -> watch::Receiver<Arc<BTreeMap<String, Setting<T>>>> {
        self.followed.changes()
    }
}

/// JSON, as serde reads it.
pub(super) fn json<T: DeserializeOwned>() -> Decode<T> {
    Box::new(|bytes| serde_json::from_slice(bytes).map_err(|error| error.to_string()))
}

/// Whatever the program reads.
pub(super) fn with<T, E: fmt::Display>(decode: impl Fn(&[u8]) -> Result<T, E> + Send + Sync + 'static) -> Decode<T> {
    Box::new(move |bytes| decode(bytes).map_err(|error| error.to_string()))
}

/// What a task makes of the keys' changes.
#[derive(Debug)]
struct Followed<V> {
    keys: Keys,
    shown: watch::Receiver<V>,
    taken_in: watch::Receiver<bool>,
    _stop: DropGuard,
}

impl<V: Default + Send + Sync + 'static> Followed<V> {
    fn start<T: Send + Sync + 'static>(
        keys: Keys,
        decode: Decode<T>,
        show: impl Fn(&BTreeMap<String, Setting<T>>) -> V + Send + 'static,
        tasks: &TaskTracker,
    ) -> Self {
        let (sender, shown) = watch::channel(V::default());
        let (taken_in_sender, taken_in) = watch::channel(false);
        let stop = CancellationToken::new();
        let (subscription, stopped) = (keys.subscribe(), stop.clone());
        tasks.spawn(async move {
            let show = move |settings: &BTreeMap<_, _>| sender.send_replace(show(settings));
            let follow = follow(subscription, LastGood::new(decode), show, &taken_in_sender);
            stopped.run_until_cancelled(follow).await;
        });
        Self { keys, shown, taken_in, _stop: stop.drop_guard() }
    }

    async fn ready(&self, deadline: Duration) -> Result<(), HubError> {
        self.keys.ready_as(&self.taken_in, deadline).await
    }

    fn changes(&self) -> watch::Receiver<V> {
        let mut changes = self.shown.clone();
        changes.mark_unchanged();
        changes
    }
}

async fn follow<T, R>(
    mut keys: Subscription,
    mut last_good: LastGood<T>,
    show: impl Fn(&BTreeMap<String, Setting<T>>) -> R,
    taken_in: &watch::Sender<bool>,
) {
    while let Some(event) = keys.next().await {
        // One change goes on at once; many that wait are one.
        let mut changed = last_good.take_in(&event);
        for event in std::iter::from_fn(|| keys.try_next()).take(BATCH - 1) {
            changed |= last_good.take_in(&event);
        }
        if changed {
            show(&last_good.settings);
        }
        taken_in.send_if_modified(|taken_in| !std::mem::replace(taken_in, true));
    }
}
