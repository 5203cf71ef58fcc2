//! The agent's metrics, read from where the figures live whenever somebody asks.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{MetricType, TypedMetric, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use waypost_catalog::Health;
use waypost_registry::RegistrationState;

use crate::{
    effective::RuleFigures,
    mirroring::MirrorBoard,
    outcomes::Outcomes,
    published::{CatalogReceiver, Staleness as _},
    registrations,
    stream::metrics::StreamMetrics,
    weighing::Board,
};

/// How reloads ended.
#[derive(Debug, Default)]
pub struct Reloads {
    applied: AtomicU64,
    refused: AtomicU64,
}

impl Reloads {
    /// A configuration was taken.
    pub fn applied(&self) {
        self.applied.fetch_add(1, Ordering::Relaxed);
    }

    /// A configuration was refused.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where the figures live.
#[derive(Clone, Debug)]
pub struct Sources {
    /// This host's services.
    pub services: Arc<registrations::Board>,
    /// The mirrors.
    pub mirrors: Arc<MirrorBoard>,
    /// What is served.
    pub catalog: CatalogReceiver,
    /// To whom it is served.
    pub streams: Arc<StreamMetrics>,
    /// What became of requests.
    pub outcomes: Arc<Outcomes>,
    /// How strategy components are.
    pub components: Arc<Board>,
    /// Reloads.
    pub reloads: Arc<Reloads>,
}

/// All metrics in the OpenMetrics text format.
///
/// # Errors
/// None in practice: writing to a string does not fail.
pub fn render(sources: &Sources) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(sources.clone()));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Sources {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Writer { encoder };
        self.mirrors(&mut out)?;
        self.services(&mut out)?;
        self.catalog(&mut out)?;
        self.streams(&mut out)?;
        self.rules(&mut out)?;
        self.outcomes(&mut out)?;
        self.components(&mut out)?;
        let reloads = [
            ([("result", "applied")], self.reloads.applied.load(Ordering::Relaxed)),
            ([("result", "refused")], self.reloads.refused.load(Ordering::Relaxed)),
        ];
        out.counters("waypost_config_reloads", "Reloads of the configuration", reloads)
    }
}

impl Sources {
    fn mirrors(&self, out: &mut Writer<'_>) -> fmt::Result {
        let mirrors = self.mirrors.mirrors();
        let figures = self.mirrors.figures();
        let skipped: BTreeMap<_, _> =
            mirrors.iter().map(|(watch, status)| (watch.prefix.as_str(), status.skipped_keys)).collect();
        let each = || mirrors.iter().map(|(watch, status)| ([("prefix", watch.prefix.as_str())], status));
        let synced = each().map(|(labels, status)| (labels, i64::from(status.synced)));
        out.gauges("waypost_mirror_synced", "Whether the mirror is in step with etcd", synced)?;
        let revisions = each().map(|(labels, status)| (labels, status.revision));
        out.gauges("waypost_mirror_revision", "Revision that the mirror stands at", revisions)?;
        let resyncs = each().flat_map(|([prefix], status)| {
            status.resyncs.iter().map(move |(reason, count)| ([prefix, ("reason", reason.as_str())], *count))
        });
        out.counters("waypost_mirror_resyncs", "Full states fetched", resyncs)?;
        let keys = figures.watches.iter().map(|w| ([("prefix", w.prefix.as_str())], w.keys as i64));
        out.gauges("waypost_mirror_keys", "Keys that are nodes", keys)?;
        let undecodable = figures.watches.iter().map(|watch| {
            let skipped = skipped.get(watch.prefix.as_str()).copied().unwrap_or_default();
            ([("prefix", watch.prefix.as_str())], watch.undecodable + skipped)
        });
        out.counters("waypost_mirror_undecodable", "Keys and values that were no nodes", undecodable)?;
        out.gauge("waypost_guard_held_nodes", "Nodes that only the guard keeps", figures.held_nodes as i64)?;
        out.counter("waypost_guard_holds", "How often the guard began to keep nodes of a service", figures.holds)
    }

    fn services(&self, out: &mut Writer<'_>) -> fmt::Result {
        let services = self.services.services();
        let mut states = BTreeMap::from(RegistrationState::NAMES.map(|state| (state, 0)));
        for (_, status) in &services {
            let state = status.registration.as_ref().map_or("pending", |state| state.borrow().name());
            *states.entry(state).or_default() += 1;
        }
        let states = states.into_iter().map(|(state, count)| ([("state", state)], count));
        out.gauges("waypost_registrations", "This host's services by the state of their registration", states)?;
        let passing = services.iter().map(|(id, status)| {
            let labels = [("service", id.name.as_str()), ("instance", id.instance.as_str())];
            (labels, i64::from(status.health == Some(Health::Passing)))
        });
        out.gauges("waypost_check_passing", "Whether a service of this host passes", passing)?;
        let maintained = services.iter().map(|(id, status)| {
            let labels = [("service", id.name.as_str()), ("instance", id.instance.as_str())];
            (labels, i64::from(status.maintenance.is_some()))
        });
        out.gauges("waypost_maintenance", "Whether a service of this host is in maintenance", maintained)?;
        out.counter("waypost_lease_lost", "Leases that were gone before their time", self.services.leases_lost())
    }

