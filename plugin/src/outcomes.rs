//! What becomes of a service's requests: told to its pool when they end, and added up for the agent.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    rc::Rc,
    time::Duration,
};

use waypost_balance::{CHOICES, Histogram, Outcome, OutcomeKind, Pool, Settings, Slot};
use waypost_catalog::wire::{NodeReport, Report, ServiceReport};

use crate::host::Ended;

/// About how large a report may be, in bytes; what is beyond waits for the next one.
const REPORT_BYTES: usize = 32 * 1024;

/// Envoy's response flags, each a bit of the mask that it shows.
mod flags {
    pub const NO_HEALTHY_UPSTREAM: u64 = 1 << 1;
    pub const UPSTREAM_TIMEOUT: u64 = 1 << 2;
    pub const LOCAL_RESET: u64 = 1 << 3;
    pub const UPSTREAM_RESET: u64 = 1 << 4;
    pub const CONNECTION_FAILURE: u64 = 1 << 5;
    pub const CONNECTION_TERMINATION: u64 = 1 << 6;
    pub const OVERFLOW: u64 = 1 << 7;
    pub const NO_ROUTE: u64 = 1 << 8;
    pub const CLIENT_GONE: u64 = 1 << 14;
}

/// The nodes of a service as its outcomes see them. Outlives every change of nodes, and the service itself while
/// requests are under way.
#[derive(Debug, Default)]
pub struct Ledger {
    /// In flight, latencies, ejections.
    pub pool: Pool,
    /// Who has which slot, by the slot's number.
    holders: Vec<Holder>,
    /// What is to be reported, by the node's key.
    pending: HashMap<u64, NodeReport>,
    latencies: HashMap<u64, Histogram>,
    panics: u64,
}

#[derive(Clone, Debug, Default)]
struct Holder {
    key: u64,
    address: Box<str>,
}

/// A service's ledger, shared by what picks from it and the requests under way.
pub type SharedLedger = Rc<RefCell<Ledger>>;

