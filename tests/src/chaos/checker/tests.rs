//! Each rule holds on a history where all went well, and is broken on one where just that went wrong.
use std::time::Duration;

use super::{Rule, Verdict, check};
use crate::chaos::history::{Change, Entry, History, Record, Wanted, What};

const TTL: Duration = Duration::from_secs(3);
const OWN: &str = "/waypost/services/web/a";

/// A history that is written by hand.
struct Told(History, Duration);

impl Told {
    /// etcd answers from 0 s on and is empty; one owner, one mirror, one agent.
    fn new() -> Self {
        let mut history = History::default();
        history.owners.insert("owner".into(), TTL);
        history.observers.insert("mirror".into(), "/waypost/".into());
        history.agents.push("agent".into());
        Self(history, Duration::ZERO).add(epoch(0, &[])).add(What::Answering { answering: true })
    }

    /// Later than everything up to now.
    fn at(mut self, seconds: f64) -> Self {
        self.1 = Duration::from_secs_f64(seconds);
        self
    }

    fn add(mut self, what: What) -> Self {
        self.0.records.push(Record { at: self.1, what });
        self
    }

    /// The owner wants its key to be so.
    fn wants(self, value: Option<&str>) -> Self {
        let wanted = value.map_or(Wanted::Absent, |value| Wanted::Value(value.into()));
        self.add(What::Intended { owner: "owner".into(), key: OWN.into(), wanted })
    }

    /// etcd has it, and the mirror tells of it.
    fn put(self, key: &str, value: &str, revision: i64) -> Self {
        self.said(put(key, value, revision)).told(&[put(key, value, revision)])
    }

    fn delete(self, key: &str, revision: i64) -> Self {
        self.said(deleted(key, revision)).told(&[deleted(key, revision)])
    }

    fn said(self, change: Change) -> Self {
        self.add(What::Said { change })
    }

    fn told<'a>(self, changes: impl IntoIterator<Item = &'a Change>) -> Self {
        self.add(What::ToldChanges { observer: "mirror".into(), changes: changes.into_iter().cloned().collect() })
    }

    /// The full state at the revision of its newest key.
    fn full(self, entries: &[(&str, &str, i64)]) -> Self {
        self.full_at(entries.iter().map(|(_, _, revision)| *revision).max().unwrap_or(1), entries)
    }

    fn full_at(self, revision: i64, entries: &[(&str, &str, i64)]) -> Self {
        let entries = entries.iter().map(|(key, value, revision)| entry(key, value, *revision)).collect();
        self.add(What::Told { observer: "mirror".into(), entries, revision, reason: "first".into() })
    }

    fn foreign(self, key: &str, value: Option<&str>) -> Self {
        self.add(What::Foreign { key: key.into(), value: value.map(Into::into) })
    }

    fn alive(self, alive: bool) -> Self {
        self.add(What::Alive { owner: "owner".into(), alive })
    }

    fn answering(self, answering: bool) -> Self {
        self.add(What::Answering { answering })
    }

    fn serves(self, nodes: &[&str]) -> Self {
        let nodes = nodes.iter().map(|node| node.parse().unwrap()).collect();
        self.add(What::Catalog { agent: "agent".into(), services: [("web".to_owned(), nodes)].into() })
    }

    fn verdict(&self) -> Verdict {
        check(&self.0)
    }

    fn holds(&self) {
        let violations = self.verdict().violations;
        assert!(violations.is_empty(), "{violations:?}");
    }

    /// This rule is broken, and no other.
    fn breaks(&self, rule: Rule) {
        let violations = self.verdict().violations;
        assert!(!violations.is_empty(), "nothing was found");
        assert!(violations.iter().all(|violation| violation.rule == rule), "{violations:?}");
    }
}

fn entry(key: &str, value: &str, revision: i64) -> Entry {
    Entry { key: key.into(), value: value.into(), lease: 7, revision }
}

