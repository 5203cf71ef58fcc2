//! Users of the registry's library in this process: a registrar with many keys, and mirrors whose events are recorded.
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use waypost_registry::{
    Connector, KeyChange, KeyValue, Mirror, MirrorEvent, MirrorOptions, Registrar, RegistrarOptions, Registration,
    RegistrationHandle, Shutdown,
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

/// A mirror, whose events are recorded when its consumer takes them.
pub struct Observer {
    _mirror: Mirror,
    _task: AbortOnDrop<()>,
}

impl Observer {
    /// Mirrors a prefix; the consumer takes that long for each event.
    pub fn start(connector: Connector, log: Log, name: &str, prefix: &str, pace: Duration) -> Self {
        log.observer(name, prefix);
        let (mirror, events) = Mirror::start(connector, MirrorOptions::new(prefix));
        let task = AbortOnDrop(tokio::spawn(record(events, log, name.to_owned(), pace)));
        Self { _mirror: mirror, _task: task }
    }
}

async fn record(mut events: mpsc::Receiver<MirrorEvent>, log: Log, observer: String, pace: Duration) {
    while let Some(event) = events.recv().await {
        let observer = observer.clone();
        log.add(match event {
            MirrorEvent::Synced { entries, reason, .. } => What::Told {
                observer,
                entries: entries.iter().map(|entry| self::entry(entry)).collect(),
                reason: reason.to_string(),
            },
            MirrorEvent::Changed { changes, .. } => {
                What::ToldChanges { observer, changes: changes.iter().map(change).collect() }
            }
        });
        tokio::time::sleep(pace).await;
    }
}

fn change(change: &KeyChange) -> Change {
    match change {
        KeyChange::Put(put) => Change::Put(entry(put)),
        KeyChange::Delete { key, revision } => Change::Deleted { key: key.clone(), revision: Some(*revision) },
    }
}

pub(super) fn entry(found: &KeyValue) -> Entry {
    Entry {
        key: found.key.clone(),
        value: String::from_utf8_lossy(&found.value).into_owned(),
        lease: found.lease,
        revision: found.mod_revision,
    }
}
