//! Keeps one service's check going: says when something is to be done or was heard, and what follows from it.
//!
//! A check of type `ttl` asks nothing. It waits for the application to report, and takes silence for a failure.

use std::time::SystemTime;

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use waypost_catalog::Health;

use super::{
    CheckReport, CheckState, CheckStatus,
    probe::{Target, probe},
    schedule,
};
use crate::config::{Check, CheckKind, Probing, format_duration};

/// What an application reports of itself.
#[derive(Clone, Debug)]
pub struct Beat {
    /// Whether it is well.
    pub passing: bool,
    /// Its own words, already bounded.
    pub output: String,
    /// When it said so.
    pub at: Instant,
}

/// A check that goes on.
#[derive(Debug)]
pub struct Runner {
    check: Check,
    state: CheckState,
    /// When to probe next; of a `ttl` check, when silence becomes a failure.
    due: Instant,
    beats: watch::Receiver<Option<Beat>>,
    last: Option<CheckStatus>,
}

/// What the time has come for.
#[derive(Debug)]
pub enum Cue {
    /// To ask the service, or to take its silence for an answer.
    Due,
    /// To hear what it says by itself.
    Beat(Beat),
}

/// What came of it.
#[derive(Debug)]
pub struct Verdict {
    /// What the check said.
    pub report: CheckReport,
    /// Whether it is another than the last time.
    pub turned: bool,
    /// Whether the service's health is another now.
    pub changed: bool,
}

impl Runner {
    /// Of a service that is new, or (`known`) may be in the registry already.
    pub fn new(check: &Check, known: bool, mut beats: watch::Receiver<Option<Beat>>) -> Self {
        // What was reported before anybody listened counts too.
        beats.mark_changed();
        let state = if known { CheckState::adopted(check) } else { CheckState::new(check) };
        Self { check: check.clone(), state, due: first_due(check), beats, last: None }
    }

    /// The same service under another configuration. Its health stays, and so does what a `ttl` check has heard.
    pub fn reconfigure(&mut self, check: &Check, mut beats: watch::Receiver<Option<Beat>>) {
        if !self.beats.same_channel(&beats) {
            beats.mark_changed();
            self.beats = beats;
        }
        let is_heard_already = matches!(check.kind, CheckKind::Reported { .. }) && self.check.kind == check.kind;
        if !is_heard_already {
            self.due = first_due(check);
        }
        self.check = check.clone();
        self.state.set_thresholds(check.rise, check.fall);
    }

    /// Begins again as that of a new service.
    pub fn start_anew(&mut self) {
        self.state = CheckState::new(&self.check);
    }

    /// The health to show; `None` while that is undecided.
    pub fn health(&self) -> Option<Health> {
        self.state.health()
    }

    /// Whether the registry is left as it was found.
    pub fn is_adopted(&self) -> bool {
        self.state.is_adopted()
    }

    /// Waits until something is to be done. Nothing is lost if the waiting is given up.
    pub async fn cue(&mut self) -> Cue {
        if matches!(self.check.kind, CheckKind::Asked(_)) {
            sleep_until(self.due).await;
            return Cue::Due;
        }
        tokio::select! {
            // In this order, so that a report in time is never taken for silence.
            biased;
            Some(beat) = next(&mut self.beats) => Cue::Beat(beat),
            () = sleep_until(self.due) => Cue::Due,
        }
    }

    /// Does what the time has come for.
    pub async fn follow(&mut self, cue: Cue, target: &Target<'_>) -> Verdict {
        let (at, started) = (SystemTime::now(), Instant::now());
        let (passed, output, heard) = match (cue, &self.check.kind) {
            (Cue::Beat(beat), _) => (beat.passing, beat.output, beat.at),
            (Cue::Due, CheckKind::Reported { ttl }) => {
                (false, format!("no report for {}", format_duration(*ttl)), started)
            }
            (Cue::Due, CheckKind::Asked(probing)) => match probe(probing, target).await {
                Ok(output) => (true, output, started),
                Err(error) => (false, error.to_string(), started),
            },
        };
        self.due = match &self.check.kind {
            CheckKind::Reported { ttl } => heard + *ttl,
            CheckKind::Asked(Probing { interval, jitter, .. }) => {
                Instant::now() + schedule::next_delay(*interval, *jitter, fastrand::f64())
            }
        };
        let report = CheckReport { status: CheckStatus::of(passed), output, at, took: started.elapsed() };
        let turned = self.last.replace(report.status) != Some(report.status);
        Verdict { report, turned, changed: self.state.observe(passed) }
    }
}

