//! Golden messages, defaults, and the example file.

use std::time::Duration;

use waypost_catalog::Protocol;
use waypost_registry::{Format, address::AddressSource};

use super::*;

const ETCD: &str = "[etcd]\nendpoints = [\"http://127.0.0.1:2379\"]\n";

fn config(text: &str) -> Config {
    parse("agent.toml", text, "host-a").unwrap()
}

/// The problems of a text, one per line.
fn problems(text: &str) -> String {
    parse("agent.toml", text, "host-a").unwrap_err().to_string()
}

/// The problems of a text that has an etcd section behind it.
#[track_caller]
fn assert_problems(text: &str, expected: &[&str]) {
    let found = problems(&format!("{text}\n{ETCD}"));
    assert_eq!(found.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn endpoints_alone_make_a_whole_configuration() {
    let config = config(ETCD);
    assert_eq!(config.node, "host-a");
    assert_eq!(config.state_dir, Path::new("/var/lib/waypost"));
    assert_eq!(config.drain, Duration::from_secs(5));
    assert_eq!(config.etcd.endpoints, ["http://127.0.0.1:2379"]);
    assert_eq!(config.etcd.connect_timeout, Duration::from_secs(2));
    assert_eq!(config.etcd.request_timeout, Duration::from_secs(3));
    assert_eq!(config.socket, Path::new("/run/waypost/agent.sock"));
    assert_eq!(config.admin, "127.0.0.1:9180".parse().unwrap());
    assert_eq!(config.api, None);
    assert_eq!(config.xds, Xds { services: vec!["*".into()], connect_timeout: Duration::from_secs(1) });
    assert_eq!(config.guard, Guard::default());
    let watch = Watch { prefix: "/waypost/services/".into(), format: Format::Waypost, protocol: Protocol::Http1 };
    assert_eq!(config.watches, [watch]);
    assert!(config.services.is_empty());
}

#[test]
fn a_service_needs_a_name_and_a_port_only() {
    let config =
        config(&format!("{ETCD}[[service]]\nname = \"orders\"\nport = 8080\n[service.check]\ntype = \"http\"\n"));
    let [service] = &config.services[..] else { panic!("one service") };
    assert_eq!((&*service.name, service.port, service.weight), ("orders", 8080, 1));
    assert_eq!((&*service.instance, &*service.root), ("host-a-8080", "/waypost/services/"));
    assert_eq!(service.address, AddressSource::Auto);
    assert_eq!((service.format, service.ttl), (Format::Waypost, Duration::from_secs(5)));
    let check = service.check.as_ref().unwrap();
    let seconds = Duration::from_secs;
    let CheckKind::Asked(Probing { probe, interval, jitter, timeout }) = &check.kind else { panic!("{check:?}") };
    assert_eq!((*interval, *jitter, *timeout), (seconds(2), seconds(2) / 10, seconds(1)));
    let Probe::Http(probe) = probe else { panic!("{probe:?}") };
    assert_eq!((probe.method.as_str(), &*probe.path, &probe.expect_status[..]), ("GET", "/", &[200..=399][..]));
    assert_eq!((&probe.port, &probe.tls, &probe.host, &probe.expect_body), (&None, &None, &None, &None));
    assert_eq!((check.initial, check.rise, check.fall), (Initial::Critical, 2, 3));
}

#[test]
fn the_example_file_is_right_and_shows_every_key() {
    let text = include_str!("../../agent.example.toml");
    let config = config(text);
    assert_eq!(config.services.len(), 5);
    assert_eq!(config.watches.len(), 2);
    // What the example leaves commented out is right as well.
    let uncommented: String =
        text.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line)).fold(String::new(), |a, b| a + b + "\n");
    let config = self::config(&uncommented);
    assert!(config.etcd.auth.is_some() && config.etcd.ca_file.is_some() && config.etcd.identity.is_some());
    let reference = include_str!("../../../docs/configuration.md");
    let settings = uncommented.lines().filter(|line| !line.starts_with('#'));
    for key in settings.filter_map(|line| line.split_once(" = ")).map(|(key, _)| key) {
        assert!(reference.contains(&format!("`{key}`")), "docs/configuration.md says nothing of {key}");
    }
}

