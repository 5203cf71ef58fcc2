//! A state that many read and whose changes many follow: each from a consistent start, in order and without a gap.
//!
//! Changes are made and told under one lock. Who subscribes, or has fallen too far behind, gets the full state and his
//! place among the events under that same lock: what follows is exactly what is not in it yet.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};

use crate::mirror::ResyncReason;

/// Batches that wait at most, whatever was chosen: their places are there from the beginning.
const LONGEST_QUEUE: usize = 1 << 20;

/// Why a subscriber is given the full state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Restart {
    /// The subscription begins.
    Subscribed,
    /// The subscriber fell behind, and events were dropped for him.
    Lagged,
    /// The full state was fetched from etcd anew: between it and what was told before, there may have been changes that
    /// nobody saw.
    Mirror(ResyncReason),
}

impl Restart {
    /// The name used in output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Subscribed => "subscribed",
            Self::Lagged => "lagged",
            Self::Mirror(reason) => reason.as_str(),
        }
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What can be followed.
pub(super) trait State: fmt::Debug + Send + Sync + 'static {
    type Event: Clone + fmt::Debug + Send + Sync + 'static;

    /// The event that tells everything; `None` before there is anything.
    fn full(&self, reason: Restart) -> Option<Self::Event>;
}

/// The state, and a queue of batches of events that all subscribers share.
#[derive(Debug)]
pub(super) struct Feed<S: State> {
    inner: RwLock<Inner<S>>,
}

#[derive(Debug)]
struct Inner<S: State> {
    state: S,
    /// `None`: ended.
    events: Option<broadcast::Sender<Arc<[S::Event]>>>,
}

impl<S: State> Feed<S> {
    /// A feed that keeps so many batches for slow subscribers, within reason.
    pub(super) fn new(state: S, queue: usize) -> Arc<Self> {
        let events = Some(broadcast::Sender::new(queue.clamp(1, LONGEST_QUEUE)));
        Arc::new(Self { inner: RwLock::new(Inner { state, events }) })
    }

    /// Changes the state, and tells what `change` returns.
    pub(super) fn publish(&self, change: impl FnOnce(&mut S) -> Vec<S::Event>) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let events = change(&mut inner.state);
        if let (Some(sender), false) = (&inner.events, events.is_empty()) {
            // Nobody may be subscribed.
            let _ = sender.send(events.into());
        }
    }

    pub(super) fn read<R>(&self, read: impl FnOnce(&S) -> R) -> R {
        read(&self.inner.read().unwrap_or_else(PoisonError::into_inner).state)
    }

    /// No more events: subscribers get what is queued, and then the end.
    pub(super) fn end(&self) {
        self.inner.write().unwrap_or_else(PoisonError::into_inner).events = None;
    }

    pub(super) fn subscribe(self: &Arc<Self>) -> Subscriber<S> {
        let mut subscriber = Subscriber { feed: Arc::clone(self), receiver: None, queue: VecDeque::new() };
        subscriber.restart(Restart::Subscribed);
        subscriber
    }
}

/// A place among the events.
#[derive(Debug)]
pub(super) struct Subscriber<S: State> {
    feed: Arc<Feed<S>>,
    /// `None`: ended.
    receiver: Option<broadcast::Receiver<Arc<[S::Event]>>>,
    /// Received, not handed out yet.
    queue: VecDeque<S::Event>,
}

impl<S: State> Subscriber<S> {
    fn restart(&mut self, reason: Restart) {
        let inner = self.feed.inner.read().unwrap_or_else(PoisonError::into_inner);
        self.queue.extend(inner.state.full(reason));
        self.receiver = inner.events.as_ref().map(broadcast::Sender::subscribe);
    }

