//! Status, services, nodes and picks; and what every route has in common.

use hyper::header;
use serde_json::json;
use waypost_agent::api::types::{AllNodes, Pick, ServiceNodes, Services, Status};

use super::world::{World, until};

const WEB: &str = "[[service]]\nname = \"web\"\nport = 8080\naddress = \"127.0.0.1\"\ninstance = \"web-1\"\nweight = 2\n\
                   zone = \"a\"\nversion = \"2\"\ntags = [\"canary\"]\n";

/// The agent's own `web-1`, and two that etcd has from elsewhere.
async fn world() -> World {
    let world = World::start(WEB).await;
    let other = json!({ "address": "10.0.0.2", "port": 80, "weight": 1, "zone": "b" });
    let bad = json!({ "address": "10.0.0.3", "port": 80, "health": "critical" });
    world.ctl(&["put", "/waypost/services/web/web-2", &other.to_string()]);
    world.ctl(&["put", "/waypost/services/web/web-3", &bad.to_string()]);
    until("three nodes", async || {
        let found: Services = world.socket.read("/v1/services").await;
        found.services.first().is_some_and(|web| web.nodes == 3).then_some(())
    })
    .await;
    world
}

#[tokio::test]
async fn what_is_known_is_answered_over_the_socket_and_over_tcp_alike() {
    let world = world().await;
    for at in [&world.socket, &world.tcp] {
        let status: Status = at.read("/v1/status").await;
        assert_eq!((status.node.as_str(), status.etcd.synced, status.registrations), ("host-a", true, 1));
        assert_eq!((status.etcd.endpoints.as_slice(), status.watches.len()), ([world.etcd.clone()].as_slice(), 1));
        assert!(status.etcd.revision > 1 && status.uptime_seconds > 0.0, "{status:?}");
        assert_eq!(status.catalog.map(|catalog| (catalog.services, catalog.nodes)), Some((1, 3)));

        let services: Services = at.read("/v1/services").await;
        let web = &services.services[0];
        assert_eq!((web.nodes, web.passing, web.critical, web.draining, web.weight), (3, 2, 1, 0, 3));

        let ids = async |query: &str| {
            let found: ServiceNodes = at.read(&format!("/v1/services/web/nodes{query}")).await;
            found.nodes.into_iter().map(|node| node.id).collect::<Vec<_>>()
        };
        assert_eq!(ids("").await, ["web-2", "web-3", "web-1"], "by address");
        assert_eq!(ids("?healthy=true").await, ["web-2", "web-1"]);
        assert_eq!(ids("?healthy=false").await, ["web-3"]);
        assert_eq!(ids("?tag=canary&zone=a&version=2").await, ["web-1"]);
        assert_eq!(ids("?tag=canary&zone=b").await, [""; 0]);

        let all: AllNodes = at.read("/v1/nodes?service=web&zone=b").await;
        assert_eq!(
            all.nodes.iter().map(|node| (&*node.service, &*node.node.id)).collect::<Vec<_>>(),
            [("web", "web-2")]
        );
    }
}

#[tokio::test]
async fn picks_follow_the_weights_and_never_take_a_critical_node() {
    let world = world().await;
    let mut counts = [0; 2];
    for _ in 0..30 {
        let pick: Pick = world.socket.read("/v1/services/web/pick").await;
        assert_eq!((pick.strategy.as_str(), pick.alternatives.len()), ("weighted-round-robin", 1));
        counts[if pick.node.id == "web-1" { 0 } else { 1 }] += 1;
        assert_ne!(pick.node.id, "web-3");
    }
    assert_eq!(counts, [20, 10]);
    let pick: Pick = world.socket.read("/v1/services/web/pick?zone=b").await;
    assert_eq!((pick.node.id.as_str(), pick.alternatives.len()), ("web-2", 0));
}

#[tokio::test]
async fn what_cannot_be_answered_is_a_problem_that_says_why() {
    let world = world().await;
    let at = &world.socket;
    for (path, status, problem) in [
        ("/v1/services/users/nodes", 404, "unknown-service"),
        ("/v1/services/users/pick", 404, "unknown-service"),
        ("/v1/services/web/pick?zone=c", 503, "no-healthy-node"),
        ("/v1/services/web/pick?strategy=best", 400, "bad-parameters"),
        ("/v1/services/web/pick?strategy=least-request", 400, "bad-parameters"),
        ("/v1/services/web/nodes?healthy=maybe", 400, "bad-parameters"),
        ("/v1/services/web/nodes?zome=a", 400, "bad-parameters"),
        ("/v1/nothing", 404, "unknown-path"),
    ] {
        let answer = at.get(path).await;
        assert_eq!((answer.status, answer.problem().as_str()), (status, problem), "{path}");
    }
    let answer = at.call("POST", "/v1/status", Some(&json!({}))).await;
    assert_eq!((answer.status, answer.problem().as_str()), (405, "wrong-method"));
}

#[tokio::test]
async fn a_web_page_that_points_a_name_at_loopback_is_refused() {
    let world = World::start("").await;
    for (host, status) in [("localhost:80", 200), ("[::1]", 200), ("evil.example:9181", 421), ("127.0.0.1.evil", 421)] {
        let mut request = world.tcp.request("GET", "/v1/status", None);
        request.headers_mut().insert(header::HOST, host.parse().unwrap());
        let answer = world.tcp.send(request).await;
        assert_eq!(answer.status, status, "{host}");
    }
    let answer = world.tcp.get("/metrics").await;
    assert_eq!((answer.status, answer.problem().as_str()), (404, "unknown-path"));
}
