//! When to look up which name. Pure: the time, a random number and what a lookup ended with are passed in.
//!
//! ```text
//!            want                  slot free               answered
//!   unknown ------> due ------------------------> busy ---------------> due again in REFRESH
//!                    ^                              | failed, or LIMIT passed
//!                    +------- in RETRY_BASE.. ------+
//! ```
//!
//! * Addresses once known stay until a lookup answers with others: a name server that is away takes no node away.
//! * A lookup past its deadline counts as failed, so that nobody waits for it; it keeps its slot until it really ends,
//!   since the thread that it runs on cannot be stopped, and its late answer is taken.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::Resolution;
use crate::{
    backoff::Backoff,
    host::{HostName, is_host},
};

/// Lookups at once.
pub(super) const SLOTS: usize = 8;
/// How long a lookup may take before it counts as failed.
pub(super) const LIMIT: Duration = Duration::from_secs(5);
/// Time from an answer to the next lookup, give or take a fifth. The system's resolver does not say how long an answer
/// is good; Envoy asks as often.
pub(super) const REFRESH: Duration = Duration::from_secs(5);
const RETRY_BASE: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Look this name up, and say how that ended.
    LookUp(HostName),
    /// Nothing before that time, if there is one.
    Wait(Option<Instant>),
}

#[derive(Debug)]
struct Entry {
    addresses: Option<Arc<[IpAddr]>>,
    /// Whether anything was said about it.
    told: bool,
    failing: bool,
    /// When it is to be looked up next or, while it is looked up, when that counts as failed.
    timer: Option<Instant>,
    backoff: Backoff,
}

/// The names that are wanted, and how each stands.
#[derive(Debug, Default)]
pub(super) struct Machine {
    entries: BTreeMap<HostName, Entry>,
    timers: BTreeSet<(Instant, HostName)>,
    /// To be looked up as soon as there is a slot.
    due: VecDeque<HostName>,
    /// Looked up now, wanted or not.
    busy: BTreeSet<HostName>,
    resolutions: VecDeque<Resolution>,
}

impl Machine {
    /// Exactly these names are wanted from now on.
    pub(super) fn want(&mut self, names: &BTreeSet<HostName>, now: Instant) {
        let gone: Vec<HostName> = self.entries.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in gone {
            self.set_timer(&name, None);
            self.entries.remove(&name);
        }
        for name in names {
            if self.entries.contains_key(name) {
                continue;
            }
            let backoff = Backoff::new(RETRY_BASE, RETRY_MAX);
            let entry = Entry { addresses: None, told: false, failing: false, timer: None, backoff };
            self.entries.insert(name.clone(), entry);
            // A lookup that runs since the name was wanted before will do.
            let wait = if self.busy.contains(name) { LIMIT } else { Duration::ZERO };
            self.set_timer(name, Some(now + wait));
        }
    }

    pub(super) fn next(&mut self, now: Instant) -> Step {
        let wait = loop {
            let Some((at, name)) = self.timers.first().cloned() else { break None };
            if at > now {
                break Some(at);
            }
            self.set_timer(&name, None);
            if self.busy.contains(&name) {
                self.failed(&name, &format!("no answer within {LIMIT:?}"));
            } else {
                self.due.push_back(name);
            }
        };
        while self.busy.len() < SLOTS {
            let Some(name) = self.due.pop_front() else { break };
            if self.entries.contains_key(&name) && self.busy.insert(name.clone()) {
                self.set_timer(&name, Some(now + LIMIT));
                return Step::LookUp(name);
            }
        }
        Step::Wait(wait)
    }

    /// A lookup ended.
    pub(super) fn done(&mut self, name: &HostName, outcome: Result<Vec<IpAddr>, String>, now: Instant, random: f64) {
        self.busy.remove(name);
        if !self.entries.contains_key(name) {
            return;
        }
        let wait = match outcome.map(usable) {
            Ok(addresses) if !addresses.is_empty() => {
                self.answered(name, addresses.into());
                REFRESH.mul_f64(0.8 + 0.4 * random.clamp(0.0, 1.0))
            }
            Ok(_) => self.failed(name, "no address that a request can be sent to") + RETRY_BASE.mul_f64(random),
            Err(cause) => self.failed(name, &cause) + RETRY_BASE.mul_f64(random),
        };
        self.set_timer(name, Some(now + wait));
    }

