//! `waypost lock` and `waypost elect`, the built binary, on a real etcd.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(20);

/// A program of `.tools`; `WAYPOST_ETCD_BIN` names the folder of another version of etcd.
fn tool(name: &str) -> PathBuf {
    let other_etcd = std::env::var_os("WAYPOST_ETCD_BIN").filter(|_| name.starts_with("etcd"));
    let folder = other_etcd.or_else(|| std::env::var_os("WAYPOST_TOOLS"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin");
    let path = folder.map_or(root, PathBuf::from).join(name);
    assert!(path.is_file(), "{} is not there: run cargo xtask setup", path.display());
    path
}

fn signal(process: &Child, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(process.id()).unwrap()).unwrap(), signal).unwrap();
}

/// A process that is killed when dropped, and its lines.
struct Running {
    process: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let stdout = process.stdout.take().unwrap();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                // The test may have seen enough.
                let _ = sender.send(line.unwrap());
            }
        });
        Self { process, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }

    /// Its exit status and what it wrote to stderr.
    fn end(&mut self) -> (i32, String) {
        let ends = Instant::now() + PATIENCE;
        let status = loop {
            match self.process.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > ends => panic!("it does not end"),
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        let mut errors = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (status.code().expect("it exits by itself"), errors)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Etcd {
    url: String,
    process: Running,
    _directory: tempfile::TempDir,
}

impl Etcd {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (client, peer): (SocketAddr, SocketAddr) = (free(), free());
        let (url, peer) = (format!("http://{client}"), format!("http://{peer}"));
        let mut command = Command::new(tool("etcd"));
        command
            .args(["--name", "m", "--unsafe-no-fsync", "--log-level", "error", "--data-dir"])
            .arg(directory.path().join("data"))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("m={peer}")]);
        let process = Running::start(&mut command);
        let ends = Instant::now() + PATIENCE;
        while TcpStream::connect(client).is_err() {
            assert!(Instant::now() < ends, "etcd does not listen");
            thread::sleep(Duration::from_millis(5));
        }
        let etcd = Self { url, process, _directory: directory };
        etcd.ctl(&["put", "ready", "1"]);
        etcd
    }

    fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(tool("etcdctl"));
        let output = command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// `waypost WHAT NAME --etcd URL OPTIONS -- COMMAND`.
    fn waypost(&self, what: &str, options: &[&str], command: &[&str]) -> Command {
        let mut waypost = Command::new(env!("CARGO_BIN_EXE_waypost"));
        waypost.args([what, "jobs", "--etcd", &self.url, "--ttl", "3s"]).args(options).arg("--").args(command);
        waypost
    }

    fn lock(&self, options: &[&str], command: &[&str]) -> Command {
        self.waypost("lock", options, command)
    }

    fn nothing_is_left(&self) {
        assert_eq!(self.ctl(&["get", "--prefix", "--keys-only", "jobs/"]), "");
    }
}

