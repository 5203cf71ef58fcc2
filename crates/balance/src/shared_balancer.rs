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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Algorithm, Ejection, Strategy};

    const MILLI: Duration = Duration::from_millis(1);

    fn balancer(strategy: Strategy, nodes: u64) -> SharedBalancer<u64> {
        let ejection = Some(Ejection { consecutive_failures: Some(2), max_share: 50, ..Ejection::default() });
        let settings = Settings { ejection, panic_threshold: None, ..Algorithm::from(strategy).into() };
        let balancer = SharedBalancer::new(settings, 1);
        balancer.update(views(0..nodes), Duration::ZERO);
        balancer
    }

    fn views(nodes: std::ops::Range<u64>) -> impl Iterator<Item = (NodeView, u64)> {
        nodes.map(|node| (NodeView::new(crate::random::mix(node + 1), 1), node))
    }

    #[test]
    fn what_is_in_flight_is_counted_until_it_is_told_or_dropped() {
        let balancer = balancer(Strategy::LeastRequest, 2);
        let first = balancer.pick(MILLI, None).unwrap();
        let second = balancer.pick(MILLI, None).unwrap();
        assert_eq!(balancer.in_flight(), 2);
        assert_ne!(first.node(), second.node());
        assert_eq!(first.alternatives().collect::<Vec<_>>(), [second.node()]);
        drop(first);
        second.ended(OutcomeKind::Success, 2 * MILLI);
        assert_eq!(balancer.in_flight(), 0);
        balancer.update([], 3 * MILLI);
        assert!(balancer.pick(MILLI, None).is_none());
    }

    #[test]
    fn a_request_that_fails_goes_on_to_the_alternatives_and_the_failure_counts() {
        let balancer = balancer(Strategy::RoundRobin, 3);
        let mut tried = Vec::new();
        let mut picked = balancer.pick(MILLI, None).unwrap();
        loop {
            tried.push(*picked.node());
            assert_eq!((balancer.in_flight(), picked.alternatives().count()), (1, 3 - tried.len()));
            if !picked.retry(OutcomeKind::ConnectFailure, 2 * MILLI) {
                break;
            }
        }
        picked.ended(OutcomeKind::ConnectFailure, 3 * MILLI);
        tried.sort_unstable();
        assert_eq!((tried, balancer.in_flight()), (vec![0, 1, 2], 0));
        for _ in 0..3 {
            balancer.pick(MILLI, None).unwrap().ended(OutcomeKind::ServerError, 2 * MILLI);
        }
        assert_eq!(balancer.ejected(), 2, "half of three is not reached with one");
        let left = *balancer.pick(MILLI, None).unwrap().node();
        assert!((0..50).all(|_| *balancer.pick(MILLI, None).unwrap().node() == left));
    }

    #[test]
    fn hashing_is_ready_when_an_update_returns_and_shares_are_told() {
        let balancer = balancer(Strategy::ConsistentHash, 10);
        let owner = |hash| *balancer.pick(MILLI, Some(hash)).unwrap().node();
        let before: Vec<u64> = (0..200).map(owner).collect();
        balancer.update(views(1..10), MILLI);
        for (hash, before) in (0..).zip(before) {
            let after = owner(hash);
            assert!(before == 0 || after == before);
            balancer.with_shares(Some(hash), |nodes, shares| {
                let share = |(node, share): (&u64, &f64)| *share == if *node == after { 1.0 } else { 0.0 };
                assert!(nodes.iter().zip(shares).all(share));
            });
        }
        balancer.set(Algorithm::Random.into());
        balancer.with_shares(Some(1), |_, shares| assert!(shares.iter().all(|share| (share - 1.0 / 9.0).abs() < 1e-9)));
    }

    #[test]
    fn threads_pick_while_nodes_come_and_go() {
        for strategy in Strategy::ALL {
            let balancer = balancer(strategy, 20);
            std::thread::scope(|scope| {
                for thread in 0..3 {
                    let balancer = balancer.clone();
                    scope.spawn(move || {
                        for pick in 0..2_000 {
                            let now = MILLI * pick;
                            let picked = balancer.pick(now, Some((pick * 7 + thread).into())).unwrap();
                            assert!(*picked.node() < 40);
                            match pick % 3 {
                                0 => drop(picked),
                                _ => picked.ended(OutcomeKind::Success, now + MILLI),
                            }
                        }
                    });
                }
                for round in 0..20 {
                    balancer.update(views(round..round + 20), MILLI);
                }
            });
            assert_eq!(balancer.in_flight(), 0, "{strategy}");
        }
    }
}
