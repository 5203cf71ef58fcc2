//! Configuration in a real etcd: typed, followed, and the last good value kept.

use std::time::Duration;

use etcd_client::Client;
use serde::Deserialize;
use tokio::sync::watch;
use waypost_registry::{HubError, Registry, Setting};
use waypost_registry_testing::{Etcd, PATIENCE, connector};

#[derive(Debug, PartialEq, Deserialize)]
struct Limits {
    rate: u32,
}

async fn put(client: &Client, key: &str, value: &str) -> i64 {
    client.kv_client().put(key, value, None).await.unwrap().header().unwrap().revision()
}

/// Waits until what is shown is of this revision.
async fn until<T>(changes: &mut watch::Receiver<Setting<T>>, revision: i64) -> Setting<T> {
    let is_of = |setting: &Setting<T>| setting.entry.as_ref().is_some_and(|entry| entry.mod_revision == revision);
    tokio::time::timeout(PATIENCE, changes.wait_for(is_of)).await.expect("in time").expect("no end").clone()
}

#[tokio::test]
async fn a_value_is_followed_and_a_bad_one_leaves_the_last_good_one_in_force() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let first = put(&client, "/c/limits", r#"{"rate":1}"#).await;
    put(&client, "/c/limits-of-others", r#"{"rate":9}"#).await;
    let registry = Registry::new(etcd.connector());
    let limits = registry.config::<Limits>("/c/limits").unwrap();
    limits.ready(PATIENCE).await.unwrap();
    assert_eq!(limits.value().as_deref(), Some(&Limits { rate: 1 }));
    let mut changes = limits.changes();
    until(&mut changes, first).await;

    let revision = put(&client, "/c/limits", r#"{"rate":"many"}"#).await;
    let setting = until(&mut changes, revision).await;
    assert_eq!(setting.value.as_deref(), Some(&Limits { rate: 1 }));
    let error = setting.error.unwrap().to_string();
    let expected = format!("the value of /c/limits at revision {revision} is not used: invalid type: string \"many\"");
    assert!(error.starts_with(&expected), "{error}");

    let revision = put(&client, "/c/limits", r#"{"rate":2}"#).await;
    let setting = until(&mut changes, revision).await;
    assert!(setting.error.is_none());
    assert_eq!(limits.value().as_deref(), Some(&Limits { rate: 2 }));

    client.kv_client().delete("/c/limits", None).await.unwrap();
    let gone = changes.wait_for(|setting| setting.entry.is_none());
    assert!(tokio::time::timeout(PATIENCE, gone).await.expect("in time").expect("no end").value.is_none());

    registry.shutdown().await;
    let ended = async { while changes.changed().await.is_ok() {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the changes end with the registry");
}

#[tokio::test]
async fn the_keys_under_a_prefix_are_settings_by_name() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    put(&client, "/f/checkout", "true").await;
    put(&client, "/f/search", "perhaps").await;
    let registry = Registry::new(etcd.connector());
    let features = registry.configs::<bool>("/f/").unwrap();
    features.ready(PATIENCE).await.unwrap();
    assert_eq!(features.value("checkout").as_deref(), Some(&true));
    assert!(features.value("search").is_none() && features.value("other").is_none());
    let settings = features.settings();
    assert_eq!(settings.keys().collect::<Vec<_>>(), ["checkout", "search"]);
    assert!(settings["checkout"].error.is_none() && settings["search"].error.is_some());

    let mut changes = features.changes();
    put(&client, "/f/search", "false").await;
    client.kv_client().delete("/f/checkout", None).await.unwrap();
    let reached = changes.wait_for(|settings| {
        settings.len() == 1 && settings.get("search").is_some_and(|setting| setting.value.as_deref() == Some(&false))
    });
    tokio::time::timeout(PATIENCE, reached).await.expect("in time").expect("no end");
}

#[tokio::test]
async fn any_decoder_will_do_and_one_key_is_watched_once() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    put(&client, "/c/level", "debug").await;
    let registry = Registry::new(etcd.connector());
    let bytes = registry.config_with("/c/level", |bytes| Ok::<_, String>(bytes.to_vec())).unwrap();
    let text = registry.config_with("/c/level", |bytes| std::str::from_utf8(bytes).map(str::to_owned)).unwrap();
    bytes.ready(PATIENCE).await.unwrap();
    text.ready(PATIENCE).await.unwrap();
    assert_eq!(bytes.value().as_deref().map(Vec::as_slice), Some(&b"debug"[..]));
    assert_eq!(text.value().as_deref().map(String::as_str), Some("debug"));
    etcd.has_watchers(1).await;
    let revision = client.kv_client().put("/c/level", vec![0xff], None).await.unwrap().header().unwrap().revision();
    assert!(until(&mut text.changes(), revision).await.error.is_some());
    assert_eq!(until(&mut bytes.changes(), revision).await.value.as_deref(), Some(&vec![0xff]));
    drop((bytes, text));
    etcd.has_watchers(0).await;
}

#[tokio::test]
async fn a_key_that_is_not_there_is_ready_and_an_etcd_that_is_not_there_is_an_error() {
    let etcd = Etcd::start().await;
    let registry = Registry::new(etcd.connector());
    let limits = registry.config::<Limits>("/c/limits").unwrap();
    limits.ready(PATIENCE).await.unwrap();
    assert!(limits.value().is_none() && limits.setting().error.is_none());
    let registry = Registry::new(connector(&["http://127.0.0.1:1".into()]));
    let limits = registry.config::<Limits>("/c/limits").unwrap();
    let error = limits.ready(Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, HubError::NotReady { prefix, .. } if prefix == "/c/limits"));
}
