//! What is to be kept in etcd, how that stands, and why it may not be so.

use std::{fmt, time::Duration};

use serde::Serialize;

/// A key to keep in etcd, with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    pub(crate) place: Place,
    pub(crate) value: Vec<u8>,
}

/// Where it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Key { key: String, if_held: IfHeld },
    Numbered { prefix: String },
}

/// What to do about a key that somebody else holds: one that is there, and not under a lease of this registrar.
///
/// A process that crashed leaves its keys until their lease ends. Started again, it finds them held by somebody else,
/// unless it adopts that lease ([`super::RegistrarOptions::adopt`]).
///
/// ```
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let etcd = waypost_registry_testing::Etcd::start().await;
/// # let endpoint = etcd.url();
/// use std::time::Duration;
/// use waypost_registry::{ConnectOptions, Connector, IfHeld, Registrar, RegistrarOptions, Registration};
///
/// let connector = Connector::new(ConnectOptions::new([endpoint]))?;
/// connector.connect().await?.put("/leader-of-shard/7", "somebody else", None).await?;
///
/// let registrar = Registrar::start(connector, RegistrarOptions::default());
/// let handle = registrar.register(Registration::new("/leader-of-shard/7", "me").if_held(IfHeld::Fail));
/// let error = handle.registered(Duration::from_secs(10)).await.unwrap_err().to_string();
/// assert!(error.starts_with("somebody else holds key /leader-of-shard/7"), "{error}");
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IfHeld {
    /// Take it from them. For keys that can only be meant for this instance: what is there is an earlier run's.
    #[default]
    Overwrite,
    /// Wait until they have let it go, for as long as that takes: it is looked at every third of the lease's time to
    /// live. The state is [`RegistrationState::Retrying`] and says who holds it.
    Wait,
    /// Give up: the state is [`RegistrationState::Failed`], and nothing is written any more. A key of ours that is
    /// merely gone is still put again.
    Fail,
}

impl Registration {
    /// A key and its value: bytes or text. An empty key, which etcd does not have, is refused by it.
    pub fn new(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self { place: Place::Key { key: key.into(), if_held: IfHeld::Overwrite }, value: value.into() }
    }

    /// A key, and a value that is written as JSON.
    ///
    /// # Errors
    /// [`RegistryError::Value`] if the value has no form in JSON, such as a map whose keys are no text.
    pub fn json<T: Serialize + ?Sized>(key: impl Into<String>, value: &T) -> Result<Self, RegistryError> {
        let key = key.into();
        let value = to_json(&key, value)?;
        Ok(Self::new(key, value))
    }

    /// A value under a key of its own: `<prefix>/` and the number, in 20 digits, of the revision that follows the
    /// store's present one. The key is created only if it is absent; if another process was faster, a later revision
    /// names it. [`super::RegistrationHandle::key`] tells it.
    ///
    /// The name stays what it is, also when lease or data are lost and the key is put again, so that others see the
    /// same member return. Only if somebody else holds the name by then, as can be after etcd's data was wiped and its
    /// revisions began anew, another one is taken.
    pub fn numbered(prefix: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self { place: Place::Numbered { prefix: prefix.into() }, value: value.into() }
    }

    /// What to do if somebody else holds the key, now or later. A numbered key is always a new one: for it this means
    /// nothing.
    #[must_use]
    pub fn if_held(mut self, choice: IfHeld) -> Self {
        if let Place::Key { if_held, .. } = &mut self.place {
            *if_held = choice;
        }
        self
    }
}

pub(super) fn to_json<T: Serialize + ?Sized>(key: &str, value: &T) -> Result<Vec<u8>, RegistryError> {
    serde_json::to_vec(value).map_err(|error| RegistryError::Value { key: key.to_owned(), cause: error.to_string() })
}

