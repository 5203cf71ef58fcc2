//! The machine against a model of etcd with a history, compaction and wipes.

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::mirror::KeyValue;

fn options(page_size: i64) -> MirrorOptions {
    MirrorOptions { page_size, ..MirrorOptions::new("/p/") }
}

type State = BTreeMap<String, (i64, u8)>;

/// As much of etcd as the machine sees. `states[n]` is the state at revision n + 1.
struct Etcd {
    cluster_id: u64,
    states: Vec<State>,
    changes: Vec<Vec<Change>>,
    compacted: i64,
    /// Keys that are no UTF-8.
    foreign: Vec<(Vec<u8>, i64)>,
}

impl Etcd {
    fn new(cluster_id: u64) -> Self {
        Self { cluster_id, states: vec![State::new()], changes: vec![vec![]], compacted: 0, foreign: vec![] }
    }

    fn revision(&self) -> i64 {
        self.states.len() as i64
    }

    fn put(&mut self, key: &str, value: u8) {
        let mut state = self.states.last().unwrap().clone();
        let revision = self.revision() + 1;
        state.insert(key.into(), (revision, value));
        let change = Change { key: Ok(key.into()), put: Some(entry(key, value, revision)), mod_revision: revision };
        self.states.push(state);
        self.changes.push(vec![change]);
    }

    fn delete(&mut self, key: &str) {
        let mut state = self.states.last().unwrap().clone();
        if state.remove(key).is_some() {
            let change = Change { key: Ok(key.into()), put: None, mod_revision: self.revision() + 1 };
            self.states.push(state);
            self.changes.push(vec![change]);
        }
    }

    fn range(&self, range: &Range) -> Result<Page, RangeFailure> {
        let revision = if range.revision == 0 { self.revision() } else { range.revision };
        if revision < self.compacted {
            return Err(RangeFailure::Compacted);
        }
        let state = self.states.get(revision as usize - 1).ok_or(RangeFailure::Future)?;
        let from = String::from_utf8(range.from.clone()).unwrap();
        let mut rest = state.range(from..).filter(|(key, _)| key.starts_with("/p/"));
        let page: Vec<_> = rest.by_ref().take(range.limit as usize).collect();
        Ok(Page {
            cluster_id: self.cluster_id,
            revision: self.revision(),
            more: rest.next().is_some(),
            last_key: page.last().map(|(key, _)| key.as_bytes().to_vec()).unwrap_or_default(),
            entries: page.into_iter().map(|(key, (revision, value))| entry(key, *value, *revision)).collect(),
            skipped: self.foreign.clone(),
        })
    }

    fn message(&self) -> Message {
        Message { cluster_id: self.cluster_id, revision: self.revision(), ..Message::default() }
    }

    /// What a watch that stands at `next` says now.
    fn watch(&self, next: &mut i64) -> Message {
        if *next < self.compacted {
            return Message { compact_revision: self.compacted, cancelled: Some(String::new()), ..self.message() };
        }
        let news = self.changes.get(*next as usize - 1..).unwrap_or_default();
        let changes = news.iter().flatten().cloned().collect();
        *next = (*next).max(self.revision() + 1);
        Message { changes, ..self.message() }
    }
}

fn entry(key: &str, value: u8, mod_revision: i64) -> Arc<KeyValue> {
    Arc::new(KeyValue { key: key.into(), value: vec![value], mod_revision, create_revision: 1, lease: 0 })
}

/// The machine, what it is connected to, and a consumer.
struct Bench {
    machine: MirrorMachine,
    etcd: Etcd,
    watch: Option<(i64, bool)>,
    now: Instant,
    copy: State,
    reasons: Vec<ResyncReason>,
    /// Revision and key of each change since the last full state, but for refreshed ones.
    told: Vec<(i64, String)>,
    /// Full states beside the watch that were not what its events had made.
    differing_refreshes: usize,
    /// Whether a page beside the watch comes before the watch's next message.
    fetches_beside: bool,
}

impl Bench {
    fn new(page_size: i64) -> Self {
        Self::with(options(page_size))
    }

