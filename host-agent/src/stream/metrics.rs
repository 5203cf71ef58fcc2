//! Counters of the streams to filters and to Envoy.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use waypost_catalog::wire::server_message::Kind;

/// Names of the messages to filters, in the order in which they are counted.
const KINDS: [&str; 7] = ["begin", "part", "end", "delta", "heartbeat", "in_sync", "routes"];

/// Counters of both services, shared by all their streams.
#[derive(Debug, Default)]
pub struct StreamMetrics {
    streams: AtomicU64,
    messages: [AtomicU64; KINDS.len()],
    acks: AtomicU64,
    resyncs: AtomicU64,
    slow_clients: AtomicU64,
    xds_streams: AtomicU64,
    xds_responses: AtomicU64,
    xds_nacks: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamFigures {
    /// Filters with an open stream.
    pub streams: u64,
    /// Messages sent to filters, by kind.
    pub messages: [(&'static str, u64); KINDS.len()],
    /// Versions that filters have acknowledged.
    pub acks: u64,
    /// Times that a filter has asked for everything again.
    pub resyncs: u64,
    /// Clients of either service that were dropped because they did not read.
    pub slow_clients: u64,
    /// Envoys with an open xDS stream.
    pub xds_streams: u64,
    /// xDS responses sent.
    pub xds_responses: u64,
    /// xDS responses that an Envoy has refused.
    pub xds_nacks: u64,
}

impl StreamMetrics {
    /// The counters now.
    pub fn figures(&self) -> StreamFigures {
        StreamFigures {
            streams: self.streams.load(Relaxed),
            messages: std::array::from_fn(|kind| (KINDS[kind], self.messages[kind].load(Relaxed))),
            acks: self.acks.load(Relaxed),
            resyncs: self.resyncs.load(Relaxed),
            slow_clients: self.slow_clients.load(Relaxed),
            xds_streams: self.xds_streams.load(Relaxed),
            xds_responses: self.xds_responses.load(Relaxed),
            xds_nacks: self.xds_nacks.load(Relaxed),
        }
    }

    pub(crate) fn sent(&self, kind: &Kind) {
        let index = match kind {
            Kind::Begin(_) => 0,
            Kind::Part(_) => 1,
            Kind::End(_) => 2,
            Kind::Delta(_) => 3,
            Kind::Heartbeat(_) => 4,
            Kind::InSync(_) => 5,
            Kind::Routes(_) => 6,
        };
        self.messages[index].fetch_add(1, Relaxed);
    }

    pub(crate) fn acked(&self) {
        self.acks.fetch_add(1, Relaxed);
    }

    pub(crate) fn resynced(&self) {
        self.resyncs.fetch_add(1, Relaxed);
    }

    pub(crate) fn dropped_slow_client(&self) {
        self.slow_clients.fetch_add(1, Relaxed);
    }

    pub(crate) fn xds_responded(&self) {
        self.xds_responses.fetch_add(1, Relaxed);
    }

    pub(crate) fn xds_nacked(&self) {
        self.xds_nacks.fetch_add(1, Relaxed);
    }

    /// Counts a filter's stream until the guard is dropped.
    pub(crate) fn stream_opened(self: &Arc<Self>) -> OpenStream {
        OpenStream::new(self, |metrics| &metrics.streams)
    }

    /// Counts an xDS stream until the guard is dropped.
    pub(crate) fn xds_stream_opened(self: &Arc<Self>) -> OpenStream {
        OpenStream::new(self, |metrics| &metrics.xds_streams)
    }
}

/// An open stream that is counted.
pub(crate) struct OpenStream {
    metrics: Arc<StreamMetrics>,
    gauge: fn(&StreamMetrics) -> &AtomicU64,
}

impl OpenStream {
    fn new(metrics: &Arc<StreamMetrics>, gauge: fn(&StreamMetrics) -> &AtomicU64) -> Self {
        gauge(metrics).fetch_add(1, Relaxed);
        Self { metrics: Arc::clone(metrics), gauge }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        (self.gauge)(&self.metrics).fetch_sub(1, Relaxed);
    }
}
