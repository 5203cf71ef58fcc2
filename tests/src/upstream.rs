//! HTTP servers that say who they are, over HTTP/1.1 and HTTP/2 without TLS, in this process or in one of their own.
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::grpc::{self, EchoService};
use crate::http::AbortOnDrop;
use crate::process::Process;
use crate::scene::Scene;
use crate::{http, ports, wait};

const START: Duration = Duration::from_secs(10);

/// A server in this process. Dropped, it closes its port and every connection at once.
///
/// * `/headers`: the request's headers as a JSON object
/// * `/echo`: the request's body
/// * `/ws`: a WebSocket that returns what it gets
/// * `/healthz`: 200, or 503 after [`Upstream::set_healthy`] with false
/// * `/slow/{milliseconds}`: an answer that takes that long
/// * `/status/{code}`: that status
/// * the two calls of [`grpc`]
/// * anything else: its name, as late as [`Upstream::set_delay`] says and with the status that [`Upstream::set_status`]
///   says
///
/// Every answer carries its name in the header `x-node`.
pub struct Upstream {
    name: String,
    address: SocketAddr,
    state: Arc<State>,
    _task: AbortOnDrop<()>,
}

struct State {
    healthy: AtomicBool,
    requests: AtomicU64,
    delay: AtomicU64,
    status: AtomicU16,
    waiting: AtomicU64,
}

impl Upstream {
    /// Serves on a port of 127.0.0.1.
    pub async fn start(name: &str) -> Result<Self> {
        Self::start_on(name, IpAddr::from([127, 0, 0, 1])).await
    }

    /// Serves on a port of `ip`.
    pub async fn start_on(name: &str, ip: IpAddr) -> Result<Self> {
        Self::serve(name, ports::reserve(ip)?).await
    }

    /// Serves on `address`.
    pub async fn serve(name: &str, address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("upstream {name} on {address}"))?;
        Self::accept_on(listener, name, address, false)
    }

    /// Serves on one port of every address of the loopback device, 127.0.0.0/8: thousands of nodes in one server. Each
    /// answer's `x-node` is the address it was asked on, and each connection serves one request.
    pub async fn start_everywhere() -> Result<Self> {
        let address = ports::reserve(IpAddr::from([0, 0, 0, 0]))?;
        let socket = TcpSocket::new_v4()?;
        socket.bind_device(Some(b"lo"))?;
        socket.bind(address)?;
        Self::accept_on(socket.listen(1024)?, "everywhere", address, true)
    }

    fn accept_on(listener: TcpListener, name: &str, address: SocketAddr, by_address: bool) -> Result<Self> {
        let state = Arc::new(State {
            healthy: AtomicBool::new(true),
            requests: AtomicU64::new(0),
            delay: AtomicU64::new(0),
            status: AtomicU16::new(StatusCode::OK.as_u16()),
            waiting: AtomicU64::new(0),
        });
        let task = AbortOnDrop(tokio::spawn(accept(listener, router(name, state.clone())?, by_address)));
        Ok(Self { name: name.to_owned(), address, state, _task: task })
    }

    /// What it calls itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What `/healthz` says from now on.
    pub fn set_healthy(&self, healthy: bool) {
        self.state.healthy.store(healthy, Ordering::Relaxed);
    }

    /// How long an answer takes from now on.
    pub fn set_delay(&self, delay: Duration) {
        self.state.delay.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// The status of its answers from now on.
    pub fn set_status(&self, status: u16) {
        self.state.status.store(status, Ordering::Relaxed);
    }

    /// How many requests wait for an answer that takes a while.
    pub fn waiting(&self) -> u64 {
        self.state.waiting.load(Ordering::Relaxed)
    }

    /// How many requests it has answered, health checks apart.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }
}

/// The same server in a process of its own, so that it can be killed.
pub struct UpstreamProcess {
    name: String,
    address: SocketAddr,
    process: Process,
}

impl UpstreamProcess {
    /// Starts it on a port of 127.0.0.1. `binary` is the binary `upstream` of this package; a test has its path in
    /// `env!("CARGO_BIN_EXE_upstream")`.
    pub async fn start(scene: &Scene, binary: impl Into<PathBuf>, name: &str) -> Result<Self> {
        let address = ports::local()?;
        let args = [format!("--listen={address}"), format!("--name={name}")];
        let process = scene.process(&format!("upstream-{name}"), binary.into(), args);
        let upstream = Self { name: name.to_owned(), address, process };
        upstream.restart().await?;
        Ok(upstream)
    }

