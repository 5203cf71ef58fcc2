//! The registrar's requests on the wire: one connection, each request within its limit.

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, Error as EtcdError, GetOptions, KvClient, LeaseTimeToLiveOptions, PutOptions, Txn,
    TxnOp, TxnOpResponse, TxnResponse,
};
use tonic::Code;

use crate::{
    connection::{Connector, describe},
    lease_machine::{Answer, Failure, Found, Id, Op, Put},
};

/// Largest answer that is taken, in bytes; gRPC's default of 4 MiB is less than a transaction may bring.
pub(crate) const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Session {
    connector: Connector,
    client: Option<Connected>,
}

struct Connected {
    client: Client,
    endpoint: String,
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Connected").field(&self.endpoint).finish()
    }
}

impl Session {
    pub(crate) fn new(connector: Connector) -> Self {
        Self { connector, client: None }
    }

    /// Makes a request. After anything that breaks the connection, the next one has to be [`Op::Connect`].
    pub(crate) async fn perform(&mut self, op: &Op, limit: Duration) -> Result<Answer, Failure> {
        let outcome = match tokio::time::timeout(limit, self.attempt(op)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Broken(format!("{} did not answer within {limit:?}", self.endpoint()))),
        };
        if matches!(outcome, Err(Failure::Broken(_))) {
            self.client = None;
        }
        outcome
    }

    fn endpoint(&self) -> String {
        match &self.client {
            Some(connected) => format!("etcd endpoint {}", connected.endpoint),
            None => "the etcd endpoint".into(),
        }
    }

    async fn attempt(&mut self, op: &Op) -> Result<Answer, Failure> {
        if *op == Op::Connect {
            let (client, endpoint) =
                self.connector.connect_named().await.map_err(|error| Failure::Broken(error.to_string()))?;
            self.client = Some(Connected { client, endpoint });
            return Ok(Answer::Done);
        }
        let Some(Connected { client, endpoint }) = &mut self.client else {
            return Err(Failure::Broken("not connected".into()));
        };
        request(client, op).await.map_err(|error| failure(endpoint, &error))
    }
}

async fn request(client: &mut Client, op: &Op) -> Result<Answer, EtcdError> {
    let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
    match op {
        Op::Connect => Ok(Answer::Done),
        Op::Grant { seconds } => {
            let granted = client.lease_grant(*seconds, None).await?;
            Ok(Answer::Granted { lease: granted.id(), ttl: seconds_of(granted.ttl()) })
        }
        Op::Adopt { lease } => {
            let lease = client.lease_time_to_live(*lease, None).await?;
            // -1 for a lease that is gone. In its last second a lease that lives has 0 left: etcd cuts fractions off.
            if lease.ttl() < 0 {
                return Err(gone());
            }
            Ok(Answer::Adoptable { ttl: seconds_of(lease.granted_ttl()) })
        }
        // One stream per keepalive: its answer cannot be taken for an earlier one's that came late.
        Op::KeepAlive { lease } => client.lease_keep_alive(*lease).await.map(|_| Answer::Done),
        Op::Revision { prefix, .. } => {
            // A key that is nobody's: any answer has the revision in its header.
            let found = kv.get(format!("{prefix}/"), Some(GetOptions::new().with_keys_only())).await?;
            found.header().map(|header| Answer::Revision(header.revision())).ok_or_else(headless)
        }
        Op::Check { keys, values } => check(&mut kv, keys, *values).await,
        Op::Put { lease, puts } => put(&mut kv, *lease, puts).await,
        Op::Delete { key, seen, .. } => {
            let txn = Txn::new()
                .when([Compare::mod_revision(key.as_str(), CompareOp::Equal, *seen)])
                .and_then([TxnOp::delete(key.as_str(), None)]);
            kv.txn(txn).await.map(|answer| if answer.succeeded() { Answer::Done } else { Answer::Conflict })
        }
        Op::List { lease } => {
            let options = LeaseTimeToLiveOptions::new().with_keys();
            let lease = client.lease_time_to_live(*lease, Some(options)).await?;
            let keys = lease.keys().iter().filter_map(|key| String::from_utf8(key.clone()).ok());
            Ok(Answer::Listed(keys.collect()))
        }
        Op::Release { lease, keys } => {
            let ours = |key: &String| Compare::lease(key.as_str(), CompareOp::Equal, *lease);
            let delete = |key: &String| TxnOp::delete(key.as_str(), None);
            let txn = Txn::new()
                .when(keys.iter().map(ours).collect::<Vec<_>>())
                .and_then(keys.iter().map(delete).collect::<Vec<_>>());
            kv.txn(txn).await.map(|answer| if answer.succeeded() { Answer::Done } else { Answer::Conflict })
        }
        Op::Revoke { lease } => client.lease_revoke(*lease).await.map(|_| Answer::Done),
    }
}

