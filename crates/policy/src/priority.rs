//! Priority levels: those of a higher one are there for when too few of the lower ones are healthy.

use std::collections::BTreeMap;

use crate::{json::Json, reader::Place};

/// The last level.
pub const MAX_LEVEL: u8 = 127;

/// What decides on a node's level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Priority {
    /// The place of its zone among these, each of which is there once; the level behind the last one for other zones.
    Zones(Vec<String>),
    /// The number in its metadata under this name. Without any: 0. A larger one than [`MAX_LEVEL`], and what is no
    /// whole number: [`MAX_LEVEL`], since what was meant was hardly the first choice.
    Metadata(String),
}

impl Priority {
    pub(crate) fn read(place: &Place<'_>) -> Option<Self> {
        const FORM: &str = "write {\"zones\": [...]} or {\"metadata\": NAME}";
        let mut fields = place.fields("an object, such as {\"zones\": [\"eu-1\", \"eu-2\"]}")?;
        let (zones, metadata) = (fields.get("zones"), fields.get("metadata"));
        let priority = match (zones, metadata) {
            (Some(zones), None) => read_zones(&zones).map(Self::Zones),
            (None, Some(name)) => name.text_of(1..=255).map(Self::Metadata),
            _ => fields.refuse(format!("one of the two is needed: {FORM}")),
        };
        fields.finish();
        priority
    }

    pub(crate) fn to_json(&self) -> Json {
        match self {
            Self::Zones(zones) => Json::object([("zones", Some(Json::array(zones)))]),
            Self::Metadata(name) => Json::object([("metadata", Some(name.into()))]),
        }
    }

    /// The level of a node; 0 is the first choice.
    pub fn level(&self, zone: &str, metadata: &BTreeMap<String, String>) -> u8 {
        match self {
            Self::Zones(zones) => {
                let place = zones.iter().position(|known| known == zone).unwrap_or(zones.len());
                u8::try_from(place).unwrap_or(MAX_LEVEL).min(MAX_LEVEL)
            }
            Self::Metadata(name) => match metadata.get(name) {
                None => 0,
                Some(text) => text.parse().unwrap_or(MAX_LEVEL).min(MAX_LEVEL),
            },
        }
    }
}

fn read_zones(place: &Place<'_>) -> Option<Vec<String>> {
    let zones = place.items("[\"eu-1\", \"eu-2\"]", 1..=usize::from(MAX_LEVEL))?;
    let mut read: Vec<String> = Vec::new();
    let mut all = true;
    for zone in zones {
        match zone.text_of(1..=255) {
            Some(text) if read.contains(&text) => all = zone.refuse::<()>("is there more than once").is_some(),
            Some(text) => read.push(text),
            None => all = false,
        }
    }
    all.then_some(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_have_the_level_of_their_place_and_others_come_last() {
        let priority = Priority::Zones(vec!["a".into(), "b".into()]);
        let level = |zone| priority.level(zone, &BTreeMap::new());
        assert_eq!([level("a"), level("b"), level("c"), level("")], [0, 1, 2, 2]);
    }

    #[test]
    fn metadata_is_a_number_and_what_is_none_comes_last() {
        let priority = Priority::Metadata("tier".into());
        let level = |tier: &str| priority.level("", &[("tier".to_owned(), tier.to_owned())].into());
        assert_eq!(priority.level("", &BTreeMap::new()), 0);
        assert_eq!([level("0"), level("3"), level("127")], [0, 3, 127]);
        assert_eq!([level("128"), level("1000"), level("-1"), level("gold"), level("")], [127; 5]);
    }
}
