//! From the outcomes of single probes to a service's health: a pure state machine.
//!
//! ```text
//!   new, critical --> Starting ------ pass --------------------> Passing
//!                     (critical)                                  |  ^
//!   new, passing  -----------------------------------> Passing    |  | rise passes
//!                                                  fall failures  |  |
//!   new, undecided -> Undecided                                   v  |
//!                     (not shown) --- fall failures -----------> Critical
//!   adopted --------> Unknown
//!                     (as it was) --- fall failures -----------> Critical
//!                          either --- pass --------------------> Passing
//! ```
//!
//! A new service is what its configuration calls it `initial`ly, and passes with its first pass, so that it serves as
//! early as it can. One whose registration outlived a restart of the agent keeps whatever the registry says of it until
//! its checks decide, so that the restart alone changes nothing.

use waypost_catalog::Health;

use crate::config::{Check, Initial};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Starting,
    Undecided,
    Unknown,
    Passing,
    Critical,
}

/// A service's health, as its probes say.
#[derive(Clone, Debug)]
pub struct CheckState {
    status: Status,
    /// Probes in a row that speak against the status.
    against: u32,
    rise: u32,
    fall: u32,
}

impl CheckState {
    /// Of a service that was not registered before.
    pub fn new(check: &Check) -> Self {
        let status = match check.initial {
            Initial::Undecided => Status::Undecided,
            Initial::Passing => Status::Passing,
            Initial::Critical => Status::Starting,
        };
        Self { status, against: 0, rise: check.rise, fall: check.fall }
    }

    /// Of a service that may still be registered from the agent's previous run.
    pub fn adopted(check: &Check) -> Self {
        Self { status: Status::Unknown, ..Self::new(check) }
    }

    /// The same health under other thresholds.
    pub fn set_thresholds(&mut self, rise: u32, fall: u32) {
        (self.rise, self.fall, self.against) = (rise, fall, 0);
    }

    /// Whether the registry is left as it was found.
    pub fn is_adopted(&self) -> bool {
        self.status == Status::Unknown
    }

    /// The health to show; `None` while that is undecided.
    pub fn health(&self) -> Option<Health> {
        match self.status {
            Status::Undecided | Status::Unknown => None,
            Status::Passing => Some(Health::Passing),
            Status::Starting | Status::Critical => Some(Health::Critical),
        }
    }

    /// Takes a probe's outcome in. Whether the health changed.
    pub fn observe(&mut self, passed: bool) -> bool {
        let before = self.health();
        let agrees = match self.status {
            Status::Passing => passed,
            Status::Starting | Status::Critical => !passed,
            Status::Undecided | Status::Unknown => false,
        };
        if agrees {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let (next, needed) = match (self.status, passed) {
            (Status::Starting | Status::Undecided | Status::Unknown, true) => (Status::Passing, 1),
            (_, true) => (Status::Passing, self.rise),
            (_, false) => (Status::Critical, self.fall),
        };
        if self.against >= needed {
            (self.status, self.against) = (next, 0);
        }
        self.health() != before
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::CheckKind;

    fn check(rise: u32, fall: u32, initial: Initial) -> Check {
        Check { kind: CheckKind::Reported { ttl: Duration::from_secs(1) }, initial, rise, fall }
    }

    fn new(rise: u32, fall: u32) -> CheckState {
        CheckState::new(&check(rise, fall, Initial::Critical))
    }

    fn adopted(rise: u32, fall: u32) -> CheckState {
        CheckState::adopted(&check(rise, fall, Initial::Critical))
    }

    fn after(mut state: CheckState, probes: &str) -> Option<Health> {
        for probe in probes.chars() {
            state.observe(probe == '+');
        }
        state.health()
    }

    #[test]
    fn a_new_service_is_critical_and_passes_with_its_first_pass() {
        assert_eq!(after(new(3, 3), ""), Some(Health::Critical));
        assert_eq!(after(new(3, 3), "-"), Some(Health::Critical));
        assert_eq!(after(new(3, 3), "+"), Some(Health::Passing));
        assert_eq!(after(new(3, 3), "-----+"), Some(Health::Passing));
    }

    #[test]
    fn a_new_service_may_also_begin_as_passing_or_not_be_shown_until_its_checks_decide() {
        let passing = || CheckState::new(&check(3, 2, Initial::Passing));
        assert_eq!(after(passing(), ""), Some(Health::Passing));
        assert_eq!(after(passing(), "-"), Some(Health::Passing));
        assert_eq!(after(passing(), "--"), Some(Health::Critical));
        assert_eq!(after(passing(), "--++"), Some(Health::Critical), "from now on it takes rise passes");
        let undecided = || CheckState::new(&check(3, 2, Initial::Undecided));
        assert_eq!(after(undecided(), "-"), None);
        assert_eq!(after(undecided(), "--"), Some(Health::Critical));
        assert_eq!(after(undecided(), "+"), Some(Health::Passing));
        assert!(!undecided().is_adopted() && adopted(3, 2).is_adopted());
    }

    #[test]
    fn falling_takes_fall_failures_in_a_row() {
        assert_eq!(after(new(2, 3), "+--"), Some(Health::Passing));
        assert_eq!(after(new(2, 3), "+--+--"), Some(Health::Passing));
        assert_eq!(after(new(2, 3), "+---"), Some(Health::Critical));
        assert_eq!(after(new(2, 1), "+-"), Some(Health::Critical));
    }

    #[test]
    fn rising_again_takes_rise_passes_in_a_row() {
        assert_eq!(after(new(2, 1), "+-+"), Some(Health::Critical));
        assert_eq!(after(new(2, 1), "+-+-+"), Some(Health::Critical));
        assert_eq!(after(new(2, 1), "+-++"), Some(Health::Passing));
    }

    #[test]
    fn an_adopted_service_stays_as_it_was_until_its_checks_decide() {
        assert_eq!(after(adopted(2, 3), ""), None);
        assert_eq!(after(adopted(2, 3), "--"), None);
        assert_eq!(after(adopted(2, 3), "---"), Some(Health::Critical));
        assert_eq!(after(adopted(2, 3), "---+"), Some(Health::Critical));
        assert_eq!(after(adopted(2, 3), "--+"), Some(Health::Passing));
        assert_eq!(after(adopted(2, 3), "+"), Some(Health::Passing));
    }

    #[test]
    fn only_a_change_of_health_is_reported_as_one() {
        let mut state = adopted(1, 2);
        assert!(state.observe(true));
        assert!(!state.observe(true));
        assert!(!state.observe(false));
        assert!(state.observe(false));
        assert!(!state.observe(false));
        assert!(state.observe(true));
    }

    #[test]
    fn new_thresholds_keep_the_health_and_start_counting_anew() {
        let mut state = new(1, 2);
        state.observe(true);
        state.observe(false);
        state.set_thresholds(1, 2);
        assert!(!state.observe(false), "one failure under the new thresholds");
        assert!(state.observe(false));
    }
}
