//! Listening sockets: bound or adopted, and their accept loop. The owner and mode of a socket's
//! file decide who may connect; `SO_PEERCRED` says who did.

use std::borrow::Cow;
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

use crate::hint::{Hint, Reason};
use crate::platform::files;
use crate::server::budget;
use crate::server::call_limit::CallLimits;
use crate::server::connection;
use crate::server::connection_limit::ConnectionLimit;
use crate::server::context::ServerContext;
use crate::server::peer::{Peer, Role, ShutdownSignal};
use miaf_spiffe::text::Excerpt;

/// Connections over the limit that get a response at the same time. Further ones get none.
const MAX_REFUSALS: usize = 64;
/// Bytes that wait in the kernel for a client that does not read them, at the agent's expense. The
/// kernel allows twice as much for its own records (socket(7), `SO_SNDBUF`).
const SEND_BUFFER: usize = 32 * 1024;
/// Time for open requests to get their responses when the socket is shut down.
const GRACE: Duration = Duration::from_secs(1);

/// Characters of an error of the operating system in a message.
const MAX_REASON: usize = 200;
/// Bytes of the path of a Unix socket (unix(7)).
const MAX_PATH: usize = 107;

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    role: Role,
    listener: UnixListener,
    /// Its file, where the agent created it. It is removed when this is dropped.
    _file: Option<SocketFile>,
}

impl Listener {
    /// Adopts a socket that the service manager has bound, and keeps.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(crate) fn adopt(listener: net::UnixListener, role: Role) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { role, listener: UnixListener::from_std(listener)?, _file: None })
    }

    /// Binds a socket that `group` may connect to (the agent's own group where it is `None`); that
    /// of [`Role::Admin`] is for the agent's own user, and root. It appears at its path atomically,
    /// with its final owner and mode, in place of one that an earlier process left.
    ///
    /// # Errors
    /// [`BindError`].
    pub(crate) fn bind(path: &Path, role: Role, group: Option<&str>) -> Result<Self, BindError> {
        let mode = if role == Role::Admin { 0o600 } else { 0o660 };
        check_replaceable(path).map_err(|why| BindError { path: path.to_owned(), why })?;
        let bind = || {
            let group = group.map(files::group_id).transpose()?;
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            if let Some(dir) = dir {
                files::make_dir(dir, 0o755, None)?;
            }
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(".new");
            let is_long = path.with_file_name(&name).as_os_str().len() > MAX_PATH;
            if is_long {
                name = format!(".{}.new", role.as_str()).into();
            }
            let new = path.with_file_name(&name);
            files::remove_if_there(&new)?;
            // Under the agent's umask, only its own user may connect yet.
            let listener = if is_long {
                let dir = File::open(dir.unwrap_or(Path::new(".")))?;
                let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
                UnixListener::bind(short.join(&name))?
            } else {
                UnixListener::bind(&new)?
            };
            if group.is_some() {
                chown(&new, None, group)?;
            }
            fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
            let id = file_id(&new)?;
            fs::rename(&new, path)?;
            Ok(Self { role, listener, _file: Some(SocketFile { path: path.to_owned(), id }) })
        };
        bind().map_err(|e| BindError::new(path, &e))
    }

    /// Serves connections until the shutdown; requests that are open then still get their
    /// responses. A peer costs its own connections and no other, and has as many as `limit` admits.
    pub(crate) async fn serve(
        self,
        context: ServerContext,
        limit: ConnectionLimit,
        calls: CallLimits,
        mut shutdown: ShutdownSignal,
    ) {
        let (context, mut connections) = (Arc::new(context), JoinSet::new());
        let refusals = Arc::new(Semaphore::new(MAX_REFUSALS));
        let mut has_failed = false;
        loop {
            let accepted = tokio::select! {
                // In this order: ended connections are cleared away before new ones are accepted.
                biased;
                _ = shutdown.changed() => break,
                Some(_ended) = connections.join_next() => {
                    context.heap.released();
                    continue;
                }
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // Out of file descriptors, most likely: open connections get time to end.
                    // Logged once, for this may be tried ten times a second for hours.
                    if !has_failed {
                        tracing::warn!(socket = self.role.as_str(), "connection not accepted: {e}");
                    }
                    has_failed = true;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            has_failed = false;
            let _ = setsockopt(&stream, SndBuf, &SEND_BUFFER); // the usual one serves as well
            let peer = Peer::of(&stream, self.role);
            match limit.acquire(peer.uid) {
                Ok(permit) => {
                    let (context, calls) = (context.clone(), calls.clone());
                    let (shutdown, mut shut_down) = (shutdown.clone(), shutdown.clone());
                    connections.spawn(async move {
                        if connection::serve(stream, peer, context, calls, shutdown).await.is_err() {
                            // Its permit stays taken: another connection would have a new budget at
                            // once.
                            let _ = timeout(budget::PERIOD, shut_down.changed()).await;
                        }
                        drop(permit);
                    });
                }
                Err(limit) => {
                    context.counters.connection_refused(peer, limit);
                    if let Ok(refusal) = Arc::clone(&refusals).try_acquire_owned() {
                        connections.spawn(async move {
                            connection::refuse(stream, limit).await;
                            drop(refusal);
                        });
                    }
                }
            }
        }
        drop(self); // no further connection is accepted
        let all_ended = async { while connections.join_next().await.is_some() {} };
        let _ = timeout(GRACE, all_ended).await; // those that did not end had the time to
    }
}

