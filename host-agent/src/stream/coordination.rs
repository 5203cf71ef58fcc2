//! Which side learns of a change first: Envoy's clusters of a node that appears, the filters of a node that goes.
//!
//! A filter that names a node which the cluster does not have is passed over, and one that is gone from the cluster
//! before the filter knows is too: nothing fails, but requests go by the cluster's own choice until both agree. So
//! each side waits for the other, for a short while at most:
//!
//! ```text
//! node appears   clusters get it ---- acknowledged, or 100 ms ----> filters get it
//! node goes      filters drop it ---- acknowledged, or 1 s -------> clusters drop it
//! ```

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use waypost_catalog::Catalog;

use crate::xds::selection::Selection;

/// The longest that filters wait for the clusters to have a new node.
pub const ADD_LIMIT: Duration = Duration::from_millis(100);

/// The longest that clusters keep a node which the catalog has no more.
pub const REMOVE_LIMIT: Duration = Duration::from_secs(1);

/// One of the two sides that follow the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Filters, by the catalog stream.
    Filters,
    /// Envoy's clusters, by xDS.
    Clusters,
}

/// The version of the catalog that everybody on a side has applied; `u64::MAX` where nobody is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Of the filters.
    pub filters: u64,
    /// Of the clusters.
    pub clusters: u64,
}

/// Who is connected, and what each has applied.
#[derive(Debug, Default)]
pub struct Board {
    applied: HashMap<(Side, u64), u64>,
    next: u64,
}

impl Board {
    /// Adds somebody who has applied nothing yet.
    pub fn join(&mut self, side: Side) -> u64 {
        self.next += 1;
        self.applied.insert((side, self.next), 0);
        self.next
    }

    /// Takes note that somebody has applied a version.
    pub fn applied(&mut self, side: Side, id: u64, version: u64) {
        if let Some(applied) = self.applied.get_mut(&(side, id)) {
            *applied = version.max(*applied);
        }
    }

    /// Removes somebody.
    pub fn leave(&mut self, side: Side, id: u64) {
        self.applied.remove(&(side, id));
    }

    /// How far both sides are.
    pub fn progress(&self) -> Progress {
        let of = |wanted| {
            let applied = self.applied.iter().filter(|((side, _), _)| *side == wanted);
            applied.map(|(_, version)| *version).min().unwrap_or(u64::MAX)
        };
        Progress { filters: of(Side::Filters), clusters: of(Side::Clusters) }
    }
}

/// Whether a service that stays has a node in `new` that it did not have in `old`, so that the clusters should come
/// first. A service that is new altogether has no cluster yet, and no request reaches it before it has.
pub fn brings_nodes(old: &Catalog, new: &Catalog, selection: &Selection) -> bool {
    new.services().iter().any(|(name, service)| {
        let Some(known) = old.services().get(name) else { return false };
        !Arc::ptr_eq(known, service)
            && selection.matches(name)
            && service.entries().keys().any(|address| !known.entries().contains_key(address))
    })
}

/// The board, shared by all streams, and the news of it.
#[derive(Debug)]
pub struct Coordinator {
    board: Mutex<Board>,
    progress: watch::Sender<Progress>,
}

impl Default for Coordinator {
    fn default() -> Self {
        let board = Board::default();
        let progress = watch::Sender::new(board.progress());
        Self { board: Mutex::new(board), progress }
    }
}

impl Coordinator {
    /// Adds somebody until the guard is dropped.
    pub fn join(self: &Arc<Self>, side: Side) -> Participant {
        let id = self.change(|board| board.join(side));
        Participant { coordinator: Arc::clone(self), side, id }
    }

    /// How far both sides are, now and from now on.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Board) -> T) -> T {
        let mut board: MutexGuard<'_, Board> = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut board);
        let now = board.progress();
        self.progress.send_if_modified(|before| std::mem::replace(before, now) != now);
        result
    }
}

/// Somebody's place on the board.
#[derive(Debug)]
pub struct Participant {
    coordinator: Arc<Coordinator>,
    side: Side,
    id: u64,
}

impl Participant {
    /// Takes note that this version has been applied.
    pub fn applied(&self, version: u64) {
        self.coordinator.change(|board| board.applied(self.side, self.id, version));
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        self.coordinator.change(|board| board.leave(self.side, self.id));
    }
}

#[cfg(test)]
mod tests {
    use waypost_catalog::{Node, ServiceName};

    use super::*;

    fn catalog(base: &Catalog, services: &[(&str, &[u16])]) -> Catalog {
        let changes = services.iter().map(|(name, ports)| {
            let nodes = ports.iter().map(|port| Node::at(([10, 0, 0, 1], *port).into()));
            (ServiceName::new(name).unwrap(), nodes.collect())
        });
        base.updated(changes).0.unwrap()
    }

    #[test]
    fn a_side_is_as_far_as_its_slowest_and_nobody_holds_anybody_up() {
        let mut board = Board::default();
        assert_eq!(board.progress(), Progress { filters: u64::MAX, clusters: u64::MAX });
        let (first, second) = (board.join(Side::Filters), board.join(Side::Filters));
        let envoy = board.join(Side::Clusters);
        assert_eq!(board.progress(), Progress { filters: 0, clusters: 0 });
        board.applied(Side::Filters, first, 7);
        board.applied(Side::Filters, second, 5);
        board.applied(Side::Clusters, envoy, 6);
        assert_eq!(board.progress(), Progress { filters: 5, clusters: 6 });
        board.leave(Side::Filters, second);
        board.leave(Side::Clusters, envoy);
        assert_eq!(board.progress(), Progress { filters: 7, clusters: u64::MAX });
    }

    #[test]
    fn what_was_applied_is_not_taken_back_and_strangers_count_for_nothing() {
        let mut board = Board::default();
        let id = board.join(Side::Filters);
        board.applied(Side::Filters, id, 9);
        board.applied(Side::Filters, id, 3);
        board.applied(Side::Filters, 99, 1);
        board.applied(Side::Clusters, id, 1);
        assert_eq!(board.progress(), Progress { filters: 9, clusters: u64::MAX });
    }

    #[test]
    fn only_a_new_address_in_a_known_and_selected_service_lets_the_clusters_go_first() {
        let old = catalog(&Catalog::default(), &[("a", &[1, 2]), ("b", &[1])]);
        let all = Selection::new(&["*".to_owned()]);
        let only_a = Selection::new(&["a".to_owned()]);
        assert!(brings_nodes(&old, &catalog(&old, &[("a", &[1, 2, 3])]), &all));
        assert!(brings_nodes(&old, &catalog(&old, &[("a", &[2, 3])]), &all));
        assert!(!brings_nodes(&old, &catalog(&old, &[("a", &[2])]), &all));
        assert!(!brings_nodes(&old, &catalog(&old, &[("c", &[1])]), &all));
        assert!(!brings_nodes(&old, &catalog(&old, &[("b", &[1, 2])]), &only_a));
    }

    #[tokio::test]
    async fn a_participant_is_forgotten_when_it_is_dropped() {
        let coordinator = Arc::new(Coordinator::default());
        let mut progress = coordinator.progress();
        let filter = coordinator.join(Side::Filters);
        assert_eq!(progress.borrow_and_update().filters, 0);
        filter.applied(4);
        assert_eq!(progress.borrow_and_update().filters, 4);
        filter.applied(4);
        assert!(!progress.has_changed().unwrap());
        drop(filter);
        assert_eq!(progress.borrow_and_update().filters, u64::MAX);
    }
}
