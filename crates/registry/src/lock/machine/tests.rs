//! The machine, step by step, without etcd; and many of them in one line, against a model of etcd.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const TTL: Duration = Duration::from_secs(10);
const REQUEST: Duration = Duration::from_secs(3);

fn wish(waits: bool) -> Wish {
    Wish { name: "l".into(), value: Arc::from(*b"v"), ttl: TTL, waits }
}

/// A machine whose time the test sets.
struct Driven {
    claim: Claim,
    now: Instant,
}

impl Driven {
    fn new(waits: bool) -> Self {
        let now = Instant::now();
        Self { claim: Claim::new(wish(waits), Duration::from_secs(2), REQUEST, now), now }
    }

    fn next(&mut self) -> Step {
        self.claim.next(self.now)
    }

    fn asks(&mut self) -> Op {
        match self.next() {
            Step::Do(op, limit) => {
                assert!(limit <= Duration::from_millis(2500) || self.claim.term.is_none(), "{limit:?}");
                op
            }
            other => panic!("{other:?}"),
        }
    }

    fn answer(&mut self, op: &Op, answer: Answer) {
        assert_eq!(self.asks(), *op);
        self.claim.done(op, Ok(answer), self.now, 0.0);
    }

    fn fail(&mut self, failure: Failure) {
        let op = self.asks();
        self.claim.done(&op, Err(failure), self.now, 0.0);
    }

    fn pass(&mut self, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
    }

    fn see(&mut self, own: Option<i64>, before: Option<&str>) {
        let op = self.asks();
        let Op::Look { placed, .. } = op else { panic!("{op:?}") };
        assert_eq!(placed, 5);
        let seen = Seen { own, before: before.map(str::to_owned), revision: 9 };
        self.claim.done(&op, Ok(Answer::Seen(seen)), self.now, 0.0);
    }

    /// Connected, and our key in line.
    fn in_line(waits: bool) -> Self {
        let mut driven = Self::new(waits);
        driven.answer(&Op::Connect, Answer::Done);
        driven.join();
        driven
    }

    fn join(&mut self) {
        self.answer(&Op::Grant { seconds: 10 }, Answer::Granted { lease: 0xab, ttl: TTL });
        let place = Op::Place { lease: 0xab, key: "l/ab".into(), value: Arc::from(*b"v") };
        self.answer(&place, Answer::Placed { revision: 5 });
    }

    fn held() -> Self {
        let mut driven = Self::in_line(true);
        driven.see(Some(5), None);
        assert!(matches!(driven.claim.standing(), Standing::Held { token: 5, lease: 0xab, .. }));
        driven
    }

    fn watches(&mut self, wanted: &str) {
        match self.next() {
            Step::Watch { key, from: 10, .. } => assert_eq!(key, wanted),
            other => panic!("{other:?}"),
        }
    }

