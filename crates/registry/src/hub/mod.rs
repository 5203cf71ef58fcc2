//! One hub for all that a program wants to know from etcd: keys, services, configuration.
//!
//! ```text
//! Registry --one watch per prefix--> mirror -> keys ---> Keys, Subscription       raw keys, change by change
//!                                                   +--> Discovery, NodeEvents    services, nodes, picks
//!                                                   +--> ConfigWatch, ConfigMap   typed values, the last good one
//! ```
//!
//! However many users a prefix has, it is watched once, and no longer than the last of them lives.

mod config;
mod discovery;
mod feed;
mod key_state;
mod keys;

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use etcd_client::Client;
use serde::de::DeserializeOwned;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use waypost_catalog::Protocol;

use feed::Feed;
use key_state::KeyState;
use keys::Shared;

pub use config::{ConfigError, ConfigMap, ConfigWatch, Setting};
pub use discovery::{Discovery, NodeEvent, NodeEvents, Nodes};
pub use feed::Restart;
pub use key_state::KeyEvent;
pub use keys::{Keys, Subscription};

use crate::{
    connection::{ConnectError, Connector},
    format::Format,
    mirror::{Mirror, MirrorEvent, MirrorOptions},
};

/// How a [`Registry`] watches.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// About how often every prefix is fetched anew beside its watch, one second at least; `None`, the default, for
    /// never. Subscribers hear of it only if the watch had missed something. See [`MirrorOptions::refresh`].
    pub refresh: Option<Duration>,
    /// How many of etcd's messages wait for a subscriber that is slow, at most; a message holds a change, or several
    /// that came together. Who falls further behind gets the full state instead. From 1 to 2^20; 1024 unless chosen.
    pub queue: usize,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self { refresh: None, queue: 1024 }
    }
}

/// Why something is not watched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HubError {
    /// The registry was shut down.
    #[error("the registry was shut down: make another one")]
    Closed,
    /// There is nothing to run the watch on.
    #[error("no Tokio runtime runs here: call it from within one, such as a function under #[tokio::main]")]
    NoRuntime,
    /// The prefix could be the beginning of other services' keys.
    #[error("{prefix:?} is no prefix of services: it ends in /, such as \"/services/\"")]
    Prefix {
        /// As given.
        prefix: String,
    },
    /// Nothing was fetched in time.
    #[error("{prefix:?} was not fetched from etcd within {after:?}: {cause}")]
    NotReady {
        /// The prefix, or the key.
        prefix: String,
        /// The deadline.
        after: Duration,
        /// What is in the way.
        cause: String,
    },
}

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Scope {
    Prefix(String),
    Key(String),
}

impl Scope {
    fn text(&self) -> &str {
        match self {
            Self::Prefix(text) | Self::Key(text) => text,
        }
    }

    fn name_of<'a>(&self, key: &'a str) -> &'a str {
        match self {
            Self::Prefix(prefix) => key.strip_prefix(prefix.as_str()).unwrap_or(key),
            Self::Key(_) => key,
        }
    }

    fn key_of<'a>(&self, name: &'a str) -> Cow<'a, str> {
        match self {
            Self::Prefix(prefix) => format!("{prefix}{name}").into(),
            Self::Key(_) => name.into(),
        }
    }

    fn mirror_options(&self, options: &HubOptions) -> MirrorOptions {
        let refresh = options.refresh;
        match self {
            Self::Prefix(prefix) => MirrorOptions { refresh, ..MirrorOptions::new(prefix.as_str()) },
            Self::Key(key) => MirrorOptions { refresh, ..MirrorOptions::single_key(key.as_str()) },
        }
    }
}

