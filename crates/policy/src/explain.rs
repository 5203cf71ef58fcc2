//! Why a request goes where it goes: the decisions of routes and policies with their reasons, for people and programs.
//!
//! [`explain`](explain()) tells the ways that a request can go, [`Way::choose_among`] what then becomes of it among a
//! service's nodes.

mod nodes;

use serde::Serialize;
use waypost_catalog::ServiceName;

pub use self::nodes::{Exclusion, NodeShare};
use crate::{
    Destination, HeaderMatch, Policy, RequestView, Route, RouteTable, SubsetChoice, Target, format_duration,
    table::Mismatch,
};

/// Why a request goes where it goes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// The rules that were looked at, in order, up to the one that the request meets.
    pub rules: Vec<Rule>,
    /// The id of that one.
    pub rule: Option<String>,
    /// How long the request may take, as the rule says; `0s` is any time.
    pub timeout: Option<String>,
    /// Where the request can go, with what probability.
    pub ways: Vec<Way>,
}

/// A rule that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// The route's id.
    pub id: String,
    /// Its place.
    pub order: u32,
    /// Why the request does not meet it; `None`: it does.
    pub because: Option<Unmet>,
}

/// In what a request is not as a rule has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unmet {
    /// The field of the rule, such as `match.headers.x-env`.
    pub field: String,
    /// What it wants.
    pub wanted: String,
    /// What the request has; `None`: nothing.
    pub found: Option<String>,
}

/// One way that a request can go.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Way {
    /// From 0 to 1.
    pub probability: f64,
    /// The service.
    pub service: String,
    /// What named the service.
    pub service_by: By,
    /// The subset of it; `None`: all its nodes.
    pub subset: Option<String>,
    /// What named the subset.
    pub subset_by: Option<By>,
    /// The subset is none of the policy's, or none of its nodes may be picked: what happens then.
    pub missing_subset: Option<Missing>,
    /// How one of the nodes is picked.
    pub strategy: &'static str,
    /// Whether so few nodes are healthy that health is not looked at.
    pub panicking: bool,
    /// The service's nodes; none before [`Way::choose_among`].
    pub nodes: Vec<NodeShare>,
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// The rule.
    Route,
    /// A split of the rule, at random.
    RouteSplit,
    /// A split of the rule, by the request's header or cookie.
    RouteStickySplit,
    /// No rule: the request's host.
    Host,
    /// The request, by the header that the policy allows.
    Header,
    /// The policy's split, at random.
    PolicySplit,
    /// The policy's split, by the request's header or cookie.
    PolicyStickySplit,
}

/// What happens to a request for a subset that has no node for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// It goes to any node of the service.
    WholeService,
    /// It goes to none.
    NoNode,
}

/// Explains where a request goes. `fallback` is the service of a request that meets no rule, and `policy_of` knows each
/// service's policy; a service without one has the default.
pub fn explain<'p>(
    table: &RouteTable,
    fallback: Option<&ServiceName>,
    policy_of: impl Fn(&ServiceName) -> Option<&'p Policy>,
    request: &mut impl RequestView,
) -> Explanation {
    let tried = table.tried(request);
    let rules = tried.iter().map(|(route, mismatch)| rule(route, mismatch.as_ref())).collect();
    let met = tried.last().filter(|(_, mismatch)| mismatch.is_none()).map(|(route, _)| *route);
    let targets = match met {
        Some(route) => targets(route, request),
        None => fallback
            .map(|service| (Target { service: service.clone(), subset: None }, By::Host, 1.0))
            .into_iter()
            .collect(),
    };
    let default = Policy::default();
    let mut ways = Vec::new();
    for (target, by, probability) in targets {
        let policy = policy_of(&target.service).unwrap_or(&default);
        ways.extend(through_policy(&target, by, probability, policy, request));
    }
    let timeout = met.and_then(|route| route.timeout).map(format_duration);
    Explanation { rules, rule: met.map(|route| route.id.clone()), timeout, ways }
}

/// Where a route sends a request.
fn targets(route: &Route, request: &mut impl RequestView) -> Vec<(Target, By, f64)> {
    match &route.destination {
        Destination::One(target) => vec![(target.clone(), By::Route, 1.0)],
        Destination::Split(split) => match route.sticky_target(request) {
            Some(target) => vec![(target.clone(), By::RouteStickySplit, 1.0)],
            None => {
                let arms = split.arms().filter(|arm| arm.weight > 0);
                arms.map(|arm| (arm.target.clone(), By::RouteSplit, split.share(arm))).collect()
            }
        },
    }
}

