//! APISIX's upstreams on a real etcd: several writers, one of them elected, beside an administrator who edits them.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use etcd_client::{Client, Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, WatchOptions};
use serde_json::{Value, json};
use waypost_catalog::{Node, ServiceName};
use waypost_registry::{Format, Upstream, UpstreamWriter, format::Timestamps};
use waypost_registry_testing::{Etcd, PATIENCE, eventually, get};

const KEY: &str = "/apisix/upstreams/orders";

fn upstream() -> Upstream {
    Upstream::new("/apisix/upstreams/", &ServiceName::new("orders").unwrap())
}

fn writer(etcd: &Etcd, name: &str) -> UpstreamWriter {
    UpstreamWriter::start(etcd.connector(), upstream(), name).unwrap()
}

/// Registers a node as its agent would, under a lease.
async fn register(client: &Client, instance: &str, address: &str, weight: u32) -> i64 {
    let lease = client.lease_client().grant(60, None).await.unwrap().id();
    let node = Node { weight, ..Node::at(address.parse::<SocketAddr>().unwrap()) };
    let (now, service) = (std::time::SystemTime::now(), ServiceName::new("orders").unwrap());
    let times = Timestamps { registered_at: now, updated_at: now };
    let (key, value) = Format::Apisix.encode("/apisix/upstreams/", &service, instance, &node, times).unwrap();
    client.kv_client().put(key, value, Some(PutOptions::new().with_lease(lease))).await.unwrap();
    lease
}

async fn revoke(client: &Client, lease: i64) {
    client.lease_client().revoke(lease).await.unwrap();
}

async fn put(client: &Client, value: &Value) {
    client.kv_client().put(KEY, value.to_string(), None).await.unwrap();
}

async fn value(client: &Client) -> Option<Value> {
    let (value, _) = get(client, KEY).await?;
    Some(serde_json::from_str(&value).unwrap())
}

/// The nodes of a value, as `host:port=weight`.
fn nodes(value: &Value) -> BTreeSet<String> {
    match &value["nodes"] {
        Value::Object(nodes) => nodes.iter().map(|(address, weight)| format!("{address}={weight}")).collect(),
        Value::Array(nodes) => nodes
            .iter()
            .map(|node| format!("{}:{}={}", node["host"].as_str().unwrap(), node["port"], node["weight"]))
            .collect(),
        other => panic!("{other}"),
    }
}

async fn until_nodes(client: &Client, expected: &[&str]) -> Value {
    eventually(&format!("the upstream has {expected:?}"), || async {
        value(client).await.filter(|value| nodes(value).iter().map(String::as_str).eq(expected.iter().copied()))
    })
    .await
}

