//! Every example runs to its end on a real etcd, does what it says, and leaves nothing of its own behind.

use std::{process::Stdio, time::Duration};

use tokio::process::Command;
use waypost_registry::etcd_client::GetOptions;
use waypost_registry_testing::Etcd;

/// What an example printed.
async fn run(etcd: &Etcd, program: &str) -> String {
    let child = Command::new(program)
        .arg(etcd.url())
        .env("ADDRESS", "cidr:127.0.0.0/8")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(60), child).await.expect("it ends").unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

async fn keys(etcd: &Etcd) -> Vec<String> {
    let options = GetOptions::new().with_all_keys().with_keys_only();
    let found = etcd.client().await.kv_client().get("", Some(options)).await.unwrap();
    found.kvs().iter().map(|kv| kv.key_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn registration_is_there_while_the_program_runs_and_gone_when_it_stops() {
    let etcd = Etcd::start().await;
    let out = run(&etcd, env!("CARGO_BIN_EXE_registration")).await;
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].starts_with("registered /services/orders/127.0.0.1/"), "{out}");
    assert_eq!(lines[1..], ["it is registered", "stopped: it is closed"], "{out}");
    assert_eq!(keys(&etcd).await, Vec::<String>::new());
}

#[tokio::test]
async fn biregister_has_names_a_leader_and_its_successor() {
    let etcd = Etcd::start().await;
    let out = run(&etcd, env!("CARGO_BIN_EXE_biregister")).await;
    let lines: Vec<_> = out.lines().collect();
    let name = lines[0].strip_prefix("2 members, named ").and_then(|names| names.strip_suffix(", standby"));
    let name = name.unwrap_or_else(|| panic!("{out}"));
    assert_eq!(name.len(), 20, "{out}");
    let expected = [
        "standby is 10.0.0.6",
        "I lead: true",
        "changes from 2 members on",
        &format!("{name} went"),
        "leader: standby",
        "closed",
    ];
    assert_eq!(lines[1..], expected, "{out}");
    assert_eq!(keys(&etcd).await, ["/elsewhere"]);
}

#[tokio::test]
async fn governance_finds_what_is_healthy_keeps_the_last_good_setting_and_holds_a_lock() {
    let etcd = Etcd::start().await;
    let out = run(&etcd, env!("CARGO_BIN_EXE_governance")).await;
    let expected = [
        "orders has 2 nodes",
        "orders: 10.0.0.5:8080 is Critical",
        "picked 10.0.0.6:8080",
        "limit 100",
        "imports alone: true",
    ];
    assert_eq!(out.lines().collect::<Vec<_>>(), expected, "{out}");
    assert_eq!(keys(&etcd).await, ["/config/orders/limit"]);
}

#[tokio::test]
async fn gateway_spreads_calls_over_the_nodes_there_are() {
    let etcd = Etcd::start().await;
    let out = run(&etcd, env!("CARGO_BIN_EXE_gateway")).await;
    let expected = ["users-1 3, users-2 3", "users: users-1 went", "users: users-3 came", "users-2 3, users-3 3"];
    assert_eq!(out.lines().collect::<Vec<_>>(), expected, "{out}");
    assert_eq!(keys(&etcd).await, Vec::<String>::new());
}

#[tokio::test]
async fn hub_picks_exactly_by_any_strategy_from_several_threads() {
    let etcd = Etcd::start().await;
    let out = run(&etcd, env!("CARGO_BIN_EXE_hub")).await;
    let expected = [
        "both under one lease: true",
        "2 endpoints, 2 keys",
        r#"round robin: {"large": 600, "small": 600}"#,
        r#"weighted: {"large": 800, "small": 400}"#,
    ];
    assert_eq!(out.lines().collect::<Vec<_>>(), expected, "{out}");
    assert_eq!(keys(&etcd).await, Vec::<String>::new());
}
