//! The services under a prefix and their nodes: read, picked from and followed.
//!
//! A pick loads two pointers, moves a counter and takes no lock; see [`waypost_balance`].

mod prepared;
mod state;

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use waypost_balance::Strategy;
use waypost_catalog::{Node, Protocol, ServiceName};

use state::{NodeState, Table};

pub use prepared::Nodes;
pub use state::NodeEvent;

use super::{
    HubError, Keys, Subscription,
    feed::{Feed, Subscriber},
    keys::wait_ready,
};
use crate::{
    format::Format,
    mirror::MirrorStatus,
    resolve::{Resolver, SystemLookup},
    view::View,
};

/// Changes of keys that are taken in at once, however many more there are.
const BATCH: usize = 4096;

/// The services under a prefix, kept in step with etcd. Cheap to clone; clones pick in turn from one sequence. The
/// watch ends with the last clone and the last [`NodeEvents`].
///
/// A value that cannot be read keeps the nodes that its key stood for before. Names of hosts are looked up, again and
/// again. A service that is not known has no nodes.
///
/// ```
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let etcd = waypost_registry_testing::Etcd::start().await;
/// # let mut client = etcd.client().await;
/// # client.put("/waypost/services/web/1", r#"{"address":"10.0.0.1","port":80,"weight":2}"#, None).await?;
/// # let registry = waypost_registry::Registry::new(etcd.connector());
/// use std::time::Duration;
/// use waypost_registry::{Format, NodeEvent, Strategy, catalog::Protocol};
///
/// let discovery = registry.discover("/waypost/services/", Format::Waypost, Protocol::Http1)?;
/// discovery.ready(Duration::from_secs(5)).await?;
///
/// // From any thread, for every request:
/// let node = discovery.pick("web", Strategy::WeightedRoundRobin).expect("web has a healthy node");
/// assert_eq!(node.address.to_string(), "10.0.0.1:80");
///
/// let mut events = discovery.subscribe();
/// # client.put("/waypost/services/web/1", r#"{"address":"10.0.0.1","port":80,"weight":3}"#, None).await?;
/// # client.delete("/waypost/services/web/1", None).await?;
/// while let Some(event) = events.next().await {
///     match event {
///         NodeEvent::Resynchronised { reason, services } => println!("{reason}: {} services", services.len()),
///         NodeEvent::Added { service, node } => println!("{service}: {} came", node.address),
///         NodeEvent::Changed { service, old, new } => println!("{service}: {} -> {}", old.weight, new.weight),
///         NodeEvent::Removed { service, node } => {
///             println!("{service}: {} went", node.address);
///             break;
///         }
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Discovery {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    prefix: String,
    feed: Arc<Feed<NodeState>>,
    table: Arc<Table>,
    status: watch::Receiver<MirrorStatus>,
    ready: watch::Receiver<bool>,
    /// Cancelled once the task has ended.
    ended: CancellationToken,
    _stop: DropGuard,
}

