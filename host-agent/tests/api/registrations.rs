//! Services registered at run time, beside those of the file.

use serde_json::{Value, json};
use waypost_agent::api::types::{Health, Problem, Registration, RegistrationState, Source};

use super::world::{World, until};

const FILE: &str = "[[service]]\nname = \"web\"\nport = 8080\naddress = \"127.0.0.1\"\ninstance = \"web-1\"\n";
const PATH: &str = "/v1/registrations/users/users-1";
const KEY: &str = "/waypost/services/users/users-1";

fn users(more: Value) -> Value {
    let mut body = json!({ "port": 9000, "address": "127.0.0.1", "weight": 3 });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Waits until a registration is in etcd as intended.
async fn registered(world: &World, path: &str) -> Registration {
    until("registered", async || {
        let found: Registration = world.socket.read(path).await;
        (found.state == RegistrationState::Registered).then_some(found)
    })
    .await
}

#[tokio::test]
async fn a_service_is_registered_changed_and_deregistered() {
    let world = World::start(FILE).await;
    for at in [&world.socket, &world.tcp] {
        let answer = at.call("PUT", PATH, Some(&users(json!({})))).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let made: Registration = answer.json();
        assert_eq!((made.service.as_str(), made.instance.as_str(), made.source), ("users", "users-1", Source::Api));
        assert_eq!(made.definition.unwrap().weight, Some(3));
        let found = registered(&world, PATH).await;
        let held = world.key(KEY).unwrap();
        assert_eq!((&held.value["weight"], &held.value["port"]), (&json!(3), &json!(9000)));
        assert_eq!((found.lease, found.health), (Some(held.lease.clone()), Some(Health::Passing)));

        let answer = at.call("PUT", PATH, Some(&users(json!({ "weight": 5, "zone": "a" })))).await;
        assert_eq!(answer.status, 200);
        let answer = at.call("PATCH", PATH, Some(&json!({ "zone": null, "tags": ["x"] }))).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        until("the change in etcd", async || {
            let now = world.key(KEY)?;
            assert_eq!(now.create_revision, held.create_revision, "it is changed where it is");
            (now.value["tags"] == json!(["x"]) && now.value["weight"] == 5 && now.value["zone"] != "a").then_some(())
        })
        .await;

        let answer = at.call("DELETE", &format!("{PATH}?drain=0s"), None).await;
        assert_eq!((answer.status, world.key(KEY)), (204, None));
        assert_eq!(at.get(PATH).await.problem(), "unknown-registration");
        assert_eq!(at.call("DELETE", PATH, None).await.problem(), "unknown-registration");
    }
}

#[tokio::test]
async fn a_deleted_service_drains_first() {
    let world = World::start("").await;
    world.socket.call("PUT", PATH, Some(&users(json!({})))).await;
    registered(&world, PATH).await;
    assert_eq!(world.socket.call("DELETE", &format!("{PATH}?drain=2s"), None).await.status, 202);
    until("draining", async || (world.key(KEY)?.value["health"] == "draining").then_some(())).await;
    until("gone", async || world.key(KEY).is_none().then_some(())).await;
}

#[tokio::test]
async fn registrations_outlive_the_agent_and_their_keys_never_leave_etcd() {
    let mut world = World::start(FILE).await;
    let check = json!({ "check": { "type": "ttl", "ttl": "60s" } });
    world.socket.call("PUT", PATH, Some(&users(check))).await;
    let beat = world.socket.call("PUT", &format!("{PATH}/heartbeat"), Some(&json!({ "output": "fine" }))).await;
    assert_eq!(beat.status, 204);
    until("passing", async || (world.key(KEY)?.value["health"] == "passing").then_some(())).await;
    let before = world.key(KEY).unwrap();
    // From here on etcd says whether a key ever goes.
    let mut watch = world.etcdctl();
    let told = world.directory.path().join("watch.out");
    let watching = super::world::Process::start(
        watch
            .args(["watch", "--prefix", "/waypost/services/", "-w", "simple"])
            .stdout(std::fs::File::create(&told).unwrap()),
        &world.directory.path().join("watch.log"),
    );
    until("the watch", async || {
        world.ctl(&["put", "/waypost/services/probe/p", "{}"]);
        std::fs::read_to_string(&told).unwrap().contains("probe").then_some(())
    })
    .await;
    world.kill_agent();
    world.start_agent().await;
    let found: Registration = world.socket.read(PATH).await;
    assert_eq!((found.source, found.definition.unwrap().weight), (Source::Api, Some(3)));
    // Longer than the lease: an adopted one is renewed, another one would have ended by now.
    tokio::time::sleep(std::time::Duration::from_secs(8)).await;
    let after = world.key(KEY).unwrap();
    assert_eq!((after.create_revision, &after.lease), (before.create_revision, &before.lease));
    assert!(world.key("/waypost/services/web/web-1").is_some());
    drop(watching);
    let told = std::fs::read_to_string(&told).unwrap();
    assert!(!told.contains("DELETE"), "{told}");
}

#[tokio::test]
async fn of_file_and_api_one_owns_a_registration_and_the_other_is_told_so() {
    let world = World::start(FILE).await;
    let web = "/v1/registrations/web/web-1";
    let found: Registration = world.socket.read(web).await;
    assert_eq!((found.source, found.definition), (Source::File, None));
    for (method, body) in [("PUT", Some(users(json!({})))), ("PATCH", Some(json!({}))), ("DELETE", None)] {
        let answer = world.socket.call(method, web, body.as_ref()).await;
        assert_eq!((answer.status, answer.problem().as_str()), (409, "owned-by-file"), "{method}");
        assert!(answer.json::<Problem>().detail.contains("configuration file"), "{answer:?}");
    }
    world.socket.call("PUT", PATH, Some(&users(json!({})))).await;
    registered(&world, PATH).await;
    let theirs = "[[service]]\nname = \"users\"\nport = 9001\naddress = \"127.0.0.1\"\ninstance = \"users-1\"\n";
    world.configure(theirs);
    until("the file's", async || {
        let found: Registration = world.socket.read(PATH).await;
        (found.source == Source::File && world.key(KEY)?.value["port"] == 9001).then_some(())
    })
    .await;
    assert_eq!(world.socket.get(web).await.problem(), "unknown-registration", "not in the file any more");
}

#[tokio::test]
async fn a_definition_that_is_wrong_is_refused_with_every_place_that_is() {
    let world = World::start("").await;
    let wrong = json!({ "port": 0, "check": { "type": "http", "interval": "2x" }, "wieght": 1, "tags": ["a", 1] });
    let answer = world.socket.call("PUT", PATH, Some(&wrong)).await;
    assert_eq!((answer.status, answer.problem().as_str()), (422, "invalid-body"));
    let mut pointers: Vec<_> = answer.json::<Problem>().errors.into_iter().map(|error| error.pointer).collect();
    pointers.sort();
    assert_eq!(pointers, ["/check/interval", "/port", "/tags/1", "/wieght"]);
    let exec = users(json!({ "check": { "type": "exec", "command": ["/bin/true"] } }));
    assert_eq!(world.socket.call("PUT", PATH, Some(&exec)).await.problem(), "invalid-body");
    assert_eq!(world.socket.get(PATH).await.problem(), "unknown-registration");

    let mut request = world.tcp.request("PUT", PATH, Some(&users(json!({}))));
    request.headers_mut().insert("content-type", "text/plain".parse().unwrap());
    assert_eq!(world.tcp.send(request).await.problem(), "wrong-content-type");
    let large = json!({ "port": 1, "zone": "x".repeat(200_000) });
    assert_eq!(world.socket.call("PUT", PATH, Some(&large)).await.problem(), "too-large");
    let answer = world.socket.call("PUT", "/v1/registrations/us%20ers/a", Some(&users(json!({})))).await;
    assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-parameters"));
}

#[tokio::test]
async fn heartbeats_make_a_service_pass_and_fail_and_silence_is_failure() {
    let world = World::start(FILE).await;
    let check = json!({ "check": { "type": "ttl", "ttl": "1s", "rise": 1, "fall": 1 } });
    world.socket.call("PUT", PATH, Some(&users(check))).await;
    let health = async |wanted: Health| {
        until("health", async || {
            let found: Registration = world.socket.read(PATH).await;
            (found.health == Some(wanted)).then_some(found)
        })
        .await
    };
    let path = format!("{PATH}/heartbeat");
    let beat = async |body: Value| world.socket.call("PUT", &path, Some(&body)).await;
    assert_eq!(beat(json!({ "passing": true, "output": "up" })).await.status, 204);
    health(Health::Passing).await;
    assert_eq!(beat(json!({ "passing": false, "output": "disk full" })).await.status, 204);
    let check = health(Health::Critical).await.check.unwrap();
    assert_eq!((check.passing, check.output.as_str()), (false, "disk full"));
    assert_eq!(beat(json!({})).await.status, 204);
    health(Health::Passing).await;
    health(Health::Critical).await;
    assert_eq!(world.socket.call("PUT", "/v1/registrations/web/web-1/heartbeat", None).await.problem(), "no-ttl-check");
    assert_eq!(
        world.socket.call("PUT", "/v1/registrations/web/no/heartbeat", None).await.problem(),
        "unknown-registration"
    );
}
