//! Weighted Maglev (Eisenbud and others, NSDI 2016): a table of fixed size in which every node has places in proportion
//! to its weight, and of which a change of nodes moves little.

mod builder;
mod prime;

pub(crate) use self::builder::Builder;
use crate::random::mix;

/// No node: of nodes there are fewer.
pub(crate) const NOBODY: u32 = u32::MAX;

/// A node's key and weight.
pub(crate) type Keyed = (u64, u32);

/// Which node every part of all hashes belongs to.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// By their index in `keys`.
    places: Vec<u32>,
    keys: Vec<u64>,
    /// Of what it was built.
    fingerprint: u64,
}

impl Table {
    pub(crate) fn keys(&self) -> &[u64] {
        &self.keys
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The nodes of all places, in turn, by their index in `keys`.
    pub(crate) fn places(&self) -> &[u32] {
        &self.places
    }
}

/// Tells one set of nodes, in one order, from another.
pub(crate) fn fingerprint(nodes: impl Iterator<Item = Keyed>) -> u64 {
    nodes.fold(0, |sum, (key, weight)| mix(sum.rotate_left(5) ^ key).wrapping_add(u64::from(weight)))
}
