//! The connection to the agent as a state machine: when to open, when to give up, when to ask for everything again.
//!
//! ```text
//!              time to open                 a message
//!   Waiting ------------------> Open{silent} ---------> Open{spoken}
//!      ^                          |                        |
//!      +--- failed, closed, or silent too long, after a ---+
//!           pause that grows until the agent speaks
//! ```
//!
//! It does no I/O: the time and the randomness come in, what is to be done goes out. All of it happens on the tick and
//! in the stream's callbacks, never while the VM is configured: Envoy configures a VM that it throws away at once to
//! see whether the configuration is good.

use std::time::Duration;

/// How often the filter looks at the clock. One period for good, short enough to find a restarted agent in well under
/// a second; what a tick costs when there is nothing to do does not show.
pub const TICK: Duration = Duration::from_millis(100);

/// An agent that says nothing for this long, not even a heartbeat, is taken for dead.
pub const SILENCE: Duration = Duration::from_secs(15);

/// The longest pause before the agent's socket is tried again. It is on this host and the attempt costs next to
/// nothing, so an agent that comes back after hours is still found within a second.
const LONGEST_PAUSE: Duration = Duration::from_millis(800);

/// The least time between two requests for everything. It doubles while what comes does not help, so that an agent and
/// a filter that will never agree do not keep each other busy.
const RESYNC_INTERVAL: Duration = Duration::from_secs(1);
const LONGEST_RESYNC_INTERVAL: Duration = Duration::from_secs(60);

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Wait,
    /// Open a stream, then call [`Stream::opened`] or [`Stream::failed`].
    Open,
    /// Cancel this stream: the agent has been silent for too long.
    Abandon(u32),
    /// Ask for everything on this stream.
    Resync(u32),
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Before the agent had said anything, for the first time since it last did.
    Unanswered,
    /// The same once more.
    UnansweredAgain,
    /// After it had spoken.
    Broken,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Waiting { until: Duration },
    Open { token: u32, heard: Duration, spoken: bool },
}

/// The connection to the agent.
#[derive(Debug)]
pub struct Stream {
    state: State,
    /// Streams that ended since the agent last spoke.
    failures: u32,
    resync_wanted: bool,
    /// The earliest time for the next request for everything.
    resync_after: Duration,
    /// How long the one after that will have to wait.
    resync_interval: Duration,
}

impl Default for Stream {
    fn default() -> Self {
        let state = State::Waiting { until: Duration::ZERO };
        Self {
            state,
            failures: 0,
            resync_wanted: false,
            resync_after: Duration::ZERO,
            resync_interval: RESYNC_INTERVAL,
        }
    }
}

impl Stream {
    /// What is to be done at this time. After [`Step::Abandon`] the stream counts as lost.
    pub fn tick(&mut self, now: Duration, random: u64) -> Step {
        match self.state {
            State::Waiting { until } if now >= until => Step::Open,
            State::Open { token, heard, .. } if now.saturating_sub(heard) > SILENCE => {
                self.wait(now, random);
                Step::Abandon(token)
            }
            State::Open { token, .. } if self.resync_wanted && now >= self.resync_after => {
                self.resync_asked(now);
                Step::Resync(token)
            }
            State::Waiting { .. } | State::Open { .. } => Step::Wait,
        }
    }

    /// A stream is open, as far as can be known before the agent speaks.
    pub fn opened(&mut self, token: u32, now: Duration) {
        self.state = State::Open { token, heard: now, spoken: false };
        self.resync_wanted = false;
        self.resync_after = Duration::ZERO;
        self.resync_interval = RESYNC_INTERVAL;
    }

    /// The present stream.
    pub fn present(&self) -> Option<u32> {
        match self.state {
            State::Open { token, .. } => Some(token),
            State::Waiting { .. } => None,
        }
    }

    /// No stream could be opened.
    pub fn failed(&mut self, now: Duration, random: u64) {
        self.wait(now, random);
    }

    /// The stream's other end is closed. `None` if it is not the present one.
    pub fn closed(&mut self, closed: u32, now: Duration, random: u64) -> Option<Lost> {
        let State::Open { token, spoken, .. } = self.state else { return None };
        if token != closed {
            return None;
        }
        let lost = match (spoken, self.failures) {
            (true, _) => Lost::Broken,
            (false, 0) => Lost::Unanswered,
            (false, _) => Lost::UnansweredAgain,
        };
        self.wait(now, random);
        Some(lost)
    }

    /// A message arrived; whether it is one of the present stream.
    pub fn heard(&mut self, from: u32, now: Duration) -> bool {
        match &mut self.state {
            State::Open { token, heard, spoken } if *token == from => {
                *heard = now;
                *spoken = true;
                self.failures = 0;
                true
            }
            State::Open { .. } | State::Waiting { .. } => false,
        }
    }

    /// What is held is right again.
    pub fn in_sync(&mut self) {
        self.resync_wanted = false;
        self.resync_interval = RESYNC_INTERVAL;
    }

    /// A message did not add up; whether to ask for everything now. If not, the tick will say when, unless what was
    /// asked for already has come by then.
    pub fn out_of_sync(&mut self, now: Duration) -> bool {
        if now < self.resync_after {
            self.resync_wanted = true;
            return false;
        }
        self.resync_asked(now);
        true
    }

