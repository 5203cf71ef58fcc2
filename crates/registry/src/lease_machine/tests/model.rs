//! As much of etcd as the machine sees, in memory.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::lease_machine::{Answer, BATCH, Failure, Found, Op};

pub(super) struct Stored {
    value: Vec<u8>,
    pub(super) lease: i64,
    mod_revision: i64,
}

#[derive(Default)]
pub(super) struct Etcd {
    pub(super) revision: i64,
    pub(super) keys: BTreeMap<String, Stored>,
    pub(super) leases: BTreeMap<i64, (Duration, Instant)>,
    pub(super) granted: i64,
    pub(super) refuse: Option<&'static str>,
    pub(super) puts: u64,
}

impl Etcd {
    fn expire(&mut self, now: Instant) {
        self.leases.retain(|_, (_, ends)| now < *ends);
        let leases = &self.leases;
        self.keys.retain(|_, stored| stored.lease == 0 || leases.contains_key(&stored.lease));
    }

    pub(super) fn put(&mut self, key: &str, value: &[u8], lease: i64) {
        self.revision += 1;
        self.keys.insert(key.into(), Stored { value: value.into(), lease, mod_revision: self.revision });
    }

    pub(super) fn revoke(&mut self, lease: i64) {
        self.leases.remove(&lease);
        self.keys.retain(|_, stored| stored.lease != lease);
    }

    pub(super) fn wipe(&mut self) {
        let granted = self.granted;
        *self = Self { granted, ..Self::default() };
    }

    pub(super) fn value(&self, key: &str) -> Option<&str> {
        self.keys.get(key).map(|stored| std::str::from_utf8(&stored.value).unwrap())
    }

    fn at(&self, key: &str) -> i64 {
        self.keys.get(key).map_or(0, |stored| stored.mod_revision)
    }

    pub(super) fn perform(&mut self, op: &Op, now: Instant) -> Result<Answer, Failure> {
        self.expire(now);
        match op {
            Op::Connect => Ok(Answer::Done),
            Op::Grant { seconds } => {
                self.granted += 1;
                let ttl = Duration::from_secs(*seconds as u64);
                self.leases.insert(self.granted, (ttl, now + ttl));
                Ok(Answer::Granted { lease: self.granted, ttl })
            }
            Op::Adopt { lease } => match self.leases.get(lease) {
                Some((ttl, _)) => Ok(Answer::Adoptable { ttl: *ttl }),
                None => Err(Failure::LeaseGone),
            },
            Op::KeepAlive { lease } => match self.leases.get_mut(lease) {
                Some((ttl, ends)) => {
                    *ends = now + *ttl;
                    Ok(Answer::Done)
                }
                None => Err(Failure::LeaseGone),
            },
            Op::Revision { .. } => Ok(Answer::Revision(self.revision)),
            Op::Check { keys, values } => {
                let found = |key: &str| {
                    let stored = self.keys.get(key)?;
                    let value = values.then(|| stored.value.clone());
                    Some(Found { lease: stored.lease, mod_revision: stored.mod_revision, value })
                };
                Ok(Answer::Checked(keys.iter().map(|(id, key)| (*id, found(key))).collect()))
            }
            Op::Put { lease, puts } => {
                assert!(puts.len() <= BATCH);
                if let Some(bad) = self.refuse.filter(|bad| puts.iter().any(|put| put.key == *bad)) {
                    return Err(Failure::Refused(format!("{bad} is refused")));
                }
                if !self.leases.contains_key(lease) {
                    return Err(Failure::LeaseGone);
                }
                if puts.iter().any(|put| self.at(&put.key) != put.seen) {
                    return Ok(Answer::Conflict);
                }
                self.revision += 1;
                for put in puts {
                    self.puts += 1;
                    let stored = Stored { value: put.value.to_vec(), lease: *lease, mod_revision: self.revision };
                    self.keys.insert(put.key.clone(), stored);
                }
                Ok(Answer::Put { revision: self.revision })
            }
            Op::Delete { key, seen, .. } => {
                if self.at(key) != *seen {
                    return Ok(Answer::Conflict);
                }
                self.revision += 1;
                self.keys.remove(key);
                Ok(Answer::Done)
            }
            Op::List { lease } => {
                let keys = self.keys.iter().filter(|(_, stored)| stored.lease == *lease);
                Ok(Answer::Listed(keys.map(|(key, _)| key.clone()).collect()))
            }
            Op::Release { lease, keys } => {
                if keys.iter().any(|key| self.keys.get(key).is_none_or(|stored| stored.lease != *lease)) {
                    return Ok(Answer::Conflict);
                }
                self.keys.retain(|key, _| !keys.contains(key));
                Ok(Answer::Done)
            }
            Op::Revoke { lease } => {
                if !self.leases.contains_key(lease) {
                    return Err(Failure::LeaseGone);
                }
                self.revoke(*lease);
                Ok(Answer::Done)
            }
        }
    }
}
