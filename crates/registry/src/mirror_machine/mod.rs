//! The mirror's decisions: how a copy of a prefix is kept in step with etcd. Pure: told the time, a random number and
//! what etcd said, it says what to do next.
//!
//! ```text
//!            +---- stream ended, cancelled or silent; request failed: wait (backoff), next endpoint ----+
//!            v                                                                                          |
//!   Down --Connect--> Ranging --last page: Synced--> Opening --Watch from R+1--> Opened --created--> Watching
//!                      ^  |  ^                          |                          |                    |
//!          next page,  +--+  +--------------------------+--------------------------+--------------------+
//!          at revision R        compacted, revision too small, another cluster: at once, same connection
//! ```
//!
//! * After any interruption the full state is fetched before anything is watched. A watch alone would not do: etcd may
//!   have been wiped meanwhile, and a watch from an old, larger revision waits for ever without a word.
//! * All pages are of the first one's revision R, and the watch begins at R+1: nothing is missed or seen twice.
//! * What the full state was fetched for is told from the cluster's id and the revision: another id, or a smaller
//!   revision than known before, means another history. The watch's first answer is held against R likewise: the
//!   connection may have been restored under way, to an etcd that was wiped.
//! * The revision comes from the last event, or from the header of a response without events; a header beside events
//!   may be ahead of them.
//! * A half-open connection looks idle. So etcd is asked for its progress when nothing happens, and a stream on which
//!   nothing comes back within the limit is dead.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    backoff::Backoff,
    mirror::{KeyValue, MirrorEvent, MirrorOptions, MirrorStatus, ResyncReason, range_start},
};

const RECONNECT_BASE: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// Fresh starts on one connection, before it is given up: something is wrong then.
const FRESH_STARTS: u32 = 3;
/// Beyond it nobody waits.
const LONGEST_SILENCE: Duration = Duration::from_secs(24 * 60 * 60);
/// Causes that are warned about until the mirror is in step again; each endpoint may have its own.
const WARNINGS: usize = 16;
/// A page that is late is not made smaller than that: then it is not its size.
const SMALLEST_LATE_PAGE: i64 = 50;

/// A page to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) from: Vec<u8>,
    /// 0: the present one.
    pub(crate) revision: i64,
    pub(crate) limit: i64,
}

/// A page that came.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) cluster_id: u64,
    pub(crate) revision: i64,
    pub(crate) more: bool,
    pub(crate) last_key: Vec<u8>,
    pub(crate) entries: Vec<Arc<KeyValue>>,
    /// Keys that are no UTF-8, with the revision of their last change.
    pub(crate) skipped: Vec<(Vec<u8>, i64)>,
}

/// Why no page came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RangeFailure {
    /// The revision is not kept any more.
    Compacted,
    /// The revision is not there yet: another history.
    Future,
    /// More bytes than are taken.
    TooLarge,
    /// No answer within this time.
    TimedOut(Duration),
    /// Anything else.
    Broken(String),
}

/// A change that the watch told of.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// Its bytes, where they are no UTF-8.
    pub(crate) key: Result<String, Vec<u8>>,
    /// `None`: deleted.
    pub(crate) put: Option<Arc<KeyValue>>,
    pub(crate) mod_revision: i64,
}

/// A message of the watch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    pub(crate) cluster_id: u64,
    pub(crate) revision: i64,
    pub(crate) created: bool,
    /// The reason, if it was cancelled.
    pub(crate) cancelled: Option<String>,
    pub(crate) compact_revision: i64,
    pub(crate) changes: Vec<Change>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Drop the connection; nothing until then.
    Wait(Instant),
    Connect,
    Range(Range),
    /// Open a watch from this revision.
    Watch {
        from: i64,
    },
    /// Wait for messages; ask for progress at one time, give the stream up at the other.
    Listen {
        ask_at: Instant,
        dead_at: Instant,
    },
}

