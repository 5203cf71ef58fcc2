//! Binding the Unix socket: a stale one is replaced, a live one is left alone, and nothing else is ever removed.
//!
//! Looking at what is there and replacing it is done under a lock on the directory, so that of two agents that start
//! at once only one gets the socket.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, Mode, fchmod, flock},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};
use tokio::net::{UnixListener, UnixSocket, UnixStream};

/// Owner and group may connect: who can, sees every node and tells the agent what Envoy has applied.
const MODE: u32 = 0o660;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// How often, and with which pause, the directory's lock is tried: its holder needs it for an instant only.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Why a socket cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent listens.
    #[error("{}: another agent listens there: stop it, or set another stream.socket", .0.display())]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{}: there is a file that is no socket: remove it, or set another stream.socket", .0.display())]
    NotASocket(PathBuf),
    /// Somebody keeps the lock on the directory.
    #[error("{}: another process keeps the directory locked: see who has it open", .0.display())]
    Locked(PathBuf),
    /// The system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was refused.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A socket that is bound and listens. Its file goes with it.
#[derive(Debug)]
pub struct BoundSocket {
    listener: UnixListener,
    path: PathBuf,
    file: (u64, u64),
}

/// Binds `path`, in a directory that is made if there is none.
///
/// # Errors
/// [`SocketError`], which names the path.
pub fn bind(path: impl Into<PathBuf>) -> Result<BoundSocket, SocketError> {
    let path = path.into();
    let directory = parent(&path);
    fs::create_dir_all(directory).map_err(failed(directory, "create the directory"))?;
    let _lock = lock(directory)?;
    clear(&path)?;
    let socket = UnixSocket::new_stream().map_err(failed(&path, "open a socket"))?;
    // Before it has a name, so that there is no moment at which anybody else may connect; and after, for the bits that
    // the process's umask took away.
    fchmod(&socket, Mode::from_raw_mode(MODE)).map_err(|error| failed(&path, "set the mode")(error.into()))?;
    socket.bind(&path).map_err(failed(&path, "bind"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(MODE)).map_err(failed(&path, "set the mode"))?;
    let file = identity(&path).map_err(failed(&path, "look at the socket"))?;
    let listener = socket.listen(BACKLOG).map_err(failed(&path, "listen"))?;
    Ok(BoundSocket { listener, path, file })
}

impl BoundSocket {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection.
    ///
    /// # Errors
    /// What the system says, such as that there are too many open files.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        // Under the lock, so that it is not a successor's socket by the time it is removed.
        let lock = lock(parent(&self.path));
        let ours = lock.is_ok() && identity(&self.path).is_ok_and(|file| file == self.file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// Makes way for a new socket.
fn clear(path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(path, "look at the file")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) if is_live(path)? => Err(SocketError::InUse(path.to_owned())),
        Ok(_) => fs::remove_file(path).map_err(failed(path, "remove the stale socket")),
    }
}

/// Whether somebody listens. Does not wait: a listener whose queue is full is one too.
fn is_live(path: &Path) -> Result<bool, SocketError> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let probe = SocketAddrUnix::new(path).and_then(|address| {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &address)
    });
    match probe {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(error) => Err(failed(path, "see whether an agent listens")(error.into())),
    }
}

fn lock(directory: &Path) -> Result<File, SocketError> {
    let file = File::open(directory).map_err(failed(directory, "open the directory"))?;
    for _ in 0..LOCK_TRIES {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) => thread::sleep(LOCK_PAUSE),
            Err(error) => return Err(failed(directory, "lock the directory")(error.into())),
        }
    }
    Err(SocketError::Locked(directory.to_owned()))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |source| SocketError::Io { path, action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn binds_for_owner_and_group_in_a_directory_that_it_makes_and_removes_its_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/waypost/agent.sock");
        let socket = bind(&path).unwrap();
        assert_eq!(mode(&path), MODE);
        let (connected, accepted) = tokio::join!(UnixStream::connect(&path), socket.accept());
        connected.unwrap();
        accepted.unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn replaces_a_socket_that_nobody_listens_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = bind(&path).unwrap();
        let (connected, accepted) = tokio::join!(UnixStream::connect(&path), socket.accept());
        connected.unwrap();
        accepted.unwrap();
    }

    #[tokio::test]
    async fn leaves_a_live_socket_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let first = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(SocketError::InUse(at)) if at == path));
        let (connected, accepted) = tokio::join!(UnixStream::connect(&path), first.accept());
        connected.unwrap();
        accepted.unwrap();
    }

    #[tokio::test]
    async fn never_removes_what_is_no_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let link = directory.path().join("link.sock");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(bind(&link), Err(SocketError::NotASocket(_))));
    }

    #[tokio::test]
    async fn leaves_a_successors_socket_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let first = bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn of_many_that_start_at_once_one_gets_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let starts = (0..8).map(|_| {
            let path = path.clone();
            tokio::task::spawn_blocking(move || bind(path))
        });
        let results = futures::future::join_all(starts.collect::<Vec<_>>()).await;
        let bound: Vec<_> = results.into_iter().map(Result::unwrap).collect();
        assert_eq!(bound.iter().filter(|result| result.is_ok()).count(), 1);
    }

    #[tokio::test]
    async fn says_what_the_system_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x".repeat(120));
        let error = bind(&path).unwrap_err().to_string();
        assert!(error.contains("cannot bind"), "{error}");
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let error = bind(file.join("agent.sock")).unwrap_err().to_string();
        assert!(error.contains("cannot create the directory"), "{error}");
    }
}