/// Checks that a socket may be bound at this path: only a socket without a listener is replaced.
/// Does not block: where the listener's queue is full, there is a listener.
fn check_replaceable(path: &Path) -> Result<(), Reason> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Reason::from("something that is no socket is there already")
                .with_hint_text("Move it away, or choose another path under [socket]"));
        }
        _ => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let failed = |e: Errno| of_the_system(&e.into());
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed)?;
    match connect(stream.as_raw_fd(), &UnixAddr::new(path).map_err(failed)?) {
        Ok(()) => Err(Reason::from("another agent listens on it").with_hint_text(
            "Stop that one (systemctl stop miaf-agent), or give this one a socket of its own: path under [socket]",
        )),
        Err(Errno::EAGAIN | Errno::EINPROGRESS) => {
            Err(Reason::from("another program listens on it, and does not respond")
                .with_hint_text("End it, or choose another path under [socket]"))
        }
        Err(Errno::EPROTOTYPE) => Err(Reason::from("another program has it for datagrams")
            .with_hint_text("End it, or choose another path under [socket]")),
        Err(_) => Ok(()), // there is no socket, or no process listens on it any more
    }
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode: another process may have put another file in its place.
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if file_id(&self.path).is_ok_and(|id| id == self.id) {
            let _ = fs::remove_file(&self.path); // if it stays, the next agent replaces it
        }
    }
}

fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

/// A socket that cannot be bound: the agent would be of no use without it.
#[derive(Debug, thiserror::Error)]
#[error("the agent's socket {} cannot be bound: {why}", path.display())]
pub struct BindError {
    path: PathBuf,
    why: Reason,
}

impl BindError {
    /// The socket at `path` cannot be bound.
    pub(crate) fn new(path: &Path, source: &io::Error) -> Self {
        Self { path: path.to_owned(), why: of_the_system(source) }
    }
}

fn of_the_system(e: &io::Error) -> Reason {
    Reason::from(Excerpt::of(e, MAX_REASON).into_string()).with_hint_text(
        "Check [socket] in the configuration, and that the agent's user may write to that directory and is a \
         member of the group",
    )
}

impl Hint for BindError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        self.why.hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt as _;

    /// A path of `bytes` bytes.
    fn path(dir: &Path, bytes: usize) -> PathBuf {
        let rest = bytes - dir.as_os_str().as_bytes().len() - 1;
        dir.join("s".repeat(rest))
    }

    #[tokio::test]
    async fn path_may_be_as_long_as_the_system_allows() {
        let dir = tempfile::tempdir().unwrap();
        for bytes in [90, 103, 104, 105, 106, 107] {
            let path = path(dir.path(), bytes);
            let socket = Listener::bind(&path, Role::Read, None).unwrap();
            net::UnixStream::connect(&path).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
            drop(socket);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{bytes}");
        }
        assert!(Listener::bind(&path(dir.path(), 108), Role::Read, None).is_err());
    }

    #[tokio::test]
    async fn listener_with_a_full_queue_is_detected_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        nix::sys::socket::bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let _waiting = net::UnixStream::connect(&path).unwrap();
        let error = Listener::bind(&path, Role::Read, None).unwrap_err().to_string();
        assert!(error.contains("another program listens on it, and does not respond"), "{error}");
    }

    #[tokio::test]
    async fn socket_without_a_listener_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let refusal = || {
            let error = Listener::bind(&path, Role::Read, None).unwrap_err();
            crate::hint::assert_apart(&error);
            assert!(error.hint().is_some(), "{error}");
            error.to_string()
        };
        fs::write(&path, "precious").unwrap();
        assert!(refusal().contains("no socket is there already"));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/nowhere", &path).unwrap();
        assert!(refusal().contains("no socket is there already"));
        fs::remove_file(&path).unwrap();

        let datagrams = net::UnixDatagram::bind(&path).unwrap();
        assert!(refusal().contains("datagrams"));
        drop(datagrams);
        Listener::bind(&path, Role::Read, None).unwrap();
        let listener = net::UnixListener::bind(&path).unwrap();
        assert!(refusal().contains("another agent listens"));
        drop(listener);
        Listener::bind(&path, Role::Read, None).unwrap();
    }
}