    fn with(options: MirrorOptions) -> Self {
        let now = Instant::now();
        Self {
            machine: MirrorMachine::new(options, now),
            etcd: Etcd::new(7),
            watch: None,
            now,
            copy: State::new(),
            reasons: vec![],
            told: vec![],
            differing_refreshes: 0,
            fetches_beside: true,
        }
    }

    /// One step with everything going well.
    fn step(&mut self) {
        self.now += Duration::from_millis(1);
        match self.machine.next(self.now) {
            Step::Wait(until) => self.now = until,
            Step::Connect => self.machine.connected("a:1"),
            Step::Range(range) => {
                self.watch = None;
                self.machine.ranged(self.etcd.range(&range), self.now, self.now, 0.5);
            }
            Step::Watch { from } => {
                self.watch = Some((from, true));
                self.machine.opened(self.now);
            }
            Step::Listen { beside: Beside::Page(range), .. } if self.fetches_beside => {
                self.machine.ranged(self.etcd.range(&range), self.now, self.now, 0.5);
            }
            Step::Listen { ask_at, .. } => {
                if ask_at <= self.now {
                    self.machine.asked(self.now);
                }
                let (next, fresh) = self.watch.as_mut().unwrap();
                let message = if std::mem::take(fresh) {
                    Message { created: true, ..self.etcd.message() }
                } else {
                    self.etcd.watch(next)
                };
                self.machine.received(message, self.now, 0.5);
            }
        }
        self.consume();
    }

    fn consume(&mut self) {
        while let Some(event) = self.machine.take_event() {
            match event {
                MirrorEvent::Synced { entries, reason, .. } => {
                    self.reasons.push(reason);
                    let before = std::mem::take(&mut self.copy);
                    self.copy = entries.iter().map(|e| (e.key.clone(), (e.mod_revision, e.value[0]))).collect();
                    match reason {
                        ResyncReason::Refreshed => self.differing_refreshes += usize::from(before != self.copy),
                        _ => self.told.clear(),
                    }
                }
                MirrorEvent::Changed { changes, revision } => {
                    assert_eq!(changes.last().unwrap().revision(), revision);
                    for change in changes {
                        let told = (change.revision(), change.key().to_owned());
                        assert!(self.told.last().is_none_or(|last| last.0 < told.0), "{told:?} after {:?}", self.told);
                        self.told.push(told);
                        match change {
                            KeyChange::Put(put) => {
                                self.copy.insert(put.key.clone(), (put.mod_revision, put.value[0]));
                            }
                            KeyChange::Delete { key, .. } => assert!(self.copy.remove(&key).is_some()),
                        }
                    }
                }
            }
        }
    }

    /// Goes on to when the full state is to be fetched beside the watch.
    fn refresh_is_due(&mut self) {
        let Step::Listen { beside: Beside::NothingUntil(due), .. } = self.machine.next(self.now) else {
            panic!("no refresh")
        };
        assert!((40..=61).contains(&(due - self.now).as_secs()), "{:?}", due - self.now);
        self.now = due;
    }

    /// A message of the watch, while a page is under way.
    fn without_pages(&mut self) {
        self.fetches_beside = false;
        self.step();
        self.fetches_beside = true;
    }

    fn cut(&mut self) {
        self.watch = None;
        self.machine.failed("cut".into(), self.now, 0.5);
    }

    fn in_step(&mut self) {
        for _ in 0..60 {
            self.step();
        }
        assert!(self.machine.status().synced, "{:?}", self.machine);
        assert_eq!(&self.copy, self.etcd.states.last().unwrap());
        assert_eq!(self.machine.status().revision, self.etcd.revision());
    }

    fn count(&self, reason: ResyncReason) -> u64 {
        self.machine.status().resyncs.iter().find(|(counted, _)| *counted == reason).unwrap().1
    }
}

