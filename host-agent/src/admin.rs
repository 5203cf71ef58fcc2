//! The admin HTTP server on loopback: whether the agent lives and is ready, its metrics, and what it serves.

use std::{io, net::SocketAddr};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use waypost_catalog::{Catalog, Service};

use crate::{
    api::types::Node,
    metrics::{self, Sources},
    published::Staleness as _,
};

const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why the server does not listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; set another admin.listen")]
pub struct AdminError {
    address: SocketAddr,
    source: io::Error,
}

impl AdminError {
    /// Whether somebody else listens there.
    pub fn is_held(&self) -> bool {
        self.source.kind() == io::ErrorKind::AddrInUse
    }
}

/// Listens.
///
/// # Errors
/// [`AdminError`] if the address is taken, or not this host's.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, AdminError> {
    TcpListener::bind(address).await.map_err(|source| AdminError { address, source })
}

/// Serves until `stop`.
///
/// # Errors
/// The listener's, if it breaks.
pub async fn serve(listener: TcpListener, sources: Sources, stop: CancellationToken) -> io::Result<()> {
    // Requests under way are small: they are given no time to end, so that an idle connection cannot hold up the stop.
    let router = router(sources);
    let serving = IntoFuture::into_future(axum::serve(listener, router));
    stop.run_until_cancelled(serving).await.unwrap_or(Ok(()))
}

fn router(sources: Sources) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/catalog", get(catalog))
        .with_state(sources)
}

/// Ready: there is something to serve. Stale: some of it is not known to be current.
async fn ready(State(sources): State<Sources>) -> (StatusCode, Json<Value>) {
    let version = sources.catalog.borrow().as_ref().map(|catalog| catalog.version());
    let mirrors = sources.mirrors.mirrors();
    let stale = !sources.mirrors.figures().complete || mirrors.iter().any(|(_, status)| !status.synced);
    let watches = mirrors.iter().map(|(watch, status)| {
        json!({
            "prefix": watch.prefix,
            "synced": status.synced,
            "revision": status.revision,
            "cause": status.cause,
        })
    });
    let body = json!({
        "ready": version.is_some(),
        "stale": stale,
        "stale_seconds": sources.mirrors.stale_for().as_secs_f64(),
        "version": version,
        "watches": watches.collect::<Vec<_>>(),
    });
    (if version.is_some() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body))
}

async fn metrics(State(sources): State<Sources>) -> Response {
    match metrics::render(&sources) {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn catalog(State(sources): State<Sources>) -> Response {
    let catalog = sources.catalog.borrow().clone();
    match catalog {
        Some(catalog) => Json(Dump::of(&catalog)).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "no catalog yet: see /readyz\n").into_response(),
    }
}

/// The catalog as JSON. It may be large: it is written from where it is, one node at a time.
#[derive(Serialize)]
struct Dump<'a> {
    version: u64,
    /// As text: a number of 64 bits does not survive JavaScript.
    hash: String,
    #[serde(serialize_with = "services")]
    services: &'a Catalog,
}

impl<'a> Dump<'a> {
    fn of(catalog: &'a Catalog) -> Self {
        Self { version: catalog.version(), hash: format!("{:016x}", catalog.hash()), services: catalog }
    }
}

fn services<S: Serializer>(catalog: &Catalog, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(catalog.services().iter().map(|(name, service)| (name.as_str(), Nodes(service))))
}

struct Nodes<'a>(&'a Service);

impl Serialize for Nodes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.nodes().map(Node::from))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };
    use waypost_catalog::{Node, ServiceName};
    use waypost_registry::{ConnectOptions, Connector};

    use super::*;
    use crate::{
        config::{Guard, Watch},
        metrics::Reloads,
        mirroring::{MirrorSettings, Mirroring},
        registrations::Board,
        state::catalog::DiskCopy,
        stream::metrics::StreamMetrics,
    };

    /// An agent's admin server whose etcd is not there.
    async fn server(disk: Option<DiskCopy>) -> (SocketAddr, Mirroring) {
        let connector = Connector::new(ConnectOptions {
            endpoints: vec!["http://127.0.0.1:1".into()],
            auth: None,
            tls: None,
            connect_timeout: Duration::from_millis(200),
            request_timeout: Duration::from_millis(200),
        });
        let format = waypost_registry::Format::Waypost;
        let watch = Watch { prefix: "/services/".into(), format, protocol: waypost_catalog::Protocol::Http1 };
        let settings = MirrorSettings { watches: vec![watch], guard: Guard::default(), zone: String::new() };
        let (mirroring, catalog) = Mirroring::start(connector.unwrap(), settings, disk, Vec::new(), None);
        let sources = Sources {
            services: Arc::<Board>::default(),
            mirrors: mirroring.board(),
            catalog,
            streams: Arc::<StreamMetrics>::default(),
            outcomes: Arc::default(),
            components: Arc::default(),
            reloads: Arc::<Reloads>::default(),
        };
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, sources, CancellationToken::new()));
        (address, mirroring)
    }

    async fn get(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    #[tokio::test]
    async fn without_a_catalog_the_agent_lives_and_is_not_ready() {
        let (address, mirroring) = server(None).await;
        assert_eq!(get(address, "/healthz").await, (200, "ok\n".into()));
        let (status, body) = get(address, "/readyz").await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &body["ready"], &body["stale"]), (503, &json!(false), &json!(true)));
        assert_eq!(get(address, "/catalog").await.0, 503);
        mirroring.shutdown().await;
    }

    #[tokio::test]
    async fn with_the_disk_copy_alone_it_is_ready_and_stale() {
        let web = ServiceName::new("web").unwrap();
        let node = Node::at("10.0.0.1:80".parse().unwrap());
        let catalog = Catalog::default().updated([(web, vec![node])]).0.unwrap();
        let (address, mirroring) = server(Some(DiskCopy { catalog, age: Duration::from_secs(9) })).await;
        let (status, body) = get(address, "/readyz").await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &body["ready"], &body["stale"]), (200, &json!(true), &json!(true)));
        assert!(body["stale_seconds"].as_f64().unwrap() >= 9.0, "{body}");
        let (_, body) = get(address, "/catalog").await;
        let body: Value = serde_json::from_str(&body).unwrap();
        let node = json!({
            "address": "10.0.0.1:80", "weight": 1, "health": "passing", "protocol": "http1", "id": "10.0.0.1:80",
            "zone": "", "version": "", "tags": [], "metadata": {},
        });
        assert_eq!((&body["version"], &body["services"]), (&json!(1), &json!({"web": [node]})));
        assert_eq!(body["hash"].as_str().unwrap().len(), 16);
        mirroring.shutdown().await;
    }

    #[tokio::test]
    async fn every_metric_is_in_the_reference() {
        let (address, mirroring) = server(None).await;
        let (status, text) = get(address, "/metrics").await;
        assert_eq!(status, 200);
        assert!(text.ends_with("# EOF\n"), "{text}");
        let reference = include_str!("../../docs/configuration.md");
        for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = name.split_once(' ').unwrap();
            let name = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
            let written = ["`", "{"].iter().any(|end| reference.contains(&format!("`{name}{end}")));
            assert!(written, "docs/configuration.md says nothing of {name}");
        }
        mirroring.shutdown().await;
    }
}
