//! Documents, good and bad: what the parsers say of them, and that the schemas agree.

use std::time::Duration;

use jsonschema::Validator;
use serde_json::Value;
use waypost_policy::{
    ComponentSource, Destination, HashKey, HostPattern, PathMatch, Policy, Priority, Route, Strategy, SubsetChoice,
    schema,
};

fn validator(schema: &str) -> Validator {
    let schema: Value = serde_json::from_str(schema).unwrap();
    jsonschema::draft202012::meta::validate(&schema).unwrap();
    jsonschema::draft202012::new(&schema).unwrap()
}

/// A kind of document: its parser, and its schema.
struct Kind {
    /// The canonical form, or what is wrong.
    parse: fn(&[u8]) -> Result<String, String>,
    schema: Validator,
}

impl Kind {
    fn policies() -> Self {
        let parse = |json: &[u8]| Policy::parse(json).map(|policy| policy.to_json()).map_err(|wrong| wrong.to_string());
        Self { parse, schema: validator(schema::POLICY) }
    }

    fn routes() -> Self {
        let parse =
            |json: &[u8]| Route::parse("r", json).map(|route| route.to_json()).map_err(|wrong| wrong.to_string());
        Self { parse, schema: validator(schema::ROUTE) }
    }

    fn in_schema(&self, json: &str) -> bool {
        self.schema.is_valid(&serde_json::from_str(json).unwrap())
    }

    #[track_caller]
    fn good(&self, json: &str, canonical: &str) {
        assert_eq!((self.parse)(json.as_bytes()).as_deref(), Ok(canonical), "{json}");
        assert_eq!((self.parse)(canonical.as_bytes()).as_deref(), Ok(canonical), "{json}");
        assert!(self.in_schema(json) && self.in_schema(canonical), "{json}");
    }

    #[track_caller]
    fn bad(&self, json: &str, said: &str) {
        self.bad_for_the_parser(json, said);
        assert!(!self.in_schema(json), "{json}");
    }

    /// What a schema cannot say.
    #[track_caller]
    fn bad_for_the_parser_only(&self, json: &str, said: &str) {
        self.bad_for_the_parser(json, said);
        assert!(self.in_schema(json), "{json}");
    }

    #[track_caller]
    fn bad_for_the_parser(&self, json: &str, said: &str) {
        assert_eq!((self.parse)(json.as_bytes()).unwrap_err(), said, "{json}");
    }
}

