//! Locks: one holder at a time, in the layout of etcd's own concurrency package, so that `etcdctl lock` contends.
//!
//! A lock is a key under a lease of its own, `<name>/<lease id in hexadecimal>`; the key with the lowest create revision
//! owns the lock. A lease can end while its holder sleeps, so a holder is told in several ways:
//!
//! * [`Held::lost`] completes as soon as the lock is known to be lost, and at the latest when etcd has not confirmed the
//!   lease for four fifths of its time to live, measured here, on the monotonic clock.
//! * [`Held::transaction`] writes to etcd only while the lock is held.
//! * [`Held::fencing_token`] is larger for each later holder: whoever is written to can refuse what carries an older one.
//!
//! ```
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let etcd = waypost_registry_testing::Etcd::start().await;
//! # let endpoint = etcd.url();
//! use std::time::Duration;
//! use waypost_registry::{ConnectOptions, Connector, Lock, etcd_client::{Txn, TxnOp}};
//! # async fn work(token: i64) {}
//!
//! let connector = Connector::new(ConnectOptions::new([endpoint]))?;
//! let lock = Lock::new(connector, "jobs/nightly", Duration::from_secs(10))?;
//! let held = lock.acquire(Duration::from_secs(30)).await?;
//! tokio::select! {
//!     () = work(held.fencing_token()) => {}
//!     cause = held.lost() => eprintln!("stopped in the middle: {cause}"),
//! }
//! // Written only if the lock is still held.
//! held.transaction(Txn::new().and_then([TxnOp::put("jobs/last", "done", None)])).await?;
//! held.release().await?;
//!
//! let free = lock.try_acquire(Duration::from_secs(5)).await?;
//! assert!(free.is_some());
//! # Ok(()) }
//! ```

mod claim;
mod error;
mod machine;
pub(crate) mod wire;

use std::time::Duration;

pub(crate) use self::{claim::Claims, machine::Watched};
pub use self::{
    claim::Held,
    error::{LockError, LostCause},
};
use crate::connection::Connector;

/// A lock of a name; an example is on [the module's page](crate::lock). Each acquisition has its own lease and key, so one `Lock` can be shared by tasks that exclude each
/// other.
#[derive(Clone, Debug)]
pub struct Lock {
    claims: Claims,
}

impl Lock {
    /// A lock that outlives its holder's end by `ttl` (whole seconds; etcd raises what is below its election timeout).
    /// Names that lie under each other (`a` and `a/b`) share their keys and must not both be used.
    ///
    /// # Errors
    /// [`LockError::NoName`].
    pub fn new(connector: Connector, name: impl Into<String>, ttl: Duration) -> Result<Self, LockError> {
        Ok(Self { claims: Claims::new(connector, name.into(), ttl)? })
    }

    /// Waits for the lock, in the order of arrival. Whatever becomes of the connection, of etcd's members or of the
    /// compacted past, it stays in line; a waiter whose lease is gone from etcd starts anew at the end of the line.
    /// Dropping the future gives the place up.
    ///
    /// # Errors
    /// [`LockError::TimedOut`], which says who is before us or why etcd cannot be reached; [`LockError::Refused`].
    pub async fn acquire(&self, deadline: Duration) -> Result<Held, LockError> {
        self.claims.wait(Vec::new(), deadline).await
    }

    /// Takes the lock if nobody holds it, and gives `None` if somebody does.
    ///
    /// # Errors
    /// As [`Self::acquire`]; the deadline is for etcd to answer.
    pub async fn try_acquire(&self, deadline: Duration) -> Result<Option<Held>, LockError> {
        self.claims.attempt(deadline).await
    }

    /// Waits until the keys of everything that was released, dropped or given up are deleted, or the deadline has
    /// passed: before a process ends, for others to go on at once.
    pub async fn wind_up(&self, deadline: Duration) {
        self.claims.wind_up(deadline).await;
    }
}