#[test]
fn a_wrong_value_is_named_with_its_place_and_what_is_allowed() {
    assert_problems(
        "[[service]]\nname = \"orders\"\nport = 8080\n[service.check]\ntype = \"http\"\ninterval = \"2x\"",
        &[
            "agent.toml:6:12: service.check.interval: \"2x\" is no duration: write a number and ms, s or m, such as \"2s\"",
        ],
    );
    assert_problems(
        "drain = 5",
        &[
            "agent.toml:1:9: drain: expected a duration, found the number 5: write a number and ms, s or m, such as \"2s\"",
        ],
    );
    assert_problems("drain = \"11m\"", &["agent.toml:1:9: drain: \"11m\" is out of range: allowed is 0s to 10m"]);
    assert_problems(
        "[[service]]\nname = \"a b\"\nport = 80",
        &[
            "agent.toml:2:8: service.name: \"a b\" is no service name: 1 to 255 of the letters A-Z a-z, digits and . _ - : ~ @ are allowed",
        ],
    );
    assert_problems(
        "[[service]]\nname = \"a\"\nport = 70_000\nweight = -1\nttl = \"1500ms\"",
        &[
            "agent.toml:3:8: service.port: expected a whole number from 1 to 65535, found the number 70000",
            "agent.toml:4:10: service.weight: expected a whole number from 0 to 4294967295, found the number -1",
            "agent.toml:5:7: service.ttl: 1500ms is not whole seconds, which etcd's leases need",
        ],
    );
    assert_problems(
        "[[service]]\nname = \"a\"\nport = 80\naddress = \"eth0\"",
        &[
            "agent.toml:4:11: service.address: \"eth0\" is no address: write \"auto\", an IP address, \"interface:eth0\" or \"cidr:10.0.0.0/8\"",
        ],
    );
    assert_problems(
        "[guard]\nmax_loss = 50",
        &["agent.toml:2:12: guard.max_loss: expected a share above 0 and up to 1, such as 0.5, found the number 50"],
    );
    assert_problems(
        "[admin]\nlisten = \"0.0.0.0:9180\"",
        &["agent.toml:2:10: admin.listen: 0.0.0.0:9180 is no loopback address: allowed are 127.0.0.0/8 and [::1]"],
    );
    assert_problems(
        "[api]\nlisten = \"10.0.0.1:9181\"",
        &["agent.toml:2:10: api.listen: 10.0.0.1:9181 is no loopback address: allowed are 127.0.0.0/8 and [::1]"],
    );
    assert_problems(
        "[xds]\nservices = [\"orders\", \"a*b\"]",
        &[
            "agent.toml:2:23: xds.services: \"a*b\" is no pattern: write a service's name, or the beginning of one followed by *",
        ],
    );
}

#[test]
fn every_problem_of_a_file_is_reported_in_the_order_of_the_file() {
    assert_problems(
        "nod = \"a\"\n[[watch]]\nprefix = \"/services\"\n[[watch]]\nformat = \"consul\"\n[[service]]\nport = \"http\"\n[service.metadata]\nteam = 7",
        &[
            "agent.toml:1:1: nod: unknown key; did you mean \"node\"?",
            "agent.toml:3:10: watch.prefix: \"/services\" is no prefix of keys: it ends in /, such as \"/services/\"",
            "agent.toml:5:10: watch.format: \"consul\" is no format: allowed are \"waypost\", \"endpoint-key\", \"endpoint-value\", \"ip-pid\", \"go-zero\", \"kratos\", \"go-micro\", \"grpc-naming\", \"kitex\", \"hertz\", \"dubbo-app\", \"dubbo-interface\", \"skydns\", \"apisix\", \"biregister\" and \"auto\"",
            "agent.toml:6:1: service.name: missing: write the service's name",
            "agent.toml:7:8: service.port: expected a whole number from 1 to 65535, found the text \"http\"",
            "agent.toml:9:8: service.metadata.team: expected text in quotes, found the number 7",
        ],
    );
}

#[test]
fn an_unknown_key_comes_with_the_nearest_or_all_that_are_known() {
    assert_problems(
        "[guard]\nmaxloss = 0.5",
        &["agent.toml:2:1: guard.maxloss: unknown key; did you mean \"max_loss\"?"],
    );
    assert_problems(
        "[guard]\nquorum = 3",
        &["agent.toml:2:1: guard.quorum: unknown key; allowed here: enabled, max_loss, grace, window, exempt"],
    );
    assert_problems(
        "[[service]]\nname = \"a\"\nport = 80\n[service.chek]\ntype = \"tcp\"",
        &["agent.toml:4:10: service.chek: unknown key; did you mean \"check\"?"],
    );
}

