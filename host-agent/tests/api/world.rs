//! A real etcd and a real agent, killed when dropped.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use base64::Engine as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::client::{At, LIMIT};

fn tool(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin");
    let path = std::env::var_os("WAYPOST_TOOLS").map_or(root, PathBuf::from).join(name);
    assert!(path.is_file(), "{} is not there: run cargo xtask setup", path.display());
    path
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A process that is killed when dropped.
pub struct Process(Child);

impl Process {
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        Self(command.stdin(Stdio::null()).stderr(log).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap(), signal).unwrap();
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Tries until it works out.
pub async fn until<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let ends = Instant::now() + LIMIT;
    loop {
        if let Some(found) = attempt().await {
            return found;
        }
        assert!(Instant::now() < ends, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What etcd holds for a key.
#[derive(Debug, PartialEq)]
pub struct Held {
    pub value: Value,
    pub create_revision: i64,
    pub lease: String,
}

/// Everything that a test needs; `agent` may be killed and started again.
pub struct World {
    pub agent: Option<Process>,
    pub etcd: String,
    pub socket: At,
    pub tcp: At,
    pub directory: tempfile::TempDir,
    pub admin: SocketAddr,
    _etcd: Process,
}

impl World {
    /// An etcd, and an agent with these services in its file that is in step with it.
    pub async fn start(services: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (client, peer) = (format!("http://{}", free()), format!("http://{}", free()));
        let mut etcd = Command::new(tool("etcd"));
        etcd.args(["--name", "m", "--unsafe-no-fsync", "--log-level", "error", "--data-dir"])
            .arg(directory.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("m={peer}")]);
        let etcd = Process::start(&mut etcd, &directory.path().join("etcd.log"));
        let (socket, tcp) = (At::Socket(directory.path().join("agent.sock")), At::Tcp(free()));
        let admin = free();
        let mut world = Self { agent: None, etcd: client, socket, tcp, directory, admin, _etcd: etcd };
        until("etcd", async || world.try_ctl(&["put", "ready", "1"])).await;
        world.configure(services);
        world.start_agent().await;
        world
    }

    /// Writes the agent's configuration with these services.
    pub fn configure(&self, services: &str) {
        let path = |name: &str| self.directory.path().join(name).display().to_string();
        let At::Tcp(tcp) = self.tcp else { unreachable!("it is TCP") };
        let mut text = format!("node = \"host-a\"\ndrain = \"1s\"\nstate_dir = \"{}\"\n", path("state"));
        write!(text, "[etcd]\nendpoints = [\"{}\"]\n[stream]\nsocket = \"{}\"\n", self.etcd, path("agent.sock"))
            .unwrap();
        write!(text, "[admin]\nlisten = \"{}\"\n[api]\nlisten = \"{tcp}\"\n{services}", self.admin).unwrap();
        fs::write(path("agent.toml"), text).unwrap();
    }

    /// Starts the agent and waits until its mirror is in step.
    pub async fn start_agent(&mut self) {
        let mut agent = Command::new(env!("CARGO_BIN_EXE_waypost"));
        agent.arg("agent").arg("--config").arg(self.directory.path().join("agent.toml"));
        self.agent = Some(Process::start(&mut agent, &self.directory.path().join("agent.log")));
        let At::Socket(path) = &self.socket else { unreachable!("it is a socket") };
        until("the agent", async || {
            tokio::net::UnixStream::connect(path).await.ok()?;
            let answer = self.socket.get("/v1/status").await;
            (answer.json::<Value>()["etcd"]["synced"] == true).then_some(())
        })
        .await;
    }

    /// Kills the agent without a word.
    pub fn kill_agent(&mut self) {
        self.agent = None;
    }

    /// Ends the agent in order.
    pub async fn stop_agent(&mut self) {
        let mut agent = self.agent.take().expect("it runs");
        agent.signal(Signal::TERM);
        until("the agent's end", async || (!agent.runs()).then_some(())).await;
    }

    fn try_ctl(&self, arguments: &[&str]) -> Option<String> {
        let mut command = self.etcdctl();
        let output = command.args(arguments).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim_end().to_owned())
    }

    /// `etcdctl` with these arguments, which must succeed; its output.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        self.try_ctl(arguments).unwrap_or_else(|| panic!("etcdctl {arguments:?} failed"))
    }

    /// A transaction, as `etcdctl txn` reads it.
    pub fn transaction(&self, text: &str) {
        let mut command = self.etcdctl();
        let mut child = command.arg("txn").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// Ends a process by a signal that it can obey.
    pub async fn end_politely(&self, mut process: Process) {
        process.signal(Signal::INT);
        until("its end", async || (!process.runs()).then_some(())).await;
    }

    /// What etcd holds for a key, if it holds it.
    pub fn key(&self, key: &str) -> Option<Held> {
        let answer: Value = serde_json::from_str(&self.ctl(&["get", key, "-w", "json"])).unwrap();
        let kv = answer["kvs"].as_array()?.first()?.clone();
        let text = base64::engine::general_purpose::STANDARD.decode(kv["value"].as_str().unwrap_or_default()).unwrap();
        Some(Held {
            value: serde_json::from_slice(&text).unwrap_or(Value::Null),
            create_revision: kv["create_revision"].as_i64().unwrap(),
            lease: format!("{:x}", kv["lease"].as_i64().unwrap_or_default()),
        })
    }

    /// `etcdctl`, told where etcd is.
    pub fn etcdctl(&self) -> Command {
        let mut command = Command::new(tool("etcdctl"));
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.etcd]);
        command
    }

    /// What the agent has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("agent.log")).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the agent's log\n{}", self.log());
        }
    }
}
