//! Where applications report how they are: the seam between the local API and the checks of type `ttl`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::watch, time::Instant};

use super::ServiceId;
use crate::{
    check::{Beat, report::excerpt},
    config::{CheckKind, Service},
};

/// Why a report is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeartbeatError {
    /// There is no such service.
    #[error("this agent registers no such instance: name a service and an instance of its configuration or its API")]
    Unknown,
    /// It is checked in another way.
    #[error("the check of this instance takes no reports: give it one of type \"ttl\"")]
    NotTtl,
}

/// Takes reports for all services of this host. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Heartbeats {
    lines: Arc<Mutex<BTreeMap<ServiceId, Line>>>,
}

#[derive(Debug)]
struct Line {
    is_ttl: bool,
    last: watch::Sender<Option<Beat>>,
}

impl Heartbeats {
    /// Takes in how an instance says it is. Of several reports between two looks at them the last one counts.
    ///
    /// # Errors
    /// [`HeartbeatError`] if nobody waits for it.
    pub fn report(&self, id: &ServiceId, passing: bool, output: String) -> Result<(), HeartbeatError> {
        match self.lock().get(id) {
            None => Err(HeartbeatError::Unknown),
            Some(Line { is_ttl: false, .. }) => Err(HeartbeatError::NotTtl),
            Some(Line { last, .. }) => {
                last.send_replace(Some(Beat { passing, output: excerpt(&output), at: Instant::now() }));
                Ok(())
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceId, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `services` those that may report, if their checks are of that type.
    pub(super) fn expect_from(&self, services: &BTreeMap<ServiceId, Arc<Service>>) {
        let mut lines = self.lock();
        lines.retain(|id, _| services.contains_key(id));
        for (id, service) in services {
            let is_ttl = service.check.as_ref().is_some_and(|check| matches!(check.kind, CheckKind::Reported { .. }));
            lines.entry(id.clone()).or_insert_with(|| Line { is_ttl, last: watch::Sender::default() }).is_ttl = is_ttl;
        }
    }

    /// The reports of one service; of one that may not report, there are none.
    pub(super) fn of(&self, id: &ServiceId) -> watch::Receiver<Option<Beat>> {
        self.lock().get(id).map_or_else(|| watch::Sender::default().subscribe(), |line| line.last.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn services(check: &str) -> BTreeMap<ServiceId, Arc<Service>> {
        let text = format!(
            "[etcd]\nendpoints = [\"http://127.0.0.1:1\"]\n[[service]]\nname = \"web\"\nport = 80\ncheck = {{ {check} }}\n"
        );
        let services = config::parse("agent.toml", &text, "host-a").unwrap().services;
        services.into_iter().map(|service| (ServiceId::of(&service), Arc::new(service))).collect()
    }

    #[tokio::test]
    async fn only_a_registered_service_with_a_check_of_type_ttl_may_report() {
        let heartbeats = Heartbeats::default();
        let (ttl, tcp) = (services("type = \"ttl\", ttl = \"5s\""), services("type = \"tcp\""));
        let id = ttl.keys().next().unwrap().clone();
        let report = || heartbeats.report(&id, true, "all is well\n".into());
        assert_eq!(report(), Err(HeartbeatError::Unknown));
        heartbeats.expect_from(&tcp);
        assert_eq!(report(), Err(HeartbeatError::NotTtl));
        heartbeats.expect_from(&ttl);
        let heard = heartbeats.of(&id);
        assert_eq!(report(), Ok(()));
        assert_eq!(heard.borrow().as_ref().unwrap().output, "all is well");
        heartbeats.expect_from(&BTreeMap::new());
        assert_eq!(report(), Err(HeartbeatError::Unknown));
    }

    #[tokio::test]
    async fn a_reload_keeps_the_line_to_a_service_that_stays() {
        let heartbeats = Heartbeats::default();
        let ttl = services("type = \"ttl\", ttl = \"5s\"");
        let id = ttl.keys().next().unwrap();
        heartbeats.expect_from(&ttl);
        let heard = heartbeats.of(id);
        heartbeats.expect_from(&services("type = \"ttl\", ttl = \"9s\""));
        assert!(heard.same_channel(&heartbeats.of(id)));
        heartbeats.expect_from(&BTreeMap::new());
        heartbeats.expect_from(&ttl);
        assert!(!heard.same_channel(&heartbeats.of(id)), "it left and came back");
    }
}
