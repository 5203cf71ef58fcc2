//! The registry's keys against a real etcd: watched once, followed without a gap, ended when nobody wants them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use etcd_client::{GetOptions, PutOptions, Txn, TxnOp};
use tokio_util::sync::CancellationToken;
use waypost_registry::{HubError, HubOptions, KeyEvent, KeyValue, Keys, Registry, Restart, ResyncReason, Subscription};
use waypost_registry_testing::{Etcd, Mode, PATIENCE, Proxy, connector, eventually};

async fn synced(keys: &Keys) {
    keys.ready(PATIENCE).await.unwrap();
    let mut status = keys.status();
    tokio::time::timeout(PATIENCE, status.wait_for(|status| status.synced)).await.unwrap().unwrap();
}

async fn next(events: &mut Subscription) -> KeyEvent {
    tokio::time::timeout(PATIENCE, events.next()).await.expect("an event in time").expect("no end")
}

/// What a subscriber makes of the events, each checked against what he has.
#[derive(Default)]
struct Copy {
    keys: BTreeMap<String, Arc<KeyValue>>,
    revision: i64,
    restarts: Vec<Restart>,
    changes: usize,
}

impl Copy {
    fn apply(&mut self, event: KeyEvent) {
        assert!(event.revision() >= self.revision, "{event:?} after {}", self.revision);
        self.revision = event.revision();
        self.changes += usize::from(!matches!(event, KeyEvent::Resynchronised { .. }));
        match event {
            KeyEvent::Added(new) => assert_eq!(self.keys.insert(new.key.clone(), new), None),
            KeyEvent::Changed { old, new } => assert_eq!(self.keys.insert(new.key.clone(), new), Some(old)),
            KeyEvent::Removed { old, .. } => assert_eq!(self.keys.remove(&old.key), Some(old)),
            KeyEvent::Resynchronised { reason, entries, .. } => {
                self.restarts.push(reason);
                self.keys = entries.iter().map(|entry| (entry.key.clone(), Arc::clone(entry))).collect();
            }
        }
    }

    async fn until_revision(&mut self, events: &mut Subscription, revision: i64) {
        while self.revision < revision {
            self.apply(next(events).await);
        }
    }
}

#[tokio::test]
async fn a_prefix_is_watched_once_however_many_use_it_and_no_longer_than_the_last_of_them() {
    let etcd = Etcd::start().await;
    let registry = Registry::new(etcd.connector());
    let first = registry.keys("/k/").unwrap();
    let others: Vec<_> = (0..20).map(|_| registry.clone().keys("/k/").unwrap()).collect();
    synced(&first).await;
    synced(&others[7]).await;
    assert_eq!(etcd.watchers().await, 1);
    let single = registry.key("/k/").unwrap();
    synced(&single).await;
    assert_eq!(etcd.watchers().await, 2, "a key is not the prefix that it is called like");
    single.close().await;
    etcd.has_watchers(1).await;

    let mut events = first.subscribe();
    drop((first, others));
    etcd.client().await.put("/k/a", "1", None).await.unwrap();
    while next(&mut events).await.revision() < 2 {}
    assert_eq!((events.keys().names(), etcd.watchers().await), (vec!["a".into()], 1));
    drop(events);
    etcd.has_watchers(0).await;

    // Users who come and go without a pause never make two.
    for _ in 0..20 {
        let keys = registry.keys("/k/").unwrap();
        synced(&keys).await;
        assert!(etcd.watchers().await <= 1);
    }
    etcd.has_watchers(0).await;
}

