//! A real etcd on ephemeral ports, a proxy that breaks connections in several ways, and waiting on conditions. For the
//! registry's tests, for its documentation, whose examples run, and for `examples/`. What fails panics.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

use std::{
    collections::BTreeMap,
    future::Future,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use etcd_client::Client;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    sync::{mpsc, watch},
    task::JoinSet,
};
use waypost_registry::{
    ConnectOptions, Connector, KeyChange, MirrorEvent, RegistrationHandle, RegistrationState, ResyncReason,
};

/// No condition takes longer, however busy the machine is.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `attempt` gives something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut attempt: impl FnMut() -> F) -> T {
    let ends = Instant::now() + PATIENCE;
    loop {
        // One attempt may itself hang, as on an etcd that is going down.
        if let Ok(Some(found)) = tokio::time::timeout(Duration::from_secs(3), attempt()).await {
            return found;
        }
        assert!(Instant::now() < ends, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A program of `.tools`; `WAYPOST_ETCD_BIN` names the folder of another version of etcd.
pub fn tool(name: &str) -> PathBuf {
    let other_etcd = std::env::var_os("WAYPOST_ETCD_BIN").filter(|_| name.starts_with("etcd"));
    let folder = other_etcd.or_else(|| std::env::var_os("WAYPOST_TOOLS"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../.tools/bin");
    let path = folder.map_or(root, PathBuf::from).join(name);
    assert!(path.is_file(), "{} is not there: run cargo xtask setup", path.display());
    path
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// An etcd of one member. Killed when dropped.
pub struct Etcd {
    directory: tempfile::TempDir,
    client_port: u16,
    peer_port: u16,
    scheme: &'static str,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Etcd {
    /// One that answers.
    pub async fn start() -> Self {
        let mut etcd = Self::prepare("http", vec![]);
        etcd.run().await;
        etcd
    }

    /// An etcd that is not started yet.
    pub fn prepare(scheme: &'static str, arguments: Vec<String>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (client_port, peer_port) = (free_port(), free_port());
        Self { directory, client_port, peer_port, scheme, arguments, process: None }
    }

    /// Three members of one cluster, started. They elect a leader within a second, twice as fast as by default: etcd 3.4
    /// often needs two rounds, and the short leases of tests would end meanwhile.
    pub async fn start_cluster() -> [Self; 3] {
        let mut members = ["m0", "m1", "m2"].map(|name| Self::prepare("http", vec!["--name".into(), name.into()]));
        let peers: Vec<_> = (0..3).map(|n| format!("m{n}=http://127.0.0.1:{}", members[n].peer_port)).collect();
        for member in &mut members {
            member.arguments.extend(["--initial-cluster".into(), peers.join(",")]);
            member.arguments.extend(["--heartbeat-interval=50".into(), "--election-timeout=500".into()]);
            member.spawn();
        }
        for member in &mut members {
            eventually("the member has a leader", || async {
                let client = Client::connect([member.url()], None).await.ok()?;
                client.kv_client().get("x", None).await.ok()
            })
            .await;
        }
        members
    }

    /// Starts it, on the same ports and data as before, and waits until it answers.
    pub async fn run(&mut self) {
        self.spawn();
        if self.scheme == "http" {
            eventually("etcd answers", || async {
                let client = Client::connect([self.url()], None).await.ok()?;
                // Ready once it has a leader, and not before.
                client
                    .kv_client()
                    .get("x", None)
                    .await
                    .map_or_else(|error| error.to_string().contains("user name").then_some(()), |_| Some(()))
            })
            .await;
        }
    }

    /// Starts it, and does not wait.
    pub fn spawn(&mut self) {
        let (client, peer) = (self.url(), format!("http://127.0.0.1:{}", self.peer_port));
        let process = Command::new(tool("etcd"))
            .args(["--name", "m", "--unsafe-no-fsync", "--log-level", "error"])
            .arg("--data-dir")
            .arg(self.directory.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("m={peer}")])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        self.process = Some(process.unwrap());
    }

    /// SIGKILL, if it runs.
    pub async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().await.unwrap();
        }
    }

    /// Kills it, forgets all its data and starts it on the same ports.
    pub async fn wipe(&mut self) {
        self.kill().await;
        std::fs::remove_dir_all(self.directory.path().join("data")).unwrap();
        self.run().await;
    }

    /// Its endpoint.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.client_port)
    }

    /// Its endpoint, for a proxy.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.client_port))
    }

    /// A client of its own.
    pub async fn client(&self) -> Client {
        Client::connect([self.url()], None).await.unwrap()
    }

    /// Connects to it.
    pub fn connector(&self) -> Connector {
        connector(&[self.url()])
    }

    /// How many watchers it says it has.
    pub async fn watchers(&self) -> u64 {
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let line = text.lines().find(|line| line.starts_with("etcd_debugging_mvcc_watcher_total "));
        line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until it has so many.
    pub async fn has_watchers(&self, count: u64) {
        let what = format!("{count} watchers");
        eventually(&what, || async { (self.watchers().await == count).then_some(()) }).await;
    }
}

/// Connects to these, with the usual limits.
pub fn connector(endpoints: &[String]) -> Connector {
    Connector::new(ConnectOptions { endpoints: endpoints.to_vec(), ..ConnectOptions::default() }).unwrap()
}

/// Value and lease of a key.
pub async fn get(client: &Client, key: &str) -> Option<(String, i64)> {
    let answer = client.kv_client().get(key, None).await.ok()?;
    let kv = answer.kvs().first()?;
    Some((kv.value_str().unwrap().to_owned(), kv.lease()))
}

/// Waits until a key has this value.
pub async fn value_is(client: &Client, key: &str, value: &str) {
    eventually(&format!("{key} is {value}"), || async { get(client, key).await.filter(|(found, _)| found == value) })
        .await;
}

/// Waits until a registration stands as wanted.
pub async fn state_is(handle: &RegistrationHandle, wanted: impl Fn(&RegistrationState) -> bool) {
    let mut state = handle.state();
    let reached = tokio::time::timeout(PATIENCE, state.wait_for(wanted)).await;
    if reached.is_err() {
        panic!("{:?} stays {:?}", handle.key(), handle.state().borrow());
    }
}

/// Waits until etcd has confirmed a registration.
pub async fn registered(handle: &RegistrationHandle) {
    state_is(handle, |state| *state == RegistrationState::Registered).await;
}

/// What a consumer of a mirror holds.
pub struct Copy {
    events: mpsc::Receiver<MirrorEvent>,
    /// Values by key.
    pub keys: BTreeMap<String, Vec<u8>>,
    /// Why each full state came.
    pub reasons: Vec<ResyncReason>,
    /// How many changes came.
    pub changes: usize,
}

impl Copy {
    /// Holds nothing yet.
    pub fn new(events: mpsc::Receiver<MirrorEvent>) -> Self {
        Self { events, keys: BTreeMap::new(), reasons: Vec::new(), changes: 0 }
    }

    /// Takes events in until this is reached.
    pub async fn until(&mut self, what: &str, reached: impl Fn(&Self) -> bool) {
        let ends = tokio::time::Instant::now() + PATIENCE;
        while !reached(self) {
            let event = tokio::time::timeout_at(ends, self.events.recv()).await;
            match event.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}; {:?}", self.keys.len())).unwrap() {
                MirrorEvent::Synced { entries, reason, .. } => {
                    self.reasons.push(reason);
                    self.keys = entries.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect();
                }
                MirrorEvent::Changed { changes, .. } => {
                    self.changes += 1;
                    for change in changes {
                        match change {
                            KeyChange::Put(put) => _ = self.keys.insert(put.key.clone(), put.value.clone()),
                            KeyChange::Delete { key, .. } => {
                                assert!(self.keys.remove(&key).is_some(), "{key} was not there");
                            }
                        }
                    }
                }
            }
        }
    }

    /// Takes events in until a key has this value, or is absent.
    pub async fn until_value(&mut self, key: &str, value: Option<&str>) {
        self.until(&format!("{key} is {value:?}"), |copy| {
            copy.keys.get(key).map(Vec::as_slice) == value.map(str::as_bytes)
        })
        .await;
    }
}

