//! One component at work, for all services whose policies name it. Everything that blocks, compiling and running, happens
//! on blocking threads, one thing after the other.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use waypost_catalog::{Health, ServiceName};
use waypost_components::{
    Decision, Engine, Input, Latency, Level, Locality, Node, Outcomes, Reference, Runner, Strategies,
    directory::Directory, engine::Component,
};

use super::{
    Board,
    desk::{Done, FILES},
    source::Fetched,
};
use crate::{
    effective::{self, Decisions, Question},
    outcomes::NodeOutcomes,
};

/// A question with what only the moment knows.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) question: Question,
    pub(super) outcomes: BTreeMap<Box<str>, NodeOutcomes>,
    pub(super) local: Locality,
}

/// What a worker works with.
pub(super) struct WorkerContext {
    pub(super) reference: Reference,
    pub(super) engine: Engine,
    pub(super) directory: PathBuf,
    pub(super) fetched: Fetched,
    pub(super) board: Arc<Board>,
    pub(super) done: mpsc::UnboundedSender<Done>,
}

enum Task {
    Weigh(Job),
    Forget(ServiceName),
}

/// The running worker.
pub(super) struct Worker {
    tasks: mpsc::UnboundedSender<Task>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Worker {
    pub(super) fn start(context: WorkerContext) -> Self {
        let (tasks, incoming) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(context, incoming, stop.clone()));
        Self { tasks, stop, task }
    }

    pub(super) fn ask(&self, job: Job) {
        let _ = self.tasks.send(Task::Weigh(job));
    }

    /// It has no say in the service any more: the service's instance goes.
    pub(super) fn forget(&self, service: ServiceName) {
        let _ = self.tasks.send(Task::Forget(service));
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            warn!(%error, "a strategy component's worker ended badly");
        }
    }
}

/// What blocks: it goes to a blocking thread and comes back.
struct Bench {
    strategies: Strategies,
    runners: HashMap<ServiceName, Running>,
}

struct Running {
    runner: Runner,
    /// Since when each node has been passing, as far as this agent has seen.
    since: HashMap<std::net::SocketAddr, Instant>,
}

async fn run(context: WorkerContext, mut tasks: mpsc::UnboundedReceiver<Task>, stop: CancellationToken) {
    let WorkerContext { reference, engine, directory, fetched, board, done } = context;
    let limit = engine.limits().component;
    let mut bench =
        Bench { strategies: Strategies::new(engine, Some(Directory::new(directory))), runners: HashMap::new() };
    let mut files = tokio::time::interval(FILES);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = fetched.changed(&stop) => {
                let Some((hash, bytes)) = fetched.bytes(limit) else { continue };
                match bytes {
                    Ok(bytes) => {
                        let changed = blocking(bench, move |bench| bench.strategies.offer(hash, &bytes)).await;
                        let Some((returned, changed)) = changed else { return };
                        bench = returned;
                        if changed {
                            let _ = done.send(Done::Replaced(reference.clone()));
                        }
                    }
                    Err(problem) => debug!(component = %reference, %problem, "not in etcd yet"),
                }
            }
            _ = files.tick() => {
                let Some((returned, changed)) = blocking(bench, |bench| bench.strategies.refresh()).await else { return };
                bench = returned;
                if !changed.is_empty() {
                    info!(component = %reference, "a strategy component was replaced");
                    let _ = done.send(Done::Replaced(reference.clone()));
                }
            }
            task = tasks.recv() => {
                let job = match task {
                    Some(Task::Weigh(job)) => job,
                    Some(Task::Forget(service)) => {
                        bench.runners.remove(&service);
                        continue;
                    }
                    None => return,
                };
                let service = job.question.service.clone();
                let (wanted, shown) = (reference.clone(), Arc::clone(&board));
                let answered = blocking(bench, move |bench| bench.weigh(&wanted, job, &shown)).await;
                let Some((returned, answer)) = answered else { return };
                bench = returned;
                let _ = done.send(Done::Answered { service, by: reference.clone(), answer });
            }
        }
    }
}

