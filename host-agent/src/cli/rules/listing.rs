//! Lists of policies and routes.

use serde::Serialize;
use waypost_policy::{
    Destination, HeaderMatch, Match, PathMatch, Policy, Priority, Route, Sticky, Strategy, Target, format_duration,
};

use super::{
    super::output::{Align, Cell, Paint, Table, Tone, text},
    Document, Entry, Stored,
};
use crate::rules::RuleKind;

/// All documents of a kind, for programs.
#[derive(Debug, Serialize)]
pub(super) struct Listing<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    policies: Option<Vec<Entry<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    routes: Option<Vec<Entry<'a>>>,
}

pub(super) fn document(kind: RuleKind, stored: &[Stored]) -> Listing<'_> {
    let entries = stored.iter().map(|stored| Entry::of(kind, stored)).collect();
    match kind {
        RuleKind::Policies => Listing { policies: Some(entries), routes: None },
        RuleKind::Routes => Listing { policies: None, routes: Some(entries) },
    }
}

/// All documents of a kind, for people, and below them what is wrong with any.
pub(super) fn render(kind: RuleKind, stored: &[Stored], paint: Paint) -> String {
    if stored.is_empty() {
        return match kind {
            RuleKind::Policies => "no policies\n".to_owned(),
            RuleKind::Routes => "no routes\n".to_owned(),
        };
    }
    let mut read: Vec<_> =
        stored.iter().map(|stored| (stored, Document::parse(kind, &stored.name, &stored.document))).collect();
    // Routes as they are tried; those that nobody tries are last.
    read.sort_by_key(|(_, read)| match read {
        Ok(Document::Route(route)) => (false, route.order),
        Ok(Document::Policy(_)) => (false, 0),
        Err(_) => (kind == RuleKind::Routes, 0),
    });
    let mut out = match kind {
        RuleKind::Policies => policies(&read).render(paint),
        RuleKind::Routes => routes(&read).render(paint),
    };
    let wrong = read.iter().filter_map(|(stored, read)| Some((stored, read.as_ref().err()?)));
    for (index, (stored, problems)) in wrong.enumerate() {
        out.push_str(if index == 0 { "\n" } else { "" });
        for problem in problems.iter() {
            let mark = paint.paint(Tone::Bad, "!");
            out.push_str(&format!(
                "{mark} {}: {}\n",
                text::printable(&stored.name),
                text::printable(&problem.to_string())
            ));
        }
    }
    out
}

type Read<'a> = (&'a Stored, Result<Document, waypost_policy::Problems>);

