//! Steady traffic through Envoy, sampled often.
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use waypost_tests::{Load, LoadPlan, http};

use crate::model::{LEGACY, WEB};
use crate::series::Series;
use crate::tries::Tries;

/// Requests a second to each service: bounded, so that a laptop stays cool.
pub const RATES: [(&str, f64); 2] = [(WEB, 200.0), (LEGACY, 50.0)];

const SAMPLED: Duration = Duration::from_millis(20);
const ENVOY_ASKED: Duration = Duration::from_millis(100);
const TIMEOUT: Duration = Duration::from_secs(5);
/// Python's server answers in two writes, the second of which may wait 40 ms for an acknowledgement: enough connections
/// to hold the rate all the same.
const CONNECTIONS: usize = 24;

/// The traffic, until dropped.
pub struct Traffic {
    seen: Arc<Seen>,
    loads: Arc<Vec<(&'static str, Load)>>,
    _samplers: JoinSet<()>,
}

struct Seen {
    start: Instant,
    series: Mutex<[Series; RATES.len()]>,
    tries: Mutex<Tries>,
}

impl Traffic {
    /// Starts sending to Envoy.
    pub fn start(listen: SocketAddr, admin: SocketAddr) -> Self {
        let seen = Arc::new(Seen { start: Instant::now(), series: Mutex::default(), tries: Mutex::default() });
        let plan = |service: &str, rate| {
            let mut plan = LoadPlan::new(listen, service).connections(CONNECTIONS).rate(rate);
            plan.timeout = TIMEOUT;
            plan
        };
        let loads = Arc::new(RATES.map(|(service, rate)| (service, Load::start(plan(service, rate)))).into());
        let mut samplers = JoinSet::new();
        samplers.spawn(sample(seen.clone(), Arc::clone(&loads)));
        samplers.spawn(ask_envoy(seen.clone(), admin));
        Self { seen, loads, _samplers: samplers }
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.seen.start.elapsed()
    }

    /// Reads a service's series.
    pub fn read<T>(&self, service: &str, read: impl FnOnce(&Series) -> T) -> T {
        let index = RATES.iter().position(|(name, _)| *name == service).unwrap_or(0);
        read(&lock(&self.seen.series)[index])
    }

    /// Requests and failures of both services so far.
    pub fn totals(&self) -> (u64, u64) {
        let series = lock(&self.seen.series);
        (series.iter().map(Series::requests).sum(), series.iter().map(Series::failed).sum())
    }

    /// Reads what Envoy counts per node.
    pub fn tries<T>(&self, read: impl FnOnce(&Tries) -> T) -> T {
        read(&lock(&self.seen.tries))
    }

    /// The first failures, in words.
    pub fn failures(&self) -> Vec<String> {
        let words = |(service, load): &(&str, Load)| {
            load.snapshot().failures.into_iter().map(|text| format!("{service}: {text}")).collect::<Vec<_>>()
        };
        self.loads.iter().flat_map(words).collect()
    }
}

async fn sample(seen: Arc<Seen>, loads: Arc<Vec<(&'static str, Load)>>) {
    let mut ticks = tokio::time::interval(SAMPLED);
    loop {
        ticks.tick().await;
        for (index, (_, load)) in loads.iter().enumerate() {
            let (answers, failed) = load.tally();
            lock(&seen.series)[index].record(seen.start.elapsed(), answers, failed);
        }
    }
}

async fn ask_envoy(seen: Arc<Seen>, admin: SocketAddr) {
    let mut ticks = tokio::time::interval(ENVOY_ASKED);
    loop {
        ticks.tick().await;
        // One answer lost is made up for by the next.
        if let Ok(json) = http::get_text(admin, "/clusters?format=json").await {
            let _ = lock(&seen.tries).observe(seen.start.elapsed(), &json);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
