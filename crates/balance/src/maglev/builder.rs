//! Builds a table bit by bit, so that whoever has something else to do is never kept for long.
//!
//! Nodes take turns; with each, a node takes the next free place of its own sequence of places. When a node has its turns
//! follows from its key and weight alone: turn number k at time (phase + k) / weight. So another node's coming or going
//! changes nothing about the order of the rest, and the number of places is within one of its exact share for every node
//! but for what rounding all of them leaves over.
//!
//! Turns wait in buckets of one tick each, where a tick is the time in which there is one turn on average. Envoy's way, to
//! ask every node in every round whether it is its turn, takes nodes x table steps for one heavy node among light ones.
//! Here there are about as many turns as places. Finding the free place takes a step or two while there are many, and
//! ln(size) on average over the whole table.

use super::{Keyed, NOBODY, Table, fingerprint, prime};
use crate::random::{mix, spread};

/// Of a tick.
const FRACTION: u32 = 32;

#[derive(Clone, Debug)]
pub(crate) struct Builder {
    keys: Vec<u64>,
    fingerprint: u64,
    turns: Vec<Turn>,
    /// The first of the turns that come in the same tick, modulo the number of buckets, in the order of time.
    buckets: Vec<u32>,
    /// The last tick in which turns are taken.
    end: u64,
    tick: u64,
    places: Vec<u32>,
    free: u32,
}

/// The next turn of a node.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// In ticks, shifted by `FRACTION`.
    due: u64,
    /// From one turn to the next.
    stride: u64,
    /// The place it would like to take.
    place: u32,
    /// To the one it would like next.
    step: u32,
    /// The one after it in the same bucket.
    next: u32,
}

impl Builder {
    /// Begins a table for nodes of weights above 0. O(n) in the number of nodes.
    pub(crate) fn new(nodes: impl Iterator<Item = Keyed> + Clone, table_size: u32) -> Self {
        let size = prime::at_least(table_size);
        let total: u64 = nodes.clone().map(|(_, weight)| u64::from(weight)).sum();
        let stride = |weight: u32| {
            let stride = (u128::from(total) << FRACTION).checked_div(u128::from(weight));
            stride.and_then(|stride| u64::try_from(stride).ok()).unwrap_or(u64::MAX)
        };
        let turn = |(key, weight): Keyed| {
            // Streams of their own, whatever else the key is used for.
            let [place, step, phase] = [1, 2, 3].map(|use_of| mix(mix(key ^ 0x6d61_676c_6576).wrapping_add(use_of)));
            let stride = stride(weight);
            Turn {
                due: ((u128::from(stride) * u128::from(phase)) >> 64) as u64,
                stride,
                place: spread(place, size as usize).0 as u32,
                step: spread(step, size as usize - 1).0 as u32 + 1,
                next: NOBODY,
            }
        };
        let turns: Vec<Turn> = nodes.clone().map(turn).collect();
        let mut builder = Self {
            keys: nodes.clone().map(|(key, _)| key).collect(),
            fingerprint: fingerprint(nodes),
            buckets: vec![NOBODY; turns.len().max(1).next_power_of_two()],
            turns,
            end: u64::from(size) * 2,
            tick: 0,
            places: vec![NOBODY; size as usize],
            free: size,
        };
        for node in 0..builder.turns.len() as u32 {
            builder.enqueue(node);
        }
        builder
    }

    pub(crate) fn keys(&self) -> &[u64] {
        &self.keys
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Goes on for at most `budget` steps of a few nanoseconds, and takes off those it made. Whether the table is done.
    pub(crate) fn advance(&mut self, budget: &mut usize) -> bool {
        while self.free > 0 {
            if *budget == 0 {
                return false;
            }
            *budget -= 1;
            match self.due_now() {
                Some(node) => {
                    if self.try_place(node) {
                        self.dequeue();
                        self.enqueue(node);
                    }
                }
                None if self.tick < self.end && !self.turns.is_empty() => self.tick += 1,
                None => self.fill(),
            }
        }
        true
    }

    /// The finished table.
    pub(crate) fn into_table(self) -> Table {
        Table { places: self.places, keys: self.keys, fingerprint: self.fingerprint }
    }

    fn bucket(&self, tick: u64) -> usize {
        // The number of buckets is a power of two, and never 0.
        tick as usize & (self.buckets.len() - 1)
    }

    /// Whose turn it is.
    fn due_now(&self) -> Option<u32> {
        let node = *self.buckets.get(self.bucket(self.tick))?;
        let turn = self.turns.get(node as usize)?;
        (turn.due >> FRACTION <= self.tick).then_some(node)
    }

    /// Takes the place that a node would like, if it is free.
    fn try_place(&mut self, node: u32) -> bool {
        let size = self.places.len() as u32;
        let Some(turn) = self.turns.get_mut(node as usize) else { return true };
        let place = turn.place as usize;
        turn.place += turn.step;
        if turn.place >= size {
            turn.place -= size;
        }
        match self.places.get_mut(place) {
            Some(free) if *free == NOBODY => {
                *free = node;
                self.free -= 1;
                true
            }
            _ => false,
        }
    }

    /// Takes the turn that is due out of its bucket and sets the time of the node's next one.
    fn dequeue(&mut self) {
        let bucket = self.bucket(self.tick);
        let Some(first) = self.buckets.get_mut(bucket) else { return };
        if let Some(turn) = self.turns.get_mut(*first as usize) {
            *first = turn.next;
            turn.due = turn.due.saturating_add(turn.stride);
        }
    }

    /// Puts a node's turn into its bucket, unless it comes too late.
    fn enqueue(&mut self, node: u32) {
        let Some(due) = self.turns.get(node as usize).map(|turn| turn.due) else { return };
        if due >> FRACTION > self.end {
            return;
        }
        let bucket = self.bucket(due >> FRACTION);
        let Some(first) = self.buckets.get(bucket).copied() else { return };
        let (mut before, mut after) = (None, first);
        while let Some(turn) = self.turns.get(after as usize).filter(|turn| turn.due <= due) {
            (before, after) = (Some(after), turn.next);
        }
        if let Some(turn) = self.turns.get_mut(node as usize) {
            turn.next = after;
        }
        match before.and_then(|before| self.turns.get_mut(before as usize)) {
            Some(before) => before.next = node,
            None => {
                if let Some(first) = self.buckets.get_mut(bucket) {
                    *first = node;
                }
            }
        }
    }

    /// No turn comes any more: with many more nodes than places all may come too late. Any node will do, or nobody.
    fn fill(&mut self) {
        let nodes = self.turns.len();
        for (index, place) in (0u64..).zip(&mut self.places) {
            if *place == NOBODY && nodes > 0 {
                *place = spread(mix(index), nodes).0 as u32;
            }
        }
        self.free = 0;
    }
}