    /// The next event; `None` at the end. Nothing is lost if the future is dropped.
    pub(super) async fn next(&mut self) -> Option<S::Event> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            match self.receiver.as_mut()?.recv().await {
                Ok(batch) => self.queue.extend(batch.iter().cloned()),
                Err(RecvError::Lagged(_)) => self.restart(Restart::Lagged),
                Err(RecvError::Closed) => self.receiver = None,
            }
        }
    }

    /// The next event, if there is one already.
    pub(super) fn try_next(&mut self) -> Option<S::Event> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            match self.receiver.as_mut()?.try_recv() {
                Ok(batch) => self.queue.extend(batch.iter().cloned()),
                Err(TryRecvError::Lagged(_)) => self.restart(Restart::Lagged),
                Err(TryRecvError::Closed) => self.receiver = None,
                Err(TryRecvError::Empty) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    enum Event {
        Full(Restart, u32),
        Now(u32),
    }

    /// Counts; knows nothing at 0.
    #[derive(Debug, Default)]
    struct Count(u32);

    impl State for Count {
        type Event = Event;

        fn full(&self, reason: Restart) -> Option<Event> {
            (self.0 > 0).then_some(Event::Full(reason, self.0))
        }
    }

    fn count(feed: &Feed<Count>, times: u32) {
        for _ in 0..times {
            feed.publish(|state| {
                state.0 += 1;
                vec![Event::Now(state.0)]
            });
        }
    }

    fn all(subscriber: &mut Subscriber<Count>) -> Vec<Event> {
        std::iter::from_fn(|| subscriber.try_next()).collect()
    }

    #[test]
    fn a_subscriber_gets_the_state_as_it_is_and_everything_after_it() {
        let feed = Feed::new(Count::default(), 8);
        let mut early = feed.subscribe();
        count(&feed, 2);
        let mut late = feed.subscribe();
        count(&feed, 1);
        assert_eq!(all(&mut early), [Event::Now(1), Event::Now(2), Event::Now(3)]);
        assert_eq!(all(&mut late), [Event::Full(Restart::Subscribed, 2), Event::Now(3)]);
    }

    #[test]
    fn who_falls_behind_is_told_and_goes_on_from_the_state_as_it_is_then() {
        let feed = Feed::new(Count::default(), 8);
        let mut slow = feed.subscribe();
        count(&feed, 100);
        assert_eq!(slow.try_next(), Some(Event::Full(Restart::Lagged, 100)));
        count(&feed, 2);
        assert_eq!(all(&mut slow), [Event::Now(101), Event::Now(102)]);
    }

    #[tokio::test]
    async fn after_the_end_comes_what_was_queued_and_then_nothing() {
        let feed = Feed::new(Count::default(), 8);
        let mut subscriber = feed.subscribe();
        count(&feed, 1);
        feed.end();
        count(&feed, 1);
        assert_eq!((subscriber.next().await, subscriber.next().await), (Some(Event::Now(1)), None));
        let mut late = feed.subscribe();
        assert_eq!((late.next().await, late.next().await), (Some(Event::Full(Restart::Subscribed, 2)), None));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn fast_and_slow_subscribers_end_up_with_the_state_and_see_no_silent_gap() {
        let feed = Feed::new(Count::default(), 4);
        let subscribers: Vec<_> = (0..4)
            .map(|n| {
                let mut subscriber = feed.subscribe();
                tokio::spawn(async move {
                    let mut seen = 0;
                    while let Some(event) = subscriber.next().await {
                        match event {
                            Event::Full(_, now) => assert!(now >= seen, "{now} after {seen}"),
                            Event::Now(now) => assert_eq!(now, seen + 1),
                        }
                        seen = match event {
                            Event::Full(_, now) | Event::Now(now) => now,
                        };
                        for _ in 0..n {
                            tokio::task::yield_now().await;
                        }
                    }
                    seen
                })
            })
            .collect();
        for _ in 0..2_000 {
            count(&feed, 5);
            tokio::task::yield_now().await;
        }
        feed.end();
        for subscriber in subscribers {
            assert_eq!(subscriber.await.unwrap(), 10_000);
        }
    }
}
