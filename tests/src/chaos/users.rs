//! Users of the registry's library in this process: a registrar with many keys, and mirrors whose events are recorded.
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use waypost_registry::{
    Connector, KeyChange, KeyEvent, KeyValue, Mirror, MirrorEvent, MirrorOptions, Registrar, RegistrarOptions,
    Registration, RegistrationHandle, Registry, Shutdown,
};

use crate::chaos::history::{Change, Entry, Log, Wanted, What};
use crate::http::AbortOnDrop;

/// The registrar's name in the history.
pub const REGISTRAR: &str = "registrar";
/// Where its keys are.
pub const KEYS: &str = "/app/";

/// Keys that are kept through the library.
pub struct Keys {
    log: Log,
    registrar: Registrar,
    handles: Mutex<BTreeMap<usize, RegistrationHandle>>,
}

impl Keys {
    /// Keeps so many keys.
    pub fn start(connector: Connector, log: Log, count: usize, ttl: Duration) -> Self {
        log.owner(REGISTRAR, ttl);
        let registrar = Registrar::start(connector, RegistrarOptions { ttl, adopt: None });
        let keys = Self { log, registrar, handles: Mutex::default() };
        for number in 0..count {
            keys.want(number, "first");
        }
        keys
    }

    /// A key's name.
    pub fn name(number: usize) -> String {
        format!("{KEYS}{number:03}")
    }

    /// Wants a key to have this value.
    pub fn want(&self, number: usize, value: &str) {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        self.intend(number, Wanted::Value(value.to_owned()));
        match handles.get(&number) {
            Some(handle) => handle.update(value),
            None => {
                let registration = Registration::new(Self::name(number), value);
                handles.insert(number, self.registrar.register(registration));
            }
        }
    }

    /// Wants a key to be absent.
    pub fn withdraw(&self, number: usize) {
        self.intend(number, Wanted::Absent);
        if let Some(handle) = self.handles.lock().unwrap_or_else(PoisonError::into_inner).get(&number) {
            handle.withdraw();
        }
    }

    /// The lease that all of them are under.
    pub fn lease(&self) -> Result<i64> {
        self.registrar.lease().borrow().context("the registrar has no lease")
    }

    /// Stops looking after them.
    pub async fn shutdown(self) {
        self.registrar.shutdown(Shutdown::Leave).await;
    }

    fn intend(&self, number: usize, wanted: Wanted) {
        self.log.add(What::Intended { owner: REGISTRAR.into(), key: Self::name(number), wanted });
    }
}

/// A mirror, or a subscription, whose events are recorded when its consumer takes them.
pub struct Observer {
    _task: AbortOnDrop<()>,
}

impl Observer {
    /// Mirrors a prefix; the consumer takes that long for each event.
    pub fn mirror(connector: Connector, log: Log, name: &'static str, prefix: &str, pace: Duration) -> Self {
        log.observer(name, prefix);
        let (mirror, mut events) = Mirror::start(connector, MirrorOptions::new(prefix));
        let task = async move {
            let _mirror = mirror;
            while let Some(event) = events.recv().await {
                log.add(mirrored(name, event));
                tokio::time::sleep(pace).await;
            }
        };
        Self { _task: AbortOnDrop(tokio::spawn(task)) }
    }

    /// Subscribes to the keys of a prefix; the subscriber takes that long for each event.
    pub fn subscriber(registry: &Registry, log: Log, name: &'static str, prefix: &str, pace: Duration) -> Result<Self> {
        log.observer(name, prefix);
        let mut subscription = registry.keys(prefix)?.subscribe();
        let task = async move {
            while let Some(event) = subscription.next().await {
                subscribed(name, event).into_iter().for_each(|what| log.add(what));
                tokio::time::sleep(pace).await;
            }
        };
        Ok(Self { _task: AbortOnDrop(tokio::spawn(task)) })
    }
}

fn mirrored(name: &str, event: MirrorEvent) -> What {
    let observer = name.to_owned();
    match event {
        MirrorEvent::Synced { entries, reason, revision } => What::Told {
            observer,
            entries: entries.iter().map(|entry| self::entry(entry)).collect(),
            revision,
            reason: reason.to_string(),
        },
        MirrorEvent::Changed { changes, .. } => {
            let change = |change: &KeyChange| match change {
                KeyChange::Put(put) => Change::Put(entry(put)),
                KeyChange::Delete { key, revision } => Change::Deleted { key: key.clone(), revision: *revision },
            };
            What::ToldChanges { observer, changes: changes.iter().map(change).collect() }
        }
    }
}

fn subscribed(name: &str, event: KeyEvent) -> Vec<What> {
    let observer = || name.to_owned();
    let (old, change) = match event {
        KeyEvent::Resynchronised { reason, entries, revision } => {
            let entries = entries.iter().map(|entry| self::entry(entry)).collect();
            return vec![What::Told { observer: observer(), entries, revision, reason: reason.to_string() }];
        }
        KeyEvent::Added(new) => (None, Change::Put(entry(&new))),
        KeyEvent::Changed { old, new } => (Some(entry(&old)), Change::Put(entry(&new))),
        KeyEvent::Removed { old, revision } => (Some(entry(&old)), Change::Deleted { key: old.key.clone(), revision }),
    };
    vec![
        What::ToldOld { observer: observer(), key: change.key().to_owned(), old },
        What::ToldChanges { observer: observer(), changes: vec![change] },
    ]
}

fn entry(found: &KeyValue) -> Entry {
    Entry {
        key: found.key.clone(),
        value: String::from_utf8_lossy(&found.value).into_owned(),
        lease: found.lease,
        revision: found.mod_revision,
    }
}
