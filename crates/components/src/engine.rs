//! Compiles components, and refuses what does not keep to the contract.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use wasmtime::{
    Config, Store,
    component::{InstancePre, Linker, types::ComponentItem},
};

use crate::{
    hash::Hash,
    host::{self, IMPORTS, Log, LogBudget, Meter, State, VERSION},
    limits::Limits,
    model::{Input, RawAnswer},
    ticker::{self, Ticker},
};

/// What every component exports.
pub(crate) const EXPORT: &str = "weigh";

/// What components are compiled and run with. Clones are the same engine; its clock ends with the last of them and of
/// its components.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    wasmtime: wasmtime::Engine,
    linker: Linker<State>,
    ticker: Ticker,
    limits: Limits,
}

/// A compiled component that keeps to the contract. Clones share the code.
#[derive(Clone)]
pub struct Component {
    engine: Engine,
    prepared: InstancePre<State>,
    hash: Hash,
    bytes: usize,
    compiled_in: Duration,
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
#[error("components cannot be run here: {0}")]
pub struct EngineError(String);

/// Why there is no component.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// It is larger than allowed.
    #[error("the component has {bytes} bytes; at most {limit} are allowed")]
    TooLarge {
        /// What it has.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The bytes are something else.
    #[error("this is no WebAssembly")]
    NotWasm,
    /// It is WebAssembly, but not yet a component.
    #[error("this is a core module, not yet a component; `waypost strategy pack` makes it one")]
    CoreModule,
    /// It is damaged, or uses what is not supported.
    #[error("the component cannot be compiled: {0}")]
    Invalid(String),
    /// It wants what no strategy gets.
    #[error(
        "the component imports {}, which no strategy gets; allowed are {} and {} of version {VERSION}",
        .0.join(", "), IMPORTS[0], IMPORTS[1]
    )]
    ForeignImports(
        /// What it wants, by name.
        Vec<String>,
    ),
    /// It was made for another contract.
    #[error("the component does not keep to waypost:strategy@{VERSION}: {0}")]
    WrongWorld(String),
    /// There is none of that name, or none of that hash was handed over.
    #[error("{0} is not there")]
    NotThere(String),
    /// The file cannot be read.
    #[error("{path}: {reason}")]
    Unreadable {
        /// The file.
        path: String,
        /// The system's word.
        reason: String,
    },
    /// It has another hash than it should have.
    #[error("the component's SHA-256 is {found}, not {wanted}")]
    WrongHash {
        /// What it should have.
        wanted: Hash,
        /// What it has.
        found: Hash,
    },
}

impl Engine {
    /// An engine whose components have these limits, unless their runner has others. Starts a thread.
    ///
    /// # Errors
    /// [`EngineError`] if this machine is none that code can be compiled for, or no thread can be started.
    pub fn new(limits: Limits) -> Result<Self, EngineError> {
        let mut config = Config::new();
        config.epoch_interruption(true);
        let failed = |error: &dyn fmt::Display| EngineError(error.to_string());
        let wasmtime = wasmtime::Engine::new(&config).map_err(|error| failed(&error))?;
        let mut linker = Linker::new(&wasmtime);
        host::provide(&mut linker).map_err(|error| failed(&error))?;
        let ticker = Ticker::start(wasmtime.clone()).map_err(|error| failed(&error))?;
        Ok(Self(Arc::new(Inner { wasmtime, linker, ticker, limits })))
    }

    /// Its limits.
    pub fn limits(&self) -> Limits {
        self.0.limits
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.0.wasmtime
    }

    pub(crate) fn ticker(&self) -> &Ticker {
        &self.0.ticker
    }

