//! The components that policies name: each compiled once, the last good one kept, a replaced one noticed.
//!
//! It belongs to whoever runs the strategies. Everything blocks: it reads files, and compiles.

use std::{collections::BTreeMap, fmt};

use crate::{
    directory::{Directory, Stamp},
    engine::{Component, Engine, LoadError},
    hash::Hash,
};

/// How a policy names a component.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// The file `NAME.wasm` of the agent's directory, whatever it holds now.
    Name(String),
    /// The one of this content.
    Sha256(Hash),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Sha256(hash) => write!(f, "sha256:{hash}"),
        }
    }
}

/// What came of a reference.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The component to run: the newest one that could be compiled.
    pub component: Option<Component>,
    /// Why that is not the one that is named now.
    pub problem: Option<LoadError>,
    stamp: Option<Stamp>,
}

impl Loaded {
    /// Whether anybody who knew the other would do or say something else now.
    fn differs(&self, other: &Self) -> bool {
        let hash = |loaded: &Self| loaded.component.as_ref().map(Component::hash);
        hash(self) != hash(other) || self.problem != other.problem
    }
}

/// The components that policies name.
#[derive(Debug)]
pub struct Strategies {
    engine: Engine,
    directory: Option<Directory>,
    loaded: BTreeMap<Reference, Loaded>,
}

impl Strategies {
    /// None so far. Without a directory, every name is one that is not there.
    pub fn new(engine: Engine, directory: Option<Directory>) -> Self {
        Self { engine, directory, loaded: BTreeMap::new() }
    }

    /// The component of a reference: loaded with the first call, and from then on as [`Self::refresh`] and
    /// [`Self::offer`] left it.
    pub fn get(&mut self, reference: &Reference) -> &Loaded {
        if !self.loaded.contains_key(reference) {
            let loaded = match reference {
                Reference::Name(name) => self.reload(name, &Loaded::default()).unwrap_or_default(),
                Reference::Sha256(_) => {
                    let problem = Some(LoadError::NotThere(reference.to_string()));
                    Loaded { problem, ..Loaded::default() }
                }
            };
            self.loaded.insert(reference.clone(), loaded);
        }
        // It was put there above.
        self.loaded.entry(reference.clone()).or_default()
    }

    /// Hands over the bytes of a component that is named by its content hash, as they were found in etcd. True if that
    /// changes what [`Self::get`] says.
    pub fn offer(&mut self, hash: Hash, bytes: &[u8]) -> bool {
        let reference = Reference::Sha256(hash);
        let known = self.loaded.get(&reference);
        if known.is_some_and(|known| known.component.is_some()) {
            // The same hash is the same component.
            return false;
        }
        let found = Hash::of(bytes);
        let compiled = match found == hash {
            true => self.compile(hash, bytes),
            false => Err(LoadError::WrongHash { wanted: hash, found }),
        };
        let next = match compiled {
            Ok(component) => Loaded { component: Some(component), ..Loaded::default() },
            Err(problem) => Loaded { problem: Some(problem), ..Loaded::default() },
        };
        let changed = known.is_none_or(|known| next.differs(known));
        self.loaded.insert(reference, next);
        changed
    }

    /// Looks at the files of all names that were asked for, and loads those that were replaced. Returns the references
    /// of which [`Self::get`] says something else now. Without changes it costs one `stat` a name.
    pub fn refresh(&mut self) -> Vec<Reference> {
        let mut changed = Vec::new();
        let names: Vec<String> = self
            .loaded
            .keys()
            .filter_map(|reference| match reference {
                Reference::Name(name) => Some(name.clone()),
                Reference::Sha256(_) => None,
            })
            .collect();
        for name in names {
            let reference = Reference::Name(name);
            let (Reference::Name(name), Some(known)) = (&reference, self.loaded.get(&reference)) else { continue };
            if let Some(next) = self.reload(name, known) {
                let differs = next.differs(known);
                self.loaded.insert(reference.clone(), next);
                changed.extend(differs.then_some(reference));
            }
        }
        changed
    }

    /// Forgets all others: no policy names them any more.
    pub fn retain(&mut self, wanted: impl Fn(&Reference) -> bool) {
        self.loaded.retain(|reference, _| wanted(reference));
    }

