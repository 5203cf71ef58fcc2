//! One filter's stream: what it holds, what it is sent next, and when.

use std::{future, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout},
};
use tonic::{Status, Streaming};
use tracing::{debug, info};
use waypost_catalog::{
    Catalog, sender,
    wire::{
        self, ClientMessage, Heartbeat, Hello, InSync, Report, ServerMessage, client_message::Kind as FromClient,
        server_message::Kind,
    },
};

use super::{
    coordination::{ADD_LIMIT, Participant, Progress, brings_nodes},
    metrics::StreamMetrics,
    outbox::{Outbox, StreamEnd},
};
use crate::{
    outcomes::{Outcomes, Reporter},
    published::{CatalogReceiver, Staleness},
    xds::selection::Selection,
};

/// A client that does not say who it is within this time is no filter.
const HELLO_LIMIT: Duration = Duration::from_secs(10);

/// How often a filter hears that the agent lives, and how old its catalog may be.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// What a filter's stream is served from.
pub(super) struct Session {
    pub(super) inbound: Streaming<ClientMessage>,
    pub(super) outbox: Outbox<ServerMessage>,
    pub(super) catalog: CatalogReceiver,
    pub(super) staleness: Arc<dyn Staleness>,
    pub(super) selection: Arc<Selection>,
    pub(super) participant: Participant,
    pub(super) progress: watch::Receiver<Progress>,
    pub(super) metrics: Arc<StreamMetrics>,
    pub(super) outcomes: Arc<Outcomes>,
}

/// A version that is held back until the clusters have its new nodes.
struct Held {
    catalog: Arc<Catalog>,
    until: Instant,
}

impl Session {
    /// Serves the filter until either side ends the stream. May be dropped at any point.
    pub(super) async fn serve(&mut self) -> Result<(), StreamEnd> {
        let Some(hello) = self.hello().await? else { return Ok(()) };
        let outcomes = Arc::clone(&self.outcomes);
        let reporter = outcomes.reporter();
        let mut sent: Option<Arc<Catalog>> = None;
        let mut held: Option<Held> = None;
        let mut heartbeat = heartbeat();
        self.catalog.mark_changed();
        loop {
            // The catalog comes before the heartbeat, so that the first thing that a filter hears is what it is for.
            tokio::select! {
                biased;
                message = self.inbound.message() => match message?.map(|message| message.kind) {
                    None => return Ok(()),
                    Some(Some(FromClient::Ack(ack))) => {
                        self.metrics.acked();
                        self.participant.applied(ack.version);
                    }
                    Some(Some(FromClient::Resync(resync))) => {
                        info!(client = hello.client, reason = resync.reason, "a filter asks for everything again");
                        self.metrics.resynced();
                        if sent.is_some() {
                            held = None;
                            sent = self.send_full().await?;
                        }
                    }
                    Some(Some(FromClient::Report(report))) => self.report(&reporter, &report),
                    Some(Some(FromClient::Hello(_))) => {
                        return Err(Status::invalid_argument("Hello may come once, at the beginning").into());
                    }
                    // Of a newer filter.
                    Some(None) => {}
                },
                changed = self.catalog.changed(), if held.is_none() => {
                    changed.map_err(|_| StreamEnd::AgentStopping)?;
                    sent = match (sent.take(), self.current()) {
                        (sent, None) => sent,
                        (None, Some(current)) => self.send_first(&hello, current).await?,
                        (Some(old), Some(new)) if self.is_ahead_of_clusters(&old, &new) => {
                            held = Some(Held { catalog: new, until: Instant::now() + ADD_LIMIT });
                            Some(old)
                        }
                        (Some(old), Some(new)) => Some(self.send_delta(&old, new).await?),
                    };
                }
                () = clusters_have(held.as_ref(), &mut self.progress) => {
                    if let (Some(old), Some(Held { catalog, .. })) = (sent.take(), held.take()) {
                        sent = Some(self.send_delta(&old, catalog).await?);
                        // What came in the meantime.
                        self.catalog.mark_changed();
                    }
                }
                _ = heartbeat.tick() => {
                    let version = sent.as_ref().map_or(0, |catalog| catalog.version());
                    let stale_ms = self.staleness.stale_for().as_millis().try_into().unwrap_or(u64::MAX);
                    self.send(Kind::Heartbeat(Heartbeat { version, stale_ms })).await?;
                }
            }
        }
    }

