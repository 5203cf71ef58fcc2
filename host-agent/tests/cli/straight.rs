//! Straight at etcd, without an agent.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Etcd, Running, eventually, json, printed, signal, status};

fn node(address: &str, port: u16, weight: u32, health: &str) -> String {
    json!({ "address": address, "port": port, "weight": weight, "health": health, "zone": "eu-1" }).to_string()
}

fn keys(etcd: &Etcd, prefix: &str) -> Vec<String> {
    etcd.ctl(&["get", "--prefix", "--keys-only", prefix]).lines().filter(|l| !l.is_empty()).map(str::to_owned).collect()
}

#[test]
fn services_nodes_and_picks_come_out_of_etcd() {
    let etcd = Etcd::start();
    assert_eq!(printed(&mut etcd.waypost(&["services"])), "no services\n");
    etcd.ctl(&["put", "/waypost/services/web/a", &node("10.0.0.1", 80, 1, "passing")]);
    etcd.ctl(&["put", "/waypost/services/web/b", &node("10.0.0.2", 80, 3, "passing")]);
    etcd.ctl(&["put", "/waypost/services/web/c", &node("10.0.0.3", 80, 9, "draining")]);
    etcd.ctl(&["put", "/waypost/services/db/d", &node("10.0.0.4", 5432, 1, "critical")]);

    let expected = "\
SERVICE  NODES  PASSING  CRITICAL  DRAINING  WEIGHT
db           1        0         1         0       0
web          3        2         0         1       4

2 services, 4 nodes, 2 passing
";
    assert_eq!(printed(&mut etcd.waypost(&["services"])), expected);
    let expected = "\
SERVICE  ADDRESS      HEALTH    WEIGHT   SHARE  ZONE  VERSION  TAGS  ID
web      10.0.0.1:80  passing        1  25.0 %  eu-1                 a
         10.0.0.2:80  passing        3  75.0 %  eu-1                 b
         10.0.0.3:80  draining       9   0.0 %  eu-1                 c
";
    assert_eq!(printed(&mut etcd.waypost(&["nodes", "web"])), expected);

    let services = json(&mut etcd.waypost(&["services"]));
    let web = json!({"name": "web", "nodes": 3, "passing": 2, "critical": 0, "draining": 1, "weight": 4});
    assert_eq!(services["services"][1], web);
    let nodes = json(&mut etcd.waypost(&["nodes", "--healthy"]));
    let expected = json!({
        "service": "web", "share": 0.25, "address": "10.0.0.1:80", "weight": 1, "health": "passing", "protocol": "http1",
        "id": "a", "zone": "eu-1", "version": "", "tags": [], "metadata": {}, "outcomes": null,
    });
    assert_eq!((&nodes["nodes"][0], nodes["nodes"].as_array().unwrap().len()), (&expected, 2));

    for strategy in ["random", "weighted-random", "round-robin", "weighted-round-robin"] {
        let picked = printed(&mut etcd.waypost(&["pick", "web", "--strategy", strategy]));
        assert!(["10.0.0.1:80\n", "10.0.0.2:80\n"].contains(&picked.as_str()), "{picked}");
    }
    let picked = json(&mut etcd.waypost(&["pick", "web"]));
    assert_eq!((&picked["service"], picked["alternatives"].as_array().unwrap().len()), (&"web".into(), 1));
    for (service, said) in [("db", "no healthy node"), ("users", "no node of service users")] {
        let (code, errors) = status(&etcd.waypost(&["pick", service]).output().unwrap());
        assert!(code == 3 && errors.contains(said), "{code}: {errors}");
    }
    let (code, errors) = status(&etcd.waypost(&["nodes", "users"]).output().unwrap());
    assert!(code == 3 && errors.contains("users"), "{errors}");

    let page = printed(&mut etcd.waypost(&["status"]));
    assert!(page.starts_with("1 problem\n  ! service db has no passing node: 1 critical, 0 draining\n"), "{page}");
    assert!(page.contains("leader") && page.ends_with("holds 2 services, 4 nodes\n"), "{page}");
    let page = json(&mut etcd.waypost(&["status"]));
    assert_eq!((&page["members"][0]["leader"], page["problems"].as_array().unwrap().len()), (&true.into(), 1));
}

