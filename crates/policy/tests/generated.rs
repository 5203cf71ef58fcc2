//! Documents made up: good ones that are all accepted, good ones that something was done to, and bytes of any kind.

use jsonschema::Validator;
use proptest::{prelude::*, sample::select};
use serde_json::{Map, Value, json};
use waypost_policy::{MAX_DOCUMENT, Policy, Route, schema};

fn validator(schema: &str) -> Validator {
    jsonschema::draft202012::new(&serde_json::from_str(schema).unwrap()).unwrap()
}

/// An object with any of these members.
fn object(members: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let members: Vec<_> =
        members.into_iter().map(|(key, value)| prop::option::of(value.prop_map(move |v| (key, v)))).collect();
    let object = |members: Vec<Option<(&str, Value)>>| {
        let members = members.into_iter().flatten().map(|(key, value)| (key.to_owned(), value));
        Value::Object(members.collect::<Map<_, _>>())
    };
    members.prop_map(object).boxed()
}

fn one_of(values: Vec<Value>) -> BoxedStrategy<Value> {
    select(values).boxed()
}

/// An object with all of `fixed`, and any of the others.
fn with(fixed: Value, others: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    let merge = move |others: Value| {
        let mut object = fixed.clone();
        if let (Some(object), Value::Object(others)) = (object.as_object_mut(), others) {
            object.extend(others);
        }
        object
    };
    others.prop_map(merge).boxed()
}

fn sticky() -> BoxedStrategy<Value> {
    one_of(vec![json!({"header": "X-User"}), json!({"cookie": "sid"})])
}

fn strategy() -> BoxedStrategy<Value> {
    let names = ["random", "round-robin", "weighted-random", "weighted-round-robin", "least-request", "peak-ewma"];
    let key = select(vec![
        json!({"header": "a"}),
        json!({"cookie": "b"}),
        json!({"query": "ü c"}),
        json!("source"),
        json!("path"),
    ]);
    let hash = object(vec![
        ("table_size", one_of(vec![json!(101), json!(65_537), json!(1_048_573)])),
        ("bounded_load", (1.000_001_f64..=100.0).prop_map(Value::from).boxed()),
    ]);
    let durations = one_of(vec![json!("1ms"), json!("30s"), json!("1m")]);
    prop_oneof![
        select(names.to_vec()).prop_map(Value::from),
        select(names.to_vec()).prop_map(|name| json!({ "name": name })),
        with(json!({"name": "least-request"}), object(vec![("choices", (2_u32..=10).prop_map(Value::from).boxed())])),
        with(json!({"name": "peak-ewma"}), object(vec![("decay", durations.clone()), ("default_latency", durations)])),
        (key, hash).prop_map(|(key, mut hash)| {
            hash["name"] = "consistent-hash".into();
            hash["key"] = key;
            hash
        }),
    ]
    .boxed()
}

fn integer(range: std::ops::RangeInclusive<u32>) -> BoxedStrategy<Value> {
    range.prop_map(Value::from).boxed()
}

