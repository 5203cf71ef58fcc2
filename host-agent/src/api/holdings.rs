//! Locks and leaderships that are held for clients, each under an id that only its client knows.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tracing::info;
use waypost_registry::{Election, Held, Leader, Leadership, LockError};

use super::{
    Api, duration,
    problem::{Fault, Kind},
    sessions::Sessions,
};
use crate::config::format_duration;

/// How long what is held may go without being renewed.
const TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(600);
const TTL_DEFAULT: Duration = Duration::from_secs(10);
/// The longest wait for another holder.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// How long etcd may take to say who holds something, or to take what nobody holds.
pub(super) const ASK_LIMIT: Duration = Duration::from_secs(5);
/// How long everything together may take to be released when the agent stops.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);

/// What is held.
#[derive(Debug)]
pub(super) enum Claim {
    /// A lock.
    Lock(Held),
    /// A leadership, and the value that it was last given.
    Leader(Leadership, Mutex<String>),
}

impl Claim {
    fn held(&self) -> &Held {
        match self {
            Self::Lock(held) => held,
            Self::Leader(leadership, _) => leadership,
        }
    }

    async fn release(self) -> Result<(), LockError> {
        match self {
            Self::Lock(held) => held.release().await,
            Self::Leader(leadership, _) => leadership.resign().await,
        }
    }
}

/// A claim that is held for a client.
#[derive(Debug)]
pub(super) struct Holding {
    pub(super) claim: Claim,
    _place: OwnedSemaphorePermit,
}

/// A holding as its client sees it.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) id: String,
    pub(super) holding: Arc<Holding>,
    pub(super) ttl: Duration,
    /// How long it is held for sure.
    pub(super) left: Duration,
}

impl Ticket {
    pub(super) fn held(&self) -> &Held {
        self.holding.claim.held()
    }

    pub(super) fn ttl_text(&self) -> String {
        format_duration(self.ttl)
    }

