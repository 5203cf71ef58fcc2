//! The harness itself: what the scenarios rely on.
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http_body_util::Full;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tonic::Code;
use tonic::transport::Endpoint;
use waypost_tests::grpc::{self, Echo};
use waypost_tests::{Etcd, Load, LoadPlan, Scene, Upstream, UpstreamProcess, eventually, http};

#[tokio::test(flavor = "multi_thread")]
async fn etcd_keeps_its_keys_over_a_restart_and_loses_them_with_its_data() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    etcd.put("/a", "1").await?;
    let lease = etcd.grant(60).await?;
    etcd.put_with_lease("/b", "2", lease).await?;
    etcd.kill().await?;
    etcd.restart().await?;
    let keys: Vec<String> = etcd.list("/").await?.into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, ["/a", "/b"]);
    assert_eq!(etcd.leases().await?, [lease]);
    etcd.revoke(lease).await?;
    assert_eq!(etcd.get("/b").await?, None);
    let revision = etcd.compact().await?;
    etcd.wipe().await?;
    assert!(etcd.revision().await? < revision);
    assert_eq!(etcd.list("/").await?, []);
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_members_elect_another_leader_when_theirs_is_killed() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start_cluster(&scene, 3).await?;
    let leader = etcd.leader().await?;
    etcd.kill_member(leader).await?;
    eventually(Duration::from_secs(20), "another leader", || async {
        ensure!(etcd.leader().await? != leader);
        etcd.put("/a", "1").await
    })
    .await?;
    etcd.start_member(leader).await?;
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_in_a_process_of_its_own_is_killed_and_comes_back_on_its_port() -> Result<()> {
    let scene = Scene::new()?;
    let upstream = UpstreamProcess::start(&scene, env!("CARGO_BIN_EXE_upstream"), "a").await?;
    upstream.kill().await?;
    assert!(http::get(upstream.address(), "/").await.is_err());
    upstream.restart().await?;
    assert_eq!(http::get(upstream.address(), "/").await?.node(), "a");
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_counts_answers_by_node_and_every_failure() -> Result<()> {
    let upstream = Upstream::start("a").await?;
    let plan = LoadPlan::new(upstream.address(), "a");
    let report = Load::run(plan.clone().total(500)).await?;
    report.ensure_no_failure()?;
    report.ensure_shares(&[("a", 1)], 0.0)?;
    assert_eq!((report.succeeded(), upstream.requests()), (500, 500));

    let load = Load::start(LoadPlan { path: "/status/503".to_owned(), ..plan.clone() }.total(10));
    let report = load.finish(Duration::from_secs(10)).await?;
    assert_eq!((report.failed, report.succeeded()), (10, 0));

    let load = Load::start(plan.rate(200.0));
    eventually(Duration::from_secs(5), "some answers", || async {
        ensure!(load.snapshot().succeeded() > 20);
        Ok(())
    })
    .await?;
    drop(upstream);
    eventually(Duration::from_secs(5), "failures", || async {
        ensure!(load.snapshot().failed > 0);
        Ok(())
    })
    .await?;
    assert!(load.stop().await?.ensure_no_failure().is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_is_thousands_of_nodes_on_loopback() -> Result<()> {
    let everywhere = Upstream::start_everywhere().await?;
    for last in [1, 77] {
        let address = SocketAddr::from(([127, 1, 2, last], everywhere.address().port()));
        let reply = http::get(address, "/").await?;
        assert_eq!((reply.node(), reply.header("connection")), (address.to_string().as_str(), "close"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_speaks_grpc_and_websocket_and_returns_bodies() -> Result<()> {
    let upstream = Upstream::start_on("a", "::1".parse()?).await?;
    let channel = Endpoint::from_shared(format!("http://{}", upstream.address()))?.connect().await?;
    let echo = grpc::once(channel.clone(), Echo { text: "x".to_owned(), ..Echo::default() }).await?;
    assert_eq!((echo.text.as_str(), echo.node.as_str()), ("x", "a"));
    let (echoes, status) = grpc::many(channel, Echo { count: 3, ..Echo::default() }).await?;
    assert_eq!((echoes.len(), status.code()), (3, Code::FailedPrecondition));
    assert_eq!(status.metadata().get("x-answers").map(|count| count.as_bytes()), Some(&b"3"[..]));

    let body = Bytes::from(vec![7; 10_000_000]);
    let request = hyper::Request::post("/echo").body(Full::new(body.clone()))?;
    assert!(http::send(upstream.address(), request).await?.body == body);
    let request = hyper::Request::post("http://a/echo").body(Full::new(body.clone()))?;
    assert!(http::send_h2(upstream.address(), request).await?.body == body);

    let stream = TcpStream::connect(upstream.address()).await?;
    let (mut socket, _) = tokio_tungstenite::client_async("ws://a/ws", stream).await?;
    socket.send(Message::text("hello")).await?;
    assert_eq!(socket.next().await.context("closed")??, Message::text("hello"));

    upstream.set_healthy(false);
    assert_eq!(http::get(upstream.address(), "/healthz").await?.status, 503);
    Ok(())
}
