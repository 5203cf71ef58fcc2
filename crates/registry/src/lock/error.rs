//! What can go wrong with locks and elections.

use std::time::Duration;

/// Why a lock or a leadership is not held any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LostCause {
    /// etcd did not confirm the lease in time, so that somebody else may hold it soon.
    #[error("etcd did not confirm the lease for {after:?} ({cause})")]
    Expired {
        /// How long there was no confirmation: somewhat less than the lease's time to live.
        after: Duration,
        /// What the last attempt ended with.
        cause: String,
    },
    /// The lease has expired in etcd, or somebody revoked it, or etcd lost its data.
    #[error("its lease is gone from etcd")]
    LeaseGone,
    /// Somebody deleted the key.
    #[error("its key was deleted from etcd")]
    KeyDeleted,
    /// It was given back by its holder.
    #[error("it was released")]
    Released,
}

/// Why a lock could not be had, kept or used. `name` is the lock's or the election's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// A name that cannot be one.
    #[error("a lock or election needs a name that is not empty")]
    NoName,
    /// Not had before the deadline.
    #[error("{name} could not be had within {after:?}: {cause}")]
    TimedOut {
        /// Which one.
        name: String,
        /// How long it was tried.
        after: Duration,
        /// Who is before us, or what keeps us from etcd.
        cause: String,
    },
    /// etcd refuses the request.
    #[error("etcd refuses what {name} needs: {cause}; check the user's permissions and etcd's limits")]
    Refused {
        /// Which one.
        name: String,
        /// etcd's answer.
        cause: String,
    },
    /// It is not held any more; nothing was written.
    #[error("{name} is not held any more: {cause}")]
    Lost {
        /// Which one.
        name: String,
        /// Why.
        cause: LostCause,
    },
    /// etcd's answer did not come: what was asked for may have been done or not.
    #[error("etcd did not confirm what was asked for {name}, which may have been done or not: {cause}")]
    Unconfirmed {
        /// Which one.
        name: String,
        /// What the attempt ended with.
        cause: String,
    },
}