/// How a registration stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistrationState {
    /// Not in etcd yet, or not with its newest value; nothing went wrong.
    Pending,
    /// In etcd, as intended, under a lease that etcd has confirmed within its time to live.
    Registered,
    /// Not known to be in etcd as intended, and tried again. It may be there: etcd cannot be reached, or does not take
    /// it, or somebody else changed the key.
    Retrying {
        /// What the last attempt ended with.
        cause: String,
    },
    /// It was registered, and etcd has said that it is gone: the key, or the lease that it was under, because that ran
    /// out, somebody deleted or revoked it, or etcd lost its data. It is being put again.
    Lost {
        /// What etcd said, and what keeps it from being put again, if anything does.
        cause: String,
    },
    /// Taken out of etcd, as intended.
    Withdrawn,
    /// Given up, because somebody else holds the key and [`IfHeld::Fail`] was asked for. It stays so.
    Failed {
        /// Who holds it, and what can be done.
        cause: String,
    },
    /// Nobody looks after it any more: its registrar has ended, or another registration of the key replaced it.
    Closed,
}

impl RegistrationState {
    /// The names of all states, for metrics that count each.
    pub const NAMES: [&str; 7] = ["pending", "registered", "retrying", "lost", "withdrawn", "failed", "closed"];

    /// Its name: one word, in small letters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Registered => "registered",
            Self::Retrying { .. } => "retrying",
            Self::Lost { .. } => "lost",
            Self::Withdrawn => "withdrawn",
            Self::Failed { .. } => "failed",
            Self::Closed => "closed",
        }
    }

    /// What went wrong, of those states that come of it.
    pub fn cause(&self) -> Option<&str> {
        match self {
            Self::Retrying { cause } | Self::Lost { cause } | Self::Failed { cause } => Some(cause),
            Self::Pending | Self::Registered | Self::Withdrawn | Self::Closed => None,
        }
    }
}

impl fmt::Display for RegistrationState {
    /// `retrying: etcd endpoint ...`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause() {
            Some(cause) => write!(f, "{}: {cause}", self.name()),
            None => f.pad(self.name()),
        }
    }
}

/// Why a registration could not be made, or ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Nobody looks after it any more.
    #[error("key {key} is not looked after any more: its registrar has been shut down, or it was registered anew")]
    Closed {
        /// Its key.
        key: String,
    },
    /// Somebody else holds the key, and it was to fail then.
    #[error("{cause}")]
    Held {
        /// The key.
        key: String,
        /// Who holds it, and what can be done.
        cause: String,
    },
    /// etcd did not confirm in time.
    #[error(
        "etcd did not confirm within {after:?} that key {key} is registered ({cause}); it is tried on for as long as the registrar lives"
    )]
    Unregistered {
        /// Its key, or the prefix under which it is numbered.
        key: String,
        /// How long it was waited for.
        after: Duration,
        /// How it stood last.
        cause: String,
    },
    /// etcd did not confirm in time.
    #[error(
        "etcd did not confirm within {after:?} that key {key} is deleted ({cause}); it is tried on, and the lease's end deletes it at the latest"
    )]
    Unconfirmed {
        /// Its key.
        key: String,
        /// How long it was waited for.
        after: Duration,
        /// How it stood last.
        cause: String,
    },
    /// A value that has no form in JSON.
    #[error("the value for key {key} cannot be written as JSON: {cause}")]
    Value {
        /// The key.
        key: String,
        /// What serde says.
        cause: String,
    },
}

/// Who holds a key; 0 is no lease.
pub(crate) fn held_by(key: &str, holder: i64) -> String {
    match holder {
        0 => format!("somebody else holds key {key}, without a lease"),
        lease => format!("somebody else holds key {key}, under lease {lease:x}"),
    }
}

pub(super) fn failed(key: &str, holder: i64) -> String {
    let remedy = match holder {
        0 => "delete it, or register another key",
        _ => "it goes with its holder; wait for that (IfHeld::Wait), or register another key",
    };
    format!("{}: {remedy}", held_by(key, holder))
}