/// What becomes of a request that was sent to a service with this policy.
fn through_policy(
    target: &Target,
    by: By,
    probability: f64,
    policy: &Policy,
    request: &mut impl RequestView,
) -> Vec<Way> {
    let way = |subset: Option<&str>, subset_by, probability| Way {
        probability,
        service: target.service.to_string(),
        service_by: by,
        subset: subset.map(str::to_owned),
        subset_by,
        missing_subset: match policy.subsets.choice(subset) {
            SubsetChoice::Unknown if policy.strict_subsets => Some(Missing::NoNode),
            SubsetChoice::Unknown => Some(Missing::WholeService),
            SubsetChoice::Whole | SubsetChoice::Subset(_) => None,
        },
        strategy: policy.strategy.as_str(),
        panicking: false,
        nodes: Vec::new(),
    };
    if let Some(subset) = &target.subset {
        return vec![way(Some(subset), Some(by), probability)];
    }
    if policy.named_subset(request).is_some() {
        let named = policy.subset_header.as_ref().and_then(|name| request.header(name)).unwrap_or_default();
        let name = String::from_utf8_lossy(named.trim_ascii());
        return vec![way(Some(&name), Some(By::Header), probability)];
    }
    let Some(split) = &policy.split else { return vec![way(None, None, probability)] };
    if let Some(arm) = policy.sticky_arm(request) {
        return vec![way(Some(&arm.name), Some(By::PolicyStickySplit), probability)];
    }
    let arms = split.arms().filter(|arm| arm.weight > 0);
    arms.map(|arm| way(Some(&arm.target.name), Some(By::PolicySplit), probability * split.share(arm))).collect()
}

fn rule(route: &Route, mismatch: Option<&Mismatch>) -> Rule {
    Rule { id: route.id.clone(), order: route.order, because: mismatch.map(|mismatch| unmet(route, mismatch)) }
}

fn unmet(route: &Route, mismatch: &Mismatch) -> Unmet {
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let matching = &route.matching;
    match mismatch {
        Mismatch::Host(host) => Unmet {
            field: "match.hosts".to_owned(),
            wanted: joined(&matching.hosts),
            found: (!host.is_empty()).then(|| shown(host)),
        },
        Mismatch::Path(path) => Unmet {
            field: "match.path".to_owned(),
            wanted: matching.path.as_ref().map(ToString::to_string).unwrap_or_default(),
            found: (!path.is_empty()).then(|| shown(path)),
        },
        Mismatch::Method(method) => Unmet {
            field: "match.methods".to_owned(),
            wanted: joined(&matching.methods),
            found: method.as_deref().map(shown),
        },
        Mismatch::Header(name, value) => Unmet {
            field: format!("match.headers.{name}"),
            wanted: matching.headers.get(name).map(header_wanted).unwrap_or_default(),
            found: value.as_deref().map(shown),
        },
    }
}

fn header_wanted(header: &HeaderMatch) -> String {
    match header {
        HeaderMatch::Exact(text) => text.clone(),
        HeaderMatch::Present(true) => "any value".to_owned(),
        HeaderMatch::Present(false) => "none".to_owned(),
        HeaderMatch::Prefix(text) => format!("{text}..."),
        HeaderMatch::Not(text) => format!("not {text}"),
    }
}