#[test]
fn good_policies_have_one_form() {
    let policies = Kind::policies();
    for (json, canonical) in [
        ("{}", "{}"),
        (r#"{"strategy": "weighted-round-robin", "panic_threshold": 50, "outcomes": true}"#, "{}"),
        (r#"{"strategy": {"name": "random"}}"#, r#"{"strategy":"random"}"#),
        (r#"{"strategy": "least-request"}"#, r#"{"strategy":{"choices":2,"name":"least-request"}}"#),
        (
            r#"{"strategy": {"name": "peak-ewma", "decay": "60000ms"}}"#,
            r#"{"strategy":{"decay":"1m","default_latency":"30ms","name":"peak-ewma"}}"#,
        ),
        (
            r#"{"strategy": {"name": "consistent-hash", "key": {"header": "X-User"}, "bounded_load": 1.25}}"#,
            r#"{"strategy":{"bounded_load":1.25,"key":{"header":"x-user"},"name":"consistent-hash","table_size":65537}}"#,
        ),
        (
            r#"{"strategy": {"name": "consistent-hash", "key": "source", "table_size": 101}}"#,
            r#"{"strategy":{"key":"source","name":"consistent-hash","table_size":101}}"#,
        ),
        (
            r#"{"ejection": {"success_rate": {}}}"#,
            r#"{"ejection":{"base_time":"30s","consecutive_failures":5,"interval":"10s","max_share":10,"max_time":"5m","success_rate":{"min_nodes":5,"min_requests":100,"stdev_factor":1.9}}}"#,
        ),
        (r#"{"slow_start": {"window": "1h"}}"#, r#"{"slow_start":{"aggression":1.0,"min_share":10,"window":"1h"}}"#),
        (
            r#"{"locality": {"callers": "gateway"}}"#,
            r#"{"locality":{"callers":"gateway","min_nodes":6,"zone_aware":true}}"#,
        ),
        (r#"{"priority": {"zones": ["eu-1", "eu-2"]}}"#, r#"{"priority":{"zones":["eu-1","eu-2"]}}"#),
        (
            r#"{"priority": {"metadata": "tier"}, "overprovisioning": 100}"#,
            r#"{"overprovisioning":100,"priority":{"metadata":"tier"}}"#,
        ),
        (
            r#"{"subsets": {"v2": {"version": "2"}, "c": {"tags": ["b", "a", "b"], "metadata": {"tier": ""}}}}"#,
            r#"{"subsets":{"c":{"metadata":{"tier":""},"tags":["a","b"]},"v2":{"version":"2"}}}"#,
        ),
        (
            r#"{"subsets": {"v1": {"version": "1"}}, "split": {"arms": [{"subset": "v1", "weight": 4294967295}], "sticky": {"cookie": "sid"}}}"#,
            r#"{"split":{"arms":[{"subset":"v1","weight":4294967295}],"sticky":{"cookie":"sid"}},"subsets":{"v1":{"version":"1"}}}"#,
        ),
        (
            r#"{"subset_header": "X-Waypost-Subset", "strict_subsets": true, "outcomes": false}"#,
            r#"{"outcomes":false,"strict_subsets":true,"subset_header":"x-waypost-subset"}"#,
        ),
        (
            r#"{"sticky": {"cookie": "node", "ttl": "3600s", "path": "/"}}"#,
            r#"{"sticky":{"cookie":"node","ttl":"1h"}}"#,
        ),
        (
            r#"{"component": {"name": "capacity", "parameters": {"b": [1, 2.50], "a": null}}}"#,
            r#"{"component":{"name":"capacity","parameters":{"a":null,"b":[1,2.5]}}}"#,
        ),
    ] {
        policies.good(json, canonical);
    }
    let sha256 = format!("{{\"component\":{{\"sha256\":\"{}\"}}}}", "0a".repeat(32));
    policies.good(&sha256, &sha256);
}

#[test]
fn bad_policies_are_refused_with_the_field_named() {
    let policies = Kind::policies();
    for (json, said) in [
        ("[]", "expected an object, such as {}, found an array"),
        (r#"{"stratgy": "random"}"#, "stratgy: unknown field; did you mean \"strategy\"?"),
        (
            r#"{"weights": 1}"#,
            "weights: unknown field; known here: subsets, split, strategy, panic_threshold, ejection, slow_start, locality, \
             priority, overprovisioning, subset_header, sticky, component, outcomes, strict_subsets",
        ),
        (
            r#"{"strategy": "least-requests"}"#,
            "strategy: \"least-requests\" is no strategy; did you mean \"least-request\"?",
        ),
        (
            r#"{"strategy": {"name": "fastest", "choices": 2}}"#,
            "strategy.name: \"fastest\" is no strategy; allowed are \"random\", \"round-robin\", \"weighted-random\", \
             \"weighted-round-robin\", \"least-request\", \"peak-ewma\", \"consistent-hash\"",
        ),
        (r#"{"strategy": {}}"#, "strategy.name: missing: write a strategy's name, such as \"least-request\""),
        (r#"{"strategy": {"name": "random", "choices": 2}}"#, "strategy.choices: unknown field; known here: name"),
        (
            r#"{"strategy": {"name": "least-request", "choices": 11}}"#,
            "strategy.choices: expected a whole number from 2 to 10, found the number 11",
        ),
        (
            r#"{"strategy": {"name": "peak-ewma", "decay": 10}}"#,
            "strategy.decay: expected a duration, such as \"2s\", found the number 10",
        ),
        (
            r#"{"strategy": {"name": "peak-ewma", "decay": "10"}}"#,
            "strategy.decay: \"10\" is no duration: write a number and ms, s, m or h, such as \"2s\"",
        ),
        (
            r#"{"strategy": "consistent-hash"}"#,
            "strategy: what makes requests equal is missing: write {\"name\": \"consistent-hash\", \"key\": {\"header\": NAME}}",
        ),
        (
            r#"{"strategy": {"name": "consistent-hash"}}"#,
            "strategy.key: missing: write what makes requests equal, such as {\"header\": \"x-user\"}",
        ),
        (
            r#"{"strategy": {"name": "consistent-hash", "key": {"header": "a", "cookie": "b"}}}"#,
            "strategy.key: one key is needed: write {\"header\": NAME}, {\"cookie\": NAME}, {\"query\": NAME}, \"source\" or \"path\"",
        ),
        (
            r#"{"strategy": {"name": "consistent-hash", "key": {"cookie": "a b"}}}"#,
            "strategy.key.cookie: \"a b\" is no name of a cookie: 1 to 256 letters, digits and !#$%&'*+-.^_`|~ are allowed",
        ),
        (
            r#"{"strategy": {"name": "consistent-hash", "key": "path", "bounded_load": 1}}"#,
            "strategy.bounded_load: expected a number above 1 and up to 100, found the number 1",
        ),
        (r#"{"panic_threshold": 101}"#, "panic_threshold: expected a whole number from 0 to 100, found the number 101"),
        (r#"{"panic_threshold": null}"#, "panic_threshold: expected a whole number from 0 to 100, found null"),
        (
            r#"{"ejection": {"max_share": 0}}"#,
            "ejection.max_share: expected a whole number from 1 to 100, found the number 0",
        ),
        (r#"{"slow_start": {}}"#, "slow_start.window: missing: write how long it takes, such as \"30s\""),
        (
            r#"{"locality": {"callers": "a b"}}"#,
            "locality.callers: \"a b\" is no service name: 1 to 255 of the letters A-Z a-z, digits and . _ - : ~ @ are allowed",
        ),
        (r#"{"priority": {}}"#, "priority: one of the two is needed: write {\"zones\": [...]} or {\"metadata\": NAME}"),
        (
            r#"{"priority": {"zones": []}}"#,
            "priority.zones: is empty: write at least one, such as [\"eu-1\", \"eu-2\"]",
        ),
        (r#"{"priority": {"zones": ["a", "a"]}}"#, "priority.zones[1]: is there more than once"),
        (
            r#"{"overprovisioning": 1.4}"#,
            "overprovisioning: expected a whole number from 100 to 1000, found the number 1.4",
        ),
        (
            r#"{"subsets": {"v1": {}}}"#,
            "subsets.v1: would be all nodes: write a version, tags or metadata that its nodes have",
        ),
        (
            r#"{"subsets": {"a b": {"version": ""}}}"#,
            "subsets[\"a b\"]: \"a b\" is no name of a subset: 1 to 64 of the letters A-Z a-z, digits and . _ - : ~ @ are allowed\n\
             subsets[\"a b\"].version: is empty: write a text, or leave it out",
        ),
        (
            r#"{"split": {"arms": []}}"#,
            "split.arms: is empty: write at least one, such as [{\"subset\": \"v1\", \"weight\": 95}, {\"subset\": \"v2\", \"weight\": 5}]",
        ),
        (
            r#"{"subsets": {"v1": {"version": "1"}}, "split": {"arms": [{"subset": "v1", "weight": 0}]}}"#,
            "split.arms: their weights are all 0: one at least has to get requests",
        ),
        (
            r#"{"subset_header": ":path"}"#,
            "subset_header: \":path\" is no name of a header: 1 to 256 letters, digits and !#$%&'*+-.^_`|~ are allowed",
        ),
        (
            r#"{"sticky": {"cookie": "n", "path": "/; Domain=x"}}"#,
            "sticky.path: \"/; Domain=x\" is no path of a cookie: it begins with /, such as \"/\"",
        ),
        (
            r#"{"component": {"name": "../x"}}"#,
            "component.name: \"../x\" is no name of a component: up to 64 letters, digits and . _ - are allowed, the first a \
             letter or digit",
        ),
        (
            r#"{"component": {"parameters": 1}}"#,
            "component: one of the two is needed: write {\"name\": NAME} or {\"sha256\": HASH}",
        ),
        (r#"{"outcomes": "yes"}"#, "outcomes: expected true or false, found the text \"yes\""),
    ] {
        policies.bad(json, said);
    }
    let many: Vec<String> = (0..65).map(|n| format!("\"s{n}\": {{\"version\": \"{n}\"}}")).collect();
    policies.bad(&format!("{{\"subsets\": {{{}}}}}", many.join(",")), "subsets: 65 members: up to 64 are allowed");
}

#[test]
fn what_a_schema_cannot_say_the_parser_does() {
    let policies = Kind::policies();
    for (json, said) in [
        (
            r#"{"subsets": {"v1": {"version": "1"}, "v2": {"version": "2"}}, "split": {"arms": [{"subset": "v1", "weight": 1}, {"subset": "v3", "weight": 1}]}}"#,
            "split.arms[1].subset: no subset is called \"v3\"; there are \"v1\", \"v2\"",
        ),
        (
            r#"{"split": {"arms": [{"subset": "v3", "weight": 1}]}}"#,
            "split.arms[0].subset: no subset is called \"v3\"; there are none",
        ),
        (
            r#"{"subsets": {"v1": {"version": "1"}}, "split": {"arms": [{"subset": "v1", "weight": 1}, {"subset": "v1", "weight": 1}]}}"#,
            "split.arms[1].subset: has an arm already: add up the weights",
        ),
        (
            r#"{"strategy": {"name": "consistent-hash", "key": "path", "table_size": 65536}}"#,
            "strategy.table_size: 65536 is no prime number, which the table needs: the next one is 65537",
        ),
        (
            r#"{"ejection": {"base_time": "10m"}}"#,
            "ejection.base_time: 10m is longer than max_time, 5m: the two may be equal at most",
        ),
        (r#"{"sticky": {"cookie": "n", "ttl": "0s"}}"#, "sticky.ttl: \"0s\" is out of range: allowed is 1s to 9600h"),
        (r#"{"panic_threshold": 1, "panic_threshold": 2}"#, "panic_threshold: is there more than once"),
        (
            r#"{"component": {"name": "c", "parameters": [{"a": 1, "a": 2}]}}"#,
            "component.parameters[0].a: is there more than once",
        ),
    ] {
        policies.bad_for_the_parser_only(json, said);
    }
    let routes = Kind::routes();
    routes.bad_for_the_parser_only(
        r#"{"order": 1, "match": {"headers": {"X-A": "1", "x-a": "2"}}, "service": "s"}"#,
        "match.headers.x-a: is there more than once: the case of letters does not count",
    );
    routes.bad_for_the_parser_only(
        r#"{"order": 1, "match": {}, "split": [{"weight": 1}]}"#,
        "split[0].service: missing: write the service's name, here or for all arms beside split",
    );
    routes.bad_for_the_parser_only(
        r#"{"order": 1, "match": {}, "service": "s", "split": [{"weight": 1}, {"service": "s", "weight": 1}]}"#,
        "split[1]: goes where another arm goes already: add up the weights",
    );
    routes.bad_for_the_parser_only(
        r#"{"order": 1, "match": {}, "service": "s", "timeout": "25h"}"#,
        "timeout: \"25h\" is out of range: allowed is 0s to 24h",
    );
}

#[test]
fn good_routes_have_one_form() {
    let routes = Kind::routes();
    for (json, canonical) in [
        (r#"{"order": 0, "match": {}, "service": "s"}"#, r#"{"match":{},"order":0,"service":"s"}"#),
        (
            r#"{"order": 10, "match": {"hosts": ["b", "*.A.com", "b"], "path": {"prefix": "/api"}, "methods": ["POST", "GET"],
                "headers": {"X-Env": "canary", "a": {"present": false}, "b": {"prefix": "x"}, "c": {"not": ""}}},
                "service": "orders", "subset": "v2", "timeout": "2000ms"}"#,
            r#"{"match":{"headers":{"a":{"present":false},"b":{"prefix":"x"},"c":{"not":""},"x-env":"canary"},"hosts":["b","*.a.com"],"methods":["GET","POST"],"path":{"prefix":"/api"}},"order":10,"service":"orders","subset":"v2","timeout":"2s"}"#,
        ),
        (
            r#"{"order": 1, "match": {"path": {"pattern": "/users/{id}/**"}}, "service": "s",
                "split": [{"subset": "a", "weight": 1}, {"service": "t", "weight": 0}], "sticky": {"header": "X-User"}}"#,
            r#"{"match":{"path":{"pattern":"/users/{id}/**"}},"order":1,"split":[{"service":"s","subset":"a","weight":1},{"service":"t","weight":0}],"sticky":{"header":"x-user"}}"#,
        ),
        (
            r#"{"order": 1, "match": {"hosts": ["[::1]"]}, "service": "s"}"#,
            r#"{"match":{"hosts":["[::1]"]},"order":1,"service":"s"}"#,
        ),
    ] {
        routes.good(json, canonical);
    }
}

#[test]
fn bad_routes_are_refused_with_the_field_named() {
    let routes = Kind::routes();
    for (json, said) in [
        (
            "{}",
            "order: missing: write its place among all routes, such as 10; the lowest that matches counts\n\
             match: missing: write the requests that it is for; {} for all\n\
             service: missing: write the service's name, or share requests out with split",
        ),
        (
            r#"{"order": -1, "match": {"hosts": ["*", "a:80", "a..b"]}, "service": "s"}"#,
            "order: expected a whole number from 0 to 4294967295, found the number -1\n\
             match.hosts[0]: \"*\" is no host: leave hosts out for any host\n\
             match.hosts[1]: \"a:80\" is no host: ports do not count, leave it out\n\
             match.hosts[2]: \"a..b\" is no host: write one such as \"api.example.com\", or \"*.example.com\" for all below it",
        ),
        (
            r#"{"order": 1, "match": {"path": {"exact": "/a", "prefix": "/a"}}, "service": "s"}"#,
            "match.path: one of the three is needed: write {\"exact\": PATH}, {\"prefix\": PATH} or {\"pattern\": PATH}",
        ),
        (
            r#"{"order": 1, "match": {"path": {"pattern": "/a*"}}, "service": "s"}"#,
            "match.path.pattern: \"a*\" is no segment of a pattern, in \"/a*\": write text, * or {name} for one segment, or ** \
             for all at the end",
        ),
        (
            r#"{"order": 1, "match": {"path": {"prefix": "api"}}, "service": "s"}"#,
            "match.path.prefix: \"api\" is no path of a request: it begins with /",
        ),
        (
            r#"{"order": 1, "match": {"methods": ["get"]}, "service": "s"}"#,
            "match.methods[0]: \"get\" is no method: write \"GET\"",
        ),
        (
            r#"{"order": 1, "match": {"headers": {"x": 1, "a b": "c", "y": {}}}, "service": "s"}"#,
            "match.headers.x: the number 1 is nothing that a header could be like: write its value, {\"present\": true}, \
             {\"prefix\": TEXT} or {\"not\": TEXT}\n\
             match.headers[\"a b\"]: \"a b\" is no name of a header: 1 to 256 letters, digits and !#$%&'*+-.^_`|~ are allowed\n\
             match.headers.y: one of the three is needed: write its value, {\"present\": true}, {\"prefix\": TEXT} or \
             {\"not\": TEXT}",
        ),
        (
            r#"{"order": 1, "match": {}, "service": "s", "subset": "v1", "split": [{"weight": 1}]}"#,
            "subset: beside split, whose arms name theirs: write one of the two",
        ),
        (
            r#"{"order": 1, "match": {}, "service": "s", "sticky": {"cookie": "c"}}"#,
            "sticky: is for a split: without one there is nothing to stick to",
        ),
        (
            r#"{"order": 1, "match": {}, "service": "s", "split": [{"weight": 0}]}"#,
            "split: their weights are all 0: one at least has to get requests",
        ),
        (
            r#"{"order": 1, "match": {}, "service": "s", "hosts": ["a"]}"#,
            "hosts: unknown field; known here: order, match, service, subset, split, sticky, timeout",
        ),
    ] {
        routes.bad(json, said);
    }
    let said = Route::parse("a/b", b"{}").unwrap_err().to_string();
    assert!(said.starts_with("\"a/b\" is no id of a route"), "{said}");
}

#[test]
fn a_document_becomes_what_it_says() {
    let policy = Policy::parse(
        br#"{"strategy": {"name": "consistent-hash", "key": {"query": "user"}}, "priority": {"metadata": "tier"},
            "subsets": {"b": {"version": "2"}, "a": {"tags": ["x"]}}, "component": {"name": "c"}, "sticky": {"cookie": "n"},
            "split": {"arms": [{"subset": "b", "weight": 1}]}}"#,
    );
    let policy = policy.unwrap();
    let Strategy::ConsistentHash(hash) = &policy.strategy else { panic!("{policy:?}") };
    assert_eq!((&hash.key, hash.table_size, hash.bounded_load), (&HashKey::Query("user".into()), 65_537, None));
    assert_eq!(policy.priority, Some(Priority::Metadata("tier".into())));
    assert_eq!(policy.component.as_ref().unwrap().source, ComponentSource::Name("c".into()));
    assert_eq!(policy.subsets.choice(Some("b")), SubsetChoice::Subset(1));
    assert_eq!(policy.split.as_ref().unwrap().arms().next().unwrap().target.index, 1);
    assert!(!policy.needs_outcomes() && policy.outcomes && !policy.strict_subsets);
    assert!(Policy::parse(br#"{"strategy": "peak-ewma"}"#).unwrap().needs_outcomes());
    assert!(Policy::parse(br#"{"ejection": {}}"#).unwrap().needs_outcomes());

    let route =
        br#"{"order": 7, "match": {"hosts": ["*.a"], "path": {"exact": "/x"}}, "service": "s", "timeout": "2s"}"#;
    let route = Route::parse("r", route).unwrap();
    assert_eq!((route.id.as_str(), route.order, route.timeout), ("r", 7, Some(Duration::from_secs(2))));
    assert_eq!(route.matching.hosts.first(), Some(&HostPattern::Below("a".into())));
    assert_eq!(route.matching.path, Some(PathMatch::Exact("/x".into())));
    let Destination::One(target) = &route.destination else { panic!("{route:?}") };
    assert_eq!((target.service.as_str(), &target.subset), ("s", &None));
    assert_eq!(route.targets().count(), 1);
}
