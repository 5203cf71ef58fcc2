//! Runs a command, without a shell between, and goes by its exit status.
//!
//! The command is the leader of a process group of its own. That group is killed when the command has ended or its time
//! is up, or when nobody waits for it any more, so that nothing of a check is left behind. This is done while the
//! leader, even if it has ended, is still to be waited for: until then its number is nobody else's.

use std::{
    io,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::{
    io::AsyncReadExt as _,
    net::unix::pipe,
    process::{Child, Command},
    signal::unix::{Signal, SignalKind, signal},
};
use tracing::debug;

use super::{ProbeError, Target};
use crate::check::report::Excerpt;

/// How much is read of what was printed but not yet read when the command ended: the most that a pipe holds, unless
/// somebody made it larger.
const LEFT_IN_PIPE: usize = 64 * 1024;
/// How long a killed command has to be gone: one that waits for a broken disk takes no signal.
const GONE_LIMIT: Duration = Duration::from_secs(1);

pub(super) async fn run(command: &[String], target: &Target<'_>, limit: Duration) -> Result<String, ProbeError> {
    let program = command.first().map(String::as_str).unwrap_or_default();
    let failed = |source| ProbeError::Run { program: program.to_owned(), source };
    let mut running = Running::start(command, target).map_err(failed)?;
    let in_time = tokio::time::timeout(limit, running.until_ended()).await;
    let ended = running.finish().await.map_err(failed)?;
    let said = running.said.into_text();
    match in_time {
        Err(_) => Err(ProbeError::Killed { after: limit, said }),
        Ok(Err(source)) => Err(failed(source)),
        Ok(Ok(())) if ended.success() => Ok(said),
        Ok(Ok(())) => Err(ProbeError::Ended { ended, said }),
    }
}

struct Running {
    /// Dropped first, while the child has not been waited for.
    group: Option<Group>,
    child: Child,
    /// Comes whenever some child has ended.
    deaths: Signal,
    printed: pipe::Receiver,
    said: Excerpt,
}

impl Running {
    fn start(command: &[String], target: &Target<'_>) -> io::Result<Self> {
        let deaths = signal(SignalKind::child())?;
        let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        // One pipe for both, so that what is printed keeps its order.
        let (printed, output) = io::pipe()?;
        let child = Command::new(program)
            .args(arguments)
            .env("WAYPOST_SERVICE", target.service)
            .env("WAYPOST_INSTANCE", target.instance)
            .env("WAYPOST_ADDRESS", target.address.to_string())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::NotFound)?;
        let group = Some(Group(pid));
        let printed = pipe::Receiver::from_owned_fd(printed.into())?;
        Ok(Self { group, child, deaths, printed, said: Excerpt::default() })
    }

    /// Takes in what the command prints until it has ended.
    async fn until_ended(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let mut open = true;
        while !self.group.as_ref().is_none_or(Group::leader_has_ended) {
            tokio::select! {
                _ = self.deaths.recv() => {}
                read = self.printed.read(&mut buffer), if open => match read? {
                    0 => open = false,
                    bytes => self.said.push(&buffer[..bytes]),
                },
            }
        }
        Ok(())
    }

    /// Ends whatever still runs, takes in what it had printed, and waits for the command.
    async fn finish(&mut self) -> io::Result<ExitStatus> {
        self.group = None;
        let (mut buffer, mut left) = ([0; 4096], LEFT_IN_PIPE);
        // Straight from the pipe: the runtime need not have noticed yet that there is something in it.
        while let Ok(bytes @ 1..) = rustix::io::read(&self.printed, &mut buffer)
            && left > 0
        {
            self.said.push(&buffer[..bytes]);
            left = left.saturating_sub(bytes);
        }
        let gone = tokio::time::timeout(GONE_LIMIT, self.child.wait()).await;
        gone.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "it was killed and does not end")))
    }
}

/// A process group that is killed when this is dropped.
struct Group(Pid);