    /// Starts it again on its port.
    pub async fn restart(&self) -> Result<()> {
        self.process.start()?;
        wait::eventually(START, format!("upstream {} to answer", self.name), || async {
            self.process.ensure_running()?;
            let node = http::get_text(self.address, "/").await?;
            ensure!(node == self.name, "{} answers as {node}", self.address);
            Ok(())
        })
        .await
    }

    /// SIGKILL.
    pub async fn kill(&self) -> Result<()> {
        self.process.kill().await
    }

    /// What it calls itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Serves until the process ends: the body of the binary `upstream`.
pub async fn run(name: &str, address: SocketAddr) -> Result<()> {
    let _upstream = Upstream::serve(name, address).await?;
    std::future::pending().await
}

async fn accept(listener: TcpListener, router: Router, by_address: bool) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let _ = stream.set_nodelay(true);
                let router = if by_address { named_by_address(&router, &stream) } else { router.clone() };
                let service = TowerToHyperService::new(router);
                connections.spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    // An error is the client's going away.
                    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

fn named_by_address(router: &Router, stream: &TcpStream) -> Router {
    let address = stream.local_addr().map(|address| address.to_string()).unwrap_or_default();
    router.clone().layer(map_response(move |mut response: Response| {
        let headers = response.headers_mut();
        headers.insert("connection", HeaderValue::from_static("close"));
        if let Ok(address) = HeaderValue::from_str(&address) {
            headers.insert("x-node", address);
        }
        std::future::ready(response)
    }))
}

fn router(name: &str, state: Arc<State>) -> Result<Router> {
    let node = HeaderValue::from_str(name)?;
    let (own_name, health, counted) = (name.to_owned(), state.clone(), state.clone());
    let (once, many) = (EchoService { node: name.to_owned() }, EchoService { node: name.to_owned() });
    let router = Router::new()
        .route("/headers", any(headers))
        .route("/echo", post(|request: Request| async { Response::new(request.into_body()) }))
        .route("/ws", any(websocket))
        .route("/slow/{milliseconds}", any(slow))
        .route("/status/{code}", any(status))
        .route(grpc::ONCE, post(move |request: Request| once.clone().once(request)))
        .route(grpc::MANY, post(move |request: Request| many.clone().many(request)))
        .fallback(move || state.clone().answer(own_name.clone()))
        .layer(map_response(move |response: Response| {
            counted.requests.fetch_add(1, Ordering::Relaxed);
            std::future::ready(response)
        }))
        .route("/healthz", get(move || std::future::ready(health.status())));
    Ok(router.layer(map_response(move |mut response: Response| {
        response.headers_mut().insert("x-node", node.clone());
        std::future::ready(response)
    })))
}

/// A request that waits, counted for as long as its client does.
struct Waiting(Arc<State>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl State {
    async fn answer(self: Arc<Self>, name: String) -> (StatusCode, String) {
        let delay = Duration::from_millis(self.delay.load(Ordering::Relaxed));
        if !delay.is_zero() {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            let _waiting = Waiting(self.clone());
            tokio::time::sleep(delay).await;
        }
        let status = StatusCode::from_u16(self.status.load(Ordering::Relaxed));
        (status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), name)
    }

    fn status(&self) -> StatusCode {
        if self.healthy.load(Ordering::Relaxed) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    }
}

async fn headers(headers: HeaderMap) -> axum::Json<serde_json::Value> {
    let pairs = headers.iter().map(|(name, value)| {
        (name.to_string(), serde_json::Value::from(String::from_utf8_lossy(value.as_bytes()).into_owned()))
    });
    axum::Json(serde_json::Value::Object(pairs.collect()))
}

async fn slow(Path(milliseconds): Path<u64>) -> &'static str {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    "done"
}

async fn websocket(upgrade: WebSocketUpgrade) -> Response<Body> {
    let echo = |mut socket: axum::extract::ws::WebSocket| async move {
        while let Some(Ok(message)) = socket.recv().await {
            if socket.send(message).await.is_err() {
                break;
            }
        }
    };
    upgrade.on_upgrade(echo).into_response()
}

async fn status(Path(code): Path<u16>) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST)
}
