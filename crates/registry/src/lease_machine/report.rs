//! How registrations and lease stand, for whoever watches them.

use std::time::Instant;

use super::{
    Id, Lease, LeaseMachine,
    entry::{Entry, Need},
};
use crate::registrar::{Place, RegistrarStats, RegistrationState, held_by};

impl LeaseMachine {
    /// Forgets the registrations that were to end and whose keys are absent.
    pub(crate) fn take_ended(&mut self) -> Vec<Id> {
        let ours = &self.ours;
        let ended = |entry: &Entry| entry.leaving && entry.need(0, ours) == Need::Nothing;
        let ids: Vec<Id> = self.entries.iter().filter(|(_, entry)| ended(entry)).map(|(id, _)| *id).collect();
        for entry in ids.iter().filter_map(|id| self.entries.remove(id)) {
            if let Some(key) = entry.key {
                self.by_key.remove(&key);
            }
        }
        ids
    }

    /// Forgets the registrations whose keys somebody else holds, and that were to end then; with key and lease.
    pub(crate) fn take_failed(&mut self) -> Vec<(Id, String, i64)> {
        let lease = self.held().unwrap_or_default();
        let holder = |entry: &Entry| match entry.need(lease, &self.ours) {
            Need::Free { holder } => Some((entry.key.clone()?, holder)),
            _ => None,
        };
        let failing = self.entries.iter().filter(|(_, entry)| entry.fails());
        let failed = failing.filter_map(|(id, entry)| holder(entry).map(|(key, holder)| (*id, key, holder)));
        let failed: Vec<_> = failed.collect();
        for (id, key, _) in &failed {
            self.entries.remove(id);
            self.by_key.remove(key);
        }
        failed
    }

    /// Every registration: its key if it is numbered and etcd has taken it, and its state.
    pub(crate) fn states(&self, now: Instant) -> impl Iterator<Item = (Id, Option<&str>, RegistrationState)> {
        self.entries.iter().map(move |(id, entry)| {
            let numbered = matches!(entry.place, Place::Numbered { .. }) && entry.registered.is_some();
            (*id, entry.key.as_deref().filter(|_| numbered), self.state(entry, now))
        })
    }

    fn state(&self, entry: &Entry, now: Instant) -> RegistrationState {
        let (lease, alive) = match self.lease {
            Lease::Held { id, ttl, confirmed_at, .. } => (id, now < confirmed_at + ttl),
            Lease::None | Lease::Adopting(_) => (0, false),
        };
        let trouble = entry.cause.as_ref().or(self.cause.as_ref());
        match (entry.need(lease, &self.ours), &entry.intent) {
            (Need::Nothing, None) => return RegistrationState::Withdrawn,
            (Need::Nothing, Some(_)) if alive => return RegistrationState::Registered,
            (Need::Free { holder }, _) if self.cause.is_none() => {
                let key = entry.key.as_deref().unwrap_or_default();
                return RegistrationState::Retrying {
                    cause: format!("{}; waiting until it is gone", held_by(key, holder)),
                };
            }
            _ => {}
        }
        match (&entry.lost, trouble) {
            (Some(lost), None) => RegistrationState::Lost { cause: lost.clone() },
            (Some(lost), Some(trouble)) => RegistrationState::Lost { cause: format!("{lost}; {trouble}") },
            (None, Some(trouble)) => RegistrationState::Retrying { cause: trouble.clone() },
            (None, None) => RegistrationState::Pending,
        }
    }

    /// The lease that is held, or is to be adopted.
    pub(crate) fn lease(&self) -> Option<i64> {
        match self.lease {
            Lease::None => None,
            Lease::Adopting(id) | Lease::Held { id, .. } => Some(id),
        }
    }

    pub(crate) fn stats(&self) -> &RegistrarStats {
        &self.stats
    }
}