/// `None` if it panicked: the worker is of no use any more.
async fn blocking<T: Send + 'static>(
    mut bench: Bench,
    work: impl FnOnce(&mut Bench) -> T + Send + 'static,
) -> Option<(Bench, T)> {
    let work = move || {
        let outcome = work(&mut bench);
        (bench, outcome)
    };
    tokio::task::spawn_blocking(work)
        .await
        .inspect_err(|error| error!(%error, "a strategy component's worker failed"))
        .ok()
}

impl Bench {
    fn weigh(&mut self, reference: &Reference, job: Job, board: &Board) -> Option<(Decisions, Option<Duration>)> {
        let service = job.question.service.clone();
        let shown = reference.to_string();
        let fail = |problem: String| {
            if board.failed(&service, &shown, problem.clone()) {
                warn!(%service, component = shown, problem, "a strategy component fails: what it decided last stands");
            }
            None
        };
        let loaded = self.strategies.get(reference);
        let problem = loaded.problem.as_ref().map(ToString::to_string);
        let Some(component) = loaded.component.clone() else {
            return fail(problem.unwrap_or_else(|| "it is not loaded yet".to_owned()));
        };
        let running = runner(&mut self.runners, &service, &component);
        let now = Instant::now();
        let input = input(&job, running, now);
        let outcome = running.runner.weigh(&input);
        let took = now.elapsed();
        for line in running.runner.take_log().lines {
            say(&service, &shown, line.level, &line.message);
        }
        match outcome {
            Ok(answer) => {
                board.answered(&service, &shown, took, running.runner.memory(), Instant::now());
                if let Some(problem) = problem {
                    // The one before it is at work.
                    let _ = fail(problem);
                }
                let decided =
                    job.question.nodes.iter().zip(answer.decisions).map(|(node, Decision { weight, priority })| {
                        (node.address, effective::Decided { weight, priority })
                    });
                Some((decided.collect(), answer.ask_again))
            }
            Err(error) => fail(error.to_string()),
        }
    }
}

/// The runner of a service: a new one if the component is another one.
fn runner<'a>(
    runners: &'a mut HashMap<ServiceName, Running>,
    service: &ServiceName,
    component: &Component,
) -> &'a mut Running {
    let running = runners
        .entry(service.clone())
        .or_insert_with(|| Running { runner: Runner::new(component), since: HashMap::new() });
    if running.runner.component().hash() != component.hash() {
        running.runner = Runner::new(component);
    }
    running
}

fn input(job: &Job, running: &mut Running, now: Instant) -> Input {
    let question = &job.question;
    let passing = |address: &std::net::SocketAddr| {
        question.nodes.iter().any(|node| node.address == *address && node.health == Health::Passing)
    };
    running.since.retain(|address, _| passing(address));
    let nodes = question.nodes.iter().map(|node| {
        let age = (node.health == Health::Passing).then(|| {
            let since = running.since.entry(node.address).or_insert(now);
            u32::try_from(now.saturating_duration_since(*since).as_secs()).unwrap_or(u32::MAX)
        });
        let previous = question.previous.get(&node.address);
        Node {
            priority: node.placement.priority,
            age_seconds: age,
            outcomes: job.outcomes.get(&*node.address.to_string()).map(outcomes),
            previous: previous.map(|decided| Decision { weight: decided.weight, priority: decided.priority }),
            ..Node::from(&**node)
        }
    });
    Input {
        service: question.service.to_string(),
        nodes: nodes.collect(),
        parameters: question.component.parameters.to_string(),
        local: job.local.clone(),
    }
}

fn outcomes(known: &NodeOutcomes) -> Outcomes {
    let millis = |latency: Duration| latency.as_secs_f64() * 1e3;
    Outcomes {
        window_seconds: known.over.as_secs_f64(),
        requests: known.recent.requests,
        failures: known.recent.failures(),
        rate: known.rate(),
        in_flight: u32::try_from(known.in_flight).unwrap_or(u32::MAX),
        latency: known.p50.zip(known.p99).map(|(p50, p99)| Latency { p50_ms: millis(p50), p99_ms: millis(p99) }),
    }
}

fn say(service: &ServiceName, component: &str, level: Level, text: &str) {
    match level {
        Level::Debug => debug!(%service, component, text, "a strategy component says"),
        Level::Info => info!(%service, component, text, "a strategy component says"),
        Level::Warning => warn!(%service, component, text, "a strategy component says"),
        Level::Error => error!(%service, component, text, "a strategy component says"),
    }
}
