//! A pool and a selector that threads share.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fastrand::Rng;

use crate::{
    chosen::CHOICES,
    node::NodeView,
    outcome::{Outcome, OutcomeKind},
    pool::{Pool, Slot},
    selector::{Ask, Selector},
    settings::Settings,
};

/// Steps of table building for which the lock is held at once: some 20 us.
const SLICE: usize = 4096;

/// Every strategy, with ejection, priority levels and zones, for any number of threads: picks are told how they ended.
///
/// It is a mutex around a [`Pool`] and a [`Selector`], which is locked for the time of a pick (below 100 ns, see
/// `benches/`), for less at its end, and for a rebuild when nodes change or one is ejected. Threads that do
/// nothing else but pick stand in each other's way: then all of them together make about as many picks a second as one,
/// some millions. Where weights are all that matters, [`Picker`](crate::Picker) takes no lock.
///
/// Clones are the same balancer. `T` is what a node is to the caller; the clock is his, too: the time since any start.
///
/// ```
/// use std::time::Duration;
///
/// use waypost_balance::{Algorithm, NodeView, OutcomeKind, Settings, SharedBalancer, Strategy};
///
/// let settings = Settings::from(Algorithm::from(Strategy::LeastRequest));
/// let balancer = SharedBalancer::new(settings, 7);
/// balancer.update([(NodeView::new(0x1234, 1), "a:80"), (NodeView::new(0x5678, 1), "b:80")], Duration::ZERO);
///
/// let busy = balancer.pick(Duration::from_millis(1), None).unwrap();
/// let other = balancer.pick(Duration::from_millis(2), None).unwrap();
/// assert_ne!(busy.node(), other.node(), "the one with less in flight");
/// busy.ended(OutcomeKind::Success, Duration::from_millis(5));
/// ```
#[derive(Debug)]
pub struct SharedBalancer<T> {
    state: Arc<Mutex<State<T>>>,
}

impl<T> Clone for SharedBalancer<T> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state) }
    }
}

struct State<T> {
    settings: Arc<Settings>,
    pool: Pool,
    selector: Selector,
    views: Vec<NodeView>,
    slots: Vec<Slot>,
    nodes: Arc<[T]>,
    random: Rng,
}

impl<T> fmt::Debug for State<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("settings", &self.settings).field("views", &self.views).finish_non_exhaustive()
    }
}

impl<T> State<T> {
    fn rebuild(&mut self) {
        let previous = std::mem::take(&mut self.selector);
        let seed = self.random.u64(..);
        self.selector = Selector::new(&self.views, &self.slots, &self.pool, &self.settings, seed, true, Some(previous));
    }
}

impl<T> SharedBalancer<T> {
    /// One without nodes.
    pub fn new(settings: Settings, seed: u64) -> Self {
        let state = State {
            settings: Arc::new(settings),
            pool: Pool::new(),
            selector: Selector::default(),
            views: Vec::new(),
            slots: Vec::new(),
            nodes: Arc::new([]),
            random: Rng::with_seed(seed),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// These are the nodes now. Tables for hashing are built here, while picks go on with the one before.
    pub fn update(&self, nodes: impl IntoIterator<Item = (NodeView, T)>, now: Duration) {
        let (views, nodes): (Vec<NodeView>, Vec<T>) = nodes.into_iter().unzip();
        let nodes: Arc<[T]> = nodes.into();
        {
            let state = &mut *self.lock();
            state.slots = state.pool.sync(views.iter().map(|view| view.key), now);
            (state.views, state.nodes) = (views, nodes);
            state.rebuild();
        }
        self.build();
    }

    /// From now on these settings hold.
    pub fn set(&self, settings: Settings) {
        {
            let state = &mut *self.lock();
            state.settings = Arc::new(settings);
            state.rebuild();
        }
        self.build();
    }

    fn build(&self) {
        loop {
            let selector = &mut self.lock().selector;
            if !selector.is_building() {
                return;
            }
            selector.advance(SLICE);
        }
    }

    /// A node for a request with this hash, if it has a key, or `None` if there is none to be picked. The request counts
    /// as in flight until the answer is told how it [ended](Picked::ended) or is dropped.
    pub fn pick(&self, now: Duration, hash: Option<u64>) -> Option<Picked<T>> {
        let state = &mut *self.lock();
        if state.pool.tick(now, &state.settings) {
            state.rebuild();
        }
        let ask = Ask { now, random: state.random.u64(..), hash, preferred: None };
        let mut choices = [0; CHOICES];
        let count = state.selector.choose(&state.pool, &ask, &mut choices);
        let mut left = choices.into_iter().take(count).filter_map(|node| Some((node, *state.slots.get(node)?)));
        let (first, slot) = left.next()?;
        let others = [left.next(), left.next()];
        state.pool.started(slot);
        Some(Picked {
            balancer: self.clone(),
            nodes: Arc::clone(&state.nodes),
            now: first,
            slot,
            others,
            started: now,
            told: false,
        })
    }

    /// How likely each node is to be picked, and what it is to the caller: as [`Selector::shares`].
    pub fn with_shares<R>(&self, hash: Option<u64>, with: impl FnOnce(&[T], &[f64]) -> R) -> R {
        let (nodes, shares) = {
            let state = self.lock();
            (Arc::clone(&state.nodes), state.selector.shares(hash))
        };
        with(&nodes, &shares)
    }

    /// Requests in flight on all nodes.
    pub fn in_flight(&self) -> u64 {
        self.lock().pool.total_in_flight()
    }

    /// Nodes that are left out for failing.
    pub fn ejected(&self) -> usize {
        self.lock().pool.ejected()
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A picked node, on which a request is in flight. Dropped without a word, it counts as a request that was given up.
#[derive(Debug)]
pub struct Picked<T> {
    balancer: SharedBalancer<T>,
    nodes: Arc<[T]>,
    now: usize,
    slot: Slot,
    others: [Option<(usize, Slot)>; CHOICES - 1],
    started: Duration,
    told: bool,
}

impl<T> Picked<T> {
    /// The node.
    pub fn node(&self) -> &T {
        #[expect(clippy::indexing_slicing, reason = "the selector chose among these very nodes")]
        &self.nodes[self.now]
    }

    /// Others to go to if it fails.
    pub fn alternatives(&self) -> impl Iterator<Item = &T> {
        self.others.iter().flatten().filter_map(|(node, _)| self.nodes.get(*node))
    }

    /// The request failed on this node and goes to the next one, if there is one: whether there is.
    pub fn retry(&mut self, kind: OutcomeKind, now: Duration) -> bool {
        let Some((node, slot)) = self.others.iter_mut().find_map(Option::take) else { return false };
        {
            let state = &mut *self.balancer.lock();
            let outcome = Outcome { kind, latency: Some(now.saturating_sub(self.started)) };
            state.pool.ended(self.slot, outcome, now, &state.settings);
            state.pool.started(slot);
        }
        (self.now, self.slot, self.started) = (node, slot, now);
        true
    }

    /// The request has ended.
    pub fn ended(mut self, kind: OutcomeKind, now: Duration) {
        self.tell(Outcome { kind, latency: Some(now.saturating_sub(self.started)) }, now);
    }

    fn tell(&mut self, outcome: Outcome, now: Duration) {
        if !std::mem::replace(&mut self.told, true) {
            let state = &mut *self.balancer.lock();
            state.pool.ended(self.slot, outcome, now, &state.settings);
        }
    }
}

impl<T> Drop for Picked<T> {
    fn drop(&mut self) {
        let started = self.started;
        self.tell(Outcome::CANCELLED, started);
    }
}