#[test]
fn a_table_in_the_wrong_form_is_told_the_right_one() {
    assert_problems(
        "[service]\nname = \"a\"",
        &["agent.toml:1:1: service: expected an array of tables: write [[service]], found a table"],
    );
    assert_problems("guard = true", &["agent.toml:1:9: guard: expected a table: write [guard], found true"]);
    assert_problems(
        "[api]\nlisten = \"10.0.0.1:9181\"",
        &["agent.toml:2:10: api.listen: 10.0.0.1:9181 is no loopback address: allowed are 127.0.0.0/8 and [::1]"],
    );
    assert_problems(
        "[xds]\nservices = \"*\"",
        &["agent.toml:2:12: xds.services: expected an array, such as [\"a\", \"b\"], found the text \"*\""],
    );
}

#[test]
fn broken_toml_is_reported_as_such_and_nothing_else() {
    let found = problems("node = \n[etcd\nendpoints = 1\n");
    assert!(found.lines().count() >= 2, "{found}");
    assert!(found.starts_with("agent.toml:1:8: "), "{found}");
    assert!(found.contains("agent.toml:2:6: "), "{found}");
    assert!(!found.contains("endpoints: "), "{found}");
    let twice = problems("node = \"a\"\nnode = \"b\"\n");
    assert_eq!(twice, "agent.toml:2:1: duplicate key");
}

#[test]
fn etcd_settings_that_contradict_each_other_are_refused() {
    let etcd = |text: &str| problems(&format!("[etcd]\n{text}\n"));
    assert_eq!(
        problems(""),
        "agent.toml:1:1: etcd.endpoints: missing: write [etcd] with endpoints = [\"http://127.0.0.1:2379\"]"
    );
    assert_eq!(
        etcd(""),
        "agent.toml:1:1: etcd.endpoints: missing: write an array, such as [\"http://127.0.0.1:2379\"]"
    );
    assert_eq!(
        etcd("endpoints = []"),
        "agent.toml:2:13: etcd.endpoints: is empty: write at least one, such as \"http://127.0.0.1:2379\""
    );
    assert_eq!(
        etcd("endpoints = [\"127.0.0.1:2379\"]"),
        "agent.toml:2:14: etcd.endpoints: \"127.0.0.1:2379\" is no endpoint: write its scheme, host and port, such as \"http://127.0.0.1:2379\""
    );
    assert_eq!(
        etcd("endpoints = [\"http://a:1\", \"https://b:1\"]\nca_file = \"/ca\""),
        "agent.toml:2:13: etcd.endpoints: mixes http and https: all endpoints are reached the same way"
    );
    assert_eq!(
        etcd("endpoints = [\"https://b:1\"]"),
        "agent.toml:1:1: etcd.ca_file: missing: https endpoints need the certificate of the authority to trust"
    );
    assert_eq!(
        etcd("endpoints = [\"http://b:1\"]\nca_file = \"/ca\""),
        "agent.toml:3:11: etcd.ca_file: is for TLS: write the endpoints with https, or leave it out"
    );
    assert_eq!(
        etcd("endpoints = [\"http://b:1\"]\nusername = \"u\""),
        "agent.toml:1:1: etcd.password_file: missing, where a username is given"
    );
    assert_eq!(
        etcd("endpoints = [\"http://b:1\"]\nusername = \"u\"\npassword = \"p\"\npassword_file = \"/p\""),
        "agent.toml:5:17: etcd.password_file: beside password: write one of the two"
    );
}