/// What the proxy does with bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Passes them on.
    Forward,
    /// Takes them and forgets them: a half-open connection.
    Swallow,
    /// Takes no more of them.
    Pause,
    /// Closes connections, and takes no new ones.
    Cut,
}

/// A TCP proxy.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    tasks: JoinSet<()>,
}

impl Proxy {
    /// One that passes everything on.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, receiver) = watch::channel(Mode::Forward);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                if *receiver.borrow() == Mode::Cut {
                    continue;
                }
                let Ok(far) = TcpStream::connect(target).await else { continue };
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                let (there, back) = (receiver.clone(), receiver.clone());
                connections.spawn(async move {
                    tokio::join!(carry(near_read, far_write, there), carry(far_read, near_write, back));
                });
            }
        });
        Self { address, mode, tasks }
    }

    /// As an endpoint.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Does this with bytes from now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if mode.wait_for(|mode| *mode != Mode::Pause).await.is_err() {
            return;
        }
        tokio::select! {
            changed = mode.changed() => if changed.is_err() || *mode.borrow() == Mode::Cut { return },
            read = from.read(&mut buffer) => match read {
                Ok(bytes @ 1..) if *mode.borrow() != Mode::Swallow => {
                    if to.write_all(&buffer[..bytes]).await.is_err() {
                        return;
                    }
                }
                Ok(1..) => {}
                _ => return,
            },
        }
    }
}