    /// What is new about a name.
    pub(super) fn take_resolution(&mut self) -> Option<Resolution> {
        self.resolutions.pop_front()
    }

    fn answered(&mut self, name: &HostName, addresses: Arc<[IpAddr]>) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        entry.backoff.reset();
        if std::mem::take(&mut entry.failing) {
            tracing::info!(%name, ?addresses, "the name can be looked up");
        }
        if entry.addresses.as_ref() == Some(&addresses) {
            return;
        }
        if let Some(old) = entry.addresses.replace(Arc::clone(&addresses)) {
            tracing::info!(%name, ?old, new = ?addresses, "the name stands for other addresses");
        }
        entry.told = true;
        self.resolutions.push_back(Resolution { name: name.clone(), addresses: Some(addresses) });
    }

    /// How long to wait at least before it is tried again.
    fn failed(&mut self, name: &HostName, cause: &str) -> Duration {
        let Some(entry) = self.entries.get_mut(name) else { return RETRY_BASE };
        if !std::mem::replace(&mut entry.failing, true) {
            let kept = entry.addresses.as_deref();
            tracing::warn!(%name, cause, ?kept, "the name of a node's host cannot be looked up");
        }
        if !std::mem::replace(&mut entry.told, true) {
            self.resolutions.push_back(Resolution { name: name.clone(), addresses: None });
        }
        entry.backoff.next(1.0)
    }

    fn set_timer(&mut self, name: &HostName, at: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        if let Some(old) = std::mem::replace(&mut entry.timer, at) {
            self.timers.remove(&(old, name.clone()));
        }
        if let Some(at) = at {
            self.timers.insert((at, name.clone()));
        }
    }
}