impl Ledger {
    /// These are the nodes now: addresses and keys, in the same order. Their slots.
    pub fn sync<'a>(&mut self, nodes: impl Iterator<Item = (&'a str, u64)> + Clone, now: Duration) -> Vec<Slot> {
        let slots = self.pool.sync(nodes.clone().map(|(_, key)| key), now);
        for ((address, key), slot) in nodes.zip(&slots) {
            let index = slot.index();
            if self.holders.len() <= index {
                self.holders.resize(index + 1, Holder::default());
            }
            if let Some(holder) = self.holders.get_mut(index)
                && (holder.key != key || holder.address.is_empty())
            {
                *holder = Holder { key, address: address.into() };
            }
        }
        slots
    }

    /// A request was sent while too few nodes were healthy.
    pub fn panicked(&mut self) {
        self.panics += 1;
    }

    fn report_on(&mut self, slot: Slot) -> Option<(u64, &mut NodeReport)> {
        let holder = self.holders.get(slot.index())?;
        let key = holder.key;
        let fresh = || NodeReport { address: holder.address.to_string(), ..NodeReport::default() };
        Some((key, self.pending.entry(key).or_insert_with(fresh)))
    }

    fn count(&mut self, slot: Slot, outcome: Outcome) {
        let Some((key, report)) = self.report_on(slot) else { return };
        report.requests += 1;
        match outcome.kind {
            OutcomeKind::Success => {}
            OutcomeKind::ServerError => report.server_errors += 1,
            OutcomeKind::Reset => report.resets += 1,
            OutcomeKind::ConnectFailure => report.connect_failures += 1,
            OutcomeKind::Timeout => report.timeouts += 1,
            OutcomeKind::Cancelled => report.cancelled += 1,
        }
        if let Some(latency) = outcome.latency {
            self.latencies.entry(key).or_default().record(latency);
        }
    }

    fn count_failed_try(&mut self, slot: Slot) {
        if let Some((_, report)) = self.report_on(slot) {
            report.failed_tries += 1;
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub struct Running {
    ledger: SharedLedger,
    settings: Rc<Settings>,
    /// The first choice, and the alternatives for retries.
    choices: [Slot; CHOICES],
    count: usize,
    reported: bool,
    /// A cookie that the answer is to set.
    pub cookie: Option<String>,
}

impl Running {
    /// A request is on its way to the first of these.
    pub fn start(
        ledger: &SharedLedger,
        settings: &Rc<Settings>,
        choices: [Slot; CHOICES],
        count: usize,
        reported: bool,
    ) -> Self {
        if let (Ok(mut ledger), [first, ..]) = (ledger.try_borrow_mut(), choices) {
            // The first one under way: it is to be told of even if none ends. For as long as any is, it is told anew.
            if reported && ledger.pool.in_flight(first) == 0 {
                ledger.report_on(first);
            }
            ledger.pool.started(first);
        }
        Self { ledger: Rc::clone(ledger), settings: Rc::clone(settings), choices, count, reported, cookie: None }
    }

    /// It has ended.
    ///
    /// Envoy tries the candidates in turn: at the n-th try the first n - 1 have failed, and the n-th has answered. Once
    /// all have failed, Envoy's own policy chooses a node that is not told.
    ///
    /// `tick` is the time of the last tick: exact enough but for ejection, which has to tell a probe from what began
    /// before it. Most probes are sent and answered before the next tick.
    pub fn end(self, ended: &mut impl Ended, tick: Duration) {
        let now = if self.settings.ejection.is_some() { ended.now() } else { tick };
        let Ok(mut ledger) = self.ledger.try_borrow_mut() else { return };
        let [first, ..] = self.choices;
        let tries = usize::try_from(ended.tries()).unwrap_or(usize::MAX);
        let chosen = self.choices.iter().take(self.count);
        for failed in chosen.clone().take(tries.saturating_sub(1)) {
            ledger.pool.failed_try(*failed, OutcomeKind::ConnectFailure, now, &self.settings);
            if self.reported {
                ledger.count_failed_try(*failed);
            }
        }
        // Nobody was tried if Envoy gave the answer itself.
        let answered = tries.checked_sub(1).and_then(|last| chosen.clone().nth(last)).copied();
        let outcome = answered.and_then(|_| outcome(ended));
        // What was in flight was so on the first choice, whoever answered.
        let (on_first, on_other) = match (answered, outcome) {
            (Some(slot), Some(outcome)) if slot == first => (outcome, None),
            (Some(slot), Some(outcome)) => (Outcome::CANCELLED, Some((slot, outcome))),
            _ => (Outcome::CANCELLED, None),
        };
        ledger.pool.ended(first, on_first, now, &self.settings);
        if let Some((slot, outcome)) = on_other {
            ledger.pool.started(slot);
            ledger.pool.ended(slot, outcome, now, &self.settings);
        }
        if let (true, Some(slot), Some(outcome)) = (self.reported, answered, outcome) {
            ledger.count(slot, outcome);
        }
    }
}

/// How a request ended as far as its node has to do with it; `None` if that had none.
fn outcome(ended: &mut impl Ended) -> Option<Outcome> {
    let status = ended.status();
    let failed = |kind| Some(Outcome { kind, latency: None });
    let flags = ended.flags();
    let has = |mask: u64| flags & mask != 0;
    if has(flags::CLIENT_GONE) {
        failed(OutcomeKind::Cancelled)
    } else if has(flags::CONNECTION_FAILURE) {
        failed(OutcomeKind::ConnectFailure)
    } else if has(flags::UPSTREAM_TIMEOUT) {
        failed(OutcomeKind::Timeout)
    } else if has(flags::UPSTREAM_RESET | flags::CONNECTION_TERMINATION | flags::LOCAL_RESET) {
        failed(OutcomeKind::Reset)
    } else if has(flags::NO_HEALTHY_UPSTREAM | flags::OVERFLOW | flags::NO_ROUTE) || status == 0 {
        None
    } else {
        let kind = if status >= 500 { OutcomeKind::ServerError } else { OutcomeKind::Success };
        Some(Outcome { kind, latency: ended.latency() })
    }
}

/// The ledgers of all services, and what goes out of them to the agent.
#[derive(Debug, Default)]
pub struct Ledgers {
    /// In an order, so that what did not fit one report comes first in the next.
    ledgers: BTreeMap<Box<str>, SharedLedger>,
    next: Option<Box<str>>,
}

impl Ledgers {
    /// The ledger of a service.
    pub fn of(&mut self, service: &str) -> SharedLedger {
        match self.ledgers.get(service) {
            Some(ledger) => Rc::clone(ledger),
            None => Rc::clone(self.ledgers.entry(service.into()).or_default()),
        }
    }

    /// Every ledger.
    pub fn iter(&self) -> impl Iterator<Item = &SharedLedger> {
        self.ledgers.values()
    }

    /// Lets go of the ledgers of services that are gone, once nothing is under way and nothing to be reported.
    pub fn retain(&mut self, is_known: impl Fn(&str) -> bool) {
        self.ledgers.retain(|service, ledger| {
            is_known(service)
                || Rc::strong_count(ledger) > 1
                || ledger.try_borrow().is_ok_and(|ledger| !ledger.pending.is_empty())
        });
    }

    /// What is to be reported, as far as it fits one report; `None` if nothing is.
    pub fn report(&mut self) -> Option<Report> {
        let mut services = Vec::new();
        let mut bytes = 0;
        let from = self.next.take();
        let later = self.ledgers.iter().skip_while(|(name, _)| from.as_ref().is_some_and(|from| *name < from));
        for (name, ledger) in later {
            if bytes > REPORT_BYTES {
                self.next = Some(name.clone());
                break;
            }
            let Ok(mut ledger) = ledger.try_borrow_mut() else { continue };
            if ledger.pending.is_empty() && ledger.panics == 0 {
                continue;
            }
            let mut report =
                ServiceReport { service: name.to_string(), panics: std::mem::take(&mut ledger.panics), nodes: vec![] };
            bytes += report.service.len() + 16;
            // A node's part is below 400 bytes with its histogram: 500 nodes may take a few reports.
            let keys: Vec<u64> = ledger.pending.keys().copied().collect();
            for key in keys {
                if bytes > REPORT_BYTES {
                    self.next = Some(name.clone());
                    break;
                }
                let Some(mut node) = ledger.pending.remove(&key) else { continue };
                if let Some(latencies) = ledger.latencies.remove(&key) {
                    node.latency = latencies.iter().flat_map(|(bucket, count)| [bucket as u32, count]).collect();
                }
                if let Some(slot) = ledger.pool.slot(key) {
                    node.in_flight = ledger.pool.in_flight(slot);
                    node.ejected = ledger.pool.is_ejected(slot);
                    // It is to be told when it is idle, and when it is readmitted.
                    if node.in_flight > 0 || node.ejected {
                        let again = NodeReport { address: node.address.clone(), ..NodeReport::default() };
                        ledger.pending.insert(key, again);
                    }
                }
                bytes += node.address.len() + 48 + 5 * node.latency.len();
                report.nodes.push(node);
            }
            services.push(report);
            if self.next.is_some() {
                break;
            }
        }
        (!services.is_empty()).then_some(Report { services })
    }
}