#[test]
fn foreign_formats_are_read_under_their_prefix() {
    let etcd = Etcd::start();
    etcd.ctl(&["put", "/legacy/users/10.0.0.1:8080", "x"]);
    let legacy = ["nodes", "--format", "endpoint-key", "--prefix", "/legacy/", "--protocol", "http2"];
    let nodes = json(&mut etcd.waypost(&legacy));
    assert_eq!((&nodes["nodes"][0]["service"], &nodes["nodes"][0]["protocol"]), (&"users".into(), &"http2".into()));
    // A host that is known by its name.
    etcd.ctl(&["put", "/named/users/1", "localhost:8080"]);
    let named = ["--format", "endpoint-value", "--prefix", "/named/"];
    assert_eq!(printed(etcd.waypost(&["pick", "users"]).args(named)), "127.0.0.1:8080\n");
    let watch = Running::start(etcd.waypost(&["watch"]).args(named));
    assert!(watch.line().ends_with("  users  1 node, 1 passing"));
    let (code, errors) = status(&etcd.waypost(&["nodes", "--format", "endpoint-key"]).output().unwrap());
    assert!(code == 2 && errors.contains("--prefix"), "{errors}");
}

#[test]
fn what_changes_is_told_until_a_signal_ends_it() {
    let etcd = Etcd::start();
    let key = "/waypost/services/web/a";
    etcd.ctl(&["put", key, &node("10.0.0.1", 80, 1, "passing")]);
    let mut lines = Running::start(&mut etcd.waypost(&["watch"]));
    let mut events = Running::start(&mut etcd.waypost(&["watch", "web", "--json"]));
    let event = || -> Value { serde_json::from_str(&events.line()).unwrap() };
    assert!(lines.line().ends_with("  web  1 node, 1 passing"));
    let first = event();
    assert_eq!((&first["event"], &first["services"]["web"][0]["id"]), (&"resynchronised".into(), &"a".into()));

    // One after the other: what comes together may be told as one.
    etcd.ctl(&["put", "/waypost/services/db/x", &node("10.0.0.9", 1, 1, "passing")]);
    assert!(lines.line().contains("  db   added    10.0.0.9:1   passing, weight 1, zone eu-1, id x  (1 of 1 passing)"));
    etcd.ctl(&["put", key, &node("10.0.0.1", 80, 3, "critical")]);
    let line = lines.line();
    assert!(line.contains("web  changed  10.0.0.1:80  health passing → critical, weight 1 → 3  (0 of 1"), "{line}");
    let changed = event();
    let weights = (&changed["old"]["weight"], &changed["new"]["weight"]);
    assert_eq!((&changed["event"], weights), (&"changed".into(), (&1.into(), &3.into())));
    etcd.ctl(&["del", key]);
    assert!(lines.line().contains("web  removed  10.0.0.1:80  was critical, weight 3"));
    assert_eq!(event()["event"], "removed");

    for (running, sent) in [(&mut lines, Signal::INT), (&mut events, Signal::TERM)] {
        signal(&running.process, sent);
        assert_eq!(running.end(), (0, String::new()));
    }
}

#[test]
fn a_watch_goes_on_over_an_outage_and_tells_of_it() {
    let mut etcd = Etcd::start();
    let mut lines = Running::start(&mut etcd.waypost(&["watch"]));
    assert!(lines.line().ends_with("no services yet"));
    etcd.stop();
    eventually("the interruption is told", || lines.line().contains("interrupted: ").then_some(()));
    etcd.restart();
    etcd.ctl(&["put", "/waypost/services/web/a", &node("10.0.0.1", 80, 1, "passing")]);
    eventually("the change is told", || lines.line().contains("added    10.0.0.1:80").then_some(()));
    signal(&lines.process, Signal::INT);
    assert_eq!(lines.end(), (0, String::new()));
}