fn put(key: &str, value: &str, revision: i64) -> Change {
    Change::Put(entry(key, value, revision))
}

fn deleted(key: &str, revision: i64) -> Change {
    Change::Deleted { key: key.into(), revision }
}

fn epoch(revision: i64, entries: &[(&str, &str, i64)]) -> What {
    let entries = entries.iter().map(|(key, value, revision)| entry(key, value, *revision)).collect();
    What::Epoch { revision, entries }
}

fn node(port: u16) -> String {
    format!(r#"{{"address":"127.0.0.1","port":{port},"health":"passing"}}"#)
}

/// A key that its owner wants is there from 1 s on, and mirror and catalog have it.
fn registered() -> Told {
    Told::new().full(&[]).at(1.0).wants(Some(&node(1))).put(OWN, &node(1), 2).serves(&["127.0.0.1:1"])
}

#[test]
fn a_run_in_which_nothing_goes_wrong_holds() {
    let run = registered().at(9.0).wants(Some(&node(2))).at(9.5).put(OWN, &node(2), 3).serves(&["127.0.0.1:2"]);
    run.holds();
    let verdict = run.verdict();
    assert_eq!(verdict.back.map(|span| span.took), Some(Duration::from_millis(500)));
    assert_eq!((verdict.told, verdict.unverified), (2, 0));
}

#[test]
fn a_key_that_is_back_within_a_third_of_its_ttl_and_a_second_holds_and_later_does_not() {
    let lost = || registered().at(5.0).foreign(OWN, None).delete(OWN, 3);
    lost().at(7.0).put(OWN, &node(1), 4).holds();
    lost().at(7.1).put(OWN, &node(1), 4).breaks(Rule::Registered);
}

#[test]
fn a_key_that_stays_away_or_stays_as_it_was_is_found_at_the_end() {
    registered().at(5.0).foreign(OWN, None).delete(OWN, 3).serves(&[]).breaks(Rule::Registered);
    registered().at(5.0).wants(Some(&node(2))).breaks(Rule::Registered);
    registered().at(5.0).wants(None).at(9.0).breaks(Rule::Registered);
    registered().at(5.0).wants(None).at(6.0).delete(OWN, 3).serves(&[]).holds();
}

#[test]
fn a_key_without_its_lease_is_not_registered() {
    let mut entry = entry(OWN, &node(1), 3);
    entry.lease = 0;
    registered().at(5.0).said(Change::Put(entry.clone())).told(&[Change::Put(entry)]).breaks(Rule::Registered);
}

#[test]
fn the_bound_counts_from_when_etcd_answers_and_reaches_the_owner() {
    let link = |linked| What::Linked { owner: "owner".into(), linked, grace: Duration::ZERO };
    let cut = || registered().at(4.0).add(link(false)).at(8.0).delete(OWN, 3).at(20.0).add(link(true));
    cut().at(21.9).put(OWN, &node(1), 4).holds();
    cut().at(22.1).put(OWN, &node(1), 4).breaks(Rule::Registered);
    let down = || registered().at(4.0).answering(false).at(30.0).add(epoch(0, &[])).answering(true);
    down().at(31.9).full(&[]).put(OWN, &node(1), 2).holds();
    down().at(32.1).full(&[]).put(OWN, &node(1), 2).breaks(Rule::Registered);
}

#[test]
fn a_deviation_that_was_too_long_before_etcd_went_down_is_not_forgotten() {
    let run = registered().at(5.0).foreign(OWN, None).delete(OWN, 3).at(9.0).answering(false);
    run.at(20.0).answering(true).at(21.0).put(OWN, &node(1), 4).breaks(Rule::Registered);
}

#[test]
fn a_key_outlives_its_owner_by_its_ttl_and_a_second_at_most() {
    let killed = || registered().at(5.0).alive(false);
    killed().at(9.0).delete(OWN, 3).serves(&[]).holds();
    killed().at(9.1).delete(OWN, 3).serves(&[]).breaks(Rule::Outlived);
    killed().at(9.1).add(What::Note { text: "the end".into() }).breaks(Rule::Outlived);
    killed().at(9.1).alive(true).breaks(Rule::Outlived);
    assert_eq!(killed().at(8.0).delete(OWN, 3).verdict().outlived.map(|span| span.took), Some(TTL));
    // What is wanted of it meanwhile changes nothing.
    killed().at(6.0).wants(Some(&node(2))).at(9.1).delete(OWN, 3).serves(&[]).breaks(Rule::Outlived);
}

#[test]
fn a_lease_starts_anew_with_etcd() {
    let restarted = || registered().at(5.0).alive(false).at(6.0).answering(false).at(16.0).answering(true);
    restarted().at(20.0).delete(OWN, 3).serves(&[]).holds();
    restarted().at(20.1).delete(OWN, 3).serves(&[]).breaks(Rule::Outlived);
}

#[test]
fn a_key_of_others_is_written_and_deleted_by_those_who_said_so_only() {
    let run = || registered().at(2.0).foreign("/waypost/x", Some("theirs")).put("/waypost/x", "theirs", 3);
    run().holds();
    run().at(3.0).put("/waypost/x", "ours", 4).breaks(Rule::Touched);
    run().at(3.0).delete("/waypost/x", 4).breaks(Rule::Touched);
    run().at(3.0).foreign("/waypost/x", None).delete("/waypost/x", 4).holds();
    registered()
        .at(3.0)
        .put("/waypost/services/web/b", &node(3), 3)
        .serves(&["127.0.0.1:1", "127.0.0.1:3"])
        .breaks(Rule::Touched);
}

/// Somebody else puts three keys, as etcd has it; what the mirror tells is up to the test.
fn three_puts() -> Told {
    others().into_iter().fold(registered().at(2.0), |told, change| told.foreign(change.key(), Some("v")).said(change))
}

fn others() -> [Change; 3] {
    [put("/waypost/3", "v", 3), put("/waypost/4", "v", 4), put("/waypost/5", "v", 5)]
}

#[test]
fn every_change_told_once_and_in_order_holds_in_one_message_or_in_several() {
    let [three, four, five] = others();
    three_puts().told(&[three]).told(&[four]).told([&five]).holds();
    three_puts().told(&others()).holds();
    let full = [(OWN, &*node(1), 2), ("/waypost/3", "v", 3), ("/waypost/4", "v", 4)];
    three_puts().full(&full).told(&[five]).holds();
}

#[test]
fn what_a_key_is_said_to_have_been_is_what_was_told_last() {
    let old = |value: Option<(&str, i64)>| What::ToldOld {
        observer: "mirror".into(),
        key: "/waypost/3".into(),
        old: value.map(|(value, revision)| entry("/waypost/3", value, revision)),
    };
    let run = || registered().at(2.0).foreign("/waypost/3", Some("a")).foreign("/waypost/3", Some("b"));
    let run =
        |first, second| run().add(old(first)).put("/waypost/3", "a", 3).add(old(second)).put("/waypost/3", "b", 4);
    run(None, Some(("a", 3))).holds();
    run(None, None).breaks(Rule::Told);
    run(None, Some(("b", 3))).breaks(Rule::Told);
    run(Some(("a", 3)), Some(("a", 3))).breaks(Rule::Told);
}

#[test]
fn a_change_that_is_missing_shows_with_the_next_one_or_at_the_end() {
    let [three, four, five] = others();
    three_puts().told(&[three.clone(), five]).breaks(Rule::Told);
    three_puts().told(&[three, four]).breaks(Rule::Mirrored);
    let lost = registered().at(3.0).wants(None).said(deleted(OWN, 3)).serves(&[]);
    lost.breaks(Rule::Mirrored);
}

#[test]
fn a_change_that_is_doubled_or_out_of_order_or_invented_is_found() {
    let [three, four, five] = others();
    let all = || three_puts().told(&others());
    all().told([&five]).breaks(Rule::Told);
    all().told(&[deleted("/waypost/9", 5)]).breaks(Rule::Told);
    all().told(&[put("/waypost/6", "v", 6)]).breaks(Rule::Told);
    three_puts().told(&[four.clone(), three, five.clone()]).breaks(Rule::Told);
    three_puts().told(&[put("/waypost/3", "other", 3), four, five]).breaks(Rule::Told);
}

#[test]
fn a_full_state_is_one_that_etcd_had_and_never_an_older_one_than_was_told() {
    let own = node(1);
    let own = (OWN, own.as_str(), 2);
    let [three, four, five] = [("/waypost/3", "v", 3), ("/waypost/4", "v", 4), ("/waypost/5", "v", 5)];
    let all = || three_puts().told(&others());
    all().full(&[own, three, four, five]).holds();
    all().full(&[own, three, five]).breaks(Rule::Told);
    all().full(&[own, three]).told(&others()[1..]).breaks(Rule::Told);
    Told::new().told(&others()[..1]).full(&[]).serves(&[]).breaks(Rule::Told);
}

#[test]
fn a_full_state_may_lack_what_was_deleted_after_the_last_put() {
    let run = registered().at(2.0).foreign("/waypost/3", Some("v")).put("/waypost/3", "v", 3);
    let run = run.foreign("/waypost/3", None).said(deleted("/waypost/3", 4));
    run.full_at(4, &[(OWN, &node(1), 2)]).holds();
}

#[test]
fn after_a_wipe_the_mirror_tells_of_the_new_etcd_and_what_only_the_old_one_had_is_gone() {
    let wiped = || registered().at(5.0).answering(false).at(6.0).add(epoch(0, &[])).answering(true);
    wiped().full(&[]).at(7.0).put(OWN, &node(1), 2).holds();
    wiped().at(7.0).said(put(OWN, &node(1), 2)).full(&[(OWN, &node(1), 2)]).holds();
    wiped().full(&[]).at(7.0).said(put(OWN, &node(1), 9)).breaks(Rule::Mirrored);
    // It stays with the old one.
    wiped().at(7.0).said(put(OWN, &node(1), 5)).full(&[(OWN, &node(1), 2)]).breaks(Rule::Mirrored);
}

#[test]
fn what_a_mirror_saw_in_an_etcd_that_was_killed_and_wiped_is_counted_where_the_recorder_did_not() {
    let run = registered().told(&others()[..1]).at(5.0).answering(false);
    let run = run.at(6.0).add(epoch(0, &[])).answering(true).full(&[]).at(7.0).put(OWN, &node(1), 2);
    run.holds();
    assert_eq!(run.verdict().unverified, 1);
}

#[test]
fn a_mirror_that_was_told_nothing_is_found() {
    Told::new().serves(&[]).breaks(Rule::Mirrored);
}

#[test]
fn a_catalog_with_a_node_too_many_or_too_few_is_found() {
    registered().serves(&[]).breaks(Rule::Served);
    registered().serves(&["127.0.0.1:1", "127.0.0.1:2"]).breaks(Rule::Served);
    registered().serves(&["127.0.0.1:2"]).breaks(Rule::Served);
}

#[test]
fn a_value_that_is_no_node_leaves_the_last_good_one_in_the_catalog() {
    let key = "/waypost/services/web/other";
    let run = registered().at(2.0).foreign(key, Some(&node(5))).put(key, &node(5), 3);
    let run = run.foreign(key, Some("}{")).put(key, "}{", 4);
    run.serves(&["127.0.0.1:1", "127.0.0.1:5"]).holds();
    let run = registered().at(2.0).foreign(key, Some("}{")).put(key, "}{", 3);
    run.serves(&["127.0.0.1:1"]).holds();
}