#[derive(Debug)]
enum Phase {
    Down {
        retry_at: Instant,
    },
    Ranging(Ranging),
    /// The full state is delivered; the watch is to be opened.
    Opening,
    /// The watch is asked for, not yet confirmed.
    Opened {
        last_message: Instant,
    },
    Watching {
        last_message: Instant,
        asked_at: Instant,
    },
}

#[derive(Debug, Default)]
struct Ranging {
    /// Cluster and revision of the first page, and when it was asked for.
    first: Option<(u64, i64, Instant)>,
    entries: Vec<Arc<KeyValue>>,
    last_key: Vec<u8>,
    skipped: Vec<(Vec<u8>, i64)>,
}

#[derive(Debug)]
pub(crate) struct MirrorMachine {
    options: MirrorOptions,
    phase: Phase,
    endpoint: String,
    page_size: i64,
    /// Why the full state is being fetched, unless cluster or revision say more.
    hint: Option<ResyncReason>,
    fresh_starts: u32,
    backoff: Backoff,
    /// Causes warned about since the mirror was last in step.
    warned: BTreeSet<String>,
    /// Keys that are no UTF-8 as they are now, with the revision of their last change.
    skipped: HashMap<Vec<u8>, i64>,
    events: VecDeque<MirrorEvent>,
    status: MirrorStatus,
}

impl MirrorMachine {
    pub(crate) fn new(mut options: MirrorOptions, now: Instant) -> Self {
        options.silence_limit = options.silence_limit.min(LONGEST_SILENCE);
        options.page_size = options.page_size.max(1);
        Self {
            phase: Phase::Down { retry_at: now },
            endpoint: String::new(),
            page_size: options.page_size,
            hint: None,
            fresh_starts: 0,
            backoff: Backoff::new(RECONNECT_BASE, RECONNECT_MAX),
            warned: BTreeSet::new(),
            skipped: HashMap::new(),
            events: VecDeque::new(),
            status: MirrorStatus {
                synced: false,
                revision: 0,
                cluster_id: 0,
                last_contact: now,
                resyncs: ResyncReason::ALL.map(|reason| (reason, 0)),
                skipped_keys: 0,
                cause: None,
            },
            options,
        }
    }

    /// How the mirror stands, once every event taken is delivered.
    pub(crate) fn status(&self) -> &MirrorStatus {
        &self.status
    }

    /// The next event to deliver.
    pub(crate) fn take_event(&mut self) -> Option<MirrorEvent> {
        self.events.pop_front()
    }

    /// What to do now.
    pub(crate) fn next(&self, now: Instant) -> Step {
        match &self.phase {
            Phase::Down { retry_at } if now < *retry_at => Step::Wait(*retry_at),
            Phase::Down { .. } => Step::Connect,
            Phase::Ranging(ranging) => Step::Range(match ranging.first {
                None => Range { from: range_start(&self.options.prefix), revision: 0, limit: self.page_size },
                Some((_, revision, _)) => {
                    let mut from = ranging.last_key.clone();
                    from.push(0);
                    Range { from, revision, limit: self.page_size }
                }
            }),
            Phase::Opening => Step::Watch { from: self.status.revision + 1 },
            Phase::Opened { last_message } => {
                let dead_at = *last_message + self.options.silence_limit;
                Step::Listen { ask_at: dead_at, dead_at }
            }
            Phase::Watching { last_message, asked_at } => Step::Listen {
                // Twice within the limit at least, whatever was chosen.
                ask_at: *last_message.max(asked_at)
                    + self.options.progress_interval.min(self.options.silence_limit / 2),
                dead_at: *last_message + self.options.silence_limit,
            },
        }
    }

    /// A connection is there.
    pub(crate) fn connected(&mut self, endpoint: &str) {
        endpoint.clone_into(&mut self.endpoint);
        self.fresh_starts = 0;
        self.phase = Phase::Ranging(Ranging::default());
    }

