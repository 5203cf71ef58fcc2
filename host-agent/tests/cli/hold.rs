//! `waypost lock` and `waypost elect`, the built binary, on a real etcd.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Etcd, Running, signal, status, tool};

/// `waypost WHAT NAME --etcd URL OPTIONS -- COMMAND`.
fn waypost(etcd: &Etcd, what: &str, options: &[&str], command: &[&str]) -> Command {
    let mut waypost = etcd.waypost(&[what, "jobs", "--ttl", "3s"]);
    waypost.args(options).arg("--").args(command);
    waypost
}

fn lock(etcd: &Etcd, options: &[&str], command: &[&str]) -> Command {
    waypost(etcd, "lock", options, command)
}

fn nothing_is_left(etcd: &Etcd) {
    assert_eq!(etcd.ctl(&["get", "--prefix", "--keys-only", "jobs/"]), "");
}

#[test]
fn the_command_runs_under_the_lock_and_its_exit_status_is_passed_on() {
    let etcd = Etcd::start();
    let script = "etcdctl get \"$WAYPOST_LOCK_KEY\"; echo $WAYPOST_FENCING_TOKEN; exit 7";
    let path = format!("{}:{}", tool("etcdctl").parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut command = lock(&etcd, &[], &["sh", "-c", script]);
    command.env("PATH", path).env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", &etcd.url);
    let output = command.output().unwrap();
    assert_eq!(status(&output), (7, String::new()));
    let printed = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = printed.lines().filter(|line| !line.is_empty()).collect();
    assert!(lines.first().unwrap().starts_with("jobs/"), "the key is there while the command runs: {printed}");
    assert!(lines.last().unwrap().parse::<i64>().unwrap() > 1, "{printed}");
    nothing_is_left(&etcd);

    assert_eq!(status(&lock(&etcd, &[], &["sh", "-c", "kill -KILL $$"]).output().unwrap()), (137, String::new()));
    let (code, errors) = status(&lock(&etcd, &[], &["/nowhere/command"]).output().unwrap());
    assert_eq!(code, 127);
    assert!(errors.contains("cannot run /nowhere/command"), "{errors}");
    nothing_is_left(&etcd);

    // The same from a configuration.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("agent.toml");
    std::fs::write(&file, format!("[etcd]\nendpoints = [\"{}\"]\n", etcd.url)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_waypost"));
    command.args(["lock", "jobs", "--config"]).arg(file).args(["--", "sh", "-c", "exit 3"]);
    assert_eq!(status(&command.output().unwrap()), (3, String::new()));
}

#[test]
fn what_is_held_and_lost_is_told_to_programs() {
    let etcd = Etcd::start();
    let script = "trap 'exit 0' TERM; echo $WAYPOST_FENCING_TOKEN $WAYPOST_LOCK_KEY; while :; do sleep 0.05; done";
    let mut holder = Running::start(&mut lock(&etcd, &["--json"], &["sh", "-c", script]));
    let line = holder.line();
    etcd.ctl(&["del", "--prefix", "jobs/"]);
    let (code, told) = holder.end();
    assert_eq!(code, 75);
    let told: Vec<serde_json::Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((told.len(), &told[0]["event"], &told[1]["event"]), (2, &"held".into(), &"lost".into()));
    assert_eq!(format!("{} {}", told[0]["token"], told[0]["key"].as_str().unwrap()), line);
}

#[test]
fn one_waits_for_the_other_and_signals_reach_the_command() {
    let etcd = Etcd::start();
    let script = "trap 'echo hup' HUP; trap 'echo int' INT; trap 'echo term; exit 4' TERM; echo up; \
                  while :; do sleep 0.05; done";
    let mut first = Running::start(&mut lock(&etcd, &[], &["sh", "-c", script]));
    assert_eq!(first.line(), "up");

    for wait in ["0s", "300ms"] {
        let (code, errors) = status(&lock(&etcd, &["--wait", wait], &["echo", "never"]).output().unwrap());
        assert_eq!(code, 69);
        assert!(errors.contains("jobs"), "{errors}");
    }
    let mut second = Running::start(&mut lock(&etcd, &[], &["echo", "second"]));
    assert!(second.lines.recv_timeout(Duration::from_millis(300)).is_err(), "it waits");
    // One that is told to end while it waits leaves the line.
    let mut third = Running::start(&mut lock(&etcd, &[], &["echo", "never"]));
    thread::sleep(Duration::from_millis(300));
    signal(&third.process, Signal::TERM);
    assert_eq!(third.end(), (143, String::new()));

    for (sent, told) in [(Signal::HUP, "hup"), (Signal::INT, "int"), (Signal::TERM, "term")] {
        signal(&first.process, sent);
        assert_eq!(first.line(), told);
    }
    assert_eq!(first.end(), (4, String::new()));
    assert_eq!(second.line(), "second");
    assert_eq!(second.end(), (0, String::new()));
    nothing_is_left(&etcd);
}

#[test]
fn a_command_whose_lock_is_lost_is_stopped() {
    let mut etcd = Etcd::start();
    let script = "trap 'echo term; exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let mut holder = Running::start(&mut lock(&etcd, &[], &["sh", "-c", script]));
    assert_eq!(holder.line(), "up");
    etcd.ctl(&["del", "--prefix", "jobs/"]);
    assert_eq!(holder.line(), "term");
    let (code, errors) = holder.end();
    assert_eq!(code, 75);
    assert!(errors.contains("its key was deleted"), "{errors}");

    // Killed outright, it hands over when its lease ends; its own command is not there to be stopped.
    let mut holder = Running::start(&mut lock(&etcd, &[], &["sh", "-c", "echo $$; exec sleep 60"]));
    let orphan = Pid::from_raw(holder.line().parse().unwrap()).unwrap();
    holder.process.kill().unwrap();
    let since = Instant::now();
    assert_eq!(status(&lock(&etcd, &[], &["true"]).output().unwrap()), (0, String::new()));
    assert!(since.elapsed() > Duration::from_secs(1) && since.elapsed() < Duration::from_secs(10));
    kill_process(orphan, Signal::KILL).unwrap();

    // Without etcd, the command is told to end before the lease can; and a busy machine takes its time.
    let mut holder = Running::start(&mut lock(&etcd, &[], &["sh", "-c", script]));
    assert_eq!(holder.line(), "up");
    etcd.process.process.kill().unwrap();
    let since = Instant::now();
    assert_eq!(holder.line(), "term");
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert_eq!(holder.end().0, 75);
    let (code, errors) = status(&lock(&etcd, &["--wait", "200ms"], &["true"]).output().unwrap());
    assert_eq!(code, 69);
    assert!(errors.contains("cannot be reached"), "{errors}");
}

#[test]
fn a_frozen_holder_does_not_take_its_lock_for_held_when_it_wakes_up() {
    let etcd = Etcd::start();
    let script = "trap 'echo term; exit 0' TERM; echo $WAYPOST_FENCING_TOKEN; while :; do sleep 0.05; done";
    let mut frozen = Running::start(&mut lock(&etcd, &[], &["sh", "-c", script]));
    let token: i64 = frozen.line().parse().unwrap();
    signal(&frozen.process, Signal::STOP);
    let mut next = Running::start(&mut lock(&etcd, &[], &["sh", "-c", script]));
    assert!(next.line().parse::<i64>().unwrap() > token);
    signal(&frozen.process, Signal::CONT);
    assert_eq!(frozen.line(), "term");
    assert_eq!(frozen.end().0, 75);
    signal(&next.process, Signal::TERM);
    assert_eq!(next.end(), (0, String::new()));
}

#[test]
fn the_leader_runs_its_command_and_etcdctl_sees_its_value() {
    let etcd = Etcd::start();
    let leader = &["sh", "-c", "trap 'exit 0' TERM; echo leading; while :; do sleep 0.05; done"];
    let mut first = Running::start(&mut waypost(&etcd, "elect", &["--value", "first"], leader));
    assert_eq!(first.line(), "leading");
    let mut listener = Command::new(tool("etcdctl"));
    listener.env("ETCDCTL_API", "3").args(["--endpoints", &etcd.url, "elect", "--listen", "jobs"]);
    let listener = Running::start(&mut listener);
    assert!(listener.line().starts_with("jobs/"));
    assert_eq!(listener.line(), "first");
    let mut second = Running::start(&mut waypost(&etcd, "elect", &["--value", "second"], leader));
    assert!(second.lines.recv_timeout(Duration::from_millis(300)).is_err(), "it waits");
    signal(&first.process, Signal::TERM);
    assert_eq!(first.end(), (0, String::new()));
    assert_eq!(second.line(), "leading");
    assert!(listener.line().starts_with("jobs/"));
    assert_eq!(listener.line(), "second");
    signal(&second.process, Signal::TERM);
    assert_eq!(second.end(), (0, String::new()));
    nothing_is_left(&etcd);
}