#[tokio::test]
async fn changes_come_in_etcds_order_with_what_was_there_before() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    client.put("/k/old", "1", None).await.unwrap();
    let registry = Registry::new(etcd.connector());
    let keys = registry.keys("/k/").unwrap();
    let mut events = keys.subscribe();
    let KeyEvent::Resynchronised { reason, entries, revision } = next(&mut events).await else { panic!("no start") };
    assert_eq!((reason, entries.len(), revision), (Restart::Mirror(ResyncReason::First), 1, 2));

    let lease = client.lease_grant(60, None).await.unwrap().id();
    client.put("/k/z", "1", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    client.put("/k/a", "1", None).await.unwrap();
    client.delete("/k/old", None).await.unwrap();
    client.put("/k/z", "2", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    client.lease_revoke(lease).await.unwrap();
    client.put("/k/z", "3", None).await.unwrap();
    let both = Txn::new().and_then([TxnOp::put("/k/b", "", None), TxnOp::delete("/k/a", None)]);
    client.txn(both).await.unwrap();
    let mut told = Vec::new();
    while told.len() < 8 {
        let text = |entry: &KeyValue| format!("{}={}", keys.name_of(entry), String::from_utf8_lossy(&entry.value));
        told.push(match next(&mut events).await {
            KeyEvent::Added(new) => format!("+{}", text(&new)),
            KeyEvent::Changed { old, new } => format!("{} -> {}", text(&old), text(&new)),
            KeyEvent::Removed { old, .. } => format!("-{}", text(&old)),
            KeyEvent::Resynchronised { reason, .. } => reason.to_string(),
        });
    }
    assert_eq!(told[..6], ["+z=1", "+a=1", "-old=1", "z=1 -> z=2", "-z=2", "+z=3"]);
    assert_eq!(BTreeMap::from_iter(told[6..].iter().map(|told| (told, ()))).len(), 2, "{told:?}");
    assert!(told[6..].contains(&"+b=".into()) && told[6..].contains(&"-a=1".into()), "{told:?}");
    // Who comes later begins with what is there.
    let KeyEvent::Resynchronised { reason, entries, .. } = next(&mut keys.subscribe()).await else {
        panic!("no start")
    };
    assert_eq!((reason, entries.len()), (Restart::Subscribed, 2));
}

#[tokio::test]
async fn keys_are_read_by_name_and_the_oldest_one_leads() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    for (name, value) in [("00000000000000000007", "b"), ("00000000000000000003", "a"), ("00000000000000000009", "c")] {
        client.put(format!("/w/{name}"), value, None).await.unwrap();
    }
    let registry = Registry::new(etcd.connector());
    let keys = registry.keys("/w/").unwrap();
    keys.ready(PATIENCE).await.unwrap();
    assert_eq!(keys.names(), ["00000000000000000003", "00000000000000000007", "00000000000000000009"]);
    assert_eq!(keys.values(), [b"a", b"b", b"c"]);
    assert_eq!((keys.value("00000000000000000009"), keys.value("9")), (Some(b"c".to_vec()), None));
    let leader = || keys.leader().map(|leader| keys.name_of(&leader).to_owned());
    assert_eq!(leader().as_deref(), Some("00000000000000000007"));
    client.put("/w/00000000000000000007", "written again, leads on", None).await.unwrap();
    client.delete("/w/00000000000000000003", None).await.unwrap();
    eventually("it is gone", || async { (keys.len() == 2).then_some(()) }).await;
    assert_eq!(leader().as_deref(), Some("00000000000000000007"));
    client.delete("/w/00000000000000000007", None).await.unwrap();
    eventually("the next one leads", || async { (leader().as_deref() == Some("00000000000000000009")).then_some(()) })
        .await;
    client.delete("/w/00000000000000000009", None).await.unwrap();
    eventually("nobody leads", || async { keys.is_empty().then_some(()) }).await;
    assert_eq!(leader(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_who_lags_behind_ten_thousand_changes_is_told_and_goes_on_from_a_consistent_state() {
    const CHANGES: usize = 10_000;
    let etcd = Etcd::start().await;
    let registry = Registry::with_options(etcd.connector(), HubOptions { queue: 100, ..HubOptions::default() });
    let keys = registry.keys("/k/").unwrap();
    keys.ready(PATIENCE).await.unwrap();
    let (mut lazy, mut slow) = (keys.subscribe(), keys.subscribe());
    let client = etcd.client().await;
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let mut client = client.clone();
            tokio::spawn(async move {
                for n in (writer..CHANGES).step_by(8) {
                    match n % 10 {
                        9 => _ = client.delete(format!("/k/{}", n % 480), None).await.unwrap(),
                        _ => _ = client.put(format!("/k/{}", n % 500), n.to_string(), None).await.unwrap(),
                    }
                }
            })
        })
        .collect();
    // One takes his time for each event, the other one does nothing until all is over.
    let pace = tokio::spawn(async move {
        let mut copy = Copy::default();
        while !copy.keys.contains_key("/k/end") {
            copy.apply(next(&mut slow).await);
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        copy
    });
    for writer in writers {
        writer.await.unwrap();
    }
    let revision = client.kv_client().put("/k/end", "", None).await.unwrap().header().unwrap().revision();
    eventually("the registry has them all", || async { keys.get("end") }).await;

    let paced = pace.await.unwrap();
    assert!(paced.restarts.contains(&Restart::Lagged), "{:?}", paced.restarts);
    let mut late = Copy::default();
    late.until_revision(&mut lazy, revision).await;
    assert_eq!(late.restarts, [Restart::Subscribed, Restart::Lagged]);
    assert_eq!(late.changes, 0, "the new start is the present state");
    for copy in [&paced, &late] {
        assert!(copy.keys.values().eq(&keys.all()));
    }
    // And on it goes.
    client.kv_client().put("/k/after", "", None).await.unwrap();
    assert!(matches!(next(&mut lazy).await, KeyEvent::Added(new) if new.key == "/k/after"));
}

#[tokio::test]
async fn fetching_everything_again_tells_nothing_when_nothing_was_missed() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let refresh = Some(Duration::from_secs(1));
    let registry = Registry::with_options(etcd.connector(), HubOptions { refresh, ..HubOptions::default() });
    let keys = registry.keys("/k/").unwrap();
    let mut events = keys.subscribe();
    let mut copy = Copy::default();
    copy.apply(next(&mut events).await);
    let refreshed =
        || keys.status().borrow().resyncs.iter().find(|(why, _)| *why == ResyncReason::Refreshed).unwrap().1;
    let mut last = 0;
    let (mut writes, began) = (0, std::time::Instant::now());
    while refreshed() < 2 {
        assert!(began.elapsed() < PATIENCE);
        let put = client.put(format!("/k/{}", writes % 50), "", None).await.unwrap();
        last = put.header().unwrap().revision();
        writes += 1;
        while let Some(event) = events.try_next() {
            copy.apply(event);
        }
    }
    copy.until_revision(&mut events, last).await;
    assert_eq!(copy.restarts, [Restart::Mirror(ResyncReason::First)]);
    assert_eq!(copy.changes, writes, "each write is told, once");
    assert!(copy.keys.values().eq(&keys.all()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_cuts_pauses_and_compactions_events_lead_from_state_to_state() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let refresh = Some(Duration::from_secs(1));
    let options = HubOptions { refresh, ..HubOptions::default() };
    let registry = Registry::with_options(connector(&[proxy.url()]), options);
    let keys = registry.keys("/k/").unwrap();
    keys.ready(PATIENCE).await.unwrap();
    let mut events = keys.subscribe();
    let follower = tokio::spawn(async move {
        let mut copy = Copy::default();
        while !copy.keys.contains_key("/k/end") {
            copy.apply(next(&mut events).await);
        }
        copy
    });
    let client = etcd.client().await;
    let (mut writer, stop) = (client.clone(), CancellationToken::new());
    let stopped = stop.clone();
    let writing = tokio::spawn(async move {
        for n in (0..u32::MAX).take_while(|_| !stopped.is_cancelled()) {
            match n % 7 {
                6 => _ = writer.delete(format!("/k/{}", n % 41), None).await.unwrap(),
                _ => _ = writer.put(format!("/k/{}", n % 53), n.to_string(), None).await.unwrap(),
            }
        }
    });
    let revision = || async { client.kv_client().get("/k/0", None).await.unwrap().header().unwrap().revision() };
    for round in 0..6 {
        let mut status = keys.status();
        tokio::time::timeout(PATIENCE, status.wait_for(|status| status.synced)).await.unwrap().unwrap();
        let begun = revision().await;
        proxy.set([Mode::Cut, Mode::Pause][round % 2]);
        eventually("changes meanwhile", || async { (revision().await > begun + 200).then_some(()) }).await;
        // In the last rounds what happened meanwhile is forgotten.
        if round >= 3 {
            client.kv_client().compact(revision().await, None).await.unwrap();
        }
        proxy.set(Mode::Forward);
    }
    stop.cancel();
    writing.await.unwrap();
    client.kv_client().put("/k/end", "", None).await.unwrap();
    let copy = tokio::time::timeout(PATIENCE, follower).await.expect("in time").unwrap();
    assert!(!copy.restarts.contains(&Restart::Mirror(ResyncReason::Refreshed)), "{:?}", copy.restarts);
    assert!(copy.restarts.contains(&Restart::Mirror(ResyncReason::Reconnected)), "{:?}", copy.restarts);
    let there = client.kv_client().get("/k/", Some(GetOptions::new().with_prefix())).await.unwrap();
    let there: Vec<_> = there.kvs().iter().map(|kv| (kv.key_str().unwrap(), kv.mod_revision())).collect();
    let known: Vec<_> = copy.keys.values().map(|kv| (kv.key.as_str(), kv.mod_revision)).collect();
    assert_eq!(known, there);
}

#[tokio::test]
async fn a_wiped_etcd_is_a_new_start_for_everyone() {
    let mut etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    for n in 0..20 {
        client.put(format!("/k/{n}"), "", None).await.unwrap();
    }
    let registry = Registry::new(etcd.connector());
    let keys = registry.keys("/k/").unwrap();
    let mut events = keys.subscribe();
    assert!(matches!(next(&mut events).await, KeyEvent::Resynchronised { entries, .. } if entries.len() == 20));
    etcd.wipe().await;
    let KeyEvent::Resynchronised { reason, entries, revision } = next(&mut events).await else { panic!("no start") };
    assert_eq!((reason, entries.len()), (Restart::Mirror(ResyncReason::RevisionRegressed), 0));
    assert!(revision < 20 && keys.is_empty());
    etcd.client().await.put("/k/new", "", None).await.unwrap();
    assert!(matches!(next(&mut events).await, KeyEvent::Added(new) if keys.name_of(&new) == "new"));
}

#[tokio::test]
async fn after_the_shutdown_nothing_is_watched_and_what_was_known_can_be_read() {
    let etcd = Etcd::start().await;
    etcd.client().await.put("/k/a", "1", None).await.unwrap();
    let registry = Registry::new(etcd.connector());
    let keys = registry.keys("/k/").unwrap();
    synced(&keys).await;
    let mut events = keys.subscribe();
    let other = registry.clone();
    registry.shutdown().await;
    tokio::time::timeout(PATIENCE, keys.closed()).await.expect("closed");
    assert!(matches!(events.next().await, Some(KeyEvent::Resynchronised { .. })));
    assert_eq!(events.next().await, None);
    assert_eq!(keys.value("a"), Some(b"1".to_vec()));
    assert_eq!(other.keys("/k/").err(), Some(HubError::Closed));
    etcd.has_watchers(0).await;
}

#[tokio::test]
async fn who_waits_in_vain_is_told_why() {
    let registry = Registry::new(connector(&["http://127.0.0.1:1".into()]));
    let keys = registry.keys("/k/").unwrap();
    let error = keys.ready(Duration::from_millis(500)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("\"/k/\" was not fetched from etcd within 500ms: "), "{text}");
    assert!(text.contains("http://127.0.0.1:1 cannot be reached"), "{text}");
    assert!(registry.client().await.is_err());
    let outside = std::thread::spawn(move || registry.keys("/k/").err());
    assert_eq!(outside.join().unwrap(), Some(HubError::NoRuntime));
}
