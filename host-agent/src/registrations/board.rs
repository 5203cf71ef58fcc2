//! What this host's services look like from outside: for metrics and the admin server.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use waypost_catalog::{Health, ServiceName};
use waypost_registry::registrar::RegistrationState;

use crate::{check::CheckReport, config::Service};

/// What makes a registration the same one across reloads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceId {
    /// The service's name.
    pub name: ServiceName,
    /// Name of its instance.
    pub instance: String,
    /// The prefix it is written under.
    pub root: String,
}

impl ServiceId {
    /// Of a configured service.
    pub fn of(service: &Service) -> Self {
        Self { name: service.name.clone(), instance: service.instance.clone(), root: service.root.clone() }
    }
}

/// One service's state.
#[derive(Clone, Debug, Default)]
pub struct ServiceStatus {
    /// Its address, once found.
    pub address: Option<SocketAddr>,
    /// Its health; `None` before it is known.
    pub health: Option<Health>,
    /// The lease that its key lives by.
    pub lease: Option<watch::Receiver<Option<i64>>>,
    /// Why it is in maintenance, if it is.
    pub maintenance: Option<Arc<str>>,
    /// Its registration, once there is one.
    pub registration: Option<watch::Receiver<RegistrationState>>,
    /// What its check said last, if it has one that has said something.
    pub check: Option<CheckReport>,
    /// Why it is not registered.
    pub problem: Option<String>,
}

/// The state of all services.
#[derive(Debug, Default)]
pub struct Board {
    services: Mutex<BTreeMap<ServiceId, ServiceStatus>>,
    leases_lost: Mutex<BTreeMap<u64, u64>>,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceId, ServiceStatus>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn update(&self, id: &ServiceId, change: impl FnOnce(&mut ServiceStatus)) {
        change(self.lock().entry(id.clone()).or_default());
    }

    pub(super) fn remove(&self, id: &ServiceId) {
        self.lock().remove(id);
    }

    /// How often the lease of a TTL was lost so far.
    pub(super) fn note_leases_lost(&self, ttl: u64, lost: u64) {
        self.leases_lost.lock().unwrap_or_else(PoisonError::into_inner).insert(ttl, lost);
    }

    /// Every service and its state.
    pub fn services(&self) -> Vec<(ServiceId, ServiceStatus)> {
        self.lock().iter().map(|(id, status)| (id.clone(), status.clone())).collect()
    }

    /// How often a lease was lost.
    pub fn leases_lost(&self) -> u64 {
        self.leases_lost.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }
}
