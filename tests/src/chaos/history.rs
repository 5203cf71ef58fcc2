//! A run's record: what was intended, what etcd itself said, and what everybody else said, in one order of time.
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// A key of etcd.
pub type Key = String;

/// A key as etcd held it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// Its value, as text.
    pub value: String,
    /// Its lease; 0 if it has none.
    pub lease: i64,
    /// Revision of its last change.
    pub revision: i64,
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It was put.
    Put(Entry),
    /// It is gone.
    Deleted {
        /// The key.
        key: Key,
        /// In which revision.
        revision: i64,
    },
}

impl Change {
    /// The key.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Deleted { key, .. } => key,
        }
    }

    /// The revision that it led to.
    pub fn revision(&self) -> i64 {
        match self {
            Self::Put(entry) => entry.revision,
            Self::Deleted { revision, .. } => *revision,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(Entry { key, value, revision, .. }) => write!(f, "put of {key} as {value:?} in {revision}"),
            Self::Deleted { key, revision } => write!(f, "end of {key} in {revision}"),
        }
    }
}

/// What an owner wants a key to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// Not there.
    Absent,
    /// There, under a lease, with this value.
    Value(String),
    /// There, under a lease, as a passing node in Waypost's own format.
    Node {
        /// Where it is reached.
        address: SocketAddr,
        /// Its weight.
        weight: u32,
    },
}

impl Wanted {
    /// Whether that is what etcd holds.
    pub fn is_met_by(&self, found: Option<&Entry>) -> bool {
        match (self, found) {
            (Self::Absent, found) => found.is_none(),
            (_, None) => false,
            (Self::Value(value), Some(found)) => found.lease != 0 && found.value == *value,
            (Self::Node { address, weight }, Some(found)) => {
                let node = Node::read(&found.value);
                found.lease != 0
                    && node.is_some_and(|node| {
                        node.address == *address && node.weight == *weight && node.health == "passing"
                    })
            }
        }
    }
}

/// What the checker reads of a node in Waypost's own format: on its own, apart from the code that is tested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it is reached.
    pub address: SocketAddr,
    /// Its weight.
    pub weight: u32,
    /// Its health.
    pub health: String,
}

impl Node {
    /// The node of a value, if it is one.
    pub fn read(value: &str) -> Option<Self> {
        let value: serde_json::Value = serde_json::from_str(value).ok()?;
        let port = u16::try_from(value.get("port")?.as_u64()?).ok()?;
        let weight = value.get("weight").map_or(Some(1), serde_json::Value::as_u64)?;
        let health = value.get("health").map_or(Some("passing"), serde_json::Value::as_str)?;
        Some(Self {
            address: SocketAddr::new(value.get("address")?.as_str()?.parse().ok()?, port),
            weight: u32::try_from(weight).ok()?,
            health: health.to_owned(),
        })
    }
}

/// One thing that happened.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum What {
    /// What the runner does, for the reader.
    Note {
        /// In words.
        text: String,
    },
    /// An owner wants a key to be so from now on.
    Intended {
        /// Who.
        owner: String,
        /// Which.
        key: Key,
        /// How.
        wanted: Wanted,
    },
    /// An owner runs from now on, or does not: killed, or frozen.
    Alive {
        /// Who.
        owner: String,
        /// Whether it runs.
        alive: bool,
    },
    /// An owner can reach etcd from now on, or cannot.
    Linked {
        /// Who.
        owner: String,
        /// Whether it can.
        linked: bool,
        /// How long what was under way on a link that swallowed it may take to be given up.
        #[serde(serialize_with = "seconds")]
        grace: Duration,
    },
    /// etcd answers from now on, or does not. When it begins to, every lease starts anew.
    Answering {
        /// Whether it does.
        answering: bool,
    },
    /// Somebody else is about to write a key, or to delete it.
    Foreign {
        /// Which.
        key: Key,
        /// What.
        value: Option<String>,
    },
    /// What etcd says from here on begins with this; there is no going on from what it said before.
    Epoch {
        /// The state's revision; 0 if it is the beginning of everything.
        revision: i64,
        /// Every key.
        entries: Vec<Entry>,
    },
    /// etcd says that a key changed.
    Said {
        /// How.
        change: Change,
    },
    /// A mirror tells its consumer, or a subscriber is told, the full state.
    Told {
        /// Which mirror.
        observer: String,
        /// Every key.
        entries: Vec<Entry>,
        /// At which revision.
        revision: i64,
        /// Why.
        reason: String,
    },
    /// A subscriber is told what a key was before the change that he is told of next.
    ToldOld {
        /// Which subscriber.
        observer: String,
        /// Which key.
        key: Key,
        /// `None`: it was not there.
        old: Option<Entry>,
    },
    /// What changed since is told.
    ToldChanges {
        /// Which mirror.
        observer: String,
        /// In its order.
        changes: Vec<Change>,
    },
    /// The catalog of an agent is another one than when it was last looked at.
    Catalog {
        /// Which agent.
        agent: String,
        /// Addresses of each service.
        services: BTreeMap<String, Vec<SocketAddr>>,
    },
}

/// What happened, and when.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// Since the beginning.
    #[serde(serialize_with = "seconds")]
    pub at: Duration,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// A whole run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct History {
    /// Everybody who registers, and the time to live of the keys.
    pub owners: BTreeMap<String, Duration>,
    /// Every mirror, and its prefix.
    pub observers: BTreeMap<String, String>,
    /// Agents whose catalogs are recorded; all of them mirror [`SERVICES`].
    pub agents: Vec<String>,
    /// What happened, in order of time.
    pub records: Vec<Record>,
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

/// Where the nodes are that agents serve.
pub const SERVICES: &str = "/waypost/services/";

impl History {
    /// One JSON object a line: first who takes part, then each record.
    pub fn write(&self, mut to: impl std::io::Write) -> std::io::Result<()> {
        let head = serde_json::json!({ "owners": self.owners, "observers": self.observers, "agents": self.agents });
        writeln!(to, "{head}")?;
        for record in &self.records {
            serde_json::to_writer(&mut to, record)?;
            writeln!(to)?;
        }
        to.flush()
    }
}

/// The history while it is written, by many at once.
#[derive(Debug, Clone)]
pub struct Log {
    started: Instant,
    history: Arc<Mutex<History>>,
}

impl Default for Log {
    fn default() -> Self {
        Self { started: Instant::now(), history: Arc::default() }
    }
}

impl Log {
    /// Adds what happens now.
    pub fn add(&self, what: What) {
        let mut history = self.lock();
        // Under the lock: the records are in order of time.
        let at = self.started.elapsed();
        history.records.push(Record { at, what });
    }

    /// Adds a remark for the reader.
    pub fn note(&self, text: impl Into<String>) {
        self.add(What::Note { text: text.into() });
    }

    /// Names somebody who registers.
    pub fn owner(&self, name: &str, ttl: Duration) {
        self.lock().owners.insert(name.to_owned(), ttl);
    }

    /// Names a mirror.
    pub fn observer(&self, name: &str, prefix: &str) {
        self.lock().observers.insert(name.to_owned(), prefix.to_owned());
    }

    /// Names an agent whose catalog is recorded.
    pub fn agent(&self, name: &str) {
        self.lock().agents.push(name.to_owned());
    }

    /// The history up to now.
    pub fn history(&self) -> History {
        self.lock().clone()
    }

    /// Looks at the history without copying it.
    pub fn read<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
