//! The machine against a model of etcd that loses, delays and forgets things.

mod claims;
mod model;
mod random;

use std::time::{Duration, Instant};

use model::Etcd;

use super::*;
use crate::registrar::{IfHeld, Registration, RegistrationState};

const TTL: Duration = Duration::from_secs(5);
const THIRD: Duration = Duration::from_millis(1667);

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Through,
    RequestLost,
    AnswerLost,
    Delayed,
}

struct Bench {
    machine: LeaseMachine,
    etcd: Etcd,
    now: Instant,
    delayed: Vec<Op>,
    ops: Vec<Op>,
}

impl Bench {
    fn new(adopt: Option<i64>) -> Self {
        let now = Instant::now();
        let machine = LeaseMachine::new(TTL, adopt, Duration::from_secs(2), Duration::from_secs(3), now);
        Self { machine, etcd: Etcd::default(), now, delayed: Vec::new(), ops: Vec::new() }
    }

    /// One step; false when it was one of waiting.
    fn step(&mut self, fate: Fate) -> bool {
        match self.machine.next(self.now) {
            Step::Finished => false,
            Step::Wait(until) => {
                assert!(until > self.now, "a wait that does not wait");
                self.now = until;
                false
            }
            Step::Do(op, limit) => {
                self.ops.push(op.clone());
                self.now += Duration::from_millis(1);
                let lost = Err(Failure::Broken("lost".into()));
                let outcome = match fate {
                    Fate::Through => self.etcd.perform(&op, self.now),
                    Fate::RequestLost => lost,
                    Fate::AnswerLost => {
                        let _ = self.etcd.perform(&op, self.now);
                        lost
                    }
                    Fate::Delayed => {
                        self.delayed.push(op.clone());
                        lost
                    }
                };
                if fate != Fate::Through {
                    self.now += limit;
                }
                self.machine.done(op, outcome, self.now, 0.5);
                true
            }
        }
    }

    /// Steps until there is nothing to do but to wait.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let time = self.now;
            if !self.step(Fate::Through) {
                // The wait itself is not settled: it is left to whoever wants time to pass.
                self.now = time;
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.step(Fate::Through);
        }
    }

    fn state(&self, id: Id) -> RegistrationState {
        self.machine.states(self.now).find(|(found, ..)| *found == id).unwrap().2
    }

    /// The key of a numbered registration.
    fn number(&self, id: Id) -> Option<&str> {
        self.machine.states(self.now).find(|(found, ..)| *found == id)?.1
    }

    fn register(&mut self, id: Id, key: &str, value: &str) {
        self.machine.register(id, Registration::new(key, value));
    }

    fn lease(&self) -> i64 {
        self.machine.lease().unwrap()
    }
}

fn registered() -> Bench {
    let mut bench = Bench::new(None);
    bench.register(1, "/a", "1");
    bench.register(2, "/b", "1");
    bench.settle();
    assert_eq!((bench.etcd.value("/a"), bench.etcd.value("/b")), (Some("1"), Some("1")));
    bench
}

#[test]
fn keys_are_put_under_one_lease_that_is_kept_alive() {
    let mut bench = registered();
    assert_eq!(bench.etcd.leases.len(), 1);
    assert_eq!(bench.state(1), RegistrationState::Registered);
    bench.run_for(TTL * 10);
    assert_eq!((bench.etcd.puts, bench.machine.stats().leases_granted), (2, 1));
    let keepalives = bench.ops.iter().filter(|op| matches!(op, Op::KeepAlive { .. })).count();
    assert!((30..36).contains(&keepalives), "{keepalives}");
}

#[test]
fn an_update_is_put_at_once_under_the_same_lease() {
    let mut bench = registered();
    let lease = bench.lease();
    let before = bench.now;
    bench.machine.update(1, b"2".into());
    bench.settle();
    assert_eq!(bench.etcd.value("/a"), Some("2"));
    assert_eq!(bench.etcd.keys["/a"].lease, lease);
    assert!(bench.now - before < Duration::from_millis(10));
}

#[test]
fn a_key_deleted_or_overwritten_by_somebody_else_is_back_within_a_third_of_the_ttl() {
    let mut bench = registered();
    bench.etcd.keys.remove("/a");
    bench.etcd.put("/b", b"other", 0);
    bench.run_for(THIRD);
    bench.settle();
    assert_eq!((bench.etcd.value("/a"), bench.etcd.value("/b")), (Some("1"), Some("1")));
    assert_eq!(bench.etcd.keys["/b"].lease, bench.lease());
    assert_eq!(bench.machine.stats().reasserts, 2);
}