    fn lost(&mut self) -> LostCause {
        assert_eq!(self.next(), Step::Idle);
        match self.claim.standing() {
            Standing::Lost(cause) => cause,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_first_in_line_holds_and_watches_its_own_key() {
    let mut driven = Driven::held();
    let Standing::Held { key, until, .. } = driven.claim.standing() else { panic!() };
    assert_eq!((key.as_str(), until), ("l/ab", driven.now + Duration::from_secs(8)));
    driven.watches("l/ab");
}

#[test]
fn a_waiter_watches_the_key_before_its_own_and_looks_again_when_that_goes() {
    let mut driven = Driven::in_line(true);
    driven.see(Some(5), Some("l/9"));
    assert_eq!(driven.claim.standing(), Standing::Waiting("key l/9 is before ours".into()));
    driven.watches("l/9");
    driven.claim.watched(Watched::Changed, driven.now, 0.0);
    driven.see(Some(5), Some("l/7"));
    driven.watches("l/7");
    driven.claim.watched(Watched::Changed, driven.now, 0.0);
    driven.see(Some(5), None);
    assert!(matches!(driven.claim.standing(), Standing::Held { .. }));
}

#[test]
fn who_does_not_wait_is_told_and_leaves_nothing() {
    let mut driven = Driven::in_line(false);
    driven.see(Some(5), Some("l/9"));
    assert_eq!((driven.claim.standing(), driven.next()), (Standing::Taken, Step::Idle));
    driven.claim.end();
    driven.answer(&Op::Revoke { lease: 0xab }, Answer::Done);
    assert_eq!(driven.next(), Step::Finished);
}

#[test]
fn a_holders_time_counts_from_the_keepalive_that_was_sent_and_then_seen() {
    let mut driven = Driven::held();
    let taken = driven.now;
    driven.pass(3.4);
    let sent = driven.now;
    assert_eq!(driven.asks(), Op::KeepAlive { lease: 0xab });
    driven.pass(1.0);
    driven.claim.done(&Op::KeepAlive { lease: 0xab }, Ok(Answer::Done), driven.now, 0.0);
    let until = |driven: &Driven| match driven.claim.standing() {
        Standing::Held { until, .. } => until,
        other => panic!("{other:?}"),
    };
    assert_eq!(until(&driven), taken + Duration::from_secs(8), "a deposed leader may have answered");
    driven.see(Some(5), None);
    assert_eq!(until(&driven), sent + Duration::from_secs(8));
}

#[test]
fn without_confirmation_a_holder_gives_up_before_the_ttl_and_for_good() {
    let mut driven = Driven::held();
    let taken = driven.now;
    driven.pass(3.4);
    driven.fail(Failure::Broken("gone".into()));
    let mut asked = 0;
    while !matches!(driven.claim.standing(), Standing::Lost(_)) {
        match driven.next() {
            Step::Wait(until) => driven.now = until,
            Step::Do(op, limit) => {
                asked += 1;
                driven.now += limit;
                assert!(driven.now <= taken + Duration::from_secs(8), "a request outlasts the holder's time");
                driven.claim.done(&op, Err(Failure::Broken("still gone".into())), driven.now, 1.0);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(asked > 1);
    assert!(driven.now < taken + TTL);
    assert!(matches!(driven.lost(), LostCause::Expired { after, .. } if after == Duration::from_secs(8)));
}

#[test]
fn who_sleeps_through_its_time_has_lost_even_if_etcd_answers() {
    let mut driven = Driven::held();
    driven.pass(3.4);
    let op = driven.asks();
    driven.pass(60.0);
    driven.claim.done(&op, Ok(Answer::Done), driven.now, 0.0);
    assert!(matches!(driven.lost(), LostCause::Expired { .. }));
}

#[test]
fn a_holder_loses_with_its_lease_or_its_key() {
    let mut driven = Driven::held();
    driven.pass(3.4);
    driven.fail(Failure::LeaseGone);
    assert_eq!(driven.lost(), LostCause::LeaseGone);
    driven.claim.end();
    assert_eq!(driven.next(), Step::Finished);

    // Also if somebody has put another key of the same name.
    for own in [None, Some(7)] {
        let mut driven = Driven::held();
        driven.claim.watched(Watched::Changed, driven.now, 0.0);
        driven.see(own, None);
        assert_eq!(driven.lost(), LostCause::KeyDeleted);
        driven.claim.end();
        assert_eq!(driven.asks(), Op::Revoke { lease: 0xab });
    }
}

#[test]
fn a_waiter_starts_anew_after_losing_its_lease_or_its_key() {
    let mut driven = Driven::in_line(true);
    driven.see(Some(5), Some("l/9"));
    driven.pass(3.4);
    driven.fail(Failure::LeaseGone);
    driven.join();
    driven.see(None, Some("l/9"));
    assert!(matches!(driven.asks(), Op::Place { lease: 0xab, .. }));
}

#[test]
fn after_a_reconnect_the_lease_comes_first_and_then_a_look() {
    let mut driven = Driven::in_line(true);
    driven.see(Some(5), Some("l/9"));
    driven.claim.watched(Watched::Broken("gone".into()), driven.now, 0.0);
    driven.answer(&Op::Connect, Answer::Done);
    driven.answer(&Op::KeepAlive { lease: 0xab }, Answer::Done);
    driven.see(Some(5), Some("l/9"));
    driven.watches("l/9");
}

#[test]
fn a_waiter_that_gets_first_with_an_old_lease_confirms_it_before_it_holds() {
    let mut driven = Driven::in_line(true);
    let op = driven.asks();
    driven.pass(9.0);
    let seen = Seen { own: Some(5), before: None, revision: 9 };
    driven.claim.done(&op, Ok(Answer::Seen(seen)), driven.now, 0.0);
    assert!(matches!(driven.claim.standing(), Standing::Waiting(_)));
    driven.answer(&Op::KeepAlive { lease: 0xab }, Answer::Done);
    driven.see(Some(5), None);
    assert!(matches!(driven.claim.standing(), Standing::Held { .. }));
}

#[test]
fn a_refusal_ends_a_claim_at_once_but_a_holder_may_get_its_rights_back() {
    let mut driven = Driven::new(true);
    driven.answer(&Op::Connect, Answer::Done);
    driven.fail(Failure::Refused("permission denied".into()));
    assert_eq!(driven.claim.standing(), Standing::Refused("permission denied".into()));

    let mut driven = Driven::held();
    driven.pass(3.4);
    driven.fail(Failure::Refused("permission denied".into()));
    assert!(matches!(driven.claim.standing(), Standing::Held { .. }));
    driven.answer(&Op::Connect, Answer::Done);
}

/// etcd: leases with their end, keys with their create revision.
#[derive(Default)]
struct Model {
    revision: i64,
    leases: BTreeMap<i64, Instant>,
    keys: BTreeMap<String, (i64, i64)>,
}

impl Model {
    fn expire(&mut self, now: Instant) {
        self.leases.retain(|_, ends| *ends > now);
        self.keys.retain(|_, (lease, _)| self.leases.contains_key(lease));
    }

    fn perform(&mut self, op: &Op, now: Instant) -> Result<Answer, Failure> {
        self.expire(now);
        match op {
            Op::Connect => Ok(Answer::Done),
            Op::Grant { .. } => {
                self.revision += 1;
                self.leases.insert(self.revision, now + TTL);
                Ok(Answer::Granted { lease: self.revision, ttl: TTL })
            }
            Op::KeepAlive { lease } => {
                *self.leases.get_mut(lease).ok_or(Failure::LeaseGone)? = now + TTL;
                Ok(Answer::Done)
            }
            Op::Place { lease, key, .. } => {
                self.leases.get(lease).ok_or(Failure::LeaseGone)?;
                self.revision += 1;
                let (_, revision) = *self.keys.entry(key.clone()).or_insert((*lease, self.revision));
                Ok(Answer::Placed { revision })
            }
            Op::Look { key, placed, .. } => {
                let before = self.keys.iter().filter(|(_, (_, revision))| revision < placed);
                let before = before.max_by_key(|(_, (_, revision))| *revision).map(|(key, _)| key.clone());
                let own = self.keys.get(key).map(|(_, revision)| *revision);
                Ok(Answer::Seen(Seen { own, before, revision: self.revision }))
            }
            Op::Revoke { lease } => {
                self.leases.remove(lease).ok_or(Failure::LeaseGone)?;
                Ok(Answer::Done)
            }
        }
    }
}

proptest! {
    /// Whatever fails, at most one claim believes that it holds; and when nothing fails any more, one does.
    #[test]
    fn never_two_hold_whatever_fails(events in prop::collection::vec((0..4usize, 0..8u8, 0..2500u64), 1..300)) {
        let mut now = Instant::now();
        let mut model = Model::default();
        let mut claims: Vec<_> =
            (0..4).map(|_| Claim::new(wish(true), Duration::from_secs(2), REQUEST, now)).collect();
        let quiet = (0..200).map(|n| (n % 4, 0, 500));
        for (n, event, millis) in events.into_iter().chain(quiet) {
            let claim = &mut claims[n];
            match claim.next(now) {
                Step::Do(op, _) => {
                    // The answer is lost, the request is lost, or both arrive; each takes its time.
                    let before = now + Duration::from_millis(millis) / 2;
                    let answer = if event == 1 { Err(Failure::Broken("lost".into())) } else { model.perform(&op, before) };
                    now += Duration::from_millis(millis);
                    let answer = if event == 2 { Err(Failure::Broken("lost".into())) } else { answer };
                    claim.done(&op, answer, now, 0.5);
                }
                Step::Watch { .. } => {
                    let changed = if event == 1 { Watched::Broken("lost".into()) } else { Watched::Changed };
                    claim.watched(changed, now, 0.5);
                }
                Step::Wait(_) => now += Duration::from_millis(millis),
                Step::Idle => claim.end(),
                Step::Finished => *claim = Claim::new(wish(true), Duration::from_secs(2), REQUEST, now),
            }
            if event == 3 && matches!(claims[n].standing(), Standing::Held { .. }) {
                claims[n].end();
            }
            let holds = |claim: &&Claim| {
                !claim.ending && matches!(claim.standing(), Standing::Held { until, .. } if now < until)
            };
            let holders = claims.iter().filter(holds).count();
            prop_assert!(holders <= 1, "{holders} hold");
        }
        let held = claims.iter().filter(|claim| matches!(claim.standing(), Standing::Held { until, .. } if now < until));
        prop_assert_eq!(held.count(), 1);
    }
}
