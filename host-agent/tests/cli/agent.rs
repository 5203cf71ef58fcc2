//! By way of the agent.

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Agent, Etcd, Running, eventually, json, printed, signal, status};

const SERVICE: &str = "drain = \"300ms\"\n";
const OWN: &str = "[[service]]\nname = \"web\"\nport = 8080\naddress = \"10.0.0.1\"\nweight = 3\n";

/// An agent with a service of its file, which is in its own catalog.
fn agent(etcd: &Etcd) -> Agent {
    let agent = Agent::start(etcd, SERVICE, OWN);
    eventually("the service is mirrored", || {
        agent.waypost(&["pick", "web"]).output().unwrap().status.success().then_some(())
    });
    agent
}

#[test]
fn the_agent_and_etcd_itself_say_the_same() {
    let etcd = Etcd::start();
    let agent = agent(&etcd);
    for arguments in
        [&["services"][..], &["nodes"], &["nodes", "web", "--healthy"], &["nodes", "web", "--zone", "moon"]]
    {
        let by_agent = printed(&mut agent.waypost(arguments));
        assert_eq!(by_agent, printed(&mut etcd.waypost(arguments)), "{arguments:?}");
        assert_eq!(json(&mut agent.waypost(arguments)), json(&mut etcd.waypost(arguments)), "{arguments:?}");
    }
    assert_eq!(printed(&mut agent.waypost(&["pick", "web", "--strategy", "random"])), "10.0.0.1:8080\n");
    assert_eq!(json(&mut agent.waypost(&["pick", "web"])), json(&mut etcd.waypost(&["pick", "web"])));
    for arguments in [["pick", "users"], ["nodes", "users"]] {
        let (code, errors) = status(&agent.waypost(&arguments).output().unwrap());
        assert!(code == 3 && errors.contains("users"), "{code}: {errors}");
    }
}

#[test]
fn a_service_is_registered_changed_and_ended_with_the_agent() {
    let etcd = Etcd::start();
    let agent = agent(&etcd);
    let register = ["register", "api", "--port", "9000", "--address", "10.0.0.2", "--meta", "owner=me"];
    assert_eq!(printed(&mut agent.waypost(&register)), "api/host-a-9000: registered at 10.0.0.2:9000, passing\n");
    let again = json(&mut agent.waypost(&register));
    assert_eq!((&again["state"], &again["source"]), (&"registered".into(), &"api".into()));
    assert_eq!(printed(&mut agent.waypost(&["update", "api", "--weight", "5"])), "api/host-a-9000: updated\n");
    eventually("the weight is in etcd", || {
        let nodes = json(&mut etcd.waypost(&["nodes", "api"]));
        (nodes["nodes"][0]["weight"] == 5 && nodes["nodes"][0]["metadata"]["owner"] == "me").then_some(())
    });
    let (code, errors) =
        status(&agent.waypost(&["register", "api", "--port", "9000", "--check", "http,path=up"]).output().unwrap());
    assert!(code == 1 && errors.contains("/check/path"), "{errors}");
    let (code, errors) = status(&agent.waypost(&["update", "web", "--weight", "5"]).output().unwrap());
    assert!(code == 1 && errors.contains("file"), "{errors}");
    assert_eq!(printed(&mut agent.waypost(&["deregister", "api", "--drain", "0s"])), "api/host-a-9000: deregistered\n");
    let (code, _) = status(&etcd.waypost(&["nodes", "api"]).output().unwrap());
    assert_eq!(code, 3);
    let (code, errors) = status(&agent.waypost(&["deregister", "api"]).output().unwrap());
    assert!(code == 3 && errors.contains("api"), "{errors}");
}

#[test]
fn a_service_that_never_passes_is_said_not_to_be_registered() {
    let etcd = Etcd::start();
    let agent = agent(&etcd);
    let register = [
        "register",
        "api",
        "--port",
        "1",
        "--address",
        "127.0.0.1",
        "--check",
        "tcp,interval=100ms",
        "--wait",
        "500ms",
    ];
    let (code, errors) = status(&agent.waypost(&register).output().unwrap());
    assert!(code == 0 || errors.contains("the agent keeps api/host-a-1"), "{code}: {errors}");
    let page = eventually("the page tells of it", || {
        let page = json(&mut agent.waypost(&["status"]));
        let text = page["problems"].to_string();
        text.contains("api/host-a-1 is critical").then_some(page)
    });
    assert_eq!(page["registrations"].as_array().unwrap().len(), 2);
}

