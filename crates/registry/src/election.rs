//! Elections: one leader at a time, with a value, in the layout of etcd's own concurrency package, so that
//! `etcdctl elect` contends.
//!
//! A leadership is a lock whose key carries a value; see [`crate::lock`] for what is promised about keeping and losing
//! it.
//!
//! ```
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let etcd = waypost_registry_testing::Etcd::start().await;
//! # let endpoint = etcd.url();
//! use std::time::Duration;
//! use waypost_registry::{ConnectOptions, Connector, Election};
//! # async fn lead() {}
//!
//! let connector = Connector::new(ConnectOptions::new([endpoint]))?;
//! let election = Election::new(connector, "scheduler", Duration::from_secs(10))?;
//! let leadership = election.campaign("10.0.0.5:7000", Duration::from_secs(30)).await?;
//! assert!(leadership.am_leader());
//!
//! // Elsewhere: who leads? `next` also tells each later leader.
//! let mut observer = election.observe();
//! let leader = observer.next().await.ok_or("the runtime ends")?;
//! assert_eq!(leader.value, b"10.0.0.5:7000");
//!
//! tokio::select! {
//!     () = lead() => leadership.resign().await?,
//!     cause = leadership.lost() => eprintln!("not the leader any more: {cause}"),
//! }
//! # Ok(()) }
//! ```

use std::{
    ops::Deref,
    time::{Duration, Instant},
};

use etcd_client::{PutOptions, Txn, TxnOp};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    backoff::Backoff,
    connection::Connector,
    lease_machine::Failure,
    lock::{
        Claims, Held, LockError, Watched,
        wire::{Events, First, Wire},
    },
};

const RETRY_BASE: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// How often an observer looks by itself: a watch can fall silent.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The key in etcd that stands for the leadership: one for each term.
    pub key: String,
    /// The leader's value.
    pub value: Vec<u8>,
    /// The term's fencing token: the key's create revision.
    pub token: i64,
}

/// An election of a name; an example is on [the module's page](crate::election).
#[derive(Clone, Debug)]
pub struct Election {
    claims: Claims,
}

impl Election {
    /// An election whose leadership outlives its leader's end by `ttl`; as [`crate::Lock::new`].
    ///
    /// # Errors
    /// [`LockError::NoName`].
    pub fn new(connector: Connector, name: impl Into<String>, ttl: Duration) -> Result<Self, LockError> {
        Ok(Self { claims: Claims::new(connector, name.into(), ttl)? })
    }

    /// Waits to be the leader, in the order of arrival; as [`crate::Lock::acquire`].
    ///
    /// # Errors
    /// [`LockError::TimedOut`] and [`LockError::Refused`].
    pub async fn campaign(&self, value: impl Into<Vec<u8>>, deadline: Duration) -> Result<Leadership, LockError> {
        Ok(Leadership { held: self.claims.wait(value.into(), deadline).await? })
    }

    /// Who leads now. The endpoints are asked in turn until one answers.
    ///
    /// # Errors
    /// [`LockError::TimedOut`] if none answered before the deadline; [`LockError::Refused`].
    pub async fn leader(&self, deadline: Duration) -> Result<Option<Leader>, LockError> {
        let mut lookout = self.lookout();
        let mut cause = String::from("etcd did not answer");
        let looking = async {
            loop {
                match lookout.look().await {
                    Ok((leader, _)) => return Ok(leader),
                    Err(Failure::Broken(broken)) => cause = broken,
                    Err(Failure::Refused(cause)) => return Err(cause),
                    Err(Failure::LeaseGone) => {}
                }
                lookout.pause().await;
            }
        };
        let name = || self.claims.name().to_owned();
        match tokio::time::timeout(deadline, looking).await {
            Ok(outcome) => outcome.map_err(|cause| LockError::Refused { name: name(), cause }),
            Err(_) => Err(LockError::TimedOut { name: name(), after: deadline, cause }),
        }
    }

    /// Follows who leads, on the present Tokio runtime, until the observer is dropped.
    pub fn observe(&self) -> Observer {
        let (sender, leader) = watch::channel(None);
        let stop = CancellationToken::new();
        let task = tokio::spawn(observe(self.lookout(), sender, stop.clone()));
        Observer { leader, _task: task, _stop: stop.drop_guard() }
    }

    /// As [`crate::Lock::wind_up`].
    pub async fn wind_up(&self, deadline: Duration) {
        self.claims.wind_up(deadline).await;
    }

