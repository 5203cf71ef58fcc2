//! What becomes of a request among a service's nodes, and why the others get nothing of it.

use std::time::Duration;

use serde::Serialize;
use waypost_balance::{Ask, CHOICES, Health as BalanceHealth, NodeView, Pool, Selector, Settings};
use waypost_catalog::{Health, Node, model::node_key};

use super::{Missing, Way};
use crate::{Compiled, Policy, RequestView, Strategy, SubsetChoice, zone_number};

/// A node and what it gets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeShare {
    /// Its name in the registry.
    pub id: String,
    /// Where it listens.
    pub address: String,
    /// `passing`, `critical` or `draining`.
    pub health: &'static str,
    /// Its weight.
    pub weight: u32,
    /// Failure domain; empty if unknown.
    pub zone: String,
    /// Version of what runs there; empty if unknown.
    pub version: String,
    /// Its priority level.
    pub level: u8,
    /// How likely a request of this way goes there first, from 0 to 1. With strategies that go by outcomes: as long as
    /// all nodes are equally busy and fast.
    pub probability: f64,
    /// Why it gets nothing.
    pub excluded: Option<Exclusion>,
}

/// Why a node gets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exclusion {
    /// It does not belong to the subset.
    OtherSubset,
    /// It is about to leave.
    Draining,
    /// Its check fails.
    Critical,
    /// Its weight is 0.
    NoWeight,
    /// The nodes of its priority level are not needed.
    OtherLevel,
    /// Nodes of nearer zones take all.
    OtherZone,
    /// The request's key leads to another node.
    OtherHash,
    /// The request's cookie names another node.
    OtherCookie,
}

impl Way {
    /// Fills in what becomes of a request that goes this way, among all nodes of the service. What only the agent knows of
    /// them, slow start and what a component says, is taken from their placement.
    pub fn choose_among(&mut self, compiled: &Compiled, nodes: &[Node], request: &mut impl RequestView) {
        let policy = &compiled.policy;
        let hash = match &policy.strategy {
            Strategy::ConsistentHash(hashing) => hashing.key.of(request),
            _ => None,
        };
        let preferred = policy.sticky.as_ref().and_then(|sticky| sticky.key(request));
        let settings = compiled.settings();
        let choice = policy.subsets.choice(self.subset.as_deref());
        let bit = match choice {
            SubsetChoice::Subset(index) => 1_u64.checked_shl(u32::try_from(index).unwrap_or(u32::MAX)).unwrap_or(0),
            SubsetChoice::Whole | SubsetChoice::Unknown => 0,
        };
        let is_whole = choice == SubsetChoice::Whole;
        let mut belongs: Vec<bool> =
            nodes.iter().map(|node| is_whole || policy.subsets.mask_of(node) & bit != 0).collect();
        let mut group = Group::new(policy, &settings, nodes, &belongs);
        if !is_whole && group.selector.is_empty() {
            let instead = if policy.strict_subsets { Missing::NoNode } else { Missing::WholeService };
            self.missing_subset = Some(instead);
            if instead == Missing::WholeService {
                belongs.fill(true);
                group = Group::new(policy, &settings, nodes, &belongs);
            }
        }
        self.panicking = group.selector.is_panicking();
        let shares = group.shares(hash, preferred);
        let mut shares = shares.into_iter();
        self.nodes = nodes
            .iter()
            .zip(belongs)
            .map(|(node, belongs)| {
                let share = if belongs { shares.next() } else { None };
                node_share(policy, node, share)
            })
            .collect();
        self.explain_levels();
    }

    /// Tells apart why nodes that could be picked are not: some of their own level are, or none.
    fn explain_levels(&mut self) {
        let picked: Vec<u8> = self.nodes.iter().filter(|node| node.probability > 0.0).map(|node| node.level).collect();
        for node in &mut self.nodes {
            if node.excluded == Some(Exclusion::OtherZone) && !picked.contains(&node.level) {
                node.excluded = Some(Exclusion::OtherLevel);
            }
        }
    }
}

/// Probability, and why it is none.
type Share = (f64, Option<Exclusion>);

fn node_share(policy: &Policy, node: &Node, share: Option<Share>) -> NodeShare {
    let (probability, excluded) = share.unwrap_or((0.0, Some(Exclusion::OtherSubset)));
    let excluded = excluded.map(|excluded| match node.health {
        _ if excluded == Exclusion::OtherSubset => excluded,
        Health::Draining => Exclusion::Draining,
        Health::Critical => Exclusion::Critical,
        Health::Passing if node.effective_weight() == 0 => Exclusion::NoWeight,
        Health::Passing => excluded,
    });
    NodeShare {
        id: node.id.clone(),
        address: node.address.to_string(),
        health: node.health.as_str(),
        weight: node.effective_weight(),
        zone: node.zone.clone(),
        version: node.version.clone(),
        level: level(policy, node),
        probability,
        excluded,
    }
}

