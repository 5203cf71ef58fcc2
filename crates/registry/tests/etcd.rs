//! Registrar and mirror against a real etcd that is killed, wiped, compacted, cut off and meddled with.

use std::time::{Duration, Instant};

use etcd_client::{DeleteOptions, PutOptions, WatchOptions};
use waypost_registry::{
    ConnectOptions, Connector, Credentials, Mirror, MirrorOptions, Registrar, RegistrarOptions, Registration,
    RegistrationState, ResyncReason, Shutdown, TlsOptions,
};
use waypost_registry_testing::{Copy, Etcd, Mode, Proxy, connector, eventually, get, registered, state_is, value_is};

const TTL: Duration = Duration::from_secs(3);
/// What every loss is made good within, from when etcd answers.
const BOUND: Duration = Duration::from_secs(2);

fn options(adopt: Option<i64>) -> RegistrarOptions {
    RegistrarOptions { ttl: TTL, adopt }
}

fn registration(key: &str, value: &str) -> Registration {
    Registration::new(key, value)
}

#[tokio::test]
async fn a_registration_outlives_its_ttl_and_never_leaves_etcd() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let mut watch = client.watch("/r/", Some(WatchOptions::new().with_prefix())).await.unwrap();
    let registrar = Registrar::start(etcd.connector(), options(None));
    let handles: Vec<_> = (0..200).map(|n| registrar.register(registration(&format!("/r/{n}"), "here"))).collect();
    for handle in &handles {
        registered(handle).await;
    }
    let until = tokio::time::Instant::now() + TTL * 2;
    let mut events = 0;
    while let Ok(message) = tokio::time::timeout_at(until, watch.message()).await {
        events += message.unwrap().unwrap().events().len();
    }
    assert_eq!(events, 200, "each key is put once and never again");
    assert_eq!((registrar.stats().leases_granted, registrar.stats().leases_lost), (1, 0));
    registrar.shutdown(Shutdown::Deregister).await;
    assert_eq!(get(&client, "/r/0").await, None);
    assert!(client.leases().await.unwrap().leases().is_empty());
    assert_eq!(*handles[0].state().borrow(), RegistrationState::Closed);
}

#[tokio::test]
async fn re_registers_after_etcd_is_wiped() {
    let mut etcd = Etcd::start().await;
    let registrar = Registrar::start(etcd.connector(), options(None));
    let handles = ["/r/a", "/r/b"].map(|key| registrar.register(registration(key, "here")));
    for handle in &handles {
        registered(handle).await;
    }
    etcd.kill().await;
    state_is(&handles[0], |state| matches!(state, RegistrationState::Retrying { .. })).await;
    etcd.wipe().await;
    let answering = Instant::now();
    let client = etcd.client().await;
    value_is(&client, "/r/a", "here").await;
    value_is(&client, "/r/b", "here").await;
    assert!(answering.elapsed() < BOUND, "{:?}", answering.elapsed());
    registered(&handles[0]).await;
    assert_eq!(registrar.stats().leases_lost, 1);

    // A restart without loss costs nothing: the lease is still there.
    let lease = *registrar.lease().borrow();
    etcd.kill().await;
    etcd.run().await;
    let client = etcd.client().await;
    value_is(&client, "/r/a", "here").await;
    registered(&handles[0]).await;
    assert_eq!(*registrar.lease().borrow(), lease);
}

#[tokio::test]
async fn what_somebody_else_deletes_overwrites_or_revokes_is_back_in_time() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let registrar = Registrar::start(etcd.connector(), options(None));
    let handle = registrar.register(registration("/r/a", "here"));
    registered(&handle).await;
    let lease = registrar.lease().borrow().unwrap();

    client.delete("/r/a", None).await.unwrap();
    let since = Instant::now();
    value_is(&client, "/r/a", "here").await;
    assert!(since.elapsed() < BOUND, "{:?}", since.elapsed());

    client.put("/r/a", "other", None).await.unwrap();
    let since = Instant::now();
    value_is(&client, "/r/a", "here").await;
    assert!(since.elapsed() < BOUND, "{:?}", since.elapsed());
    assert_eq!(get(&client, "/r/a").await.unwrap().1, lease);

    client.put("/r/a", "meddled", Some(PutOptions::new().with_ignore_lease())).await.unwrap();
    value_is(&client, "/r/a", "here").await;

    client.lease_revoke(lease).await.unwrap();
    let since = Instant::now();
    value_is(&client, "/r/a", "here").await;
    assert!(since.elapsed() < BOUND, "{:?}", since.elapsed());
    registered(&handle).await;
    assert_eq!((registrar.stats().leases_lost, registrar.stats().reasserts), (1, 4));
}

