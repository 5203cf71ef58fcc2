//! What the frameworks' values have in common: JSON as Go writes it, labels as a map of texts, weights as integers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use waypost_catalog::Node;

use super::{DecodeError, EncodeError};

/// Free data by name. Go writes an empty one as `null`.
pub(super) type Labels = BTreeMap<String, String>;

/// The label under which a framework without a field for it gets a node's zone.
pub(super) const ZONE: &str = "zone";
/// The same for its version.
pub(super) const VERSION: &str = "version";

pub(super) fn read<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, DecodeError> {
    serde_json::from_slice(value).map_err(|error| DecodeError::Json(error.to_string()))
}

pub(super) fn write<T: Serialize>(value: &T) -> Result<Vec<u8>, EncodeError> {
    serde_json::to_vec(value).map_err(|error| EncodeError::Json(error.to_string()))
}

/// Free data as text: what is none becomes its JSON.
pub(super) fn text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// A weight for which a framework takes `default` if it is missing or not above 0.
pub(super) fn weight_or(default: u32, weight: Option<i64>) -> u32 {
    match weight {
        Some(weight) if weight > 0 => u32::try_from(weight).unwrap_or(u32::MAX),
        _ => default,
    }
}

/// A weight that means what it says, none if it is below 0.
pub(super) fn weight_as_it_is(weight: i64) -> u32 {
    u32::try_from(weight.max(0)).unwrap_or(u32::MAX)
}

/// The label's text, which is taken out; empty if there is none.
pub(super) fn take(labels: &mut Labels, name: &str) -> String {
    labels.remove(name).unwrap_or_default()
}

/// A node's metadata, and its zone beside them.
pub(super) fn labels_of(node: &Node) -> BTreeMap<&str, &str> {
    let zone = Some((ZONE, node.zone.as_str())).filter(|(_, zone)| !zone.is_empty());
    node.metadata.iter().map(|(name, text)| (name.as_str(), text.as_str())).chain(zone).collect()
}

/// The same, and its version, for a framework that has no field for that either.
pub(super) fn labels_with_version(node: &Node) -> BTreeMap<&str, &str> {
    let mut labels = labels_of(node);
    if !node.version.is_empty() {
        labels.insert(VERSION, &node.version);
    }
    labels
}

/// Go's `null` for a map that nothing was ever put into.
pub(super) fn or_null<'a>(labels: BTreeMap<&'a str, &'a str>) -> Option<BTreeMap<&'a str, &'a str>> {
    Some(labels).filter(|labels| !labels.is_empty())
}
