//! The local sockets, and who comes in. Who may connect is decided by the kernel through the
//! socket file's owner and mode; who did is known from `SO_PEERCRED`.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::caller::{Caller, Closing, Right};
use super::calls::CallLimits;
use super::connection;
use super::lines::Lines;
use super::places::Places;
use crate::system::files;

/// So many are told at once that there is no place for them.
const MAX_REFUSALS: usize = 64;
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
                        tracing::warn!(error = %e, "a connection to the agent's socket could not be accepted");
                    }
                    has_failed = true;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            has_failed = false;
            let caller = Caller::of(&stream, self.right);
            match places.take(caller.uid) {
                Ok(place) => {
                    let (lines, calls, closing) = (lines.clone(), calls.clone(), closing.clone());
                    connections.spawn(async move {
                        connection::serve(stream, caller, lines, calls, closing).await;
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
