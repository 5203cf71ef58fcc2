//! A proxy made for the tests, requests through it, and catalogs for it.
#![allow(dead_code, unreachable_pub)] // Each test program uses its part.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::Duration,
};

use prost::Message;
use waypost_catalog::{
    Catalog, Node, ServiceName, sender,
    wire::{ClientMessage, Heartbeat, ServerMessage, client_message, server_message::Kind},
};
use waypost_plugin::{
    counters::Counter,
    filter::{CANDIDATES, CLUSTER, Filter, Verdict},
    host::{Ended, Host, Level, Request, Response, SharedData},
};

#[derive(Default)]
pub struct Proxy {
    pub now: Duration,
    pub shared: HashMap<String, Vec<u8>>,
    pub log: Vec<(Level, String)>,
    pub counts: BTreeMap<&'static str, u64>,
    pub targets: Vec<String>,
    pub sent: Vec<(u32, client_message::Kind)>,
    pub closed: Vec<u32>,
    pub cancelled: Vec<u32>,
    pub unreachable: bool,
    pub listener_gone: bool,
}

impl SharedData for Proxy {
    fn get(&mut self, key: &str) -> Option<Vec<u8>> {
        self.shared.get(key).cloned()
    }
    fn set(&mut self, key: &str, value: &[u8]) {
        self.shared.insert(key.into(), value.into());
    }
}

impl Host for Proxy {
    fn log(&mut self, level: Level, message: &str) {
        self.log.push((level, message.into()));
    }
    fn now(&mut self) -> Duration {
        self.now
    }
    fn random(&mut self) -> u64 {
        7
    }
    fn node(&mut self) -> Option<String> {
        Some("front-1".into())
    }
    fn count(&mut self, counter: Counter, by: u64) {
        *self.counts.entry(counter.name()).or_default() += by;
    }
    fn open_stream(&mut self, target: &str) -> Option<u32> {
        if self.unreachable {
            return None;
        }
        self.targets.push(target.into());
        Some(self.targets.len() as u32)
    }
    fn enter_stream(&mut self) -> bool {
        !std::mem::take(&mut self.listener_gone)
    }
    fn send(&mut self, stream: u32, message: &[u8]) {
        self.sent.push((stream, ClientMessage::decode(message).unwrap().kind.unwrap()));
    }
    fn stream_status(&mut self) -> String {
        "gone".into()
    }
    fn close_stream(&mut self, stream: u32) {
        self.closed.push(stream);
    }
    fn cancel_stream(&mut self, stream: u32) {
        self.cancelled.push(stream);
    }
}

impl Proxy {
    pub fn start(&mut self, configuration: &str) -> Filter {
        Filter::start(self, configuration.as_bytes(), true).unwrap()
    }

    pub fn tick_for(&mut self, filter: &mut Filter, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(100);
            filter.on_tick(self);
        }
    }

    pub fn deliver(&mut self, filter: &mut Filter, stream: u32, messages: impl IntoIterator<Item = ServerMessage>) {
        for message in messages {
            filter.on_message(self, stream, Some(&message.encode_to_vec()));
        }
    }

    /// A filter in sync on stream 1.
    pub fn in_sync(&mut self, configuration: &str, catalog: &Catalog) -> Filter {
        let mut filter = self.start(configuration);
        filter.on_tick(self);
        self.deliver(&mut filter, 1, sender::full(catalog));
        self.deliver(&mut filter, 1, heartbeat(0));
        filter
    }

    pub fn count(&self, counter: Counter) -> u64 {
        self.counts.get(counter.name()).copied().unwrap_or_default()
    }
}

#[derive(Default)]
pub struct Get {
    pub cluster: Option<&'static str>,
    pub headers: HashMap<&'static str, &'static str>,
    pub candidates: Option<String>,
    pub removals: usize,
    pub arguments: Option<Vec<u8>>,
    pub set: BTreeMap<String, String>,
    pub answer: Option<(u32, String)>,
}