fn policies(read: &[Read<'_>]) -> Table<5> {
    let mut table = Table::headed([
        ("SERVICE", Align::Left),
        ("STRATEGY", Align::Left),
        ("BESIDES", Align::Left),
        ("REVISION", Align::Right),
        ("VALID", Align::Left),
    ]);
    for (stored, read) in read {
        let (strategy, besides) = match read {
            Ok(Document::Policy(policy)) => (strategy(&policy.strategy), besides(policy)),
            _ => Default::default(),
        };
        let [revision, valid] = state(stored, read.is_ok());
        table.row([(&stored.name).into(), strategy.into(), besides.into(), revision, valid]);
    }
    table
}

fn routes(read: &[Read<'_>]) -> Table<7> {
    let mut table = Table::headed([
        ("ORDER", Align::Right),
        ("ID", Align::Left),
        ("MATCH", Align::Left),
        ("TARGET", Align::Left),
        ("TIMEOUT", Align::Right),
        ("REVISION", Align::Right),
        ("VALID", Align::Left),
    ]);
    for (stored, read) in read {
        let [order, matching, target, timeout] = match read {
            Ok(Document::Route(route)) => [
                route.order.to_string(),
                matching(&route.matching),
                destination(route),
                route.timeout.map(format_duration).unwrap_or_default(),
            ],
            _ => Default::default(),
        };
        let [revision, valid] = state(stored, read.is_ok());
        let id = (&stored.name).into();
        table.row([order.into(), id, matching.into(), target.into(), timeout.into(), revision, valid]);
    }
    table
}

fn state(stored: &Stored, valid: bool) -> [Cell; 2] {
    let valid = if valid { Cell::toned("yes", Tone::Good) } else { Cell::toned("no", Tone::Bad) };
    [stored.revision.to_string().into(), valid]
}

/// A strategy and what it is about.
fn strategy(strategy: &Strategy) -> String {
    use waypost_policy::HashKey;
    let name = strategy.as_str();
    match strategy {
        Strategy::ConsistentHash(hash) => match &hash.key {
            HashKey::Header(header) => format!("{name} by header {header}"),
            HashKey::Cookie(cookie) => format!("{name} by cookie {cookie}"),
            HashKey::Query(parameter) => format!("{name} by query {parameter}"),
            HashKey::Source => format!("{name} by source"),
            HashKey::Path => format!("{name} by path"),
        },
        _ => name.to_owned(),
    }
}

/// What else a policy says, in a few words.
fn besides(policy: &Policy) -> String {
    let mut words = Vec::new();
    if !policy.subsets.is_empty() {
        words.push(text::count(policy.subsets.iter().len(), "subset"));
    }
    if let Some(split) = &policy.split {
        let shares: Vec<String> = split.arms().map(|arm| arm.weight.to_string()).collect();
        words.push(format!("split {}", shares.join("/")));
    }
    let parts = [
        (policy.ejection.is_some(), "ejection"),
        (policy.slow_start.is_some(), "slow start"),
        (policy.locality.as_ref().is_some_and(|locality| locality.zone_aware), "zones"),
        (policy.sticky.is_some(), "sticky"),
    ];
    words.extend(parts.into_iter().filter(|(is_there, _)| *is_there).map(|(_, word)| word.to_owned()));
    match &policy.priority {
        Some(Priority::Zones(_)) => words.push("priority by zone".to_owned()),
        Some(Priority::Metadata(name)) => words.push(format!("priority by {name}")),
        None => {}
    }
    if policy.component.is_some() {
        words.push("component".to_owned());
    }
    words.join(", ")
}

/// `*.example.com /api/* GET x-env=canary`.
fn matching(matching: &Match) -> String {
    let joined = |texts: Vec<String>| texts.join(",");
    let mut parts = Vec::new();
    if !matching.hosts.is_empty() {
        parts.push(joined(matching.hosts.iter().map(ToString::to_string).collect()));
    }
    match &matching.path {
        Some(path @ PathMatch::Exact(_)) => parts.push(format!("={path}")),
        Some(path @ PathMatch::Prefix(_)) => parts.push(format!("{path}*")),
        Some(path @ PathMatch::Pattern { .. }) => parts.push(path.to_string()),
        None => {}
    }
    if !matching.methods.is_empty() {
        parts.push(joined(matching.methods.iter().cloned().collect()));
    }
    parts.extend(matching.headers.iter().map(|(name, header)| match header {
        HeaderMatch::Exact(text) => format!("{name}={text}"),
        HeaderMatch::Present(true) => format!("{name}=*"),
        HeaderMatch::Present(false) => format!("no {name}"),
        HeaderMatch::Prefix(text) => format!("{name}={text}*"),
        HeaderMatch::Not(text) => format!("{name}!={text}"),
    }));
    if parts.is_empty() { "all".to_owned() } else { parts.join(" ") }
}

/// A service, and the subset of it.
pub(super) fn target(service: &str, subset: Option<&str>) -> String {
    match subset {
        Some(subset) => format!("{service} ({subset})"),
        None => service.to_owned(),
    }
}

fn destination(route: &Route) -> String {
    let named = |one: &Target| target(&one.service, one.subset.as_deref());
    match &route.destination {
        Destination::One(one) => named(one),
        Destination::Split(split) => {
            let arms = split.arms().map(|arm| format!("{} {}", text::percent(split.share(arm)), named(&arm.target)));
            let arms = arms.collect::<Vec<_>>().join(", ");
            match split.sticky() {
                Some(Sticky::Header(name)) => format!("{arms} by header {name}"),
                Some(Sticky::Cookie(name)) => format!("{arms} by cookie {name}"),
                None => arms,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(documents: &[(&str, &str)]) -> Vec<Stored> {
        let stored = documents.iter().zip(7..).map(|((name, document), revision)| Stored {
            name: (*name).to_owned(),
            document: document.as_bytes().to_vec(),
            revision,
        });
        stored.collect()
    }

    #[test]
    fn routes_are_listed_as_they_are_tried_and_what_is_wrong_below_them() {
        let routes = stored(&[
            ("bad", r#"{"order": 1, "match": {"methods": ["get"]}}"#),
            (
                "late",
                r#"{"order": 20, "match": {}, "split": [{"service": "a", "weight": 3}, {"service": "b", "subset": "v2", "weight": 1}], "sticky": {"cookie": "sid"}}"#,
            ),
            (
                "soon",
                r#"{"order": 10, "match": {"hosts": ["*.x", "y"], "path": {"prefix": "/api/"}, "methods": ["GET"], "headers": {"x-env": {"not": "old"}}}, "service": "web", "subset": "v1", "timeout": "1500ms"}"#,
            ),
        ]);
        let expected = "\
ORDER  ID    MATCH                         TARGET                              TIMEOUT  REVISION  VALID
   10  soon  y,*.x /api/* GET x-env!=old   web (v1)                             1500ms         9  yes
   20  late  all                           75.0 % a, 25.0 % b (v2) by cookie sid                8  yes
       bad                                                                                      7  no
";
        let out = render(RuleKind::Routes, &routes, Paint::PLAIN);
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let table = out.split("\n\n").next().unwrap();
        assert_eq!(squeezed(table), squeezed(expected), "{out}");
        assert!(
            out.contains("\n\n! bad: match.methods[0]: \"get\" is no method: write \"GET\"\n! bad: service: missing"),
            "{out}"
        );
    }

    #[test]
    fn policies_are_listed_with_what_they_say() {
        let policies = stored(&[
            ("api", "{}"),
            ("bad", "["),
            (
                "web",
                r#"{"strategy": {"name": "consistent-hash", "key": {"header": "x-user"}}, "ejection": {}, "sticky": {"cookie": "n"},
                "subsets": {"v1": {"version": "1"}, "v2": {"version": "2"}}, "priority": {"metadata": "tier"},
                "split": {"arms": [{"subset": "v1", "weight": 95}, {"subset": "v2", "weight": 5}]}}"#,
            ),
        ]);
        let expected = "\
SERVICE  STRATEGY                          BESIDES                                                     REVISION  VALID
api      weighted-round-robin                                                                                 7  yes
bad                                                                                                           8  no
web      consistent-hash by header x-user  2 subsets, split 95/5, ejection, sticky, priority by tier         9  yes

! bad: no JSON: EOF while parsing a list at line 1 column 1
";
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let out = render(RuleKind::Policies, &policies, Paint::PLAIN);
        assert_eq!(squeezed(&out), squeezed(expected), "{out}");
        assert_eq!(render(RuleKind::Policies, &[], Paint::PLAIN), "no policies\n");
    }
}
