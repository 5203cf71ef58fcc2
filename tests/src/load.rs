//! A closed-loop load generator: so many connections, each with one request at a time. It retries nothing.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::http::AbortOnDrop;

/// Failures whose text is kept.
const KEPT_FAILURES: usize = 20;
/// Latencies that are kept.
const KEPT_LATENCIES: usize = 2_000_000;

/// What to send, to whom, and how fast.
#[derive(Debug, Clone)]
pub struct LoadPlan {
    /// Where to connect.
    pub target: SocketAddr,
    /// The `host` header.
    pub host: String,
    /// The path.
    pub path: String,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// So many keys take turns: `{key}` in the path and in the headers' values is each request's number modulo this.
    pub keys: Option<u64>,
    /// Connections.
    pub connections: usize,
    /// Requests over all connections; none: until stopped.
    pub total: Option<u64>,
    /// At most so many requests a second over all connections.
    pub rate: Option<f64>,
    /// A request without an answer after this has failed.
    pub timeout: Duration,
}

impl LoadPlan {
    /// `GET /` over eight connections, until stopped.
    pub fn new(target: SocketAddr, host: &str) -> Self {
        Self {
            target,
            host: host.to_owned(),
            path: "/".to_owned(),
            headers: Vec::new(),
            keys: None,
            connections: 8,
            total: None,
            rate: None,
            timeout: Duration::from_secs(10),
        }
    }

    /// Another path.
    pub fn path(mut self, path: &str) -> Self {
        self.path = path.to_owned();
        self
    }

    /// One more header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// So many keys take turns as `{key}`.
    pub fn keys(mut self, keys: u64) -> Self {
        self.keys = Some(keys);
        self
    }

    /// Ends by itself after `total` requests.
    pub fn total(mut self, total: u64) -> Self {
        self.total = Some(total);
        self
    }

    /// So many connections.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    /// At most so many requests a second.
    pub fn rate(mut self, rate: f64) -> Self {
        self.rate = Some(rate);
        self
    }
}

/// What came of the requests.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Answers with status 200, by the node that gave them: its header `x-node`, or else its body's text.
    pub nodes: BTreeMap<String, u64>,
    /// The same of each key, where keys take turns.
    pub by_key: BTreeMap<u64, BTreeMap<String, u64>>,
    /// Everything else: another status, an error, no answer in time.
    pub failed: u64,
    /// The first failures, each with the time since the start.
    pub failures: Vec<String>,
    /// Of each successful request.
    pub latencies: Vec<Duration>,
}

impl Report {
    /// Answers with status 200.
    pub fn succeeded(&self) -> u64 {
        self.nodes.values().sum()
    }

    /// Answers of one node.
    pub fn count(&self, node: &str) -> u64 {
        self.nodes.get(node).copied().unwrap_or(0)
    }

    /// A node's part of all answers, 0 to 1.
    pub fn share(&self, node: &str) -> f64 {
        self.count(node) as f64 / self.succeeded().max(1) as f64
    }

    /// The latency that a share `q` (0 to 1) of the requests did not exceed.
    pub fn percentile(&self, q: f64) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let index = (sorted.len().saturating_sub(1) as f64 * q).round() as usize;
        sorted.get(index).copied().unwrap_or_default()
    }

    /// The node of each key; an error if a key has more than one.
    pub fn homes(&self) -> Result<BTreeMap<u64, String>> {
        let home = |(key, nodes): (&u64, &BTreeMap<String, u64>)| {
            ensure!(nodes.len() == 1, "key {key} went to several nodes: {nodes:?}");
            Ok((*key, nodes.keys().next().cloned().unwrap_or_default()))
        };
        self.by_key.iter().map(home).collect()
    }

    /// What came after an earlier snapshot of the same load, without what is known of keys.
    pub fn since(&self, earlier: &Self) -> Self {
        let nodes = self.nodes.iter().map(|(node, count)| (node.clone(), count - earlier.count(node)));
        Self {
            nodes: nodes.filter(|(_, count)| *count > 0).collect(),
            by_key: BTreeMap::new(),
            failed: self.failed - earlier.failed,
            failures: self.failures.get(earlier.failures.len()..).unwrap_or_default().to_vec(),
            latencies: self.latencies.get(earlier.latencies.len()..).unwrap_or_default().to_vec(),
        }
    }

    /// An error unless every request succeeded, and there were some.
    pub fn ensure_no_failure(&self) -> Result<()> {
        ensure!(
            self.failed == 0,
            "{} of {} requests failed: {:#?}",
            self.failed,
            self.failed + self.succeeded(),
            self.failures
        );
        ensure!(self.succeeded() > 0, "no request was sent");
        Ok(())
    }

    /// An error unless the nodes' shares are these weights' within `tolerance` (0.01: one percentage point).
    pub fn ensure_shares(&self, weights: &[(&str, u32)], tolerance: f64) -> Result<()> {
        let sum: u32 = weights.iter().map(|(_, weight)| weight).sum();
        for (node, weight) in weights {
            let expected = f64::from(*weight) / f64::from(sum);
            let seen = self.share(node);
            ensure!(
                (seen - expected).abs() <= tolerance,
                "{node} has {seen:.4} of the requests instead of {expected:.4}: {:?}",
                self.nodes
            );
        }
        let known: u64 = weights.iter().map(|(node, _)| self.count(node)).sum();
        ensure!(known == self.succeeded(), "an unexpected node answered: {:?}", self.nodes);
        Ok(())
    }
}

/// A load that runs in the background until stopped or dropped.
pub struct Load {
    shared: Arc<Shared>,
    stop: CancellationToken,
    workers: JoinSet<()>,
}

struct Shared {
    plan: LoadPlan,
    start: Instant,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    sent: u64,
    report: Report,
}

