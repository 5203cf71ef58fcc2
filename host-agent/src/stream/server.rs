//! The server on the Unix socket: the catalog stream for filters, xDS for Envoy itself, and the local API.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use futures::{Stream, stream::unfold};
use tokio::{net::UnixStream, sync::watch, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming, service::Routes, transport::Server};
use tracing::{debug, info, warn};
use waypost_catalog::wire::{ClientMessage, ServerMessage, limits};

use super::{
    coordination::{Coordinator, Side},
    metrics::StreamMetrics,
    outbox::{Outbox, Outgoing, StreamEnd},
    session::Session,
    socket::BoundSocket,
};
use crate::{
    outcomes::Outcomes,
    proto::catalog_service_server::{CatalogService, CatalogServiceServer},
    published::{CatalogReceiver, Staleness},
    xds::{self, XdsOptions, selection::Selection},
};

/// HTTP/2 pings: a client whose process hangs or has gone is noticed within twice this time.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Windows for what clients send. A Unix socket has no latency to hide, but neither should a subscription to ten
/// thousand clusters have to be let in piece by piece.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// A filter sends a greeting, acknowledgements, a reason why it wants everything again, and what became of requests.
const FILTER_MESSAGE_BYTES: usize = 256 * 1024;

/// How long a connection may take to end once the agent stops.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// Pause after the system has refused a connection, most likely because too many files are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is served besides the catalog itself.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// What Envoy is told.
    pub xds: XdsOptions,
    /// The local API, whose paths are none of gRPC's.
    pub api: Router,
}

/// Why the server ended before it was told to.
#[derive(Debug, thiserror::Error)]
#[error("the server on the Unix socket failed: {0}")]
pub struct ServerError(#[from] tonic::transport::Error);

/// Serves both services until `shutdown`. The socket's file is removed at the end, if it is still ours.
///
/// # Errors
/// [`ServerError`] if the server ends by itself.
pub async fn run(
    socket: BoundSocket,
    catalog: CatalogReceiver,
    staleness: Arc<dyn Staleness>,
    options: ServerOptions,
    metrics: Arc<StreamMetrics>,
    outcomes: Arc<Outcomes>,
    shutdown: CancellationToken,
) -> Result<(), ServerError> {
    info!(socket = %socket.path().display(), "serving filters and Envoys");
    let tasks = TaskTracker::new();
    // Cancelled with this function too, however it ends: its tasks do not outlive it.
    let stop = shutdown.child_token();
    let _stop_guard = stop.clone().drop_guard();
    let coordinator = Arc::new(Coordinator::default());
    let selection = Arc::new(Selection::new(&options.xds.services));
    let (publisher, snapshots) = watch::channel(None);
    let publishing = xds::publisher::run(catalog.clone(), options.xds, coordinator.progress(), publisher);
    tasks.spawn(stop.clone().run_until_cancelled_owned(publishing));
    let filters = Filters {
        catalog,
        staleness,
        selection,
        coordinator: Arc::clone(&coordinator),
        metrics: Arc::clone(&metrics),
        outcomes,
        tasks: tasks.clone(),
        stop: stop.clone(),
    };
    let filters = CatalogServiceServer::new(filters)
        .max_decoding_message_size(FILTER_MESSAGE_BYTES)
        .max_encoding_message_size(limits::MESSAGE_BYTES);
    let envoys = xds::server::Ads::new(snapshots, coordinator, metrics, tasks.clone(), stop.clone());
    let mut routes = Routes::new(filters).add_service(envoys.into_service());
    let grpc = routes.axum_router_mut();
    *grpc = std::mem::take(grpc).merge(options.api);
    let serving = Server::builder()
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections(socket), stop.clone().cancelled_owned());
    let time_is_up = async {
        stop.cancelled().await;
        sleep(STOP_LIMIT).await;
    };
    let result = tokio::select! {
        result = serving => result.map_err(ServerError::from),
        () = time_is_up => Ok(()),
    };
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    result
}

/// Connections for ever: one that the system refuses is no reason to stop.
fn connections(socket: BoundSocket) -> impl Stream<Item = io::Result<UnixStream>> {
    unfold(socket, |socket| async {
        loop {
            match socket.accept().await {
                Ok(connection) => return Some((Ok(connection), socket)),
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// The catalog stream's service.
struct Filters {
    catalog: CatalogReceiver,
    staleness: Arc<dyn Staleness>,
    selection: Arc<Selection>,
    coordinator: Arc<Coordinator>,
    metrics: Arc<StreamMetrics>,
    outcomes: Arc<Outcomes>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[tonic::async_trait]
impl CatalogService for Filters {
    type StreamStream = Outgoing<ServerMessage>;

    async fn stream(&self, request: Request<Streaming<ClientMessage>>) -> Result<Response<Self::StreamStream>, Status> {
        let (outbox, outgoing) = Outbox::new();
        let mut session = Session {
            inbound: request.into_inner(),
            outbox,
            catalog: self.catalog.clone(),
            staleness: Arc::clone(&self.staleness),
            selection: Arc::clone(&self.selection),
            participant: self.coordinator.join(Side::Filters),
            progress: self.coordinator.progress(),
            metrics: Arc::clone(&self.metrics),
            outcomes: Arc::clone(&self.outcomes),
        };
        let open = self.metrics.stream_opened();
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let _open = open;
            let result = stop.run_until_cancelled(session.serve()).await.unwrap_or(Err(StreamEnd::AgentStopping));
            if let Err(end) = result {
                debug!(reason = %end, "a filter's stream ends");
                session.end(end);
            }
        });
        Ok(Response::new(outgoing))
    }
}