impl Group {
    /// Looks without waiting for it, so that its number stays its own.
    fn leader_has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.0), options), Ok(None))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = kill_process_group(self.0, rustix::process::Signal::KILL) {
            debug!(group = self.0.as_raw_nonzero(), %error, "cannot kill what a check left behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Instant};

    use waypost_catalog::Protocol;

    use super::*;
    use crate::check::probe::testing::target;

    /// Runs a shell script, which is a command like any other.
    async fn script(script: &str, limit: Duration) -> Result<String, String> {
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        let target = target(([127, 0, 0, 1], 8080).into(), Protocol::Http1);
        run(&command, &target, limit).await.map_err(|error| error.to_string())
    }

    const AMPLE: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(500);

    /// Whether the process whose number is in the file is gone, or gone but for its parent's notice.
    async fn gone(file: &Path) -> bool {
        let pid = std::fs::read_to_string(file).unwrap().trim().to_owned();
        let limit = Instant::now() + AMPLE;
        while Instant::now() < limit {
            match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
                Ok(stat) if !stat.contains(") Z ") => tokio::time::sleep(Duration::from_millis(5)).await,
                _ => return true,
            }
        }
        false
    }

    #[tokio::test]
    async fn exit_status_0_passes_and_whatever_is_printed_is_kept_in_its_order() {
        assert_eq!(script("echo one; echo two >&2; echo three", AMPLE).await, Ok("one\ntwo\nthree".into()));
        assert_eq!(script("echo broken >&2; exit 2", AMPLE).await, Err("exit status: 2: broken".into()));
        assert_eq!(script("kill -9 $$", AMPLE).await, Err("signal: 9 (SIGKILL)".into()));
    }

    #[tokio::test]
    async fn the_command_knows_what_it_checks_and_no_shell_comes_between() {
        let told = script("echo $WAYPOST_SERVICE $WAYPOST_INSTANCE $WAYPOST_ADDRESS", AMPLE).await;
        assert_eq!(told, Ok("web web-1 127.0.0.1:8080".into()));
        let target = target(([127, 0, 0, 1], 8080).into(), Protocol::Http1);
        let echoed = run(&["/bin/echo", "$HOME; *"].map(str::to_owned), &target, AMPLE).await;
        assert_eq!(echoed.unwrap(), "$HOME; *");
        let missing = run(&["/nowhere/check".to_owned()], &target, AMPLE).await.unwrap_err().to_string();
        assert_eq!(missing, "cannot run /nowhere/check: No such file or directory (os error 2)");
    }

    #[tokio::test]
    async fn a_command_that_ignores_the_term_signal_is_gone_when_its_time_is_up() {
        let started = Instant::now();
        let failed = script("trap '' TERM; echo waiting; while :; do sleep 1; done", SHORT).await;
        assert_eq!(failed, Err("killed, since it did not end within 500ms: waiting".into()));
        assert!(started.elapsed() < AMPLE, "{:?}", started.elapsed());
    }

    #[tokio::test]
    async fn what_a_command_forked_goes_with_it_whether_it_ended_or_was_killed() {
        let dir = tempfile::tempdir().unwrap();
        let (ended, killed) = (dir.path().join("ended"), dir.path().join("killed"));
        // The child holds the pipe: the check does not wait for it.
        let background = |file: &Path| format!("sleep 600 & echo $! > {}", file.display());
        assert_eq!(script(&background(&ended), AMPLE).await, Ok(String::new()));
        assert!(gone(&ended).await);
        script(&format!("{}; wait", background(&killed)), SHORT).await.unwrap_err();
        assert!(gone(&killed).await);
    }

    #[tokio::test]
    async fn a_check_that_nobody_waits_for_any_more_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let command = format!("echo $$ > {0}.new; mv {0}.new {0}; sleep 600", file.display());
        let running = tokio::spawn(async move { script(&command, AMPLE).await });
        while !file.exists() {
            assert!(!running.is_finished());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        assert!(gone(&file).await);
    }

    #[tokio::test]
    async fn of_a_command_that_prints_without_end_the_beginning_and_the_end_are_kept() {
        let failed = script("i=0; while :; do i=$((i+1)); echo line $i; done", SHORT).await.unwrap_err();
        assert!(failed.starts_with("killed, since it did not end within 500ms: line 1\nline 2\n"), "{failed}");
        assert!(failed.contains(" bytes left out]\n") && failed.len() < 8 * 1024, "{failed}");
    }
}
