//! Which request the keys need next.

use std::{sync::Arc, time::Instant};

use super::{
    BATCH, BATCH_BYTES, LeaseMachine, Op, Put,
    entry::{Actual, Need},
};
use crate::registrar::Place;

impl LeaseMachine {
    pub(super) fn work(&mut self, lease: i64, now: Instant) -> Option<Op> {
        let ours = &self.ours;
        let needs = self.entries.iter().filter(|(_, entry)| entry.is_due(now));
        let needs = needs.map(|(id, entry)| (*id, entry, entry.need(lease, ours)));

        let mut checks = Vec::new();
        let mut puts = Vec::new();
        let mut name = None;
        let mut bytes = 0;
        for (id, entry, need) in needs {
            if let (Need::Name, None, Place::Numbered { prefix }) = (need, &name, &entry.place) {
                name = Some(Op::Revision { id, prefix: prefix.clone() });
            }
            let Some(key) = entry.key.clone() else { continue };
            match need {
                Need::Nothing | Need::Free { .. } | Need::Name => {}
                Need::Check if entry.alone => return Some(Op::Check { keys: vec![(id, key)], values: true }),
                Need::Check => checks.push((id, key)),
                Need::Delete { seen } => return Some(Op::Delete { id, key, seen }),
                Need::Put { seen } => {
                    let Some(value) = &entry.intent else { continue };
                    bytes += value.len() + key.len();
                    let put = Put { id, key, value: Arc::clone(value), seen, version: entry.version };
                    if entry.alone {
                        return Some(Op::Put { lease, puts: vec![put] });
                    }
                    if puts.is_empty() || bytes <= BATCH_BYTES {
                        puts.push(put);
                    }
                }
            }
            if checks.len() == BATCH || puts.len() == BATCH {
                break;
            }
        }
        if !puts.is_empty() {
            return Some(Op::Put { lease, puts });
        }
        if !checks.is_empty() {
            return Some(Op::Check { keys: checks, values: true });
        }
        // One at a time, and put before the next: its name is the revision's that follows.
        if name.is_some() {
            return name;
        }
        self.verification().or_else(|| self.pruning(lease))
    }

    fn verification(&mut self) -> Option<Op> {
        let mut keys = Vec::new();
        while keys.len() < BATCH {
            let Some(id) = self.unverified.pop() else { break };
            let known = self.entries.get(&id).filter(|entry| matches!(entry.actual, Actual::Known(_)));
            keys.extend(known.and_then(|entry| Some((id, entry.key.clone()?))));
        }
        (!keys.is_empty()).then_some(Op::Check { keys, values: false })
    }

    fn pruning(&mut self, lease: i64) -> Option<Op> {
        if !self.release.is_empty() {
            let keys = self.release.split_off(self.release.len().saturating_sub(BATCH));
            return Some(Op::Release { lease, keys });
        }
        self.prune.then_some(Op::List { lease })
    }
}