#[tokio::test]
async fn updates_arrive_in_order_and_the_newest_wins() {
    let mut etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let registrar = Registrar::start(etcd.connector(), options(None));
    let handle = registrar.register(registration("/r/a", "0"));
    registered(&handle).await;
    let mut watch = client.watch("/r/a", None).await.unwrap();
    for value in 1..=500 {
        handle.update(value.to_string());
        if value % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut seen = 0;
    while seen < 500 {
        for event in watch.message().await.unwrap().unwrap().events() {
            let value: u32 = event.kv().unwrap().value_str().unwrap().parse().unwrap();
            assert!(value > seen, "{value} after {seen}");
            seen = value;
        }
    }
    // Also what is intended while etcd is away arrives, and nothing older.
    etcd.kill().await;
    handle.update("501");
    handle.update("502");
    etcd.run().await;
    value_is(&etcd.client().await, "/r/a", "502").await;
}

#[tokio::test]
async fn a_lease_is_adopted_without_a_needless_put_and_pruned_of_what_is_not_wanted() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let first = Registrar::start(etcd.connector(), options(None));
    for key in ["/r/a", "/r/b", "/r/c"] {
        registered(&first.register(registration(key, "here"))).await;
    }
    let lease = *first.lease().borrow();
    first.shutdown(Shutdown::Leave).await;

    let revision = || async { client.kv_client().get("/r/a", None).await.unwrap().header().unwrap().revision() };
    let before = revision().await;
    let second = Registrar::start(etcd.connector(), options(lease));
    let (a, b) = (second.register(registration("/r/a", "here")), second.register(registration("/r/b", "here")));
    registered(&a).await;
    registered(&b).await;
    assert_eq!(revision().await, before);
    assert_eq!(*second.lease().borrow(), lease);
    assert_eq!(second.stats().leases_granted, 0);

    second.prune();
    eventually("/r/c is pruned", || async { get(&client, "/r/c").await.is_none().then_some(()) }).await;
    assert!(get(&client, "/r/a").await.is_some());

    a.withdraw();
    state_is(&a, |state| *state == RegistrationState::Withdrawn).await;
    assert_eq!(get(&client, "/r/a").await, None);
    a.update("again");
    value_is(&client, "/r/a", "again").await;
    b.deregister().await.unwrap();
    assert_eq!(get(&client, "/r/b").await, None);

    client.kv_client().put("/r/a", "foreign", None).await.unwrap();
    a.deregister().await.unwrap();
    assert_eq!(get(&client, "/r/a").await.unwrap().0, "foreign");
}

#[tokio::test]
async fn a_lease_that_etcd_made_longer_than_asked_is_adopted() {
    let mut etcd = Etcd::prepare("http", vec!["--election-timeout=4000".into()]);
    etcd.run().await;
    let client = etcd.client().await;
    let options = |adopt| RegistrarOptions { ttl: Duration::from_secs(1), adopt };
    let first = Registrar::start(etcd.connector(), options(None));
    registered(&first.register(registration("/r/a", "1"))).await;
    let lease = first.lease().borrow().unwrap();
    first.shutdown(Shutdown::Leave).await;

    let second = Registrar::start(etcd.connector(), options(Some(lease)));
    let handle = second.register(registration("/r/a", "1"));
    registered(&handle).await;
    assert_eq!((*second.lease().borrow(), get(&client, "/r/a").await.unwrap().1), (Some(lease), lease));
    handle.update("2");
    handle.settled().await.unwrap();
    value_is(&client, "/r/a", "2").await;
    second.shutdown(Shutdown::Deregister).await;
}

