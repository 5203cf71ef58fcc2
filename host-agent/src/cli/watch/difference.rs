//! What makes one state of a service another: of its nodes, and of one node.

use crate::api::types::{CatalogEvent, Node, NodeAdded, NodeChanged, NodeRemoved};

/// What happened to a service's nodes, both in the order of their addresses.
pub(super) fn difference(service: &str, old: &[Node], new: &[Node]) -> Vec<CatalogEvent> {
    let mut events = Vec::new();
    let service = || service.to_owned();
    let at = |nodes: &[Node], node: &Node| nodes.iter().find(|other| other.address == node.address).cloned();
    for node in old.iter().filter(|node| at(new, node).is_none()) {
        events.push(CatalogEvent::Removed(NodeRemoved { service: service(), node: node.clone() }));
    }
    for node in new {
        match at(old, node) {
            None => events.push(CatalogEvent::Added(NodeAdded { service: service(), node: node.clone() })),
            Some(old) if old != *node => {
                events.push(CatalogEvent::Changed(NodeChanged { service: service(), old, new: node.clone() }));
            }
            Some(_) => {}
        }
    }
    events
}

/// A field that is another now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) old: String,
    pub(super) new: String,
}

/// What differs between two states of a node at one address.
pub(super) fn fields(old: &Node, new: &Node) -> Vec<Field> {
    let protocol = |node: &Node| waypost_catalog::Node::from(node.clone()).protocol.as_str().to_owned();
    let plain = [
        ("health", old.health.as_str().to_owned(), new.health.as_str().to_owned()),
        ("weight", old.weight.to_string(), new.weight.to_string()),
        ("zone", old.zone.clone(), new.zone.clone()),
        ("version", old.version.clone(), new.version.clone()),
        ("tags", old.tags.join(","), new.tags.join(",")),
        ("protocol", protocol(old), protocol(new)),
        ("id", old.id.clone(), new.id.clone()),
    ];
    let plain = plain.map(|(name, old, new)| Field { name: name.to_owned(), old, new });
    let names: std::collections::BTreeSet<&String> = old.metadata.keys().chain(new.metadata.keys()).collect();
    let value = |node: &Node, name: &String| node.metadata.get(name).cloned().unwrap_or_default();
    let metadata = names.into_iter().map(|name| Field {
        name: format!("metadata.{name}"),
        old: value(old, name),
        new: value(new, name),
    });
    plain.into_iter().chain(metadata).filter(|field| field.old != field.new).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::api::types::Health;

    fn node(port: u16) -> Node {
        Node::from(&waypost_catalog::Node::at(([10, 0, 0, 1], port).into()))
    }

    #[test]
    fn what_went_comes_before_what_came_and_what_stayed_is_not_told() {
        let changed = Node { weight: 5, ..node(2) };
        let events = difference("web", &[node(1), node(2), node(3)], &[changed.clone(), node(3), node(4)]);
        let service = || "web".to_owned();
        let expected = [
            CatalogEvent::Removed(NodeRemoved { service: service(), node: node(1) }),
            CatalogEvent::Changed(NodeChanged { service: service(), old: node(2), new: changed }),
            CatalogEvent::Added(NodeAdded { service: service(), node: node(4) }),
        ];
        assert_eq!(events, expected);
    }

    #[test]
    fn every_field_of_a_node_is_compared() {
        let new = Node {
            weight: 3,
            health: Health::Draining,
            protocol: crate::api::types::Protocol::Http2,
            id: "i".into(),
            zone: "z".into(),
            version: "v".into(),
            tags: vec!["a".into(), "b".into()],
            metadata: BTreeMap::from([("owner".into(), "me".into())]),
            ..node(1)
        };
        let found: Vec<String> =
            fields(&node(1), &new).iter().map(|f| format!("{} {:?} {:?}", f.name, f.old, f.new)).collect();
        let expected = [
            "health \"passing\" \"draining\"",
            "weight \"1\" \"3\"",
            "zone \"\" \"z\"",
            "version \"\" \"v\"",
            "tags \"\" \"a,b\"",
            "protocol \"http1\" \"http2\"",
            "id \"10.0.0.1:1\" \"i\"",
            "metadata.owner \"\" \"me\"",
        ];
        assert_eq!(found, expected);
    }
}