    fn resync_asked(&mut self, now: Duration) {
        self.resync_wanted = false;
        self.resync_after = now + self.resync_interval;
        self.resync_interval = LONGEST_RESYNC_INTERVAL.min(self.resync_interval.saturating_mul(2));
    }

    /// Pauses between half and all of 100 ms, 200 ms, ... so that the VMs do not come all at once.
    fn wait(&mut self, now: Duration, random: u64) {
        let longest = LONGEST_PAUSE.min(TICK.saturating_mul(1 << self.failures.min(8)));
        self.failures = self.failures.saturating_add(1);
        let jitter = f64::from(random as u32) / f64::from(u32::MAX);
        self.state = State::Waiting { until: now + longest.mul_f64(0.5 + 0.5 * jitter) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn open(stream: &mut Stream, token: u32, now: Duration) {
        assert_eq!(stream.tick(now, 0), Step::Open);
        stream.opened(token, now);
    }

    #[test]
    fn opens_with_the_first_tick_and_again_after_a_pause_that_grows_and_ends_below_a_second() {
        let mut stream = Stream::default();
        let mut now = ms(5_000);
        let mut pauses = Vec::new();
        for token in 0..8 {
            open(&mut stream, token, now);
            let lost = if token == 0 { Lost::Unanswered } else { Lost::UnansweredAgain };
            assert_eq!(stream.closed(token, now, u64::MAX), Some(lost));
            let start = now;
            while stream.tick(now, 0) == Step::Wait {
                now += ms(1);
            }
            pauses.push((now - start).as_millis());
        }
        assert_eq!(pauses, [100, 200, 400, 800, 800, 800, 800, 800]);
        stream.failed(now, 0);
        assert_eq!(stream.tick(now + ms(399), 0), Step::Wait);
        assert_eq!(stream.tick(now + ms(400), 0), Step::Open);
    }

    #[test]
    fn an_agent_that_had_spoken_is_tried_again_at_once() {
        let mut stream = Stream::default();
        for token in 0..20 {
            let now = ms(1_000 * u64::from(token));
            open(&mut stream, token, now);
            assert!(stream.heard(token, now));
            assert_eq!(stream.closed(token, now, u64::MAX), Some(Lost::Broken));
            assert_eq!(stream.tick(now + ms(100), 0), Step::Open);
        }
    }

    #[test]
    fn silence_ends_a_stream_and_a_message_in_between_does_not_let_it_come_to_that() {
        let mut stream = Stream::default();
        open(&mut stream, 1, ms(0));
        assert!(stream.heard(1, ms(10_000)));
        assert_eq!(stream.tick(ms(25_000), 0), Step::Wait);
        assert_eq!(stream.tick(ms(25_001), 0), Step::Abandon(1));
        assert!(!stream.heard(1, ms(25_002)));
        assert_eq!(stream.closed(1, ms(25_003), 0), None);
        open(&mut stream, 2, ms(25_200));
    }

    #[test]
    fn what_an_old_stream_says_is_not_listened_to() {
        let mut stream = Stream::default();
        open(&mut stream, 1, ms(0));
        assert_eq!(stream.closed(1, ms(1), 0), Some(Lost::Unanswered));
        open(&mut stream, 2, ms(200));
        assert!(!stream.heard(1, ms(201)));
        assert_eq!(stream.closed(1, ms(202), 0), None);
        assert!(stream.heard(2, ms(203)));
    }

    #[test]
    fn everything_is_asked_for_at_once_and_then_at_most_every_second() {
        let mut stream = Stream::default();
        open(&mut stream, 1, ms(0));
        assert!(stream.out_of_sync(ms(10)));
        assert!(!stream.out_of_sync(ms(20)));
        assert_eq!(stream.tick(ms(1_000), 0), Step::Wait);
        assert_eq!(stream.tick(ms(1_010), 0), Step::Resync(1));
        assert_eq!(stream.tick(ms(5_000), 0), Step::Wait);
        assert!(stream.out_of_sync(ms(5_000)));
    }

    #[test]
    fn what_never_helps_is_asked_for_ever_more_rarely_until_it_does() {
        let mut stream = Stream::default();
        open(&mut stream, 1, ms(0));
        let mut asked = Vec::new();
        for second in 0..200 {
            let now = ms(1_000 * second);
            assert!(stream.heard(1, now));
            if stream.tick(now, 0) == Step::Resync(1) || stream.out_of_sync(now) {
                asked.push(second);
            }
        }
        assert_eq!(asked, [0, 1, 3, 7, 15, 31, 63, 123, 183]);
        stream.in_sync();
        assert!(stream.out_of_sync(ms(300_000)));
        assert!(stream.out_of_sync(ms(301_000)));
    }

    #[test]
    fn what_was_asked_for_and_came_is_not_asked_for_again() {
        let mut stream = Stream::default();
        open(&mut stream, 1, ms(0));
        assert!(stream.out_of_sync(ms(10)));
        // A delta that was under way.
        assert!(!stream.out_of_sync(ms(11)));
        stream.in_sync();
        assert_eq!(stream.tick(ms(2_000), 0), Step::Wait);
    }
}