fn policy() -> impl Strategy<Value = Value> {
    let short = one_of(vec![json!("100ms"), json!("1s"), json!("5s")]);
    let long = one_of(vec![json!("30s"), json!("24h"), json!("300s")]);
    let rate = object(vec![
        ("min_nodes", integer(1..=1_000_000)),
        ("min_requests", integer(1..=1_000_000_000)),
        ("stdev_factor", (0.000_1_f64..=100.0).prop_map(Value::from).boxed()),
    ]);
    let ejection = object(vec![
        ("consecutive_failures", integer(0..=1_000_000)),
        ("interval", short.clone()),
        ("base_time", short),
        ("max_time", long),
        ("max_share", integer(1..=100)),
        ("success_rate", rate),
    ]);
    let slow_start = with(
        json!({"window": "30s"}),
        object(vec![
            ("aggression", (0.000_1_f64..=100.0).prop_map(Value::from).boxed()),
            ("min_share", integer(0..=100)),
        ]),
    );
    let locality = object(vec![
        ("zone_aware", any::<bool>().prop_map(Value::from).boxed()),
        ("callers", one_of(vec![json!("gateway")])),
        ("min_nodes", integer(1..=1_000_000)),
    ]);
    let predicate = with(
        json!({"version": "1"}),
        object(vec![
            ("tags", prop::collection::vec("[a-zä]{1,4}", 1..4).prop_map(Value::from).boxed()),
            ("metadata", one_of(vec![json!({"tier": "a"}), json!({"ö.x": ""})])),
        ]),
    );
    let subsets = prop::collection::btree_map("[a-zA-Z0-9._:~@-]{1,8}", predicate, 1..9);
    let weights = prop::collection::vec(any::<u32>(), 9);
    let split =
        (subsets, weights, prop::option::of(prop::option::of(sticky()))).prop_map(|(subsets, weights, split)| {
            let arms: Vec<Value> = subsets
                .keys()
                .zip(weights)
                .map(|(subset, weight)| json!({"subset": subset, "weight": weight}))
                .collect();
            let has_weight = arms.iter().any(|arm| arm["weight"] != 0);
            let mut document = json!({ "subsets": subsets });
            if let Some(sticky) = split.filter(|_| has_weight) {
                document["split"] = json!({ "arms": arms });
                sticky.into_iter().for_each(|sticky| document["split"]["sticky"] = sticky);
            }
            document
        });
    let cookie = with(
        json!({"cookie": "Node"}),
        object(vec![
            ("ttl", one_of(vec![json!("1s"), json!("1h")])),
            ("path", one_of(vec![json!("/"), json!("/api")])),
        ]),
    );
    let component = one_of(vec![
        json!({"name": "capacity"}),
        json!({"name": "a-1.wasm", "parameters": {"z": [0.1, 1e300, null, -7, {"b": {}, "a": []}], "a": "ü\u{0}"}}),
        json!({"sha256": "ab".repeat(32), "parameters": false}),
    ]);
    let rest = object(vec![
        ("strategy", strategy()),
        ("panic_threshold", integer(0..=100)),
        ("ejection", ejection),
        ("slow_start", slow_start),
        ("locality", locality),
        ("priority", one_of(vec![json!({"zones": ["a", "b"]}), json!({"metadata": "tier"})])),
        ("overprovisioning", integer(100..=1_000)),
        ("subset_header", one_of(vec![json!("X-Subset")])),
        ("sticky", cookie),
        ("component", component),
        ("outcomes", any::<bool>().prop_map(Value::from).boxed()),
        ("strict_subsets", any::<bool>().prop_map(Value::from).boxed()),
    ]);
    (rest, prop::option::of(split)).prop_map(|(mut rest, split)| {
        if let (Some(rest), Some(Value::Object(split))) = (rest.as_object_mut(), split) {
            rest.extend(split);
        }
        rest
    })
}

fn route() -> impl Strategy<Value = Value> {
    let headers = object(vec![
        ("X-Env", one_of(vec![json!("canary"), json!("")])),
        ("a", one_of(vec![json!({"present": true}), json!({"present": false})])),
        ("b", one_of(vec![json!({"prefix": "ä"}), json!({"not": ""}), json!({"not": "x"})])),
    ]);
    let headers = headers.prop_filter("no header is no member", |headers| headers != &json!({}));
    let hosts = select(vec!["a", "A.b", "*.x_y.z", "[::1]", "10.0.0.1"]);
    let matching = object(vec![
        ("hosts", prop::collection::vec(hosts, 1..4).prop_map(Value::from).boxed()),
        (
            "path",
            one_of(vec![
                json!({"exact": "/a"}),
                json!({"prefix": "/"}),
                json!({"pattern": "/a/*/{b}/**"}),
                json!({"pattern": "/"}),
                json!({"pattern": "/**"}),
                json!({"pattern": "/%20/~!$&'()+,;=:@-._//"}),
            ]),
        ),
        ("methods", one_of(vec![json!(["GET"]), json!(["PUT", "M-SEARCH"])])),
        ("headers", headers.boxed()),
    ]);
    let arms = prop::collection::vec((any::<bool>(), any::<u32>()), 1..6);
    let destination = prop_oneof![
        select(vec![json!({"service": "s"}), json!({"service": "s:1", "subset": "v1"})]),
        (arms, prop::option::of(sticky())).prop_map(|(arms, sticky)| {
            let arms: Vec<Value> = arms
                .into_iter()
                .enumerate()
                .map(|(index, (named, weight))| match named {
                    true => json!({"service": format!("s{index}"), "weight": weight.max(1)}),
                    false => json!({"subset": format!("v{index}"), "weight": weight.max(1)}),
                })
                .collect();
            let mut document = json!({"service": "s", "split": arms});
            sticky.into_iter().for_each(|sticky| document["sticky"] = sticky);
            document
        }),
    ];
    let timeout = prop::option::of(select(vec!["0s", "1500ms", "24h"]));
    (any::<u32>(), matching, destination, timeout).prop_map(|(order, matching, mut document, timeout)| {
        document["order"] = order.into();
        document["match"] = matching;
        timeout.into_iter().for_each(|timeout| document["timeout"] = timeout.into());
        document
    })
}

/// What may be put in the place of a value.
fn replacement() -> impl Strategy<Value = Option<Value>> {
    let values = vec![
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(2.0),
        json!(1e300),
        json!(4_294_967_296_u64),
        json!(""),
        json!("x"),
        json!("v1"),
        json!("/"),
        json!("1s"),
        json!("a b"),
        json!("ä"),
        json!("*"),
        json!([]),
        json!([1]),
        json!(["x"]),
        json!({}),
        json!({"x": 1}),
        json!({"header": "x"}),
    ];
    prop::option::of(select(values))
}

