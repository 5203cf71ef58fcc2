//! Keys that others may hold, names out of revisions, and what is known to be lost.

use super::*;

const FOREIGN: i64 = 0xbeef;

fn foreign(bench: &mut Bench, key: &str) {
    bench.etcd.leases.insert(FOREIGN, (TTL * 100, bench.now + TTL * 100));
    bench.etcd.put(key, b"theirs", FOREIGN);
}

fn yielding(if_held: IfHeld) -> Bench {
    let mut bench = Bench::new(None);
    bench.machine.register(1, Registration::new("/a", "ours").if_held(if_held));
    bench
}

#[test]
fn a_key_that_somebody_else_holds_is_waited_for_and_taken_within_a_third_of_the_ttl_once_it_is_free() {
    let mut bench = yielding(IfHeld::Wait);
    foreign(&mut bench, "/a");
    bench.run_for(TTL * 3);
    assert_eq!(bench.etcd.value("/a"), Some("theirs"));
    let cause = "somebody else holds key /a, under lease beef; waiting until it is gone".to_owned();
    assert_eq!(bench.state(1), RegistrationState::Retrying { cause: cause.clone() });
    bench.etcd.put("/a", b"changed", FOREIGN);
    bench.run_for(TTL);
    assert_eq!(bench.etcd.value("/a"), Some("changed"));
    assert_eq!(bench.state(1), RegistrationState::Retrying { cause });

    bench.etcd.revoke(FOREIGN);
    bench.run_for(THIRD);
    bench.settle();
    assert_eq!(bench.etcd.value("/a"), Some("ours"));
    assert_eq!(bench.state(1), RegistrationState::Registered);
    assert_eq!(bench.machine.stats().reasserts, 0);
}

#[test]
fn a_key_that_somebody_else_holds_ends_a_registration_that_is_to_fail_and_nothing_is_written() {
    let mut bench = yielding(IfHeld::Fail);
    foreign(&mut bench, "/a");
    bench.settle();
    assert_eq!(bench.machine.take_failed(), [(1, "/a".to_owned(), FOREIGN)]);
    assert_eq!(bench.machine.states(bench.now).count(), 0);
    bench.machine.update(1, b"late".into());
    bench.run_for(TTL);
    assert_eq!((bench.etcd.value("/a"), bench.etcd.puts), (Some("theirs"), 0));
    // The key can be registered again, by whatever rule.
    bench.register(2, "/a", "ours");
    bench.settle();
    assert_eq!(bench.etcd.value("/a"), Some("ours"));
}

#[test]
fn a_key_that_somebody_took_while_the_lease_was_gone_is_left_to_them() {
    for if_held in [IfHeld::Wait, IfHeld::Fail] {
        let mut bench = yielding(if_held);
        bench.settle();
        assert_eq!(bench.state(1), RegistrationState::Registered);
        let lease = bench.lease();
        bench.etcd.revoke(lease);
        foreign(&mut bench, "/a");
        bench.run_for(TTL);
        assert_eq!(bench.etcd.value("/a"), Some("theirs"));
        assert_eq!(bench.machine.take_failed().len(), usize::from(if_held == IfHeld::Fail));
    }
}

#[test]
fn a_key_that_may_not_be_taken_is_put_again_when_it_is_gone_or_was_changed_under_our_lease() {
    for if_held in [IfHeld::Wait, IfHeld::Fail] {
        let mut bench = yielding(if_held);
        bench.settle();
        bench.etcd.keys.remove("/a");
        bench.run_for(THIRD);
        bench.settle();
        assert_eq!(bench.etcd.value("/a"), Some("ours"));
        let lease = bench.lease();
        bench.etcd.put("/a", b"meddled", lease);
        bench.run_for(THIRD);
        bench.settle();
        assert_eq!((bench.etcd.value("/a"), bench.machine.take_failed()), (Some("ours"), Vec::new()));
    }
}

#[test]
fn a_creation_whose_answer_was_lost_is_not_taken_for_somebody_elses() {
    let mut bench = yielding(IfHeld::Fail);
    while !matches!(bench.machine.next(bench.now), Step::Do(Op::Put { .. }, _)) {
        bench.step(Fate::Through);
    }
    bench.step(Fate::AnswerLost);
    bench.run_for(TTL);
    assert_eq!(bench.machine.take_failed(), []);
    assert_eq!((bench.state(1), bench.etcd.puts), (RegistrationState::Registered, 1));
}

#[test]
fn a_key_of_the_run_before_is_ours_if_its_lease_is_adopted() {
    let mut old = yielding(IfHeld::Fail);
    old.settle();
    let mut bench = Bench::new(Some(old.lease()));
    bench.now = old.now;
    bench.etcd = std::mem::take(&mut old.etcd);
    bench.machine.register(1, Registration::new("/a", "new").if_held(IfHeld::Fail));
    bench.settle();
    assert_eq!((bench.etcd.value("/a"), bench.machine.take_failed()), (Some("new"), Vec::new()));
}

