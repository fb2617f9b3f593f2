//! The local sockets, and who comes in. Who may connect is decided by the kernel through the
//! socket file's owner and mode; who did is known from `SO_PEERCRED`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::SndBuf;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::platform::files;
use crate::server::budget;
use crate::server::calls::CallLimits;
use crate::server::connection;
use crate::server::connection_limit::Places;
use crate::server::context::Lines;
use crate::server::peer::{Caller, Closing, Right};

/// So many are told at once that there is no place for them.
const MAX_REFUSALS: usize = 64;
/// Bytes that wait in the kernel for a caller who does not take them, at the agent's expense; the kernel allows twice as
/// much for its own records (socket(7), `SO_SNDBUF`).
const SEND_BUFFER: usize = 32 * 1024;
/// How long those who are being answered have when the socket is closed.
const GRACE: Duration = Duration::from_secs(1);

/// Bytes of the path of a Unix socket (unix(7)).
const LONGEST_PATH: usize = 107;

/// A listening socket.
#[derive(Debug)]
pub struct Socket {
    right: Right,
    listener: UnixListener,
    /// Its file, where the agent made it: it is removed when this is dropped.
    _file: Option<SocketFile>,
}

impl Socket {
    /// Takes over a socket that somebody else bound, and keeps.
    ///
    /// # Errors
    /// As the operating system has it.
    pub fn adopt(listener: net::UnixListener, right: Right) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { right, listener: UnixListener::from_std(listener)?, _file: None })
    }

    /// Binds a socket that `group` may connect to (the agent's own group where it is `None`); that for commands is for
    /// the agent's own user, and root. It appears at its path in one instant with its final owner and mode, in the place
    /// of one that an earlier process left.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(path: &Path, right: Right, group: Option<&str>) -> Result<Self, BindError> {
        let mode = if right == Right::Admin { 0o600 } else { 0o660 };
        let bind = || {
            make_way(path)?;
            let group = group.map(files::group_id).transpose()?;
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            if let Some(folder) = folder {
                files::make_dir(folder, 0o755, None)?;
            }
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(".new");
            let is_long = path.with_file_name(&name).as_os_str().len() > LONGEST_PATH;
            if is_long {
                name = format!(".{}.new", right.as_str()).into();
            }
            let new = path.with_file_name(&name);
            files::remove_if_there(&new)?;
            // Under the agent's umask, only its own user may connect yet.
            let listener = if is_long {
                let folder = File::open(folder.unwrap_or(Path::new(".")))?;
                let way = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
                UnixListener::bind(way.join(&name))?
            } else {
                UnixListener::bind(&new)?
            };
            if group.is_some() {
                chown(&new, None, group)?;
            }
            fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
            let id = identity_of(&new)?;
            fs::rename(&new, path)?;
            Ok(Self { right, listener, _file: Some(SocketFile { path: path.to_owned(), id }) })
        };
        bind().map_err(|source| BindError::new(path, source))
    }

    /// Answers until the other end of `closing` is dropped; whoever is being answered then gets the answer. A caller costs
    /// nothing but its own connection, and has as many of them as `places` gives.
    pub async fn serve(self, lines: Lines, places: Places, calls: CallLimits, mut closing: Closing) {
        let (lines, mut connections) = (Arc::new(lines), JoinSet::new());
        let refusals = Arc::new(Semaphore::new(MAX_REFUSALS));
        let mut has_failed = false;
        loop {
            let accepted = tokio::select! {
                // In this order: what has ended is cleared away before anything new is taken in.
                biased;
                _ = closing.changed() => break,
                Some(_ended) = connections.join_next() => {
                    lines.heap.released();
                    continue;
                }
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // Out of file descriptors, most likely: give those who have one time to finish. Said once, for this
                    // may be tried ten times a second for hours.
                    if !has_failed {
                        tracing::warn!("a connection to the agent's socket could not be accepted: {e}");
                    }
                    has_failed = true;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            has_failed = false;
            let _ = setsockopt(&stream, SndBuf, &SEND_BUFFER); // the usual one serves as well
            let caller = Caller::of(&stream, self.right);
            match places.take(caller.uid) {
                Ok(place) => {
                    let (lines, calls) = (lines.clone(), calls.clone());
                    let (closing, mut closes) = (closing.clone(), closing.clone());
                    connections.spawn(async move {
                        if connection::serve(stream, caller, lines, calls, closing).await.is_err() {
                            // Its permit stays taken: another connection would have a new budget at once.
                            let _ = timeout(budget::PERIOD, closes.changed()).await;
                        }
                        drop(place);
                    });
                }
                Err(full) => {
                    lines.counters.refused(caller, full);
                    // More who have to be told so at once are not told.
                    if let Ok(told) = Arc::clone(&refusals).try_acquire_owned() {
                        connections.spawn(async move {
                            connection::refuse(stream, full).await;
                            drop(told);
                        });
                    }
                }
            }
        }
        drop(self); // nobody else comes in
        let all_left = async { while connections.join_next().await.is_some() {} };
        let _ = timeout(GRACE, all_left).await; // or had time to
    }
}

