//! Everything that HTTP carries goes through.
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http_body_util::Full;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tonic::transport::{Channel, Endpoint};
use waypost_tests::grpc::{self, Echo};
use waypost_tests::world::{SERVICE, WEIGHTS, World, registering, upstreams};
use waypost_tests::{Agent, AgentConfig, Envoy, EnvoyOptions, Etcd, Load, Scene, ServiceConfig, Upstream, http};

#[tokio::test(flavor = "multi_thread")]
async fn grpc_goes_through_with_its_trailers() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let nodes = upstreams().await?;
    let mut config = registering(&etcd.endpoints(), &nodes);
    for service in &mut config.services {
        service.protocol = "http2".to_owned();
    }
    let agent = Agent::start(&scene, &config).await?;
    let envoy = Envoy::start(&scene, &agent, &EnvoyOptions::new(&[SERVICE])).await?;
    let endpoint = Endpoint::from_shared(format!("http://{}", envoy.listen()))?;
    let channel: Channel = endpoint.origin(format!("http://{SERVICE}").parse()?).connect().await?;

    let mut answered = [0; WEIGHTS.len()];
    for number in 0..60 {
        let sent = Echo { text: number.to_string(), ..Echo::default() };
        let echo = grpc::once(channel.clone(), sent).await?;
        ensure!(echo.text == number.to_string(), "{echo:?}");
        let index = WEIGHTS.iter().position(|(name, _)| *name == echo.node).context("an unknown node")?;
        answered[index] += 1;
    }
    ensure!(answered == [10, 20, 30], "answers by node: {answered:?}");

    let (echoes, status) = grpc::many(channel, Echo { count: 100, ..Echo::default() }).await?;
    ensure!(echoes.len() == 100, "{} answers", echoes.len());
    ensure!(status.code() == tonic::Code::FailedPrecondition, "{status}");
    ensure!(status.metadata().get("x-answers").is_some_and(|count| count == "100"), "{:?}", status.metadata());
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_go_through_both_ways() -> Result<()> {
    let scene = Scene::new()?;
    let world = World::start(&scene).await?;
    let body: Bytes = (0..10_000_000_u32).map(|index| (index % 251) as u8).collect();
    for _ in 0..3 {
        let request = hyper::Request::post("/echo").header("host", SERVICE).body(Full::new(body.clone()))?;
        let reply = http::send(world.envoy.listen(), request).await?;
        ensure!(reply.status == 200, "{}", reply.status);
        ensure!(reply.body == body, "{} bytes came back, not the ones sent", reply.body.len());
        let request = hyper::Request::post(format!("http://{SERVICE}/echo")).body(Full::new(body.clone()))?;
        let reply = http::send_h2(world.envoy.listen(), request).await?;
        ensure!(reply.status == 200 && reply.body == body, "over HTTP/2: {}", reply.status);
    }
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_goes_through() -> Result<()> {
    let scene = Scene::new()?;
    let world = World::start(&scene).await?;
    let before = world.envoy.picks().await?;
    let request = format!("ws://{SERVICE}/ws").into_client_request()?;
    let stream = TcpStream::connect(world.envoy.listen()).await?;
    let (mut socket, response) = tokio_tungstenite::client_async(request, stream).await?;
    ensure!(response.status() == 101, "{}", response.status());
    for size in [1, 1_000, 100_000] {
        let message = Message::binary(vec![7; size]);
        socket.send(message.clone()).await?;
        let answer = tokio::time::timeout(Duration::from_secs(10), socket.next()).await?;
        ensure!(answer.context("the socket was closed")?? == message);
    }
    socket.close(None).await?;
    ensure!(world.envoy.picks().await? == before + 1, "an upgrade is picked for like any request");
    scene.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_on_ipv6_are_served() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let loopback: IpAddr = "::1".parse()?;
    let nodes = [Upstream::start_on("a", loopback).await?, Upstream::start_on("b", loopback).await?];
    let config =
        nodes.iter().zip([1, 3]).fold(AgentConfig::new("host-a", &etcd.endpoints()), |config, (node, weight)| {
            config.service(ServiceConfig::new(SERVICE, node.name(), node.address()).weight(weight))
        });
    let agent = Agent::start(&scene, &config).await?;
    let envoy = Envoy::start(&scene, &agent, &EnvoyOptions::new(&[SERVICE])).await?;
    agent.wait_nodes(SERVICE, &[nodes[0].address(), nodes[1].address()]).await?;
    envoy.wait_picking(SERVICE).await?;
    let report = Load::run(envoy.load(SERVICE).total(400)).await?;
    report.ensure_no_failure()?;
    report.ensure_shares(&[("a", 1), ("b", 3)], 0.01)?;
    scene.close()
}
