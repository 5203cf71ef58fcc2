//! A real etcd, a real agent, and the real binary.

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

pub const PATIENCE: Duration = Duration::from_secs(20);

/// A program of `.tools`; `WAYPOST_ETCD_BIN` names the folder of another version of etcd.
pub fn tool(name: &str) -> PathBuf {
    let other_etcd = std::env::var_os("WAYPOST_ETCD_BIN").filter(|_| name.starts_with("etcd"));
    let folder = other_etcd.or_else(|| std::env::var_os("WAYPOST_TOOLS"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin");
    let path = folder.map_or(root, PathBuf::from).join(name);
    assert!(path.is_file(), "{} is not there: run cargo xtask setup", path.display());
    path
}

pub fn signal(process: &Child, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(process.id()).unwrap()).unwrap(), signal).unwrap();
}

/// A process that is killed when dropped, and its lines.
pub struct Running {
    pub process: Child,
    pub lines: mpsc::Receiver<String>,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
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

    pub fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }

    /// Its exit status and what it wrote to stderr.
    pub fn end(&mut self) -> (i32, String) {
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

pub struct Etcd {
    pub url: String,
    pub process: Running,
    client: SocketAddr,
    peer: SocketAddr,
    directory: tempfile::TempDir,
}

impl Etcd {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        // A free port may be somebody else's by the time that etcd wants it: etcd ends, and others are tried.
        let (client, peer, process) = eventually("etcd listens", || {
            let (client, peer) = (free(), free());
            let mut process = Self::run(&directory, client, peer);
            let listens = || TcpStream::connect(client).is_ok();
            let ended = eventually("etcd listens or ends", || {
                let ended = process.process.try_wait().unwrap().is_some();
                (ended || listens()).then_some(ended)
            });
            (!ended).then_some((client, peer, process))
        });
        let etcd = Self { url: format!("http://{client}"), process, client, peer, directory };
        etcd.answers();
        etcd
    }

    fn run(directory: &tempfile::TempDir, client: SocketAddr, peer: SocketAddr) -> Running {
        let (url, peer) = (format!("http://{client}"), format!("http://{peer}"));
        let mut command = Command::new(tool("etcd"));
        command
            .args(["--name", "m", "--unsafe-no-fsync", "--log-level", "error", "--data-dir"])
            .arg(directory.path().join("data"))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("m={peer}")]);
        Running::start(&mut command)
    }

    fn answers(&self) {
        eventually("etcd listens", || TcpStream::connect(self.client).ok());
        self.ctl(&["put", "ready", "1"]);
    }

    /// Kills it; what it holds stays.
    pub fn stop(&mut self) {
        self.process.process.kill().unwrap();
        self.process.process.wait().unwrap();
    }

    /// Starts it again, where it was.
    pub fn restart(&mut self) {
        self.process = Self::run(&self.directory, self.client, self.peer);
        self.answers();
    }

    pub fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(tool("etcdctl"));
        let output = command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// `waypost ARGUMENTS --etcd URL`, with nothing of the environment that it would heed.
    pub fn waypost(&self, arguments: &[&str]) -> Command {
        let mut command = waypost(arguments);
        command.args(["--etcd", &self.url]);
        command
    }
}

/// `waypost ARGUMENTS`, with nothing of the environment that it would heed.
pub fn waypost(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waypost"));
    for variable in ["WAYPOST_AGENT", "WAYPOST_ETCD", "NO_COLOR"] {
        command.env_remove(variable);
    }
    command.args(arguments);
    command
}

/// Exit status and stderr.
pub fn status(output: &Output) -> (i32, String) {
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What a command that works prints.
pub fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(status(&output), (0, String::new()), "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The same as JSON.
pub fn json(command: &mut Command) -> serde_json::Value {
    serde_json::from_str(&printed(command.arg("--json"))).unwrap()
}

/// Waits until something is so.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let ends = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < ends, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// An agent.
pub struct Agent {
    socket: PathBuf,
    process: Running,
    file: PathBuf,
    _directory: tempfile::TempDir,
}

impl Agent {
    /// Starts one, with more at the beginning and at the end of its configuration, and waits until it serves.
    pub fn start(etcd: &Etcd, first: &str, last: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (socket, state) = (directory.path().join("agent.sock"), directory.path().join("state"));
        let text = format!(
            "node = \"host-a\"\nstate_dir = {state:?}\n{first}[etcd]\nendpoints = [{:?}]\n[stream]\nsocket = {socket:?}\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n{last}",
            etcd.url,
        );
        let file = directory.path().join("agent.toml");
        std::fs::write(&file, text).unwrap();
        let process = Self::run(&file);
        let agent = Self { socket, process, file, _directory: directory };
        agent.serves();
        agent
    }

    fn run(file: &Path) -> Running {
        Running::start(waypost(&["agent", "--config"]).arg(file))
    }

    fn serves(&self) {
        eventually("the agent serves", || self.waypost(&["services"]).output().unwrap().status.success().then_some(()));
    }

    /// Kills it, and starts it again.
    pub fn restart(&mut self) {
        self.process.process.kill().unwrap();
        self.process.process.wait().unwrap();
        self.process = Self::run(&self.file);
        self.serves();
    }

    /// `waypost ARGUMENTS --agent SOCKET`.
    pub fn waypost(&self, arguments: &[&str]) -> Command {
        let mut command = waypost(arguments);
        command.arg("--agent").arg(&self.socket);
        command
    }
}
