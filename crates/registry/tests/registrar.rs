//! What a registration can be: values of any kind, keys by template, names out of revisions, keys that others hold, and
//! what is said of a loss. On a real etcd.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use etcd_client::{Client, GetOptions, PutOptions};
use tokio::{sync::watch, task::JoinHandle};
use waypost_registry::{
    IfHeld, KeyFields, KeyTemplate, Registrar, RegistrarOptions, Registration, RegistrationHandle, RegistrationState,
    RegistryError, Shutdown, address::AddressSource,
};
use waypost_registry_testing::{
    Etcd, Mode, PATIENCE, Proxy, connector, eventually, get, registered, state_is, value_is,
};

const TTL: Duration = Duration::from_secs(3);

fn start(etcd: &Etcd) -> Registrar {
    Registrar::start(etcd.connector(), RegistrarOptions { ttl: TTL, ..RegistrarOptions::default() })
}

async fn keys(client: &Client, prefix: &str) -> Vec<String> {
    let options = GetOptions::new().with_prefix().with_keys_only();
    let found = client.kv_client().get(prefix, Some(options)).await.unwrap();
    found.kvs().iter().map(|kv| kv.key_str().unwrap().to_owned()).collect()
}

/// A key that somebody else holds under a lease of their own.
async fn held(client: &Client, key: &str, value: &str) -> i64 {
    let mut client = client.clone();
    let lease = client.lease_grant(60, None).await.unwrap().id();
    client.put(key, value, Some(PutOptions::new().with_lease(lease))).await.unwrap();
    lease
}

/// Every state that a registration goes through from now on, by name.
fn history(handle: &RegistrationHandle) -> (watch::Receiver<Vec<String>>, JoinHandle<()>) {
    let (sender, names) = watch::channel(Vec::new());
    let mut state = handle.state();
    let task = tokio::spawn(async move {
        loop {
            let name = state.borrow_and_update().name();
            sender.send_if_modified(|names: &mut Vec<String>| {
                let new = names.last().is_none_or(|last| last != name);
                if new {
                    names.push(name.to_owned());
                }
                new
            });
            if state.changed().await.is_err() {
                return;
            }
        }
    });
    (names, task)
}

