//! Changes of the catalog as server-sent events.

use serde_json::{Value, json};
use waypost_agent::api::types::Services;
use waypost_registry::etcd_client::{self, Txn, TxnOp};

use super::world::{World, until};

fn node(weight: u32) -> String {
    json!({ "address": "10.0.0.2", "port": 80, "weight": weight }).to_string()
}

fn put(world: &World, key: &str, weight: u32) {
    world.ctl(&["put", &format!("/waypost/services/{key}"), &node(weight)]);
}

async fn known(world: &World, service: &str) {
    until("the service", async || {
        let found: Services = world.socket.read("/v1/services").await;
        found.services.iter().any(|known| known.name == service).then_some(())
    })
    .await;
}

#[tokio::test]
async fn changes_come_in_order_and_a_reader_who_was_away_gets_what_it_missed() {
    let world = World::start("").await;
    put(&world, "web/a", 1);
    known(&world, "web").await;
    let mut events = world.socket.follow("/v1/events", None).await;
    let first = events.next().await;
    assert_eq!((first.name.as_str(), &first.data["services"]["web"][0]["weight"]), ("resynchronised", &json!(1)));
    put(&world, "web/a", 2);
    let changed = events.next().await;
    assert_eq!((changed.name.as_str(), &changed.data["service"]), ("changed", &json!("web")));
    assert_eq!((&changed.data["old"]["weight"], &changed.data["new"]["weight"]), (&json!(1), &json!(2)));
    drop(events);
    put(&world, "users/a", 1);
    known(&world, "users").await;
    world.ctl(&["del", "/waypost/services/users/a"]);
    put(&world, "web/a", 3);
    let mut events = world.tcp.follow("/v1/events", changed.id.as_deref()).await;
    let mut missed = Vec::new();
    while !missed.contains(&("changed".to_owned(), "web".to_owned())) {
        let event = events.next().await;
        missed.push((event.name, event.data["service"].as_str().unwrap().to_owned()));
    }
    // (users went again, but the guard keeps it for a while.)
    let expected =
        [("added", "users"), ("changed", "web")].map(|(name, service)| (name.to_owned(), service.to_owned()));
    assert_eq!(missed, expected);
    let mut again = world.socket.follow("/v1/events", changed.id.as_deref()).await;
    assert_eq!(again.next().await.name, "added", "it can be resumed from there more than once");
}

#[tokio::test]
async fn who_asks_for_a_service_hears_of_that_one_only() {
    let world = World::start("").await;
    put(&world, "web/a", 1);
    put(&world, "users/a", 1);
    known(&world, "web").await;
    known(&world, "users").await;
    let mut events = world.socket.follow("/v1/events?service=web", None).await;
    let first = events.next().await;
    let names: Vec<_> = first.data["services"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["web"]);
    put(&world, "users/a", 2);
    put(&world, "web/a", 2);
    let event = events.next().await;
    assert_eq!((event.name.as_str(), &event.data["service"]), ("changed", &json!("web")));
}

#[tokio::test]
async fn an_id_of_another_run_of_the_agent_gets_everything_anew() {
    let mut world = World::start("").await;
    put(&world, "web/a", 1);
    known(&world, "web").await;
    let mut events = world.socket.follow("/v1/events", None).await;
    let first = events.next().await;
    world.stop_agent().await;
    assert!(events.ends().await, "it ends with the agent");
    world.start_agent().await;
    for id in [first.id.as_deref(), Some("nonsense")] {
        let mut events = world.socket.follow("/v1/events", id).await;
        assert_eq!(events.next().await.name, "resynchronised");
    }
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_given_everything_anew_and_holds_up_nobody() {
    let world = World::start("").await;
    put(&world, "web/a", 1);
    known(&world, "web").await;
    let mut slow = world.socket.follow("/v1/events", None).await;
    let mut quick = world.socket.follow("/v1/events", None).await;
    assert_eq!((slow.next().await.name, quick.next().await.name), ("resynchronised".into(), "resynchronised".into()));
    // More changes than are kept, and than the sockets between hold. The quick one sees each round before the next.
    let mut etcd = etcd_client::Client::connect([&world.etcd], None).await.unwrap();
    for round in 1..=ROUNDS {
        for first in (0..SERVICES).step_by(100) {
            let key = |n: u32| format!("/waypost/services/s{n}/a");
            let puts = (first..first + 100).map(|n| TxnOp::put(key(n), node(round), None));
            etcd.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.unwrap();
        }
        put(&world, "web/a", 10 + round);
        until_weight(&mut quick, 10 + round).await;
    }
    let mut names = Vec::new();
    loop {
        let event = slow.next().await;
        let weight = |node: &Value| node["weight"].as_u64();
        let done = match event.name.as_str() {
            "resynchronised" => weight(&event.data["services"]["web"][0]) == Some(u64::from(10 + ROUNDS)),
            "changed" => event.data["service"] == "web" && weight(&event.data["new"]) == Some(u64::from(10 + ROUNDS)),
            _ => false,
        };
        names.push(event.name);
        if done {
            break;
        }
    }
    assert!(names.contains(&"resynchronised".to_owned()), "{} events, none of them anew", names.len());
}

const ROUNDS: u32 = 4;
const SERVICES: u32 = 4000;

/// Reads change by change until web has a weight.
async fn until_weight(events: &mut super::client::Events, weight: u32) {
    loop {
        let event = events.next().await;
        assert_ne!(event.name, "resynchronised", "it reads, and needs no new start");
        if event.data["service"] == "web" && event.data["new"]["weight"] == weight {
            return;
        }
    }
}