    /// Compiles a component and makes sure that it keeps to the contract. Takes a few milliseconds for each 10 kB, on
    /// one thread.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn compile(&self, bytes: &[u8]) -> Result<Component, LoadError> {
        let limit = self.0.limits.component;
        if bytes.len() > limit {
            return Err(LoadError::TooLarge { bytes: bytes.len(), limit });
        }
        match kind(bytes) {
            Kind::Component => {}
            Kind::CoreModule => return Err(LoadError::CoreModule),
            Kind::Other => return Err(LoadError::NotWasm),
        }
        let started = Instant::now();
        let component = wasmtime::component::Component::from_binary(&self.0.wasmtime, bytes)
            .map_err(|error| LoadError::Invalid(format!("{error:#}")))?;
        self.check_names(&component)?;
        let prepared =
            self.0.linker.instantiate_pre(&component).map_err(|error| LoadError::WrongWorld(format!("{error:#}")))?;
        self.check_types(&prepared)?;
        let compiled_in = started.elapsed();
        Ok(Component { engine: self.clone(), prepared, hash: Hash::of(bytes), bytes: bytes.len(), compiled_in })
    }

    /// The types of an export can be compared in an instance only. One that cannot be started is left to the runner,
    /// which says why.
    fn check_types(&self, prepared: &InstancePre<State>) -> Result<(), LoadError> {
        let _time = self.0.ticker.run();
        let mut store = new_store(self, self.0.limits, LogBudget::full(Instant::now()));
        let Ok(instance) = prepared.instantiate(&mut store) else { return Ok(()) };
        let checked = instance.get_typed_func::<(&Input,), (Result<RawAnswer, String>,)>(&mut store, EXPORT);
        checked.map(|_| ()).map_err(|error| LoadError::WrongWorld(format!("{error:#}")))
    }

    /// Imports and exports by name; that the imports' types fit is seen when it is linked.
    fn check_names(&self, component: &wasmtime::component::Component) -> Result<(), LoadError> {
        let described = component.component_type();
        let mut foreign = Vec::new();
        let mut other_versions = Vec::new();
        for (name, _) in described.imports(&self.0.wasmtime) {
            match name.split_once('@') {
                Some((interface, version)) if IMPORTS.contains(&interface) => {
                    if !compatible(version) {
                        other_versions.push(name.to_owned());
                    }
                }
                _ => foreign.push(name.to_owned()),
            }
        }
        if !foreign.is_empty() {
            return Err(LoadError::ForeignImports(foreign));
        }
        if !other_versions.is_empty() {
            return Err(LoadError::WrongWorld(format!("it was made for {}", other_versions.join(", "))));
        }
        match described.get_export(&self.0.wasmtime, EXPORT).map(|export| export.ty) {
            Some(ComponentItem::ComponentFunc(_)) => Ok(()),
            Some(_) => Err(LoadError::WrongWorld("its export `weigh` is no function".to_owned())),
            None => Err(LoadError::WrongWorld("it exports no function `weigh`".to_owned())),
        }
    }
}

/// A store without an instance, with all of its time before it.
pub(crate) fn new_store(engine: &Engine, limits: Limits, budget: LogBudget) -> Store<State> {
    let state = State { meter: Meter::new(limits.memory), budget, log: Log::default() };
    let mut store = Store::new(engine.wasmtime(), state);
    store.limiter(|state| &mut state.meter);
    store.set_epoch_deadline(ticker::ticks(limits.deadline));
    store
}

/// Whether a contract of this version is kept by ours: before 1.0 the second number tells.
fn compatible(version: &str) -> bool {
    let series = |version: &str| version.rsplit_once('.').map(|(series, _)| series.to_owned());
    series(version) == series(VERSION)
}

pub(crate) enum Kind {
    Component,
    CoreModule,
    Other,
}

/// What the first bytes say.
pub(crate) fn kind(bytes: &[u8]) -> Kind {
    match bytes.get(..8) {
        Some([0, b'a', b's', b'm', 1, 0, 0, 0]) => Kind::CoreModule,
        Some([0, b'a', b's', b'm', ..]) => Kind::Component,
        _ => Kind::Other,
    }
}

impl Component {
    /// Its content hash.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How long it took to compile it.
    pub fn compiled_in(&self) -> Duration {
        self.compiled_in
    }