#[test]
fn a_lost_lease_and_a_wiped_etcd_are_made_good_within_a_third_of_the_ttl() {
    let mut bench = registered();
    let lease = bench.lease();
    bench.etcd.revoke(lease);
    bench.run_for(THIRD);
    bench.settle();
    assert_eq!(bench.etcd.value("/a"), Some("1"));
    bench.etcd.wipe();
    bench.run_for(THIRD);
    bench.settle();
    assert_eq!((bench.etcd.value("/a"), bench.etcd.value("/b")), (Some("1"), Some("1")));
    let stats = bench.machine.stats();
    assert_eq!((stats.leases_lost, stats.leases_granted, stats.reasserts), (2, 3, 4));
}

#[test]
fn a_living_lease_is_adopted_and_nothing_is_put_that_is_there_already() {
    let mut old = registered();
    let lease = old.lease();
    let mut bench = Bench::new(Some(lease));
    bench.now = old.now;
    bench.etcd = std::mem::take(&mut old.etcd);
    bench.register(7, "/a", "1");
    bench.settle();
    assert_eq!((bench.lease(), bench.etcd.puts), (lease, 2));
    assert_eq!(bench.state(7), RegistrationState::Registered);
    assert_eq!(bench.machine.stats().leases_granted, 0);
    bench.machine.prune();
    bench.settle();
    assert_eq!((bench.etcd.value("/a"), bench.etcd.value("/b")), (Some("1"), None));
}

fn with_lease_of(ttl: Duration) -> Bench {
    let mut bench = Bench::new(Some(50));
    bench.etcd.granted = 50;
    bench.etcd.leases.insert(50, (ttl, bench.now + ttl));
    bench.etcd.put("/a", b"1", 50);
    bench.register(1, "/a", "1");
    bench
}

#[test]
fn a_lease_that_is_gone_or_too_short_is_not_adopted_and_the_key_is_never_absent() {
    let mut bench = Bench::new(Some(4711));
    bench.register(1, "/a", "1");
    bench.settle();
    assert_eq!(bench.lease(), 1);

    let mut bench = with_lease_of(TTL - Duration::from_secs(1));
    while bench.step(Fate::Through) {
        assert_eq!(bench.etcd.value("/a"), Some("1"));
    }
    assert_eq!(bench.etcd.keys["/a"].lease, 51);
}

#[test]
fn a_lease_that_etcd_made_longer_than_asked_is_adopted_and_kept_alive() {
    let mut bench = with_lease_of(TTL * 2);
    bench.run_for(TTL * 10);
    assert_eq!((bench.lease(), bench.etcd.puts), (50, 0));
    assert_eq!(bench.state(1), RegistrationState::Registered);
}

#[test]
fn who_takes_a_key_is_named_and_what_to_do_if_it_goes_on() {
    let mut bench = registered();
    let mut taken = || {
        bench.etcd.put("/a", b"theirs", 0xbeef);
        bench.etcd.leases.insert(0xbeef, (TTL, bench.now + TTL));
        while !matches!(bench.state(1), RegistrationState::Retrying { .. }) {
            bench.step(Fate::Through);
        }
        let state = bench.state(1);
        bench.settle();
        state
    };
    let first = "somebody else put key /a under lease beef".to_owned();
    let again = format!("{first}, again: another agent registers this key: set node or instance");
    assert_eq!(taken(), RegistrationState::Retrying { cause: first });
    assert_eq!(taken(), RegistrationState::Retrying { cause: again });
    assert_eq!(bench.etcd.value("/a"), Some("1"));
}

#[test]
fn a_lease_that_may_not_be_adopted_is_replaced() {
    let mut bench = Bench::new(Some(4711));
    bench.step(Fate::Through);
    let Step::Do(op @ Op::Adopt { .. }, _) = bench.machine.next(bench.now) else { panic!("no adoption") };
    bench.machine.done(op, Err(Failure::Refused("permission denied".into())), bench.now, 0.5);
    bench.settle();
    assert_eq!(bench.lease(), 1);
}

#[test]
fn a_withdrawn_key_is_deleted_and_can_be_put_again_and_a_foreign_one_is_left_alone() {
    let mut bench = registered();
    bench.machine.withdraw(1);
    bench.settle();
    assert_eq!(bench.etcd.value("/a"), None);
    assert_eq!(bench.state(1), RegistrationState::Withdrawn);
    bench.machine.update(1, b"2".into());
    bench.settle();
    assert_eq!(bench.etcd.value("/a"), Some("2"));

    bench.etcd.put("/b", b"foreign", 0);
    bench.machine.deregister(2);
    bench.settle();
    assert_eq!(bench.etcd.value("/b"), Some("foreign"));
    assert_eq!(bench.machine.take_ended(), [2]);
    assert_eq!(bench.machine.states(bench.now).count(), 1);
}