/// Three numbered registrations, put.
fn numbered() -> (Bench, Vec<String>) {
    let mut bench = Bench::new(None);
    bench.etcd.revision = 41;
    for id in 1..=3 {
        bench.machine.register(id, Registration::numbered("/n", id.to_string()));
        assert_eq!(bench.number(id), None);
    }
    bench.settle();
    let names = (1..=3).map(|id| bench.number(id).unwrap().to_owned()).collect();
    (bench, names)
}

#[test]
fn numbered_keys_are_named_after_the_revision_that_creates_them() {
    let (bench, names) = numbered();
    assert_eq!(names, [42, 43, 44].map(|revision| format!("/n/{revision:020}")));
    assert_eq!(bench.etcd.keys.keys().cloned().collect::<Vec<_>>(), names);
    for (id, name) in (1..).zip(&names) {
        assert_eq!((bench.state(id), bench.etcd.value(name)), (RegistrationState::Registered, Some(&*id.to_string())));
    }
}

#[test]
fn a_name_that_somebody_else_took_first_is_left_to_them_and_the_next_one_taken() {
    let mut bench = Bench::new(None);
    bench.machine.register(1, Registration::numbered("/n", "ours"));
    while !matches!(bench.machine.next(bench.now), Step::Do(Op::Put { .. }, _)) {
        bench.step(Fate::Through);
    }
    foreign(&mut bench, "/n/00000000000000000001");
    bench.settle();
    assert_eq!(bench.number(1), Some("/n/00000000000000000002"));
    assert_eq!(bench.etcd.value("/n/00000000000000000001"), Some("theirs"));
    assert_eq!(bench.etcd.value("/n/00000000000000000002"), Some("ours"));
}

#[test]
fn names_that_others_hold_ahead_of_the_revision_are_passed_over() {
    let mut bench = Bench::new(None);
    for number in 4..=8 {
        foreign(&mut bench, &format!("/n/{number:020}"));
    }
    bench.etcd.revision = 3;
    bench.machine.register(1, Registration::numbered("/n", "ours"));
    bench.settle();
    assert_eq!(bench.number(1), Some("/n/00000000000000000009"));
    assert_eq!(bench.etcd.keys.len(), 6);
}

#[test]
fn two_names_of_one_revision_are_never_given_even_while_etcd_refuses_the_first() {
    let mut bench = Bench::new(None);
    bench.etcd.refuse = Some("/n/00000000000000000001");
    bench.machine.register(1, Registration::numbered("/n", "1"));
    bench.machine.register(2, Registration::numbered("/n", "2"));
    bench.run_for(Duration::from_secs(1));
    assert_eq!(bench.number(2), Some("/n/00000000000000000002"));
    bench.etcd.refuse = None;
    bench.run_for(Duration::from_secs(6));
    assert_eq!(bench.number(1), Some("/n/00000000000000000001"));
    assert_eq!(bench.etcd.keys.len(), 2);
}

#[test]
fn a_numbered_key_keeps_its_name_through_every_loss() {
    let (mut bench, names) = numbered();
    let check = |bench: &mut Bench| {
        bench.run_for(THIRD);
        bench.settle();
        for (id, name) in (1..).zip(&names) {
            assert_eq!((bench.number(id), bench.state(id)), (Some(&**name), RegistrationState::Registered));
            assert_eq!(bench.etcd.value(name), Some(&*id.to_string()));
        }
        assert_eq!(bench.etcd.keys.len(), names.len());
    };
    bench.etcd.keys.remove(&names[0]);
    check(&mut bench);
    let lease = bench.lease();
    bench.etcd.revoke(lease);
    check(&mut bench);
    bench.etcd.wipe();
    check(&mut bench);
}

#[test]
fn a_numbered_key_whose_name_somebody_else_holds_after_a_wipe_gets_another_one() {
    let (mut bench, names) = numbered();
    bench.etcd.wipe();
    bench.etcd.revision = 100;
    foreign(&mut bench, &names[1]);
    bench.run_for(THIRD);
    bench.settle();
    let name = bench.number(2).unwrap();
    assert!(!names.iter().any(|old| old == name), "{name}");
    assert_eq!((bench.etcd.value(name), bench.etcd.value(&names[1])), (Some("2"), Some("theirs")));
    assert_eq!((bench.number(1), bench.number(3)), (Some(&*names[0]), Some(&*names[2])));
}

