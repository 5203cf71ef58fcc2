//! The key in etcd that stands for an instance: found, changed and deleted, and only as it was seen.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde_json::Value;
use waypost_catalog::{Node, ServiceName};
use waypost_registry::{
    KeyValue,
    etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp},
    format::Timestamps,
};

use crate::{
    api::types::lease_text,
    cli::{
        definition::Fields,
        exit::Exit,
        instance::{InstanceOptions, only},
        source::{Layout, Straight},
    },
};

/// What every write changes.
const TIMES: [&str; 2] = ["registered_at", "updated_at"];

/// An instance and its key.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) service: ServiceName,
    pub(super) node: Node,
    pub(super) entry: Arc<KeyValue>,
}

/// The key of an instance, which is named by its id or its address.
pub(super) async fn find(straight: &Straight, which: &InstanceOptions) -> anyhow::Result<Found> {
    let entries = straight.keys().await?;
    choose(&straight.layout, entries, which)
}

fn choose(layout: &Layout, entries: Vec<Arc<KeyValue>>, which: &InstanceOptions) -> anyhow::Result<Found> {
    let InstanceOptions { service, instance } = which;
    let read = |entry: Arc<KeyValue>| {
        let decoded = layout.format.decode(&layout.prefix, &entry.key, &entry.value, layout.protocol);
        let (found, nodes) = decoded.ok().filter(|(found, _)| found == service)?;
        match nodes.as_slice() {
            // A key of several nodes, or of a host with a name, is not one instance's.
            [node] => Some(Found { service: found, node: node.node()?.clone(), entry }),
            _ => None,
        }
    };
    let named = |found: &Found| {
        instance.as_ref().is_none_or(|name| found.node.id == *name || found.node.address.to_string() == *name)
    };
    let mut found: Vec<Found> = entries.into_iter().filter_map(read).filter(named).collect();
    if let Some(instance) = instance.as_ref().filter(|_| found.is_empty()) {
        bail!(Exit::not_there(format!("no key under {} is instance {instance} of {service}", layout.prefix)));
    }
    let meant = only(service, found.iter().map(|found| found.node.id.clone()).collect())?;
    let index = found.iter().position(|found| found.node.id == meant).context("no such key")?;
    Ok(found.swap_remove(index))
}

impl Found {
    /// Whether it is ours to touch: a key under a lease is somebody's who lives.
    pub(super) fn may_be_touched(&self, force: bool) -> anyhow::Result<()> {
        let KeyValue { key, lease, .. } = &*self.entry;
        if *lease == 0 || force {
            return Ok(());
        }
        let lease = lease_text(*lease);
        bail!("key {key} lives by lease {lease}: its owner may write it again. --force touches it all the same")
    }

    /// Its value with the changes.
    pub(super) fn rewritten(&self, layout: &Layout, fields: &Fields, times: Timestamps) -> anyhow::Result<Vec<u8>> {
        let Layout { format, prefix, .. } = layout;
        let KeyValue { key, value, .. } = &*self.entry;
        let instance = key.rsplit('/').next().unwrap_or(key);
        let encode = |node: &Node| format.encode(prefix, &self.service, instance, node, times);
        let (same_key, same_value) = encode(&self.node)?;
        if same_key != *key || !holds_the_same(value, &same_value) {
            bail!(
                "key {key} cannot be changed without losing something: it holds more than is written in format {format}"
            );
        }
        let (_, changed) = encode(&fields.change(self.node.clone()))?;
        Ok(with_old_registration_time(value, changed))
    }

    /// Puts another value in its place, under the same lease.
    pub(super) async fn put(&self, straight: &Straight, value: Vec<u8>) -> anyhow::Result<()> {
        let options = PutOptions::new().with_lease(self.entry.lease);
        self.transact(straight, TxnOp::put(self.entry.key.as_str(), value, Some(options))).await
    }

    /// Deletes it.
    pub(super) async fn delete(&self, straight: &Straight) -> anyhow::Result<()> {
        self.transact(straight, TxnOp::delete(self.entry.key.as_str(), None)).await
    }

    async fn transact(&self, straight: &Straight, operation: TxnOp) -> anyhow::Result<()> {
        let KeyValue { key, mod_revision, .. } = &*self.entry;
        let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, *mod_revision);
        let mut client = straight.connect().await?;
        let limit = straight.connector.request_timeout();
        let answer = tokio::time::timeout(limit, client.txn(Txn::new().when([unchanged]).and_then([operation]))).await;
        let answer =
            answer.with_context(|| format!("etcd did not answer within {limit:?}; look whether it was done"))?;
        let answer = answer.with_context(|| format!("etcd did not take the change of key {key}"))?;
        if answer.succeeded() { Ok(()) } else { bail!("key {key} was changed by somebody else meanwhile: try again") }
    }
}

