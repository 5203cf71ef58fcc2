//! The filter: one for each VM, put together from its parts.

use std::{collections::HashMap, time::Duration};

use prost::Message;
use waypost_balance::CHOICES;
use waypost_catalog::{
    replica::Applied,
    wire::{self, Ack, ClientMessage, Hello, Resync, WireError, client_message::Kind, limits},
};
use waypost_policy::{Remembering, RequestView};

use crate::{
    config::{Config, ConfigError, Mode, ServiceFrom},
    counters::{Counter, Counters},
    host::{Ended, Host, Level, Request, Response},
    outcomes::Running,
    services::Services,
    shared::{self, SaveTimer},
    stream::{Lost, Step, Stream},
    target::{Named, Target},
    view::View,
};

/// A catalog whose agent last knew its mirror to be current longer ago than this counts as stale. Above what a healthy
/// agent reaches between two signs of life of etcd and two heartbeats of its own.
const STALE_AFTER: Duration = Duration::from_secs(20);

/// Header with the candidates, which an `override_host` cluster tries in turn.
pub const CANDIDATES: &str = "x-waypost-candidates";

/// Header that names the cluster where routes come from etcd. It comes to us with the host in it.
pub const CLUSTER: &str = "x-waypost-cluster";

/// Header by which Envoy's router takes a limit on the whole answer, in milliseconds.
pub const TIMEOUT: &str = "x-envoy-upstream-rq-timeout-ms";

/// How often the agent is told what became of requests.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// How long a `vm_id` is kept for a configuration that is accepted and not in use yet: those that come together must
/// agree, but one that then comes to nothing must not stand in the way of the next.
const TRIAL: Duration = Duration::from_secs(2);

/// Filter state that names the address an `ORIGINAL_DST` cluster connects to.
const ORIGINAL_DST_KEY: &str = "envoy.network.transport_socket.original_dst_address";

/// Why a VM refuses its configuration.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It is wrong in itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its `vm_id` belongs to another configuration.
    #[error(
        "two configurations in one VM: this vm_id already runs {running}, so {refused} needs another vm_id \
         (a changed configuration needs a new vm_id too)"
    )]
    Taken {
        /// The one that is in use.
        running: String,
        /// The one that came second.
        refused: String,
    },
}

/// What is to become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Continue,
    /// It has been answered.
    Answered,
}

/// A VM's whole state.
#[derive(Debug)]
pub struct Filter {
    config: Config,
    services: Services,
    stream: Stream,
    save: SaveTimer,
    /// Whether the `vm_id` is this configuration's for good.
    claimed: bool,
    counters: Counters,
    /// The agent, as an encoded `GrpcService`.
    target: String,
    /// Who the agent is told that we are.
    client: Option<String>,
    /// When the agent's mirror was last known to be current.
    current_at: Option<Duration>,
    last_tick: Option<Duration>,
    /// Requests under way whose end matters, by the host's number for each.
    running: HashMap<u32, Running>,
    report_at: Duration,
    stale: Duration,
    /// What goes to the host for a request, kept for the next one.
    candidates: String,
    arguments: Vec<u8>,
}

impl Filter {
    /// Starts with this configuration, and with the catalog that earlier VMs have left. `outcomes_known`: the module
    /// hears how requests end.
    ///
    /// # Errors
    /// [`StartError`] with what is wrong and what would be right.
    pub fn start(host: &mut impl Host, configuration: &[u8], outcomes_known: bool) -> Result<Self, StartError> {
        let config = Config::parse(configuration)?;
        let now = host.now();
        claim(host, &config, now, now + TRIAL)?;
        let restored = shared::restore(host);
        for what in &restored.damaged {
            host.log(Level::Warn, &format!("shared data: {what} is damaged and left out until the agent sends it"));
        }
        if restored.replica.hash() != 0 {
            let count = restored.replica.services().len();
            host.log(Level::Info, &format!("starting with {count} services from shared data"));
        }
        Ok(Self {
            target: grpc_service(&config.agent_cluster),
            services: Services::new(restored.replica, host.random(), outcomes_known),
            config,
            stream: Stream::default(),
            save: SaveTimer::default(),
            claimed: false,
            counters: Counters::default(),
            client: None,
            current_at: None,
            last_tick: None,
            running: HashMap::new(),
            report_at: Duration::ZERO,
            stale: Duration::ZERO,
            candidates: String::new(),
            arguments: Vec::new(),
        })
    }