/// Everything that is watched in one etcd. Cheap to clone; the clones share their watches.
///
/// Nothing is connected before something is asked for. Each prefix has a connection of its own, which goes to another
/// endpoint after a failure, for ever.
///
/// ```
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let etcd = waypost_registry_testing::Etcd::start().await;
/// # let endpoint = etcd.url();
/// use std::time::Duration;
/// use waypost_registry::{ConnectOptions, Connector, Registry};
///
/// let registry = Registry::new(Connector::new(ConnectOptions::new([endpoint]))?);
/// // What the hub has no word for goes by etcd's own client.
/// registry.client().await?.put("/workers/a", "10.0.0.1", None).await?;
///
/// let workers = registry.keys("/workers/")?;
/// workers.ready(Duration::from_secs(5)).await?;
/// assert_eq!(workers.names(), ["a"]);
///
/// // The same watch, however often it is asked for.
/// let same = registry.keys("/workers/")?;
/// assert_eq!(same.value("a"), Some(b"10.0.0.1".to_vec()));
/// registry.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    connector: Connector,
    options: HubOptions,
    watched: Mutex<HashMap<Scope, Watched>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A watch that has users, or has not ended yet.
#[derive(Debug)]
struct Watched {
    shared: Weak<Shared>,
    ended: CancellationToken,
}

impl Registry {
    /// A registry in the etcd that the connector reaches.
    pub fn new(connector: Connector) -> Self {
        Self::with_options(connector, HubOptions::default())
    }

    /// As [`Self::new`], with other options.
    pub fn with_options(connector: Connector, options: HubOptions) -> Self {
        let (watched, stop, tasks) = (Mutex::default(), CancellationToken::new(), TaskTracker::new());
        Self { inner: Arc::new(Inner { connector, options, watched, stop, tasks }) }
    }

    /// What its connections are made by.
    pub fn connector(&self) -> &Connector {
        &self.inner.connector
    }

    /// A connection of its own to the next endpoint, for whatever etcd's client can do.
    ///
    /// # Errors
    /// [`ConnectError`] naming the endpoint; the next call tries another one.
    pub async fn client(&self) -> Result<Client, ConnectError> {
        self.inner.connector.connect().await
    }

    /// The keys that begin with `prefix`. Mind the `/` at its end: without it, `/app` also means `/apple`.
    ///
    /// # Errors
    /// [`HubError::Closed`] after [`Self::shutdown`], [`HubError::NoRuntime`] outside a Tokio runtime.
    pub fn keys(&self, prefix: &str) -> Result<Keys, HubError> {
        self.watch(Scope::Prefix(prefix.into()))
    }

    /// A single key, and not those that begin with it.
    ///
    /// # Errors
    /// As [`Self::keys`].
    pub fn key(&self, key: &str) -> Result<Keys, HubError> {
        self.watch(Scope::Key(key.into()))
    }

    /// The services that are kept under `prefix` in this format. `protocol` is that of nodes which do not say.
    ///
    /// # Errors
    /// [`HubError::Prefix`] if the prefix does not end in `/`, as only those of [`Format::Biregister`] need not; and
    /// else as [`Self::keys`].
    pub fn discover(&self, prefix: &str, format: Format, protocol: Protocol) -> Result<Discovery, HubError> {
        if !prefix.ends_with('/') && format != Format::Biregister {
            return Err(HubError::Prefix { prefix: prefix.into() });
        }
        Ok(Discovery::start(&self.keys(prefix)?, format, protocol, &self.inner.tasks))
    }