async fn check(kv: &mut KvClient, keys: &[(Id, String)], values: bool) -> Result<Answer, EtcdError> {
    let options = || if values { GetOptions::new() } else { GetOptions::new().with_keys_only() };
    let gets: Vec<TxnOp> = keys.iter().map(|(_, key)| TxnOp::get(key.as_str(), Some(options()))).collect();
    let answer = kv.txn(Txn::new().and_then(gets)).await?;
    let found = answer.op_responses().into_iter().map(|answer| match answer {
        TxnOpResponse::Get(mut answer) => answer.take_kvs().into_iter().next(),
        _ => None,
    });
    let found = found.map(|found| {
        found.map(|found| Found {
            lease: found.lease(),
            mod_revision: found.mod_revision(),
            value: values.then(|| found.value().to_vec()),
        })
    });
    Ok(Answer::Checked(keys.iter().map(|(id, _)| *id).zip(found).collect()))
}

async fn put(kv: &mut KvClient, lease: i64, puts: &[Put]) -> Result<Answer, EtcdError> {
    let unchanged = |put: &Put| Compare::mod_revision(put.key.as_str(), CompareOp::Equal, put.seen);
    let options = PutOptions::new().with_lease(lease);
    let write = |put: &Put| TxnOp::put(put.key.as_str(), &*put.value, Some(options.clone()));
    let txn = Txn::new()
        .when(puts.iter().map(unchanged).collect::<Vec<_>>())
        .and_then(puts.iter().map(write).collect::<Vec<_>>());
    let answer: TxnResponse = kv.txn(txn).await?;
    match answer.header() {
        Some(header) if answer.succeeded() => Ok(Answer::Put { revision: header.revision() }),
        _ => Ok(Answer::Conflict),
    }
}

fn seconds_of(seconds: i64) -> Duration {
    Duration::from_secs(seconds.unsigned_abs())
}

/// What the client says itself of a keepalive that etcd answered with a TTL of 0.
fn gone() -> EtcdError {
    EtcdError::LeaseKeepAliveError("lease not found".into())
}

fn headless() -> EtcdError {
    EtcdError::InvalidArgs("etcd answered without a header".into())
}

/// What a failed request means.
pub(crate) fn failure(endpoint: &str, error: &EtcdError) -> Failure {
    let cause = format!("etcd endpoint {endpoint}: {}", describe(error));
    match error {
        EtcdError::LeaseKeepAliveError(text) if text.contains("lease not found") => Failure::LeaseGone,
        EtcdError::GRpcStatus(status) if is_lease_gone(status) => Failure::LeaseGone,
        EtcdError::GRpcStatus(status) if is_refusal(status) => Failure::Refused(cause),
        _ => Failure::Broken(cause),
    }
}

fn is_lease_gone(status: &tonic::Status) -> bool {
    status.code() == Code::NotFound && status.message().contains("lease not found")
}

/// Whether etcd refuses the request itself. What concerns the token or the user is answered by a new connection.
fn is_refusal(status: &tonic::Status) -> bool {
    let about_sign_in = ["auth", "user name"].iter().any(|word| status.message().contains(word));
    match status.code() {
        Code::PermissionDenied | Code::ResourceExhausted | Code::OutOfRange | Code::AlreadyExists => true,
        Code::InvalidArgument | Code::FailedPrecondition => !about_sign_in,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    fn of(code: Code, message: &str) -> Failure {
        failure("a:1", &EtcdError::GRpcStatus(Status::new(code, message)))
    }

    #[test]
    fn answers_of_etcd_are_told_from_broken_connections() {
        assert_eq!(of(Code::NotFound, "etcdserver: requested lease not found"), Failure::LeaseGone);
        for (code, message) in [
            (Code::InvalidArgument, "etcdserver: request is too large"),
            (Code::PermissionDenied, "etcdserver: permission denied"),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
        ] {
            assert!(matches!(of(code, message), Failure::Refused(_)), "{message}");
        }
        for (code, message) in [
            (Code::Unavailable, "etcdserver: no leader"),
            (Code::Unauthenticated, "etcdserver: invalid auth token"),
            (Code::InvalidArgument, "etcdserver: user name is empty"),
            (Code::InvalidArgument, "etcdserver: revision of auth store is old"),
            (Code::Unknown, "transport error"),
        ] {
            assert!(matches!(of(code, message), Failure::Broken(_)), "{message}");
        }
    }
}
