//! etcd's answers as the mirror's machine takes them.

use std::{string::FromUtf8Error, sync::Arc};

use etcd_client::{Error as EtcdError, GetResponse, WatchResponse};
use tonic::Code;

use super::KeyValue;
use crate::{
    connection::describe,
    mirror_machine::{Change, Message, Page, RangeFailure},
};

pub(super) fn page(mut answer: GetResponse) -> Result<Page, RangeFailure> {
    let header = answer.header().ok_or_else(|| RangeFailure::Broken("an answer without header".into()))?;
    let (cluster_id, revision) = (header.cluster_id(), header.revision());
    let more = answer.more();
    let mut page = Page { cluster_id, revision, more, last_key: Vec::new(), entries: Vec::new(), skipped: Vec::new() };
    let kvs = answer.take_kvs();
    page.last_key = kvs.last().map(|kv| kv.key().to_vec()).unwrap_or_default();
    for kv in kvs {
        let (mod_revision, create_revision, lease) = (kv.mod_revision(), kv.create_revision(), kv.lease());
        let (key, value) = kv.into_key_value();
        match String::from_utf8(key) {
            Ok(key) => page.entries.push(Arc::new(KeyValue { key, value, mod_revision, create_revision, lease })),
            Err(error) => page.skipped.push((error.into_bytes(), mod_revision)),
        }
    }
    Ok(page)
}

pub(super) fn range_failure(error: &EtcdError) -> RangeFailure {
    match error {
        EtcdError::GRpcStatus(status) if status.code() == Code::OutOfRange => match status.message() {
            message if message.contains("compacted") => RangeFailure::Compacted,
            message if message.contains("future revision") => RangeFailure::Future,
            message if message.contains("message length too large") => RangeFailure::TooLarge,
            _ => RangeFailure::Broken(describe(error)),
        },
        _ => RangeFailure::Broken(describe(error)),
    }
}

pub(super) fn message(response: WatchResponse) -> Message {
    let (cluster_id, revision) = response.header().map_or((0, 0), |header| (header.cluster_id(), header.revision()));
    let changes = response.events().iter().filter_map(|event| event.kv()).map(|kv| {
        let key = String::from_utf8(kv.key().to_vec()).map_err(FromUtf8Error::into_bytes);
        // The client panics on a kind of event that it does not know; a version of 0 says the same of a deletion.
        if kv.version() == 0 {
            return Change { key, put: None, mod_revision: kv.mod_revision() };
        }
        let put = KeyValue {
            key: String::from_utf8_lossy(kv.key()).into_owned(),
            value: kv.value().to_vec(),
            mod_revision: kv.mod_revision(),
            create_revision: kv.create_revision(),
            lease: kv.lease(),
        };
        Change { key, put: Some(Arc::new(put)), mod_revision: kv.mod_revision() }
    });
    Message {
        cluster_id,
        revision,
        created: response.created(),
        cancelled: response.canceled().then(|| response.cancel_reason().to_owned()),
        compact_revision: response.compact_revision(),
        changes: changes.collect(),
    }
}