    /// Takes in a further root context of this VM; it shares the catalog.
    ///
    /// # Errors
    /// [`StartError`] if it brings another configuration.
    pub fn join(&self, configuration: &[u8]) -> Result<(), StartError> {
        let config = Config::parse(configuration)?;
        if config != self.config {
            return Err(StartError::Taken { running: self.config.to_string(), refused: config.to_string() });
        }
        Ok(())
    }

    /// Time has passed.
    pub fn on_tick(&mut self, host: &mut impl Host) {
        let now = host.now();
        self.count_staleness(now);
        if !self.claimed {
            self.claimed = true;
            // A VM that Envoy only tries a configuration in gets no tick.
            if let Err(error) = claim(host, &self.config, now, shared::FOR_GOOD) {
                host.log(Level::Error, &error.to_string());
            }
        }
        if let Some(stream) = self.stream.present()
            && !host.enter_stream()
            && let Some(lost) = self.stream.closed(stream, now, host.random())
        {
            self.lost(host, lost, "the listener that it was opened for is gone");
        }
        match self.stream.tick(now, host.random()) {
            Step::Wait => {}
            Step::Open => self.open(host, now),
            Step::Abandon(stream) => {
                host.cancel_stream(stream);
                self.lost(host, Lost::Broken, "the agent has been silent for too long");
            }
            Step::Resync(stream) => self.ask_for_everything(host, stream, "what came since the last request"),
        }
        self.services.tick(now);
        self.counters.add(Counter::UnreadableRules, self.services.take_unreadable());
        if let Some(stream) = self.stream.present()
            && now >= self.report_at
        {
            self.report_at = now + REPORT_INTERVAL;
            if let Some(report) = self.services.report() {
                send(host, stream, Kind::Report(report));
            }
        }
        if self.save.take_due(now) {
            let bytes = shared::save(host, self.services.replica());
            self.save.saved(bytes);
        }
        self.counters.flush(host);
    }

    /// A message arrived. `None`: it is larger than any that is accepted, and was not read.
    pub fn on_message(&mut self, host: &mut impl Host, stream: u32, message: Option<&[u8]>) {
        let now = host.now();
        if !self.stream.heard(stream, now) {
            return;
        }
        let decoded = match message {
            Some(bytes) => wire::decode_server_message(bytes),
            None => Err(WireError::MessageTooLarge(limits::MESSAGE_BYTES + 1)),
        };
        if decoded.as_ref().is_err_and(|error| *error != WireError::UnknownMessage) {
            self.services.message_lost();
        }
        match decoded.and_then(|message| self.services.apply(message)) {
            Ok(Applied::Pending) => {}
            Ok(Applied::Alive { stale_ms }) => {
                self.current_at = now.checked_sub(Duration::from_millis(stale_ms));
            }
            Ok(Applied::Changed { version, services, routes }) => {
                // What the agent has. Whether that is current, its next heartbeat says, which follows at once.
                self.stream.in_sync();
                send(host, stream, Kind::Ack(Ack { version }));
                if !services.is_empty() || routes {
                    self.save.changed(now, host.random());
                }
                let message = format!("catalog version {version}: {} services changed", services.len());
                host.log(Level::Debug, &message);
            }
            // Of a newer agent. If it was one that matters, version and hash will tell.
            Err(WireError::UnknownMessage) => {}
            Err(error) => {
                if self.stream.out_of_sync(now) {
                    self.ask_for_everything(host, stream, &error.to_string());
                }
            }
        }
    }

    /// The stream's other end is closed.
    pub fn on_close(&mut self, host: &mut impl Host, stream: u32, status: u32) {
        host.close_stream(stream);
        let now = host.now();
        if let Some(lost) = self.stream.closed(stream, now, host.random()) {
            let message = host.stream_status();
            self.lost(host, lost, &format!("gRPC status {status}: {message}"));
        }
    }

