//! The services that a VM knows, their policies and the routes to them: the catalog's copy, made ready for picking.

use std::{collections::HashMap, rc::Rc, time::Duration};

use fastrand::Rng;
use waypost_catalog::{
    Replica,
    replica::Applied,
    wire::{Report, WireError, server_message::Kind},
};
use waypost_policy::{Compiled, Route, RouteTable};

use crate::{outcomes::Ledgers, service::Service};

/// Hash tables on which a tick spends time, however many there are to be built: it must not hold up requests.
const TABLES_PER_TICK: usize = 2;

/// The catalog's copy, and each service that was asked for.
///
/// A service is made ready with the first pick after it changed, not with the change: then a worker pays only for the
/// services whose requests it sees, and a burst of changes costs one build instead of many. Either way the work is done
/// by the same thread, so building early would not make anything faster for a request.
#[derive(Debug)]
pub struct Services {
    replica: Replica,
    ready: HashMap<Box<str>, Ready>,
    routes: Rc<RouteTable>,
    ledgers: Ledgers,
    /// Of services that have none.
    no_policy: Rc<Compiled>,
    /// Decides where selectors begin, so that workers do not march in step, and what is drawn for each request.
    rng: Rng,
    /// Whether what becomes of requests is heard of.
    outcomes_known: bool,
    unreadable: u64,
}

#[derive(Debug)]
struct Ready {
    service: Service,
    /// The catalog has changed since.
    stale: bool,
}

impl Services {
    /// Starts from `replica`.
    pub fn new(replica: Replica, seed: u64, outcomes_known: bool) -> Self {
        let mut this = Self {
            replica,
            ready: HashMap::new(),
            routes: Rc::default(),
            ledgers: Ledgers::default(),
            no_policy: Rc::default(),
            rng: Rng::with_seed(seed),
            outcomes_known,
            unreadable: 0,
        };
        this.read_routes();
        this
    }

    /// The catalog's copy.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// The routes.
    pub fn routes(&self) -> Rc<RouteTable> {
        Rc::clone(&self.routes)
    }

    /// Policies and routes that could not be read since the last call: of a newer agent.
    pub fn take_unreadable(&mut self) -> u64 {
        std::mem::take(&mut self.unreadable)
    }

    /// A new stream begins: versions of the old one no longer count.
    pub fn stream_restarted(&mut self) {
        self.replica.stream_restarted();
    }

    /// A message of the stream could not be read.
    pub fn message_lost(&mut self) {
        self.replica.message_lost();
    }

    /// Applies a message of the stream.
    ///
    /// # Errors
    /// As [`Replica::apply`]; what was made ready stays as it is until the copy is right again.
    pub fn apply(&mut self, message: Kind) -> Result<Applied, WireError> {
        let applied = self.replica.apply(message)?;
        if let Applied::Changed { services, routes, .. } = &applied {
            let known = self.replica.services();
            for name in services {
                if !known.contains_key(name) {
                    self.ready.remove(name);
                } else if let Some(ready) = self.ready.get_mut(name) {
                    ready.stale = true;
                }
            }
            self.ledgers.retain(|name| known.contains_key(name));
            if *routes {
                self.read_routes();
            }
        }
        Ok(applied)
    }

    /// A service, ready to be picked from, and the randomness to do so; `None` if the catalog does not hold it.
    pub fn get(&mut self, name: &str, now: Duration) -> Option<(&mut Service, &mut Rng)> {
        // Two look-ups: the borrow checker lets none return early that is made anew otherwise.
        if self.ready.get(name).is_none_or(|ready| ready.stale) {
            self.make_ready(name, now)?;
        }
        Some((&mut self.ready.get_mut(name)?.service, &mut self.rng))
    }

    /// A number, another one each time.
    pub fn random(&mut self) -> u64 {
        self.rng.u64(..)
    }

    /// Whether the catalog holds a service.
    pub fn holds(&self, name: &str) -> bool {
        self.replica.services().contains_key(name)
    }

    fn make_ready(&mut self, name: &str, now: Duration) -> Option<()> {
        let nodes = self.replica.services().get(name)?;
        let before = self.ready.get(name).map(|ready| &ready.service.policy);
        let policy = match (nodes.policy(), before) {
            (document, _) if document.is_empty() => Rc::clone(&self.no_policy),
            (document, Some(before)) if before.document == *document => Rc::clone(before),
            (document, before) => match Compiled::parse(document) {
                Ok(policy) => Rc::new(policy),
                Err(_) => {
                    self.unreadable += 1;
                    Rc::clone(before.unwrap_or(&self.no_policy))
                }
            },
        };
        match self.ready.get_mut(name) {
            Some(ready) => {
                ready.service.update(nodes, policy, now);
                ready.stale = false;
            }
            None => {
                let ledger = self.ledgers.of(name);
                let service = Service::new(nodes, policy, ledger, self.outcomes_known, now);
                self.ready.insert(name.into(), Ready { service, stale: false });
            }
        }
        Some(())
    }

    /// Time passes.
    pub fn tick(&mut self, now: Duration) {
        let mut tables = TABLES_PER_TICK;
        for ready in self.ready.values_mut() {
            ready.service.tick(now, &mut tables);
        }
    }

    /// What is to be reported of requests; `None` if nothing is.
    pub fn report(&mut self) -> Option<Report> {
        self.ledgers.report()
    }

    fn read_routes(&mut self) {
        let documents = self.replica.routes().documents();
        let mut routes = Vec::with_capacity(documents.len());
        for (id, document) in documents {
            match Route::parse(id, document) {
                Ok(route) => routes.push(route),
                Err(_) => self.unreadable += 1,
            }
        }
        self.routes = Rc::new(RouteTable::new(routes));
    }
}