fn level(policy: &Policy, node: &Node) -> u8 {
    policy.priority.as_ref().map_or(node.placement.priority, |priority| priority.level(&node.zone, &node.metadata))
}

/// Nodes that are chosen among.
struct Group {
    views: Vec<NodeView>,
    pool: Pool,
    selector: Selector,
}

impl Group {
    fn new(policy: &Policy, settings: &Settings, nodes: &[Node], belongs: &[bool]) -> Self {
        let view = |node: &Node| NodeView {
            key: node_key(&node.address.to_string()),
            weight: node.effective_weight(),
            warmup: node.placement.warmup,
            health: match node.health {
                Health::Passing => BalanceHealth::Passing,
                Health::Critical => BalanceHealth::Critical,
                Health::Draining => BalanceHealth::Draining,
            },
            priority: level(policy, node),
            zone: zone_number(&node.zone),
        };
        let members = nodes.iter().zip(belongs).filter(|(_, belongs)| **belongs);
        let views: Vec<NodeView> = members.map(|(node, _)| view(node)).collect();
        let mut pool = Pool::new();
        let slots = pool.sync(views.iter().map(|view| view.key), Duration::ZERO);
        let mut selector = Selector::new(&views, &slots, &pool, settings, 0, true, None);
        while selector.is_building() {
            selector.advance(usize::MAX);
        }
        Self { views, pool, selector }
    }

    /// Of each member; whoever could be picked for another request of its zone is told from who could not.
    fn shares(&mut self, hash: Option<u64>, preferred: Option<u64>) -> Vec<Share> {
        let of_any = self.selector.shares(None);
        let named = preferred.filter(|key| self.takes(*key));
        let of_this = if hash.is_some() { self.selector.shares(hash) } else { of_any.clone() };
        let all = self.views.iter().zip(of_any).zip(of_this);
        let share = |((view, of_any), of_this): ((&NodeView, f64), f64)| match named {
            Some(key) if view.key == key => (1.0, None),
            Some(_) if of_any > 0.0 => (0.0, Some(Exclusion::OtherCookie)),
            None if of_this > 0.0 => (of_this, None),
            None if of_any > 0.0 => (0.0, Some(Exclusion::OtherHash)),
            _ => (0.0, Some(Exclusion::OtherZone)),
        };
        all.map(share).collect()
    }

