//! This host's part in writing APISIX's upstreams: a candidate for each that one of its services is to be in.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::task::JoinSet;
use tracing::warn;
use waypost_registry::{Connector, Format, Upstream, UpstreamWriter};

use crate::config::Service;

/// How long a writer may take to see this host's nodes out of the upstream, beyond the drain.
const LEAVE_LIMIT: Duration = Duration::from_secs(10);

/// The candidates.
#[derive(Debug)]
pub(super) struct Upstreams {
    connector: Connector,
    running: BTreeMap<Upstream, Running>,
    /// Writers whose services are not configured any more.
    leaving: JoinSet<()>,
}

#[derive(Debug)]
struct Running {
    writer: UpstreamWriter,
    /// This host's, all that ever were.
    instances: BTreeSet<String>,
}

impl Upstreams {
    pub(super) fn new(connector: Connector) -> Self {
        Self { connector, running: BTreeMap::new(), leaving: JoinSet::new() }
    }

    /// Is a candidate for these services' upstreams, and for no others once their drain is over.
    pub(super) fn apply(&mut self, services: &[Service], drain: Duration) {
        let mut wanted: BTreeMap<Upstream, BTreeSet<String>> = BTreeMap::new();
        for service in services.iter().filter(|service| service.format == Format::Apisix) {
            let upstream = Upstream::new(&service.root, &service.name);
            wanted.entry(upstream).or_default().insert(service.instance.clone());
        }
        while self.leaving.try_join_next().is_some() {}
        let (kept, gone) = std::mem::take(&mut self.running)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(upstream, _)| wanted.contains_key(upstream));
        self.running = kept;
        for Running { writer, instances } in gone.into_values() {
            self.leaving.spawn(writer.leave(instances, drain + LEAVE_LIMIT));
        }
        for (upstream, instances) in wanted {
            if let Some(running) = self.running.get_mut(&upstream) {
                running.instances.extend(instances);
                continue;
            }
            let candidate = instances.first().cloned().unwrap_or_default();
            match UpstreamWriter::start(self.connector.clone(), upstream.clone(), candidate) {
                Ok(writer) => _ = self.running.insert(upstream, Running { writer, instances }),
                Err(error) => warn!(upstream = upstream.key(), %error, "this agent does not write the upstream"),
            }
        }
    }

    /// Sees this host's nodes, whose registrations are gone, out of the upstreams.
    pub(super) async fn leave(&mut self) {
        for Running { writer, instances } in std::mem::take(&mut self.running).into_values() {
            self.leaving.spawn(writer.leave(instances, LEAVE_LIMIT));
        }
        while self.leaving.join_next().await.is_some() {}
    }
}
