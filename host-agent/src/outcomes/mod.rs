//! What became of requests, as the filters report it: merged over all workers of all Envoys of this host.
//!
//! Counts add up for as long as the agent runs; rates and latencies are those of the last minute or so, kept in slots of
//! ten seconds. What is under way and who is ejected is known of each filter, and goes with its stream.

mod window;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use waypost_catalog::wire::{NodeReport, Report};

use self::window::Window;

/// A node of which nothing was heard for this long, and which is not served, is forgotten.
const FORGET: Duration = Duration::from_secs(600);

/// How requests ended, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All that ended on the node.
    pub requests: u64,
    /// Answered with a 5xx.
    pub server_errors: u64,
    /// Broken off by the node.
    pub resets: u64,
    /// It could not be connected to.
    pub connect_failures: u64,
    /// No answer in time.
    pub timeouts: u64,
    /// Given up by the client.
    pub cancelled: u64,
    /// Tries that failed, after which the request went to another node.
    pub failed_tries: u64,
}

impl Counts {
    fn add(&mut self, report: &NodeReport) {
        self.merge(&Self {
            requests: report.requests,
            server_errors: report.server_errors,
            resets: report.resets,
            connect_failures: report.connect_failures,
            timeouts: report.timeouts,
            cancelled: report.cancelled,
            failed_tries: report.failed_tries,
        });
    }

    fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.server_errors += other.server_errors;
        self.resets += other.resets;
        self.connect_failures += other.connect_failures;
        self.timeouts += other.timeouts;
        self.cancelled += other.cancelled;
        self.failed_tries += other.failed_tries;
    }

    /// Requests and tries that failed by the node's doing.
    pub fn failures(&self) -> u64 {
        self.server_errors + self.resets + self.connect_failures + self.timeouts + self.failed_tries
    }
}

/// What is known of a node's requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeOutcomes {
    /// Since the agent started.
    pub total: Counts,
    /// In the last minute.
    pub recent: Counts,
    /// How long that minute was: less while the agent is young.
    pub over: Duration,
    /// Median latency of the last minute, to the first byte of the answer; `None` without an answer.
    pub p50: Option<Duration>,
    /// Its 99th percentile.
    pub p99: Option<Duration>,
    /// Requests under way, over all filters.
    pub in_flight: u64,
    /// Filters that have ejected it.
    pub ejected_by: usize,
}

impl NodeOutcomes {
    /// Requests per second, of the last minute.
    pub fn rate(&self) -> f64 {
        let seconds = self.over.as_secs_f64();
        if seconds > 0.0 { self.recent.requests as f64 / seconds } else { 0.0 }
    }

    /// The part of requests and failed tries that failed, of the last minute; `None` if there were none.
    pub fn error_share(&self) -> Option<f64> {
        let all = self.recent.requests + self.recent.failed_tries;
        (all > 0).then(|| self.recent.failures() as f64 / all as f64)
    }
}

/// By service and address.
type PerNode<T> = BTreeMap<Box<str>, BTreeMap<Box<str>, T>>;

#[derive(Debug)]
struct Node {
    total: Counts,
    window: Window,
    heard: Instant,
}

#[derive(Clone, Copy, Debug, Default)]
struct Gauges {
    in_flight: u32,
    ejected: bool,
}

#[derive(Debug, Default)]
struct State {
    nodes: PerNode<Node>,
    panics: BTreeMap<Box<str>, u64>,
    filters: HashMap<u64, PerNode<Gauges>>,
    next_filter: u64,
}

/// The outcomes of all services, shared by the streams that bring them and whoever shows them.
#[derive(Debug)]
pub struct Outcomes {
    state: Mutex<State>,
    started: Instant,
}

impl Default for Outcomes {
    fn default() -> Self {
        Self { state: Mutex::default(), started: Instant::now() }
    }
}

/// A filter's stream. When it ends, what was under way there is known no more.
#[derive(Debug)]
pub struct Reporter<'a> {
    outcomes: &'a Outcomes,
    filter: u64,
}

