//! One hub for all that a program wants to know from etcd: keys, services, configuration.
//!
//! ```text
//! Registry --one watch per prefix--> mirror -> keys ---> Keys, Subscription       raw keys, change by change
//!                                                   +--> Discovery, NodeEvents    services, nodes, picks
//!                                                   +--> ConfigWatch, ConfigMap   typed values, the last good one
//! ```
//!
//! However many users a prefix has, it is watched once, and no longer than the last of them lives.

mod feed;
mod key_state;
mod keys;

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use etcd_client::Client;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use feed::Feed;
use key_state::KeyState;
use keys::Shared;

pub use feed::Restart;
pub use key_state::KeyEvent;
pub use keys::{Keys, Subscription};

use crate::{
    connection::{ConnectError, Connector},
    mirror::{Mirror, MirrorEvent, MirrorOptions},
};

/// How a [`Registry`] watches.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// About how often every prefix is fetched anew beside its watch; see [`MirrorOptions::refresh`].
    pub refresh: Option<Duration>,
    /// How many of etcd's messages wait for a subscriber that is slow, at most; a message holds a change, or several
    /// that came together. Who falls further behind gets the full state instead.
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
/// ```no_run
/// # use std::time::Duration;
/// # use waypost_registry::{Connector, ConnectOptions, Registry};
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let registry = Registry::new(Connector::new(ConnectOptions::default())?);
/// let settings = registry.key("/settings/level")?;
/// settings.ready(Duration::from_secs(5)).await?;
/// println!("{:?}", settings.value("/settings/level"));
/// // What the hub has no word for goes by etcd's own client.
/// registry.client().await?.put("/settings/level", "debug", None).await?;
/// registry.shutdown().await;
/// # Ok(())
/// # }
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
