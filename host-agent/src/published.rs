//! The seam between what the agent knows and what it serves.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use waypost_catalog::Catalog;

/// What is served: `None` until the first full mirror is in or the copy on disk is loaded.
pub type CatalogReceiver = watch::Receiver<Option<Arc<Catalog>>>;

/// How old the published catalog may be.
pub trait Staleness: Send + Sync + 'static {
    /// How long ago the mirror was last known to be current.
    fn stale_for(&self) -> Duration;
}
