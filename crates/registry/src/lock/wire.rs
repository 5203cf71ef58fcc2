//! A claim's requests on the wire: one connection, each request within its limit.

use std::time::{Duration, Instant};

use etcd_client::{
    Client, Compare, CompareOp, Error as EtcdError, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
    TxnOpResponse, WatchFilterType, WatchOptions,
};
use tokio::sync::watch;

use super::machine::{Answer, Op, Seen, Watched};
use crate::{
    connection::{Connector, describe},
    lease_machine::Failure,
    session::failure,
};

/// What is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Events {
    /// The deletion of a key.
    Deletion,
    /// Any change under a prefix.
    Changes,
}

/// The first key under a prefix by create revision, and the revision at which it was so.
pub(crate) struct First {
    pub(crate) found: Option<etcd_client::KeyValue>,
    pub(crate) revision: i64,
}

pub(crate) struct Wire {
    connector: Connector,
    endpoint: String,
    client: watch::Sender<Option<Client>>,
}

impl Wire {
    pub(crate) fn new(connector: Connector) -> Self {
        Self { connector, endpoint: String::new(), client: watch::channel(None).0 }
    }

    /// The connection, for others to use as long as it lasts.
    pub(crate) fn client(&self) -> watch::Receiver<Option<Client>> {
        self.client.subscribe()
    }

    /// Makes a request. After anything that breaks the connection, the next one has to be [`Op::Connect`].
    pub(crate) async fn perform(&mut self, op: &Op, limit: Duration) -> Result<Answer, Failure> {
        if *op == Op::Connect {
            return self.connect(limit).await.map(|()| Answer::Done);
        }
        let client = self.connected()?;
        self.within(limit, request(client, op)).await
    }

    /// Connects to the next endpoint in turn.
    pub(crate) async fn connect(&mut self, limit: Duration) -> Result<(), Failure> {
        self.client.send_replace(None);
        let connected = tokio::time::timeout(limit, self.connector.connect_named()).await;
        let connected = connected.map_err(|_| Failure::Broken(format!("etcd did not answer within {limit:?}")))?;
        let (client, endpoint) = connected.map_err(|error| Failure::Broken(error.to_string()))?;
        self.endpoint = endpoint;
        self.client.send_replace(Some(client));
        Ok(())
    }

    /// The first key under a prefix.
    pub(crate) async fn first(&mut self, prefix: &str, limit: Duration) -> Result<First, Failure> {
        let client = self.connected()?;
        let options = GetOptions::new().with_prefix().with_limit(1).with_sort(SortTarget::Create, SortOrder::Ascend);
        let mut kv = client.kv_client();
        let mut answer = self.within(limit, kv.get(prefix, Some(options))).await?;
        let revision = answer.header().map_or(0, |header| header.revision());
        Ok(First { found: answer.take_kvs().into_iter().next(), revision })
    }

    /// Waits for an event at revision `from` or later, until then.
    pub(crate) async fn watch(
        &mut self,
        key: &str,
        events: Events,
        from: i64,
        until: Instant,
        limit: Duration,
    ) -> Watched {
        let watched = self.watch_once(key, events, from, until, limit).await;
        let watched = watched.unwrap_or_else(Watched::Broken);
        if matches!(watched, Watched::Broken(_)) {
            self.client.send_replace(None);
        }
        watched
    }

    async fn watch_once(
        &self,
        key: &str,
        events: Events,
        from: i64,
        until: Instant,
        limit: Duration,
    ) -> Result<Watched, String> {
        let endpoint = &self.endpoint;
        let said = |error: &EtcdError| format!("etcd endpoint {endpoint}: {}", describe(error));
        let mut client = self.client.borrow().clone().ok_or("not connected")?;
        let options = WatchOptions::new().with_start_revision(from);
        let options = match events {
            Events::Deletion => options.with_filters([WatchFilterType::NoPut]),
            Events::Changes => options.with_prefix(),
        };
        let opened = tokio::time::timeout(limit, client.watch(key, Some(options))).await;
        let opened = opened.map_err(|_| format!("etcd endpoint {endpoint} opened no watch within {limit:?}"))?;
        let mut stream = opened.map_err(|error| said(&error))?;
        loop {
            let Ok(message) = tokio::time::timeout_at(until.into(), stream.message()).await else {
                return Ok(Watched::Quiet);
            };
            let message = message.map_err(|error| said(&error))?.ok_or("etcd ended the watch")?;
            // Compacted: what happened since `from` is to be looked up.
            if !message.events().is_empty() || message.compact_revision() > 0 {
                return Ok(Watched::Changed);
            }
            if message.canceled() {
                return Err(format!("etcd endpoint {endpoint} ended the watch: {}", message.cancel_reason()));
            }
        }
    }

