//! All routes, and which one a request meets.

use std::{collections::BTreeMap, fmt};

use crate::{
    HeaderMatch, HostPattern, Match, PathMatch, RequestView, Route,
    prefix_index::PrefixIndex,
    request::{without_port, without_query},
    route::{ended, reversed},
};

/// The longest host that is looked for: a longer one is no name of DNS, and meets only what is for any host.
const LONGEST_HOST: usize = 255;

/// All routes in their order, indexed by host and path.
///
/// Only what the candidates among them need is read of a request: its host and path if any route names some, then method
/// and headers if the request comes to a route that asks for them.
#[derive(Clone, Default)]
pub struct RouteTable {
    routes: Vec<Route>,
    /// By host, back to front; `None` without any route.
    hosts: Option<PrefixIndex<Paths>>,
    reads_host: bool,
}

/// Indices of routes, in their order, by path.
#[derive(Clone)]
struct Paths {
    index: PrefixIndex<Vec<u32>>,
    reads_path: bool,
}

impl RouteTable {
    /// The table of these routes.
    pub fn new(mut routes: Vec<Route>) -> Self {
        routes.sort_by(|one, other| (one.order, &one.id).cmp(&(other.order, &other.id)));
        let mut hosts = BTreeMap::<Vec<u8>, BTreeMap<Vec<u8>, Vec<u32>>>::new();
        for (index, route) in (0..).zip(&routes) {
            let Match { hosts: of_route, path, .. } = &route.matching;
            let path = path.as_ref().map(PathMatch::beginning).unwrap_or_default();
            let any = of_route.is_empty().then(Vec::new);
            for host in of_route.iter().map(HostPattern::reversed).chain(any) {
                hosts.entry(host).or_default().entry(path.clone()).or_default().push(index);
            }
        }
        let paths = |(host, paths)| {
            let index = PrefixIndex::new(paths);
            (host, Paths { reads_path: index.distinguishes(), index })
        };
        let hosts = PrefixIndex::new(hosts.into_iter().map(paths).collect());
        Self { reads_host: hosts.distinguishes(), hosts: (!routes.is_empty()).then_some(hosts), routes }
    }

    /// Every route, in order.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The first route that a request meets.
    pub fn find(&self, request: &mut impl RequestView) -> Option<&Route> {
        let hosts = self.hosts.as_ref()?;
        let host = if self.reads_host { reversed(&host(request)) } else { Vec::new() };
        let candidates: Vec<&Paths> = hosts.beginnings(&host).collect();
        let path = match candidates.iter().any(|paths| paths.reads_path) {
            true => path(request),
            false => Vec::new(),
        };
        let ended = ended(&path);
        let mut lists: Vec<&[u32]> = Vec::new();
        for paths in candidates {
            lists.extend(paths.index.beginnings(&ended).map(Vec::as_slice));
        }
        let mut rest = Rest::new(request);
        while let Some(index) = take_least(&mut lists) {
            let route = self.routes.get(index as usize)?;
            // Its host is that of the request, or it would be in none of these lists.
            if rest.differs(&route.matching, None, &path).is_none() {
                return Some(route);
            }
        }
        None
    }

    /// Every route up to the first that a request meets, and why it does not meet those before.
    pub(crate) fn tried(&self, request: &mut impl RequestView) -> Vec<(&Route, Option<Mismatch>)> {
        let (host, path) = (host(request), path(request));
        let mut rest = Rest::new(request);
        let mut tried = Vec::new();
        for route in &self.routes {
            let differs = rest.differs(&route.matching, Some(&host), &path);
            tried.push((route, differs.map(|part| rest.mismatch(part, &host, &path))));
            if differs.is_none() {
                break;
            }
        }
        tried
    }
}

/// The least of all first indices, which is taken out of every list that has it.
fn take_least(lists: &mut [&[u32]]) -> Option<u32> {
    let least = lists.iter().filter_map(|list| list.first()).copied().min()?;
    for list in lists {
        if let [first, rest @ ..] = *list
            && *first == least
        {
            *list = rest;
        }
    }
    Some(least)
}

/// The host in lower case and without port; empty if there is none that a route could name.
fn host(request: &mut impl RequestView) -> Vec<u8> {
    let host = request.host().unwrap_or_default();
    let host = without_port(&host);
    let fits = host.len() <= LONGEST_HOST && !host.contains(&0) && !host.starts_with(b".");
    if fits { host.to_ascii_lowercase() } else { Vec::new() }
}

/// The path without its query.
fn path(request: &mut impl RequestView) -> Vec<u8> {
    let mut path = request.path().unwrap_or_default();
    path.truncate(without_query(&path).len());
    path
}

/// A part of a request that a route can name.
#[derive(Clone, Copy, Debug)]
enum Part<'t> {
    Host,
    Path,
    Method,
    Header(&'t str),
}

/// The first part in which a request is not as a route has it, and what the request has there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mismatch {
    Host(Vec<u8>),
    Path(Vec<u8>),
    Method(Option<Vec<u8>>),
    Header(String, Option<Vec<u8>>),
}