#[tokio::test]
async fn one_living_endpoint_of_three_is_enough_and_a_silent_one_costs_no_lease() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let dead = "http://127.0.0.1:1".to_owned();
    let connector = connector(&[dead.clone(), etcd.url(), proxy.url()]);
    let registrar = Registrar::start(connector.clone(), RegistrarOptions { ttl: Duration::from_secs(6), adopt: None });
    let (mirror, events) = Mirror::start(connector, MirrorOptions::new("/r/"));
    let mut copy = Copy::new(events);
    let handle = registrar.register(registration("/r/a", "here"));
    copy.until_value("/r/a", Some("here")).await;
    registered(&handle).await;
    proxy.set(Mode::Swallow);
    handle.update("there");
    copy.until_value("/r/a", Some("there")).await;
    assert_eq!(registrar.stats().leases_lost, 0);
    mirror.shutdown().await;
    registrar.shutdown(Shutdown::Deregister).await;
}

#[tokio::test]
async fn the_mirror_fetches_pages_and_sees_puts_and_deletes() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    for n in 0..95 {
        client.put(format!("/m/{n:03}"), "v", None).await.unwrap();
    }
    client.put("/m0", "beyond the prefix", None).await.unwrap();
    client.put(b"/m/\xff".to_vec(), "no text", None).await.unwrap();
    let options = MirrorOptions { page_size: 10, ..MirrorOptions::new("/m/") };
    let (mirror, events) = Mirror::start(etcd.connector(), options);
    let mut copy = Copy::new(events);
    copy.until("95 keys", |copy| copy.keys.len() == 95).await;
    client.put("/m/new", "1", None).await.unwrap();
    copy.until_value("/m/new", Some("1")).await;
    client.delete("/m/new", None).await.unwrap();
    copy.until_value("/m/new", None).await;
    client.delete("/m/", Some(DeleteOptions::new().with_prefix())).await.unwrap();
    copy.until("nothing is left", |copy| copy.keys.is_empty()).await;
    assert_eq!(copy.reasons, [ResyncReason::First]);
    let status = mirror.status();
    let revision = client.get("/m/", None).await.unwrap().header().unwrap().revision();
    eventually("the status follows", || async { (status.borrow().revision == revision).then_some(()) }).await;
    assert!(status.borrow().synced && status.borrow().skipped_keys > 0);
}

#[tokio::test]
async fn a_slow_consumer_loses_nothing() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let (_mirror, events) = Mirror::start(etcd.connector(), MirrorOptions::new("/m/"));
    let mut copy = Copy::new(events);
    copy.until("the full state", |copy| !copy.reasons.is_empty()).await;
    for n in 0..1000 {
        client.put(format!("/m/{}", n % 300), n.to_string(), None).await.unwrap();
    }
    copy.until("all keys", |copy| copy.keys.len() == 300).await;
    copy.until_value("/m/99", Some("999")).await;
    assert_eq!(copy.reasons, [ResyncReason::First]);
}

