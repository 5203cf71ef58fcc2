//! Asks a component, under a deadline and a memory limit, and checks its answer.

use std::time::{Duration, Instant};

use wasmtime::{Store, Trap, component::Func};

use crate::{
    engine::{Component, EXPORT, new_store},
    host::{Log, LogBudget, State, shown},
    limits::Limits,
    model::{Answer, Input, RawAnswer},
    ticker,
};

/// The largest priority.
pub const MAX_PRIORITY: u8 = 127;

/// What may be copied out of an instance by one call, beside what the nodes need: the text of a line or a reason.
const COPIED: usize = 1 << 20;
/// And for each node.
const COPIED_PER_NODE: usize = 64;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// It panicked, or did what no program may.
    #[error("the component trapped: {0}")]
    Trap(String),
    /// It took too long.
    #[error("the component gave no answer within {} ms", .0.as_millis())]
    Deadline(Duration),
    /// It wanted more memory than it may have.
    #[error("the component wanted more than its {} MiB of memory", .0 >> 20)]
    Memory(usize),
    /// It said that it does not answer.
    #[error("the component refused: {0}")]
    Refused(String),
    /// It answered what cannot be followed.
    #[error("the component's answer is no use: {0}")]
    Nonsense(Nonsense),
}

/// What is wrong with an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Nonsense {
    /// It is not one decision for each node.
    #[error("{decisions} decisions for {nodes} nodes")]
    Length {
        /// Nodes of the question.
        nodes: usize,
        /// Decisions of the answer.
        decisions: usize,
    },
    /// A priority is out of range.
    #[error("priority {priority} for {address}; 0 to {MAX_PRIORITY} are allowed")]
    Priority {
        /// The node.
        address: String,
        /// What was decided.
        priority: u8,
    },
    /// Nobody would get a request.
    #[error("none of the {pickable} nodes that may get requests has a weight above 0")]
    NoWeight {
        /// Nodes that may get requests.
        pickable: usize,
    },
}

impl RunError {
    /// A word for it, for metrics.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Trap(_) => "trap",
            Self::Deadline(_) => "deadline",
            Self::Memory(_) => "memory",
            Self::Refused(_) => "refused",
            Self::Nonsense(_) => "nonsense",
        }
    }
}

/// A component at work for one service. Its instance lives until something goes wrong with it.
#[derive(Debug)]
pub struct Runner {
    component: Component,
    limits: Limits,
    instance: Option<Instance>,
    budget: LogBudget,
    log: Log,
}

#[derive(Debug)]
struct Instance {
    store: Store<State>,
    weigh: Func,
}

impl Runner {
    /// Runs this component with its engine's limits.
    pub fn new(component: &Component) -> Self {
        Self::with_limits(component, component.engine().limits())
    }

    /// Runs this component with limits of its own.
    pub fn with_limits(component: &Component, limits: Limits) -> Self {
        let budget = LogBudget::full(Instant::now());
        Self { component: component.clone(), limits, instance: None, budget, log: Log::default() }
    }

    /// The component.
    pub fn component(&self) -> &Component {
        &self.component
    }

    /// Bytes of linear memory that its instance holds; 0 without one.
    pub fn memory(&self) -> usize {
        self.instance.as_ref().map_or(0, |instance| instance.store.data().meter.memory())
    }

    /// What the component wrote since this was last asked, whatever became of its answers.
    pub fn take_log(&mut self) -> Log {
        std::mem::take(&mut self.log)
    }

    /// Makes sure that there is an instance: what the first answer otherwise does first.
    ///
    /// # Errors
    /// As [`Self::weigh`].
    pub fn start(&mut self) -> Result<(), RunError> {
        let engine = self.component.engine().clone();
        let _time = engine.ticker().run();
        self.instance = Some(self.take_or_start()?);
        Ok(())
    }

    /// Asks, on this thread, and returns the checked answer. A node of weight 0 keeps that weight whatever was decided.
    ///
    /// # Errors
    /// [`RunError`]; the next question then goes to a fresh instance.
    pub fn weigh(&mut self, input: &Input) -> Result<Answer, RunError> {
        let engine = self.component.engine().clone();
        let _time = engine.ticker().run();
        let mut instance = self.take_or_start()?;
        instance.store.set_hostcall_fuel(COPIED + COPIED_PER_NODE * input.nodes.len());
        let outcome = self.ask(&mut instance, input);
        let State { budget, log, .. } = instance.store.data_mut();
        self.budget = *budget;
        self.log.lines.append(&mut log.lines);
        self.log.dropped += std::mem::take(&mut log.dropped);
        let answer = checked(outcome?.map_err(|reason| RunError::Refused(shown(&reason)))?, input)?;
        self.instance = Some(instance);
        Ok(answer)
    }