    pub(super) fn left_ms(&self) -> u64 {
        u64::try_from(self.left.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Everything that is held.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    sessions: Mutex<Sessions<Arc<Holding>>>,
    added: Notify,
}

impl Holdings {
    fn sessions(&self) -> MutexGuard<'_, Sessions<Arc<Holding>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a claim for `ttl`, and longer if it is renewed.
    pub(super) fn add(&self, claim: Claim, ttl: Duration, place: OwnedSemaphorePermit) -> Result<Ticket, Fault> {
        let left = claim.held().time_left()?.min(ttl);
        let id = new_id().map_err(|error| Fault::new(Kind::NoRandomness, error.to_string()))?;
        let holding = Arc::new(Holding { claim, _place: place });
        self.sessions().insert(id.clone(), Arc::clone(&holding), ttl, Instant::now());
        self.added.notify_one();
        Ok(Ticket { id, holding, ttl, left })
    }

    /// Holds on to what is held under an id, if it is of this name and kind.
    pub(super) fn renew(&self, name: &str, id: &str, is_kind: fn(&Claim) -> bool) -> Result<Ticket, Fault> {
        let mut sessions = self.sessions();
        let is = |holding: &Arc<Holding>| holding.claim.held().name() == name && is_kind(&holding.claim);
        let known = sessions.get(id).is_some_and(is);
        let renewed = if known { sessions.renew(id, Instant::now()) } else { None };
        let (holding, ttl) = renewed.map(|(holding, ttl)| (Arc::clone(holding), ttl)).ok_or_else(|| not_held(name))?;
        match holding.claim.held().time_left() {
            Ok(left) => Ok(Ticket { id: id.to_owned(), holding, ttl, left: left.min(ttl) }),
            Err(lost) => {
                sessions.remove(id);
                Err(lost.into())
            }
        }
    }

    /// Gives back what is held under an id.
    pub(super) async fn release(&self, name: &str, id: &str, is_kind: fn(&Claim) -> bool) -> Result<(), Fault> {
        let removed = {
            let mut sessions = self.sessions();
            let is = |holding: &Arc<Holding>| holding.claim.held().name() == name && is_kind(&holding.claim);
            if sessions.get(id).is_some_and(is) { sessions.remove(id) } else { None }
        };
        let holding = removed.ok_or_else(|| not_held(name))?;
        match Arc::into_inner(holding) {
            Some(holding) => Ok(holding.claim.release().await?),
            // Another request looks at it this moment, and releases it by letting go of it.
            None => Ok(()),
        }
    }

    /// Gives back what nobody renews in time, for ever.
    pub(super) async fn keep(&self) {
        loop {
            let expired = self.sessions().expire(Instant::now());
            for holding in expired {
                let held = holding.claim.held();
                // Dropped, it is released in the background.
                info!(name = held.name(), key = held.key(), "not renewed in time by its client: released");
            }
            let next = self.sessions().next_expiry();
            let expiry = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = expiry => {}
                () = self.added.notified() => {}
            }
        }
    }

    /// Gives everything back, for others to go on at once.
    pub(super) async fn release_all(&self) {
        let all = self.sessions().take_all();
        let releases = all.into_iter().filter_map(Arc::into_inner).map(|holding| holding.claim.release());
        // What is not confirmed by then ends with its lease.
        _ = tokio::time::timeout(RELEASE_LIMIT, futures::future::join_all(releases)).await;
    }
}

fn not_held(name: &str) -> Fault {
    let detail = format!("{name} is not held under this id: it was released, lost, or not renewed in time");
    Fault::new(Kind::NotHeld, detail)
}

/// 128 random bits.
fn new_id() -> io::Result<String> {
    let mut bytes = [0; 16];
    // That few bytes come all at once or not at all.
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// What a client asks for: how long to hold, and how long to wait.
pub(super) fn terms(ttl: Option<&str>, wait: Option<&str>) -> Result<(Duration, Duration), Fault> {
    let at = |pointer: &'static str| move |detail: String| Fault::invalid_at(pointer, detail);
    let ttl = ttl.map_or(Ok(TTL_DEFAULT), |ttl| duration(ttl, TTL)).map_err(at("/ttl"))?;
    if ttl.subsec_nanos() > 0 {
        return Err(Fault::invalid_at("/ttl", "is not whole seconds, which etcd's leases need"));
    }
    let wait =
        wait.map_or(Ok(Duration::ZERO), |wait| duration(wait, Duration::ZERO..=WAIT_MAX)).map_err(at("/wait"))?;
    Ok((ttl, wait))
}

/// A place for one more claim, waiting or held.
pub(super) fn place(api: &Api) -> Result<OwnedSemaphorePermit, Fault> {
    let place = Arc::clone(&api.inner.claims).try_acquire_owned();
    place.map_err(|_| Fault::new(Kind::TooMany, "the agent holds too many locks and leaderships for others already"))
}

/// Who holds a name. Locks and leaderships are alike in etcd.
pub(super) async fn holder(api: &Api, name: &str) -> Result<Option<Leader>, Fault> {
    let election = Election::new(api.inner.registry.connector().clone(), name, *TTL.start())?;
    Ok(election.leader(ASK_LIMIT).await?)
}

/// Waits for a claim, and says who has it if it cannot be had.
pub(super) async fn contend<T>(
    api: &Api,
    name: &str,
    claim: impl Future<Output = Result<Option<T>, LockError>>,
) -> Result<T, Fault> {
    let claimed = api.inner.stop.run_until_cancelled(claim).await;
    let error = match claimed.ok_or_else(|| Fault::new(Kind::Stopping, "the agent is stopping"))? {
        Ok(Some(claim)) => return Ok(claim),
        Ok(None) => None,
        Err(error @ LockError::TimedOut { .. }) => Some(error),
        Err(error) => return Err(error.into()),
    };
    match (holder(api, name).await, error) {
        (Ok(Some(Leader { key, token, .. })), _) => {
            Err(Fault::new(Kind::HeldByAnother, format!("{name} is held by key {key}, fencing token {token}")))
        }
        (_, Some(error)) => Err(error.into()),
        (_, None) => Err(Fault::new(Kind::HeldByAnother, format!("{name} was held by somebody else"))),
    }
}
