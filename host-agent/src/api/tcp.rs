//! The API on loopback TCP, where the configuration asks for it.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::Semaphore, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

/// Connections at once; further ones wait to be accepted.
const CONNECTIONS: usize = 512;
/// How long the head of a request may take to come, and a connection may be idle.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Pause after the system has refused a connection, most likely because too many files are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long requests under way may take to end once the agent stops.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// Why the API does not listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; set another api.listen")]
pub struct ApiError {
    address: SocketAddr,
    source: io::Error,
}

impl ApiError {
    /// Whether somebody else listens there.
    pub fn is_held(&self) -> bool {
        self.source.kind() == io::ErrorKind::AddrInUse
    }
}

/// Listens.
///
/// # Errors
/// [`ApiError`] if the address is taken, or not this host's.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ApiError> {
    TcpListener::bind(address).await.map_err(|source| ApiError { address, source })
}

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    if let Ok(address) = listener.local_addr() {
        info!(%address, "serving the API");
    }
    // Cancelled with this function too, however it ends: its connections do not outlive it.
    let stop = stop.child_token();
    let _stop_guard = stop.clone().drop_guard();
    let (tasks, places) = (TaskTracker::new(), Arc::new(Semaphore::new(CONNECTIONS)));
    _ = stop.run_until_cancelled(accept(&listener, &router, &tasks, &places, &stop)).await;
    tasks.close();
    tasks.wait().await;
}

async fn accept(
    listener: &TcpListener,
    router: &Router,
    tasks: &TaskTracker,
    places: &Arc<Semaphore>,
    stop: &CancellationToken,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(HEAD_LIMIT).keep_alive_timeout(HEAD_LIMIT);
    // The semaphore is never closed.
    while let Ok(place) = Arc::clone(places).acquire_owned().await {
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (builder, stop) = (builder.clone(), stop.clone());
        let service = TowerToHyperService::new(router.clone());
        tasks.spawn(async move {
            let _place = place;
            let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(connection), service));
            let ended = tokio::select! {
                ended = serving.as_mut() => ended,
                () = stop.cancelled() => {
                    serving.as_mut().graceful_shutdown();
                    tokio::time::timeout(STOP_LIMIT, serving).await.unwrap_or(Ok(()))
                }
            };
            if let Err(error) = ended {
                debug!(%error, "a connection to the API ended");
            }
        });
    }
}
