//! The local sockets: who comes in, and how long they may take. Who may connect is decided by the kernel through the
//! socket file's owner and mode; who did is known from `SO_PEERCRED`.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use super::answers::{Caller, Lines, Right, respond};
use crate::system::files;

/// Connections served at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;
/// A request's head must be complete within this time, and an idle connection is closed after it.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
const MAX_HEAD: usize = 16 * 1024;
/// How long those who are being answered have when the socket is closed.
const GRACE: Duration = Duration::from_secs(1);

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
            if net::UnixStream::connect(path).is_ok() {
                let taken = "another agent listens on it";
                return Err(io::Error::new(io::ErrorKind::AddrInUse, taken));
            }
            let group = group.map(files::group_id).transpose()?;
            if let Some(folder) = path.parent() {
                files::make_dir(folder, 0o755, None)?;
            }
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(".new");
            let new = path.with_file_name(name);
            files::remove_if_there(&new)?;
            let listener = UnixListener::bind(&new)?; // under the agent's umask, only its own user may connect yet
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
    /// nothing but its own connection.
    pub async fn serve(self, lines: Lines, mut closing: Closing) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut has_failed = false;
        loop {
            let accepted = tokio::select! {
                accepted = self.accept(&places) => accepted,
                _ = closing.changed() => break,
            };
            match accepted {
                Ok((stream, place)) => {
                    has_failed = false;
                    let (right, lines, closing) = (self.right, lines.clone(), closing.clone());
                    tokio::spawn(async move {
                        serve_connection(stream, right, lines, closing).await;
                        drop(place);
                    });
                }
                Err(e) => {
                    // Out of file descriptors, most likely: give those who have one time to finish. Said once, for this
                    // may be tried ten times a second for hours.
                    if !has_failed {
                        tracing::warn!(error = %e, "a connection to the agent's socket could not be accepted");
                    }
                    has_failed = true;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(self); // nobody else comes in
        let _ = timeout(GRACE, places.acquire_many(MAX_CONNECTIONS as u32)).await; // all have left, or had time to
    }

    async fn accept(&self, places: &Arc<Semaphore>) -> io::Result<(UnixStream, OwnedSemaphorePermit)> {
        let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
        Ok((self.listener.accept().await?.0, place))
    }
}

/// Tells, by having no sender any more, that a socket is to be closed.
pub type Closing = watch::Receiver<()>;

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
#[error("the agent's socket {} cannot be bound: {source}. Check [socket] in the configuration, and that the agent's user may write to that folder and is a member of the group", path.display())]
pub struct BindError {
    path: PathBuf,
    source: io::Error,
}

impl BindError {
    /// The socket at `path` cannot be had.
    pub fn new(path: &Path, source: io::Error) -> Self {
        Self { path: path.to_owned(), source }
    }
}

async fn serve_connection(stream: UnixStream, right: Right, lines: Lines, mut closing: Closing) {
    let caller = stream.peer_cred().map(|caller| (caller.uid(), caller.pid())).ok();
    let (uid, pid) = caller.map_or((None, None), |(uid, pid)| (Some(uid), pid));
    let caller = Caller { right, uid, pid };
    let (has_asked, ends) = (AtomicBool::new(false), closing.clone());
    let answer = service_fn(|request: Request<Incoming>| {
        tracing::debug!(uid, pid, right = right.as_str(), method = %request.method(), path = request.uri().path(), "socket request");
        has_asked.store(true, Ordering::Relaxed);
        let (lines, ends) = (&lines, &ends);
        async move {
            let mut response = respond(request, caller, lines).await;
            if ends.has_changed().is_err() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), answer);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = closing.changed() => {
            // Whoever has not asked yet is about to: that answer will be the last.
            if has_asked.load(Ordering::Relaxed) {
                connection.as_mut().graceful_shutdown();
            }
            connection.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!(uid, pid, error = %e, "socket connection ended");
    }
}
