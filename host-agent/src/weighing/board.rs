//! How the strategy components are, for status and metrics.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use waypost_catalog::ServiceName;

/// How a service's component is.
#[derive(Clone, Debug, PartialEq)]
pub struct ComponentState {
    /// Which one, as the policy names it.
    pub component: String,
    /// Why it does not work now; none: its last answer was good.
    pub problem: Option<String>,
    /// Answers so far.
    pub answers: u64,
    /// Failures so far.
    pub failures: u64,
    /// When it last gave a good answer.
    pub last_good: Option<Instant>,
    /// How long its last answer took.
    pub took: Duration,
    /// Bytes of memory that its instance holds.
    pub memory: usize,
}

/// How all of them are.
#[derive(Debug, Default)]
pub struct Board {
    states: Mutex<BTreeMap<ServiceName, ComponentState>>,
}

impl Board {
    /// By service.
    pub fn states(&self) -> BTreeMap<ServiceName, ComponentState> {
        self.lock().clone()
    }

    pub(super) fn answered(&self, service: &ServiceName, component: &str, took: Duration, memory: usize, now: Instant) {
        let mut states = self.lock();
        let state = of(&mut states, service, component);
        state.answers += 1;
        state.problem = None;
        state.last_good = Some(now);
        (state.took, state.memory) = (took, memory);
    }

    /// Whether that was not known yet.
    pub(super) fn failed(&self, service: &ServiceName, component: &str, problem: String) -> bool {
        let mut states = self.lock();
        let state = of(&mut states, service, component);
        state.failures += 1;
        let new = state.problem.as_ref() != Some(&problem);
        state.problem = Some(problem);
        new
    }

    pub(super) fn remove(&self, service: &ServiceName) {
        self.lock().remove(service);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceName, ComponentState>> {
        // Every change is whole before the lock is let go of.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of<'a>(
    states: &'a mut BTreeMap<ServiceName, ComponentState>,
    service: &ServiceName,
    component: &str,
) -> &'a mut ComponentState {
    let state = states.entry(service.clone()).or_insert_with(|| ComponentState {
        component: component.to_owned(),
        problem: None,
        answers: 0,
        failures: 0,
        last_good: None,
        took: Duration::ZERO,
        memory: 0,
    });
    if state.component != component {
        component.clone_into(&mut state.component);
    }
    state
}
