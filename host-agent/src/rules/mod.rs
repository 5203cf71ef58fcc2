//! Policies and routes as they are in etcd: the last good one of each, and what is wrong with the others. Pure: events of
//! their mirrors come in.

mod shelf;

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use tracing::error;
use waypost_catalog::{Catalog, Routes, ServiceName};
use waypost_policy::{Compiled, Policy, Route};
use waypost_registry::MirrorEvent;

pub use self::shelf::Refusal;
use self::shelf::Shelf;
use crate::effective::RuleFigures;

/// Where policies are: the rest of the key is the service's name.
pub const POLICIES: &str = "/waypost/policies/";

/// Where routes are: the rest of the key is the route's id.
pub const ROUTES: &str = "/waypost/routes/";

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RuleKind {
    /// Below [`POLICIES`].
    Policies,
    /// Below [`ROUTES`].
    Routes,
}

impl RuleKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Policies, Self::Routes];

    /// Where they are in etcd.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Policies => POLICIES,
            Self::Routes => ROUTES,
        }
    }
}

/// All that is known of them.
#[derive(Debug)]
pub struct Rules {
    policies: Shelf<Policy>,
    routes: Shelf<Route>,
    /// The table that was handed over last, or has to be.
    table: Arc<Routes>,
    table_changed: bool,
    /// Why the table is not the newest one.
    too_large: Option<String>,
}

impl Rules {
    /// With what is in the catalog that was served before.
    pub fn new(catalog: &Catalog) -> Self {
        let policies = catalog.services().iter().filter(|(_, service)| !service.policy().is_empty());
        let policies = policies.filter_map(|(name, service)| {
            let compiled = Compiled::parse(service.policy()).ok()?;
            Some((name.to_string(), compiled.policy))
        });
        let routes = catalog.routes().documents().iter();
        let routes = routes.filter_map(|(id, document)| Some((id.clone(), Route::parse(id, document).ok()?)));
        Self {
            policies: Shelf::new(POLICIES, parse_policy, policies),
            routes: Shelf::new(ROUTES, parse_route, routes),
            table: Arc::clone(catalog.routes()),
            table_changed: false,
            too_large: None,
        }
    }

    /// Whether both are known in full.
    pub fn is_synced(&self) -> bool {
        self.policies.is_synced() && self.routes.is_synced()
    }

    /// The policy of a service.
    pub fn policy(&self, service: &ServiceName) -> Option<&Arc<Policy>> {
        self.policies.get(service)
    }

    /// Takes an event in. The services whose policy is another one now.
    pub fn apply(&mut self, kind: RuleKind, event: &MirrorEvent) -> Vec<ServiceName> {
        match kind {
            RuleKind::Policies => {
                // Others have no policy: it was refused.
                self.policies.apply(event).iter().filter_map(|name| ServiceName::new(name).ok()).collect()
            }
            RuleKind::Routes => {
                if !self.routes.apply(event).is_empty() {
                    self.rebuild_table();
                }
                Vec::new()
            }
        }
    }

    fn rebuild_table(&mut self) {
        let documents = self.routes.good().map(|(id, route)| (id.to_owned(), Bytes::from(route.to_json())));
        match Routes::new(documents) {
            Ok(table) => {
                self.too_large = None;
                self.table_changed |= table.hash() != self.table.hash();
                self.table = Arc::new(table);
            }
            Err(too_large) => {
                error!(%too_large, "the routes stay as they were");
                self.too_large = Some(too_large.to_string());
            }
        }
    }

    /// The table of routes, if it is another one than was taken last.
    pub fn take_routes(&mut self) -> Option<Arc<Routes>> {
        std::mem::take(&mut self.table_changed).then(|| Arc::clone(&self.table))
    }

    /// Services whose policy looks at the nodes of one of these.
    pub fn dependents(&self, touched: &BTreeSet<ServiceName>) -> Vec<ServiceName> {
        if touched.is_empty() {
            return Vec::new();
        }
        let looks = |policy: &Policy| {
            let callers = policy.locality.as_ref().and_then(|locality| locality.callers.as_ref());
            callers.is_some_and(|callers| touched.contains(callers))
        };
        let dependents = self.policies.good().filter(|(_, policy)| looks(policy));
        dependents.filter_map(|(name, _)| ServiceName::new(name).ok()).collect()
    }

    /// Figures for status and metrics.
    pub fn figures(&self) -> RuleFigures {
        let mut refused = self.policies.refusals();
        refused.extend(self.routes.refusals());
        refused.extend(self.too_large.iter().map(|problem| Refusal {
            key: ROUTES.to_owned(),
            revision: 0,
            problems: vec![problem.clone()],
            last_good: true,
        }));
        RuleFigures {
            policies: self.policies.good().count(),
            routes: self.routes.good().count(),
            refused,
            refusals: self.policies.refusals_total() + self.routes.refusals_total(),
        }
    }
}

fn parse_policy(name: &str, document: &[u8]) -> Result<Policy, Vec<String>> {
    ServiceName::new(name).map_err(|error| vec![error.to_string()])?;
    Policy::parse(document).map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

fn parse_route(id: &str, document: &[u8]) -> Result<Route, Vec<String>> {
    Route::parse(id, document).map_err(|problems| problems.iter().map(ToString::to_string).collect())
}