#[test]
fn pages_are_of_one_revision_and_the_watch_begins_right_after_it() {
    let mut bench = Bench::new(10);
    for key in 0..95 {
        bench.etcd.put(&format!("/p/{key:03}"), 1);
    }
    bench.step();
    for page in 0..10 {
        let Step::Range(range) = bench.machine.next(bench.now) else { panic!("no page") };
        assert_eq!((range.limit, range.revision), (10, if page == 0 { 0 } else { 96 }));
        bench.step();
        // What is written meanwhile comes by the watch.
        bench.etcd.put("/p/000", 2);
        bench.etcd.delete("/p/090");
    }
    assert_eq!(bench.machine.next(bench.now), Step::Watch { from: 97 });
    assert_eq!(bench.copy.len(), 95);
    bench.in_step();
    assert_eq!(bench.reasons, [ResyncReason::First]);
}

#[test]
fn after_a_cut_the_full_state_comes_first() {
    let mut bench = Bench::new(10);
    bench.etcd.put("/p/a", 1);
    bench.in_step();
    bench.cut();
    assert!(!bench.machine.status().synced);
    bench.etcd.delete("/p/a");
    bench.etcd.put("/p/b", 1);
    bench.in_step();
    assert_eq!(bench.reasons, [ResyncReason::First, ResyncReason::Reconnected]);
}

#[test]
fn compaction_of_what_was_not_seen_is_made_good_at_once_on_the_same_connection() {
    let mut bench = Bench::new(10);
    bench.etcd.put("/p/a", 1);
    bench.in_step();
    bench.etcd.put("/p/a", 2);
    bench.etcd.put("/p/a", 3);
    bench.etcd.compacted = bench.etcd.revision();
    bench.step();
    assert!(matches!(bench.machine.next(bench.now), Step::Range(_)));
    bench.in_step();
    assert_eq!(bench.count(ResyncReason::Compacted), 1);
}

#[test]
fn compaction_between_two_pages_begins_the_pages_anew() {
    let mut bench = Bench::new(2);
    for key in 0..6 {
        bench.etcd.put(&format!("/p/{key}"), 1);
    }
    for _ in 0..2 {
        bench.step();
    }
    bench.etcd.put("/p/0", 2);
    bench.etcd.compacted = bench.etcd.revision();
    bench.in_step();
    assert_eq!(bench.reasons, [ResyncReason::First]);
}

#[test]
fn endless_compaction_ends_in_waiting_and_not_in_hammering() {
    let mut bench = Bench::new(2);
    bench.step();
    for _ in 0..FRESH_STARTS {
        assert!(matches!(bench.machine.next(bench.now), Step::Range(_)));
        bench.machine.ranged(Err(RangeFailure::Compacted), bench.now, bench.now, 0.5);
    }
    bench.machine.ranged(Err(RangeFailure::Compacted), bench.now, bench.now, 0.5);
    assert!(matches!(bench.machine.next(bench.now), Step::Wait(_)));
}

#[test]
fn a_wiped_etcd_and_another_cluster_are_told_from_a_mere_cut() {
    let mut bench = Bench::new(10);
    for value in 0..5 {
        bench.etcd.put("/p/a", value);
    }
    bench.in_step();
    bench.etcd = Etcd::new(7);
    bench.etcd.put("/p/b", 1);
    bench.cut();
    bench.in_step();
    bench.etcd = Etcd::new(8);
    for value in 0..9 {
        bench.etcd.put("/p/c", value);
    }
    bench.cut();
    bench.in_step();
    assert_eq!(bench.reasons, [ResyncReason::First, ResyncReason::RevisionRegressed, ResyncReason::ClusterChanged]);
}

#[test]
fn a_wipe_between_the_full_state_and_the_watch_is_noticed_by_the_watchs_first_answer() {
    let mut bench = Bench::new(10);
    for value in 0..5 {
        bench.etcd.put("/p/a", value);
    }
    while !matches!(bench.machine.next(bench.now), Step::Watch { .. }) {
        bench.step();
    }
    bench.etcd = Etcd::new(7);
    bench.in_step();
    assert_eq!(bench.reasons, [ResyncReason::First, ResyncReason::RevisionRegressed]);
}