#[test]
fn an_older_value_that_was_delayed_never_overwrites_a_newer_one() {
    let mut bench = registered();
    bench.machine.update(1, b"2".into());
    while !matches!(bench.machine.next(bench.now), Step::Do(Op::Put { .. }, _)) {
        bench.step(Fate::Through);
    }
    bench.step(Fate::Delayed);
    bench.machine.update(1, b"3".into());
    bench.run_for(Duration::from_secs(1));
    assert_eq!(bench.etcd.value("/a"), Some("3"));
    let late = bench.delayed.pop().unwrap();
    assert_eq!(bench.etcd.perform(&late, bench.now), Ok(Answer::Conflict));
    assert_eq!(bench.etcd.value("/a"), Some("3"));
}

#[test]
fn one_refused_key_does_not_hold_up_the_others_and_is_tried_for_ever() {
    let mut bench = Bench::new(None);
    bench.etcd.refuse = Some("/bad");
    bench.register(1, "/a", "1");
    bench.register(2, "/bad", "1");
    bench.register(3, "/c", "1");
    bench.run_for(Duration::from_secs(60));
    assert_eq!((bench.etcd.value("/a"), bench.etcd.value("/c")), (Some("1"), Some("1")));
    assert_eq!(bench.state(2), RegistrationState::Retrying { cause: "/bad is refused".into() });
    assert!(bench.ops.len() < 250, "it hammers: {} requests", bench.ops.len());
    bench.etcd.refuse = None;
    bench.run_for(Duration::from_secs(6));
    assert_eq!(bench.state(2), RegistrationState::Registered);
}

#[test]
fn a_lease_out_of_touch_is_asked_about_and_kept_if_it_lives() {
    let mut bench = registered();
    let lease = bench.lease();
    let until = bench.now + TTL * 2;
    while bench.now < until {
        bench.step(Fate::RequestLost);
    }
    assert!(matches!(bench.state(1), RegistrationState::Retrying { .. }));
    // As after an election: a new leader gives every lease its full time again.
    bench.etcd.leases.insert(lease, (TTL, bench.now + TTL));
    bench.run_for(Duration::from_secs(2));
    bench.settle();
    assert_eq!(bench.lease(), lease);
    assert_eq!((bench.state(1), bench.etcd.puts), (RegistrationState::Registered, 2));
}

#[test]
fn a_silent_endpoint_and_a_second_one_that_is_dead_leave_time_for_a_third() {
    let mut bench = registered();
    let (mut keepalives, mut connects) = (0, 0);
    let until = bench.now + TTL * 20;
    while bench.now < until {
        let fate = match bench.machine.next(bench.now) {
            Step::Do(Op::KeepAlive { .. }, _) => {
                keepalives += 1;
                if keepalives % 4 == 0 { Fate::RequestLost } else { Fate::Through }
            }
            Step::Do(Op::Connect, _) => {
                connects += 1;
                if connects % 2 == 1 { Fate::RequestLost } else { Fate::Through }
            }
            _ => Fate::Through,
        };
        bench.step(fate);
    }
    assert!(connects > 10);
    assert_eq!((bench.machine.stats().leases_lost, bench.etcd.puts), (0, 2));
}

#[test]
fn at_the_end_the_lease_is_revoked_and_every_key_with_it() {
    let mut bench = registered();
    bench.machine.end();
    bench.settle();
    assert_eq!(bench.machine.next(bench.now), Step::Finished);
    assert!(bench.etcd.keys.is_empty() && bench.etcd.leases.is_empty());
}

#[test]
fn five_hundred_keys_go_in_transactions_that_etcd_takes() {
    let mut bench = Bench::new(None);
    for id in 0..500 {
        bench.register(id, &format!("/{id}"), "1");
    }
    bench.settle();
    assert_eq!(bench.etcd.keys.len(), 500);
    assert!(bench.ops.len() < 15, "{}", bench.ops.len());
    bench.etcd.keys.clear();
    bench.run_for(THIRD);
    bench.settle();
    assert_eq!(bench.etcd.keys.len(), 500);
}

#[test]
fn a_second_registration_of_a_key_replaces_the_first() {
    let mut bench = registered();
    assert_eq!(bench.machine.register(3, Registration::new("/a", "other")), Some(1));
    bench.settle();
    assert_eq!(bench.etcd.value("/a"), Some("other"));
    bench.machine.update(1, b"late".into());
    bench.settle();
    assert_eq!(bench.etcd.value("/a"), Some("other"));
}