#[tokio::test]
async fn a_key_by_template_has_a_value_of_any_kind_and_keeps_its_lease_through_updates() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let registrar = start(&etcd);
    let template: KeyTemplate = "/apps/{service}/{ip}/{pid}".parse().unwrap();
    let fields = KeyFields::local().service("orders").address(&"interface:lo".parse::<AddressSource>().unwrap());
    let key = template.fill(&fields.unwrap()).unwrap();
    assert_eq!(key, format!("/apps/orders/127.0.0.1/{}", std::process::id()));

    let handle = registrar.register(Registration::new(&*key, "text"));
    assert_eq!(handle.registered(PATIENCE).await.unwrap(), key);
    let (value, lease) = get(&client, &key).await.unwrap();
    assert_eq!((&*value, Some(lease)), ("text", *registrar.lease().borrow()));

    handle.update_json(&HashMap::from([("weight", 3)])).unwrap();
    handle.settled().await.unwrap();
    assert_eq!(get(&client, &key).await.unwrap(), (r#"{"weight":3}"#.to_owned(), lease));
    let error = handle.update_json(&HashMap::from([((1, 2), 3)])).unwrap_err();
    assert!(error.to_string().contains(&key), "{error}");

    handle.update([0xff, 0x00]);
    handle.settled().await.unwrap();
    let found = client.kv_client().get(key.as_str(), None).await.unwrap();
    assert_eq!((found.kvs()[0].value(), found.kvs()[0].lease()), (&[0xff, 0x00][..], lease));
    let json = registrar.register(Registration::json("/json", &["a", "b"]).unwrap());
    json.registered(PATIENCE).await.unwrap();
    value_is(&client, "/json", r#"["a","b"]"#).await;
}

#[tokio::test]
async fn numbered_keys_of_many_processes_have_a_name_each_and_keep_it_through_loss_and_wipe() {
    let mut etcd = Etcd::start().await;
    let client = etcd.client().await;
    let registrars: Vec<_> = (0..10).map(|_| start(&etcd)).collect();
    let register = |n: usize| registrars[n % 10].register(Registration::numbered("/n", n.to_string()));
    let handles: Vec<_> = (0..30).map(register).collect();
    let mut names = BTreeSet::new();
    for (n, handle) in handles.iter().enumerate() {
        let key = handle.registered(PATIENCE).await.unwrap();
        assert_eq!(handle.key().as_ref(), Some(&key));
        let number = key.strip_prefix("/n/").unwrap();
        assert!(number.len() == 20 && number.parse::<i64>().unwrap() > 1, "{number}");
        assert_eq!(get(&client, &key).await.unwrap().0, n.to_string());
        names.insert(key);
    }
    assert_eq!(names.len(), 30);
    assert_eq!(keys(&client, "/n/").await, names.iter().cloned().collect::<Vec<_>>());

    let lease = registrars[0].lease().borrow().unwrap();
    client.lease_client().revoke(lease).await.unwrap();
    eventually("all names are back", || async { (keys(&client, "/n/").await.len() == 30).then_some(()) }).await;
    etcd.wipe().await;
    let client = etcd.client().await;
    eventually("all names are back after the wipe", || async {
        (keys(&client, "/n/").await.len() == 30).then_some(())
    })
    .await;
    for (n, handle) in handles.iter().enumerate() {
        registered(handle).await;
        let key = handle.key().unwrap();
        assert!(names.contains(&key), "{key} is a new name");
        assert_eq!(get(&client, &key).await.unwrap().0, n.to_string());
    }
    registrars.into_iter().next().unwrap().shutdown(Shutdown::Deregister).await;
    assert_eq!(keys(&client, "/n/").await.len(), 27);
}

#[tokio::test]
async fn a_key_that_somebody_else_holds_fails_the_one_waits_for_the_other_and_is_overwritten_by_the_third() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let lease = held(&client, "/a", "theirs").await;
    let registrar = start(&etcd);

    let failing = registrar.register(Registration::new("/a", "failing").if_held(IfHeld::Fail));
    let error = failing.registered(PATIENCE).await.unwrap_err();
    let said = format!("somebody else holds key /a, under lease {lease:x}: it goes with its holder");
    assert!(matches!(error, RegistryError::Held { .. }) && error.to_string().starts_with(&said), "{error}");
    assert_eq!(failing.state().borrow().name(), "failed");
    failing.update("late");
    assert_eq!(failing.settled().await.unwrap_err(), error);
    failing.deregister().await.unwrap();

    let waiting = registrar.register(Registration::new("/a", "waiting").if_held(IfHeld::Wait));
    state_is(&waiting, |state| state.cause().is_some_and(|cause| cause.contains("waiting until it is gone"))).await;
    let error = waiting.registered(Duration::from_millis(100)).await.unwrap_err().to_string();
    assert!(error.contains(&format!("{lease:x}")), "{error}");
    waiting.update("newer");
    assert_eq!(get(&client, "/a").await.unwrap(), ("theirs".to_owned(), lease));
    client.lease_client().revoke(lease).await.unwrap();
    waiting.registered(PATIENCE).await.unwrap();
    assert_eq!(get(&client, "/a").await.unwrap().0, "newer");

    // Held by the registrar above, as others see it.
    let second = start(&etcd);
    let refused = second.register(Registration::new("/a", "second").if_held(IfHeld::Fail));
    refused.registered(PATIENCE).await.unwrap_err();
    let taking = second.register(Registration::new("/a", "second"));
    taking.registered(PATIENCE).await.unwrap();
    assert_eq!(get(&client, "/a").await.unwrap(), ("second".to_owned(), second.lease().borrow().unwrap()));
    state_is(&waiting, |state| state.cause().is_some_and(|cause| cause.contains("waiting until it is gone"))).await;
    waiting.update("newest");
    taking.deregister().await.unwrap();
    waiting.registered(PATIENCE).await.unwrap();
    assert_eq!(get(&client, "/a").await.unwrap().0, "newest");
}

#[tokio::test]
async fn of_many_that_register_one_key_create_only_one_has_it() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let registrars: Vec<_> = (0..5).map(|_| start(&etcd)).collect();
    let one = |registrar: &Registrar| registrar.register(Registration::new("/a", "x").if_held(IfHeld::Fail));
    let handles: Vec<_> = registrars.iter().map(one).collect();
    let mut won = 0;
    for handle in &handles {
        won += usize::from(handle.registered(PATIENCE).await.is_ok());
    }
    assert_eq!(won, 1);
    assert_eq!(client.kv_client().get("/a", None).await.unwrap().kvs()[0].version(), 1);
}

