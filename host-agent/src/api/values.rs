//! Configuration values: what etcd holds for a key or below a prefix, and how it changes.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::HeaderMap,
    response::{Response, sse::Event},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::time::Instant;
use waypost_registry::{
    KeyEvent, KeyValue, Registry, Subscription,
    etcd_client::{Error as EtcdError, GetOptions, GetResponse},
};

use super::{
    Api,
    extract::Parameters,
    problem::{Fault, Kind},
    sse,
    types::{Encoding, Problem, Value, ValueEvent, ValueRemoved, Values, ValuesQuery, lease_text},
};

/// Keys answered at once.
const MOST: i64 = 10_000;
/// How long etcd may take, whichever endpoint it is.
const LIMIT: Duration = Duration::from_secs(8);
/// The largest answer of etcd.
const ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// What is asked for.
#[derive(Clone, Debug)]
enum Asked {
    Key(String),
    Prefix(String),
}

impl TryFrom<ValuesQuery> for Asked {
    type Error = Fault;

    fn try_from(query: ValuesQuery) -> Result<Self, Fault> {
        match (query.key, query.prefix) {
            (Some(key), None) if !key.is_empty() => Ok(Self::Key(key)),
            (None, Some(prefix)) if !prefix.is_empty() => Ok(Self::Prefix(prefix)),
            _ => Err(Fault::new(Kind::BadParameters, "name a key or a prefix, one of the two and not empty")),
        }
    }
}

/// Bytes as text.
pub(super) fn as_text(bytes: Vec<u8>) -> (String, Encoding) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, Encoding::Utf8),
        Err(error) => (STANDARD.encode(error.as_bytes()), Encoding::Base64),
    }
}

/// A key and its value, as they are told.
pub(crate) fn value(entry: &KeyValue) -> Value {
    let (value, encoding) = as_text(entry.value.clone());
    Value {
        key: entry.key.clone(),
        value,
        encoding,
        mod_revision: entry.mod_revision,
        create_revision: entry.create_revision,
        lease: (entry.lease != 0).then(|| lease_text(entry.lease)),
    }
}

fn values(entries: &[Arc<KeyValue>], revision: i64) -> Values {
    Values { revision, values: entries.iter().map(|entry| value(entry)).collect() }
}

/// Why something could not be read.
enum Unread {
    /// etcd has forgotten that revision, or does not know it yet.
    OtherRevision,
    Fault(Fault),
}

/// What etcd holds, at a revision (0: now), and the revision. The endpoints are asked in turn until one answers.
async fn read(registry: &Registry, asked: &Asked, revision: i64) -> Result<(Vec<Arc<KeyValue>>, i64), Unread> {
    let ends = Instant::now() + LIMIT;
    let mut cause = String::from("it did not answer in time");
    loop {
        let attempt = async {
            let client = registry.client().await.map_err(|error| Err(error.to_string()))?;
            let mut kv = client.kv_client().max_decoding_message_size(ANSWER_BYTES);
            let options = GetOptions::new().with_revision(revision).with_limit(MOST + 1);
            let answer = match asked {
                Asked::Key(key) => kv.get(key.as_str(), Some(options)).await,
                Asked::Prefix(prefix) => kv.get(prefix.as_str(), Some(options.with_prefix())).await,
            };
            answer.map_err(Ok)
        };
        match tokio::time::timeout_at(ends, attempt).await {
            Ok(Ok(answer)) => return entries(answer),
            Ok(Err(Ok(EtcdError::GRpcStatus(status)))) if status.code() == tonic::Code::OutOfRange => {
                return Err(Unread::OtherRevision);
            }
            Ok(Err(Ok(EtcdError::GRpcStatus(status)))) if status.code() == tonic::Code::PermissionDenied => {
                return Err(Unread::Fault(Fault::new(Kind::EtcdRefused, status.message())));
            }
            Ok(Err(Ok(error))) => cause = error.to_string(),
            Ok(Err(Err(error))) => cause = error,
            Err(_) => return Err(Unread::Fault(Fault::new(Kind::EtcdUnavailable, format!("etcd: {cause}")))),
        }
        tokio::time::sleep(Duration::from_millis(50).mul_f64(1.0 + fastrand::f64())).await;
    }
}

fn entries(mut answer: GetResponse) -> Result<(Vec<Arc<KeyValue>>, i64), Unread> {
    if answer.more() || answer.kvs().len() as i64 > MOST {
        let detail = format!("there are more than {MOST} keys: name a longer prefix");
        return Err(Unread::Fault(Fault::new(Kind::BadParameters, detail)));
    }
    let revision = answer.header().map_or(0, |header| header.revision());
    let entry = |kv: waypost_registry::etcd_client::KeyValue| {
        let (mod_revision, create_revision, lease) = (kv.mod_revision(), kv.create_revision(), kv.lease());
        let (key, value) = kv.into_key_value();
        // As everywhere: a key that is no UTF-8 is none of ours.
        Some(Arc::new(KeyValue { key: String::from_utf8(key).ok()?, value, mod_revision, create_revision, lease }))
    };
    Ok((answer.take_kvs().into_iter().filter_map(entry).collect(), revision))
}