/// The addresses to use, in order: those of IPv4 if there are any, since a host that has both is one host.
fn usable(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (mut four, mut six): (Vec<_>, Vec<_>) =
        addresses.into_iter().filter(|ip| is_host(*ip)).partition(IpAddr::is_ipv4);
    let usable = if four.is_empty() { &mut six } else { &mut four };
    usable.sort_unstable();
    usable.dedup();
    std::mem::take(usable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        HostName::new(text).unwrap()
    }

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    struct Bench {
        machine: Machine,
        now: Instant,
    }

    impl Bench {
        fn wanting(names: &[&str]) -> Self {
            let mut bench = Self { machine: Machine::default(), now: Instant::now() };
            bench.want(names);
            bench
        }

        fn want(&mut self, names: &[&str]) {
            self.machine.want(&names.iter().map(|text| name(text)).collect(), self.now);
        }

        /// Lets time pass until something is to be looked up.
        fn look_up(&mut self) -> (HostName, Duration) {
            let start = self.now;
            loop {
                match self.machine.next(self.now) {
                    Step::LookUp(name) => return (name, self.now - start),
                    Step::Wait(until) => self.now = until.expect("nothing to look up"),
                }
            }
        }

        fn answer(&mut self, text: &str, outcome: Result<&[IpAddr], &str>) -> Option<Option<Vec<IpAddr>>> {
            let outcome = outcome.map(<[IpAddr]>::to_vec).map_err(str::to_owned);
            self.machine.done(&name(text), outcome, self.now, 0.5);
            self.told(text)
        }

        fn told(&mut self, text: &str) -> Option<Option<Vec<IpAddr>>> {
            self.machine.take_resolution().map(|resolution| {
                assert_eq!(resolution.name, name(text));
                resolution.addresses.map(|addresses| addresses.to_vec())
            })
        }
    }

    #[test]
    fn a_name_is_looked_up_at_once_and_again_and_only_what_changed_is_told() {
        let mut bench = Bench::wanting(&["h1"]);
        assert_eq!(bench.look_up(), (name("h1"), Duration::ZERO));
        assert_eq!(bench.answer("h1", Ok(&[ip(2), ip(1), ip(2)])), Some(Some(vec![ip(1), ip(2)])));
        assert_eq!(bench.look_up(), (name("h1"), REFRESH));
        assert_eq!(bench.answer("h1", Ok(&[ip(1), ip(2)])), None);
        bench.look_up();
        assert_eq!(bench.answer("h1", Ok(&[ip(3)])), Some(Some(vec![ip(3)])));
    }

    #[test]
    fn a_failure_is_told_once_where_nothing_is_known_and_takes_nothing_away_elsewhere() {
        let mut bench = Bench::wanting(&["h1"]);
        bench.look_up();
        assert_eq!(bench.answer("h1", Err("no such name")), Some(None));
        bench.look_up();
        assert_eq!(bench.answer("h1", Ok(&[])), None, "told already");
        bench.look_up();
        assert_eq!(bench.answer("h1", Ok(&[ip(1)])), Some(Some(vec![ip(1)])));
        bench.look_up();
        assert_eq!(bench.answer("h1", Err("server failure")), None, "the last good addresses stay");
        bench.look_up();
        assert_eq!(bench.answer("h1", Ok(&[ip(1)])), None);
    }

    #[test]
    fn failures_are_tried_again_less_and_less_often_until_one_answers() {
        let mut bench = Bench::wanting(&["h1"]);
        let mut waits = Vec::new();
        for _ in 0..7 {
            waits.push(bench.look_up().1.as_secs_f64());
            bench.answer("h1", Err("no"));
        }
        assert_eq!(waits, [0.0, 1.5, 2.5, 4.5, 8.5, 15.5, 15.5]);
        bench.look_up();
        bench.answer("h1", Ok(&[ip(1)]));
        bench.look_up();
        bench.answer("h1", Err("no"));
        assert_eq!(bench.look_up().1.as_secs_f64(), 1.5);
    }

    #[test]
    fn a_lookup_that_takes_too_long_counts_as_failed_keeps_its_slot_and_may_answer_late() {
        let mut bench = Bench::wanting(&["h1"]);
        bench.look_up();
        assert_eq!(bench.machine.next(bench.now), Step::Wait(Some(bench.now + LIMIT)));
        bench.now += LIMIT;
        assert_eq!(bench.machine.next(bench.now), Step::Wait(None), "not a second one beside it");
        assert_eq!(bench.told("h1"), Some(None));
        assert_eq!(bench.answer("h1", Ok(&[ip(1)])), Some(Some(vec![ip(1)])));
        assert_eq!(bench.look_up(), (name("h1"), REFRESH));
    }

    #[test]
    fn no_more_than_the_slots_are_looked_up_at_once_and_the_others_follow() {
        let names: Vec<String> = (0..=SLOTS).map(|number| format!("h{number}")).collect();
        let mut bench = Bench::wanting(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let first: Vec<HostName> = (0..SLOTS).map(|_| bench.look_up().0).collect();
        assert_eq!(bench.machine.next(bench.now), Step::Wait(Some(bench.now + LIMIT)));
        bench.answer(first[0].as_str(), Ok(&[ip(1)]));
        assert_eq!(bench.look_up(), (name("h8"), Duration::ZERO));
    }

    #[test]
    fn what_is_not_wanted_any_more_is_not_looked_up_or_told() {
        let mut bench = Bench::wanting(&["h1", "h2"]);
        assert_eq!(bench.look_up().0, name("h1"));
        bench.want(&[]);
        assert_eq!(bench.machine.next(bench.now), Step::Wait(None));
        bench.want(&["h1"]);
        assert_eq!(bench.machine.next(bench.now), Step::Wait(Some(bench.now + LIMIT)), "it is under way");
        assert_eq!(bench.answer("h1", Ok(&[ip(1)])), Some(Some(vec![ip(1)])));
        bench.look_up();
        bench.want(&[]);
        assert_eq!(bench.answer("h1", Ok(&[ip(2)])), None);
    }

    #[test]
    fn of_both_families_that_of_ipv4_is_used_and_what_is_no_host_is_left_out() {
        let six: IpAddr = "fd00::5".parse().unwrap();
        assert_eq!(usable(vec![six, ip(1)]), [ip(1)]);
        assert_eq!(usable(vec![six, [0, 0, 0, 0].into()]), [six]);
    }
}