impl Discovery {
    pub(super) fn start(keys: &Keys, format: Format, protocol: Protocol, tasks: &TaskTracker) -> Self {
        let prefix = keys.prefix().to_owned();
        let table = Arc::new(Table::default());
        let feed =
            Feed::new(NodeState::new(View::new(prefix.as_str(), format, protocol), Arc::clone(&table)), keys.queue());
        let (ready_sender, ready) = watch::channel(false);
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let subscription = keys.subscribe();
        let shared = Shared {
            prefix,
            feed: Arc::clone(&feed),
            table,
            status: keys.status(),
            ready,
            ended: ended.clone(),
            _stop: stop.clone().drop_guard(),
        };
        tasks.spawn(async move {
            let mut resolver = Resolver::start(SystemLookup);
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow(&feed, subscription, &mut resolver, &ready_sender) => {}
            }
            feed.end();
            resolver.shutdown().await;
            ended.cancel();
        });
        Self { shared: Arc::new(shared) }
    }

    /// Waits until the services have been fetched, and the names of hosts looked up. Before that there seem to be none.
    ///
    /// # Errors
    /// [`HubError::NotReady`] with the cause if that takes longer than `deadline`; [`HubError::Closed`].
    pub async fn ready(&self, deadline: Duration) -> Result<(), HubError> {
        wait_ready(&self.shared.ready, &self.shared.status, &self.shared.prefix, deadline).await
    }

    /// The names of all services that have a node, in order.
    pub fn services(&self) -> Vec<ServiceName> {
        let mut names: Vec<_> = self.shared.table.load().keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// A service's nodes, whatever their health, in the order of their keys.
    pub fn nodes(&self, service: &str) -> Nodes {
        self.shared.table.load().get(service).map_or_else(Nodes::default, |entry| Arc::clone(&entry.load().nodes))
    }

    /// A service's nodes to which requests may go: those that pass and have a weight above 0.
    pub fn healthy(&self, service: &str) -> Nodes {
        self.shared.table.load().get(service).map_or_else(Nodes::default, |entry| Arc::clone(&entry.load().healthy))
    }

    /// One of a service's healthy nodes; `None` if there is none. O(1), and from any number of threads at once: also
    /// then the shares of [`Strategy::WeightedRoundRobin`] are exact between two changes of the service. Strategies that
    /// [need](Strategy::needs) more than weights are served as [`waypost_balance::Picker`] can.
    pub fn pick(&self, service: &str, strategy: Strategy) -> Option<Arc<Node>> {
        self.shared.table.load().get(service)?.load().pick(strategy, fastrand::u64(..))
    }

    /// Follows the changes. The first event is [`NodeEvent::Resynchronised`] with everything.
    pub fn subscribe(&self) -> NodeEvents {
        NodeEvents { subscriber: self.shared.feed.subscribe(), discovery: self.clone() }
    }

    /// How many keys have a value now that is no node.
    pub fn undecodable(&self) -> usize {
        self.shared.feed.read(|state| state.view.undecodable_now())
    }

    /// What was wrong with the last values that were no nodes, newest last.
    pub fn last_errors(&self) -> Vec<String> {
        self.shared.feed.read(|state| state.view.last_errors().map(str::to_owned).collect())
    }

    /// How the mirror stands, now and whenever that changes.
    pub fn status(&self) -> watch::Receiver<MirrorStatus> {
        self.shared.status.clone()
    }

    /// Returns once it has ended for good, as [`Registry::shutdown`](super::Registry::shutdown) has it. What was last
    /// known can still be read and picked from.
    pub async fn closed(&self) {
        self.shared.ended.cancelled().await;
    }
}

/// The changes of the services' nodes, in order and without a gap.
///
/// Events wait for a slow subscriber, up to [`HubOptions::queue`](super::HubOptions::queue). If he falls further
/// behind, events are dropped, and the next thing he gets is [`NodeEvent::Resynchronised`] for
/// [`Restart::Lagged`](super::Restart::Lagged).
#[derive(Debug)]
pub struct NodeEvents {
    subscriber: Subscriber<NodeState>,
    /// Keeps the watch.
    discovery: Discovery,
}

impl NodeEvents {
    /// The next event; `None` after the registry's shutdown. Nothing is lost if the future is dropped before.
    pub async fn next(&mut self) -> Option<NodeEvent> {
        self.subscriber.next().await
    }

    /// The next event, if there is one already.
    pub fn try_next(&mut self) -> Option<NodeEvent> {
        self.subscriber.try_next()
    }

    /// The services that it follows.
    pub fn discovery(&self) -> &Discovery {
        &self.discovery
    }
}

/// Takes in changes of keys and of hosts' addresses, until there are no more.
async fn follow(feed: &Feed<NodeState>, mut keys: Subscription, resolver: &mut Resolver, ready: &watch::Sender<bool>) {
    let mut names_version = 0;
    loop {
        tokio::select! {
            event = keys.next() => {
                let Some(event) = event else { return };
                // One change goes on at once; many that wait are one.
                let mut events = vec![event];
                events.extend(std::iter::from_fn(|| keys.try_next()).take(BATCH - 1));
                feed.publish(|state| state.take_in(events));
            }
            resolution = resolver.next() => feed.publish(|state| state.resolve(&resolution)),
        }
        let mut wanted = None;
        feed.publish(|state| {
            if std::mem::replace(&mut names_version, state.view.names_version()) != names_version {
                state.forget_names();
                wanted = Some(state.view.names().cloned().collect());
            }
            Vec::new()
        });
        if let Some(names) = wanted {
            resolver.want(names);
        }
        if !*ready.borrow() && feed.read(NodeState::is_ready) {
            ready.send_replace(true);
        }
    }
}