fn joined<T: ToString>(wanted: impl IntoIterator<Item = T>) -> String {
    wanted.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::testing::Request;

    const POLICY: &str = r#"{
        "subsets": {"v1": {"version": "1"}, "v2": {"version": "2"}}, "subset_header": "x-subset",
        "split": {"arms": [{"subset": "v1", "weight": 95}, {"subset": "v2", "weight": 5}], "sticky": {"header": "x-user"}}
    }"#;

    fn policy() -> Policy {
        Policy::parse(POLICY.as_bytes()).unwrap()
    }

    fn explained(routes: &[(&str, &str)], mut request: Request) -> Explanation {
        let routes = routes.iter().map(|(id, json)| Route::parse(id, json.as_bytes()).unwrap());
        let (policy, fallback) = (policy(), ServiceName::new("fallback").unwrap());
        let policy_of = |service: &ServiceName| (service.as_str() == "orders").then_some(&policy);
        explain(&RouteTable::new(routes.collect()), Some(&fallback), policy_of, &mut request)
    }

    fn way(probability: f64, service: &str, service_by: By, subset: Option<(&str, By)>) -> Way {
        Way {
            probability,
            service: service.into(),
            service_by,
            subset: subset.map(|(name, _)| name.into()),
            subset_by: subset.map(|(_, by)| by),
            missing_subset: None,
            strategy: "weighted-round-robin",
            panicking: false,
            nodes: Vec::new(),
        }
    }

    fn rounded(explanation: Explanation) -> Vec<Way> {
        let round = |way: Way| Way { probability: (way.probability * 1e6).round() / 1e6, ..way };
        explanation.ways.into_iter().map(round).collect()
    }

    #[test]
    fn each_rule_before_the_one_that_is_met_says_why_it_is_not() {
        let routes = [
            ("host", r#"{"order": 1, "match": {"hosts": ["a.x", "*.b.x"]}, "service": "s"}"#),
            ("path", r#"{"order": 2, "match": {"path": {"pattern": "/a/{id}"}}, "service": "s"}"#),
            ("method", r#"{"order": 3, "match": {"methods": ["PUT", "POST"]}, "service": "s"}"#),
            ("header", r#"{"order": 4, "match": {"headers": {"x-env": "canary"}}, "service": "s"}"#),
            ("none", r#"{"order": 5, "match": {"headers": {"x-user": {"present": false}}}, "service": "s"}"#),
            ("met", r#"{"order": 6, "match": {}, "service": "s", "timeout": "2000ms"}"#),
            ("after", r#"{"order": 7, "match": {}, "service": "s"}"#),
        ];
        let explanation = explained(&routes, Request::get("C.x:80", "/b?c").with("x-user", "u"));
        let because = |index: usize| {
            let Unmet { field, wanted, found } = explanation.rules[index].because.clone().unwrap();
            format!("{field}: {wanted} / {}", found.unwrap_or_default())
        };
        assert_eq!(because(0), "match.hosts: a.x, *.b.x / c.x");
        assert_eq!(because(1), "match.path: /a/{id} / /b");
        assert_eq!(because(2), "match.methods: POST, PUT / GET");
        assert_eq!(because(3), "match.headers.x-env: canary / ");
        assert_eq!(because(4), "match.headers.x-user: none / u");
        assert_eq!((explanation.rules.len(), &explanation.rules[5].because), (6, &None));
        assert_eq!((explanation.rule.as_deref(), explanation.timeout.as_deref()), (Some("met"), Some("2s")));
    }

    #[test]
    fn ways_have_the_probability_of_their_arms() {
        let route = r#"{"order": 1, "match": {}, "service": "orders",
            "split": [{"weight": 1}, {"subset": "v3", "weight": 1}, {"service": "users", "weight": 2}, {"subset": "v1", "weight": 0}]}"#;
        let by = By::RouteSplit;
        let expected = [
            way(0.2375, "orders", by, Some(("v1", By::PolicySplit))),
            way(0.0125, "orders", by, Some(("v2", By::PolicySplit))),
            Way { missing_subset: Some(Missing::WholeService), ..way(0.25, "orders", by, Some(("v3", by))) },
            way(0.5, "users", by, None),
        ];
        assert_eq!(rounded(explained(&[("r", route)], Request::get("a", "/"))), expected);
    }

    #[test]
    fn what_the_request_decides_is_certain() {
        let orders = [("r", r#"{"order": 1, "match": {}, "service": "orders"}"#)];
        let header = explained(&orders, Request::get("a", "/").with("x-subset", "v2").with("x-user", "u"));
        assert_eq!(header.ways, [way(1.0, "orders", By::Route, Some(("v2", By::Header)))]);
        let unknown = explained(&orders, Request::get("a", "/").with("x-subset", "v9"));
        assert_eq!(unknown.ways[0].missing_subset, Some(Missing::WholeService));
        let mut request = Request::get("a", "/").with("x-user", "u");
        let sticky = explained(&orders, request.clone());
        let policy = policy();
        let SubsetChoice::Subset(index) = policy.subset_for(&mut request, 0) else { panic!() };
        assert_eq!(policy.subset_for(&mut request, u64::MAX), SubsetChoice::Subset(index));
        let name = policy.subsets.name(index).unwrap();
        assert_eq!(sticky.ways, [way(1.0, "orders", By::Route, Some((name, By::PolicyStickySplit)))]);
        let none = explained(&[], Request::get("a", "/"));
        assert_eq!(none.ways, [way(1.0, "fallback", By::Host, None)]);
    }
}
