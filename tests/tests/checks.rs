//! Each type of check takes a service out and brings it back, as etcd and the local API see it.
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use etcd_client::{EventType, WatchOptions};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use waypost_tests::{
    Agent, AgentConfig, CheckConfig, Etcd, Scene, ServiceConfig, Upstream, eventually, holds_for, ports,
};

const DEADLINE: Duration = Duration::from_secs(30);
const ROOT: &str = "/waypost/services/";

/// A gRPC server that knows nothing but the health protocol.
struct GrpcServer {
    address: SocketAddr,
    health: HealthReporter,
    task: JoinHandle<()>,
}

impl GrpcServer {
    async fn start() -> Result<Self> {
        let (health, service) = tonic_health::server::health_reporter();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let router = tonic::service::Routes::new(service).into_axum_router();
        let task = tokio::spawn(async move { _ = axum::serve(listener, router).await });
        Ok(Self { address, health, task })
    }
}

impl Drop for GrpcServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a service is checked with, broken and mended.
struct World {
    http: Upstream,
    tcp: Option<Upstream>,
    tcp_address: SocketAddr,
    grpc: GrpcServer,
    exec: PathBuf,
}

impl World {
    async fn start(scene: &Scene) -> Result<Self> {
        let tcp = Upstream::start("tcp").await?;
        let world = Self {
            http: Upstream::start("http").await?,
            tcp_address: tcp.address(),
            tcp: Some(tcp),
            grpc: GrpcServer::start().await?,
            exec: scene.path().join("well"),
        };
        std::fs::write(&world.exec, "")?;
        world.grpc.health.set_service_status("shop.Orders", ServingStatus::Serving).await;
        Ok(world)
    }

    fn services(&self) -> Result<Vec<ServiceConfig>> {
        let service = |kind: &str, address: SocketAddr, check: CheckConfig| {
            ServiceConfig::new(kind, &format!("{kind}-1"), address).check(check)
        };
        let exec = ["/usr/bin/stat", "--format=%n is there", &self.exec.display().to_string()].map(str::to_owned);
        Ok(vec![
            service("http", self.http.address(), CheckConfig::new("http").set("path", "/healthz").quick()),
            service("tcp", self.tcp_address, CheckConfig::new("tcp").quick()),
            service("grpc", self.grpc.address, CheckConfig::new("grpc").set("service", "shop.Orders").quick()),
            service("exec", ports::local()?, CheckConfig::new("exec").set("command", exec.to_vec()).quick()),
            service("ttl", ports::local()?, CheckConfig::new("ttl").set("ttl", "60s")),
        ])
    }

    async fn set(&mut self, agent: &Agent, kind: &str, well: bool) -> Result<()> {
        match kind {
            "http" => self.http.set_healthy(well),
            "tcp" => {
                self.tcp = None;
                if well {
                    self.tcp = Some(Upstream::serve("tcp", self.tcp_address).await?);
                }
            }
            "grpc" => {
                let status = if well { ServingStatus::Serving } else { ServingStatus::NotServing };
                self.grpc.health.set_service_status("shop.Orders", status).await;
            }
            "exec" if well => std::fs::write(&self.exec, "")?,
            "exec" => std::fs::remove_file(&self.exec)?,
            _ => beat(agent, well, "queue: 7").await?,
        }
        Ok(())
    }
}

async fn beat(agent: &Agent, passing: bool, output: &str) -> Result<()> {
    let body = json!({ "passing": passing, "output": output });
    let reply = agent.call(Method::PUT, "/v1/registrations/ttl/ttl-1/heartbeat", Some(&body)).await?;
    ensure!(reply.status == StatusCode::NO_CONTENT, "{} {}", reply.status, reply.text());
    Ok(())
}

/// What etcd holds of each service, by its name.
async fn health(etcd: &Etcd) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for entry in etcd.list(ROOT).await? {
        let value: Value = serde_json::from_str(&entry.value)?;
        let name = entry.key.trim_start_matches(ROOT).split('/').next().unwrap_or_default().to_owned();
        all.push((name, value["health"].as_str().unwrap_or("passing").to_owned()));
    }
    Ok(all)
}

/// Waits until all of them pass, or all but one.
async fn wait_health(etcd: &Etcd, kinds: &[&str], critical: Option<&str>) -> Result<()> {
    let mut expected: Vec<_> = kinds
        .iter()
        .map(|kind| ((*kind).to_owned(), if critical == Some(kind) { "critical" } else { "passing" }.to_owned()))
        .collect();
    expected.sort();
    eventually(DEADLINE, format!("all to pass, but {critical:?} to be critical"), || async {
        let found = health(etcd).await?;
        ensure!(found == expected, "{found:?}");
        Ok(())
    })
    .await
}