/// The document with one value replaced or removed, or another member put in.
fn changed(document: &Value, at: usize, with: Option<Value>, name: &str) -> Value {
    fn places(value: &Value, at: &str, out: &mut Vec<String>) {
        out.push(at.to_owned());
        match value {
            Value::Object(members) => members.iter().for_each(|(key, value)| {
                places(value, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), out);
            }),
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(index, item)| places(item, &format!("{at}/{index}"), out));
            }
            _ => {}
        }
    }
    let mut all = Vec::new();
    places(document, "", &mut all);
    let mut changed = document.clone();
    let place = &all[at % all.len()];
    match (changed.pointer_mut(place), with) {
        (Some(Value::Object(members)), None) if at.is_multiple_of(2) => drop(members.insert(name.to_owned(), json!(1))),
        (Some(Value::Object(members)), None) => {
            let first = members.keys().next().cloned();
            first.and_then(|first| members.remove(&first));
        }
        (Some(Value::Array(items)), None) => drop(items.pop()),
        (Some(value), Some(with)) => *value = with,
        _ => {}
    }
    changed
}

proptest! {
    #[test]
    fn a_good_policy_is_accepted_by_both_and_read_back_as_itself(document in policy()) {
        let text = document.to_string();
        let policy = Policy::parse(text.as_bytes()).map_err(|wrong| TestCaseError::fail(format!("{text}: {wrong}")))?;
        let canonical = policy.to_json();
        prop_assert_eq!(&Policy::parse(canonical.as_bytes()).unwrap(), &policy);
        prop_assert_eq!(Policy::parse(canonical.as_bytes()).unwrap().to_json(), canonical.clone());
        let schema = validator(schema::POLICY);
        prop_assert!(schema.is_valid(&document) && schema.is_valid(&serde_json::from_str(&canonical).unwrap()), "{}", text);
    }

    #[test]
    fn a_good_route_is_accepted_by_both_and_read_back_as_itself(document in route()) {
        let text = document.to_string();
        let route = Route::parse("r", text.as_bytes()).map_err(|wrong| TestCaseError::fail(format!("{text}: {wrong}")))?;
        let canonical = route.to_json();
        prop_assert_eq!(&Route::parse("r", canonical.as_bytes()).unwrap(), &route);
        let schema = validator(schema::ROUTE);
        prop_assert!(schema.is_valid(&document) && schema.is_valid(&serde_json::from_str(&canonical).unwrap()), "{}", text);
    }

    #[test]
    fn what_the_parsers_accept_the_schemas_accept(
        (policy, route) in (policy(), route()),
        at in any::<usize>(),
        with in replacement(),
        name in "[a-z_]{1,8}",
    ) {
        let (policy, route) = (changed(&policy, at, with.clone(), &name), changed(&route, at, with, &name));
        if Policy::parse(policy.to_string().as_bytes()).is_ok() {
            prop_assert!(validator(schema::POLICY).is_valid(&policy), "{}", policy);
        }
        if Route::parse("r", route.to_string().as_bytes()).is_ok() {
            prop_assert!(validator(schema::ROUTE).is_valid(&route), "{}", route);
        }
    }

    #[test]
    fn no_bytes_are_too_much_for_the_parsers(bytes in prop::collection::vec(any::<u8>(), 0..256), id in ".{0,8}") {
        let _ = Policy::parse(&bytes);
        let _ = Route::parse(&id, &bytes);
    }

    #[test]
    fn no_text_that_looks_like_a_document_is_too_much(text in policy(), cut in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = text.to_string().into_bytes();
        let at = cut.index(bytes.len());
        bytes[at] = byte;
        let _ = Policy::parse(&bytes);
        bytes.truncate(at);
        let _ = Policy::parse(&bytes);
    }
}

#[test]
fn size_and_depth_are_bounded() {
    let long = format!("{{\"component\": {{\"name\": \"c\", \"parameters\": \"{}\"}}}}", "x".repeat(MAX_DOCUMENT));
    assert!(Policy::parse(long.as_bytes()).is_err());
    // Short, and long as it would be written.
    let grows = format!("{{\"component\": {{\"name\": \"c\", \"parameters\": [1e15{}]}}}}", ",1e15".repeat(5_000));
    assert!(grows.len() < MAX_DOCUMENT && Policy::parse(grows.as_bytes()).is_err());
    let deep = format!("{{\"component\": {{\"name\": \"c\", \"parameters\": {}}}}}", "[".repeat(60_000));
    assert!(Policy::parse(deep.as_bytes()).is_err());
}
