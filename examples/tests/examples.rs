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