    fn catalog(&self, out: &mut Writer<'_>) -> fmt::Result {
        let catalog = self.catalog.borrow().clone().unwrap_or_default();
        out.gauge("waypost_catalog_version", "Version of the served catalog", catalog.version() as i64)?;
        out.gauge("waypost_catalog_services", "Services in the served catalog", catalog.services().len() as i64)?;
        out.gauge("waypost_catalog_nodes", "Nodes in the served catalog", catalog.node_count() as i64)?;
        let stale = self.mirrors.stale_for().as_secs_f64();
        out.gauge("waypost_catalog_stale_seconds", "Since when the catalog is not known to be current", stale)
    }

    fn rules(&self, out: &mut Writer<'_>) -> fmt::Result {
        let RuleFigures { policies, routes, refused, refusals } = self.mirrors.figures().rules;
        out.gauge("waypost_policies", "Policies in use", policies as i64)?;
        out.gauge("waypost_routes", "Routes in use", routes as i64)?;
        out.gauge("waypost_rules_refused", "Policies and routes in etcd that are not used", refused.len() as i64)?;
        out.counter("waypost_rules_refusals", "Policies and routes that were refused", refusals)
    }

    fn components(&self, out: &mut Writer<'_>) -> fmt::Result {
        let states = self.components.states();
        let each = || states.iter().map(|(service, state)| ([("service", service.as_str())], state));
        let works = each().map(|(labels, state)| (labels, i64::from(state.problem.is_none())));
        out.gauges("waypost_component_works", "Whether the last answer of a service's component was good", works)?;
        let answers = each().map(|(labels, state)| (labels, state.answers));
        out.counters("waypost_component_answers", "Good answers of a service's component", answers)?;
        let failures = each().map(|(labels, state)| (labels, state.failures));
        out.counters("waypost_component_failures", "Failures of a service's component", failures)?;
        let memory = each().map(|(labels, state)| (labels, i64::try_from(state.memory).unwrap_or(i64::MAX)));
        out.gauges("waypost_component_memory_bytes", "Memory that a service's component holds", memory)
    }

    fn outcomes(&self, out: &mut Writer<'_>) -> fmt::Result {
        let all = self.outcomes.all(Instant::now());
        let nodes = || {
            all.iter().flat_map(|(service, nodes)| {
                nodes.iter().map(move |(address, node)| ([("service", &**service), ("node", &**address)], node))
            })
        };
        let requests = nodes().map(|(labels, node)| (labels, node.total.requests));
        out.counters("waypost_node_requests", "Requests that ended on a node, as filters report them", requests)?;
        let failures = nodes().flat_map(|([service, node], outcomes)| {
            let total = outcomes.total;
            [
                ("server-error", total.server_errors),
                ("reset", total.resets),
                ("connect-failure", total.connect_failures),
                ("timeout", total.timeouts),
                ("failed-try", total.failed_tries),
            ]
            .map(|(kind, count)| ([service, node, ("kind", kind)], count))
        });
        let failures = failures.filter(|(_, count)| *count > 0);
        out.counters("waypost_node_failures", "Requests and tries that failed on a node", failures)?;
        let in_flight = nodes().map(|(labels, node)| (labels, node.in_flight as i64));
        out.gauges("waypost_node_in_flight", "Requests under way on a node", in_flight)?;
        let ejected = nodes().map(|(labels, node)| (labels, node.ejected_by as i64));
        out.gauges("waypost_node_ejected", "Filters that have ejected a node", ejected)?;
        let panics = self.outcomes.panics();
        let panics = panics.iter().map(|(service, count)| ([("service", &**service)], *count));
        out.counters("waypost_panic_picks", "Requests for which too few nodes were healthy", panics)
    }

    fn streams(&self, out: &mut Writer<'_>) -> fmt::Result {
        let figures = self.streams.figures();
        out.gauge("waypost_streams", "Filters connected", figures.streams as i64)?;
        let messages = figures.messages.into_iter().map(|(kind, count)| ([("kind", kind)], count));
        out.counters("waypost_stream_messages", "Messages sent to filters", messages)?;
        out.counter("waypost_stream_acks", "Versions that filters acknowledged", figures.acks)?;
        out.counter("waypost_stream_resyncs", "Full catalogs that filters asked for again", figures.resyncs)?;
        out.counter("waypost_stream_slow_clients", "Clients dropped because they did not read", figures.slow_clients)?;
        out.gauge("waypost_xds_streams", "Envoys connected for xDS", figures.xds_streams as i64)?;
        out.counter("waypost_xds_responses", "xDS responses sent", figures.xds_responses)?;
        out.counter("waypost_xds_nacks", "xDS responses that Envoy refused", figures.xds_nacks)
    }
}

/// Writes metrics of which only the present value is known.
struct Writer<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Writer<'_> {
    fn gauge<N>(&mut self, name: &str, help: &str, value: N) -> fmt::Result
    where
        ConstGauge<N>: EncodeMetric,
    {
        ConstGauge::new(value).encode(self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.encoder.encode_descriptor(name, help, None, ConstCounter::<u64>::TYPE)?)
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, i64)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