    /// The headers of a request are in: picks, and tells the router. `context` is the host's number for the request.
    ///
    /// Without a pick the router gets nothing, neither from us nor from the client, and the cluster's own policy acts.
    pub fn on_request(&mut self, request: &mut impl Request, context: u32) -> Verdict {
        // As exact as the tick: what is measured by it takes seconds.
        let now = self.last_tick.unwrap_or_default();
        let routes = self.services.routes();
        let mut view = Remembering::new(View(request));
        let target = match &self.config.service {
            ServiceFrom::Cluster => Target::named(view.inner_mut().0.cluster()),
            ServiceFrom::Header(name) => Target::named(view.header(name)),
            ServiceFrom::Host => Target::first_label(view.host()),
            ServiceFrom::Routes => Target::by_routes(&routes, &mut view, &mut self.services),
        };
        let name = target.service();
        let Some((service, rng)) = self.services.get(name, now) else {
            self.counters.add(Counter::UnknownService, 1);
            let View(request) = view.into_inner();
            return self.without_service(request, &target);
        };
        let wish = target.wish(&service.policy, &mut view, rng);
        let pick = service.pick(&wish, rng, now);
        let View(request) = view.into_inner();
        self.candidates.clear();
        let limit = match self.config.mode {
            Mode::OverrideHost => CHOICES,
            Mode::OriginalDst => 1,
        };
        service.write(&pick, limit, &mut self.candidates);
        let counter = if pick.count > 0 { Counter::Picks } else { Counter::NoNode };
        self.counters.add(counter, 1);
        if pick.panicking && pick.count > 0 {
            self.counters.add(Counter::PanicPicks, 1);
            service.panicked();
        }
        if !service.hears_what_it_needs() {
            self.counters.add(Counter::OutcomesMissing, 1);
        }
        let cookie = service.cookie(&pick, &wish);
        if (service.wants_outcomes() || cookie.is_some())
            && let Some(mut running) = service.start(&pick)
        {
            running.cookie = cookie;
            self.running.insert(context, running);
        }
        if let Some(timeout) = target.timeout() {
            request.set_header(TIMEOUT, &timeout.as_millis().to_string());
        }
        if self.config.mode == Mode::OverrideHost && target.leads_elsewhere() {
            request.set_header(CLUSTER, name);
        }
        match (self.config.mode, pick.count) {
            (Mode::OverrideHost, 0) => remove_candidates(request),
            (Mode::OverrideHost, _) => request.set_header(CANDIDATES, &self.candidates),
            (Mode::OriginalDst, 0) => {}
            (Mode::OriginalDst, _) => {
                self.arguments.clear();
                put_text(&mut self.arguments, 1, ORIGINAL_DST_KEY);
                put_text(&mut self.arguments, 2, &self.candidates);
                request.set_filter_state(&self.arguments);
            }
        }
        Verdict::Continue
    }

    /// Nothing is known of the service. Where routes come from etcd, and the agent has told of all there is, nobody else
    /// can know it either.
    fn without_service(&mut self, request: &mut impl Request, target: &Target<'_>) -> Verdict {
        let heard = self.services.replica().is_synced() || self.services.replica().hash() != 0;
        if self.config.service != ServiceFrom::Routes || !heard {
            if self.config.mode == Mode::OverrideHost {
                remove_candidates(request);
            }
            return Verdict::Continue;
        }
        match target.named_by() {
            Named::ByRoute(route) => {
                let service = target.service();
                let text = format!("waypost: route {route} leads to service {service:?}, which has no node\n");
                request.answer(503, &text);
            }
            Named::ByHost => {
                self.counters.add(Counter::NoRoute, 1);
                request.answer(404, "waypost: no route matches, and no service is called like the host\n");
            }
            Named::Otherwise => return Verdict::Continue,
        }
        Verdict::Answered
    }