#[test]
fn silence_is_broken_by_asking_and_then_taken_for_death() {
    let mut bench = Bench::new(10);
    bench.in_step();
    let heard = bench.now;
    let Step::Listen { ask_at, dead_at, .. } = bench.machine.next(bench.now) else { panic!("not listening") };
    assert_eq!((ask_at - heard, dead_at - heard), (Duration::from_secs(5), Duration::from_secs(12)));
    bench.machine.asked(ask_at);
    let Step::Listen { ask_at: again, dead_at: still, .. } = bench.machine.next(ask_at) else {
        panic!("not listening")
    };
    assert_eq!((again - ask_at, still), (Duration::from_secs(5), dead_at));
    assert_eq!(bench.machine.status().last_contact, heard);
}

#[test]
fn a_slow_consumer_is_not_taken_for_a_silent_etcd() {
    let mut bench = Bench::new(10);
    bench.in_step();
    bench.machine.delayed(Duration::from_secs(60));
    let Step::Listen { dead_at, .. } = bench.machine.next(bench.now) else { panic!("not listening") };
    assert_eq!(dead_at - bench.now, Duration::from_secs(72));
}

#[test]
fn waits_grow_while_nothing_works_and_begin_anew_once_the_watch_goes_on() {
    let mut bench = Bench::new(10);
    bench.in_step();
    let mut waits = Vec::new();
    for _ in 0..8 {
        bench.machine.failed("down".into(), bench.now, 1.0);
        let Step::Wait(until) = bench.machine.next(bench.now) else { panic!("no wait") };
        waits.push((until - bench.now).as_millis());
    }
    assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
    bench.in_step();
    bench.machine.failed("down".into(), bench.now, 1.0);
    assert_eq!(bench.machine.next(bench.now), Step::Wait(bench.now + RECONNECT_BASE));
    assert_eq!(bench.machine.status().cause.as_deref(), Some("etcd endpoint a:1: down"));
}

#[test]
fn every_change_of_a_message_is_told_in_etcds_order() {
    let mut bench = Bench::new(10);
    bench.in_step();
    bench.etcd.put("/p/b", 1);
    bench.etcd.put("/p/a", 1);
    bench.etcd.delete("/p/b");
    bench.etcd.put("/p/b", 2);
    bench.step();
    let told: Vec<_> = bench.told.iter().map(|(revision, key)| (*revision, key.as_str())).collect();
    assert_eq!(told, [(2, "/p/b"), (3, "/p/a"), (4, "/p/b"), (5, "/p/b")]);
}

fn refreshing() -> Bench {
    Bench::with(MirrorOptions { page_size: 2, refresh: Some(Duration::from_secs(60)), ..MirrorOptions::new("/p/") })
}

#[test]
fn the_full_state_is_fetched_at_the_interval_and_the_watch_goes_on_meanwhile() {
    let mut bench = refreshing();
    for key in 0..5 {
        bench.etcd.put(&format!("/p/{key}"), 1);
    }
    bench.in_step();
    bench.refresh_is_due();
    for revision in [0, 6, 6] {
        let Step::Listen { beside: Beside::Page(range), .. } = bench.machine.next(bench.now) else { panic!("no page") };
        assert_eq!((range.limit, range.revision), (2, revision));
        bench.step();
        bench.etcd.put("/p/0", 2);
        bench.etcd.delete("/p/4");
        bench.without_pages();
        assert_eq!(&bench.copy, bench.etcd.states.last().unwrap());
        assert!(bench.machine.status().synced);
    }
    bench.in_step();
    assert_eq!(bench.reasons, [ResyncReason::First, ResyncReason::Refreshed]);
    assert_eq!(bench.told.iter().map(|(revision, _)| *revision).collect::<Vec<_>>(), [7, 8, 9, 10]);
    assert_eq!(bench.differing_refreshes, 0);
    assert!(matches!(bench.machine.next(bench.now), Step::Listen { beside: Beside::NothingUntil(_), .. }));
}

