//! What the filter asks of the proxy that runs it, as traits: the module has Envoy behind them, a test what it likes.

use std::time::Duration;

use crate::counters::Counter;

/// How much a line in Envoy's log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Only for who looks for it.
    Debug,
    /// Worth knowing.
    Info,
    /// Something is amiss that the filter lives with.
    Warn,
    /// Something that only a person can put right.
    Error,
}

/// Data that all VMs of one `vm_id` share, and that outlives each of them.
pub trait SharedData {
    /// What is kept under `key`.
    fn get(&mut self, key: &str) -> Option<Vec<u8>>;
    /// Keeps `value` under `key`.
    fn set(&mut self, key: &str, value: &[u8]);
}

/// The proxy, outside of requests.
pub trait Host: SharedData {
    /// Writes a line to the proxy's log.
    fn log(&mut self, level: Level, message: &str);
    /// A clock that never goes back; from where it counts does not matter.
    fn now(&mut self) -> Duration;
    /// A number that no other VM gets.
    fn random(&mut self) -> u64;
    /// Name of this proxy, if it has one.
    fn node(&mut self) -> Option<String>;
    /// Adds to a counter.
    fn count(&mut self, counter: Counter, by: u64);
    /// Opens the catalog stream to `target`, an encoded `GrpcService`. `None` if it failed at once.
    fn open_stream(&mut self, target: &str) -> Option<u32>;
    /// Makes the calls that follow reach the stream opened last, from wherever the proxy has called us. False if what it
    /// was opened for is gone, and the stream with it: the proxy does not tell.
    fn enter_stream(&mut self) -> bool;
    /// Sends a message; what cannot be sent shows as the end of the stream.
    fn send(&mut self, stream: u32, message: &[u8]);
    /// What came with the status of the stream that was closed just now.
    fn stream_status(&mut self) -> String;
    /// Lets go of a stream whose other end is closed.
    fn close_stream(&mut self, stream: u32);
    /// Ends a stream; nothing more is heard of it.
    fn cancel_stream(&mut self, stream: u32);
}

/// A request whose headers are in.
pub trait Request {
    /// Name of the cluster that its route leads to.
    fn cluster(&mut self) -> Option<Vec<u8>>;
    /// The first value of a header.
    fn header(&mut self, name: &str) -> Option<Vec<u8>>;
    /// The client's address with its port, as text.
    fn source(&mut self) -> Option<Vec<u8>>;
    /// Sets a header in place of any of that name that came with the request. Like every change of a header it makes
    /// the proxy look for the route again.
    fn set_header(&mut self, name: &str, value: &str);
    /// Removes a header.
    fn remove_header(&mut self, name: &str);
    /// Calls Envoy's `set_envoy_filter_state` with encoded arguments.
    fn set_filter_state(&mut self, arguments: &[u8]);
    /// Answers the request instead of an upstream, with a text.
    fn answer(&mut self, status: u32, text: &str);
}

/// The answer to a request, its headers not yet sent.
pub trait Response {
    /// Adds a header.
    fn add_header(&mut self, name: &str, value: &str);
}

/// A request that has ended, one way or another.
pub trait Ended {
    /// Status of the answer; 0 if there was none.
    fn status(&mut self) -> u32;
    /// What Envoy says of how it ended: its response flags as a bit mask.
    fn flags(&mut self) -> u64;
    /// How often an upstream was tried.
    fn tries(&mut self) -> u64;
    /// From the first byte sent to the upstream to the first byte of its answer.
    fn latency(&mut self) -> Option<Duration>;
    /// The time, by the clock of [`Host::now`].
    fn now(&mut self) -> Duration;
}
