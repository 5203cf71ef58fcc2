//! `cargo xtask demo`: real etcd, two agents, stock HTTP servers and Envoy under steady traffic, while things change
//! and fail. Without a terminal it ends with status 0 only if every step did what it states.
mod model;
mod screen;
mod series;
mod steps;
mod traffic;
mod tries;
mod world;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use waypost_tests::{Scene, tools};

use crate::model::Model;
use crate::screen::{Look, Screen};
use crate::steps::{Step, Steps, Verdict};
use crate::traffic::{RATES, Traffic};
use crate::world::{LEGACY_ROOT, World};

/// How often the table is drawn.
const REDRAWN: Duration = Duration::from_millis(250);
/// How often the agent is asked, once the steps are done, what the user has changed.
const FOLLOWED: Duration = Duration::from_millis(500);
/// As shells count it: 128 and SIGINT's number.
const INTERRUPTED: u8 = 130;

type Shared<T> = Arc<Mutex<T>>;

#[tokio::main]
async fn main() -> ExitCode {
    match demo().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo() -> Result<ExitCode> {
    // Before anything is started: from here on a signal ends the demo in order.
    let interrupted = signalled()?;
    let scene = Scene::new()?;
    let screen = Arc::new(Mutex::new(Screen::new()));
    let verdicts = Mutex::new(Vec::new());
    tokio::select! {
        result = show(&scene, &screen, &verdicts) => {
            // A scene that is dropped and not closed keeps its logs and says where.
            if let Err(error) = result {
                drop(scene);
                return Err(error);
            }
        }
        () = interrupted => {}
    }
    let verdicts = std::mem::take(&mut *lock(&verdicts));
    scene.close()?;
    Ok(close(&mut lock(&screen), &verdicts))
}

/// Resolves with the first signal that asks to end.
fn signalled() -> Result<impl Future<Output = ()>> {
    let mut signals = JoinSet::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut stream = signal(kind).context("cannot listen for signals")?;
        signals.spawn(async move { stream.recv().await });
    }
    Ok(async move { drop(signals.join_next().await) })
}

/// Starts everything, does the steps, and on a terminal stays until interrupted.
async fn show(scene: &Scene, screen: &Shared<Screen>, verdicts: &Mutex<Vec<Verdict>>) -> Result<()> {
    let began = Instant::now();
    let title = lock(screen).paint(Look::Strong, "Waypost: etcd as the registry, Envoy as the router");
    say(screen, &[title, String::new()]);
    let (world, model) = World::start(scene, &mut |line| say(screen, &[line])).await?;
    let traffic = Traffic::start(world.envoy.listen(), world.envoy.admin());
    let rates: Vec<String> = RATES.iter().map(|(service, rate)| format!("{rate} requests/s to {service}")).collect();
    say(
        screen,
        &[
            format!("  traffic   {}", rates.join(", ")),
            format!("  files     {}", scene.path().display()),
            String::new(),
        ],
    );

    let (world, traffic, model) = (Arc::new(world), Arc::new(traffic), Arc::new(Mutex::new(model)));
    let now = Arc::new(Mutex::new(String::new()));
    let mut painters = JoinSet::new();
    painters.spawn(paint(screen.clone(), model.clone(), traffic.clone(), now.clone()));
    let steps = Steps::new(world.clone(), traffic.clone(), model.clone());
    for (index, step) in Step::ALL.into_iter().enumerate() {
        *lock(&now) = format!("now: {}. {} ({})", index + 1, step.title(), step.promise());
        let verdict = steps.run(step).await?;
        let mut screen = lock(screen);
        let mut lines = screen.verdict(index + 1, &verdict);
        if !screen.terminal() {
            lines.push(String::new());
            lines.extend(screen.table(&lock(&model), &traffic));
        }
        lines.push(String::new());
        screen.print(&lines);
        lock(verdicts).push(verdict);
    }
    let failures = traffic.failures();
    if !failures.is_empty() {
        let lines: Vec<String> = failures.into_iter().map(|failure| format!("  failed {failure}")).collect();
        say(screen, &lines);
    }
    if !lock(screen).terminal() {
        return Ok(());
    }
    lock(&now).clear();
    say(screen, &invitation(&world, began.elapsed()));
    loop {
        // What it last knew is shown while the agent is away.
        if let Ok(catalog) = world.agent_a.catalog().await {
            lock(&model).follow(&catalog);
        }
        tokio::time::sleep(FOLLOWED).await;
    }
}

/// Redraws the table for as long as the demo runs.
async fn paint(screen: Shared<Screen>, model: Shared<Model>, traffic: Arc<Traffic>, now: Shared<String>) {
    let mut ticks = tokio::time::interval(REDRAWN);
    loop {
        ticks.tick().await;
        let mut screen = lock(&screen);
        let mut lines = screen.table(&lock(&model), &traffic);
        let now = lock(&now);
        if !now.is_empty() {
            lines.insert(0, screen.paint(Look::Strong, &now));
            lines.insert(1, String::new());
        }
        screen.redraw(&lines);
    }
}

/// What to try while it stays up.
fn invitation(world: &World, took: Duration) -> Vec<String> {
    let envoy = world.envoy.listen();
    let etcdctl = tools::tool("etcdctl").map_or_else(|_| "etcdctl".to_owned(), |path| path.display().to_string());
    let endpoints = world.etcd.endpoints().join(",");
    [
        format!("All steps done after {} s. It stays up until Ctrl-C. To try:", took.as_secs()),
        format!("  curl -H 'host: web' http://{envoy}/"),
        format!("  for i in $(seq 60); do curl -s -H 'host: web' http://{envoy}/; done | sort | uniq -c"),
        format!("  curl -H 'host: legacy' http://{envoy}/"),
        format!("  curl http://{}/catalog", world.agent_a.admin()),
        format!("  curl 'http://{}/stats?filter=waypost'", world.envoy.admin()),
        format!("  {etcdctl} --endpoints={endpoints} get --prefix /waypost/services/"),
        format!("  {etcdctl} --endpoints={endpoints} get --prefix {LEGACY_ROOT}"),
        format!("  change a weight in {}: the table follows", world.agent_a.file().display()),
        String::new(),
    ]
    .to_vec()
}

/// The last lines, and the exit status.
fn close(screen: &mut Screen, verdicts: &[Verdict]) -> ExitCode {
    let (met, done, all) = (verdicts.iter().filter(|verdict| verdict.met).count(), verdicts.len(), Step::ALL.len());
    let (look, code, text) = if done < all {
        let text = format!("Interrupted: {met} of the {done} steps so far did what they state.");
        (Look::Odd, ExitCode::from(INTERRUPTED), text)
    } else if met < all {
        (Look::Bad, ExitCode::FAILURE, format!("Only {met} of {all} steps did what they state."))
    } else {
        (Look::Good, ExitCode::SUCCESS, format!("All {all} steps did what they state."))
    };
    let mut lines: Vec<String> = verdicts
        .iter()
        .enumerate()
        .filter(|(_, verdict)| !verdict.met)
        .flat_map(|(index, verdict)| screen.verdict(index + 1, verdict))
        .collect();
    lines.push(format!("{} Nothing is left running.", screen.paint(look, &text)));
    screen.leave();
    screen.print(&lines);
    code
}

fn say(screen: &Mutex<Screen>, lines: &[String]) {
    lock(screen).print(lines);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