/// Only a socket without a listener gives way. Nobody is waited for: where the listener's queue is full, it is there.
fn make_way(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            let what = "something that is no socket is there already: move it away, or choose another path";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        }
        _ => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(stream.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another agent listens on it")),
        Err(Errno::EAGAIN | Errno::EINPROGRESS) => {
            let what = "another program listens on it, and does not answer: end it";
            Err(io::Error::new(io::ErrorKind::AddrInUse, what))
        }
        Err(Errno::EPROTOTYPE) => {
            let what = "another program has it for datagrams: end it, or choose another path";
            Err(io::Error::new(io::ErrorKind::AddrInUse, what))
        }
        Err(_) => Ok(()), // nothing is there, or nobody listens any more
    }
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Which file it is: another process may have put another in its place.
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity_of(&self.path).is_ok_and(|id| id == self.id) {
            let _ = fs::remove_file(&self.path); // if it stays, the next agent replaces it
        }
    }
}

fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

/// A socket that cannot be bound: the agent would be of no use without it.
#[derive(Debug, thiserror::Error)]
#[error("the agent's socket {} cannot be bound: {source}. {}", path.display(), self.advice())]
pub struct BindError {
    path: PathBuf,
    source: io::Error,
}

impl BindError {
    /// The socket at `path` cannot be had.
    pub fn new(path: &Path, source: io::Error) -> Self {
        Self { path: path.to_owned(), source }
    }

    fn advice(&self) -> &'static str {
        if self.source.kind() == io::ErrorKind::AddrInUse {
            "Stop that one (systemctl stop miaf-agent), or give this one a socket of its own: path under [socket]"
        } else {
            "Check [socket] in the configuration, and that the agent's user may write to that folder and is a member of the \
             group"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt as _;

    /// A path of so many bytes.
    fn path(folder: &Path, bytes: usize) -> PathBuf {
        let rest = bytes - folder.as_os_str().as_bytes().len() - 1;
        folder.join("s".repeat(rest))
    }

    #[tokio::test]
    async fn a_path_may_be_as_long_as_the_system_allows() {
        let folder = tempfile::tempdir().unwrap();
        for bytes in [90, 103, 104, 105, 106, 107] {
            let path = path(folder.path(), bytes);
            let socket = Socket::bind(&path, Right::Read, None).unwrap();
            net::UnixStream::connect(&path).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
            drop(socket);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{bytes}");
        }
        assert!(Socket::bind(&path(folder.path(), 108), Right::Read, None).is_err());
    }

    #[tokio::test]
    async fn a_listener_with_a_full_queue_is_seen_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        nix::sys::socket::bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let _waiting = net::UnixStream::connect(&path).unwrap();
        let error = Socket::bind(&path, Right::Read, None).unwrap_err().to_string();
        assert!(error.contains("another program listens on it, and does not answer"), "{error}");
    }

    #[tokio::test]
    async fn only_a_socket_that_was_left_gives_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let refusal = || Socket::bind(&path, Right::Read, None).unwrap_err().to_string();
        fs::write(&path, "precious").unwrap();
        assert!(refusal().contains("no socket is there already"));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/nowhere", &path).unwrap();
        assert!(refusal().contains("no socket is there already"));
        fs::remove_file(&path).unwrap();

        let datagrams = net::UnixDatagram::bind(&path).unwrap();
        assert!(refusal().contains("datagrams"));
        drop(datagrams);
        Socket::bind(&path, Right::Read, None).unwrap();
        let listener = net::UnixListener::bind(&path).unwrap();
        assert!(refusal().contains("another agent listens"));
        drop(listener);
        Socket::bind(&path, Right::Read, None).unwrap();
    }
}
