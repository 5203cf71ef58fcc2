//! Documents in etcd.

use anyhow::{Context as _, bail};
use waypost_registry::{
    Connector,
    etcd_client::{Client, Compare, CompareOp, Error, Txn, TxnOp, TxnOpResponse, TxnResponse},
};

use super::{
    super::source::{connect, keys},
    Called,
};
use crate::rules::RuleKind;

/// A document as it is in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// Of the service, or the route.
    pub(super) name: String,
    pub(super) document: Vec<u8>,
    /// Of its last change.
    pub(super) revision: i64,
}

/// The documents of a kind.
#[derive(Debug)]
pub(super) struct Store {
    connector: Connector,
    kind: RuleKind,
}

/// Where a document is.
pub(super) fn key(kind: RuleKind, name: &str) -> String {
    format!("{}{name}", kind.prefix())
}

impl Store {
    /// Nothing is connected yet.
    pub(super) fn new(connector: Connector, kind: RuleKind) -> Self {
        Self { connector, kind }
    }

    /// Every document, in the order of their names.
    pub(super) async fn list(&self) -> anyhow::Result<Vec<Stored>> {
        let prefix = self.kind.prefix();
        let entries = keys(&self.connector, prefix).await?;
        let stored = entries.iter().filter_map(|entry| {
            let name = entry.key.strip_prefix(prefix)?.to_owned();
            Some(Stored { name, document: entry.value.clone(), revision: entry.mod_revision })
        });
        Ok(stored.collect())
    }

    /// One document.
    pub(super) async fn get(&self, name: &str) -> anyhow::Result<Option<Stored>> {
        let key = key(self.kind, name);
        let mut client = connect(&self.connector).await?;
        let answer = self.answer(&key, client.get(key.as_str(), None)).await?;
        let stored = answer.kvs().first().map(|found| Stored {
            name: name.to_owned(),
            document: found.value().to_vec(),
            revision: found.mod_revision(),
        });
        Ok(stored)
    }

    /// Puts a document, if the one that is there was last changed in `if_revision`. The revision that has it.
    pub(super) async fn put(&self, name: &str, document: &str, if_revision: Option<i64>) -> anyhow::Result<i64> {
        let key = key(self.kind, name);
        let put = TxnOp::put(key.as_str(), document, None);
        let answer = self.transact(name, &key, put, if_revision).await?;
        Ok(answer.header().map_or(0, |header| header.revision()))
    }

    /// Deletes a document, if it was last changed in `if_revision`. Whether there was one.
    pub(super) async fn delete(&self, name: &str, if_revision: Option<i64>) -> anyhow::Result<bool> {
        let key = key(self.kind, name);
        let delete = TxnOp::delete(key.as_str(), None);
        let answer = self.transact(name, &key, delete, if_revision).await?;
        let deleted = |answer: TxnOpResponse| matches!(answer, TxnOpResponse::Delete(gone) if gone.deleted() > 0);
        Ok(answer.op_responses().into_iter().any(deleted))
    }

    async fn transact(
        &self,
        name: &str,
        key: &str,
        operation: TxnOp,
        if_revision: Option<i64>,
    ) -> anyhow::Result<TxnResponse> {
        let unchanged = if_revision.map(|revision| Compare::mod_revision(key, CompareOp::Equal, revision));
        let transaction =
            Txn::new().when(Vec::from_iter(unchanged)).and_then([operation]).or_else([TxnOp::get(key, None)]);
        let mut client: Client = connect(&self.connector).await?;
        let answer = self.answer(key, client.txn(transaction)).await?;
        if answer.succeeded() {
            return Ok(answer);
        }
        let called = Called(self.kind, name);
        let now = answer.op_responses().into_iter().find_map(|answer| match answer {
            TxnOpResponse::Get(got) => got.kvs().first().map(|found| found.mod_revision()),
            _ => None,
        });
        match now {
            Some(now) => bail!("{called} was changed in revision {now} meanwhile: read it again"),
            None => bail!("there is no {called} any more, or not yet: read it again"),
        }
    }

    async fn answer<T>(&self, key: &str, asked: impl Future<Output = Result<T, Error>>) -> anyhow::Result<T> {
        let limit = self.connector.request_timeout();
        let answer = tokio::time::timeout(limit, asked).await;
        let answer = answer.with_context(|| format!("etcd did not answer within {limit:?}"))?;
        answer.with_context(|| format!("etcd refuses what was asked of key {key}"))
    }
}
