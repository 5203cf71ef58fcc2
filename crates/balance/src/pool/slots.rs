//! Which node has which slot.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use super::Slot;
use crate::random::mix;

/// Keys are hashes already; they only want scrambling, in case somebody's are not.
#[derive(Clone, Debug, Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = mix(self.0 ^ number);
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Slots {
    by_key: HashMap<u64, Slot, BuildHasherDefault<KeyHasher>>,
    places: Vec<Place>,
    free: Vec<Slot>,
    /// Counts the calls of `sync`.
    round: u32,
    present: usize,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    key: u64,
    /// The last round in which the node was there.
    round: u32,
    taken: bool,
}

impl Slots {
    /// Gives each node its slot and tells `each` which one, and whether it is new to it.
    pub(super) fn sync(&mut self, keys: impl IntoIterator<Item = u64>, mut each: impl FnMut(Slot, bool)) -> Vec<Slot> {
        self.round = self.round.wrapping_add(1);
        self.present = 0;
        let round = self.round;
        let give = |key: u64| {
            let (slot, new) = match self.by_key.get(&key) {
                Some(slot) => (*slot, false),
                None => {
                    let slot = self.free.pop().unwrap_or_else(|| {
                        self.places.push(Place { key, round: round.wrapping_sub(1), taken: true });
                        // 2^32 nodes would need 64 GiB for this list alone.
                        Slot((self.places.len() - 1) as u32)
                    });
                    self.by_key.insert(key, slot);
                    (slot, true)
                }
            };
            if let Some(place) = self.places.get_mut(slot.index()) {
                if new {
                    *place = Place { key, round: round.wrapping_sub(1), taken: true };
                }
                self.present += usize::from(place.round != round);
                place.round = round;
            }
            each(slot, new);
            slot
        };
        keys.into_iter().map(give).collect()
    }

    /// After a sync: frees the slots of nodes that are gone, but of those that are busy.
    pub(super) fn forget_gone(&mut self, busy: impl Fn(Slot) -> bool) {
        if self.present == self.by_key.len() {
            return;
        }
        let gone = |(index, place): (usize, &Place)| {
            let slot = Slot(index as u32);
            (place.taken && place.round != self.round && !busy(slot)).then_some(slot)
        };
        let gone: Vec<Slot> = self.places.iter().enumerate().filter_map(gone).collect();
        for slot in gone {
            self.free(slot);
        }
    }

    /// Frees the slot of a node that is gone.
    pub(super) fn free(&mut self, slot: Slot) {
        let Some(place) = self.places.get_mut(slot.index()).filter(|place| place.taken) else { return };
        place.taken = false;
        self.by_key.remove(&place.key);
        self.free.push(slot);
    }

    /// Whether its node is among those of the last sync.
    pub(super) fn is_present(&self, slot: Slot) -> bool {
        self.places.get(slot.index()).is_some_and(|place| place.taken && place.round == self.round)
    }

    /// Nodes of the last sync.
    pub(super) fn len(&self) -> usize {
        self.present
    }

    pub(super) fn of(&self, key: u64) -> Option<Slot> {
        self.by_key.get(&key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sync(slots: &mut Slots, keys: &[u64], busy: &[u64]) -> Vec<Slot> {
        let given = slots.sync(keys.iter().copied(), |_, _| {});
        let busy: Vec<Slot> = busy.iter().filter_map(|key| slots.of(*key)).collect();
        slots.forget_gone(|slot| busy.contains(&slot));
        given
    }

    #[test]
    fn a_node_keeps_its_slot_and_a_free_one_is_given_again() {
        let mut slots = Slots::default();
        let first = sync(&mut slots, &[1, 2, 3], &[]);
        let second = sync(&mut slots, &[3, 4, 1], &[]);
        assert_eq!((second[0], second[2]), (first[2], first[0]));
        assert_ne!(second[1], first[1], "the slot of node 2 was not free yet");
        assert!(!slots.is_present(first[1]));
        assert_eq!(slots.len(), 3);
        let third = sync(&mut slots, &[1, 3, 4, 5], &[]);
        assert_eq!(third[3], first[1]);
        assert_eq!(sync(&mut slots, &[5, 5], &[]), [third[3]; 2]);
        assert_eq!(slots.len(), 1);
    }

    #[test]
    fn the_slot_of_a_busy_node_waits_for_it() {
        let mut slots = Slots::default();
        let first = sync(&mut slots, &[1, 2], &[]);
        sync(&mut slots, &[2], &[1]);
        assert!(!slots.is_present(first[0]));
        assert_eq!(sync(&mut slots, &[2, 3], &[1])[1], Slot(2));
        assert_eq!(sync(&mut slots, &[1, 2, 3], &[1])[0], first[0], "it came back");
        sync(&mut slots, &[2, 3], &[1]);
        slots.free(first[0]);
        slots.free(first[0]);
        assert_eq!(sync(&mut slots, &[2, 3, 4, 5], &[])[2..], [first[0], Slot(3)]);
    }
}