    fn lookout(&self) -> Lookout {
        let connector = self.claims.connector().clone();
        let (connect, request) = (connector.connect_timeout(), connector.request_timeout());
        Lookout {
            wire: Wire::new(connector),
            connected: false,
            prefix: format!("{}/", self.claims.name()),
            connect: connect + request,
            request,
            backoff: Backoff::new(RETRY_BASE, RETRY_MAX),
        }
    }
}

/// A leadership that is held, until it is resigned, dropped or lost: a [`Held`] whose value can change.
#[derive(Debug)]
pub struct Leadership {
    held: Held,
}

impl Deref for Leadership {
    type Target = Held;

    fn deref(&self) -> &Held {
        &self.held
    }
}

impl Leadership {
    /// Whether this is still the leader, as far as can be known here; as [`Held::check`].
    pub fn am_leader(&self) -> bool {
        self.held.check().is_ok()
    }

    /// Announces another value, in the same term.
    ///
    /// # Errors
    /// As [`Held::transaction`].
    pub async fn proclaim(&self, value: impl Into<Vec<u8>>) -> Result<(), LockError> {
        let put = TxnOp::put(self.held.key(), value, Some(PutOptions::new().with_lease(self.held.lease())));
        self.held.transaction(Txn::new().and_then([put])).await.map(|_| ())
    }

    /// Gives the leadership up; as [`Held::release`].
    ///
    /// # Errors
    /// As [`Held::release`].
    pub async fn resign(self) -> Result<(), LockError> {
        self.held.release().await
    }
}

/// Follows who leads. While etcd cannot be reached, the leader known last stays.
#[derive(Debug)]
pub struct Observer {
    /// None until etcd has answered; then the leader, or nobody.
    leader: watch::Receiver<Option<Option<Leader>>>,
    _task: JoinHandle<()>,
    _stop: DropGuard,
}

impl Observer {
    /// The next leader, or the next value of the same one. A caller who is late gets the newest only. `None` when the
    /// observer has ended, with its runtime.
    pub async fn next(&mut self) -> Option<Leader> {
        loop {
            self.leader.changed().await.ok()?;
            if let Some(Some(leader)) = &*self.leader.borrow_and_update() {
                return Some(leader.clone());
            }
        }
    }

    /// Who leads, as known last; nobody, if etcd has not answered yet.
    pub fn leader(&self) -> Option<Leader> {
        self.leader.borrow().clone().flatten()
    }
}

async fn observe(mut lookout: Lookout, sender: watch::Sender<Option<Option<Leader>>>, stop: CancellationToken) {
    let following = async {
        loop {
            let revision = match lookout.look().await {
                Ok((leader, revision)) => {
                    sender.send_if_modified(|known| {
                        let leader = Some(leader);
                        let changed = *known != leader;
                        *known = leader;
                        changed
                    });
                    revision
                }
                Err(failure) => {
                    tracing::debug!(?failure, prefix = lookout.prefix, "cannot see who leads");
                    lookout.pause().await;
                    continue;
                }
            };
            lookout.wait_for_change(revision + 1).await;
        }
    };
    stop.run_until_cancelled(following).await;
}

/// Looks at who is first, over a connection that is made anew when it breaks.
struct Lookout {
    wire: Wire,
    connected: bool,
    prefix: String,
    connect: Duration,
    request: Duration,
    backoff: Backoff,
}

impl Lookout {
    /// Who is first, and at which revision.
    async fn look(&mut self) -> Result<(Option<Leader>, i64), Failure> {
        if !self.connected {
            self.wire.connect(self.connect).await?;
            self.connected = true;
        }
        let first = self.wire.first(&self.prefix, self.request).await;
        self.connected = !matches!(first, Err(Failure::Broken(_)));
        let First { found, revision } = first?;
        self.backoff.reset();
        let leader = found.map(|found| Leader {
            key: String::from_utf8_lossy(found.key()).into_owned(),
            value: found.value().to_vec(),
            token: found.create_revision(),
        });
        Ok((leader, revision))
    }

    async fn wait_for_change(&mut self, from: i64) {
        let until = Instant::now() + LOOK_INTERVAL;
        if let Watched::Broken(cause) = self.wire.watch(&self.prefix, Events::Changes, from, until, self.request).await
        {
            tracing::debug!(cause, prefix = self.prefix, "watching an election");
            self.connected = false;
            self.pause().await;
        }
    }

    async fn pause(&mut self) {
        tokio::time::sleep(self.backoff.next(fastrand::f64())).await;
    }
}