    /// Ends the stream, with a reason if it is not the client's own doing.
    pub(super) fn end(self, end: StreamEnd) {
        if matches!(end, StreamEnd::ClientSlow) {
            self.metrics.dropped_slow_client();
        }
        self.outbox.end(end);
    }

    async fn hello(&mut self) -> Result<Option<Hello>, StreamEnd> {
        let Ok(message) = timeout(HELLO_LIMIT, self.inbound.message()).await else {
            return Err(Status::deadline_exceeded("no Hello came").into());
        };
        let hello = match message?.map(|message| message.kind) {
            None => return Ok(None),
            Some(Some(FromClient::Hello(hello))) => hello,
            Some(_) => return Err(Status::invalid_argument("the first message must be Hello").into()),
        };
        if hello.protocol != wire::PROTOCOL_VERSION {
            return Err(Status::failed_precondition(format!(
                "this agent speaks version {} of the catalog stream, the filter version {}: use the filter that came \
                 with the agent",
                wire::PROTOCOL_VERSION,
                hello.protocol,
            ))
            .into());
        }
        debug!(client = hello.client, "a filter's stream is open");
        Ok(Some(hello))
    }

    fn report(&self, reporter: &Reporter<'_>, report: &Report) {
        let catalog = self.catalog.borrow().clone();
        let is_served = |service: &str, address: &str| {
            let service = catalog.as_ref().and_then(|catalog| catalog.services().get(service));
            address.parse().is_ok_and(|address| service.is_some_and(|service| service.entries().contains_key(&address)))
        };
        reporter.take_in(report, is_served, Instant::now().into_std());
    }

    fn current(&mut self) -> Option<Arc<Catalog>> {
        self.catalog.borrow_and_update().clone()
    }

    fn is_ahead_of_clusters(&self, old: &Catalog, new: &Catalog) -> bool {
        self.progress.borrow().clusters < new.version() && brings_nodes(old, new, &self.selection)
    }

    async fn send_first(&self, hello: &Hello, current: Arc<Catalog>) -> Result<Option<Arc<Catalog>>, StreamEnd> {
        if hello.hash == current.hash() {
            self.send(Kind::InSync(InSync { version: current.version() })).await?;
        } else {
            self.send_all(sender::full(&current)).await?;
        }
        Ok(Some(current))
    }

    async fn send_full(&mut self) -> Result<Option<Arc<Catalog>>, StreamEnd> {
        let current = self.current();
        if let Some(catalog) = &current {
            self.send_all(sender::full(catalog)).await?;
        }
        Ok(current)
    }

    async fn send_delta(&self, old: &Catalog, new: Arc<Catalog>) -> Result<Arc<Catalog>, StreamEnd> {
        self.send_all(sender::delta(old, &new)).await?;
        Ok(new)
    }

    async fn send_all(&self, messages: impl IntoIterator<Item = ServerMessage>) -> Result<(), StreamEnd> {
        for message in messages {
            if let Some(kind) = message.kind {
                self.send(kind).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, kind: Kind) -> Result<(), StreamEnd> {
        self.metrics.sent(&kind);
        self.outbox.send(ServerMessage { kind: Some(kind) }).await
    }
}

fn heartbeat() -> Interval {
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat
}

/// Waits until the clusters have applied what is held back, or its time is up. Without anything held, for ever.
async fn clusters_have(held: Option<&Held>, progress: &mut watch::Receiver<Progress>) {
    let Some(Held { catalog, until }) = held else { return future::pending().await };
    tokio::select! {
        // An error says that nobody is left to tell: the time limit decides.
        Ok(_) = progress.wait_for(|progress| progress.clusters >= catalog.version()) => {}
        () = sleep_until(*until) => {}
    }
}