#[tokio::test]
async fn the_full_state_is_fetched_again_beside_the_watch() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    for n in 0..25 {
        client.put(format!("/m/{n}"), "0", None).await.unwrap();
    }
    let options = MirrorOptions { page_size: 10, refresh: Some(Duration::from_secs(1)), ..MirrorOptions::new("/m/") };
    let (mirror, events) = Mirror::start(etcd.connector(), options);
    let mut copy = Copy::new(events);
    let writer = tokio::spawn(async move {
        for n in 0.. {
            if client.put(format!("/m/{}", n % 25), n.to_string(), None).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    copy.until("three full states", |copy| copy.reasons.len() == 3).await;
    assert_eq!(copy.reasons[1..], [ResyncReason::Refreshed; 2]);
    writer.abort();
    let mut client = etcd.client().await;
    client.put("/m/0", "last", None).await.unwrap();
    copy.until_value("/m/0", Some("last")).await;
    assert_eq!(copy.keys.len(), 25);
    assert!(mirror.status().borrow().resyncs.iter().all(|(reason, count)| match reason {
        ResyncReason::First => *count == 1,
        ResyncReason::Refreshed => *count >= 2,
        _ => *count == 0,
    }));
}

#[tokio::test]
async fn a_single_key_is_mirrored_without_those_that_begin_with_it() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    for key in ["/m/a", "/m/a/b", "/m/ab"] {
        client.put(key, "1", None).await.unwrap();
    }
    let (_mirror, events) = Mirror::start(etcd.connector(), MirrorOptions::single_key("/m/a"));
    let mut copy = Copy::new(events);
    copy.until_value("/m/a", Some("1")).await;
    client.put("/m/ab", "2", None).await.unwrap();
    client.put("/m/a", "2", None).await.unwrap();
    copy.until_value("/m/a", Some("2")).await;
    assert_eq!((copy.keys.len(), copy.changes), (1, 1));
}

#[tokio::test]
async fn compaction_during_a_cut_and_behind_the_watch_is_survived() {
    let etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    let proxy = Proxy::start(etcd.address()).await;
    client.put("/m/a", "1", None).await.unwrap();
    let (mirror, events) = Mirror::start(connector(&[proxy.url()]), MirrorOptions::new("/m/"));
    let mut copy = Copy::new(events);
    let mut status = mirror.status();
    copy.until_value("/m/a", Some("1")).await;
    status.wait_for(|status| status.synced).await.unwrap();

    proxy.set(Mode::Cut);
    status.wait_for(|status| !status.synced).await.unwrap();
    assert!(status.borrow().cause.as_ref().unwrap().contains(&proxy.url()), "{:?}", status.borrow().cause);
    client.delete("/m/a", None).await.unwrap();
    for value in 0..10 {
        client.put("/m/b", value.to_string(), None).await.unwrap();
    }
    let revision = client.put("/m/b", "last", None).await.unwrap().header().unwrap().revision();
    client.compact(revision, None).await.unwrap();
    proxy.set(Mode::Forward);
    copy.until_value("/m/b", Some("last")).await;
    assert_eq!(copy.keys.len(), 1);
    assert_eq!(copy.reasons.last(), Some(&ResyncReason::Reconnected));
    status.wait_for(|status| status.synced).await.unwrap();

    // A watch that lags behind, and is cancelled by the compaction of what it has not sent yet.
    proxy.set(Mode::Pause);
    for _ in 0..150 {
        client.put("/m/large", vec![b'x'; 200_000], None).await.unwrap();
    }
    let revision = client.put("/m/large", "small", None).await.unwrap().header().unwrap().revision();
    client.compact(revision, None).await.unwrap();
    proxy.set(Mode::Forward);
    copy.until_value("/m/large", Some("small")).await;
    client.put("/m/after", "1", None).await.unwrap();
    copy.until_value("/m/after", Some("1")).await;
    assert!(copy.reasons.contains(&ResyncReason::Compacted), "{:?}", copy.reasons);
}

#[tokio::test]
async fn a_wiped_etcd_is_recognised_and_its_watch_is_alive() {
    let mut etcd = Etcd::start().await;
    let mut client = etcd.client().await;
    for n in 0..20 {
        client.put(format!("/m/{n}"), "old", None).await.unwrap();
    }
    let (mirror, events) = Mirror::start(etcd.connector(), MirrorOptions::new("/m/"));
    let mut copy = Copy::new(events);
    copy.until("20 keys", |copy| copy.keys.len() == 20).await;
    etcd.wipe().await;
    copy.until("no keys", |copy| copy.keys.is_empty()).await;
    assert_eq!(copy.reasons.last(), Some(&ResyncReason::RevisionRegressed));
    etcd.client().await.put("/m/new", "1", None).await.unwrap();
    copy.until_value("/m/new", Some("1")).await;
    assert!(mirror.status().borrow().resyncs.contains(&(ResyncReason::RevisionRegressed, 1)));
}

#[tokio::test]
async fn a_half_open_connection_is_noticed_within_fifteen_seconds() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.address()).await;
    let (mirror, events) = Mirror::start(connector(&[proxy.url()]), MirrorOptions::new("/m/"));
    let mut copy = Copy::new(events);
    copy.until("the full state", |copy| copy.reasons.len() == 1).await;
    let mut status = mirror.status();
    status.wait_for(|status| status.synced).await.unwrap();
    proxy.set(Mode::Swallow);
    let since = Instant::now();
    let noticed = tokio::time::timeout(Duration::from_secs(15), status.wait_for(|status| !status.synced)).await.is_ok();
    assert!(noticed);
    assert!(status.borrow().last_contact < since + Duration::from_secs(1));
    etcd.client().await.put("/m/new", "1", None).await.unwrap();
    proxy.set(Mode::Forward);
    copy.until_value("/m/new", Some("1")).await;
}

