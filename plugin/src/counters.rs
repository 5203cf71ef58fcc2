//! What the filter counts: plain integers, handed to Envoy's counters on the tick, so that no request pays for it.
//!
//! Counters only, no gauges: every VM reports under the same name, and there counters add up.

use crate::host::Host;

/// A counter in Envoy's stats; Envoy puts `wasmcustom.` before the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Requests for which a node was picked.
    Picks,
    /// Requests for a service none of whose nodes may be picked.
    NoNode,
    /// Requests for a service that the catalog does not hold, or that name none.
    UnknownService,
    /// Requests that no route in etcd matches, whose host names no service, and that were answered so.
    NoRoute,
    /// Requests for which all nodes were eligible, since too few were healthy.
    PanicPicks,
    /// Requests whose policy goes by what becomes of requests, of which this module does not hear.
    OutcomesMissing,
    /// Policies and routes of the agent that could not be read: it is of another version.
    UnreadableRules,
    /// Streams to the agent that were lost after the agent had spoken on them.
    StreamRestarts,
    /// Times the agent was asked for everything again because something did not add up.
    Resyncs,
    /// Seconds in which the catalog was not known to be current.
    StaleSeconds,
}

impl Counter {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Picks,
        Self::NoNode,
        Self::UnknownService,
        Self::NoRoute,
        Self::PanicPicks,
        Self::OutcomesMissing,
        Self::UnreadableRules,
        Self::StreamRestarts,
        Self::Resyncs,
        Self::StaleSeconds,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Picks => "waypost_picks",
            Self::NoNode => "waypost_no_node",
            Self::UnknownService => "waypost_unknown_service",
            Self::NoRoute => "waypost_no_route",
            Self::PanicPicks => "waypost_panic_picks",
            Self::OutcomesMissing => "waypost_outcomes_missing",
            Self::UnreadableRules => "waypost_unreadable_rules",
            Self::StreamRestarts => "waypost_stream_restarts",
            Self::Resyncs => "waypost_resyncs",
            Self::StaleSeconds => "waypost_stale_seconds",
        }
    }
}

/// What was counted since the last flush.
#[derive(Debug, Default)]
pub struct Counters {
    counts: [u64; Counter::ALL.len()],
}

impl Counters {
    /// Adds to a counter.
    pub fn add(&mut self, counter: Counter, by: u64) {
        if let Some(count) = self.counts.get_mut(counter as usize) {
            *count += by;
        }
    }

    /// Hands everything to the host.
    pub fn flush(&mut self, host: &mut impl Host) {
        for (counter, count) in Counter::ALL.into_iter().zip(&mut self.counts) {
            let by = std::mem::take(count);
            if by > 0 {
                host.count(counter, by);
            }
        }
    }
}