    /// What a name's file says now; `None` if it is the one that is known.
    fn reload(&self, name: &str, known: &Loaded) -> Option<Loaded> {
        let Some(directory) = &self.directory else {
            let problem = Some(LoadError::NotThere(format!("a directory of components, for {name},")));
            return Some(Loaded { problem, ..Loaded::default() });
        };
        let stamp = directory.stamp(name);
        if stamp.is_some() && stamp == known.stamp {
            return None;
        }
        let (stamp, outcome) = match directory.read(name, self.engine.limits().component) {
            Ok((bytes, stamp)) => (Some(stamp), self.compile(Hash::of(&bytes), &bytes)),
            Err(problem) => (stamp, Err(problem)),
        };
        Some(match outcome {
            Ok(component) => Loaded { component: Some(component), problem: None, stamp },
            Err(problem) => Loaded { component: known.component.clone(), problem: Some(problem), stamp },
        })
    }

    /// Compiles what is not known by another reference.
    fn compile(&self, hash: Hash, bytes: &[u8]) -> Result<Component, LoadError> {
        let mut known = self.loaded.values().filter_map(|loaded| loaded.component.as_ref());
        match known.find(|component| component.hash() == hash) {
            Some(component) => Ok(component.clone()),
            None => self.engine.compile(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        Runner,
        testing::{ENGINE, WEIGH, component, input},
    };

    /// A component that decides on this weight.
    fn of_weight(weight: u32) -> Vec<u8> {
        component(&format!("{WEIGH} (call $answer (local.get $nodes) (i32.const {weight}) (i32.const 0)))"))
    }

    fn weight(loaded: &Loaded) -> u32 {
        Runner::new(loaded.component.as_ref().unwrap()).weigh(&input(1)).unwrap().decisions[0].weight
    }

    #[test]
    fn a_replaced_file_takes_effect_and_the_last_good_one_stays_when_it_is_bad() {
        let folder = tempfile::tempdir().unwrap();
        let put = |bytes: &[u8]| fs::write(folder.path().join("mine.wasm"), bytes).unwrap();
        let mut strategies = Strategies::new(ENGINE.clone(), Some(Directory::new(folder.path())));
        let mine = Reference::Name("mine".to_owned());
        let changed = vec![mine.clone()];

        assert!(matches!(strategies.get(&mine), Loaded { component: None, problem: Some(LoadError::NotThere(_)), .. }));
        assert_eq!(strategies.refresh(), []);
        put(&of_weight(1));
        assert_eq!(strategies.refresh(), changed);
        assert_eq!(weight(strategies.get(&mine)), 1);
        assert_eq!(strategies.refresh(), []);

        put(b"half written");
        assert_eq!(strategies.refresh(), changed);
        assert_eq!(strategies.get(&mine).problem, Some(LoadError::NotWasm));
        assert_eq!(weight(strategies.get(&mine)), 1);
        assert_eq!(strategies.refresh(), []);

        put(&of_weight(22));
        assert_eq!(strategies.refresh(), changed);
        assert_eq!((weight(strategies.get(&mine)), &strategies.get(&mine).problem), (22, &None));

        fs::remove_file(folder.path().join("mine.wasm")).unwrap();
        assert_eq!(strategies.refresh(), changed);
        assert!(matches!(strategies.get(&mine).problem, Some(LoadError::NotThere(_))));
        assert_eq!(weight(strategies.get(&mine)), 22);

        // The same content again, as a new file: nobody needs to do anything but forget the problem.
        put(&of_weight(22));
        assert_eq!(strategies.refresh(), changed);
        put(&of_weight(22));
        assert_eq!(strategies.refresh(), []);

        strategies.retain(|_| false);
        put(&of_weight(3));
        assert_eq!(strategies.refresh(), []);
        assert_eq!(weight(strategies.get(&mine)), 3);
    }

    #[test]
    fn a_component_named_by_its_hash_is_the_one_of_that_hash_only() {
        let mut strategies = Strategies::new(ENGINE.clone(), None);
        let bytes = of_weight(4);
        let hash = Hash::of(&bytes);
        let named = Reference::Sha256(hash);
        assert!(matches!(strategies.get(&named).problem, Some(LoadError::NotThere(_))));
        assert!(strategies.offer(hash, b"something else"));
        assert!(matches!(strategies.get(&named).problem, Some(LoadError::WrongHash { .. })));
        assert!(strategies.offer(hash, &bytes));
        assert_eq!(weight(strategies.get(&named)), 4);
        assert!(!strategies.offer(hash, b"something else"));
        assert_eq!(weight(strategies.get(&named)), 4);
    }

    #[test]
    fn without_a_directory_no_name_is_there() {
        let mut strategies = Strategies::new(ENGINE.clone(), None);
        let problem = strategies.get(&Reference::Name("mine".to_owned())).problem.clone().unwrap();
        assert_eq!(problem.to_string(), "a directory of components, for mine, is not there");
        assert_eq!(strategies.refresh(), []);
    }
}