    fn connected(&self) -> Result<Client, Failure> {
        self.client.borrow().clone().ok_or_else(|| Failure::Broken("not connected".into()))
    }

    async fn within<T>(
        &self,
        limit: Duration,
        request: impl Future<Output = Result<T, EtcdError>>,
    ) -> Result<T, Failure> {
        let endpoint = &self.endpoint;
        let outcome = match tokio::time::timeout(limit, request).await {
            Ok(outcome) => outcome.map_err(|error| failure(endpoint, &error)),
            Err(_) => Err(Failure::Broken(format!("etcd endpoint {endpoint} did not answer within {limit:?}"))),
        };
        if matches!(outcome, Err(Failure::Broken(_))) {
            self.client.send_replace(None);
        }
        outcome
    }
}

async fn request(mut client: Client, op: &Op) -> Result<Answer, EtcdError> {
    match op {
        Op::Connect => Ok(Answer::Done),
        Op::Grant { seconds } => {
            let granted = client.lease_grant(*seconds, None).await?;
            Ok(Answer::Granted { lease: granted.id(), ttl: Duration::from_secs(granted.ttl().unsigned_abs()) })
        }
        // One stream per keepalive: its answer cannot be taken for an earlier one's that came late.
        Op::KeepAlive { lease } => client.lease_keep_alive(*lease).await.map(|_| Answer::Done),
        Op::Place { lease, key, value } => {
            let put = TxnOp::put(key.as_str(), &**value, Some(PutOptions::new().with_lease(*lease)));
            let txn = Txn::new()
                .when([Compare::create_revision(key.as_str(), CompareOp::Equal, 0)])
                .and_then([put])
                .or_else([TxnOp::get(key.as_str(), Some(GetOptions::new().with_keys_only()))]);
            let answer = client.txn(txn).await?;
            let placed = answer.header().map_or(0, |header| header.revision());
            // There already: an earlier attempt got through, and only its answer was lost.
            let found = answer.op_responses().into_iter().find_map(|answer| match answer {
                TxnOpResponse::Get(found) => found.kvs().first().map(|found| found.create_revision()),
                _ => None,
            });
            Ok(Answer::Placed { revision: found.unwrap_or(placed) })
        }
        Op::Look { key, prefix, placed } => {
            let before = GetOptions::new()
                .with_prefix()
                .with_keys_only()
                .with_limit(1)
                .with_sort(SortTarget::Create, SortOrder::Descend)
                .with_max_create_revision(placed - 1);
            let own = TxnOp::get(key.as_str(), Some(GetOptions::new().with_keys_only()));
            let txn = Txn::new().and_then([own, TxnOp::get(prefix.as_str(), Some(before))]);
            let answer = client.txn(txn).await?;
            let revision = answer.header().map_or(0, |header| header.revision());
            let mut found = answer.op_responses().into_iter().map(|answer| match answer {
                TxnOpResponse::Get(mut answer) => answer.take_kvs().into_iter().next(),
                _ => None,
            });
            let own = found.next().flatten().map(|own| own.create_revision());
            let before = found.next().flatten().map(|before| String::from_utf8_lossy(before.key()).into_owned());
            Ok(Answer::Seen(Seen { own, before, revision }))
        }
        Op::Revoke { lease } => client.lease_revoke(*lease).await.map(|_| Answer::Done),
    }
}