    /// Whether the node with this key would be picked for a client that had it before.
    fn takes(&mut self, key: u64) -> bool {
        let mut choices = [0; CHOICES];
        let ask = Ask { preferred: Some(key), ..Ask::default() };
        let count = self.selector.choose(&self.pool, &ask, &mut choices);
        let [first, ..] = choices;
        count > 0 && self.views.get(first).is_some_and(|view| view.key == key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RouteTable, explain, request::testing::Request};

    fn node(port: u16, change: impl FnOnce(&mut Node)) -> Node {
        let mut node = Node::at(([10, 0, 0, 1], port).into());
        change(&mut node);
        node
    }

    fn compiled(policy: &str, zone: &str) -> Compiled {
        Compiled::new(Policy::parse(policy.as_bytes()).unwrap(), zone.into(), [])
    }

    fn way(compiled: &Compiled, nodes: &[Node], mut request: Request) -> Way {
        let service = waypost_catalog::ServiceName::new("s").unwrap();
        let explanation = explain(&RouteTable::default(), Some(&service), |_| Some(&compiled.policy), &mut request);
        let mut way = explanation.ways.into_iter().next().unwrap();
        way.choose_among(compiled, nodes, &mut request);
        way
    }

    fn shares(way: &Way) -> Vec<Share> {
        way.nodes.iter().map(|node| ((node.probability * 1e6).round() / 1e6, node.excluded)).collect()
    }

    #[test]
    fn each_node_that_gets_nothing_says_why() {
        let policy = r#"{"subsets": {"v2": {"version": "2"}}, "subset_header": "x-s", "panic_threshold": 0}"#;
        let v2 = |node: &mut Node| node.version = "2".into();
        let nodes = [
            node(1, |node| (v2(node), node.weight = 3).1),
            node(2, v2),
            node(3, |_| {}),
            node(4, |node| (v2(node), node.health = Health::Critical).1),
            node(5, |node| (v2(node), node.health = Health::Draining).1),
            node(6, |node| (v2(node), node.weight = 0).1),
        ];
        let way = way(&compiled(policy, ""), &nodes, Request::get("s", "/").with("x-s", "v2"));
        let none = |why| (0.0, Some(why));
        let expected = [
            (0.75, None),
            (0.25, None),
            none(Exclusion::OtherSubset),
            none(Exclusion::Critical),
            none(Exclusion::Draining),
            none(Exclusion::NoWeight),
        ];
        assert_eq!(shares(&way), expected);
        assert_eq!((way.panicking, way.missing_subset, way.nodes[0].health), (false, None, "passing"));
    }

    #[test]
    fn levels_and_zones_are_told_apart() {
        let zoned = |port, zone: &str| node(port, |node| node.zone = zone.into());
        let policy = r#"{"priority": {"zones": ["a", "b"]}}"#;
        let nodes = [zoned(1, "a"), zoned(2, "b"), zoned(3, "a")];
        let half = (0.5, None);
        let by_level = way(&compiled(policy, ""), &nodes, Request::get("s", "/"));
        assert_eq!(shares(&by_level), [half, (0.0, Some(Exclusion::OtherLevel)), half]);
        assert_eq!(by_level.nodes[1].level, 1);
        let policy = r#"{"locality": {"min_nodes": 1}}"#;
        let nodes = [zoned(1, "a"), zoned(2, "b")];
        let by_zone = way(&compiled(policy, "a"), &nodes, Request::get("s", "/"));
        assert_eq!(shares(&by_zone), [(1.0, None), (0.0, Some(Exclusion::OtherZone))]);
    }

    #[test]
    fn a_key_or_a_cookie_leads_to_one_node() {
        let policy =
            r#"{"strategy": {"name": "consistent-hash", "key": {"header": "x-user"}}, "sticky": {"cookie": "n"}}"#;
        let compiled = compiled(policy, "");
        let nodes = [node(1, |_| {}), node(2, |_| {}), node(3, |node| node.health = Health::Critical)];
        let hashed = way(&compiled, &nodes, Request::get("s", "/").with("x-user", "u"));
        let mut found = shares(&hashed);
        assert_eq!(found.pop(), Some((0.0, Some(Exclusion::Critical))));
        found.sort_by(|one, other| one.0.total_cmp(&other.0));
        assert_eq!(found, [(0.0, Some(Exclusion::OtherHash)), (1.0, None)]);
        let cookie: &'static str = format!("n={:016x}", node_key("10.0.0.1:2")).leak();
        let sticky = way(&compiled, &nodes, Request::get("s", "/").with("cookie", cookie));
        assert_eq!(shares(&sticky)[..2], [(0.0, Some(Exclusion::OtherCookie)), (1.0, None)]);
        // One that is critical is not gone back to.
        let cookie: &'static str = format!("n={:016x}", node_key("10.0.0.1:3")).leak();
        let lost = way(&compiled, &nodes, Request::get("s", "/").with("cookie", cookie));
        assert!(lost.nodes[0].probability > 0.4 && lost.nodes[1].probability > 0.4, "{lost:?}");
    }

    #[test]
    fn an_empty_subset_is_the_whole_service_unless_the_policy_is_strict() {
        let policy = |strict| {
            format!(
                r#"{{"subsets": {{"v2": {{"version": "2"}}}}, "subset_header": "x-s", "strict_subsets": {strict}}}"#
            )
        };
        let nodes = [node(1, |_| {}), node(2, |node| (node.version = "2".into(), node.health = Health::Draining).1)];
        for (name, strict) in [("v2", false), ("v9", false), ("v2", true), ("v9", true)] {
            let way = way(&compiled(&policy(strict), ""), &nodes, Request::get("s", "/").with("x-s", name));
            let (instead, first) = match strict {
                false => (Missing::WholeService, (1.0, None)),
                true => (Missing::NoNode, (0.0, Some(Exclusion::OtherSubset))),
            };
            assert_eq!((way.missing_subset, shares(&way)[0]), (Some(instead), first), "{name} {strict}");
        }
    }

    #[test]
    fn in_a_panic_critical_nodes_get_requests_too() {
        let nodes = [1, 2, 3]
            .map(|port| node(port, |node| node.health = if port == 1 { Health::Passing } else { Health::Critical }));
        let way = way(&compiled("{}", ""), &nodes, Request::get("s", "/"));
        assert!(way.panicking && way.nodes.iter().all(|node| node.excluded.is_none()), "{way:?}");
    }
}
