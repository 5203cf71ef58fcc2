//! Where requests for other services of this host are taken, one after the other: each is saved, then registered, then
//! answered. One task owns the registrations.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Map, Value};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{JoinError, JoinHandle},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    Departure, Registrations,
    roster::{Listed, Name, Refused, Roster, Upkeep},
};
use crate::{
    config::Service,
    state::{StateError, registrations as file},
};

/// Requests that wait; whoever makes one more waits with it.
const QUEUE: usize = 32;

/// Why a request is not carried out. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// It is refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It could not be saved.
    #[error("it would not outlive a restart, and is not done: {0}")]
    NotSaved(#[from] StateError),
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

/// What is asked for.
#[derive(Debug)]
pub enum Request {
    /// Register this, or make it another.
    Put(Name, Map<String, Value>),
    /// Change this by a merge patch.
    Patch(Name, Map<String, Value>),
    /// Deregister this, after so long a drain; the configuration's, unless it is named.
    Remove(Name, Option<Duration>),
    /// This is in maintenance now, or not any more.
    Maintain(Name, Option<Upkeep>),
    /// The host is in maintenance now, or not any more.
    MaintainHost(Option<Upkeep>),
    /// The configuration file has these services now, and this drain.
    TakeFile(Vec<Service>, Duration),
}

/// What was done.
#[derive(Debug)]
pub struct Done {
    /// Whether there was nothing of that name before.
    pub created: bool,
    /// What is leaving.
    pub departure: Option<Departure>,
}

type Answer = oneshot::Sender<Result<Done, DeskError>>;

/// What everybody may see.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Every service.
    pub services: Vec<Listed>,
    /// The host's maintenance.
    pub host: Option<Upkeep>,
}

impl Listing {
    fn of(roster: &Roster) -> Arc<Self> {
        Arc::new(Self { services: roster.listed(), host: roster.host_upkeep().cloned() })
    }
}

/// The way to the desk. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DeskHandle {
    requests: mpsc::Sender<(Request, Answer)>,
    listing: watch::Receiver<Arc<Listing>>,
}

impl DeskHandle {
    /// Asks, and waits until it is saved and under way.
    ///
    /// # Errors
    /// [`DeskError`]: nothing has changed.
    pub async fn ask(&self, request: Request) -> Result<Done, DeskError> {
        let (answer, answered) = oneshot::channel();
        self.requests.send((request, answer)).await.map_err(|_| DeskError::Stopping)?;
        answered.await.map_err(|_| DeskError::Stopping)?
    }

    /// This host's services.
    pub fn listing(&self) -> Arc<Listing> {
        Arc::clone(&self.listing.borrow())
    }
}

/// The desk.
#[derive(Debug)]
pub struct Desk {
    handle: DeskHandle,
    stop: CancellationToken,
    task: JoinHandle<Registrations>,
}

impl Desk {
    /// Registers the file's services and what was saved, and takes requests from then on.
    pub fn open(mut registrations: Registrations, services: &[Service], drain: Duration, path: PathBuf) -> Self {
        let (roster, left_out) = Roster::restore(services, file::load(&path));
        for what in left_out {
            warn!(what, "not registered though the API had registered it");
        }
        let (requests, receiver) = mpsc::channel(QUEUE);
        let (listing_sender, listing) = watch::channel(Listing::of(&roster));
        registrations.set_maintenance(roster.in_maintenance());
        registrations.apply(&roster.services(), drain);
        let clerk = Clerk { roster, registrations, drain, path, listing: listing_sender };
        let stop = CancellationToken::new();
        let task = tokio::spawn(clerk.run(receiver, stop.clone()));
        Self { handle: DeskHandle { requests, listing }, stop, task }
    }

    /// The way to it.
    pub fn handle(&self) -> DeskHandle {
        self.handle.clone()
    }

    /// Takes no more requests, and hands the registrations back.
    ///
    /// # Errors
    /// The task's, if it ended badly.
    pub async fn close(self) -> Result<Registrations, JoinError> {
        self.stop.cancel();
        self.task.await
    }
}

struct Clerk {
    roster: Roster,
    registrations: Registrations,
    drain: Duration,
    path: PathBuf,
    listing: watch::Sender<Arc<Listing>>,
}

impl Clerk {
    async fn run(mut self, mut requests: mpsc::Receiver<(Request, Answer)>, stop: CancellationToken) -> Registrations {
        while let Some(Some((request, answer))) = stop.run_until_cancelled(requests.recv()).await {
            let outcome = self.carry_out(request).await;
            // Who asked may have gone; it is done all the same.
            _ = answer.send(outcome);
        }
        self.registrations
    }

    async fn carry_out(&mut self, request: Request) -> Result<Done, DeskError> {
        let mut next = self.roster.clone();
        let mut done = Done { created: false, departure: None };
        let (mut drain, mut is_of_file, mut leaving) = (self.drain, false, None);
        match request {
            Request::Put(name, definition) => done.created = next.put(&name, definition)?,
            Request::Patch(name, patch) => next.patch(&name, &patch)?,
            Request::Remove(name, wanted) => {
                drain = wanted.unwrap_or(drain);
                leaving = Some(next.remove(&name)?);
            }
            Request::Maintain(name, upkeep) => next.maintain(&name, upkeep)?,
            Request::MaintainHost(upkeep) => next.maintain_host(upkeep),
            Request::TakeFile(services, wanted) => {
                (drain, self.drain, is_of_file) = (wanted, wanted, true);
                for name in next.take_file(&services) {
                    warn!(%name, "the configuration file has taken it over from the API");
                }
            }
        }
        match self.save(&next).await {
            // The file counts in any case, and would take over again what it takes over now.
            Err(error) if is_of_file => warn!(%error, "what the API has registered is saved with the next change"),
            saved => saved?,
        }
        self.registrations.set_maintenance(next.in_maintenance());
        self.registrations.apply(&next.services(), drain);
        done.departure = leaving.map(|id| self.registrations.departure(&id, drain));
        self.listing.send_replace(Listing::of(&next));
        self.roster = next;
        Ok(done)
    }

    async fn save(&self, next: &Roster) -> Result<(), StateError> {
        let saved = next.saved();
        if saved == self.roster.saved() {
            return Ok(());
        }
        let path = self.path.clone();
        let failed = |source| StateError::Io { path: self.path.clone(), action: "cannot write", source };
        match tokio::task::spawn_blocking(move || file::save(&path, &saved)).await {
            Ok(saved) => saved,
            Err(ended) => Err(failed(ended.into())),
        }
    }
}
