//! Subsets: parts of a service's nodes, by what its nodes say of themselves.

use std::collections::{BTreeMap, BTreeSet};

use waypost_catalog::Node;

use crate::{MAX_SUBSETS, json::Json, names, reader::Place};

/// What a node has to say of itself to belong to a subset: all that is given here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Predicate {
    /// This version.
    pub version: Option<String>,
    /// All of these tags.
    pub tags: BTreeSet<String>,
    /// All of these data, with these values.
    pub metadata: BTreeMap<String, String>,
}

impl Predicate {
    fn read(place: &Place<'_>) -> Option<Self> {
        let mut fields = place.fields("an object, such as {\"version\": \"v1\"}")?;
        let version = fields.get("version").map(|version| version.text_of(1..=255));
        let tags = fields.get("tags").map(|tags| tags.list("[\"canary\"]", 1..=64, |tag| tag.text_of(1..=255)));
        let metadata = fields.get("metadata").map(|metadata| read_metadata(&metadata));
        let is_empty = version.is_none() && tags.is_none() && metadata.is_none();
        if is_empty {
            fields.refuse::<()>("would be all nodes: write a version, tags or metadata that its nodes have");
        }
        fields.finish();
        Some(Self {
            version: version.unwrap_or_default(),
            tags: tags.flatten().unwrap_or_default().into_iter().collect(),
            metadata: metadata.flatten().unwrap_or_default(),
        })
    }

    fn to_json(&self) -> Json {
        let metadata = || Json::object(self.metadata.iter().map(|(name, value)| (name.as_str(), Some(value.into()))));
        Json::object([
            ("version", self.version.as_ref().map(Into::into)),
            ("tags", (!self.tags.is_empty()).then(|| Json::array(&self.tags))),
            ("metadata", (!self.metadata.is_empty()).then(metadata)),
        ])
    }

    /// Whether a node that says this of itself belongs.
    pub fn takes(&self, version: &str, tags: &[String], metadata: &BTreeMap<String, String>) -> bool {
        self.version.as_ref().is_none_or(|wanted| wanted == version)
            && self.tags.iter().all(|wanted| tags.contains(wanted))
            && self.metadata.iter().all(|(name, wanted)| metadata.get(name) == Some(wanted))
    }
}

fn read_metadata(place: &Place<'_>) -> Option<BTreeMap<String, String>> {
    let members = place.members("{\"tier\": \"a\"}", 1..=64)?;
    let read = |(name, value): (&str, Place<'_>)| {
        if !(1..=255).contains(&name.chars().count()) {
            return value.refuse("a name has 1 to 255 characters");
        }
        Some((name.to_owned(), value.text_of(0..=1024)?))
    };
    let read: Vec<Option<(String, String)>> = members.into_iter().map(read).collect();
    read.into_iter().collect()
}

/// The subset that a request is meant for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SubsetChoice {
    /// None in particular: all nodes.
    #[default]
    Whole,
    /// The one with this index.
    Subset(usize),
    /// One that the policy does not have.
    Unknown,
}

/// A policy's subsets, in the order of their names: the place there is a subset's index, and its bit in a mask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subsets(Vec<(String, Predicate)>);

impl Subsets {
    /// Those of them that fit: the first [`MAX_SUBSETS`] by name.
    pub fn new(subsets: BTreeMap<String, Predicate>) -> Self {
        Self(subsets.into_iter().take(MAX_SUBSETS).collect())
    }

    pub(crate) fn read(place: &Place<'_>) -> Option<Self> {
        let members = place.members("{\"v1\": {\"version\": \"v1\"}}", 1..=MAX_SUBSETS)?;
        let read = |(name, place): (&str, Place<'_>)| {
            let name = match names::subset(name) {
                Ok(name) => Some(name),
                Err(message) => place.refuse(message),
            };
            let predicate = Predicate::read(&place);
            Some((name?, predicate?))
        };
        let read: Vec<Option<(String, Predicate)>> = members.into_iter().map(read).collect();
        Some(Self::new(read.into_iter().collect::<Option<_>>()?))
    }

    pub(crate) fn to_json(&self) -> Option<Json> {
        let members = || self.0.iter().map(|(name, predicate)| (name.as_str(), Some(predicate.to_json())));
        (!self.0.is_empty()).then(|| Json::object(members()))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each by its name, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Predicate)> {
        self.0.iter().map(|(name, predicate)| (name.as_str(), predicate))
    }

    /// The index of a subset.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.0.binary_search_by(|(known, _)| known.as_str().cmp(name)).ok()
    }

    /// The name of a subset.
    pub fn name(&self, index: usize) -> Option<&str> {
        self.0.get(index).map(|(name, _)| name.as_str())
    }

    /// What a name stands for; without a name, all nodes.
    pub fn choice(&self, name: Option<&str>) -> SubsetChoice {
        match name {
            None => SubsetChoice::Whole,
            Some(name) => self.index(name).map_or(SubsetChoice::Unknown, SubsetChoice::Subset),
        }
    }

    /// The subsets of a node that says this of itself: bit i is set if it belongs to the one with index i.
    pub fn mask(&self, version: &str, tags: &[String], metadata: &BTreeMap<String, String>) -> u64 {
        let bits = self.0.iter().zip(0_u32..u64::BITS);
        bits.fold(0, |mask, ((_, predicate), bit)| mask | u64::from(predicate.takes(version, tags, metadata)) << bit)
    }

    /// The subsets of a node.
    pub fn mask_of(&self, node: &Node) -> u64 {
        self.mask(&node.version, &node.tags, &node.metadata)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predicate(version: Option<&str>, tags: &[&str], metadata: &[(&str, &str)]) -> Predicate {
        Predicate {
            version: version.map(str::to_owned),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            metadata: metadata.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        }
    }

    #[test]
    fn a_node_belongs_where_all_that_is_given_is_met() {
        let subsets = Subsets::new(BTreeMap::from([
            ("v2".into(), predicate(Some("2"), &[], &[])),
            ("canary".into(), predicate(None, &["canary", "x"], &[])),
            ("gold".into(), predicate(Some("2"), &["x"], &[("tier", "gold")])),
        ]));
        assert_eq!(subsets.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["canary", "gold", "v2"]);
        let tags = ["x".to_owned(), "canary".to_owned()];
        let tier = BTreeMap::from([("tier".to_owned(), "gold".to_owned())]);
        assert_eq!(subsets.mask("2", &tags, &tier), 0b111);
        assert_eq!(subsets.mask("2", &tags[..1], &tier), 0b110);
        assert_eq!(subsets.mask("1", &tags, &tier), 0b001);
        assert_eq!(subsets.mask("", &[], &BTreeMap::new()), 0);
        assert_eq!(subsets.choice(Some("gold")), SubsetChoice::Subset(1));
        assert_eq!(subsets.choice(Some("silver")), SubsetChoice::Unknown);
        assert_eq!(subsets.choice(None), SubsetChoice::Whole);
    }

    #[test]
    fn the_last_of_64_subsets_has_the_last_bit() {
        let many = (0..70).map(|n| (format!("s{n:02}"), predicate(Some(&format!("{n}")), &[], &[])));
        let subsets = Subsets::new(many.collect());
        assert_eq!(subsets.iter().len(), MAX_SUBSETS);
        assert_eq!(subsets.mask("63", &[], &BTreeMap::new()), 1 << 63);
        assert_eq!(subsets.mask("64", &[], &BTreeMap::new()), 0);
    }
}