/// What is read of a request only when a route asks for it, and once.
struct Rest<'t, 'r, R> {
    request: &'r mut R,
    method: Option<Option<Vec<u8>>>,
    headers: Vec<(&'t str, Option<Vec<u8>>)>,
}

impl<'t, 'r, R: RequestView> Rest<'t, 'r, R> {
    fn new(request: &'r mut R) -> Self {
        Self { request, method: None, headers: Vec::new() }
    }

    fn method(&mut self) -> Option<&[u8]> {
        self.method.get_or_insert_with(|| self.request.method()).as_deref()
    }

    fn header(&mut self, name: &'t str) -> Option<&[u8]> {
        let known = self.headers.iter().position(|(known, _)| *known == name);
        let index = known.unwrap_or_else(|| {
            self.headers.push((name, self.request.header(name)));
            self.headers.len() - 1
        });
        self.headers.get(index).and_then(|(_, value)| value.as_deref())
    }

    /// The first part that is not as the route has it. Without `host` it is known to be the route's.
    fn differs(&mut self, matching: &'t Match, host: Option<&[u8]>, path: &[u8]) -> Option<Part<'t>> {
        let Match { hosts, path: wanted, methods, headers } = matching;
        let is_for = |host: &[u8]| hosts.is_empty() || hosts.iter().any(|pattern| pattern.takes(host));
        if host.is_some_and(|host| !is_for(host)) {
            return Some(Part::Host);
        }
        if wanted.as_ref().is_some_and(|wanted| !wanted.takes(path)) {
            return Some(Part::Path);
        }
        let is_one = |method: &[u8]| methods.iter().any(|wanted| wanted.as_bytes() == method);
        if !methods.is_empty() && !self.method().is_some_and(is_one) {
            return Some(Part::Method);
        }
        let differs = |(name, wanted): (&'t String, &HeaderMatch)| {
            (!wanted.takes(self.header(name))).then_some(Part::Header(name))
        };
        headers.iter().find_map(differs)
    }

    /// What the request has in a part.
    fn mismatch(&mut self, part: Part<'t>, host: &[u8], path: &[u8]) -> Mismatch {
        match part {
            Part::Host => Mismatch::Host(host.to_vec()),
            Part::Path => Mismatch::Path(path.to_vec()),
            Part::Method => Mismatch::Method(self.method().map(<[u8]>::to_vec)),
            Part::Header(name) => Mismatch::Header(name.to_owned(), self.header(name).map(<[u8]>::to_vec)),
        }
    }
}

impl fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteTable").field("routes", &self.routes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::request::testing::Request;

    fn table(routes: &[(&str, &str)]) -> RouteTable {
        let parsed = routes.iter().map(|(id, rest)| {
            let json = format!("{{\"service\": \"s\", {rest}}}");
            Route::parse(id, json.as_bytes()).unwrap_or_else(|problems| panic!("{json}: {problems}"))
        });
        RouteTable::new(parsed.collect())
    }

    fn found(table: &RouteTable, mut request: Request) -> Option<String> {
        table.find(&mut request).map(|route| route.id.clone())
    }