#[tokio::test]
async fn a_loss_is_told_once_etcd_has_said_so_and_not_while_it_only_cannot_be_reached() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let proxy = Proxy::start(etcd.address()).await;
    let options = RegistrarOptions { ttl: TTL, ..RegistrarOptions::default() };
    let registrar = Registrar::start(connector(&[proxy.url()]), options);
    let handle = registrar.register(Registration::new("/a", "here"));
    registered(&handle).await;
    let lease = registrar.lease().borrow().unwrap();
    let (mut names, task) = history(&handle);

    // The lease runs out at etcd while the way there is cut.
    proxy.set(Mode::Cut);
    eventually("the key is gone", || async { get(&client, "/a").await.is_none().then_some(()) }).await;
    state_is(&handle, |state| state.name() == "retrying").await;
    assert!(!names.borrow().iter().any(|name| name == "lost"), "{:?}", names.borrow());
    let mut state = handle.state();
    proxy.set(Mode::Forward);
    let lost = tokio::time::timeout(PATIENCE, state.wait_for(|state| state.name() == "lost")).await.unwrap().unwrap();
    let cause = lost.cause().unwrap().to_owned();
    drop(lost);
    assert!(cause.starts_with(&format!("lease {lease:x} is gone from etcd")), "{cause}");
    registered(&handle).await;
    assert_eq!(get(&client, "/a").await.unwrap().1, registrar.lease().borrow().unwrap());
    // States that follow one another before anybody looks are one: only the order is certain.
    let ends = |names: &Vec<String>| names.last().is_some_and(|name| name == "registered") && names.len() > 1;
    let seen = names.wait_for(ends).await.unwrap().join(" ");
    assert!(seen.starts_with("registered retrying") && seen.contains("lost"), "{seen}");

    // The key deleted by somebody else.
    client.kv_client().delete("/a", None).await.unwrap();
    let deleted = RegistrationState::Lost { cause: "somebody else deleted key /a".into() };
    let told = tokio::time::timeout(PATIENCE, state.wait_for(|state| *state == deleted)).await;
    assert!(told.is_ok(), "{:?}", handle.state().borrow());
    drop(told);
    registered(&handle).await;
    value_is(&client, "/a", "here").await;
    registrar.shutdown(Shutdown::Deregister).await;
    assert_eq!(*handle.state().borrow(), RegistrationState::Closed);
    task.await.unwrap();
}

#[tokio::test]
async fn a_registration_that_etcd_does_not_confirm_says_so_and_is_tried_on() {
    let mut etcd = Etcd::prepare("http", vec![]);
    let registrar = start(&etcd);
    let handle = registrar.register(Registration::numbered("/n", "x"));
    // It is away: nobody listens there yet.
    let error = handle.registered(Duration::from_secs(1)).await.unwrap_err().to_string();
    assert!(error.contains("/n") && error.contains(&etcd.url()), "{error}");
    assert_eq!(handle.key(), None);
    etcd.run().await;
    assert_eq!(handle.registered(PATIENCE).await.unwrap(), format!("/n/{:020}", 2));
}