/// What etcd holds for a key, or for all keys of a prefix.
#[utoipa::path(get, path = "/v1/values", tag = "values", params(ValuesQuery), responses(
    (status = OK, body = Values),
    (status = BAD_REQUEST, body = Problem, content_type = "application/problem+json", description = "`bad-parameters`"),
    (status = BAD_GATEWAY, body = Problem, content_type = "application/problem+json", description = "`etcd-refused`"),
    (status = SERVICE_UNAVAILABLE, body = Problem, content_type = "application/problem+json", description = "`etcd-unavailable`"),
))]
pub(super) async fn get(
    State(api): State<Api>,
    Parameters(query): Parameters<ValuesQuery>,
) -> Result<Json<Values>, Fault> {
    match read(&api.inner.registry, &query.try_into()?, 0).await {
        Ok((entries, revision)) => Ok(Json(values(&entries, revision))),
        Err(Unread::Fault(fault)) => Err(fault),
        Err(Unread::OtherRevision) => Err(Fault::new(Kind::EtcdUnavailable, "etcd refuses its own present revision")),
    }
}

/// Changes of a key, or of all keys of a prefix, as they come: first `resynchronised` with everything, then `put` and
/// `removed`. With the header `last-event-id`, which is a revision of etcd, what has changed since then first; if etcd has
/// forgotten that revision, everything.
#[utoipa::path(get, path = "/v1/values/events", tag = "values",
    params(ValuesQuery, ("last-event-id" = Option<String>, Header, description = "The id of the last event that was seen")),
    responses(
        (status = OK, body = ValueEvent, content_type = "text/event-stream"),
        (status = BAD_REQUEST, body = Problem, content_type = "application/problem+json", description = "`bad-parameters`"),
        (status = SERVICE_UNAVAILABLE, body = Problem, content_type = "application/problem+json", description = "`etcd-unavailable`, `too-many`"),
    ))]
pub(super) async fn events(
    State(api): State<Api>,
    Parameters(query): Parameters<ValuesQuery>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let asked = Asked::try_from(query)?;
    let registry = api.inner.registry.clone();
    let unavailable = |error: String| Fault::new(Kind::EtcdUnavailable, error);
    let keys = match &asked {
        Asked::Key(key) => registry.key(key),
        Asked::Prefix(prefix) => registry.keys(prefix),
    };
    let keys = keys.map_err(|error| unavailable(error.to_string()))?;
    keys.ready(LIMIT).await.map_err(|error| unavailable(error.to_string()))?;
    let seen = sse::last_event_id(&headers).and_then(|id| id.parse().ok());
    let reader =
        Reader { registry, asked, subscription: keys.subscribe(), seen, ahead: None, waiting: VecDeque::new() };
    sse::answer(&api, reader, Reader::next)
}

/// A reader of changes.
struct Reader {
    registry: Registry,
    asked: Asked,
    subscription: Subscription,
    /// The revision up to which its client has seen everything, if it says one.
    seen: Option<i64>,
    /// An event that was looked at already.
    ahead: Option<KeyEvent>,
    waiting: VecDeque<Event>,
}

impl Reader {
    async fn next(mut self) -> Option<(Event, Self)> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some((event, self));
            }
            let event = match self.ahead.take() {
                Some(event) => event,
                None => self.subscription.next().await?,
            };
            match (event, self.seen.take()) {
                (KeyEvent::Resynchronised { entries, revision, .. }, Some(seen)) if seen <= revision => {
                    match read(&self.registry, &self.asked, seen).await {
                        Ok((before, _)) => {
                            let changes = KeyEvent::between(&before, &entries, revision);
                            self.waiting.extend(told(&changes, revision));
                        }
                        Err(_) => self.waiting.push_back(everything(&entries, revision)),
                    }
                }
                (KeyEvent::Resynchronised { entries, revision, .. }, _) => {
                    self.waiting.push_back(everything(&entries, revision));
                }
                (event, _) => {
                    let revision = event.revision();
                    let mut changes = vec![event];
                    // All of a revision together: its id is given once all of it is told.
                    while let Some(next) = self.subscription.try_next() {
                        let same = next.revision() == revision && !matches!(next, KeyEvent::Resynchronised { .. });
                        if !same {
                            self.ahead = Some(next);
                            break;
                        }
                        changes.push(next);
                    }
                    self.waiting.extend(told(&changes, revision));
                }
            }
        }
    }
}

fn everything(entries: &[Arc<KeyValue>], revision: i64) -> Event {
    sse::event("resynchronised", Some(revision.to_string()), &values(entries, revision))
}

/// Changes as events, of which the last one has the id.
fn told(changes: &[KeyEvent], revision: i64) -> Vec<Event> {
    let last = changes.len().saturating_sub(1);
    let event = |(index, change): (usize, &KeyEvent)| {
        let id = (index == last).then(|| revision.to_string());
        match change {
            KeyEvent::Added(new) | KeyEvent::Changed { new, .. } => Some(sse::event("put", id, &value(new))),
            KeyEvent::Removed { old, revision } => {
                Some(sse::event("removed", id, &ValueRemoved { key: old.key.clone(), mod_revision: *revision }))
            }
            KeyEvent::Resynchronised { .. } => None,
        }
    };
    changes.iter().enumerate().filter_map(event).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_written_in_base64() {
        assert_eq!(as_text(b"{}".to_vec()), ("{}".to_owned(), Encoding::Utf8));
        assert_eq!(as_text(vec![0xff, 0x00]), ("/wA=".to_owned(), Encoding::Base64));
    }

    #[test]
    fn a_key_or_a_prefix_is_asked_for_and_never_all_of_etcd() {
        let query = |key: Option<&str>, prefix: Option<&str>| {
            Asked::try_from(ValuesQuery { key: key.map(str::to_owned), prefix: prefix.map(str::to_owned) })
        };
        assert!(query(Some("a"), None).is_ok() && query(None, Some("a/")).is_ok());
        for (key, prefix) in [(None, None), (Some("a"), Some("a")), (None, Some("")), (Some(""), None)] {
            assert!(query(key, prefix).is_err(), "{key:?} {prefix:?}");
        }
    }
}
