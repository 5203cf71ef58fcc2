//! Completions and manual pages.

use crate::support::{printed, status, waypost};

#[test]
fn every_command_is_completed_and_has_its_page() {
    let script = printed(&mut waypost(&["completions", "bash"]));
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("man");
    assert_eq!(printed(waypost(&["man", "--dir"]).arg(&pages)), "");
    let main = printed(&mut waypost(&["man"]));
    assert_eq!(std::fs::read_to_string(pages.join("waypost.1")).unwrap(), main);
    for command in [
        "agent",
        "status",
        "services",
        "nodes",
        "watch",
        "pick",
        "register",
        "update",
        "deregister",
        "maintenance",
        "drain",
        "policy",
        "route",
        "kv",
        "lock",
        "elect",
        #[cfg(feature = "components")]
        "strategy",
        "config",
        "envoy",
        "completions",
        "man",
    ] {
        assert!(script.contains(command), "{command}");
        assert!(main.contains(&format!("waypost\\-{command}(1)")), "{command}");
        assert!(pages.join(format!("waypost-{command}.1")).is_file(), "{command}");
        let output = waypost(&[command, "--help"]).output().unwrap();
        assert_eq!(status(&output), (0, String::new()), "{command}");
    }
}

#[test]
fn whoever_finds_nobody_is_told_what_to_do() {
    let nowhere = ["services", "--agent", "/nowhere/agent.sock"];
    let (code, errors) = status(&waypost(&nowhere).output().unwrap());
    assert_eq!(code, 69);
    for part in ["/nowhere/agent.sock", "waypost agent --config", "--etcd"] {
        assert!(errors.contains(part), "{errors}");
    }
    let (code, errors) = status(&waypost(&["nodes", "--etcd", "http://127.0.0.1:1"]).output().unwrap());
    assert_eq!(code, 69);
    assert!(errors.contains("http://127.0.0.1:1"), "{errors}");
    let (code, _) = status(&waypost(&["services", "--agent", "/x", "--etcd", "http://127.0.0.1:1"]).output().unwrap());
    assert_eq!(code, 2);
}