#[test]
fn a_full_state_that_the_watch_has_not_come_to_waits_for_it() {
    let mut bench = refreshing();
    bench.etcd.put("/p/a", 1);
    bench.in_step();
    bench.refresh_is_due();
    bench.etcd.put("/p/a", 2);
    bench.step();
    assert_eq!(bench.reasons, [ResyncReason::First]);
    let Step::Listen { ask_at, .. } = bench.machine.next(bench.now) else { panic!("not listening") };
    assert_eq!(ask_at, bench.now, "etcd is asked at once how far the watch is");
    // The next message holds changes before and after the full state.
    bench.etcd.put("/p/a", 3);
    bench.etcd.delete("/p/a");
    bench.step();
    assert_eq!(bench.reasons, [ResyncReason::First, ResyncReason::Refreshed]);
    assert_eq!((bench.differing_refreshes, bench.told.len()), (0, 3));
    bench.in_step();
}

#[test]
fn what_the_watch_missed_comes_with_the_next_full_state() {
    let mut bench = refreshing();
    bench.etcd.put("/p/a", 1);
    bench.in_step();
    bench.etcd.put("/p/a", 2);
    bench.etcd.put("/p/b", 1);
    // The watch skips a change, as none should.
    bench.watch.as_mut().unwrap().0 = 4;
    bench.step();
    assert_eq!(bench.copy["/p/a"], (2, 1));
    bench.refresh_is_due();
    bench.in_step();
    assert_eq!(bench.copy["/p/a"], (3, 2));
    assert_eq!((bench.differing_refreshes, bench.count(ResyncReason::Refreshed)), (1, 1));
}

#[test]
fn a_change_that_comes_after_the_full_state_that_contains_it_is_not_told_again() {
    let mut bench = refreshing();
    bench.etcd.put("/p/a", 1);
    bench.in_step();
    bench.refresh_is_due();
    bench.etcd.put("/p/a", 2);
    bench.etcd.put("/p/a", 3);
    bench.step();
    // etcd says that the watch is there, and it is not.
    let early = Message { ..bench.etcd.message() };
    bench.machine.received(early, bench.now, 0.5);
    bench.consume();
    assert_eq!(bench.copy["/p/a"], (4, 3));
    bench.in_step();
    assert_eq!(bench.told, []);
}

#[test]
fn pages_beside_the_watch_that_are_compacted_away_leave_the_watch_alone() {
    let mut bench = refreshing();
    bench.in_step();
    bench.refresh_is_due();
    bench.machine.ranged(Err(RangeFailure::Compacted), bench.now, bench.now, 0.5);
    assert!(bench.machine.status().synced);
    assert!(matches!(bench.machine.next(bench.now), Step::Listen { beside: Beside::NothingUntil(_), .. }));
    // Any other failure is one of the connection.
    bench.refresh_is_due();
    bench.machine.ranged(Err(RangeFailure::Broken("gone".into())), bench.now, bench.now, 0.5);
    assert!(matches!(bench.machine.next(bench.now), Step::Wait(_)));
}

#[test]
fn another_cluster_that_answers_beside_the_watch_is_noticed() {
    let mut bench = refreshing();
    bench.etcd.put("/p/a", 1);
    bench.in_step();
    bench.refresh_is_due();
    bench.etcd = Etcd::new(8);
    bench.step();
    bench.in_step();
    assert_eq!(bench.reasons, [ResyncReason::First, ResyncReason::ClusterChanged]);
}

#[test]
fn pages_shrink_when_they_are_too_large_or_late_and_grow_again() {
    let mut bench = Bench::new(1000);
    bench.step();
    bench.machine.ranged(Err(RangeFailure::TooLarge), bench.now, bench.now, 0.5);
    let Step::Range(range) = bench.machine.next(bench.now) else { panic!("no page") };
    assert_eq!(range.limit, 500);
    for _ in 0..10 {
        bench.machine.connected("a:1");
        bench.machine.ranged(Err(RangeFailure::TimedOut(Duration::from_secs(3))), bench.now, bench.now, 0.5);
    }
    bench.machine.connected("a:1");
    let Step::Range(range) = bench.machine.next(bench.now) else { panic!("no page") };
    assert_eq!(range.limit, 50);
    bench.in_step();
    bench.cut();
    bench.machine.connected("a:1");
    let Step::Range(range) = bench.machine.next(bench.now) else { panic!("no page") };
    assert_eq!(range.limit, 100);
}

