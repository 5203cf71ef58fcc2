//! What the machine asks for, and what comes back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// A registration's number.
pub(crate) type Id = u64;

/// A key to put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Put {
    pub(crate) id: Id,
    pub(crate) key: String,
    pub(crate) value: Arc<[u8]>,
    /// Revision that it replaces; 0: the key is absent.
    pub(crate) seen: i64,
    pub(super) version: u64,
}

/// A request to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Connect,
    Grant {
        seconds: i64,
    },
    Adopt {
        lease: i64,
    },
    KeepAlive {
        lease: i64,
    },
    /// The store's revision, for the name of a key under the prefix.
    Revision {
        id: Id,
        prefix: String,
    },
    Check {
        keys: Vec<(Id, String)>,
        values: bool,
    },
    Put {
        lease: i64,
        puts: Vec<Put>,
    },
    Delete {
        id: Id,
        key: String,
        seen: i64,
    },
    List {
        lease: i64,
    },
    Release {
        lease: i64,
        keys: Vec<String>,
    },
    Revoke {
        lease: i64,
    },
}

/// What etcd holds for a key; the value only if it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) lease: i64,
    pub(crate) mod_revision: i64,
    pub(crate) value: Option<Vec<u8>>,
}

/// etcd's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Connected, deleted, released, revoked, kept alive: as asked.
    Done,
    Granted {
        lease: i64,
        ttl: Duration,
    },
    Adoptable {
        ttl: Duration,
    },
    Revision(i64),
    Checked(Vec<(Id, Option<Found>)>),
    Put {
        revision: i64,
    },
    /// A key was not at the revision named: nothing was written.
    Conflict,
    Listed(Vec<String>),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// etcd says that the lease is gone.
    LeaseGone,
    /// etcd refuses this request; the connection is sound.
    Refused(String),
    /// Anything else: connect anew.
    Broken(String),
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Make this request, within the limit.
    Do(Op, Duration),
    /// Nothing until then, or until something is intended anew.
    Wait(Instant),
    /// Everything is deleted.
    Finished,
}