#[tokio::test]
async fn tokens_that_die_with_the_member_are_replaced() {
    let mut etcd = Etcd::start().await;
    let auth = Some(Credentials { username: "root".into(), password: "secret".into() });
    let options_of =
        |etcd: &Etcd| ConnectOptions { endpoints: vec![etcd.url()], auth: auth.clone(), ..ConnectOptions::default() };
    let connector = Connector::new(options_of(&etcd)).unwrap();
    // Credentials may be there before authentication is.
    let registrar = Registrar::start(connector.clone(), options(None));
    let handle = registrar.register(registration("/r/a", "1"));
    let (mirror, events) = Mirror::start(connector.clone(), MirrorOptions::new("/r/"));
    let mut copy = Copy::new(events);
    copy.until_value("/r/a", Some("1")).await;

    let mut client = etcd.client().await;
    client.user_add("root", "secret", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
    handle.update("2");
    copy.until_value("/r/a", Some("2")).await;

    etcd.kill().await;
    etcd.run().await;
    handle.update("3");
    copy.until_value("/r/a", Some("3")).await;
    registered(&handle).await;
    assert!(mirror.status().borrow().resyncs.iter().map(|(_, count)| count).sum::<u64>() >= 2);

    let wrong = Some(Credentials { username: "root".into(), password: "wrong".into() });
    let refused = Connector::new(ConnectOptions { auth: wrong, ..options_of(&etcd) }).unwrap().connect().await;
    let error = refused.err().unwrap().to_string();
    assert!(error.contains("refuses user \"root\"") && error.contains(&etcd.url()), "{error}");
}

#[tokio::test]
async fn tls_with_a_private_authority_and_client_certificates_works() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let certificate = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let (server, server_key) = certificate("127.0.0.1");
    let arguments = [
        ("--cert-file", file("server.pem", &server)),
        ("--key-file", file("server.key", &server_key)),
        ("--trusted-ca-file", file("ca.pem", &ca_pem)),
    ];
    let mut arguments: Vec<String> = arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
    arguments.push("--client-cert-auth".into());
    let mut etcd = Etcd::prepare("https", arguments);
    etcd.run().await;

    let (client, client_key) = certificate("agent");
    let with = |identity| {
        let tls = Some(TlsOptions { ca_pem: Some(ca_pem.clone().into()), identity });
        Connector::new(ConnectOptions { endpoints: vec![etcd.url()], tls, ..ConnectOptions::default() }).unwrap()
    };
    let trusted = with(Some((client.into(), client_key.into())));
    let registrar = Registrar::start(trusted.clone(), options(None));
    let handle = registrar.register(registration("/r/a", "1"));
    let (_mirror, events) = Mirror::start(trusted, MirrorOptions::new("/r/"));
    Copy::new(events).until_value("/r/a", Some("1")).await;
    registered(&handle).await;

    let untrusted = Registrar::start(with(None), options(None));
    let handle = untrusted.register(registration("/r/b", "1"));
    state_is(&handle, |state| matches!(state, RegistrationState::Retrying { cause } if cause.contains(&etcd.url())))
        .await;
}