#[test]
fn drain_says_when_the_process_may_be_stopped() {
    let etcd = Etcd::start();
    let agent = agent(&etcd);
    let health = |etcd: &Etcd| json(&mut etcd.waypost(&["nodes", "web"]))["nodes"][0]["health"].clone();
    let out = printed(&mut agent.waypost(&["drain", "web", "--for", "100ms", "--reason", "new disks"]));
    let expected = "\
draining in etcd: web/host-a-8080
requests in flight get 100ms to end
web/host-a-8080 may be stopped now; take it back with: waypost maintenance off web host-a-8080
";
    assert_eq!(out, expected);
    assert_eq!(health(&etcd), "draining", "etcd has it already");
    let list = printed(&mut agent.waypost(&["maintenance", "list"]));
    assert!(list.contains("web   host-a-8080  ") && list.contains("new disks"), "{list}");
    let page = printed(&mut agent.waypost(&["status"]));
    assert!(page.contains("web/host-a-8080 is in maintenance since"), "{page}");

    assert_eq!(
        printed(&mut agent.waypost(&["maintenance", "off", "web"])),
        "web/host-a-8080: taken back from maintenance\n"
    );
    eventually("it passes again", || (health(&etcd) == "passing").then_some(()));
    assert_eq!(printed(&mut agent.waypost(&["maintenance", "list"])), "nothing is in maintenance\n");
    let drained = json(&mut agent.waypost(&["drain", "--for", "0s"]));
    assert_eq!((&drained["may_be_stopped"], &drained["drained"][0]["service"]), (&true.into(), &"web".into()));
    let list = json(&mut agent.waypost(&["maintenance", "list"]));
    assert_eq!((&list["host"]["reason"], &list["instances"]), (&"drained before a stop".into(), &Value::Array(vec![])));
    assert_eq!(printed(&mut agent.waypost(&["maintenance", "off"])), "this host: taken back from maintenance\n");
    let (code, errors) = status(&agent.waypost(&["drain", "users"]).output().unwrap());
    assert!(code == 3 && errors.contains("users"), "{errors}");
}

#[test]
fn a_drain_that_etcd_does_not_hear_of_fails() {
    let mut etcd = Etcd::start();
    let agent = agent(&etcd);
    etcd.stop();
    let drain = ["drain", "web", "--for", "0s", "--timeout", "2s"];
    let (code, errors) = status(&agent.waypost(&drain).output().unwrap());
    assert!(code == 1 && errors.contains("within 2s etcd did not show as draining: web/host-a-8080"), "{errors}");
    let page = eventually("the page tells of the outage", || {
        let page = printed(&mut agent.waypost(&["status"]));
        page.contains("etcd: /waypost/services/ is not followed").then_some(page)
    });
    assert!(page.contains("problem"), "{page}");
}

#[test]
fn the_agents_events_are_told_until_a_signal_ends_it_and_over_its_restart() {
    let etcd = Etcd::start();
    let mut agent = agent(&etcd);
    let mut lines = Running::start(&mut agent.waypost(&["watch"]));
    let mut events = Running::start(&mut agent.waypost(&["watch", "--json"]));
    assert!(lines.line().ends_with("  web  1 node, 1 passing"));
    let event = |events: &Running| -> Value { serde_json::from_str(&events.line()).unwrap() };
    assert_eq!(event(&events)["event"], "resynchronised");
    printed(&mut agent.waypost(&["maintenance", "on"]));
    let line = lines.line();
    assert!(line.contains("web  changed  10.0.0.1:8080  health passing → draining"), "{line}");
    assert_eq!(event(&events)["new"]["health"], "draining");
    agent.restart();
    assert!(lines.line().contains("interrupted: "));
    eventually("the new agent is followed", || lines.line().contains("resynchronised: ").then_some(()));
    signal(&lines.process, Signal::INT);
    assert_eq!(lines.end(), (0, String::new()));
    signal(&events.process, Signal::TERM);
    let (code, errors) = events.end();
    assert!(code == 0 && errors.contains("waypost: interrupted: "), "{errors}");
}

#[test]
fn values_are_watched_by_way_of_the_agent() {
    let etcd = Etcd::start();
    let agent = agent(&etcd);
    etcd.ctl(&["put", "/c/a", "1"]);
    let lines = Running::start(&mut agent.waypost(&["kv", "watch", "--prefix", "/c/"]));
    assert!(lines.line().ends_with("put      /c/a  \"1\""));
    etcd.ctl(&["put", "/c/a", "2"]);
    assert!(lines.line().ends_with("put      /c/a  \"1\" → \"2\""));
    let one = Running::start(&mut agent.waypost(&["kv", "watch", "/c/a", "--json"]));
    let first: Value = serde_json::from_str(&one.line()).unwrap();
    assert_eq!((&first["event"], &first["values"][0]["value"]), (&"resynchronised".into(), &"2".into()));
}
