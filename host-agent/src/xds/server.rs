//! The aggregated discovery service: a task per Envoy around its session.

use std::{collections::HashSet, future, sync::Arc, time::Instant};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
};
use tokio::time::sleep_until;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, warn};

use super::{
    publisher::SnapshotReceiver,
    session::{ANSWER_LIMIT, Received, Session},
};
use crate::stream::{
    coordination::{Coordinator, Participant, Side},
    metrics::StreamMetrics,
    outbox::{Outbox, Outgoing, StreamEnd},
};

/// A subscription to ten thousand clusters by name, with the version of each, takes a good megabyte.
const REQUEST_BYTES: usize = 16 * 1024 * 1024;

/// Types that are not served are worth one line in the log each, up to this many.
const MOST_UNKNOWN_TYPES: usize = 16;

/// The service.
pub struct Ads {
    snapshots: SnapshotReceiver,
    coordinator: Arc<Coordinator>,
    metrics: Arc<StreamMetrics>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Ads {
    /// Serves these snapshots; its tasks run in `tasks`, until `stop`.
    pub fn new(
        snapshots: SnapshotReceiver,
        coordinator: Arc<Coordinator>,
        metrics: Arc<StreamMetrics>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self { snapshots, coordinator, metrics, tasks, stop }
    }

    /// As gRPC takes it.
    pub fn into_service(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self).max_decoding_message_size(REQUEST_BYTES)
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Outgoing<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Outgoing<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("only delta xDS is served: set api_type to DELTA_GRPC in ads_config"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (outbox, outgoing) = Outbox::new();
        let mut client = Client {
            inbound: request.into_inner(),
            outbox,
            snapshots: self.snapshots.clone(),
            session: Session::default(),
            participant: self.coordinator.join(Side::Clusters),
            metrics: Arc::clone(&self.metrics),
            name: String::new(),
            unknown_types: HashSet::new(),
        };
        let open = self.metrics.xds_stream_opened();
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let _open = open;
            let result = stop.run_until_cancelled(client.serve()).await.unwrap_or(Err(StreamEnd::AgentStopping));
            if let Err(end) = result {
                debug!(envoy = client.name, reason = %end, "an Envoy's stream ends");
                if matches!(end, StreamEnd::ClientSlow) {
                    client.metrics.dropped_slow_client();
                }
                client.outbox.end(end);
            }
        });
        Ok(Response::new(outgoing))
    }
}

/// One Envoy.
struct Client {
    inbound: Streaming<DeltaDiscoveryRequest>,
    outbox: Outbox<DeltaDiscoveryResponse>,
    snapshots: SnapshotReceiver,
    session: Session,
    participant: Participant,
    metrics: Arc<StreamMetrics>,
    name: String,
    unknown_types: HashSet<String>,
}

impl Client {
    async fn serve(&mut self) -> Result<(), StreamEnd> {
        loop {
            tokio::select! {
                request = self.inbound.message() => match request? {
                    Some(request) => self.receive(request),
                    None => return Ok(()),
                },
                changed = self.snapshots.changed() => changed.map_err(|_| StreamEnd::AgentStopping)?,
                () = until(self.session.answer_deadline()) => {
                    let limit = ANSWER_LIMIT.as_secs();
                    let message = format!("a response was neither acknowledged nor refused within {limit} s");
                    return Err(Status::deadline_exceeded(message).into());
                }
            }
            self.respond().await?;
        }
    }

    fn receive(&mut self, request: DeltaDiscoveryRequest) {
        if let Some(node) = &request.node {
            self.name.clone_from(&node.id);
        }
        match self.session.receive(request) {
            Received::Accepted => {}
            Received::Refused { what, detail } => {
                self.metrics.xds_nacked();
                warn!(envoy = self.name, what, detail, "an Envoy refuses what it was sent and keeps what it has");
            }
            Received::UnknownType(type_url) => {
                let unknown = &mut self.unknown_types;
                if unknown.len() < MOST_UNKNOWN_TYPES && unknown.insert(type_url.clone()) {
                    warn!(
                        envoy = self.name,
                        type_url, "an Envoy asks for what is not served: clusters and endpoints are"
                    );
                }
            }
        }
    }

    async fn respond(&mut self) -> Result<(), StreamEnd> {
        let Some(snapshot) = self.snapshots.borrow_and_update().clone() else { return Ok(()) };
        while let Some(response) = self.session.next(&snapshot, Instant::now()) {
            self.metrics.xds_responded();
            self.outbox.send(response).await?;
        }
        self.participant.applied(self.session.applied());
        Ok(())
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => future::pending().await,
    }
}
