//! The local socket: HTTP/1.1 and JSON, errors as Problem Details. Who may connect is decided by the kernel through the
//! socket file's owner and mode; who did is known from `SO_PEERCRED`.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

use super::Snapshot;
use super::status::{Status, SvidDocument};
use crate::system::{clock, files};

/// Connections served at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;
/// A request's head must be complete within this time, and an idle connection is closed after it.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
const MAX_HEAD: usize = 16 * 1024;

/// What a socket is for: one socket a right, so that the kernel decides, and a container can be given exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Reading who the device is.
    Read,
    /// The same, and use of the key.
    Sign,
    /// The same, and commands to the agent.
    Admin,
}

impl Right {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Read, Self::Sign, Self::Admin];

    /// The name that the socket has in the configuration, and as `FileDescriptorName=`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "agent",
            Self::Sign => "sign",
            Self::Admin => "admin",
        }
    }
}

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

    /// Answers until it is dropped. A caller costs nothing but its own connection.
    pub async fn serve(self, snapshots: watch::Receiver<Arc<Snapshot>>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (right, snapshots) = (self.right, snapshots.clone());
                    tokio::spawn(async move {
                        serve_connection(stream, right, snapshots).await;
                        drop(place);
                    });
                }
                Err(e) => {
                    // Out of file descriptors, most likely: give those who have one time to finish.
                    tracing::warn!(error = %e, "a connection to the agent's socket could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
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

async fn serve_connection(stream: UnixStream, right: Right, snapshots: watch::Receiver<Arc<Snapshot>>) {
    let caller = stream.peer_cred().map(|caller| (caller.uid(), caller.pid())).ok();
    let (uid, pid) = caller.map_or((None, None), |(uid, pid)| (Some(uid), pid));
    let answer = service_fn(|request: Request<Incoming>| {
        tracing::debug!(uid, pid, right = right.as_str(), method = %request.method(), path = request.uri().path(), "socket request");
        let response = respond(&request, &snapshots.borrow());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), answer);
    if let Err(e) = connection.await {
        tracing::debug!(uid, pid, error = %e, "socket connection ended");
    }
}

fn respond<B>(request: &Request<B>, snapshot: &Snapshot) -> Response<Full<Bytes>> {
    let now = clock::now().wall;
    let known = ["/v1/status", "/v1/svid", "/v1/bundle", "/healthz", "/readyz"];
    let path = request.uri().path();
    if known.contains(&path) && !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal = problem(StatusCode::METHOD_NOT_ALLOWED, "This address can only be read: use GET.");
        refusal.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match path {
        "/v1/status" => json(StatusCode::OK, JSON, &Status::of(snapshot, now)),
        "/v1/svid" => match SvidDocument::of(snapshot) {
            Some(svid) => json(StatusCode::OK, JSON, &svid),
            None => problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "This device has no SVID yet. GET /v1/status says what it is waiting for.",
            ),
        },
        "/v1/bundle" => match &snapshot.bundle {
            Some(held) => json(StatusCode::OK, JSON, &held.bundle.to_document()),
            None => problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "This device has no trust bundle yet. GET /v1/status says what it is waiting for.",
            ),
        },
        "/healthz" => json(StatusCode::OK, JSON, &json!({ "live": true })),
        "/readyz" if snapshot.is_ready(now) => json(StatusCode::OK, JSON, &json!({ "ready": true })),
        "/readyz" => problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "There is no valid SVID that the trust bundle vouches for. GET /v1/status says why.",
        ),
        _ => problem(StatusCode::NOT_FOUND, "There is no such address. Try GET /v1/status."),
    }
}

const JSON: &str = "application/json";

fn problem(status: StatusCode, detail: &str) -> Response<Full<Bytes>> {
    let title = status.canonical_reason().unwrap_or("Error");
    let body = json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail });
    json(status, "application/problem+json", &body)
}

fn json(status: StatusCode, media_type: &'static str, body: &impl Serialize) -> Response<Full<Bytes>> {
    let mut text = serde_json::to_vec(body).unwrap_or_default(); // these types always serialise
    text.push(b'\n');
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(media_type));
    response
}
