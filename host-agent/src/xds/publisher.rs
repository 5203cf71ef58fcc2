//! Keeps the snapshot current: follows the catalog, and what the filters have dropped.

use std::{future, sync::Arc, time::Instant};

use tokio::{sync::watch, time::sleep_until};

use super::{
    XdsOptions,
    snapshot::{Snapshot, SnapshotBuilder},
};
use crate::{published::CatalogReceiver, stream::coordination::Progress};

/// The newest snapshot: `None` before the first catalog.
pub type SnapshotReceiver = watch::Receiver<Option<Arc<Snapshot>>>;

/// Publishes until the catalog's or the coordinator's sender is gone.
pub async fn run(
    mut catalog: CatalogReceiver,
    options: XdsOptions,
    mut progress: watch::Receiver<Progress>,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
) {
    let mut builder = SnapshotBuilder::new(&options);
    catalog.mark_changed();
    loop {
        let snapshot = tokio::select! {
            changed = catalog.changed() => match changed {
                Ok(()) => {
                    let current = catalog.borrow_and_update().clone();
                    let filters = progress.borrow_and_update().filters;
                    current.map(|current| builder.apply(current, filters, Instant::now()))
                }
                Err(_) => return,
            },
            changed = progress.changed() => match changed {
                Ok(()) => {
                    let filters = progress.borrow_and_update().filters;
                    builder.release(filters, Instant::now())
                }
                Err(_) => return,
            },
            () = until(builder.next_deadline()) => builder.release(progress.borrow().filters, Instant::now()),
        };
        if let Some(snapshot) = snapshot {
            snapshots.send_replace(Some(snapshot));
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => future::pending().await,
    }
}
