//! Locks and elections held for clients, beside those of `etcdctl`.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use waypost_agent::api::types::{ElectionStatus, Leadership, LockHeld, LockStatus};

use super::world::{Process, World, until};

const LOCK: &str = "/v1/locks/jobs%2Fnightly";
const NAME: &str = "jobs/nightly";

async fn take(world: &World, body: Value) -> LockHeld {
    let answer = world.socket.call("POST", LOCK, Some(&body)).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()
}

/// `etcdctl lock NAME`, which holds it until it is dropped.
fn etcdctl_lock(world: &World) -> Process {
    let mut command = world.etcdctl();
    command.args(["lock", NAME]).stdout(Stdio::null());
    Process::start(&mut command, &world.directory.path().join("etcdctl.log"))
}

#[tokio::test]
async fn a_lock_is_had_by_one_and_given_to_the_next() {
    let world = World::start("").await;
    let held = take(&world, json!({ "ttl": "5s" })).await;
    assert_eq!((held.name.as_str(), held.ttl.as_str(), held.id.len()), (NAME, "5s", 32));
    assert_eq!(held.key, format!("{NAME}/{}", held.lease));
    assert!((1..=5000).contains(&held.held_for_ms), "{held:?}");
    let status: LockStatus = world.tcp.read(LOCK).await;
    assert_eq!(status.holder.map(|holder| (holder.key, holder.token)), Some((held.key.clone(), held.token)));

    for wait in ["0s", "300ms"] {
        let answer = world.tcp.call("POST", LOCK, Some(&json!({ "wait": wait }))).await;
        assert_eq!((answer.status, answer.problem().as_str()), (409, "held-by-another"), "{wait}");
        assert!(String::from_utf8_lossy(&answer.body).contains(&held.key), "{answer:?}");
    }
    let renewed: LockHeld = world.socket.call("PUT", &format!("{LOCK}/{}", held.id), None).await.json();
    assert_eq!((renewed.token, &renewed.id), (held.token, &held.id));

    let (waited, released) = tokio::join!(take(&world, json!({ "wait": "20s" })), async {
        until("a second one in line", async || {
            (world.ctl(&["get", "--prefix", NAME, "--keys-only"]).lines().filter(|line| !line.is_empty()).count() == 2)
                .then_some(())
        })
        .await;
        world.socket.call("DELETE", &format!("{LOCK}/{}", held.id), None).await
    });
    assert_eq!(released.status, 204);
    assert!(waited.token > held.token);
    for (method, id) in [("PUT", &held.id), ("DELETE", &held.id), ("PUT", &"0".repeat(32))] {
        assert_eq!(world.socket.call(method, &format!("{LOCK}/{id}"), None).await.problem(), "not-held", "{method}");
    }
    let other = format!("/v1/locks/other/{}", waited.id);
    assert_eq!(world.socket.call("DELETE", &other, None).await.problem(), "not-held", "of another name");
    assert_eq!(world.socket.call("DELETE", &format!("{LOCK}/{}", waited.id), None).await.status, 204);
    let status: LockStatus = world.socket.read(LOCK).await;
    assert_eq!(status.holder, None);
}

#[tokio::test]
async fn the_api_and_etcdctl_keep_each_other_out() {
    let world = World::start("").await;
    let held = take(&world, json!({})).await;
    let theirs = etcdctl_lock(&world);
    let in_line = async || {
        let keys = world.ctl(&["get", "--prefix", NAME, "--keys-only"]);
        keys.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    until("etcdctl in line", async || (in_line().await.len() == 2).then_some(())).await;
    let status: LockStatus = world.socket.read(LOCK).await;
    assert_eq!(status.holder.unwrap().key, held.key, "it waits");
    world.socket.call("DELETE", &format!("{LOCK}/{}", held.id), None).await;
    let status: LockStatus = world.socket.read(LOCK).await;
    assert_ne!(status.holder.unwrap().key, held.key, "it has it");
    let answer = world.socket.call("POST", LOCK, Some(&json!({}))).await;
    assert_eq!(answer.problem(), "held-by-another");
    let waiting = take(&world, json!({ "wait": "60s" }));
    let (waited, ()) = tokio::join!(waiting, async {
        until("ours in line", async || (in_line().await.len() == 2).then_some(())).await;
        world.end_politely(theirs).await;
    });
    assert!(waited.token > held.token);
}

#[tokio::test]
async fn what_is_not_renewed_or_whose_agent_ends_is_released() {
    let mut world = World::start("").await;
    let taken = Instant::now();
    let held = take(&world, json!({ "ttl": "2s" })).await;
    // Longer than its TTL, renewed.
    while taken.elapsed() < Duration::from_secs(4) {
        let answer = world.socket.call("PUT", &format!("{LOCK}/{}", held.id), None).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let left = Instant::now();
    let next = take(&world, json!({ "wait": "20s" })).await;
    let after = left.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(6)).contains(&after), "{after:?}");
    assert_eq!(world.socket.call("PUT", &format!("{LOCK}/{}", held.id), None).await.problem(), "not-held");
    assert!(world.log().contains("not renewed in time by its client"));
    assert!(next.token > held.token);
    world.stop_agent().await;
    assert_eq!(world.ctl(&["get", "--prefix", NAME, "--keys-only"]), "", "at once, and not when the lease ends");
}

