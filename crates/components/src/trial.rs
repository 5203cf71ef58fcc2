//! A component tried by hand: asked several times, with what that took.

use std::time::{Duration, Instant};

use crate::{
    engine::{Engine, LoadError},
    hash::Hash,
    host::Log,
    model::{Answer, Input},
    runner::{RunError, Runner},
};

/// What came of a trial.
#[derive(Clone, Debug)]
pub struct Report {
    /// The component's content hash.
    pub hash: Hash,
    /// Its size in bytes.
    pub bytes: usize,
    /// How long it took to compile it.
    pub compiled_in: Duration,
    /// How long it took to start an instance.
    pub started_in: Duration,
    /// How long each answer took, in their order.
    pub took: Vec<Duration>,
    /// Bytes of memory that the instance holds in the end.
    pub memory: usize,
    /// What it wrote, in all runs.
    pub log: Log,
    /// Its last answer, or why there is none: then that was the last run.
    pub outcome: Result<Answer, RunError>,
}

/// Compiles a component and asks it so many times, once at least. Every question tells what the one before decided, as
/// the agent's questions do.
///
/// # Errors
/// [`LoadError`] if it cannot be asked at all.
pub fn run(engine: &Engine, bytes: &[u8], mut input: Input, runs: usize) -> Result<Report, LoadError> {
    let component = engine.compile(bytes)?;
    let mut runner = Runner::new(&component);
    let started = Instant::now();
    let start = runner.start();
    let started_in = started.elapsed();
    let mut took = Vec::new();
    let mut ask = || {
        let started = Instant::now();
        let outcome = runner.weigh(&input);
        took.push(started.elapsed());
        if let Ok(answer) = &outcome {
            for (node, decision) in input.nodes.iter_mut().zip(&answer.decisions) {
                node.previous = Some(*decision);
            }
        }
        outcome
    };
    let outcome = start.and_then(|()| (1..runs).try_fold(ask()?, |_, _| ask()));
    let (memory, log) = (runner.memory(), runner.take_log());
    let (hash, bytes, compiled_in) = (component.hash(), component.bytes(), component.compiled_in());
    Ok(Report { hash, bytes, compiled_in, started_in, took, memory, log, outcome })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ENGINE, WEIGH, component, input};

    #[test]
    fn a_trial_asks_as_often_as_it_should_and_ends_with_a_failure() {
        // The third answer is a trap.
        let bytes = component(&format!(
            "(global $asked (mut i32) (i32.const 0))
             {WEIGH}
                (global.set $asked (i32.add (global.get $asked) (i32.const 1)))
                (if (i32.eq (global.get $asked) (i32.const 3)) (then unreachable))
                (call $answer (local.get $nodes) (global.get $asked) (i32.const 0)))"
        ));
        let report = run(&ENGINE, &bytes, input(5), 2).unwrap();
        let answer = report.outcome.unwrap();
        assert_eq!((report.took.len(), answer.decisions.len(), answer.decisions[4].weight), (2, 5, 2));
        assert_eq!((report.hash, report.bytes), (Hash::of(&bytes), bytes.len()));
        assert!(report.memory >= 1 << 16);

        let report = run(&ENGINE, &bytes, input(5), 10).unwrap();
        assert!(matches!(report.outcome, Err(RunError::Trap(_))));
        assert_eq!((report.took.len(), report.memory), (3, 0));
        assert_eq!(run(&ENGINE, &bytes, input(5), 0).unwrap().took.len(), 1);
    }
}