fn first_due(check: &Check) -> Instant {
    let wait = match &check.kind {
        CheckKind::Reported { ttl } => *ttl,
        CheckKind::Asked(probing) => schedule::first_delay(probing.interval, fastrand::f64()),
    };
    Instant::now() + wait
}

/// The next report; `None` once there can be none.
async fn next(beats: &mut watch::Receiver<Option<Beat>>) -> Option<Beat> {
    loop {
        beats.changed().await.ok()?;
        if let Some(beat) = beats.borrow_and_update().clone() {
            return Some(beat);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Initial;

    const TTL: Duration = Duration::from_secs(10);

    fn check(initial: Initial) -> Check {
        Check { kind: CheckKind::Reported { ttl: TTL }, initial, rise: 1, fall: 1 }
    }

    fn beat(passing: bool) -> Option<Beat> {
        Some(Beat { passing, output: format!("passing: {passing}"), at: Instant::now() })
    }

    const TARGET: Target<'static> = Target {
        service: "web",
        instance: "web-1",
        address: std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1),
        protocol: waypost_catalog::Protocol::Http1,
    };

    async fn step(runner: &mut Runner) -> Verdict {
        let cue = runner.cue().await;
        runner.follow(cue, &TARGET).await
    }

    #[tokio::test(start_paused = true)]
    async fn an_application_that_reports_in_time_passes_and_silence_fails() {
        let (beats, receiver) = watch::channel(None);
        let mut runner = Runner::new(&check(Initial::Critical), false, receiver);
        assert_eq!(runner.health(), Some(Health::Critical));
        for _ in 0..3 {
            tokio::time::advance(TTL - Duration::from_millis(1)).await;
            beats.send_replace(beat(true));
            let verdict = step(&mut runner).await;
            assert_eq!((verdict.report.status, runner.health()), (CheckStatus::Passed, Some(Health::Passing)));
        }
        let quiet_since = Instant::now();
        let verdict = step(&mut runner).await;
        assert_eq!((quiet_since.elapsed().as_secs(), &*verdict.report.output), (10, "no report for 10s"));
        assert_eq!((verdict.changed, runner.health()), (true, Some(Health::Critical)));
        assert!(!step(&mut runner).await.turned, "silence goes on");
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_of_several_reports_counts_and_one_made_too_early_to_be_heard_does_too() {
        let (beats, receiver) = watch::channel(beat(true));
        beats.send_replace(beat(false));
        let mut runner = Runner::new(&check(Initial::Passing), false, receiver);
        let verdict = step(&mut runner).await;
        assert_eq!((&*verdict.report.output, runner.health()), ("passing: false", Some(Health::Critical)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_known_service_is_left_as_it_is_for_as_long_as_it_may_be_silent() {
        let (beats, receiver) = watch::channel(None);
        let mut runner = Runner::new(&check(Initial::Critical), true, receiver);
        assert!(runner.is_adopted() && runner.health().is_none());
        tokio::time::advance(TTL / 2).await;
        beats.send_replace(beat(true));
        step(&mut runner).await;
        assert_eq!(runner.health(), Some(Health::Passing));
        let mut silent = Runner::new(&check(Initial::Critical), true, beats.subscribe());
        beats.send_replace(None);
        assert_eq!(step(&mut silent).await.report.status, CheckStatus::Failed);
        assert_eq!(silent.health(), Some(Health::Critical));
    }

    #[tokio::test(start_paused = true)]
    async fn another_configuration_neither_forgives_silence_nor_repeats_what_was_heard() {
        let (beats, receiver) = watch::channel(beat(true));
        let mut runner = Runner::new(&check(Initial::Critical), false, receiver);
        step(&mut runner).await;
        let heard = Instant::now();
        for _ in 0..3 {
            tokio::time::advance(TTL / 4).await;
            runner.reconfigure(&Check { rise: 2, ..check(Initial::Critical) }, beats.subscribe());
        }
        assert_eq!(step(&mut runner).await.report.status, CheckStatus::Failed);
        assert_eq!(heard.elapsed(), TTL);
    }
}