/// Whether two values say the same, but for the times at which they were written.
fn holds_the_same(one: &[u8], other: &[u8]) -> bool {
    let document = |value: &[u8]| {
        let mut document: Value = serde_json::from_slice(value).ok()?;
        if let Some(object) = document.as_object_mut() {
            TIMES.iter().for_each(|time| drop(object.remove(*time)));
        }
        Some(document)
    };
    one == other || document(one).is_some_and(|one| document(other) == Some(one))
}

/// A changed value that still says when it was registered first.
fn with_old_registration_time(old: &[u8], new: Vec<u8>) -> Vec<u8> {
    let object = |value: &[u8]| match serde_json::from_slice(value) {
        Ok(Value::Object(object)) => Some(object),
        _ => None,
    };
    let (Some(old), Some(mut changed)) = (object(old), object(&new)) else { return new };
    let (Some(time), true) = (old.get(TIMES[0]), changed.contains_key(TIMES[0])) else { return new };
    changed.insert(TIMES[0].to_owned(), time.clone());
    serde_json::to_vec(&changed).unwrap_or(new)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use clap::Parser;
    use waypost_catalog::Protocol;
    use waypost_registry::Format;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        which: InstanceOptions,
        #[command(flatten)]
        fields: Fields,
    }

    fn line(args: &[&str]) -> Line {
        Line::parse_from(std::iter::once(&"x").chain(args))
    }

    fn layout(format: Format) -> Layout {
        Layout { format, prefix: "/s/".into(), protocol: Protocol::Http1 }
    }

    fn entry(key: &str, value: &str, lease: i64) -> Arc<KeyValue> {
        let (key, value) = (key.to_owned(), value.as_bytes().to_vec());
        Arc::new(KeyValue { key, value, mod_revision: 2, create_revision: 1, lease })
    }

    const TIMES: Timestamps = Timestamps { registered_at: UNIX_EPOCH, updated_at: UNIX_EPOCH };
    const VALUE: &str = r#"{"address":"10.0.0.1","port":80,"weight":1,"health":"passing","protocol":"http1",
        "registered_at":"2026-03-01T12:30:00Z","updated_at":"2026-03-01T12:30:00Z"}"#;

    fn found(args: &[&str], format: Format, entries: &[Arc<KeyValue>]) -> anyhow::Result<Found> {
        choose(&layout(format), entries.to_vec(), &line(args).which)
    }

    #[test]
    fn an_instance_is_found_by_its_id_its_address_or_as_the_only_one() {
        let entries = [
            entry("/s/web/a", "10.0.0.1:80", 0),
            entry("/s/web/b", "10.0.0.2:80", 0),
            entry("/s/db/c", "10.0.0.3:1", 0),
        ];
        let key = |args: &[&str]| found(args, Format::EndpointValue, &entries).map(|found| found.entry.key.clone());
        assert_eq!(key(&["web", "b"]).unwrap(), "/s/web/b");
        assert_eq!(key(&["web", "10.0.0.1:80"]).unwrap(), "/s/web/a");
        assert_eq!(key(&["db"]).unwrap(), "/s/db/c");
        assert!(key(&["web"]).unwrap_err().to_string().ends_with("a, b"));
        assert!(key(&["web", "c"]).unwrap_err().to_string().contains("no key under /s/"));
    }

    #[test]
    fn a_value_is_changed_in_what_is_said_and_keeps_the_rest() {
        let entries = [entry("/s/web/a", VALUE, 0)];
        let line = line(&["web", "--weight", "5"]);
        let found = choose(&layout(Format::Waypost), entries.to_vec(), &line.which).unwrap();
        let value = found.rewritten(&layout(Format::Waypost), &line.fields, TIMES).unwrap();
        let value: Value = serde_json::from_slice(&value).unwrap();
        assert_eq!((&value["weight"], &value["address"]), (&5.into(), &"10.0.0.1".into()));
        assert_eq!(value["registered_at"], "2026-03-01T12:30:00Z");
        assert_eq!(value["updated_at"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn a_value_that_says_more_than_we_would_write_is_left_alone() {
        let more = VALUE.replacen('{', r#"{"owner":"somebody","#, 1);
        let found = found(&["web"], Format::Waypost, &[entry("/s/web/a", &more, 0)]).unwrap();
        let error = found.rewritten(&layout(Format::Waypost), &line(&["web", "--weight", "5"]).fields, TIMES);
        assert!(error.unwrap_err().to_string().contains("losing"));
    }

    #[test]
    fn a_key_under_a_lease_is_touched_by_force_only() {
        let under = |lease| found(&["web"], Format::Waypost, &[entry("/s/web/a", VALUE, lease)]).unwrap();
        assert!(under(0).may_be_touched(false).is_ok() && under(7).may_be_touched(true).is_ok());
        assert!(under(7).may_be_touched(false).unwrap_err().to_string().contains("--force"));
    }
}
