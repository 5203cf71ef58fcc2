//! `cargo xtask interop`: the frameworks' own Go libraries on one side, Waypost on the other, etcd and Envoy between.
//!
//! For each library, all at once: a Go program registers itself and Envoy routes to it; it is killed, and gone. The
//! agent registers a server, and a Go program finds it and gets its answer; the agent is killed, and the server is gone
//! for the library too. Whatever fails ends the run with an error.

mod libraries;
mod program;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use waypost_tests::{Agent, AgentConfig, Envoy, EnvoyOptions, Etcd, Load, Scene, ServiceConfig, Upstream, eventually};

use crate::libraries::{LIBRARIES, Library};
use crate::program::Program;

/// The leases that both sides keep.
const TTL: Duration = Duration::from_secs(5);
/// etcd looks for leases that have ended twice a second; the guard holds the last node of a service for one second.
const SLACK: Duration = Duration::from_secs(3);
const DEADLINE: Duration = Duration::from_secs(30);
/// Requests that must reach the Go program, all of them.
const REQUESTS: u64 = 50;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(program), None) = (arguments.next(), arguments.next()) else {
        bail!("name the Go program of tests/interop, built, and nothing else");
    };
    let scene = Scene::new()?;
    let etcd = Etcd::start(&scene).await?;
    let version = etcd.client().await?.status().await?.version().to_owned();

    let routing = LIBRARIES.iter().fold(
        // A service's only node that vanishes is held for as short as the guard can.
        AgentConfig::new("routing", &etcd.endpoints()).guard(1.0, "1s"),
        |config, library| config.watch(&library.watched(), library.format, "http1"),
    );
    let routing = Agent::start(&scene, &routing).await?;
    let theirs: Vec<String> = LIBRARIES.iter().map(Library::theirs).collect();
    let services: Vec<&str> = theirs.iter().map(String::as_str).collect();
    let envoy = Envoy::prepare(&scene, &routing, &EnvoyOptions::new(&services)).await?;
    envoy.launch()?;
    envoy.wait_ready().await?;

    let world = World { scene, etcd, program, routing, envoy };
    let from_them = try_join_all(LIBRARIES.iter().map(|library| they_register(&world, library))).await?;
    let from_us = we_register(&world).await?;

    println!("Go libraries and Waypost, on etcd {version} and Envoy; all leases {} s", TTL.as_secs());
    println!(
        "  {:<12}  {:>18}  {:>10}  {:>16}  {:>13}",
        "", "it registers:", "killed:", "agent registers:", "agent killed:"
    );
    println!(
        "  {:<12}  {:>18}  {:>10}  {:>16}  {:>13}   library",
        "format", "Envoy's requests", "gone after", "found after", "gone after"
    );
    for ((library, theirs), ours) in LIBRARIES.iter().zip(from_them).zip(from_us) {
        println!(
            "  {:<12}  {:>18}  {:>10}  {:>16}  {:>13}   {}",
            library.format,
            format!("{} of {REQUESTS}", theirs.answered),
            seconds(theirs.gone),
            seconds(ours.found),
            seconds(ours.gone),
            theirs.library
        );
    }
    let World { scene, .. } = world;
    scene.close()
}

/// What all of it runs on.
struct World {
    scene: Scene,
    etcd: Etcd,
    program: PathBuf,
    routing: Agent,
    envoy: Envoy,
}

/// A program that registered itself.
struct Theirs {
    library: String,
    answered: u64,
    gone: Duration,
}

/// A server that the agent registered.
struct Ours {
    found: Duration,
    gone: Duration,
}

/// A Go program registers and serves, Envoy routes to it; then it is killed.
async fn they_register(world: &World, library: &Library) -> Result<Theirs> {
    let steps = async {
        let service = library.theirs();
        let program = Program::start(&world.scene, &world.program, library.format, "serve", &world.etcd, &service)?;
        let serving = program.serving(DEADLINE).await?;
        world.envoy.wait_picking(&service).await?;
        let report = Load::run(world.envoy.load(&service).total(REQUESTS)).await?;
        report.ensure_no_failure()?;
        let answered = report.count(library.format);
        ensure!(answered == REQUESTS, "others than it answered: {:?}", report.nodes);
        ensure!(world.routing.nodes(&service).await? == [serving.address], "the agent knows other nodes");

        program.kill().await?;
        let killed = Instant::now();
        let gone = eventually(TTL + SLACK, "it to be gone", || async {
            let nodes = world.routing.nodes(&service).await?;
            ensure!(nodes.is_empty(), "the agent still publishes {nodes:?}");
            let keys = world.etcd.list(&library.key_prefix(&service)).await?;
            ensure!(keys.is_empty(), "etcd still has {keys:?}");
            Ok(killed.elapsed())
        })
        .await?;
        Ok::<_, anyhow::Error>(Theirs { library: serving.library, answered, gone })
    };
    steps.await.with_context(|| format!("{}: a Go program that registers itself", library.format))
}

/// The agent registers a server in each format, each library finds it and gets its answer; then the agent is killed.
async fn we_register(world: &World) -> Result<Vec<Ours>> {
    let mut watching = Vec::new();
    let mut servers = Vec::new();
    let mut config = AgentConfig::new("registering", &world.etcd.endpoints());
    for library in &LIBRARIES {
        let service = library.ours();
        let program = Program::start(&world.scene, &world.program, library.format, "watch", &world.etcd, &service)?;
        program.finds(&[], DEADLINE).await.with_context(|| format!("{}: before anything is there", library.format))?;
        watching.push(program);
        let server = Upstream::start(&service).await?;
        let registered = ServiceConfig::new(&service, "1", server.address()).format(library.format, library.root);
        config = config.service(registered);
        servers.push(server);
    }
    let agent = Agent::prepare(&world.scene, &config)?;
    let start = Instant::now();
    agent.launch()?;
    let found = watching.iter().zip(&servers).map(async |(program, server)| {
        let answer = (server.address().to_string(), server.name().to_owned());
        program.finds(&[answer], DEADLINE).await?;
        Ok::<_, anyhow::Error>(start.elapsed())
    });
    let found = try_join_all(found).await?;

    agent.kill().await?;
    let start = Instant::now();
    let gone = watching.iter().map(async |program| {
        program.finds(&[], TTL + SLACK).await?;
        Ok::<_, anyhow::Error>(start.elapsed())
    });
    let gone = try_join_all(gone).await?;
    Ok(found.into_iter().zip(gone).map(|(found, gone)| Ours { found, gone }).collect())
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}
