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
//! * Where it is asked for, the full state is fetched from time to time beside the watch, which goes on meanwhile. It
//!   is handed over once the watch has come to its revision, with what the watch told beyond it put on top: whoever
//!   compares it with what he has finds a difference only if the watch had missed something.

mod exchange;
mod ranging;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

pub(crate) use exchange::{Beside, Change, Message, Page, Range, RangeFailure, Step};
use ranging::{Collected, FullState, Ranging};

use crate::{
    backoff::Backoff,
    mirror::{KeyChange, MirrorEvent, MirrorOptions, MirrorStatus, ResyncReason},
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
/// The full state is not fetched more often than that, whatever was chosen.
const SHORTEST_REFRESH: Duration = Duration::from_secs(1);

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
        refresh: Refresh,
    },
}

/// The full state that is fetched beside the watch.
#[derive(Debug)]
enum Refresh {
    Never,
    DueAt(Instant),
    Fetching {
        ranging: Ranging,
        /// The revision that etcd had come to before it was asked.
        floor: i64,
        /// What the watch told since.
        told: Vec<KeyChange>,
    },
    /// It is there, and waits for the watch to come to its revision.
    Fetched {
        state: FullState,
        /// Whether etcd was asked how far the watch is.
        asked: bool,
    },
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
    /// Revision of the last full state that was handed over: earlier changes are in it.
    full_at: i64,
    events: VecDeque<MirrorEvent>,
    status: MirrorStatus,
}