async fn leader(client: &Client) -> Option<String> {
    let options = GetOptions::new()
        .with_prefix()
        .with_limit(1)
        .with_sort(etcd_client::SortTarget::Create, etcd_client::SortOrder::Ascend);
    let answer = client.kv_client().get(format!("{}/", upstream().election()), Some(options)).await.unwrap();
    answer.kvs().first().map(|kv| kv.value_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_gets_the_nodes_of_all_hosts_and_loses_those_that_go() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let _writers = [writer(&etcd, "a"), writer(&etcd, "b")];
    let first = register(&client, "a", "10.0.0.1:80", 1).await;
    let made = until_nodes(&client, &["10.0.0.1:80=1"]).await;
    assert_eq!((&made["id"], &made["type"]), (&json!("orders"), &json!("roundrobin")));
    register(&client, "b", "10.0.0.2:80", 2).await;
    until_nodes(&client, &["10.0.0.1:80=1", "10.0.0.2:80=2"]).await;
    register(&client, "b", "10.0.0.3:80", 5).await;
    until_nodes(&client, &["10.0.0.1:80=1", "10.0.0.3:80=5"]).await;
    revoke(&client, first).await;
    until_nodes(&client, &["10.0.0.3:80=5"]).await;
    assert_eq!(get(&client, KEY).await.unwrap().1, 0, "the upstream has no lease");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_put_in_is_not_touched_and_nodes_of_ours_that_they_took_out_come_back() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let edited = json!({"type": "chash", "key": "uri", "nodes": {"10.9.9.9:80": 7}, "timeout": {"connect": 0.5}});
    put(&client, &edited).await;
    let lease = register(&client, "a", "10.0.0.1:80", 1).await;
    let _writer = writer(&etcd, "a");
    let value = until_nodes(&client, &["10.0.0.1:80=1", "10.9.9.9:80=7"]).await;
    assert_eq!(
        (&value["timeout"], &value["type"], &value["key"]),
        (&edited["timeout"], &edited["type"], &edited["key"])
    );
    put(&client, &json!({"type": "ewma", "nodes": {"10.9.9.8:80": 7}})).await;
    let value = until_nodes(&client, &["10.0.0.1:80=1", "10.9.9.8:80=7"]).await;
    assert_eq!(value["type"], "ewma");
    revoke(&client, lease).await;
    until_nodes(&client, &["10.9.9.8:80=7"]).await;
    eventually("nothing of ours is noted any more", || async {
        get(&client, "/waypost/apisix/apisix/upstreams/orders/written").await.is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_cannot_be_read_is_left_alone_until_it_is_mended() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    client.kv_client().put(KEY, "{", None).await.unwrap();
    register(&client, "a", "10.0.0.1:80", 1).await;
    let _writer = writer(&etcd, "a");
    eventually("a leads", || async { leader(&client).await }).await;
    put(&client, &json!({"service_name": "o", "discovery_type": "dns"})).await;
    put(&client, &json!({"nodes": {}})).await;
    until_nodes(&client, &["10.0.0.1:80=1"]).await;
    let mut history = client.watch_client().watch(KEY, Some(WatchOptions::new().with_start_revision(1))).await.unwrap();
    let mut values = Vec::new();
    while values.len() < 4 {
        let message = tokio::time::timeout(PATIENCE, history.message()).await.unwrap().unwrap().unwrap();
        values.extend(message.events().iter().filter_map(|e| Some(e.kv()?.value_str().unwrap().to_owned())));
    }
    let expected =
        ["{", r#"{"discovery_type":"dns","service_name":"o"}"#, r#"{"nodes":{}}"#, r#"{"nodes":{"10.0.0.1:80":1}}"#];
    assert_eq!(values, expected, "only the last one is ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_at_the_same_time_are_not_lost_and_the_nodes_are_right_in_the_end() {
    const EDITS: usize = 60;
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    put(&client, &json!({"type": "roundrobin", "nodes": {"10.9.9.9:80": 1}, "labels": {}})).await;
    let _writers = [writer(&etcd, "a"), writer(&etcd, "b")];
    let registering = async {
        for number in 0..EDITS {
            register(&client, &format!("i{}", number % 10), &format!("10.0.0.{}:80", number % 7 + 1), number as u32)
                .await;
        }
    };
    let editing = async {
        for number in 0..EDITS {
            // An administrator who reads, edits and writes, and does so again if somebody else wrote in between.
            eventually("the edit is written", || async {
                let answer = client.kv_client().get(KEY, None).await.ok()?;
                let kv = answer.kvs().first()?;
                let mut value: Value = serde_json::from_slice(kv.value()).ok()?;
                value["labels"][format!("l{number}")] = json!("x");
                value["nodes"]["10.9.9.9:80"] = json!(number);
                let unchanged = Compare::mod_revision(KEY, CompareOp::Equal, kv.mod_revision());
                let edit = Txn::new().when([unchanged]).and_then([TxnOp::put(KEY, value.to_string(), None)]);
                client.kv_client().txn(edit).await.ok()?.succeeded().then_some(())
            })
            .await;
        }
    };
    tokio::join!(registering, editing);
    // The ten instances registered last, by the address each has; of two at one address the later name counts.
    let last: std::collections::BTreeMap<String, usize> =
        (EDITS - 10..EDITS).map(|number| (format!("i{}", number % 10), number)).collect();
    let weights: std::collections::BTreeMap<String, usize> =
        last.values().map(|number| (format!("10.0.0.{}:80", number % 7 + 1), *number)).collect();
    let mut expected: BTreeSet<String> =
        weights.iter().map(|(address, weight)| format!("{address}={weight}")).collect();
    expected.insert(format!("10.9.9.9:80={}", EDITS - 1));
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    let value = until_nodes(&client, &expected).await;
    assert_eq!(value["labels"].as_object().unwrap().len(), EDITS, "an edit was lost: {value}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_writer_takes_over_from_one_that_is_gone_and_takes_out_what_it_left() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let first = writer(&etcd, "a");
    eventually("a leads", || async { leader(&client).await.filter(|leader| leader == "a") }).await;
    let second = writer(&etcd, "b");
    let lease = register(&client, "a", "10.0.0.1:80", 1).await;
    register(&client, "b", "10.0.0.2:80", 1).await;
    until_nodes(&client, &["10.0.0.1:80=1", "10.0.0.2:80=1"]).await;
    drop(first);
    revoke(&client, lease).await;
    until_nodes(&client, &["10.0.0.2:80=1"]).await;
    eventually("b leads", || async { leader(&client).await.filter(|leader| leader == "b") }).await;
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_leaves_waits_until_its_own_node_is_out_of_the_upstream() {
    let etcd = Etcd::start().await;
    let client = etcd.client().await;
    let leading = writer(&etcd, "a");
    let lease = register(&client, "a", "10.0.0.1:80", 1).await;
    until_nodes(&client, &["10.0.0.1:80=1"]).await;
    let mut leaving = tokio::spawn(leading.leave(BTreeSet::from(["a".to_owned()]), PATIENCE));
    let waits = tokio::time::timeout(Duration::from_millis(300), &mut leaving).await;
    assert!(waits.is_err(), "its node is still there");
    revoke(&client, lease).await;
    tokio::time::timeout(PATIENCE, leaving).await.unwrap().unwrap();
    assert!(nodes(&value(&client).await.unwrap()).is_empty());
    assert_eq!(leader(&client).await, None, "it resigned");
}