    /// The instance, with all of its time before it.
    fn take_or_start(&mut self) -> Result<Instance, RunError> {
        if let Some(mut instance) = self.instance.take() {
            instance.store.set_epoch_deadline(ticker::ticks(self.limits.deadline));
            return Ok(instance);
        }
        let mut store = new_store(self.component.engine(), self.limits, self.budget);
        let started = self.component.prepared().instantiate(&mut store);
        match started.map(|instance| instance.get_func(&mut store, EXPORT)) {
            Ok(Some(weigh)) => Ok(Instance { store, weigh }),
            // A component without it was refused when it was compiled.
            Ok(None) => Err(RunError::Trap("it exports no function `weigh`".to_owned())),
            Err(error) => Err(self.failure(&error, store.data())),
        }
    }

    fn ask(&self, instance: &mut Instance, input: &Input) -> Result<Result<RawAnswer, String>, RunError> {
        let Instance { store, weigh } = instance;
        let outcome = weigh
            .typed::<(&Input,), (Result<RawAnswer, String>,)>(&*store)
            .and_then(|weigh| weigh.call(&mut *store, (input,)));
        match outcome {
            Ok((answer,)) => Ok(answer),
            Err(error) => Err(self.failure(&error, store.data())),
        }
    }

    /// What an error of wasmtime's is. A program that is denied memory seldom says so: it traps.
    fn failure(&self, error: &wasmtime::Error, state: &State) -> RunError {
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => RunError::Deadline(self.limits.deadline),
            _ if state.meter.denied() => RunError::Memory(self.limits.memory),
            Some(trap) => RunError::Trap(trap.to_string().trim_start_matches("wasm trap: ").to_owned()),
            None => RunError::Trap(shown(&format!("{error:#}"))),
        }
    }
}

