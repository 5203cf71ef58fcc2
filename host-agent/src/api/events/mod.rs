//! Changes of the catalog as server-sent events.

pub mod ring;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    extract::State,
    http::HeaderMap,
    response::{Response, sse::Event},
};
use tokio::sync::watch;
use waypost_catalog::Catalog;

use self::ring::{Batch, Change, Numbered, Position, Ring};
use super::{
    Api,
    extract::Parameters,
    problem::Fault,
    sse,
    types::{CatalogEvent, EventQuery, Node, NodeAdded, NodeChanged, NodeRemoved, Problem, Resynchronised},
};
use crate::published::CatalogReceiver;

/// Changes that can be told later to a reader who was away, or is slow.
const KEPT: usize = 8192;
/// Changes taken for one reader at a time: that much waits for it, and no more.
const BATCH: usize = 256;

/// The changes, and word of each.
#[derive(Debug)]
pub(super) struct Events {
    ring: Mutex<Ring>,
    news: watch::Sender<()>,
}

impl Events {
    pub(super) fn new(epoch: u64) -> Self {
        Self { ring: Mutex::new(Ring::new(epoch, KEPT)), news: watch::Sender::default() }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in each catalog, until there are no more.
    pub(super) async fn follow(&self, mut catalogs: CatalogReceiver) {
        loop {
            let catalog = catalogs.borrow_and_update().clone();
            if let Some(catalog) = catalog {
                self.ring().advance(catalog);
                self.news.send_replace(());
            }
            if catalogs.changed().await.is_err() {
                return;
            }
        }
    }
}

/// A reader: where it stands, and what waits for it.
struct Reader {
    events: Arc<Events>,
    news: watch::Receiver<()>,
    position: Option<Position>,
    service: Option<String>,
    waiting: VecDeque<Event>,
}

impl Reader {
    async fn next(mut self) -> Option<(Event, Self)> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some((event, self));
            }
            self.news.borrow_and_update();
            if !self.take() {
                self.news.changed().await.ok()?;
            }
        }
    }

    /// Whether there was something to take, even if nothing of it is asked for.
    fn take(&mut self) -> bool {
        let batch = self.events.ring().after(self.position.as_ref(), BATCH);
        match batch {
            Batch::Nothing => false,
            Batch::All(catalog, position) => {
                let event = CatalogEvent::Resynchronised(everything(&catalog, self.service.as_deref()));
                self.waiting.push_back(sse_event(&event, &position));
                self.position = Some(position);
                true
            }
            Batch::Changes(changes) => {
                for numbered in changes {
                    let position = self.events.ring().position(&numbered);
                    if self.service.as_deref().is_none_or(|service| service == numbered.service.as_str()) {
                        self.waiting.push_back(sse_event(&event(&numbered), &position));
                    }
                    self.position = Some(position);
                }
                true
            }
        }
    }
}

fn everything(catalog: &Catalog, service: Option<&str>) -> Resynchronised {
    let asked = catalog.services().iter().filter(|(name, _)| service.is_none_or(|service| service == name.as_str()));
    let services: BTreeMap<_, _> =
        asked.map(|(name, service)| (name.to_string(), service.nodes().map(Node::from).collect())).collect();
    Resynchronised { version: catalog.version(), services }
}

fn event(Numbered { service, change, .. }: &Numbered) -> CatalogEvent {
    let service = service.to_string();
    match change {
        Change::Added(entry) => CatalogEvent::Added(NodeAdded { service, node: entry.node().into() }),
        Change::Removed(entry) => CatalogEvent::Removed(NodeRemoved { service, node: entry.node().into() }),
        Change::Changed(old, new) => {
            CatalogEvent::Changed(NodeChanged { service, old: old.node().into(), new: new.node().into() })
        }
    }
}

fn sse_event(event: &CatalogEvent, position: &Position) -> Event {
    let id = Some(position.to_string());
    match event {
        CatalogEvent::Added(data) => sse::event("added", id, data),
        CatalogEvent::Changed(data) => sse::event("changed", id, data),
        CatalogEvent::Removed(data) => sse::event("removed", id, data),
        CatalogEvent::Resynchronised(data) => sse::event("resynchronised", id, data),
    }
}

/// Changes of the catalog as they come: first `resynchronised` with everything, then `added`, `changed` and `removed`.
/// With the header `last-event-id`, only what came after that event; if that cannot be told any more, everything.
#[utoipa::path(get, path = "/v1/events", tag = "catalog",
    params(EventQuery, ("last-event-id" = Option<String>, Header, description = "The id of the last event that was seen")),
    responses(
        (status = OK, body = CatalogEvent, content_type = "text/event-stream"),
        (status = BAD_REQUEST, body = Problem, content_type = "application/problem+json", description = "`bad-parameters`"),
        (status = SERVICE_UNAVAILABLE, body = Problem, content_type = "application/problem+json", description = "`too-many`"),
    ))]
pub(super) async fn catalog_events(
    State(api): State<Api>,
    Parameters(EventQuery { service }): Parameters<EventQuery>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let events = Arc::clone(&api.inner.events);
    let position = sse::last_event_id(&headers).and_then(|id| id.parse().ok());
    let reader = Reader { news: events.news.subscribe(), events, position, service, waiting: VecDeque::new() };
    sse::answer(&api, reader, Reader::next)
}