    /// The headers of the answer are in.
    pub fn on_response(&mut self, response: &mut impl Response, context: u32) {
        if let Some(cookie) = self.running.get_mut(&context).and_then(|running| running.cookie.take()) {
            response.add_header("set-cookie", &cookie);
        }
    }

    /// The host has done with a request.
    pub fn on_end(&mut self, ended: &mut impl Ended, context: u32) {
        if let Some(running) = self.running.remove(&context) {
            running.end(ended, self.last_tick.unwrap_or_default());
        }
    }

    fn open(&mut self, host: &mut impl Host, now: Duration) {
        self.services.stream_restarted();
        let Some(stream) = host.open_stream(&self.target) else {
            self.stream.failed(now, host.random());
            return;
        };
        self.stream.opened(stream, now);
        let client = self.client.get_or_insert_with(|| {
            let node = host.node().filter(|node| !node.is_empty()).unwrap_or_else(|| "envoy".into());
            format!("{node}#{:08x}", host.random() as u32)
        });
        let hello =
            Hello { protocol: wire::PROTOCOL_VERSION, client: client.clone(), hash: self.services.replica().hash() };
        send(host, stream, Kind::Hello(hello));
    }

    fn lost(&mut self, host: &mut impl Host, lost: Lost, why: &str) {
        self.services.stream_restarted();
        let (level, what) = match lost {
            Lost::Broken => {
                self.counters.add(Counter::StreamRestarts, 1);
                (Level::Warn, "lost the agent's stream")
            }
            Lost::Unanswered => (Level::Warn, "the agent does not answer"),
            // As often as it is tried again.
            Lost::UnansweredAgain => (Level::Debug, "the agent still does not answer"),
        };
        host.log(level, &format!("{what}, picking from what is known ({why})"));
    }

    fn ask_for_everything(&mut self, host: &mut impl Host, stream: u32, reason: &str) {
        self.counters.add(Counter::Resyncs, 1);
        host.log(Level::Warn, &format!("asking the agent for everything again: {reason}"));
        send(host, stream, Kind::Resync(Resync { reason: reason.into() }));
    }

    fn count_staleness(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.last_tick.replace(now).unwrap_or(now));
        let current = self.services.replica().is_synced()
            && self.current_at.is_some_and(|at| now.saturating_sub(at) <= STALE_AFTER);
        if !current {
            self.stale += passed;
            let seconds = self.stale.as_secs();
            self.stale -= Duration::from_secs(seconds);
            self.counters.add(Counter::StaleSeconds, seconds);
        }
    }
}

fn claim(host: &mut impl Host, config: &Config, now: Duration, until: Duration) -> Result<(), StartError> {
    shared::claim(host, config, now, until)
        .map_err(|running| StartError::Taken { running, refused: config.to_string() })
}

fn send(host: &mut impl Host, stream: u32, kind: Kind) {
    host.send(stream, &ClientMessage { kind: Some(kind) }.encode_to_vec());
}

/// Requests of no concern to us come here too: they pay for a look at a header, not for another route.
fn remove_candidates(request: &mut impl Request) {
    if request.header(CANDIDATES).is_some() {
        request.remove_header(CANDIDATES);
    }
}

/// `GrpcService{envoy_grpc{cluster_name}}`, encoded. Envoy takes a plain name too, but only after it has tried to parse
/// it as this message, and there are names that parse.
fn grpc_service(cluster: &str) -> String {
    let mut envoy_grpc = Vec::new();
    put_text(&mut envoy_grpc, 1, cluster);
    let mut service = Vec::new();
    put_bytes(&mut service, 1, &envoy_grpc);
    // The configuration's limit on the name keeps the lengths below 128, so it is all ASCII.
    String::from_utf8(service).unwrap_or_default()
}

/// Appends a protobuf field of text. Lengths here stay far below 16,384: two bytes of length are enough.
fn put_text(message: &mut Vec<u8>, field: u8, text: &str) {
    put_bytes(message, field, text.as_bytes());
}

fn put_bytes(message: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    message.push(field << 3 | 2);
    prost::encoding::encode_varint(bytes.len() as u64, message);
    message.extend_from_slice(bytes);
}
