//! Who may be picked, in which groups, and what part of the requests goes to each: panic, priority levels, zones.

use std::ops::Range;

use super::{
    levels::{self, Census, Load},
    zones::{self, Zone},
};
use crate::{
    node::{Health, NodeView},
    pool::{Pool, Slot},
    settings::Settings,
};

/// A node that may be picked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    /// Its index among all nodes.
    pub(super) node: u32,
    pub(super) slot: Slot,
    /// Above 0.
    pub(super) weight: u32,
}

/// Nodes among which the strategy chooses: a level, or a zone of it.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) priority: u8,
    /// If zones matter in its level.
    pub(super) zone: Option<u32>,
    /// Index of its level.
    pub(super) level: usize,
    /// Of the members.
    pub(super) range: Range<usize>,
    /// Of all requests.
    pub(super) part: f64,
}

impl Group {
    /// Whether a node that counts belongs to it, healthy or not.
    pub(super) fn holds(&self, node: &NodeView) -> bool {
        node.counts() && node.priority == self.priority && self.zone.is_none_or(|zone| node.zone == zone)
    }
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    /// By level, then by zone.
    pub(super) members: Vec<Member>,
    /// Where each level's members are, levels of which nobody may be picked left out.
    pub(super) levels: Vec<Range<usize>>,
    /// Those that get anything.
    pub(super) groups: Vec<Group>,
    /// Nodes that are to be probed.
    pub(super) probes: Vec<(u32, Slot)>,
    pub(super) panicking: bool,
}

impl Plan {
    pub(super) fn new(nodes: &[NodeView], slots: &[Slot], pool: &Pool, settings: &Settings) -> Self {
        let mut plan = Self::default();
        let some_out = pool.ejected() > 0;
        let is_healthy =
            |node: &NodeView, slot: Slot| node.health == Health::Passing && !(some_out && pool.is_ejected(slot));
        let counting = || (0u32..).zip(nodes).zip(slots).filter(|((_, node), _)| node.counts());

        let mut census = [Census::default(); 256];
        for ((_, node), slot) in counting() {
            if let Some(level) = census.get_mut(usize::from(node.priority)) {
                level.nodes += 1;
                level.healthy += u32::from(is_healthy(node, *slot));
            }
        }
        let (priorities, census): (Vec<u8>, Vec<Census>) =
            (0u8..=255).zip(census).filter(|(_, level)| level.nodes > 0).unzip();
        let threshold = settings.panic_threshold.unwrap_or(0).into();
        let loads = levels::spread(&census, settings.overprovisioning, threshold);
        let mut by_priority = [Load::default(); 256];
        for (priority, load) in priorities.iter().zip(&loads) {
            if let Some(level) = by_priority.get_mut(usize::from(*priority)) {
                // Where nothing goes, unhealthy nodes are no alternatives either.
                *level = Load { panic: load.panic && load.percent > 0, ..*load };
                plan.panicking |= level.panic;
            }
        }

        let zoned = settings.locality.as_ref().filter(|locality| locality.zone != 0);
        let mut sorted = Vec::with_capacity(nodes.len());
        for ((index, node), slot) in counting() {
            let panic = by_priority.get(usize::from(node.priority)).is_some_and(|level| level.panic);
            if panic || is_healthy(node, *slot) {
                let member = Member { node: index, slot: *slot, weight: node.effective_weight() };
                // The own zone first: for those who hash, it is the same part of all keys that stays at home.
                let zone = zoned.map_or((false, 0), |locality| (node.zone != locality.zone, node.zone));
                sorted.push((node.priority, zone, member));
            } else if some_out && node.health == Health::Passing && pool.is_probing(*slot) {
                plan.probes.push((index, *slot));
            }
        }
        sorted.sort_by_key(|(priority, zone, _)| (*priority, *zone));

        let mut start = 0;
        for level in sorted.chunk_by(|a, b| a.0 == b.0) {
            let Some(priority) = level.first().map(|first| first.0) else { continue };
            let range = start..start + level.len();
            let load = by_priority.get(usize::from(priority)).copied().unwrap_or_default();
            let group = |zone, range, part: f64| Group { priority, zone, level: plan.levels.len(), range, part };
            let percent = f64::from(load.percent) / 100.0;
            if load.percent > 0 {
                let mut zones: Vec<Zone> = Vec::new();
                if zoned.is_some() && !load.panic {
                    zones.extend(level.chunk_by(|a, b| a.1 == b.1).map(|zone| Zone {
                        name: zone.first().map_or(0, |(_, (_, name), _)| *name),
                        nodes: zone.len() as u32,
                        weight: zone.iter().map(|(_, _, member)| u64::from(member.weight)).sum(),
                    }));
                }
                match zoned.and_then(|locality| zones::split(&zones, locality)) {
                    Some(parts) => {
                        let mut start = start;
                        for (zone, part) in zones.iter().zip(parts) {
                            let end = start + zone.nodes as usize;
                            if part > 0.0 {
                                plan.groups.push(group(Some(zone.name), start..end, part * percent));
                            }
                            start = end;
                        }
                    }
                    None => plan.groups.push(group(None, range.clone(), percent)),
                }
            }
            start = range.end;
            plan.levels.push(range);
        }
        plan.members.extend(sorted.into_iter().map(|(_, _, member)| member));
        plan
    }
}