    /// The engine that it was compiled by.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn prepared(&self) -> &InstancePre<State> {
        &self.prepared
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("limits", &self.0.limits).finish_non_exhaustive()
    }
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hash, bytes, .. } = self;
        f.debug_struct("Component").field("hash", hash).field("bytes", bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ENGINE, component, input, weighing};

    fn refused(text: &str) -> LoadError {
        ENGINE.compile(&wat::parse_str(text).unwrap()).unwrap_err()
    }

    #[test]
    fn what_is_no_component_is_told_apart() {
        assert_eq!(ENGINE.compile(b"").unwrap_err(), LoadError::NotWasm);
        assert_eq!(ENGINE.compile(b"#!/usr/bin/python3\n").unwrap_err(), LoadError::NotWasm);
        assert_eq!(refused("(module)"), LoadError::CoreModule);
        let mut damaged = component(&format!("{} unreachable)", crate::testing::WEIGH));
        damaged.truncate(damaged.len() / 2);
        assert!(matches!(ENGINE.compile(&damaged), Err(LoadError::Invalid(_))));
        let small = Engine::new(Limits { component: 10, ..Limits::default() }).unwrap();
        let error = small.compile(&damaged).unwrap_err();
        assert_eq!(error, LoadError::TooLarge { bytes: damaged.len(), limit: 10 });
    }

    #[test]
    fn every_foreign_import_is_named() {
        let text = "(component
            (import \"wasi:cli/environment@0.2.6\" (instance))
            (import \"waypost:strategy/types@0.1.0\" (instance))
            (import \"waypost:strategy/files@0.1.0\" (instance))
            (import \"open\" (func)))";
        let error = refused(text);
        assert!(error.to_string().starts_with(
            "the component imports wasi:cli/environment@0.2.6, waypost:strategy/files@0.1.0, open, which no strategy gets"
        ), "{error}");
    }

    #[test]
    fn another_version_of_the_contract_is_named() {
        let error = refused("(component (import \"waypost:strategy/host@0.2.0\" (instance)))");
        let text = "the component does not keep to waypost:strategy@0.1.0: it was made for waypost:strategy/host@0.2.0";
        assert_eq!(error.to_string(), text);
        assert!(compatible("0.1.7") && !compatible("1.1.0") && !compatible("0.1") && !compatible(""));
    }

    #[test]
    fn a_component_of_another_world_is_refused_when_it_is_loaded() {
        assert!(refused("(component)").to_string().ends_with("it exports no function `weigh`"));
        let instance = refused("(component (instance $i) (export \"weigh\" (instance $i)))");
        assert!(instance.to_string().ends_with("its export `weigh` is no function"), "{instance}");
        let other_type = refused(
            "(component
                (core module $m (func (export \"weigh\") (result i32) (i32.const 0)))
                (core instance $i (instantiate $m))
                (func (export \"weigh\") (result u32) (canon lift (core func $i \"weigh\"))))",
        );
        assert!(matches!(other_type, LoadError::WrongWorld(_)), "{other_type}");
        let unknown_function =
            refused("(component (import \"waypost:strategy/host@0.1.0\" (instance (export \"open\" (func)))))");
        assert!(matches!(unknown_function, LoadError::WrongWorld(_)), "{unknown_function}");
    }

    #[test]
    fn the_clock_of_an_engine_ends_with_its_last_component() {
        let engine = Engine::new(Limits::default()).unwrap();
        let compiled = engine.compile(&component(&format!("{} unreachable)", crate::testing::WEIGH))).unwrap();
        drop(engine);
        let error = crate::Runner::new(&compiled).weigh(&input(1)).unwrap_err();
        assert_eq!(error.kind(), "trap");
        drop(compiled);
    }

    #[test]
    fn a_component_knows_its_content() {
        let bytes = component(&format!("{} unreachable)", crate::testing::WEIGH));
        let compiled = weighing("unreachable");
        assert_eq!((compiled.hash(), compiled.bytes()), (Hash::of(&bytes), bytes.len()));
        assert!(compiled.compiled_in() > Duration::ZERO);
    }
}