    /// What was asked for did not come, or the stream ended. The next endpoint is tried.
    pub(crate) fn failed(&mut self, cause: String, now: Instant, random: f64) {
        let cause = if self.endpoint.is_empty() { cause } else { format!("etcd endpoint {}: {cause}", self.endpoint) };
        if self.is_news(&cause) {
            tracing::warn!(prefix = self.options.prefix, "mirror out of step: {cause}");
        } else {
            tracing::debug!(prefix = self.options.prefix, "mirror still out of step: {cause}");
        }
        self.endpoint.clear();
        self.status.synced = false;
        self.status.cause = Some(cause);
        self.phase = Phase::Down { retry_at: now + self.backoff.next(random) };
    }

    /// Whether nobody was told of this cause since the mirror was last in step.
    fn is_news(&mut self, cause: &str) -> bool {
        self.warned.len() < WARNINGS && self.warned.insert(cause.to_owned())
    }

    /// The full state at once, on the same connection.
    fn start_afresh(&mut self, hint: Option<ResyncReason>, cause: &str, now: Instant, random: f64) {
        self.hint = hint.or(self.hint);
        self.fresh_starts += 1;
        if self.fresh_starts > FRESH_STARTS {
            return self.failed(cause.to_owned(), now, random);
        }
        tracing::info!(prefix = self.options.prefix, "the full state is fetched again: {cause}");
        self.status.synced = false;
        self.status.cause = Some(cause.to_owned());
        self.phase = Phase::Ranging(Ranging::default());
    }

    /// The outcome of [`Step::Range`].
    pub(crate) fn ranged(&mut self, outcome: Result<Page, RangeFailure>, asked_at: Instant, now: Instant, random: f64) {
        match outcome {
            Ok(page) => self.page(page, asked_at, now, random),
            Err(RangeFailure::Compacted) => {
                let cause = "etcd compacted the revision while its pages were fetched";
                self.start_afresh(Some(ResyncReason::Compacted), cause, now, random);
            }
            Err(RangeFailure::Future) => {
                self.start_afresh(None, "etcd went back while its pages were fetched", now, random);
            }
            Err(RangeFailure::TooLarge) if self.page_size > 1 => self.page_size /= 2,
            Err(RangeFailure::TooLarge) => self.failed("a single key is too large".into(), now, random),
            Err(RangeFailure::TimedOut(limit)) => {
                self.page_size = (self.page_size / 2).max(self.page_size.min(SMALLEST_LATE_PAGE));
                self.failed(format!("no page within {limit:?}"), now, random);
            }
            Err(RangeFailure::Broken(cause)) => self.failed(cause, now, random),
        }
    }

    fn page(&mut self, page: Page, asked_at: Instant, now: Instant, random: f64) {
        let Phase::Ranging(ranging) = &mut self.phase else { return };
        let (cluster_id, revision, began_at) = *ranging.first.get_or_insert((page.cluster_id, page.revision, asked_at));
        if page.cluster_id != cluster_id || page.revision < revision {
            return self.start_afresh(None, "etcd was replaced while its pages were fetched", now, random);
        }
        ranging.skipped.extend(page.skipped);
        ranging.entries.extend(page.entries);
        if page.more && !page.last_key.is_empty() {
            ranging.last_key = page.last_key;
            return;
        }
        let entries = std::mem::take(&mut ranging.entries);
        let skipped: HashMap<_, _> = std::mem::take(&mut ranging.skipped).into_iter().collect();
        let news = skipped.iter().filter(|(key, revision)| self.skipped.get(*key) != Some(*revision));
        self.status.skipped_keys += news.count() as u64;
        self.skipped = skipped;
        let hint = self.hint.take().unwrap_or(ResyncReason::Reconnected);
        let reason = match &self.status {
            MirrorStatus { revision: 0, .. } => ResyncReason::First,
            known if known.cluster_id != cluster_id => ResyncReason::ClusterChanged,
            known if known.revision > revision => ResyncReason::RevisionRegressed,
            _ => hint,
        };
        for (counted, count) in &mut self.status.resyncs {
            *count += u64::from(*counted == reason);
        }
        tracing::info!(prefix = self.options.prefix, keys = entries.len(), revision, %reason, "full state");
        self.events.push_back(MirrorEvent::Synced { entries, reason });
        self.status.revision = revision;
        self.status.cluster_id = cluster_id;
        self.status.last_contact = began_at;
        self.page_size = self.page_size.saturating_mul(2).min(self.options.page_size);
        self.phase = Phase::Opening;
    }

