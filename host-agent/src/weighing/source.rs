//! Components in etcd, by their content hash: fetched for as long as a policy names them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use waypost_components::{
    Hash, Reference,
    parts::{self, JoinError, Key, PREFIX},
};
use waypost_registry::{Connector, KeyChange, KeyValue, Mirror, MirrorEvent, MirrorOptions};

#[derive(Debug, Default)]
struct Held {
    whole: Option<Arc<KeyValue>>,
    parts: BTreeMap<u32, Arc<KeyValue>>,
    synced: bool,
}

/// What etcd holds of a component. Of one that is named by its file: nothing.
#[derive(Debug)]
pub(super) struct Fetched {
    hash: Option<Hash>,
    held: Arc<Mutex<Held>>,
    changed: Arc<Notify>,
    _task: Option<AbortOnDropHandle<()>>,
}

struct Bytes(Arc<KeyValue>);

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &self.0.value
    }
}

impl Fetched {
    pub(super) fn start(connector: &Connector, reference: &Reference) -> Self {
        let (held, changed) = (Arc::<Mutex<Held>>::default(), Arc::<Notify>::default());
        let Reference::Sha256(hash) = reference else {
            return Self { hash: None, held, changed, _task: None };
        };
        let options = MirrorOptions::new(Key::Whole(*hash).path());
        let (mirror, mut events) = Mirror::start(connector.clone(), options);
        let (to, told) = (Arc::clone(&held), Arc::clone(&changed));
        let task = tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                take(&mut to.lock().unwrap_or_else(PoisonError::into_inner), &event);
                told.notify_one();
            }
            drop(mirror);
        });
        Self { hash: Some(*hash), held, changed, _task: Some(AbortOnDropHandle::new(task)) }
    }

    /// Waits until etcd holds something else.
    pub(super) async fn changed(&self, stop: &CancellationToken) {
        tokio::select! {
            () = self.changed.notified() => {}
            () = stop.cancelled() => {}
        }
    }

    /// The component, as far as it is there; `None` if etcd is not to be asked, or has not answered yet.
    pub(super) fn bytes(&self, limit: usize) -> Option<(Hash, Result<Vec<u8>, JoinError>)> {
        let hash = self.hash?;
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if !held.synced {
            return None;
        }
        let whole = held.whole.clone().map(Bytes);
        let parts = held.parts.iter().map(|(number, part)| (*number, Bytes(Arc::clone(part)))).collect();
        Some((hash, parts::join(hash, whole, &parts, limit)))
    }
}

fn take(held: &mut Held, event: &MirrorEvent) {
    match event {
        MirrorEvent::Synced { entries, .. } => {
            *held = Held { synced: true, ..Held::default() };
            for entry in entries {
                put(held, entry);
            }
        }
        MirrorEvent::Changed { changes, .. } => {
            for change in changes {
                match change {
                    KeyChange::Put(entry) => put(held, entry),
                    KeyChange::Delete { key, .. } => match key.strip_prefix(PREFIX).and_then(Key::parse) {
                        Some(Key::Whole(_)) => held.whole = None,
                        Some(Key::Part(_, number)) => _ = held.parts.remove(&number),
                        None => {}
                    },
                }
            }
        }
    }
}

fn put(held: &mut Held, entry: &Arc<KeyValue>) {
    match entry.key.strip_prefix(PREFIX).and_then(Key::parse) {
        Some(Key::Whole(_)) => held.whole = Some(Arc::clone(entry)),
        Some(Key::Part(_, number)) => _ = held.parts.insert(number, Arc::clone(entry)),
        None => {}
    }
}