    /// The value of one key, read as JSON.
    ///
    /// # Errors
    /// As [`Self::keys`].
    pub fn config<T: DeserializeOwned + Send + Sync + 'static>(&self, key: &str) -> Result<ConfigWatch<T>, HubError> {
        Ok(ConfigWatch::start(self.key(key)?, config::json(), &self.inner.tasks))
    }

    /// The value of one key, read by `decode`: TOML, numbers, or the bytes as they are.
    ///
    /// ```
    /// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let etcd = waypost_registry_testing::Etcd::start().await;
    /// # let registry = waypost_registry::Registry::new(etcd.connector());
    /// # etcd.client().await.put("/config/shop/level", "debug", None).await?;
    /// # let deadline = std::time::Duration::from_secs(5);
    /// let level = registry.config_with("/config/shop/level", |bytes| std::str::from_utf8(bytes).map(str::to_owned))?;
    /// let bytes = registry.config_with("/config/shop/banner", |bytes| Ok::<_, String>(bytes.to_vec()))?;
    /// level.ready(deadline).await?;
    /// assert_eq!(level.value().unwrap().as_str(), "debug");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Self::keys`].
    pub fn config_with<T: Send + Sync + 'static, E: fmt::Display>(
        &self,
        key: &str,
        decode: impl Fn(&[u8]) -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<ConfigWatch<T>, HubError> {
        Ok(ConfigWatch::start(self.key(key)?, config::with(decode), &self.inner.tasks))
    }

    /// The values of all keys that begin with `prefix`, read as JSON.
    ///
    /// # Errors
    /// As [`Self::keys`].
    pub fn configs<T: DeserializeOwned + Send + Sync + 'static>(&self, prefix: &str) -> Result<ConfigMap<T>, HubError> {
        Ok(ConfigMap::start(self.keys(prefix)?, config::json(), &self.inner.tasks))
    }

    /// The values of all keys that begin with `prefix`, read by `decode`; see [`Self::config_with`].
    ///
    /// # Errors
    /// As [`Self::keys`].
    pub fn configs_with<T: Send + Sync + 'static, E: fmt::Display>(
        &self,
        prefix: &str,
        decode: impl Fn(&[u8]) -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<ConfigMap<T>, HubError> {
        Ok(ConfigMap::start(self.keys(prefix)?, config::with(decode), &self.inner.tasks))
    }

    /// Ends every watch, of all clones, and returns when they have ended. What was last known can still be read, and
    /// subscriptions end.
    pub async fn shutdown(self) {
        {
            // Whoever is about to watch is done with it, or sees that it is over.
            let _watched = self.inner.watched();
            self.inner.stop.cancel();
            self.inner.tasks.close();
        }
        self.inner.tasks.wait().await;
    }

    fn watch(&self, scope: Scope) -> Result<Keys, HubError> {
        Handle::try_current().map_err(|_| HubError::NoRuntime)?;
        let mut watched = self.inner.watched();
        if self.inner.stop.is_cancelled() {
            return Err(HubError::Closed);
        }
        let known = watched.get(&scope);
        if let Some(shared) = known.and_then(|known| known.shared.upgrade()) {
            return Ok(Keys::new(shared));
        }
        // One whose last user has gone may still be ending.
        let before = known.map(|known| known.ended.clone());
        let feed = Feed::new(KeyState::default(), self.inner.options.queue);
        let (ready_sender, ready) = watch::channel(false);
        let (stop, ended) = (self.inner.stop.child_token(), CancellationToken::new());
        let options = scope.mirror_options(&self.inner.options);
        let after = async move {
            if let Some(before) = before {
                before.cancelled().await;
            }
        };
        let (mirror, events) = Mirror::start_after(after, self.inner.connector.clone(), options);
        let shared = Arc::new(Shared {
            scope: scope.clone(),
            feed: Arc::clone(&feed),
            queue: self.inner.options.queue,
            status: mirror.status(),
            ready,
            ended: ended.clone(),
            _stop: stop.clone().drop_guard(),
        });
        let entry = Watched { shared: Arc::downgrade(&shared), ended: ended.clone() };
        let (registry, known_as) = (Arc::downgrade(&self.inner), Weak::clone(&entry.shared));
        watched.insert(scope.clone(), entry);
        self.inner.tasks.spawn(async move {
            follow(&feed, events, &ready_sender, &stop).await;
            feed.end();
            mirror.shutdown().await;
            if let Some(registry) = registry.upgrade() {
                let mut watched = registry.watched();
                // Unless there is another one of the same scope by now.
                if watched.get(&scope).is_some_and(|entry| entry.shared.ptr_eq(&known_as)) {
                    watched.remove(&scope);
                }
            }
            ended.cancel();
        });
        Ok(Keys::new(shared))
    }
}

/// Takes in what the mirror tells, until it is stopped.
async fn follow(
    feed: &Feed<KeyState>,
    mut events: mpsc::Receiver<MirrorEvent>,
    ready: &watch::Sender<bool>,
    stop: &CancellationToken,
) {
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.recv() => event,
        };
        let Some(event) = event else { return };
        feed.publish(|state| state.apply(event));
        ready.send_if_modified(|ready| !std::mem::replace(ready, true));
    }
}

impl Inner {
    fn watched(&self) -> std::sync::MutexGuard<'_, HashMap<Scope, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
