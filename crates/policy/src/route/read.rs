//! A route's document.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use waypost_catalog::ServiceName;

use super::{Destination, HeaderMatch, HostPattern, Match, PathMatch, Route, Target};
use crate::{
    Arm, MAX_ARMS, Split, Sticky,
    json::Json,
    names,
    reader::{Fields, Place},
};

const LONGEST: Duration = Duration::from_secs(24 * 3_600);

/// What is wrong is noted where it stands: whatever is made of it is not used.
pub(super) fn route(fields: &mut Fields<'_>, id: String) -> Option<Route> {
    let order = fields.require("order", "its place among all routes, such as 10; the lowest that matches counts");
    let order = order.and_then(|order| order.integer(0..=u32::MAX));
    let matching = fields.require("match", "the requests that it is for; {} for all");
    let matching = matching.and_then(|matching| read_match(&matching));
    let destination = destination(fields);
    let timeout = fields.get("timeout").and_then(|timeout| timeout.duration(Duration::ZERO..=LONGEST));
    Some(Route { id, order: order?, matching: matching?, destination: destination?, timeout })
}

fn read_match(place: &Place<'_>) -> Option<Match> {
    let mut fields = place.fields("an object; {} for all requests")?;
    let hosts = fields.get("hosts");
    let hosts =
        hosts.and_then(|hosts| hosts.list("[\"api.example.com\"]", 1..=256, |host| host.parsed(HostPattern::parse)));
    let path = fields.get("path").and_then(|path| read_path(&path));
    let methods = fields.get("methods");
    let methods = methods.and_then(|methods| methods.list("[\"GET\"]", 1..=64, |method| method.parsed(names::method)));
    let headers = fields.get("headers").and_then(|headers| read_headers(&headers));
    fields.finish();
    Some(Match {
        hosts: hosts.unwrap_or_default().into_iter().collect(),
        path,
        methods: methods.unwrap_or_default().into_iter().collect::<BTreeSet<_>>(),
        headers: headers.unwrap_or_default(),
    })
}

fn read_path(place: &Place<'_>) -> Option<PathMatch> {
    const FORM: &str = "write {\"exact\": PATH}, {\"prefix\": PATH} or {\"pattern\": PATH}";
    let mut fields = place.fields("an object, such as {\"prefix\": \"/api/\"}")?;
    let (exact, prefix, pattern) = (fields.get("exact"), fields.get("prefix"), fields.get("pattern"));
    let path = match (exact, prefix, pattern) {
        (Some(path), None, None) => path.parsed(names::path).map(PathMatch::Exact),
        (None, Some(path), None) => path.parsed(names::path).map(PathMatch::Prefix),
        (None, None, Some(path)) => path.parsed(PathMatch::pattern),
        _ => fields.refuse(format!("one of the three is needed: {FORM}")),
    };
    fields.finish();
    path
}

fn read_headers(place: &Place<'_>) -> Option<BTreeMap<String, HeaderMatch>> {
    let mut read = BTreeMap::new();
    for (name, place) in place.members("{\"x-env\": \"canary\"}", 1..=64)? {
        let name = match names::header(name) {
            Ok(name) => Some(name),
            Err(message) => place.refuse(message),
        };
        if let (Some(name), Some(header)) = (name, read_header(&place))
            && read.insert(name, header).is_some()
        {
            place.refuse::<()>("is there more than once: the case of letters does not count");
        }
    }
    Some(read)
}

fn read_header(place: &Place<'_>) -> Option<HeaderMatch> {
    const FORM: &str = "write its value, {\"present\": true}, {\"prefix\": TEXT} or {\"not\": TEXT}";
    if !place.is_object() {
        return match place.json() {
            Json::Text(_) => place.text_of(0..=4096).map(HeaderMatch::Exact),
            other => place.refuse(format!("{} is nothing that a header could be like: {FORM}", other.described())),
        };
    }
    let mut fields = place.fields("an object")?;
    let (present, prefix, not) = (fields.get("present"), fields.get("prefix"), fields.get("not"));
    let header = match (present, prefix, not) {
        (Some(present), None, None) => present.boolean().map(HeaderMatch::Present),
        (None, Some(prefix), None) => prefix.text_of(1..=4096).map(HeaderMatch::Prefix),
        (None, None, Some(not)) => not.text_of(0..=4096).map(HeaderMatch::Not),
        _ => fields.refuse(format!("one of the three is needed: {FORM}")),
    };
    fields.finish();
    header
}

fn destination(fields: &mut Fields<'_>) -> Option<Destination> {
    const EXAMPLE: &str = "[{\"subset\": \"v1\", \"weight\": 95}, {\"subset\": \"v2\", \"weight\": 5}]";
    let has_service = fields.has("service");
    let service = fields.get("service").and_then(|place| place.parsed(names::service));
    let subset = fields.get("subset").map(|place| place.parsed(names::subset));
    let split = fields.get("split");
    let sticky = fields.get("sticky").map(|place| Sticky::read(&place));
    let Some(split) = split else {
        if !has_service {
            fields.problem("service", "missing: write the service's name, or share requests out with split");
        }
        if sticky.is_some() {
            fields.problem("sticky", "is for a split: without one there is nothing to stick to");
        }
        let subset = match subset {
            None => None,
            Some(subset) => Some(subset?),
        };
        return Some(Destination::One(Target { service: service?, subset }));
    };
    if subset.is_some() {
        fields.problem("subset", "beside split, whose arms name theirs: write one of the two");
    }
    let arms = split.items(EXAMPLE, 1..=MAX_ARMS)?;
    let mut read: Vec<Arm<Target>> = Vec::new();
    let mut all = true;
    for place in arms {
        match arm(&place, has_service, service.as_ref(), &read) {
            Some(arm) => read.push(arm),
            None => all = false,
        }
    }
    if !all {
        return None;
    }
    match Split::new(read, sticky.flatten()) {
        Some(split) => Some(Destination::Split(split)),
        None => split.refuse("their weights are all 0: one at least has to get requests"),
    }
}

fn arm(
    place: &Place<'_>,
    has_default: bool,
    default: Option<&ServiceName>,
    before: &[Arm<Target>],
) -> Option<Arm<Target>> {
    let mut fields = place.fields("an object, such as {\"subset\": \"v1\", \"weight\": 95}")?;
    let service = match fields.get("service") {
        Some(place) => place.parsed(names::service),
        None if has_default => default.cloned(),
        None => {
            fields.problem("service", "missing: write the service's name, here or for all arms beside split");
            None
        }
    };
    let subset = match fields.get("subset") {
        Some(place) => place.parsed(names::subset).map(Some),
        None => Some(None),
    };
    let weight = fields.require("weight", "its share, such as 95").and_then(|place| place.integer(0..=u32::MAX));
    fields.finish();
    let target = Target { service: service?, subset: subset? };
    if before.iter().any(|arm| arm.target == target) {
        return place.refuse("goes where another arm goes already: add up the weights");
    }
    Some(Arm { target, weight: weight? })
}
