//! Which service is to be asked about, and when.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use waypost_catalog::ServiceName;
use waypost_components::{Engine, Limits, Locality, Reference};
use waypost_policy::ComponentSource;
use waypost_registry::Connector;

use super::{
    Board,
    source::Fetched,
    worker::{Job, Worker, WorkerContext},
};
use crate::{
    config::Config,
    effective::{Answer, Decisions, Question, Request},
    mirroring::Components,
    outcomes::Outcomes,
};

/// What changes together is asked about together.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// How often services with new outcomes are asked about.
const OUTCOMES: Duration = Duration::from_secs(5);
/// How often files are looked at.
pub(super) const FILES: Duration = Duration::from_secs(1);
/// Pause before a component that failed is asked the same again.
const RETRY: Duration = Duration::from_secs(5);

/// Everything that components run with.
struct WeighingSettings {
    directory: PathBuf,
    limits: Limits,
    local: Locality,
}

/// The running desk.
#[derive(Debug)]
pub struct Weighing {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Weighing {
    /// Starts, with the ends for whoever asks.
    pub fn start(
        config: &Config,
        connector: Connector,
        outcomes: Arc<Outcomes>,
        board: Arc<Board>,
    ) -> (Self, Components) {
        let settings = WeighingSettings {
            directory: config.strategies.directory.clone(),
            limits: Limits {
                deadline: config.strategies.deadline,
                memory: config.strategies.memory,
                ..Limits::default()
            },
            local: Locality { zone: config.zone.clone(), host: config.node.clone() },
        };
        let (requests, incoming) = mpsc::unbounded_channel();
        let (answers, receiver) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(settings, connector, outcomes, board, incoming, answers, stop.clone()));
        (Self { stop, task }, Components { requests, answers: receiver })
    }

    /// Ends all runs.
    pub async fn shutdown(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            warn!(%error, "the strategy components ended badly");
        }
    }
}

/// A service that a component weighs.
struct Weighed {
    question: Question,
    reference: Reference,
    due: Option<Instant>,
    /// Its question is with the worker.
    running: bool,
    /// Requests that had ended when it was last asked.
    requests_seen: u64,
}

struct Desk {
    settings: WeighingSettings,
    engine: Engine,
    connector: Connector,
    outcomes: Arc<Outcomes>,
    board: Arc<Board>,
    services: BTreeMap<ServiceName, Weighed>,
    workers: BTreeMap<Reference, Worker>,
    done: mpsc::UnboundedSender<Done>,
}

/// What a worker says.
#[derive(Debug)]
pub(super) enum Done {
    /// A question was answered, or not.
    Answered { service: ServiceName, by: Reference, answer: Option<(Decisions, Option<Duration>)> },
    /// The component is another one than before.
    Replaced(Reference),
}

async fn run(
    settings: WeighingSettings,
    connector: Connector,
    outcomes: Arc<Outcomes>,
    board: Arc<Board>,
    mut incoming: mpsc::UnboundedReceiver<Request>,
    answers: mpsc::UnboundedSender<Answer>,
    stop: CancellationToken,
) {
    let engine = match Engine::new(settings.limits) {
        Ok(engine) => engine,
        Err(error) => {
            error!(%error, "no strategy component can run on this host: plain weights are used");
            return;
        }
    };
    let (done, mut finished) = mpsc::unbounded_channel();
    let services = BTreeMap::new();
    let mut desk = Desk { settings, engine, connector, outcomes, board, services, workers: BTreeMap::new(), done };
    let mut outcomes_due = tokio::time::interval(OUTCOMES);
    loop {
        let due = desk.services.values().filter(|weighed| !weighed.running).filter_map(|weighed| weighed.due).min();
        let until_due = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => break,
            request = incoming.recv() => match request {
                Some(request) => desk.take(request, Instant::now()),
                None => break,
            },
            Some(done) = finished.recv() => {
                if let Some(answer) = desk.finish(done, Instant::now()) {
                    let _ = answers.send(answer);
                }
            }
            _ = outcomes_due.tick() => desk.look_at_outcomes(Instant::now()),
            () = until_due => desk.ask_due(Instant::now()),
        }
    }
    for (_, worker) in desk.workers {
        worker.stop().await;
    }
}

