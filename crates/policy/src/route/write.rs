//! A route's canonical document.

use super::{Destination, HeaderMatch, Match, PathMatch, Route, Target};
use crate::{Arm, Sticky, duration::format_duration, json::Json};

pub(super) fn route(route: &Route) -> Json {
    let mut members = vec![
        ("order", Some(route.order.into())),
        ("match", Some(matching(&route.matching))),
        ("timeout", route.timeout.map(|timeout| format_duration(timeout).into())),
    ];
    match &route.destination {
        Destination::One(target) => members.extend(self::target(target)),
        Destination::Split(split) => members.extend([
            ("split", Some(Json::array(split.arms().map(arm)))),
            ("sticky", split.sticky().map(Sticky::to_json)),
        ]),
    }
    Json::object(members)
}

fn target(target: &Target) -> [(&'static str, Option<Json>); 2] {
    [("service", Some(target.service.as_str().into())), ("subset", target.subset.as_ref().map(Into::into))]
}

fn arm(arm: &Arm<Target>) -> Json {
    Json::object(target(&arm.target).into_iter().chain([("weight", Some(arm.weight.into()))]))
}

fn matching(matching: &Match) -> Json {
    let headers =
        || Json::object(matching.headers.iter().map(|(name, header)| (name.as_str(), Some(self::header(header)))));
    Json::object([
        ("hosts", (!matching.hosts.is_empty()).then(|| Json::array(matching.hosts.iter().map(ToString::to_string)))),
        ("path", matching.path.as_ref().map(path)),
        ("methods", (!matching.methods.is_empty()).then(|| Json::array(&matching.methods))),
        ("headers", (!matching.headers.is_empty()).then(headers)),
    ])
}

fn path(path: &PathMatch) -> Json {
    let kind = match path {
        PathMatch::Exact(_) => "exact",
        PathMatch::Prefix(_) => "prefix",
        PathMatch::Pattern { .. } => "pattern",
    };
    Json::object([(kind, Some(path.to_string().into()))])
}

fn header(header: &HeaderMatch) -> Json {
    match header {
        HeaderMatch::Exact(text) => text.into(),
        HeaderMatch::Present(present) => Json::object([("present", Some((*present).into()))]),
        HeaderMatch::Prefix(text) => Json::object([("prefix", Some(text.into()))]),
        HeaderMatch::Not(text) => Json::object([("not", Some(text.into()))]),
    }
}