#[test]
fn a_reader_that_goes_is_no_error() {
    let etcd = Etcd::start();
    let mut watch = etcd.waypost(&["kv", "watch", "--prefix", "/c/"]);
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(watch.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    drop(stdout);
    etcd.ctl(&["put", "/c/a", "1"]);
    let output = watch.wait_with_output().unwrap();
    assert_eq!(status(&output), (0, String::new()));
}

#[test]
fn keys_and_values_are_watched() {
    let etcd = Etcd::start();
    etcd.ctl(&["put", "/c/a", "1"]);
    etcd.ctl(&["put", "/c/ab", "x"]);
    let one = Running::start(&mut etcd.waypost(&["kv", "watch", "/c/a"]));
    let all = Running::start(&mut etcd.waypost(&["kv", "watch", "--prefix", "/c/", "--json"]));
    assert!(one.line().ends_with("put      /c/a  \"1\""));
    let event = || -> Value { serde_json::from_str(&all.line()).unwrap() };
    let first = event();
    assert_eq!((&first["event"], first["values"].as_array().unwrap().len()), (&"resynchronised".into(), 2));
    etcd.ctl(&["put", "/c/a", "2"]);
    etcd.ctl(&["del", "/c/ab"]);
    assert!(one.line().ends_with("put      /c/a  \"1\" → \"2\""));
    let put = event();
    assert_eq!((&put["event"], &put["key"], &put["value"]), (&"put".into(), &"/c/a".into(), &"2".into()));
    let removed = event();
    assert_eq!((&removed["event"], &removed["key"]), (&"removed".into(), &"/c/ab".into()));
}

#[test]
fn a_registration_lives_as_long_as_its_command() {
    let etcd = Etcd::start();
    let arguments = ["register", "web", "--port", "8080", "--address", "10.0.0.1", "--instance", "a", "--weight", "3"];
    let mut first = Running::start(etcd.waypost(&arguments).arg("--json"));
    let state = |running: &Running, wanted: &str| {
        eventually(wanted, || {
            let line: Value = serde_json::from_str(&running.line()).unwrap();
            (line["state"] == wanted).then_some(line)
        })
    };
    let line = state(&first, "registered");
    assert_eq!((&line["key"], &line["address"]), (&"/waypost/services/web/a".into(), &"10.0.0.1:8080".into()));
    assert_eq!(printed(&mut etcd.waypost(&["pick", "web"])), "10.0.0.1:8080\n");

    // A second one of the same name does not take the key away.
    let (code, errors) = status(&etcd.waypost(&arguments).args(["--if-held", "fail"]).output().unwrap());
    assert!(code == 1 && errors.contains("/waypost/services/web/a"), "{errors}");
    let mut second = Running::start(etcd.waypost(&arguments).arg("--json"));
    state(&second, "retrying");

    signal(&first.process, Signal::INT);
    state(&first, "deregistered");
    assert_eq!(first.end(), (0, String::new()));
    state(&second, "registered");
    signal(&second.process, Signal::TERM);
    assert_eq!(second.end(), (0, String::new()));
    assert!(keys(&etcd, "/waypost/").is_empty());

    // Shown as draining first, if that is asked for; a second signal ends that.
    let mut third = Running::start(etcd.waypost(&arguments).args(["--json", "--drain", "60s"]));
    state(&third, "registered");
    signal(&third.process, Signal::INT);
    eventually("it drains", || {
        let nodes = json(&mut etcd.waypost(&["nodes", "web"]));
        (nodes["nodes"][0]["health"] == "draining").then_some(())
    });
    signal(&third.process, Signal::INT);
    assert_eq!(third.end(), (0, String::new()));
    assert!(keys(&etcd, "/waypost/").is_empty());
}

#[test]
fn a_key_is_changed_and_deleted_as_it_was_seen() {
    let etcd = Etcd::start();
    let own = Running::start(&mut etcd.waypost(&[
        "register",
        "web",
        "--port",
        "1",
        "--address",
        "10.0.0.1",
        "--instance",
        "a",
    ]));
    eventually("it is registered", || own.line().contains("registered").then_some(()));
    let value = etcd.ctl(&["get", "--print-value-only", "/waypost/services/web/a"]);
    etcd.ctl(&["put", "/waypost/services/db/b", &value]);

    assert_eq!(printed(&mut etcd.waypost(&["update", "db", "--weight", "7", "--meta", "k=v"])), "db/b: updated\n");
    let nodes = json(&mut etcd.waypost(&["nodes", "db"]));
    assert_eq!((&nodes["nodes"][0]["weight"], &nodes["nodes"][0]["metadata"]["k"]), (&7.into(), &"v".into()));
    // Under a lease: somebody's who lives.
    let (code, errors) = status(&etcd.waypost(&["deregister", "web", "a"]).output().unwrap());
    assert!(code == 1 && errors.contains("--force"), "{errors}");
    assert_eq!(printed(&mut etcd.waypost(&["deregister", "db", "10.0.0.1:1"])), "db/b: deregistered\n");
    assert!(keys(&etcd, "/waypost/services/db/").is_empty());
    let (code, _) = status(&etcd.waypost(&["deregister", "db"]).output().unwrap());
    assert_eq!(code, 3);
    let (code, errors) = status(&etcd.waypost(&["update", "web", "a"]).output().unwrap());
    assert!(code == 2 && errors.contains("nothing to change"), "{errors}");

    let updated = etcd.waypost(&["update", "web", "a", "--weight", "9", "--force", "--json"]).output().unwrap();
    assert!(updated.status.success(), "{updated:?}");
    // Its owner, a Waypost, puts its own value again.
    eventually("the owner's value is back", || {
        let nodes = json(&mut etcd.waypost(&["nodes", "web"]));
        (nodes["nodes"][0]["weight"] == 1).then_some(())
    });
}