impl Get {
    pub fn cluster(cluster: &'static str) -> Self {
        Self { cluster: Some(cluster), candidates: Some("forged".into()), ..Self::default() }
    }

    pub fn header(name: &'static str, value: &'static str) -> Self {
        Self { headers: HashMap::from([(name, value)]), candidates: Some("forged".into()), ..Self::default() }
    }

    /// To a host, as the bootstrap with routes from etcd hands it over.
    pub fn host(host: &'static str, path: &'static str) -> Self {
        let headers = [(":authority", host), (":path", path), (":method", "GET"), (CLUSTER, host)];
        Self { headers: headers.into(), candidates: Some("forged".into()), ..Self::default() }
    }

    pub fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub fn through(self, filter: &mut Filter) -> Self {
        self.numbered(filter, 1)
    }

    pub fn numbered(mut self, filter: &mut Filter, context: u32) -> Self {
        let verdict = filter.on_request(&mut self, context);
        assert_eq!(verdict == Verdict::Answered, self.answer.is_some());
        self
    }
}

impl Request for Get {
    fn cluster(&mut self) -> Option<Vec<u8>> {
        self.cluster.map(|cluster| cluster.into())
    }
    fn header(&mut self, name: &str) -> Option<Vec<u8>> {
        if name == CANDIDATES {
            return self.candidates.clone().map(String::into_bytes);
        }
        self.headers.get(name).map(|value| (*value).into())
    }
    fn source(&mut self) -> Option<Vec<u8>> {
        Some(b"10.9.9.9:1234".into())
    }
    fn set_header(&mut self, name: &str, value: &str) {
        if name == CANDIDATES {
            self.candidates = Some(value.into());
        } else {
            self.set.insert(name.into(), value.into());
        }
    }
    fn remove_header(&mut self, name: &str) {
        assert_eq!(name, CANDIDATES);
        self.candidates = None;
        self.removals += 1;
    }
    fn answer(&mut self, status: u32, text: &str) {
        self.answer = Some((status, text.into()));
    }
    fn set_filter_state(&mut self, arguments: &[u8]) {
        self.arguments = Some(arguments.into());
    }
}

pub fn changed(old: &Catalog, service: &str, addresses: &[&str]) -> Catalog {
    let nodes = addresses.iter().map(|address| Node::at(address.parse::<SocketAddr>().unwrap())).collect();
    old.updated([(ServiceName::new(service).unwrap(), nodes)]).0.unwrap()
}

pub fn web() -> Catalog {
    changed(&Catalog::default(), "web", &["10.0.0.1:80"])
}

pub fn heartbeat(stale_ms: u64) -> [ServerMessage; 1] {
    [ServerMessage { kind: Some(Kind::Heartbeat(Heartbeat { version: 0, stale_ms })) }]
}

/// How a request ended.
#[derive(Clone, Copy)]
pub struct End {
    pub status: u32,
    pub flags: u64,
    pub tries: u64,
    pub latency: Option<Duration>,
    pub now: Duration,
}

impl End {
    pub fn ok() -> Self {
        Self { status: 200, flags: 0, tries: 1, latency: Some(Duration::from_millis(3)), now: Duration::ZERO }
    }
}

impl Ended for End {
    fn status(&mut self) -> u32 {
        self.status
    }
    fn flags(&mut self) -> u64 {
        self.flags
    }
    fn tries(&mut self) -> u64 {
        self.tries
    }
    fn latency(&mut self) -> Option<Duration> {
        self.latency
    }
    fn now(&mut self) -> Duration {
        self.now
    }
}

/// Headers that were added to an answer.
#[derive(Default)]
pub struct Answer(pub Vec<(String, String)>);

impl Response for Answer {
    fn add_header(&mut self, name: &str, value: &str) {
        self.0.push((name.into(), value.into()));
    }
}
