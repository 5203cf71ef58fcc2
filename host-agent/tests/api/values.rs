//! Configuration values and their changes.

use serde_json::json;
use waypost_agent::api::types::{Encoding, Values};

use super::world::World;

#[tokio::test]
async fn values_are_read_by_key_and_by_prefix() {
    let world = World::start("").await;
    for (key, value) in [("/config/a", "1"), ("/config/b", "two"), ("/configs", "other")] {
        world.ctl(&["put", key, value]);
    }
    let found: Values = world.socket.read("/v1/values?prefix=/config/").await;
    let pairs: Vec<_> = found.values.iter().map(|value| (value.key.as_str(), value.value.as_str())).collect();
    assert_eq!(pairs, [("/config/a", "1"), ("/config/b", "two")]);
    assert_eq!(found.values[0].encoding, Encoding::Utf8);
    assert!(found.revision >= found.values[1].mod_revision && found.values[1].mod_revision > 0, "{found:?}");
    let found: Values = world.tcp.read("/v1/values?key=/config/b").await;
    assert_eq!((found.values.len(), found.values[0].lease.as_ref()), (1, None));
    let found: Values = world.tcp.read("/v1/values?key=/config/none").await;
    assert!(found.values.is_empty());
    for query in ["", "?prefix=", "?key=/a&prefix=/b"] {
        let answer = world.socket.get(&format!("/v1/values{query}")).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-parameters"), "{query}");
    }
}

#[tokio::test]
async fn changes_of_values_come_by_revision_and_are_resumed_from_etcd() {
    let world = World::start("").await;
    world.ctl(&["put", "/config/a", "1"]);
    let mut events = world.socket.follow("/v1/values/events?prefix=/config/", None).await;
    let first = events.next().await;
    assert_eq!((first.name.as_str(), &first.data["values"][0]["value"]), ("resynchronised", &json!("1")));
    world.ctl(&["put", "/config/a", "2"]);
    let put = events.next().await;
    assert_eq!((put.name.as_str(), &put.data["value"]), ("put", &json!("2")));
    assert_eq!(put.id, Some(put.data["mod_revision"].to_string()));
    world.transaction("\nput /config/b 1\ndel /config/a\n\n\n");
    let both = [events.next().await, events.next().await];
    assert_eq!(
        both.each_ref().map(|event| event.id.is_some()),
        [false, true],
        "an id once all of its revision is told"
    );
    let mut names = both.each_ref().map(|event| event.name.as_str());
    names.sort_unstable();
    assert_eq!(names, ["put", "removed"]);
    drop(events);

    world.ctl(&["put", "/config/c", "3"]);
    let mut events = world.tcp.follow("/v1/values/events?prefix=/config/", put.id.as_deref()).await;
    let mut told = Vec::new();
    for _ in 0..3 {
        let event = events.next().await;
        told.push((event.name, event.data["key"].as_str().unwrap().to_owned()));
    }
    let expected = [("removed", "/config/a"), ("put", "/config/b"), ("put", "/config/c")];
    assert_eq!(told, expected.map(|(name, key)| (name.to_owned(), key.to_owned())));
    world.ctl(&["put", "/config/d", "4"]);
    assert_eq!(events.next().await.data["key"], "/config/d", "and on from there");

    let revision: Values = world.socket.read("/v1/values?key=/config/d").await;
    world.ctl(&["compact", &revision.revision.to_string()]);
    for id in [put.id.as_deref(), Some("999999999")] {
        let mut events = world.socket.follow("/v1/values/events?prefix=/config/", id).await;
        assert_eq!(events.next().await.name, "resynchronised", "{id:?}: forgotten, or never there");
    }
    let mut one = world.socket.follow("/v1/values/events?key=/config/d", None).await;
    assert_eq!(one.next().await.data["values"].as_array().unwrap().len(), 1);
}