#[tokio::test]
async fn a_lock_whose_key_is_deleted_is_lost_and_its_client_is_told() {
    let world = World::start("").await;
    let held = take(&world, json!({ "ttl": "10s" })).await;
    world.ctl(&["del", &held.key]);
    let path = format!("{LOCK}/{}", held.id);
    until("its loss", async || (world.socket.call("PUT", &path, None).await.status == 404).then_some(())).await;
    for (body, pointer) in
        [(json!({ "ttl": "1s" }), "/ttl"), (json!({ "wait": "2h" }), "/wait"), (json!({ "x": 1 }), "/x")]
    {
        let answer = world.socket.call("POST", LOCK, Some(&body)).await;
        assert_eq!(answer.problem(), "invalid-body");
        assert_eq!(answer.json::<Value>()["errors"][0]["pointer"], pointer);
    }
    let mut simple = world.tcp.request("POST", LOCK, None);
    simple.headers_mut().remove("content-type");
    assert_eq!(world.tcp.send(simple).await.problem(), "wrong-content-type", "what a web page may send unasked");
}

#[tokio::test]
async fn a_leader_is_elected_seen_and_followed() {
    let world = World::start("").await;
    let path = "/v1/elections/scheduler";
    let nobody: ElectionStatus = world.socket.read(path).await;
    assert_eq!(nobody.leader, None);
    let answer = world.socket.call("POST", path, Some(&json!({ "value": "10.0.0.5:7000", "ttl": "5s" }))).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let leadership: Leadership = answer.json();
    let mut events = world.tcp.follow(&format!("{path}/events"), None).await;
    let seen = events.next().await;
    assert_eq!((seen.name.as_str(), &seen.data["value"]), ("leader", &json!("10.0.0.5:7000")));
    let answer = world.tcp.call("POST", path, Some(&json!({ "value": "other" }))).await;
    assert_eq!((answer.status, answer.problem().as_str()), (409, "held-by-another"));

    let own = format!("{path}/{}", leadership.id);
    let renewed: Leadership = world.socket.call("PUT", &own, Some(&json!({ "value": "10.0.0.5:7001" }))).await.json();
    assert_eq!((renewed.value.as_str(), renewed.token), ("10.0.0.5:7001", leadership.token));
    assert_eq!(events.next().await.data["value"], "10.0.0.5:7001");
    let status: ElectionStatus = world.socket.read(path).await;
    assert_eq!(status.leader.map(|leader| (leader.key, leader.value)), Some((leadership.key, "10.0.0.5:7001".into())));
    assert_eq!(world.ctl(&["get", "--prefix", "scheduler", "--print-value-only"]), "10.0.0.5:7001");
    assert_eq!(
        world.socket.call("DELETE", &format!("/v1/locks/scheduler/{}", leadership.id), None).await.problem(),
        "not-held"
    );

    let campaign = json!({ "value": "next", "wait": "20s" });
    let campaigning = world.tcp.call("POST", path, Some(&campaign));
    let (answer, resigned) = tokio::join!(campaigning, world.socket.call("DELETE", &own, None));
    assert_eq!((answer.status, resigned.status), (201, 204));
    assert_eq!(events.next().await.data["value"], "next");
}