#[test]
fn a_withdrawn_name_that_somebody_else_took_is_replaced_when_it_is_wanted_again() {
    let (mut bench, names) = numbered();
    bench.machine.withdraw(1);
    bench.settle();
    foreign(&mut bench, &names[0]);
    bench.run_for(THIRD);
    bench.machine.update(1, b"again".into());
    bench.settle();
    let name = bench.number(1).unwrap();
    assert!(*name > *names[2], "{name}");
    assert_eq!((bench.etcd.value(name), bench.etcd.value(&names[0])), (Some("again"), Some("theirs")));
}

#[test]
fn a_numbered_registration_can_end_before_and_after_it_has_its_key() {
    let mut bench = Bench::new(None);
    bench.machine.register(1, Registration::numbered("/n", "1"));
    assert!(bench.machine.deregister(1));
    bench.settle();
    assert_eq!((bench.machine.take_ended(), bench.etcd.puts), (vec![1], 0));
    let (mut bench, names) = numbered();
    assert!(bench.machine.deregister(2));
    bench.settle();
    assert_eq!((bench.machine.take_ended(), bench.etcd.value(&names[1])), (vec![2], None));
}

/// The states that registration 1 goes through until it is registered.
fn states_until_registered(bench: &mut Bench) -> Vec<RegistrationState> {
    let mut states = vec![bench.state(1)];
    let until = bench.now + TTL;
    while bench.now < until {
        bench.step(Fate::Through);
        let state = bench.state(1);
        if states.last() != Some(&state) {
            states.push(state);
        }
    }
    states
}

#[test]
fn a_key_is_lost_from_when_etcd_says_that_its_lease_is_gone_until_it_is_put_again() {
    let mut bench = registered();
    let lease = bench.lease();
    bench.etcd.revoke(lease);
    let lost = RegistrationState::Lost { cause: format!("lease {lease:x} is gone from etcd, and the key with it") };
    assert_eq!(
        states_until_registered(&mut bench),
        [RegistrationState::Registered, lost, RegistrationState::Registered]
    );
}

#[test]
fn a_key_that_somebody_deleted_is_lost_until_it_is_put_again() {
    let mut bench = registered();
    bench.etcd.keys.remove("/a");
    let lost = RegistrationState::Lost { cause: "somebody else deleted key /a".into() };
    assert_eq!(
        states_until_registered(&mut bench),
        [RegistrationState::Registered, lost, RegistrationState::Registered]
    );
}

#[test]
fn a_key_out_of_touch_is_not_called_lost_before_etcd_has_said_so() {
    let mut bench = registered();
    let until = bench.now + TTL * 2;
    while bench.now < until {
        bench.step(Fate::RequestLost);
        assert!(!matches!(bench.state(1), RegistrationState::Lost { .. }), "{:?}", bench.state(1));
    }
    // etcd itself let the lease run out meanwhile, and says so when it is asked again.
    let mut seen = states_until_registered(&mut bench);
    seen.retain(|state| !matches!(state, RegistrationState::Retrying { .. }));
    assert!(matches!(&seen[..], [RegistrationState::Lost { .. }, RegistrationState::Registered]), "{seen:?}");
}

#[test]
fn a_lost_key_says_what_keeps_it_from_coming_back_and_is_not_called_lost_once_it_may_be_back() {
    let mut bench = registered();
    bench.etcd.keys.remove("/a");
    bench.etcd.refuse = Some("/a");
    bench.run_for(TTL);
    let cause = "somebody else deleted key /a; /a is refused".to_owned();
    assert_eq!(bench.state(1), RegistrationState::Lost { cause });
    bench.etcd.refuse = None;
    while !matches!(bench.machine.next(bench.now), Step::Do(Op::Put { .. }, _)) {
        bench.step(Fate::Through);
    }
    bench.step(Fate::AnswerLost);
    assert!(matches!(bench.state(1), RegistrationState::Retrying { .. }), "{:?}", bench.state(1));
    bench.run_for(THIRD);
    bench.settle();
    assert_eq!(bench.state(1), RegistrationState::Registered);
}

#[test]
fn a_key_that_was_never_registered_or_is_withdrawn_is_not_called_lost() {
    let mut bench = Bench::new(None);
    bench.register(1, "/a", "1");
    bench.etcd.refuse = Some("/a");
    bench.run_for(TTL);
    let lease = bench.lease();
    bench.etcd.revoke(lease);
    bench.run_for(THIRD);
    assert_eq!(bench.state(1), RegistrationState::Retrying { cause: "/a is refused".into() });
    bench.etcd.refuse = None;
    bench.run_for(TTL * 2);
    bench.machine.withdraw(1);
    bench.settle();
    let lease = bench.lease();
    bench.etcd.revoke(lease);
    bench.run_for(THIRD);
    bench.machine.update(1, b"2".into());
    assert_eq!(bench.state(1), RegistrationState::Pending);
}
