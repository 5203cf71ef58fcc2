//! A stream of events that goes on where it broke off.

use std::{collections::VecDeque, marker::PhantomData, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, header};
use serde::de::DeserializeOwned;
use waypost_registry::backoff::Backoff;

use super::{Client, ClientError, Path, sse};

/// A stream silent for that long is dead: the agent says something every few seconds.
const SILENCE: Duration = Duration::from_secs(45);

/// What a stream of events tells.
#[derive(Debug)]
pub enum Told<T> {
    /// This happened.
    Event(T),
    /// The stream broke off, and is resumed. What is missed meanwhile comes later.
    Interrupted(ClientError),
}

/// Events of one path. `T` is made of `{"event": NAME, "data": DATA}`.
#[derive(Debug)]
pub struct Events<T> {
    client: Client,
    path: Path,
    /// What a newer agent tells beside these is not for us.
    names: &'static [&'static str],
    reader: sse::Reader,
    ready: VecDeque<sse::Event>,
    stream: Option<Response<Incoming>>,
    /// Whether it was ever connected: a first attempt that fails is the caller's to judge.
    begun: bool,
    backoff: Backoff,
    of: PhantomData<T>,
}

impl<T: DeserializeOwned> Events<T> {
    pub(super) fn new(client: Client, path: Path, names: &'static [&'static str]) -> Self {
        Self {
            client,
            path,
            names,
            reader: sse::Reader::default(),
            ready: VecDeque::new(),
            stream: None,
            begun: false,
            backoff: Backoff::new(Duration::from_millis(50), Duration::from_secs(5)),
            of: PhantomData,
        }
    }

    /// The next thing to know. It may be dropped while it waits; nothing is lost by that.
    ///
    /// # Errors
    /// [`ClientError`] if the stream cannot be begun, or the agent refuses to resume it.
    pub async fn next(&mut self) -> Result<Told<T>, ClientError> {
        loop {
            while let Some(event) = self.ready.pop_front() {
                if self.names.contains(&event.name.as_str()) {
                    return self.understood(&event).map(Told::Event);
                }
            }
            let Some(stream) = &mut self.stream else {
                if self.begun {
                    tokio::time::sleep(self.backoff.next(fastrand::f64())).await;
                }
                match self.open().await {
                    Ok(stream) => self.stream = Some(stream),
                    Err(error) if self.begun && error.is_unreachable() => continue,
                    Err(error) => return Err(error),
                }
                self.begun = true;
                continue;
            };
            let failure = match tokio::time::timeout(SILENCE, stream.frame()).await {
                Ok(Some(Ok(frame))) => {
                    self.backoff.reset();
                    let bytes = frame.into_data().unwrap_or_default();
                    match self.reader.read(&bytes) {
                        Ok(events) => {
                            self.ready.extend(events);
                            continue;
                        }
                        Err(too_long) => self.client.broken(too_long.to_string()),
                    }
                }
                Ok(Some(Err(error))) => self.client.broken(error.to_string()),
                Ok(None) => self.client.broken("it ended the stream".into()),
                Err(_) => self.client.timed_out(SILENCE),
            };
            self.stream = None;
            self.reader.broke_off();
            return Ok(Told::Interrupted(failure));
        }
    }

    async fn open(&self) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::get(self.path.as_str()).header(header::HOST, "agent");
        request = request.header(header::ACCEPT, "text/event-stream");
        if let Some(id) = self.reader.last_id() {
            request = request.header("last-event-id", id);
        }
        let request = request.body(Full::new(Bytes::new())).map_err(|error| self.client.broken(error.to_string()))?;
        let answer = self.client.send(request).await?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = tokio::time::timeout(super::ANSWER, self.client.collect(answer)).await;
        Err(ClientError::refused(status, &body.map_err(|_| self.client.timed_out(super::ANSWER))??))
    }

    fn understood(&self, event: &sse::Event) -> Result<T, ClientError> {
        let data = serde_json::from_str::<serde_json::Value>(&event.data);
        let event_of = |data| serde_json::from_value(serde_json::json!({ "event": event.name, "data": data }));
        data.and_then(event_of).map_err(|error| self.client.broken(format!("event {:?}: {error}", event.name)))
    }
}