/// Waits until the API has such an output of a service's check.
async fn wait_output(agent: &Agent, kind: &str, passing: bool, output: &str) -> Result<()> {
    eventually(DEADLINE, format!("the last output of {kind} to be {output:?}"), || async {
        let reply = agent.call(Method::GET, "/v1/registrations", None).await?;
        let all: Vec<Value> = serde_json::from_slice(&reply.body)?;
        let check = all.iter().find(|one| one["service"] == kind).map(|one| &one["check"]).context("not there")?;
        ensure!(check["passing"] == passing && check["output"] == output, "{check}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_type_of_check_takes_its_service_out_and_brings_it_back() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let mut world = World::start(&scene).await?;
    let services = world.services()?;
    let config = services.iter().cloned().fold(AgentConfig::new("host-a", &etcd.endpoints()), AgentConfig::service);
    let agent = Agent::start(&scene, &config).await?;
    let kinds: Vec<&str> = services.iter().map(|service| &*service.name).collect();
    wait_health(&etcd, &kinds, Some("ttl")).await.context("who has not reported yet is critical")?;
    world.set(&agent, "ttl", true).await?;
    wait_health(&etcd, &kinds, None).await?;

    let file = world.exec.display().to_string();
    let passed = [
        "200 OK".to_owned(),
        format!("{} takes connections", world.tcp_address),
        "service \"shop.Orders\" is SERVING".to_owned(),
        format!("{file} is there"),
        "queue: 7".to_owned(),
    ];
    let failed = [
        "answered 503 Service Unavailable".to_owned(),
        format!("cannot connect to {}: Connection refused (os error 111)", world.tcp_address),
        "service \"shop.Orders\" is NOT_SERVING".to_owned(),
        format!("exit status: 1: /usr/bin/stat: cannot statx '{file}': No such file or directory"),
        "queue: 7".to_owned(),
    ];
    for (kind, (passed, failed)) in kinds.iter().zip(passed.iter().zip(&failed)) {
        world.set(&agent, kind, false).await?;
        wait_health(&etcd, &kinds, Some(kind)).await?;
        wait_output(&agent, kind, false, failed).await?;
        world.set(&agent, kind, true).await?;
        wait_health(&etcd, &kinds, None).await?;
        wait_output(&agent, kind, true, passed).await?;
    }
    let log = std::fs::read_to_string(agent.process().log())?;
    ensure!(log.contains("check failed") && log.contains("answered 503 Service Unavailable"), "{log}");
    scene.close()
}

/// Reports every tenth of a second, whether anybody listens or not.
fn report_on(socket: &Path) -> JoinHandle<()> {
    let socket = socket.to_owned();
    tokio::spawn(async move {
        loop {
            let request = hyper::Request::put("/v1/registrations/ttl/ttl-1/heartbeat")
                .header("content-type", "application/json")
                .body(http_body_util::Full::from(r#"{"passing":true}"#));
            if let Ok(request) = request {
                // While the agent is away nobody listens.
                _ = waypost_tests::http::send_unix(&socket, request).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_reports_does_not_flap_when_the_agent_restarts_and_fails_once_it_is_silent() -> Result<()> {
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let ttl = Duration::from_secs(3);
    let check = CheckConfig::new("ttl").set("ttl", format!("{}s", ttl.as_secs()));
    let service = ServiceConfig::new("ttl", "ttl-1", ports::local()?).ttl("9s").check(check);
    let agent = Agent::start(&scene, &AgentConfig::new("host-a", &etcd.endpoints()).service(service)).await?;
    let reports = report_on(agent.socket());
    wait_health(&etcd, &["ttl"], None).await?;

    let options = WatchOptions::new().with_prefix().with_start_revision(etcd.revision().await? + 1);
    let mut changes = etcd.client().await?.watch(ROOT, Some(options)).await?;
    for _ in 0..2 {
        agent.kill().await?;
        agent.restart().await?;
        holds_for(ttl, "it passes", || async { ensure_passes(&etcd).await }).await?;
    }
    etcd.put(&format!("{ROOT}marker/1"), "{}").await?;
    'changes: loop {
        let message = tokio::time::timeout(DEADLINE, changes.message()).await??.context("the watch ended")?;
        for event in message.events() {
            let entry = event.kv().context("an event without a key")?;
            if entry.key_str()?.contains("/marker/") {
                break 'changes;
            }
            ensure!(event.event_type() == EventType::Put, "{} was deleted", entry.key_str()?);
            ensure!(!entry.value_str()?.contains("critical"), "it was critical in between: {}", entry.value_str()?);
        }
    }
    etcd.delete(&format!("{ROOT}marker/1")).await?;

    // Who reports no more is given its time anew by a restarted agent, and no longer.
    reports.abort();
    agent.kill().await?;
    agent.restart().await?;
    ensure_passes(&etcd).await?;
    wait_health(&etcd, &["ttl"], Some("ttl")).await?;
    wait_output(&agent, "ttl", false, "no report for 3s").await?;
    scene.close()
}

async fn ensure_passes(etcd: &Etcd) -> Result<()> {
    let found = health(etcd).await?;
    ensure!(found == [("ttl".to_owned(), "passing".to_owned())], "{found:?}");
    Ok(())
}