impl Outcomes {
    /// A filter's stream begins.
    pub fn reporter(&self) -> Reporter<'_> {
        let mut state = self.lock();
        state.next_filter += 1;
        Reporter { outcomes: self, filter: state.next_filter }
    }

    /// What is known of a service's nodes, by address.
    pub fn of(&self, service: &str, now: Instant) -> BTreeMap<Box<str>, NodeOutcomes> {
        let state = self.lock();
        let nodes = state.nodes.get(service).into_iter().flatten();
        nodes.map(|(address, node)| (address.clone(), self.shown(&state, service, address, node, now))).collect()
    }

    /// What is known of all nodes, by service and address.
    pub fn all(&self, now: Instant) -> PerNode<NodeOutcomes> {
        let state = self.lock();
        let nodes = |service: &str, nodes: &BTreeMap<Box<str>, Node>| {
            let nodes = nodes.iter();
            nodes.map(|(address, node)| (address.clone(), self.shown(&state, service, address, node, now))).collect()
        };
        state.nodes.iter().map(|(service, known)| (service.clone(), nodes(service, known))).collect()
    }

    /// Requests, by service, for which all nodes were eligible, since too few were healthy.
    pub fn panics(&self) -> BTreeMap<Box<str>, u64> {
        self.lock().panics.clone()
    }

    fn shown(&self, state: &State, service: &str, address: &str, node: &Node, now: Instant) -> NodeOutcomes {
        let gauges = state.filters.values().filter_map(|filter| filter.get(service)?.get(address));
        let (mut in_flight, mut ejected_by) = (0, 0);
        for gauge in gauges {
            in_flight += u64::from(gauge.in_flight);
            ejected_by += usize::from(gauge.ejected);
        }
        let recent = node.window.sum(now);
        NodeOutcomes {
            total: node.total,
            recent: recent.counts,
            over: window::LENGTH.min(now.saturating_duration_since(self.started)),
            p50: recent.latencies.quantile(0.5),
            p99: recent.latencies.quantile(0.99),
            in_flight,
            ejected_by,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Every change is whole before the lock is let go of, whatever panicked elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reporter<'_> {
    /// Takes a report in. `is_served` says whether a node is in the catalog.
    pub fn take_in(&self, report: &Report, is_served: impl Fn(&str, &str) -> bool, now: Instant) {
        let mut state = self.outcomes.lock();
        let State { nodes: known, panics, filters, .. } = &mut *state;
        for service in &report.services {
            let name: Box<str> = service.service.as_str().into();
            if service.panics > 0 {
                *panics.entry(name.clone()).or_default() += service.panics;
            }
            let nodes = known.entry(name.clone()).or_default();
            let gauges = filters.entry(self.filter).or_default().entry(name).or_default();
            for report in &service.nodes {
                let address: Box<str> = report.address.as_str().into();
                let fresh = || Node { total: Counts::default(), window: Window::default(), heard: now };
                let node = nodes.entry(address.clone()).or_insert_with(fresh);
                node.total.add(report);
                node.window.add(report, now);
                node.heard = now;
                if report.in_flight == 0 && !report.ejected {
                    gauges.remove(&address);
                } else {
                    gauges.insert(address, Gauges { in_flight: report.in_flight, ejected: report.ejected });
                }
            }
            nodes.retain(|address, node| {
                now.saturating_duration_since(node.heard) < FORGET || is_served(&service.service, address)
            });
        }
        known.retain(|_, nodes| !nodes.is_empty());
    }
}

impl Drop for Reporter<'_> {
    fn drop(&mut self) {
        self.outcomes.lock().filters.remove(&self.filter);
    }
}

#[cfg(test)]
mod tests {
    use waypost_balance::Histogram;
    use waypost_catalog::wire::ServiceReport;

    use super::*;

    fn report(requests: u64, failures: u64, millis: u64, in_flight: u32) -> Report {
        let latency = Duration::from_millis(millis);
        let node = NodeReport {
            address: "10.0.0.1:80".into(),
            requests,
            server_errors: failures,
            in_flight,
            ejected: in_flight > 10,
            latency: vec![Histogram::bucket(latency) as u32, requests as u32],
            ..NodeReport::default()
        };
        Report { services: vec![ServiceReport { service: "web".into(), nodes: vec![node], panics: failures }] }
    }

    fn known(outcomes: &Outcomes, now: Instant) -> NodeOutcomes {
        outcomes.of("web", now).remove("10.0.0.1:80").unwrap_or_default()
    }

    #[test]
    fn filters_add_up_and_what_is_under_way_goes_with_its_filter() {
        let outcomes = Outcomes::default();
        let now = Instant::now() + Duration::from_secs(30);
        let (first, second) = (outcomes.reporter(), outcomes.reporter());
        first.take_in(&report(60, 3, 10, 2), |_, _| true, now);
        second.take_in(&report(30, 0, 90, 11), |_, _| true, now);
        let shown = known(&outcomes, now);
        assert_eq!((shown.total.requests, shown.total.failures(), shown.in_flight, shown.ejected_by), (90, 3, 13, 1));
        assert!((2.9..3.1).contains(&shown.rate()), "{}", shown.rate());
        assert!((shown.error_share().unwrap() - 3.0 / 90.0).abs() < 1e-9);
        let (p50, p99) = (shown.p50.unwrap().as_secs_f64(), shown.p99.unwrap().as_secs_f64());
        assert!((0.008..0.012).contains(&p50) && (0.075..0.105).contains(&p99), "{p50} {p99}");
        drop(second);
        let shown = known(&outcomes, now);
        assert_eq!((shown.total.requests, shown.in_flight, shown.ejected_by), (90, 2, 0));
        first.take_in(&report(0, 0, 1, 0), |_, _| true, now);
        assert_eq!(known(&outcomes, now).in_flight, 0);
        assert_eq!(outcomes.panics(), BTreeMap::from([("web".into(), 3)]));
    }

    #[test]
    fn counts_stay_and_the_last_minute_passes() {
        let outcomes = Outcomes::default();
        let start = Instant::now() + Duration::from_secs(100);
        let reporter = outcomes.reporter();
        for second in 0..120 {
            reporter.take_in(&report(10, 1, 5, 0), |_, _| true, start + Duration::from_secs(second));
        }
        let now = start + Duration::from_secs(119);
        let shown = known(&outcomes, now);
        assert_eq!((shown.total.requests, shown.over), (1_200, window::LENGTH));
        // Slots of ten seconds: between five and six of them.
        assert!((500..=600).contains(&shown.recent.requests), "{}", shown.recent.requests);
        let later = known(&outcomes, now + Duration::from_secs(61));
        assert_eq!((later.recent, later.p99, later.error_share()), (Counts::default(), None, None));
        assert_eq!(later.total.requests, 1_200);
    }

    #[test]
    fn a_node_that_is_gone_is_forgotten_some_time_after_its_last_request() {
        let outcomes = Outcomes::default();
        let start = Instant::now();
        let reporter = outcomes.reporter();
        reporter.take_in(&report(1, 0, 5, 0), |_, _| true, start);
        let mut other = report(1, 0, 5, 0);
        other.services[0].nodes[0].address = "10.0.0.2:80".into();
        reporter.take_in(&other, |_, _| true, start + FORGET);
        assert_eq!(outcomes.of("web", start).len(), 2, "both are served");
        reporter.take_in(&other, |_, address| address == "10.0.0.2:80", start + FORGET);
        assert_eq!(outcomes.of("web", start).len(), 1);
    }
}
