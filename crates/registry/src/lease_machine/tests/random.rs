//! Whatever happens, in any order.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// The registration that is numbered; the others have their keys.
const NUMBERED: Id = 3;
/// The registration that leaves its key to others.
const YIELDING: Id = 4;

#[derive(Clone, Debug)]
enum Event {
    Step(Fate),
    Wait(u64),
    Update(Id, u8),
    Withdraw(Id),
    Deleted(Id),
    Overwritten(Id),
    Revoked,
    Wiped,
    DelayedArrives,
}

fn event() -> impl Strategy<Value = Event> {
    let id = 0u64..5;
    prop_oneof![
        8 => Just(Event::Step(Fate::Through)),
        2 => Just(Event::Step(Fate::RequestLost)),
        2 => Just(Event::Step(Fate::AnswerLost)),
        2 => Just(Event::Step(Fate::Delayed)),
        2 => (0u64..3000).prop_map(Event::Wait),
        3 => (id.clone(), any::<u8>()).prop_map(|(id, value)| Event::Update(id, value)),
        1 => id.clone().prop_map(Event::Withdraw),
        1 => id.clone().prop_map(Event::Deleted),
        1 => id.prop_map(Event::Overwritten),
        1 => Just(Event::Revoked),
        1 => Just(Event::Wiped),
        3 => Just(Event::DelayedArrives),
    ]
}

/// The registration's key; before it has one, one that nobody has.
fn key_of(bench: &Bench, id: Id) -> String {
    match id {
        NUMBERED => bench.number(id).unwrap_or("/none").to_owned(),
        id => format!("/{id}"),
    }
}

proptest! {
    #[test]
    fn whatever_happens_etcd_ends_up_as_intended(events in prop::collection::vec(event(), 1..120)) {
        let mut bench = Bench::new(None);
        let mut intents: BTreeMap<Id, Option<String>> = BTreeMap::new();
        for id in 0..3 {
            bench.register(id, &format!("/{id}"), "first");
            intents.insert(id, Some("first".into()));
        }
        bench.machine.register(NUMBERED, Registration::numbered("/n", "first"));
        bench.machine.register(YIELDING, Registration::new("/4", "first").if_held(IfHeld::Wait));
        intents.extend([NUMBERED, YIELDING].map(|id| (id, Some("first".into()))));
        let mut foreign = None;
        for event in events {
            match event {
                Event::Step(fate) => _ = bench.step(fate),
                Event::Wait(ms) => bench.now += Duration::from_millis(ms),
                Event::Update(id, value) => {
                    bench.machine.update(id, value.to_string().into_bytes());
                    intents.insert(id, Some(value.to_string()));
                }
                Event::Withdraw(id) => {
                    bench.machine.withdraw(id);
                    intents.insert(id, None);
                }
                Event::Deleted(id) => _ = bench.etcd.keys.remove(&key_of(&bench, id)),
                Event::Overwritten(id) => {
                    bench.etcd.put(&key_of(&bench, id), b"foreign", 0);
                    foreign = Some("foreign");
                }
                Event::Revoked => if let Some(lease) = bench.machine.lease() { bench.etcd.revoke(lease) },
                Event::Wiped => bench.etcd.wipe(),
                Event::DelayedArrives => if let Some(op) = bench.delayed.pop() {
                    let _ = bench.etcd.perform(&op, bench.now);
                },
            }
        }
        bench.run_for(RECONNECT_MAX + THIRD + Duration::from_secs(5));
        bench.settle();
        for (id, intent) in intents {
            let key = key_of(&bench, id);
            let value = bench.etcd.value(&key);
            match intent {
                Some(_) if id == YIELDING && value == foreign && foreign.is_some() => {
                    let waits = matches!(bench.state(id), RegistrationState::Retrying { .. });
                    prop_assert!(waits, "{:?}", bench.state(id));
                }
                Some(intent) => {
                    prop_assert_eq!(value, Some(intent.as_str()));
                    prop_assert_eq!(bench.etcd.keys[&key].lease, bench.lease());
                    prop_assert_eq!(bench.state(id), RegistrationState::Registered);
                }
                None => {
                    prop_assert!(value.is_none() || value == foreign, "{:?}", value);
                    prop_assert_eq!(bench.state(id), RegistrationState::Withdrawn);
                }
            }
        }
    }
}
