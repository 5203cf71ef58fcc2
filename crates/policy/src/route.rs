//! A route: which requests go to which service.

mod host;
mod path;
mod read;
mod write;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use waypost_catalog::ServiceName;

pub use self::{
    host::HostPattern,
    path::{PathMatch, Segment},
};
pub(crate) use self::{host::reversed, path::ended};
use crate::{Problems, RequestView, Split, names, reader};

/// Of the split of a route; see [`crate::Sticky::hash`].
const SPLIT_SEED: u64 = 2;

/// Which requests go to which service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What it is called; unique among all routes.
    pub id: String,
    /// Its place among all routes: the lowest that matches counts, of several with one order the first by id.
    pub order: u32,
    /// The requests that it is for.
    pub matching: Match,
    /// Where they go.
    pub destination: Destination,
    /// How long a request may take; `None`: as Envoy is configured. Zero: any time.
    pub timeout: Option<Duration>,
}

/// What a request has to be like: all that is given here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// For one of these hosts; none: for any.
    pub hosts: BTreeSet<HostPattern>,
    /// With such a path; `None`: with any.
    pub path: Option<PathMatch>,
    /// With one of these methods; none: with any.
    pub methods: BTreeSet<String>,
    /// With such headers, by their names in lower case.
    pub headers: BTreeMap<String, HeaderMatch>,
}

/// What a header has to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderMatch {
    /// It is this.
    Exact(String),
    /// It is there, or it is not.
    Present(bool),
    /// It begins so.
    Prefix(String),
    /// It is something else than this, or not there.
    Not(String),
}

/// Where the requests of a route go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// All to one.
    One(Target),
    /// Shared out among several.
    Split(Split<Target>),
}

/// A service, or a subset of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// The service.
    pub service: ServiceName,
    /// The subset of it; `None`: as the service's policy says.
    pub subset: Option<String>,
}

impl Route {
    /// Reads a document. `id` is what the route is called: the last part of its key.
    ///
    /// # Errors
    /// [`Problems`] with everything that is wrong.
    pub fn parse(id: &str, json: &[u8]) -> Result<Self, Problems> {
        let id = names::route(id).map_err(Problems::whole)?;
        reader::document(json, |fields| read::route(fields, id))
    }

    /// The one document that says this, without the id: no blanks, and names in order.
    pub fn to_json(&self) -> String {
        write::route(self).to_canonical()
    }

    /// Every service that requests may go to, and the subset if one is named.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        let (one, split) = match &self.destination {
            Destination::One(target) => (Some(target), None),
            Destination::Split(split) => (None, Some(split)),
        };
        one.into_iter().chain(split.into_iter().flat_map(Split::arms).map(|arm| &arm.target))
    }

    /// Where a request goes. `random` decides where the request does not.
    pub fn target_for(&self, request: &mut impl RequestView, random: u64) -> &Target {
        match &self.destination {
            Destination::One(target) => target,
            Destination::Split(split) => &split.choose_for(request, SPLIT_SEED, random).target,
        }
    }

    /// The arm that a split takes for a request whatever the random number; `None` if that decides.
    pub(crate) fn sticky_target(&self, request: &mut impl RequestView) -> Option<&Target> {
        let Destination::Split(split) = &self.destination else { return None };
        let hash = split.sticky()?.hash(request, SPLIT_SEED)?;
        Some(&split.choose(hash).target)
    }
}

impl HeaderMatch {
    /// Whether a header's value, or its absence, is so.
    pub fn takes(&self, value: Option<&[u8]>) -> bool {
        match self {
            Self::Exact(text) => value == Some(text.as_bytes()),
            Self::Present(present) => value.is_some() == *present,
            Self::Prefix(prefix) => value.is_some_and(|value| value.starts_with(prefix.as_bytes())),
            Self::Not(text) => value != Some(text.as_bytes()),
        }
    }
}