/// The answer, if it can be followed.
fn checked(answer: RawAnswer, input: &Input) -> Result<Answer, RunError> {
    let RawAnswer { mut decisions, ask_again_seconds } = answer;
    if decisions.len() != input.nodes.len() {
        let (nodes, decisions) = (input.nodes.len(), decisions.len());
        return Err(RunError::Nonsense(Nonsense::Length { nodes, decisions }));
    }
    let (mut pickable, mut left) = (0, false);
    for (node, decision) in input.nodes.iter().zip(&mut decisions) {
        if decision.priority > MAX_PRIORITY {
            let (address, priority) = (node.address.clone(), decision.priority);
            return Err(RunError::Nonsense(Nonsense::Priority { address, priority }));
        }
        if node.weight == 0 {
            decision.weight = 0;
        }
        if node.is_pickable() {
            pickable += 1;
            left |= decision.weight > 0;
        }
    }
    if pickable > 0 && !left {
        return Err(RunError::Nonsense(Nonsense::NoWeight { pickable }));
    }
    let ask_again = ask_again_seconds.map(|seconds| Duration::from_secs(seconds.max(1).into()));
    Ok(Answer { decisions, ask_again })
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::{
        host::{Level, Line},
        model::{Decision, Health},
        testing::{importing, input, weighing},
    };

    /// The log and the clocks, as a module imports them.
    const HOST: &str = "(import \"waypost:strategy/host@0.1.0\" \"log\" (func $log (param i32 i32 i32)))";

    /// What traps when there is one node, and answers otherwise.
    const TRAPS_ON_ONE: &str = "(if (i32.eq (local.get $nodes) (i32.const 1)) (then unreachable))
                                (call $answer (local.get $nodes) (i32.const 7) (i32.const 1))";

    fn uniform(nodes: usize, weight: u32, priority: u8) -> Answer {
        Answer { decisions: vec![Decision { weight, priority }; nodes], ask_again: None }
    }

    #[test]
    fn an_answer_has_a_decision_for_each_node_and_the_instance_is_kept() {
        let mut runner = Runner::new(&weighing("(call $answer (local.get $nodes) (i32.const 3) (i32.const 127))"));
        assert_eq!(runner.memory(), 0);
        assert_eq!(runner.weigh(&input(0)), Ok(uniform(0, 0, 0)));
        assert_eq!(runner.weigh(&input(1000)), Ok(uniform(1000, 3, 127)));
        // The module's allocator gives nothing back: a fresh instance would be smaller.
        let memory = runner.memory();
        assert!(memory > 2 << 16, "{memory}");
        assert_eq!(runner.weigh(&input(1000)), Ok(uniform(1000, 3, 127)));
        assert!(runner.memory() > memory);
    }

    #[test]
    fn a_node_without_weight_in_the_registry_keeps_none() {
        let mut runner = Runner::new(&weighing("(call $answer (local.get $nodes) (i32.const 3) (i32.const 0))"));
        let mut question = input(3);
        question.nodes[1].weight = 0;
        let weights: Vec<_> = runner.weigh(&question).unwrap().decisions.iter().map(|d| d.weight).collect();
        assert_eq!(weights, [3, 0, 3]);
    }

    #[test]
    fn an_endless_loop_is_ended_at_the_deadline() {
        let component = weighing("(loop $forever (br $forever)) unreachable");
        let limits = Limits { deadline: Duration::from_millis(50), ..Limits::default() };
        let mut runner = Runner::with_limits(&component, limits);
        for _ in 0..2 {
            let started = Instant::now();
            assert_eq!(runner.weigh(&input(1)), Err(RunError::Deadline(limits.deadline)));
            let took = started.elapsed();
            assert!(took >= limits.deadline && took < Duration::from_secs(5), "{took:?}");
        }
    }

    #[test]
    fn a_loop_in_the_start_of_an_instance_is_ended_too() {
        let component = importing(
            "",
            "(func $start (loop $forever (br $forever))) (start $start)
             (func (export \"weigh\") (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) unreachable)",
        );
        let mut runner = Runner::new(&component);
        assert_eq!(runner.start(), Err(RunError::Deadline(Limits::default().deadline)));
    }

    #[test]
    fn allocating_without_end_ends_at_the_memory_limit() {
        let body = "(loop $more (drop (call $allocate (i32.const 0) (i32.const 0) (i32.const 8) (i32.const 65536)))
                        (br $more))
                    unreachable";
        let component = weighing(body);
        let limits = Limits { memory: 8 << 20, deadline: Duration::from_secs(20), ..Limits::default() };
        assert_eq!(Runner::with_limits(&component, limits).weigh(&input(1)), Err(RunError::Memory(8 << 20)));
        // What does not fit from the beginning is not even started.
        let limits = Limits { memory: 1000, ..limits };
        assert_eq!(Runner::with_limits(&component, limits).start(), Err(RunError::Memory(1000)));
    }

    #[test]
    fn a_table_without_end_is_limited_too() {
        let component = importing(
            "",
            "(table $table 1 funcref)
             (func (export \"weigh\") (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
                (loop $more
                    (br_if $more (i32.ne (table.grow $table (ref.null func) (i32.const 1000)) (i32.const -1))))
                unreachable)",
        );
        assert!(matches!(Runner::new(&component).weigh(&input(1)), Err(RunError::Memory(_))));
    }

    #[test]
    fn recursion_without_end_traps() {
        let component = importing(
            "",
            "(func $deeper (export \"weigh\") (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
                (i32.add (i32.const 1) (call $deeper (local.get 0) (local.get 1) (local.get 2) (local.get 3)
                    (local.get 4) (local.get 5) (local.get 6) (local.get 7) (local.get 8) (local.get 9))))",
        );
        let error = Runner::new(&component).weigh(&input(1)).unwrap_err();
        assert_eq!(error, RunError::Trap("call stack exhausted".to_owned()));
    }

    #[test]
    fn after_a_trap_the_next_question_goes_to_a_fresh_instance() {
        let mut runner = Runner::new(&weighing(TRAPS_ON_ONE));
        assert_eq!(runner.weigh(&input(2000)), Ok(uniform(2000, 7, 1)));
        let large = runner.memory();
        let error = runner.weigh(&input(1)).unwrap_err();
        assert_eq!(error, RunError::Trap("wasm `unreachable` instruction executed".to_owned()));
        assert_eq!((error.kind(), runner.memory()), ("trap", 0));
        assert_eq!(runner.weigh(&input(2)), Ok(uniform(2, 7, 1)));
        assert!(runner.memory() < large, "it is a fresh one");
    }

    #[test]
    fn an_answer_that_cannot_be_followed_is_refused() {
        let nonsense = |count, weight, priority, question: &Input| {
            let body = format!("(call $answer (i32.const {count}) (i32.const {weight}) (i32.const {priority}))");
            match Runner::new(&weighing(&body)).weigh(question) {
                Err(RunError::Nonsense(nonsense)) => nonsense,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(nonsense(2, 1, 0, &input(3)), Nonsense::Length { nodes: 3, decisions: 2 });
        assert_eq!(nonsense(4, 1, 0, &input(3)), Nonsense::Length { nodes: 3, decisions: 4 });
        let address = "10.0.0.0:8080".to_owned();
        assert_eq!(nonsense(3, 1, 128, &input(3)), Nonsense::Priority { address, priority: 128 });
        let mut question = input(3);
        question.nodes[0].health = Health::Critical;
        assert_eq!(nonsense(3, 0, 0, &question), Nonsense::NoWeight { pickable: 2 });
    }

    #[test]
    fn weight_for_none_is_an_answer_when_no_node_may_get_requests() {
        let mut question = input(2);
        question.nodes[0].health = Health::Draining;
        question.nodes[1].weight = 0;
        let mut runner = Runner::new(&weighing("(call $answer (i32.const 2) (i32.const 0) (i32.const 0))"));
        assert_eq!(runner.weigh(&question), Ok(uniform(2, 0, 0)));
    }

    #[test]
    fn an_answer_larger_than_any_question_is_not_even_copied() {
        let mut runner = Runner::new(&weighing("(call $answer (i32.const 1000000) (i32.const 1) (i32.const 0))"));
        assert!(matches!(runner.weigh(&input(1)), Err(RunError::Trap(_) | RunError::Nonsense(_))));
    }

    #[test]
    fn a_refusal_has_its_reason() {
        let body = "(i32.store8 (i32.const 16) (i32.const 1)) (i32.store (i32.const 20) (i32.const 40))
                    (i32.store (i32.const 24) (i32.const 13)) (i32.const 16)";
        let component =
            importing("", &format!("(data (i32.const 40) \"no \\1b[1mfields\") {} {body})", crate::testing::WEIGH));
        let error = Runner::new(&component).weigh(&input(1)).unwrap_err();
        assert_eq!(error, RunError::Refused("no  [1mfields".to_owned()));
    }

    #[test]
    fn what_is_written_to_the_log_is_limited_and_survives_a_trap() {
        let body = "(loop $more
                        (call $log (i32.const 2) (i32.const 40) (i32.const 6))
                        (global.set $lines (i32.add (global.get $lines) (i32.const 1)))
                        (br_if $more (i32.lt_u (global.get $lines) (i32.const 1000))))
                    unreachable";
        let data = "(global $lines (mut i32) (i32.const 0)) (data (i32.const 40) \"fields\")";
        let component = importing(HOST, &format!("{data} {} {body})", crate::testing::WEIGH));
        let mut runner = Runner::new(&component);
        assert!(matches!(runner.weigh(&input(1)), Err(RunError::Trap(_))));
        let log = runner.take_log();
        assert_eq!(log.lines[19], Line { level: Level::Warning, message: "fields".to_owned() });
        assert!(log.lines.len() <= 22 && log.lines.len() as u64 + log.dropped == 1000, "{log:?}");
        // A fresh instance has no fresh budget.
        assert!(matches!(runner.weigh(&input(1)), Err(RunError::Trap(_))));
        assert!(runner.take_log().lines.len() <= 3);
        assert_eq!(runner.take_log(), Log::default());
    }

    #[test]
    fn runners_on_many_threads_keep_out_of_each_others_way() {
        let looping = weighing("(loop $forever (br $forever)) unreachable");
        let answering = weighing("(call $answer (local.get $nodes) (i32.const 1) (i32.const 0))");
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert!(matches!(Runner::new(&looping).weigh(&input(9)), Err(RunError::Deadline(_)))));
                scope.spawn(|| {
                    let limits = Limits { deadline: Duration::from_secs(20), ..Limits::default() };
                    let mut runner = Runner::with_limits(&answering, limits);
                    (0..100).for_each(|_| assert_eq!(runner.weigh(&input(9)), Ok(uniform(9, 1, 0))));
                });
            }
        });
    }
}
