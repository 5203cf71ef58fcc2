//! Which nodes are asked for.

use waypost_catalog::Node;

use super::types::{NodeQuery, PickQuery};

/// Conditions that a node meets all of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    healthy: Option<bool>,
    tag: Option<String>,
    zone: Option<String>,
    version: Option<String>,
}

impl Filter {
    /// Whether a node meets them.
    pub fn takes(&self, node: &Node) -> bool {
        self.healthy.is_none_or(|healthy| node.is_pickable() == healthy)
            && self.tag.as_ref().is_none_or(|tag| node.tags.contains(tag))
            && self.zone.as_ref().is_none_or(|zone| node.zone == *zone)
            && self.version.as_ref().is_none_or(|version| node.version == *version)
    }
}

impl From<NodeQuery> for Filter {
    fn from(NodeQuery { healthy, tag, zone, version, service: _ }: NodeQuery) -> Self {
        Self { healthy, tag, zone, version }
    }
}

impl From<PickQuery> for Filter {
    fn from(PickQuery { strategy: _, tag, zone, version }: PickQuery) -> Self {
        Self { healthy: Some(true), tag, zone, version }
    }
}

#[cfg(test)]
mod tests {
    use waypost_catalog::Health;

    use super::*;

    #[test]
    fn a_node_is_taken_if_it_meets_every_condition() {
        let node = Node {
            tags: vec!["canary".into(), "eu".into()],
            zone: "a".into(),
            version: "2".into(),
            ..Node::at(([10, 0, 0, 1], 80).into())
        };
        let query = NodeQuery { tag: Some("eu".into()), zone: Some("a".into()), ..NodeQuery::default() };
        assert!(Filter::default().takes(&node) && Filter::from(query.clone()).takes(&node));
        for other in [
            NodeQuery { tag: Some("us".into()), ..query.clone() },
            NodeQuery { zone: Some("b".into()), ..query.clone() },
            NodeQuery { version: Some("1".into()), ..query.clone() },
            NodeQuery { healthy: Some(false), ..query },
        ] {
            assert!(!Filter::from(other.clone()).takes(&node), "{other:?}");
        }
    }

    #[test]
    fn healthy_is_what_may_be_picked() {
        let passing = Node::at(([10, 0, 0, 1], 80).into());
        let asked = |healthy| Filter::from(NodeQuery { healthy: Some(healthy), ..NodeQuery::default() });
        for other in [
            Node { health: Health::Draining, ..passing.clone() },
            Node { health: Health::Critical, ..passing.clone() },
            Node { weight: 0, ..passing.clone() },
        ] {
            assert!(!asked(true).takes(&other) && asked(false).takes(&other), "{other:?}");
            assert!(!Filter::from(PickQuery::default()).takes(&other), "{other:?}");
        }
        assert!(asked(true).takes(&passing) && !asked(false).takes(&passing));
    }
}