impl Desk {
    fn take(&mut self, request: Request, now: Instant) {
        match request {
            Request::Forget(service) => {
                if let Some(weighed) = self.services.remove(&service) {
                    self.forget(&weighed.reference, &service);
                }
                self.board.remove(&service);
            }
            Request::Weigh(question) => {
                let service = question.service.clone();
                let reference = match reference(&question.component.source) {
                    Ok(reference) => reference,
                    Err(problem) => {
                        // The policy's parser lets nothing else through.
                        self.board.failed(&service, "", problem);
                        return;
                    }
                };
                let known = self.services.remove(&service);
                if let Some(known) = known.as_ref().filter(|known| known.reference != reference) {
                    self.forget(&known.reference, &service);
                }
                let running = known.as_ref().is_some_and(|known| known.running && known.reference == reference);
                let requests_seen = known.map_or(0, |known| known.requests_seen);
                let due = Some(now + DEBOUNCE);
                self.services.insert(service, Weighed { question, reference, due, running, requests_seen });
            }
        }
        let wanted = |reference: &Reference| self.services.values().any(|weighed| weighed.reference == *reference);
        let gone: Vec<_> = self.workers.keys().filter(|reference| !wanted(reference)).cloned().collect();
        for reference in gone {
            if let Some(worker) = self.workers.remove(&reference) {
                tokio::spawn(worker.stop());
            }
        }
    }

    /// A component has no say in a service any more.
    fn forget(&self, reference: &Reference, service: &ServiceName) {
        if let Some(worker) = self.workers.get(reference) {
            worker.forget(service.clone());
        }
    }

    fn ask_due(&mut self, now: Instant) {
        let due = |weighed: &Weighed| !weighed.running && weighed.due.is_some_and(|due| now >= due);
        for (service, weighed) in self.services.iter_mut().filter(|(_, weighed)| due(weighed)) {
            weighed.due = None;
            weighed.running = true;
            let outcomes = self.outcomes.of(service, now);
            weighed.requests_seen = outcomes.values().map(|node| node.total.requests).sum();
            let job = Job { question: weighed.question.clone(), outcomes, local: self.settings.local.clone() };
            let worker = self.workers.entry(weighed.reference.clone()).or_insert_with(|| {
                Worker::start(WorkerContext {
                    reference: weighed.reference.clone(),
                    engine: self.engine.clone(),
                    directory: self.settings.directory.clone(),
                    fetched: Fetched::start(&self.connector, &weighed.reference),
                    board: Arc::clone(&self.board),
                    done: self.done.clone(),
                })
            });
            worker.ask(job);
        }
    }

    fn finish(&mut self, done: Done, now: Instant) -> Option<Answer> {
        match done {
            Done::Replaced(reference) => {
                for weighed in self.services.values_mut().filter(|weighed| weighed.reference == reference) {
                    weighed.due = Some(now);
                }
                None
            }
            Done::Answered { service, by, answer } => {
                // Of a component that the policy does not name any more: nothing.
                let weighed = self.services.get_mut(&service).filter(|weighed| weighed.reference == by)?;
                weighed.running = false;
                let (decisions, again) = match answer {
                    Some((decisions, again)) => (Some(decisions), again),
                    None => (None, Some(RETRY)),
                };
                let again = again.map(|again| now + again);
                weighed.due = weighed.due.into_iter().chain(again).min();
                let decisions = decisions?;
                weighed.question.previous.clone_from(&decisions);
                Some(Answer { service, decisions })
            }
        }
    }

    /// Services whose requests went on are asked about again.
    fn look_at_outcomes(&mut self, now: Instant) {
        for (service, weighed) in &mut self.services {
            let ended: u64 = self.outcomes.of(service, now).values().map(|node| node.total.requests).sum();
            if ended != weighed.requests_seen {
                weighed.due = Some(weighed.due.map_or(now, |due| due.min(now)));
            }
        }
    }
}

fn reference(source: &ComponentSource) -> Result<Reference, String> {
    match source {
        ComponentSource::Name(name) => Ok(Reference::Name(name.clone())),
        ComponentSource::Sha256(hash) => hash.parse().map(Reference::Sha256).map_err(|error| format!("{error}")),
    }
}