    /// The watch is asked for.
    pub(crate) fn opened(&mut self, now: Instant) {
        self.phase = Phase::Opened { last_message: now };
    }

    /// Progress is asked for.
    pub(crate) fn asked(&mut self, now: Instant) {
        if let Phase::Watching { asked_at, .. } = &mut self.phase {
            *asked_at = now;
        }
    }

    /// The consumer took this long: time in which nobody listened.
    pub(crate) fn delayed(&mut self, delay: Duration) {
        if let Phase::Opened { last_message } | Phase::Watching { last_message, .. } = &mut self.phase {
            *last_message += delay;
        }
    }

    /// A message of the watch.
    pub(crate) fn received(&mut self, message: Message, now: Instant, random: f64) {
        if message.compact_revision > 0 {
            let cause = "etcd compacted revisions that were not seen yet";
            return self.start_afresh(Some(ResyncReason::Compacted), cause, now, random);
        }
        if let Some(reason) = message.cancelled {
            let reason = if reason.is_empty() { "no reason given" } else { reason.as_str() };
            return self.failed(format!("etcd cancelled the watch: {reason}"), now, random);
        }
        if message.cluster_id != self.status.cluster_id {
            return self.start_afresh(None, "another cluster answers", now, random);
        }
        match &mut self.phase {
            Phase::Opened { .. } if message.created => {
                if message.revision < self.status.revision {
                    return self.start_afresh(None, "etcd went back to an earlier revision", now, random);
                }
                self.status.synced = true;
                self.status.cause = None;
                self.phase = Phase::Watching { last_message: now, asked_at: now };
            }
            Phase::Watching { last_message, .. } => {
                *last_message = now;
                // It not only began, it goes on: from here the next failure is a new one.
                self.backoff.reset();
                self.warned.clear();
                self.fresh_starts = 0;
                self.status.last_contact = now;
                self.take_in(message);
            }
            _ => self.failed("etcd spoke out of turn".into(), now, random),
        }
    }

    fn take_in(&mut self, message: Message) {
        let Some(revision) = message.changes.iter().map(|change| change.mod_revision).max() else {
            self.status.revision = self.status.revision.max(message.revision);
            return;
        };
        self.status.revision = self.status.revision.max(revision);
        // Of several changes of one key the last one counts.
        let mut last: HashMap<&str, &Change> = HashMap::new();
        for change in &message.changes {
            match (&change.key, &change.put) {
                (Ok(key), _) => _ = last.insert(key, change),
                (Err(key), Some(put)) => {
                    self.skipped.insert(key.clone(), put.mod_revision);
                    self.status.skipped_keys += 1;
                }
                (Err(key), None) => _ = self.skipped.remove(key),
            }
        }
        let (mut puts, mut deletes) = (Vec::new(), Vec::new());
        for (key, change) in last {
            match &change.put {
                Some(put) => puts.push(Arc::clone(put)),
                None => deletes.push(key.to_owned()),
            }
        }
        if !(puts.is_empty() && deletes.is_empty()) {
            puts.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            deletes.sort_unstable();
            self.events.push_back(MirrorEvent::Changed { puts, deletes, revision });
        }
    }
}

/// The end of the range of keys that begin with `prefix`: the first key after them, or `\0` for "no end".
pub(crate) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}