fn status(output: &Output) -> (i32, String) {
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_command_runs_under_the_lock_and_its_exit_status_is_passed_on() {
    let etcd = Etcd::start();
    let script = "etcdctl get \"$WAYPOST_LOCK_KEY\"; echo $WAYPOST_FENCING_TOKEN; exit 7";
    let path = format!("{}:{}", tool("etcdctl").parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut command = etcd.lock(&[], &["sh", "-c", script]);
    command.env("PATH", path).env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", &etcd.url);
    let output = command.output().unwrap();
    assert_eq!(status(&output), (7, String::new()));
    let printed = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = printed.lines().filter(|line| !line.is_empty()).collect();
    assert!(lines.first().unwrap().starts_with("jobs/"), "the key is there while the command runs: {printed}");
    assert!(lines.last().unwrap().parse::<i64>().unwrap() > 1, "{printed}");
    etcd.nothing_is_left();

    assert_eq!(status(&etcd.lock(&[], &["sh", "-c", "kill -KILL $$"]).output().unwrap()), (137, String::new()));
    let (code, errors) = status(&etcd.lock(&[], &["/nowhere/command"]).output().unwrap());
    assert_eq!(code, 127);
    assert!(errors.contains("cannot run /nowhere/command"), "{errors}");
    etcd.nothing_is_left();

    // The same from a configuration.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("agent.toml");
    std::fs::write(&file, format!("[etcd]\nendpoints = [\"{}\"]\n", etcd.url)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_waypost"));
    command.args(["lock", "jobs", "--config"]).arg(file).args(["--", "sh", "-c", "exit 3"]);
    assert_eq!(status(&command.output().unwrap()), (3, String::new()));
}

#[test]
fn one_waits_for_the_other_and_signals_reach_the_command() {
    let etcd = Etcd::start();
    let script = "trap 'echo hup' HUP; trap 'echo int' INT; trap 'echo term; exit 4' TERM; echo up; \
                  while :; do sleep 0.05; done";
    let mut first = Running::start(&mut etcd.lock(&[], &["sh", "-c", script]));
    assert_eq!(first.line(), "up");

    for wait in ["0s", "300ms"] {
        let (code, errors) = status(&etcd.lock(&["--wait", wait], &["echo", "never"]).output().unwrap());
        assert_eq!(code, 69);
        assert!(errors.contains("jobs"), "{errors}");
    }
    let mut second = Running::start(&mut etcd.lock(&[], &["echo", "second"]));
    assert!(second.lines.recv_timeout(Duration::from_millis(300)).is_err(), "it waits");
    // One that is told to end while it waits leaves the line.
    let mut third = Running::start(&mut etcd.lock(&[], &["echo", "never"]));
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
    etcd.nothing_is_left();
}

#[test]
fn a_command_whose_lock_is_lost_is_stopped() {
    let mut etcd = Etcd::start();
    let script = "trap 'echo term; exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let mut holder = Running::start(&mut etcd.lock(&[], &["sh", "-c", script]));
    assert_eq!(holder.line(), "up");
    etcd.ctl(&["del", "--prefix", "jobs/"]);
    assert_eq!(holder.line(), "term");
    let (code, errors) = holder.end();
    assert_eq!(code, 75);
    assert!(errors.contains("its key was deleted"), "{errors}");

    // Killed outright, it hands over when its lease ends; its own command is not there to be stopped.
    let mut holder = Running::start(&mut etcd.lock(&[], &["sh", "-c", "echo $$; exec sleep 60"]));
    let orphan = Pid::from_raw(holder.line().parse().unwrap()).unwrap();
    holder.process.kill().unwrap();
    let since = Instant::now();
    assert_eq!(status(&etcd.lock(&[], &["true"]).output().unwrap()), (0, String::new()));
    assert!(since.elapsed() > Duration::from_secs(1) && since.elapsed() < Duration::from_secs(10));
    kill_process(orphan, Signal::KILL).unwrap();

    // Without etcd, the command is told to end before the lease can; and a busy machine takes its time.
    let mut holder = Running::start(&mut etcd.lock(&[], &["sh", "-c", script]));
    assert_eq!(holder.line(), "up");
    etcd.process.process.kill().unwrap();
    let since = Instant::now();
    assert_eq!(holder.line(), "term");
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert_eq!(holder.end().0, 75);
    let (code, errors) = status(&etcd.lock(&["--wait", "200ms"], &["true"]).output().unwrap());
    assert_eq!(code, 69);
    assert!(errors.contains("cannot be reached"), "{errors}");
}

#[test]
fn a_frozen_holder_does_not_take_its_lock_for_held_when_it_wakes_up() {
    let etcd = Etcd::start();
    let script = "trap 'echo term; exit 0' TERM; echo $WAYPOST_FENCING_TOKEN; while :; do sleep 0.05; done";
    let mut frozen = Running::start(&mut etcd.lock(&[], &["sh", "-c", script]));
    let token: i64 = frozen.line().parse().unwrap();
    signal(&frozen.process, Signal::STOP);
    let mut next = Running::start(&mut etcd.lock(&[], &["sh", "-c", script]));
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
    let mut first = Running::start(&mut etcd.waypost("elect", &["--value", "first"], leader));
    assert_eq!(first.line(), "leading");
    let mut listener = Command::new(tool("etcdctl"));
    listener.env("ETCDCTL_API", "3").args(["--endpoints", &etcd.url, "elect", "--listen", "jobs"]);
    let listener = Running::start(&mut listener);
    assert!(listener.line().starts_with("jobs/"));
    assert_eq!(listener.line(), "first");
    let mut second = Running::start(&mut etcd.waypost("elect", &["--value", "second"], leader));
    assert!(second.lines.recv_timeout(Duration::from_millis(300)).is_err(), "it waits");
    signal(&first.process, Signal::TERM);
    assert_eq!(first.end(), (0, String::new()));
    assert_eq!(second.line(), "leading");
    assert!(listener.line().starts_with("jobs/"));
    assert_eq!(listener.line(), "second");
    signal(&second.process, Signal::TERM);
    assert_eq!(second.end(), (0, String::new()));
    etcd.nothing_is_left();
}
