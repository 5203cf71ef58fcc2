//! What all streams of server-sent events have in common: a bounded number of them, comments that keep them alive, and
//! their end with the agent's.

use std::{sync::Arc, time::Duration};

use axum::{
    http::HeaderMap,
    response::{
        IntoResponse as _, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::{StreamExt as _, stream};
use serde::Serialize;

use super::{
    Api,
    problem::{Fault, Kind},
};

/// A comment after that much silence.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// An event of a name, with its data as JSON.
pub(super) fn event(name: &str, id: Option<String>, data: &impl Serialize) -> Event {
    let event = Event::default().event(name);
    let event = match id {
        Some(id) => event.id(id),
        None => event,
    };
    match serde_json::to_string(data) {
        Ok(data) => event.data(data),
        Err(error) => event.comment(error.to_string()),
    }
}

/// Where the reader stands, by its own account.
pub(super) fn last_event_id(headers: &HeaderMap) -> Option<&str> {
    headers.get("last-event-id")?.to_str().ok().filter(|id| !id.is_empty())
}

/// Answers with the events that `next` gives, until it gives none. They are made as the client takes them, so that a
/// slow one keeps nothing but the one that it is at.
pub(super) fn answer<S, N, F>(api: &Api, state: S, next: N) -> Result<Response, Fault>
where
    S: Send + 'static,
    N: Fn(S) -> F + Send + 'static,
    F: Future<Output = Option<(Event, S)>> + Send + 'static,
{
    let place = Arc::clone(&api.inner.streams).try_acquire_owned();
    let place = place.map_err(|_| Fault::new(Kind::TooMany, "there are too many streams of events already"))?;
    let stop = api.inner.stop.clone();
    let events = stream::unfold(state, next).take_until(stop.cancelled_owned()).map(move |event| {
        // Held for as long as the stream is.
        let _ = &place;
        Ok::<_, std::convert::Infallible>(event)
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}
