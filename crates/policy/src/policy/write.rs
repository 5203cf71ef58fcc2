//! A policy's canonical document: what is as without saying is not said.

use serde_json::Value;

use super::{Component, ComponentSource, Ejection, Locality, Policy, SlowStart, Strategy, SubsetArm, SuccessRate};
use crate::{HashKey, Priority, Split, Sticky, StickyCookie, duration::format_duration, json::Json};

pub(super) fn policy(policy: &Policy) -> Json {
    let default = Policy::default();
    let flag = |value: bool, default: bool| (value != default).then(|| value.into());
    let number = |value: u16, default: u16| (value != default).then(|| u32::from(value).into());
    Json::object([
        ("strategy", (policy.strategy != default.strategy).then(|| strategy(&policy.strategy))),
        ("panic_threshold", number(policy.panic_threshold.into(), default.panic_threshold.into())),
        ("ejection", policy.ejection.as_ref().map(ejection)),
        ("slow_start", policy.slow_start.as_ref().map(slow_start)),
        ("locality", policy.locality.as_ref().map(locality)),
        ("priority", policy.priority.as_ref().map(Priority::to_json)),
        ("overprovisioning", number(policy.overprovisioning, default.overprovisioning)),
        ("subsets", policy.subsets.to_json()),
        ("split", policy.split.as_ref().map(split)),
        ("subset_header", policy.subset_header.as_ref().map(Into::into)),
        ("sticky", policy.sticky.as_ref().map(StickyCookie::to_json)),
        ("component", policy.component.as_ref().map(component)),
        ("outcomes", flag(policy.outcomes, default.outcomes)),
        ("strict_subsets", flag(policy.strict_subsets, default.strict_subsets)),
    ])
}

fn strategy(strategy: &Strategy) -> Json {
    let mut members = vec![("name", Some(strategy.as_str().into()))];
    match strategy {
        Strategy::LeastRequest { choices } => members.push(("choices", Some(u32::from(*choices).into()))),
        Strategy::PeakEwma { decay, default_latency } => members.extend([
            ("decay", Some(format_duration(*decay).into())),
            ("default_latency", Some(format_duration(*default_latency).into())),
        ]),
        Strategy::ConsistentHash(hash) => members.extend([
            ("key", Some(HashKey::to_json(&hash.key))),
            ("table_size", Some(hash.table_size.into())),
            ("bounded_load", hash.bounded_load.map(Into::into)),
        ]),
        Strategy::Random | Strategy::RoundRobin | Strategy::WeightedRandom | Strategy::WeightedRoundRobin => {
            return strategy.as_str().into();
        }
    }
    Json::object(members)
}

fn ejection(ejection: &Ejection) -> Json {
    Json::object([
        ("consecutive_failures", Some(ejection.consecutive_failures.into())),
        ("interval", Some(format_duration(ejection.interval).into())),
        ("base_time", Some(format_duration(ejection.base_time).into())),
        ("max_time", Some(format_duration(ejection.max_time).into())),
        ("max_share", Some(u32::from(ejection.max_share).into())),
        ("success_rate", ejection.success_rate.as_ref().map(success_rate)),
    ])
}

fn success_rate(rate: &SuccessRate) -> Json {
    Json::object([
        ("min_nodes", Some(rate.min_nodes.into())),
        ("min_requests", Some(rate.min_requests.into())),
        ("stdev_factor", Some(rate.stdev_factor.into())),
    ])
}

fn slow_start(slow_start: &SlowStart) -> Json {
    Json::object([
        ("window", Some(format_duration(slow_start.window).into())),
        ("aggression", Some(slow_start.aggression.into())),
        ("min_share", Some(u32::from(slow_start.min_share).into())),
    ])
}

fn locality(locality: &Locality) -> Json {
    Json::object([
        ("zone_aware", Some(locality.zone_aware.into())),
        ("callers", locality.callers.as_ref().map(|callers| callers.as_str().into())),
        ("min_nodes", Some(locality.min_nodes.into())),
    ])
}

fn split(split: &Split<SubsetArm>) -> Json {
    let arms = split
        .arms()
        .map(|arm| Json::object([("subset", Some((&arm.target.name).into())), ("weight", Some(arm.weight.into()))]));
    Json::object([("arms", Some(Json::array(arms))), ("sticky", split.sticky().map(Sticky::to_json))])
}

fn component(component: &Component) -> Json {
    let (name, sha256) = match &component.source {
        ComponentSource::Name(name) => (Some(name.into()), None),
        ComponentSource::Sha256(hash) => (None, Some(hash.into())),
    };
    let parameters = (component.parameters != Value::Null).then(|| (&component.parameters).into());
    Json::object([("name", name), ("sha256", sha256), ("parameters", parameters)])
}