impl MirrorMachine {
    pub(crate) fn new(mut options: MirrorOptions, now: Instant) -> Self {
        options.silence_limit = options.silence_limit.min(LONGEST_SILENCE);
        options.page_size = options.page_size.max(1);
        options.refresh = options.refresh.map(|interval| interval.clamp(SHORTEST_REFRESH, LONGEST_SILENCE));
        Self {
            phase: Phase::Down { retry_at: now },
            endpoint: String::new(),
            page_size: options.page_size,
            hint: None,
            fresh_starts: 0,
            backoff: Backoff::new(RECONNECT_BASE, RECONNECT_MAX),
            warned: BTreeSet::new(),
            skipped: HashMap::new(),
            full_at: 0,
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
            Phase::Ranging(ranging) => Step::Range(ranging.next_page(&self.options, self.page_size)),
            Phase::Opening => Step::Watch { from: self.status.revision + 1 },
            Phase::Opened { last_message } => {
                let dead_at = *last_message + self.options.silence_limit;
                Step::Listen { ask_at: dead_at, dead_at, beside: Beside::Nothing }
            }
            Phase::Watching { last_message, asked_at, refresh } => {
                let first_page = || Ranging::default().next_page(&self.options, self.page_size);
                let (beside, ask_now) = match refresh {
                    Refresh::Never => (Beside::Nothing, false),
                    Refresh::DueAt(due) if now < *due => (Beside::NothingUntil(*due), false),
                    Refresh::DueAt(_) => (Beside::Page(first_page()), false),
                    Refresh::Fetching { ranging, .. } => {
                        (Beside::Page(ranging.next_page(&self.options, self.page_size)), false)
                    }
                    Refresh::Fetched { asked, .. } => (Beside::Nothing, !asked),
                };
                // Twice within the limit at least, whatever was chosen.
                let interval = self.options.progress_interval.min(self.options.silence_limit / 2);
                Step::Listen {
                    ask_at: if ask_now { now } else { *last_message.max(asked_at) + interval },
                    dead_at: *last_message + self.options.silence_limit,
                    beside,
                }
            }
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

    /// The outcome of [`Step::Range`] or of [`Beside::Page`].
    pub(crate) fn ranged(&mut self, outcome: Result<Page, RangeFailure>, asked_at: Instant, now: Instant, random: f64) {
        match outcome {
            Ok(page) => self.page(page, asked_at, now, random),
            // The watch still lives: another time will do.
            Err(RangeFailure::Compacted) if matches!(self.phase, Phase::Watching { .. }) => {
                tracing::debug!(prefix = self.options.prefix, "the full state beside the watch was compacted away");
                let later = self.next_refresh(now, random);
                if let Phase::Watching { refresh, .. } = &mut self.phase {
                    *refresh = later;
                }
            }
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
        self.begin_refresh(now);
        let cluster_id = self.status.cluster_id;
        let collected = match &mut self.phase {
            Phase::Ranging(ranging) => ranging.collect(page, asked_at),
            Phase::Watching { refresh: Refresh::Fetching { ranging, floor, .. }, .. } => {
                if page.cluster_id != cluster_id || page.revision < *floor {
                    Collected::Replaced
                } else {
                    ranging.collect(page, asked_at)
                }
            }
            _ => return,
        };
        match collected {
            Collected::Part => return,
            Collected::Replaced => {
                return self.start_afresh(None, "etcd was replaced while its pages were fetched", now, random);
            }
            Collected::All(state) if matches!(self.phase, Phase::Watching { .. }) => self.refreshed(state, now, random),
            Collected::All(state) => self.fetched(state),
        }
        self.page_size = self.page_size.saturating_mul(2).min(self.options.page_size);
    }

    fn fetched(&mut self, state: FullState) {
        let hint = self.hint.take().unwrap_or(ResyncReason::Reconnected);
        let reason = match &self.status {
            MirrorStatus { revision: 0, .. } => ResyncReason::First,
            known if known.cluster_id != state.cluster_id => ResyncReason::ClusterChanged,
            known if known.revision > state.revision => ResyncReason::RevisionRegressed,
            _ => hint,
        };
        let (keys, revision) = (state.entries.len(), state.revision);
        tracing::info!(prefix = self.options.prefix, keys, revision, %reason, "full state");
        self.status.revision = state.revision;
        self.status.cluster_id = state.cluster_id;
        self.status.last_contact = state.began_at;
        self.phase = Phase::Opening;
        self.hand_over(state, reason);
    }

    fn hand_over(&mut self, state: FullState, reason: ResyncReason) {
        let news = state.skipped.iter().filter(|(key, revision)| self.skipped.get(*key) != Some(*revision));
        self.status.skipped_keys += news.count() as u64;
        self.skipped = state.skipped;
        self.full_at = state.revision;
        for (counted, count) in &mut self.status.resyncs {
            *count += u64::from(*counted == reason);
        }
        self.events.push_back(MirrorEvent::Synced { entries: state.entries, revision: state.revision, reason });
    }

    /// Spread a little, so that those who started together do not all ask together.
    fn next_refresh(&self, now: Instant, random: f64) -> Refresh {
        let spread = |interval: Duration| Refresh::DueAt(now + interval.mul_f64(0.9 + 0.2 * random));
        self.options.refresh.map_or(Refresh::Never, spread)
    }

    fn begin_refresh(&mut self, now: Instant) {
        if let Phase::Watching { refresh, .. } = &mut self.phase
            && matches!(refresh, Refresh::DueAt(due) if *due <= now)
        {
            *refresh = Refresh::Fetching { ranging: Ranging::default(), floor: self.status.revision, told: Vec::new() };
        }
    }

    fn refreshed(&mut self, mut state: FullState, now: Instant, random: f64) {
        let next = self.next_refresh(now, random);
        let Phase::Watching { refresh, .. } = &mut self.phase else { return };
        let Refresh::Fetching { told, .. } = std::mem::replace(refresh, next) else { return };
        let told_beyond = state.put_on_top(told);
        if told_beyond || self.status.revision >= state.revision {
            self.hand_over(state, ResyncReason::Refreshed);
        } else {
            *refresh = Refresh::Fetched { state, asked: false };
        }
    }

    /// The watch is asked for.
    pub(crate) fn opened(&mut self, now: Instant) {
        self.phase = Phase::Opened { last_message: now };
    }

    /// Progress is asked for.
    pub(crate) fn asked(&mut self, now: Instant) {
        if let Phase::Watching { asked_at, refresh, .. } = &mut self.phase {
            *asked_at = now;
            if let Refresh::Fetched { asked, .. } = refresh {
                *asked = true;
            }
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
        let refresh = self.next_refresh(now, random);
        self.begin_refresh(now);
        match &mut self.phase {
            Phase::Opened { .. } if message.created => {
                if message.revision < self.status.revision {
                    return self.start_afresh(None, "etcd went back to an earlier revision", now, random);
                }
                self.status.synced = true;
                self.status.cause = None;
                self.phase = Phase::Watching { last_message: now, asked_at: now, refresh };
            }
            Phase::Watching { last_message, .. } => {
                *last_message = now;
                // It not only began, it goes on: from here the next failure is a new one.
                self.backoff.reset();
                self.warned.clear();
                self.fresh_starts = 0;
                self.status.last_contact = now;
                self.take_in(message, refresh);
            }
            _ => self.failed("etcd spoke out of turn".into(), now, random),
        }
    }

    /// Takes in what a message tells; a full state that was fetched beside the watch comes in its place.
    fn take_in(&mut self, message: Message, next_refresh: Refresh) {
        let told = message.changes.iter().map(|change| change.mod_revision).max();
        let reached = told.unwrap_or(message.revision);
        self.status.revision = self.status.revision.max(reached);
        let mut changes = message.changes;
        let mut later = Vec::new();
        if let Phase::Watching { refresh: refresh @ Refresh::Fetched { .. }, .. } = &mut self.phase
            && let Refresh::Fetched { state, .. } = refresh
            // Only a later change says that those up to this revision are complete.
            && (reached > state.revision || told.is_none() && reached == state.revision)
            && let Refresh::Fetched { state, .. } = std::mem::replace(refresh, next_refresh)
        {
            later = changes.split_off(changes.partition_point(|change| change.mod_revision <= state.revision));
            self.changed(std::mem::take(&mut changes));
            self.hand_over(state, ResyncReason::Refreshed);
        }
        self.changed(changes);
        self.changed(later);
    }

    fn changed(&mut self, changes: Vec<Change>) {
        let mut told = Vec::with_capacity(changes.len());
        // What the full state contains came late; etcd's early releases can say how far they are too soon.
        for change in changes.into_iter().filter(|change| change.mod_revision > self.full_at) {
            match (change.key, change.put) {
                (Ok(_), Some(put)) => told.push(KeyChange::Put(put)),
                (Ok(key), None) => told.push(KeyChange::Delete { key, revision: change.mod_revision }),
                (Err(key), Some(put)) => {
                    self.skipped.insert(key, put.mod_revision);
                    self.status.skipped_keys += 1;
                }
                (Err(key), None) => _ = self.skipped.remove(&key),
            }
        }
        if let Phase::Watching { refresh: Refresh::Fetching { told: since, .. }, .. } = &mut self.phase {
            since.extend_from_slice(&told);
        }
        if let Some(last) = told.last() {
            let revision = last.revision();
            self.events.push_back(MirrorEvent::Changed { changes: told, revision });
        }
    }
}

/// etcd takes no empty key: the first one possible stands for it.
pub(crate) fn range_start(prefix: &str) -> Vec<u8> {
    if prefix.is_empty() { vec![0] } else { prefix.as_bytes().to_vec() }
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