#[test]
fn service_settings_that_contradict_each_other_are_refused() {
    let service = "[[service]]\nname = \"a\"\nport = 80\n";
    assert_problems(
        &format!("{service}{service}"),
        &["agent.toml:4:1: service.instance: \"host-a-80\" of a is there already: set a different instance"],
    );
    assert_problems(
        &format!("{service}format = \"endpoint-key\""),
        &[
            "agent.toml:1:1: service.root: missing: format endpoint-key has no prefix of its own; write one, such as \"/services/\"",
        ],
    );
    assert_problems(
        &format!("{service}check = {{ type = \"tcp\", path = \"/\", interval = \"1s\", timeout = \"2s\" }}"),
        &[
            "agent.toml:4:32: service.check.path: is for checks of type \"http\"",
            "agent.toml:4:64: service.check.timeout: 2s is longer than the interval of 1s: the two may be equal at most",
        ],
    );
    assert_problems(
        &format!("{service}check = {{ type = \"ttl\", interval = \"1s\", initial = \"up\" }}"),
        &[
            "agent.toml:4:9: service.check.ttl: missing: write how long a report counts, such as \"10s\"",
            "agent.toml:4:36: service.check.interval: is for checks of type \"http\", \"tcp\", \"grpc\" and \"exec\"",
            "agent.toml:4:52: service.check.initial: \"up\" is no status: allowed are \"undecided\", \"passing\" and \"critical\"",
        ],
    );
    let long = "x".repeat(70_000);
    let found = problems(&format!("{ETCD}{service}metadata = {{ a = \"{long}\" }}"));
    assert!(found.starts_with("agent.toml:6:12: service.metadata: node 127.0.0.1:80 takes"), "{found}");
}

#[test]
fn a_frameworks_format_brings_its_own_prefix_root_and_weight() {
    let watched = config(&format!("{ETCD}[[watch]]\nformat = \"kratos\"\nprotocol = \"http2\"\n"));
    assert_eq!((watched.watches[0].prefix.as_str(), watched.watches[0].format), ("/microservices/", Format::Kratos));
    let service = |format: &str| {
        let text = format!("{ETCD}[[service]]\nname = \"a\"\nport = 80\nformat = \"{format}\"\n");
        let Service { root, weight, .. } = config(&text).services.remove(0);
        (root, weight)
    };
    assert_eq!(service("kitex"), ("kitex/registry-etcd/".to_owned(), 10));
    assert_eq!(service("go-zero"), (String::new(), 1));
    assert_problems(
        "[[watch]]\nformat = \"go-zero\"",
        &["agent.toml:1:1: watch.prefix: missing: format go-zero has no prefix of its own"],
    );
}

#[test]
fn what_a_format_cannot_say_is_refused() {
    assert_problems(
        "[[service]]\nname = \"a\"\nport = 80\nweight = 0\nformat = \"kitex\"",
        &[
            "agent.toml:4:10: service.weight: format kitex cannot say a weight of 0, its clients would take the node for a full one: write another weight",
        ],
    );
    assert_problems(
        "[[service]]\nname = \"a..b\"\nport = 80\nformat = \"skydns\"",
        &[
            "agent.toml:2:8: service.name: service name \"a..b\" is no DNS name: 1 to 63 characters are needed before, between and after its dots",
        ],
    );
}

#[test]
fn a_short_interval_shortens_the_default_timeout() {
    let text =
        format!("{ETCD}[[service]]\nname = \"a\"\nport = 80\ncheck = {{ type = \"tcp\", interval = \"200ms\" }}");
    let check = config(&text).services.remove(0).check.unwrap();
    let CheckKind::Asked(Probing { timeout, jitter, .. }) = check.kind else { panic!("{check:?}") };
    assert_eq!((timeout, jitter), (Duration::from_millis(200), Duration::from_millis(20)));
}

#[test]
fn a_host_name_that_fits_no_key_asks_for_a_node() {
    let found = parse("agent.toml", ETCD, "host a").unwrap_err().to_string();
    assert!(
        found.starts_with("agent.toml:1:1: node: missing, and the host's name \"host a\" cannot be part of a key"),
        "{found}"
    );
}

#[test]
fn columns_count_characters_and_not_bytes() {
    assert_problems(
        "[[service]]\nname = \"a\"\nport = 80\ncheck = { type = \"tcp\", interval = \"ü\", rise = 0 }",
        &[
            "agent.toml:4:36: service.check.interval: \"ü\" is no duration: write a number and ms, s or m, such as \"2s\"",
            "agent.toml:4:48: service.check.rise: expected a whole number from 1 to 100, found the number 0",
        ],
    );
}

#[test]
fn only_a_prefix_of_biregister_need_not_end_in_a_slash() {
    let watches = |format: &str| {
        let text = format!(
            "[etcd]\nendpoints = [\"http://127.0.0.1:1\"]\n[[watch]]\nprefix = \"/shop/orders-\"\nformat = \"{format}\""
        );
        parse("agent.toml", &text, "host-a").map(|config| config.watches)
    };
    assert_eq!(watches("biregister").unwrap()[0].prefix, "/shop/orders-");
    assert!(watches("auto").unwrap_err().to_string().contains("ends in /"));
}
