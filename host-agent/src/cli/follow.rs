//! Following what happens, from the agent or from etcd itself, until told to end.

use std::collections::VecDeque;

use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use waypost_registry::{MirrorEvent, MirrorStatus, NodeEvent, NodeEvents};

use super::{
    exit::Exit,
    output::Reader,
    signals::Signals,
    source::{PATIENCE, told, unread},
};
use crate::client::{Events, Told};

/// What a follower is told.
#[derive(Debug)]
pub(super) enum News<E> {
    /// This happened.
    Event(E),
    /// What happens is not seen for now. What is missed comes later.
    Interrupted(String),
}

/// Where the news come from.
pub(super) trait Follow {
    /// What happens.
    type Event;

    /// The next news. It may be dropped while it waits.
    async fn next(&mut self) -> anyhow::Result<News<Self::Event>>;
}

impl<E: DeserializeOwned> Follow for Events<E> {
    type Event = E;

    async fn next(&mut self) -> anyhow::Result<News<E>> {
        match Events::next(self).await.map_err(told)? {
            Told::Event(event) => Ok(News::Event(event)),
            Told::Interrupted(error) => Ok(News::Interrupted(error.to_string())),
        }
    }
}

/// What happens in etcd.
pub(super) trait Happenings {
    /// What happens.
    type Happening;

    /// The next of it; none once nobody follows etcd any more. Nothing is lost if it is dropped while it waits.
    async fn next(&mut self) -> Option<Self::Happening>;
}

impl Happenings for mpsc::Receiver<MirrorEvent> {
    type Happening = MirrorEvent;

    async fn next(&mut self) -> Option<MirrorEvent> {
        self.recv().await
    }
}

impl Happenings for NodeEvents {
    type Happening = NodeEvent;

    async fn next(&mut self) -> Option<NodeEvent> {
        NodeEvents::next(self).await
    }
}

/// A part of etcd, followed. `read` makes events of what happens there.
pub(super) struct Following<H, E, R> {
    happenings: H,
    status: watch::Receiver<MirrorStatus>,
    /// Whether etcd was reached at all.
    begun: bool,
    ready: VecDeque<E>,
    read: R,
}

impl<H: Happenings, E, R: FnMut(H::Happening) -> Vec<E>> Following<H, E, R> {
    pub(super) fn new(happenings: H, status: watch::Receiver<MirrorStatus>, read: R) -> Self {
        Self { happenings, status, begun: false, ready: VecDeque::new(), read }
    }

    async fn happening(&mut self) -> anyhow::Result<H::Happening> {
        let received = match self.begun {
            true => self.happenings.next().await,
            false => match tokio::time::timeout(PATIENCE, self.happenings.next()).await {
                Ok(received) => received,
                Err(_) => return Err(unread(self.status.borrow().cause.as_deref())),
            },
        };
        received.ok_or_else(|| Exit::unavailable("etcd is not followed any more"))
    }
}

impl<H: Happenings, E, R: FnMut(H::Happening) -> Vec<E>> Follow for Following<H, E, R> {
    type Event = E;

    async fn next(&mut self) -> anyhow::Result<News<E>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(News::Event(event));
            }
            let mut status = self.status.clone();
            let begun = self.begun;
            tokio::select! {
                biased;
                happening = self.happening() => {
                    self.ready.extend((self.read)(happening?));
                    self.begun = true;
                }
                Ok(()) = status.changed(), if begun => {
                    let now = self.status.borrow_and_update();
                    if let Some(cause) = now.cause.as_ref().filter(|_| !now.synced) {
                        return Ok(News::Interrupted(cause.clone()));
                    }
                }
            }
        }
    }
}

/// Tells of everything, until a signal says to end or nobody reads any more.
pub(super) async fn tell_all<F: Follow>(
    mut from: F,
    mut tell: impl FnMut(News<F::Event>) -> anyhow::Result<Reader>,
) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    loop {
        tokio::select! {
            _ = signals.next() => return Ok(()),
            news = from.next() => if tell(news?)? == Reader::Gone {
                return Ok(());
            },
        }
    }
}
