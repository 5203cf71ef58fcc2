//! Instances and the host in maintenance.

use serde_json::json;
use waypost_agent::api::types::{Health, Maintenance, Registration, Status};

use super::{
    client::At,
    world::{World, until},
};

const FILE: &str = "[[service]]\nname = \"web\"\nport = 8080\naddress = \"127.0.0.1\"\ninstance = \"web-1\"\n\
                    [[service]]\nname = \"old\"\nport = 8081\naddress = \"127.0.0.1\"\ninstance = \"old-1\"\n\
                    format = \"endpoint-key\"\nroot = \"/old/\"\n";
const WEB: &str = "/waypost/services/web/web-1";
const OLD: &str = "/old/old/127.0.0.1:8081";

async fn in_etcd(world: &World, health: &str, reason: Option<&str>) {
    until("its state in etcd", async || {
        let value = world.key(WEB)?.value;
        (value["health"] == health && value["metadata"]["maintenance"].as_str() == reason).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_instance_in_maintenance_is_shown_as_draining_until_it_is_taken_back() {
    let mut world = World::start(FILE).await;
    in_etcd(&world, "passing", None).await;
    let path = "/v1/registrations/web/web-1/maintenance";
    let answer = world.socket.call("PUT", path, Some(&json!({ "reason": "new disks" }))).await;
    assert_eq!(answer.json::<Maintenance>().reason, "new disks");
    in_etcd(&world, "draining", Some("new disks")).await;
    let metrics = At::Tcp(world.admin).get("/metrics").await;
    let line = "waypost_maintenance{service=\"web\",instance=\"web-1\"} 1";
    assert!(String::from_utf8_lossy(&metrics.body).contains(line), "{metrics:?}");

    world.kill_agent();
    world.start_agent().await;
    let found = until("its state", async || {
        let found: Registration = world.socket.read("/v1/registrations/web/web-1").await;
        found.health.is_some().then_some(found)
    })
    .await;
    assert_eq!(found.health, Some(Health::Draining));
    assert_eq!(found.maintenance.unwrap().reason, "new disks");
    in_etcd(&world, "draining", Some("new disks")).await;

    assert_eq!(world.socket.call("DELETE", path, None).await.status, 204);
    in_etcd(&world, "passing", None).await;
    let answer = world.socket.call("PUT", "/v1/registrations/web/web-2/maintenance", Some(&json!({}))).await;
    assert_eq!(answer.problem(), "unknown-registration");
    let long = json!({ "reason": "x".repeat(2000) });
    assert_eq!(world.socket.call("PUT", path, Some(&long)).await.problem(), "invalid-body");
}

#[tokio::test]
async fn a_host_in_maintenance_takes_all_its_services_out_whatever_their_format() {
    let world = World::start(FILE).await;
    until("both in etcd", async || world.key(WEB).and(world.key(OLD))).await;
    let answer = world.tcp.call("PUT", "/v1/maintenance", Some(&json!({ "reason": "kernel" }))).await;
    assert_eq!(answer.status, 200);
    in_etcd(&world, "draining", Some("kernel")).await;
    until("no key without health", async || world.key(OLD).is_none().then_some(())).await;
    let status: Status = world.socket.read("/v1/status").await;
    assert_eq!(status.maintenance.unwrap().reason, "kernel");
    // Its own maintenance outlasts the host's.
    world.socket.call("PUT", "/v1/registrations/web/web-1/maintenance", Some(&json!({ "reason": "disks" }))).await;
    in_etcd(&world, "draining", Some("disks")).await;
    assert_eq!(world.tcp.call("DELETE", "/v1/maintenance", None).await.status, 204);
    until("back in etcd", async || world.key(OLD)).await;
    in_etcd(&world, "draining", Some("disks")).await;
    let status: Status = world.socket.read("/v1/status").await;
    assert_eq!(status.maintenance, None);
}
