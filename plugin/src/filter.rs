//! The filter: one for each VM, put together from its parts.

use std::time::Duration;

use prost::Message;
use waypost_catalog::{
    replica::Applied,
    wire::{self, Ack, ClientMessage, Hello, Resync, WireError, client_message::Kind, limits},
};

use crate::{
    config::{Config, ConfigError, Mode, ServiceFrom},
    counters::{Counter, Counters},
    host::{Host, Level, Request},
    services::{Limit, Miss, Services},
    shared::{self, SaveTimer},
    stream::{Lost, Step, Stream},
};

/// A catalog whose agent last knew its mirror to be current longer ago than this counts as stale. Above what a healthy
/// agent reaches between two signs of life of etcd and two heartbeats of its own.
const STALE_AFTER: Duration = Duration::from_secs(20);

/// Header with the candidates, which an `override_host` cluster tries in turn.
pub const CANDIDATES: &str = "x-waypost-candidates";

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
    stale: Duration,
    /// What goes to the host for a request, kept for the next one.
    candidates: String,
    arguments: Vec<u8>,
}

impl Filter {
    /// Starts with this configuration, and with the catalog that earlier VMs have left.
    ///
    /// # Errors
    /// [`StartError`] with what is wrong and what would be right.
    pub fn start(host: &mut impl Host, configuration: &[u8]) -> Result<Self, StartError> {
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
            services: Services::new(restored.replica, host.random()),
            config,
            stream: Stream::default(),
            save: SaveTimer::default(),
            claimed: false,
            counters: Counters::default(),
            client: None,
            current_at: None,
            last_tick: None,
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
            Ok(Applied::Changed { version, services }) => {
                // What the agent has. Whether that is current, its next heartbeat says, which follows at once.
                self.stream.in_sync();
                send(host, stream, Kind::Ack(Ack { version }));
                if !services.is_empty() {
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

    /// The headers of a request are in: picks, and tells the router.
    ///
    /// Without a pick the router gets nothing, neither from us nor from the client, and the cluster's own policy acts.
    pub fn on_request(&mut self, request: &mut impl Request) {
        let name = match &self.config.service {
            ServiceFrom::Cluster => request.cluster(),
            ServiceFrom::Header(name) => request.header(name),
            ServiceFrom::Host => request.header(":authority"),
        };
        let name = name.as_deref().and_then(|name| str::from_utf8(name).ok()).unwrap_or_default();
        let name = match self.config.service {
            ServiceFrom::Host => first_label(name),
            ServiceFrom::Cluster | ServiceFrom::Header(_) => name,
        };
        let limit = match self.config.mode {
            Mode::OverrideHost => Limit::WithAlternatives,
            Mode::OriginalDst => Limit::One,
        };
        let picked = self.services.pick(name, limit, &mut self.candidates);
        let counter = match picked {
            Ok(()) => Counter::Picks,
            Err(Miss::NoNode) => Counter::NoNode,
            Err(Miss::UnknownService) => Counter::UnknownService,
        };
        self.counters.add(counter, 1);
        match (self.config.mode, picked) {
            (Mode::OverrideHost, Ok(())) => request.set_candidates(&self.candidates),
            (Mode::OverrideHost, Err(_)) => {
                // Requests of no concern to us come here too: they pay for a look at a header, not for another route.
                if request.header(CANDIDATES).is_some() {
                    request.remove_candidates();
                }
            }
            (Mode::OriginalDst, Ok(())) => {
                self.arguments.clear();
                put_text(&mut self.arguments, 1, ORIGINAL_DST_KEY);
                put_text(&mut self.arguments, 2, &self.candidates);
                request.set_filter_state(&self.arguments);
            }
            (Mode::OriginalDst, Err(_)) => {}
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

/// The host up to its first dot or colon.
fn first_label(host: &str) -> &str {
    host.split(['.', ':']).next().unwrap_or_default()
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