#[test]
fn keys_that_are_no_utf8_are_counted_once_however_often_the_full_state_is_fetched() {
    let mut bench = Bench::new(10);
    bench.etcd.foreign = vec![(vec![0xff], 1), (vec![0xfe], 1)];
    bench.in_step();
    assert_eq!(bench.machine.status().skipped_keys, 2);
    bench.cut();
    bench.in_step();
    assert_eq!(bench.machine.status().skipped_keys, 2);
    let put = |revision| Change { key: Err(vec![0xff]), put: Some(entry("?", 1, revision)), mod_revision: revision };
    let message = Message { changes: vec![put(2)], revision: 2, ..bench.etcd.message() };
    bench.machine.received(message, bench.now, 0.5);
    assert_eq!(bench.machine.status().skipped_keys, 3);
    bench.etcd.put("/p/a", 1);
    bench.etcd.foreign = vec![(vec![0xff], 2)];
    bench.cut();
    bench.in_step();
    assert_eq!(bench.machine.status().skipped_keys, 3);
}

#[test]
fn each_cause_is_news_once_until_the_mirror_was_in_step_again() {
    let mut bench = Bench::new(10);
    assert!(bench.machine.is_news("a is down") && bench.machine.is_news("b is down"));
    assert!(!bench.machine.is_news("a is down") && !bench.machine.is_news("b is down"));
    bench.in_step();
    assert!(bench.machine.is_news("a is down"));
    for cause in 0..WARNINGS * 2 {
        bench.machine.is_news(&cause.to_string());
    }
    assert_eq!(bench.machine.warned.len(), WARNINGS, "causes that never repeat do not fill the log");
}

#[test]
fn the_end_of_a_prefix_is_the_first_key_after_it() {
    assert_eq!(prefix_end(b"/a/"), b"/a0");
    assert_eq!(prefix_end(b"a\xff\xff"), b"b");
    assert_eq!(prefix_end(b"\xff"), [0]);
    assert_eq!(prefix_end(b""), [0]);
}

#[derive(Clone, Debug)]
enum Event {
    Step,
    /// A step during which no page comes.
    WithoutPages,
    Later,
    Put(u8, u8),
    Delete(u8),
    Compact,
    Cut,
    Wipe,
    OtherCluster,
    Cancelled,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => Just(Event::Step),
        3 => Just(Event::WithoutPages),
        3 => Just(Event::Later),
        4 => (0u8..9, any::<u8>()).prop_map(|(key, value)| Event::Put(key, value)),
        2 => (0u8..9).prop_map(Event::Delete),
        1 => Just(Event::Compact),
        1 => Just(Event::Cut),
        1 => Just(Event::Wipe),
        1 => Just(Event::OtherCluster),
        1 => Just(Event::Cancelled),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_copy_ends_up_as_etcd_is(
        page_size in 1i64..5,
        refreshes: bool,
        events in prop::collection::vec(event(), 1..150),
    ) {
        let refresh = refreshes.then_some(Duration::from_secs(1));
        let mut bench = Bench::with(MirrorOptions { refresh, ..options(page_size) });
        for event in events {
            match event {
                Event::Step => bench.step(),
                Event::WithoutPages => bench.without_pages(),
                Event::Later => bench.now += Duration::from_millis(700),
                Event::Put(key, value) => bench.etcd.put(&format!("/p/{key}"), value),
                Event::Delete(key) => bench.etcd.delete(&format!("/p/{key}")),
                Event::Compact => bench.etcd.compacted = bench.etcd.revision(),
                Event::Cut => bench.cut(),
                // Whoever replaces etcd cuts its connections, and none is restored unnoticed.
                Event::Wipe => {
                    bench.etcd = Etcd::new(bench.etcd.cluster_id);
                    bench.cut();
                }
                Event::OtherCluster => {
                    bench.etcd = Etcd::new(bench.etcd.cluster_id + 1);
                    bench.cut();
                }
                Event::Cancelled => {
                    let message = Message { cancelled: Some("no leader".into()), ..bench.etcd.message() };
                    if bench.watch.is_some() { bench.machine.received(message, bench.now, 0.5) }
                }
            }
        }
        bench.in_step();
        prop_assert_eq!(bench.differing_refreshes, 0);
    }
}
