//! A child process: it dies with us, its output goes to a log file, and it is signalled and waited for with a deadline.
use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process_group, test_kill_process_group};

/// How often an exit is looked for.
const POLL: Duration = Duration::from_millis(5);
/// A killed process is gone within this.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// A program to run, its log file, and the child while it runs. Dropping it kills the child.
pub struct Process {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    slot: Arc<Slot>,
}

/// A process that should run does not.
#[derive(Debug)]
pub struct Ended {
    name: String,
    tail: String,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} does not run; its log ends with:\n{}", self.name, self.tail)
    }
}

impl std::error::Error for Ended {}

/// The child, shared with the scene, which kills what is left.
pub(crate) struct Slot {
    child: Mutex<Option<Child>>,
}

impl Process {
    pub(crate) fn new(name: &str, program: PathBuf, args: Vec<String>, log: PathBuf) -> Self {
        let slot = Arc::new(Slot { child: Mutex::new(None) });
        Self { name: name.to_owned(), program, args, environment: Vec::new(), log, slot }
    }

    /// Has it started with these variables too.
    pub fn environment(mut self, environment: Vec<(String, String)>) -> Self {
        self.environment = environment;
        self
    }

    pub(crate) fn slot(&self) -> Arc<Slot> {
        self.slot.clone()
    }

    /// Its name in logs and errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file with its standard output and error.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Starts it; an error if it runs.
    pub fn start(&self) -> Result<()> {
        let mut child = self.slot.lock();
        if let Some(running) = child.as_mut()
            && running.try_wait()?.is_none()
        {
            bail!("{} runs already", self.name);
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command.envs(self.environment.iter().cloned());
        command.args(&self.args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        *child = Some(spawn(command).with_context(|| format!("cannot start {}", self.program.display()))?);
        Ok(())
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.slot.running().map(|pid| pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// [`Ended`], with the log's tail, if it does not run.
    pub fn ensure_running(&self) -> Result<()> {
        if self.slot.running().is_none() {
            return Err(Ended { name: self.name.clone(), tail: tail(&self.log, 20) }.into());
        }
        Ok(())
    }

    /// Sends a signal to its process group; an error if it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if !self.slot.signal(signal)? {
            bail!("{} does not run", self.name);
        }
        Ok(())
    }

    /// Waits for its exit.
    pub async fn wait(&self, deadline: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.slot.exit_status()? {
                return Ok(status);
            }
            if start.elapsed() > deadline {
                bail!("{} has not ended within {deadline:?}", self.name);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait(KILL_DEADLINE).await.map(drop)
    }

    /// SIGTERM, and waits for its exit.
    pub async fn terminate(&self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(deadline).await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.slot.kill_and_reap();
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exit_status(&self) -> io::Result<Option<ExitStatus>> {
        match self.lock().as_mut() {
            Some(child) => child.try_wait(),
            None => Err(io::Error::other("never started")),
        }
    }

    fn running(&self) -> Option<Pid> {
        running(self.lock().as_mut())
    }

    /// False if nothing runs. The lock keeps the id ours: nobody reaps the child meanwhile.
    fn signal(&self, signal: Signal) -> io::Result<bool> {
        let mut child = self.lock();
        match running(child.as_mut()) {
            Some(pid) => kill_process_group(pid, signal).map(|()| true).map_err(Into::into),
            None => Ok(false),
        }
    }

    /// Kills what runs and waits for it. True if nothing of its process group is left.
    pub(crate) fn kill_and_reap(&self) -> bool {
        let mut slot = self.lock();
        let Some(child) = slot.as_mut() else { return true };
        let pid = Pid::from_child(child);
        if let Ok(None) = child.try_wait() {
            // A stopped process takes SIGKILL too; an error means that it has gone by itself.
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let reaped = child.wait().is_ok();
        *slot = None;
        reaped && test_kill_process_group(pid).is_err()
    }
}

fn running(child: Option<&mut Child>) -> Option<Pid> {
    let child = child?;
    matches!(child.try_wait(), Ok(None)).then(|| Pid::from_child(child))
}

/// The last `lines` lines of a file.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// Spawns on a thread that lives as long as the process: the kernel sends the parent-death signal when the *thread*
/// that spawned the child ends, and a test's or runtime's thread ends early.
fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                die_with_parent(&mut command);
                // The one who ordered waits for the answer.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (answer, result) = mpsc::channel();
    let sent = spawner.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer));
    sent.map_err(io::Error::other)?;
    result.recv().map_err(io::Error::other)?
}

#[allow(unsafe_code)]
fn die_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec only two system calls are made; nothing allocates or takes a lock.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
    }
}