    #[test]
    fn the_first_by_order_that_matches_counts_whatever_is_more_exact() {
        let table = table(&[
            ("exact", r#""order": 30, "match": {"hosts": ["api.example.com"], "path": {"exact": "/a"}}"#),
            ("wild", r#""order": 20, "match": {"hosts": ["*.example.com"], "path": {"prefix": "/a"}}"#),
            ("any-b", r#""order": 10, "match": {"path": {"pattern": "/b/**"}}"#),
            ("any-a", r#""order": 10, "match": {"path": {"pattern": "/b/**"}}"#),
            ("last", r#""order": 40, "match": {"hosts": ["api.example.com", "*.example.com"]}"#),
        ]);
        let of = |host, path| found(&table, Request::get(host, path));
        assert_eq!(of("api.example.com", "/a").as_deref(), Some("wild"));
        assert_eq!(of("API.example.COM:8080", "/b/c?x=/a").as_deref(), Some("any-a"));
        assert_eq!(of("api.example.com", "/c").as_deref(), Some("last"));
        assert_eq!(of("x.y.example.com", "/c").as_deref(), Some("last"));
        assert_eq!(of("example.com", "/a"), None);
        assert_eq!(found(&table, Request::default()), None);
        assert_eq!(found(&RouteTable::default(), Request::get("a", "/")), None);
    }

    #[test]
    fn nothing_is_read_that_no_candidate_needs() {
        let read = |table: &RouteTable, request: Request| {
            let mut request = request.with("x", "1");
            table.find(&mut request);
            request.read
        };
        assert!(read(&RouteTable::default(), Request::get("a", "/")).is_empty());
        let all = table(&[("all", r#""order": 1, "match": {}"#)]);
        assert!(read(&all, Request::get("a", "/")).is_empty());
        let paths = table(&[("p", r#""order": 1, "match": {"path": {"prefix": "/a"}}"#)]);
        assert_eq!(read(&paths, Request::get("a", "/a")), ["path"]);
        let mixed = table(&[
            (
                "one",
                r#""order": 1, "match": {"hosts": ["a"], "path": {"prefix": "/a"}, "methods": ["PUT"], "headers": {"x": "2"}}"#,
            ),
            ("two", r#""order": 2, "match": {"hosts": ["a"], "headers": {"x": "2"}}"#),
            ("three", r#""order": 3, "match": {"hosts": ["a"], "headers": {"x": "1", "y": {"present": false}}}"#),
            ("four", r#""order": 4, "match": {"hosts": ["b"]}"#),
        ]);
        assert_eq!(read(&mixed, Request::get("c", "/a")), ["host"]);
        assert_eq!(read(&mixed, Request::get("b", "/a")), ["host"]);
        assert_eq!(read(&mixed, Request::get("a", "/b")), ["host", "path", "x", "y"]);
        assert_eq!(read(&mixed, Request::get("a", "/a")), ["host", "path", "method", "x", "y"]);
    }

    #[test]
    fn headers_are_matched_by_value_presence_and_beginning() {
        let table = table(&[
            ("exact", r#""order": 1, "match": {"headers": {"X-Env": "canary"}}"#),
            ("prefix", r#""order": 2, "match": {"headers": {"x-env": {"prefix": "can"}}}"#),
            ("absent", r#""order": 3, "match": {"headers": {"x-env": {"present": false}}}"#),
            ("not", r#""order": 4, "match": {"headers": {"x-env": {"not": "old"}}}"#),
            ("there", r#""order": 5, "match": {"headers": {"x-env": {"present": true}}}"#),
        ]);
        let of = |value| found(&table, Request::get("a", "/").with("x-env", value)).unwrap();
        assert_eq!([of("canary"), of("can"), of("new"), of("old"), of("")], ["exact", "prefix", "not", "there", "not"]);
        assert_eq!(found(&table, Request::get("a", "/")).as_deref(), Some("absent"));
    }

    #[test]
    fn a_host_that_is_none_meets_only_what_is_for_any() {
        let table = table(&[
            ("host", r#""order": 1, "match": {"hosts": ["*.a", "a"]}"#),
            ("any", r#""order": 2, "match": {}"#),
        ]);
        let long: &'static str = format!("{}.a", "x".repeat(300)).leak();
        for host in ["", ".a", "x\0a", ":80", long] {
            assert_eq!(found(&table, Request::get(host, "/")).as_deref(), Some("any"), "{host:?}");
        }
    }

    fn arbitrary_route() -> impl Strategy<Value = String> {
        let host = prop::sample::select(vec!["a.x", "b.x", "*.x", "*.a.x", "x", "y"]);
        let hosts = prop::collection::vec(host, 0..3);
        let path = prop::sample::select(vec![
            "",
            r#""exact": "/a""#,
            r#""exact": "/a/b""#,
            r#""prefix": "/""#,
            r#""prefix": "/a""#,
            r#""prefix": "/a/""#,
            r#""pattern": "/a/*""#,
            r#""pattern": "/a/**""#,
            r#""pattern": "/{x}/b""#,
            r#""pattern": "/""#,
        ]);
        let more = prop::sample::select(vec![
            "",
            r#", "methods": ["GET"]"#,
            r#", "methods": ["PUT"]"#,
            r#", "headers": {"h": "1"}"#,
        ]);
        (0_u32..4, hosts, path, more).prop_map(|(order, hosts, path, more)| {
            let hosts = if hosts.is_empty() { String::new() } else { format!(", \"hosts\": {hosts:?}") };
            let path = if path.is_empty() { String::new() } else { format!(", \"path\": {{{path}}}") };
            let matching = format!("{hosts}{path}{more}");
            format!("\"order\": {order}, \"match\": {{{}}}", matching.trim_start_matches(", "))
        })
    }

    proptest! {
        #[test]
        fn the_index_finds_what_trying_all_in_order_finds(
            routes in prop::collection::vec(arbitrary_route(), 0..16),
            host in prop::sample::select(vec!["a.x", "b.x:1", "c.x", "c.a.x", "x", "Y", "z", ""]),
            path in prop::sample::select(vec!["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/b/b", "/a?b", ""]),
            header in prop::sample::select(vec!["0", "1"]),
        ) {
            let ids: Vec<String> = (0..routes.len()).map(|index| format!("r{index:02}")).collect();
            let routes: Vec<(&str, &str)> = ids.iter().map(String::as_str).zip(routes.iter().map(String::as_str)).collect();
            let table = table(&routes);
            let mut request = Request::get(host, path).with("h", header);
            let tried = table.tried(&mut request);
            let expected = tried.last().filter(|(_, mismatch)| mismatch.is_none()).map(|(route, _)| route.id.clone());
            prop_assert_eq!(found(&table, request), expected);
        }
    }
}