impl Load {
    /// Starts sending.
    pub fn start(plan: LoadPlan) -> Self {
        let connections = plan.connections;
        let shared = Arc::new(Shared { plan, start: Instant::now(), progress: Mutex::default() });
        let stop = CancellationToken::new();
        let mut workers = JoinSet::new();
        for _ in 0..connections {
            workers.spawn(work(shared.clone(), stop.clone()));
        }
        Self { shared, stop, workers }
    }

    /// What has come so far.
    pub fn snapshot(&self) -> Report {
        self.shared.lock().report.clone()
    }

    /// Answers by node, and failures, so far: as in [`Load::snapshot`], but cheap enough to be asked often.
    pub fn tally(&self) -> (BTreeMap<String, u64>, u64) {
        let report = &self.shared.lock().report;
        (report.nodes.clone(), report.failed)
    }

    /// Sends no more, waits for the answers on their way, and reports.
    pub async fn stop(self) -> Result<Report> {
        self.stop.cancel();
        let deadline = self.shared.plan.timeout + Duration::from_secs(5);
        self.finish(deadline).await
    }

    /// Waits until all requests of the plan are answered.
    pub async fn finish(mut self, deadline: Duration) -> Result<Report> {
        let all = async {
            while let Some(ended) = self.workers.join_next().await {
                ended.context("a worker of the load generator broke")?;
            }
            Ok(self.shared.lock().report.clone())
        };
        match tokio::time::timeout(deadline, all).await {
            Ok(report) => report,
            Err(_) => bail!("the load has not ended within {deadline:?}"),
        }
    }

    /// Sends all requests of a plan that has a total.
    pub async fn run(plan: LoadPlan) -> Result<Report> {
        ensure!(plan.total.is_some(), "a load that runs to its end needs a total");
        Self::start(plan).finish(Duration::from_secs(120)).await
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the next request, unless all were sent.
    fn next(&self) -> Option<u64> {
        let mut progress = self.lock();
        if self.plan.total.is_some_and(|total| progress.sent >= total) {
            return None;
        }
        progress.sent += 1;
        Some(progress.sent - 1)
    }
}

async fn work(shared: Arc<Shared>, stop: CancellationToken) {
    let mut connection = None;
    while !stop.is_cancelled() {
        let Some(number) = shared.next() else { return };
        if let Some(rate) = shared.plan.rate {
            let due = shared.start + Duration::from_secs_f64(number as f64 / rate);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(due.into()) => {}
            }
        }
        let sent = Instant::now();
        let key = shared.plan.keys.map(|keys| number % keys.max(1));
        let answer = tokio::time::timeout(shared.plan.timeout, request(&shared.plan, key, &mut connection)).await;
        let answer = answer.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {:?}", shared.plan.timeout)));
        let report = &mut shared.lock().report;
        match answer {
            Ok(node) => {
                if let Some(key) = key {
                    *report.by_key.entry(key).or_default().entry(node.clone()).or_default() += 1;
                }
                *report.nodes.entry(node).or_default() += 1;
                if report.latencies.len() < KEPT_LATENCIES {
                    report.latencies.push(sent.elapsed());
                }
            }
            Err(error) => {
                connection = None;
                report.failed += 1;
                if report.failures.len() < KEPT_FAILURES {
                    report.failures.push(format!("at {:.3} s: {error:#}", shared.start.elapsed().as_secs_f64()));
                }
            }
        }
    }
}

/// One keep-alive connection and the task that drives it.
struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    _driver: AbortOnDrop<()>,
}

impl Connection {
    async fn open(target: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(target).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // How the connection ends is told by the request that it fails.
        let driver = tokio::spawn(async move { connection.await.unwrap_or_default() });
        Ok(Self { sender, _driver: AbortOnDrop(driver) })
    }
}

/// Sends one request and reads its whole answer; the node that gave it.
async fn request(plan: &LoadPlan, key: Option<u64>, connection: &mut Option<Connection>) -> Result<String> {
    let filled = |text: &str| match key {
        Some(key) => text.replace("{key}", &key.to_string()),
        None => text.to_owned(),
    };
    let mut open = match connection.take() {
        Some(open) => open,
        None => Connection::open(plan.target).await?,
    };
    // A server may close a connection between requests; that is no failure.
    if open.sender.ready().await.is_err() {
        open = Connection::open(plan.target).await?;
    }
    let mut request = Request::get(filled(&plan.path)).header("host", &plan.host);
    for (name, value) in &plan.headers {
        request = request.header(name, filled(value));
    }
    let response = open.sender.send_request(request.body(Empty::new())?).await?;
    let (status, node) = (response.status(), response.headers().get("x-node").cloned());
    let body = response.into_body().collect().await?.to_bytes();
    ensure!(status == StatusCode::OK, "status {status}: {}", String::from_utf8_lossy(&body).trim());
    *connection = Some(open);
    Ok(match node {
        Some(node) => String::from_utf8_lossy(node.as_bytes()).into_owned(),
        None => String::from_utf8_lossy(&body).trim().to_owned(),
    })
}

/// One connection that sends one request at a time, when told to.
pub struct Caller {
    plan: LoadPlan,
    connection: Option<Connection>,
}

impl Caller {
    /// A caller that sends what the plan says; its numbers are not used.
    pub fn new(plan: LoadPlan) -> Self {
        Self { plan, connection: None }
    }

    /// Sends a request; the node that answered it.
    pub async fn call(&mut self) -> Result<String> {
        match tokio::time::timeout(self.plan.timeout, request(&self.plan, None, &mut self.connection)).await {
            Ok(answer) => answer,
            Err(_) => bail!("no answer within {:?}", self.plan.timeout),
        }
    }
}
