//! The table of routes, as the catalog carries it: opaque documents by id, with one hash over all of them.

use std::collections::BTreeMap;

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::wire::limits;

/// Routes by id. The filter gets them all in one message, so together they are limited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    routes: BTreeMap<String, Bytes>,
    hash: u64,
}

/// The routes do not fit one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{routes} routes take {bytes} bytes together, more than the {} allowed", limits::ROUTES_BYTES)]
pub struct RoutesTooLarge {
    /// How many there are.
    pub routes: usize,
    /// Their size with their ids.
    pub bytes: usize,
}

/// What a route adds to the hash of the table.
pub fn route_hash(id: &str, document: &[u8]) -> u64 {
    xxh3_64_with_seed(document, xxh3_64(id.as_bytes()))
}

impl Routes {
    /// The table of these documents.
    ///
    /// # Errors
    /// [`RoutesTooLarge`] beyond [`limits::ROUTES_BYTES`].
    pub fn new(routes: impl IntoIterator<Item = (String, Bytes)>) -> Result<Self, RoutesTooLarge> {
        let routes: BTreeMap<_, _> = routes.into_iter().collect();
        // The tags and lengths of a route on the wire take 12 bytes at most.
        let bytes = routes.iter().map(|(id, document)| id.len() + document.len() + 12).sum();
        if bytes > limits::ROUTES_BYTES {
            return Err(RoutesTooLarge { routes: routes.len(), bytes });
        }
        let hash = routes.iter().fold(0, |sum: u64, (id, document)| sum.wrapping_add(route_hash(id, document)));
        Ok(Self { routes, hash })
    }

    /// The documents by id.
    pub fn documents(&self) -> &BTreeMap<String, Bytes> {
        &self.routes
    }

    /// Content hash; 0 if there are none.
    pub fn hash(&self) -> u64 {
        self.hash
    }
}
