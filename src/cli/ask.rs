//! One question to the agent's sockets, or one order.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::http::request;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

use super::Output;
use crate::agent;
use crate::config::{self, Config};
use crate::deliver::order::Address;

/// Longer than systemd waits before it starts an agent again that has ended: its sockets stay open meanwhile.
const LIMIT: Duration = Duration::from_secs(20);
const MAX_ANSWER: usize = 8 * 1024 * 1024;

/// Why the agent gave no answer.
#[derive(Debug)]
pub(super) enum AskError {
    /// Nobody listens, or the caller may not connect.
    Connect(PathBuf, std::io::Error),
    /// The caller may not give orders.
    NotRoot(PathBuf),
    /// The connection broke, or was too slow.
    Broken(String),
    /// Something listens, and nobody answers.
    Silent,
    /// The agent said no, and why.
    Refused(String),
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRoot(socket) => write!(
                f,
                "you may not give the agent orders at {}: only root may. Try the same with sudo before it",
                socket.display()
            ),
            Self::Connect(socket, e) if e.kind() == std::io::ErrorKind::PermissionDenied => write!(
                f,
                "you may not ask the agent at {}: become a member of the group of that socket",
                socket.display()
            ),
            Self::Connect(socket, e) => write!(
                f,
                "no agent answers at {} ({e}). Is it running? Try: systemctl status miaf-agent",
                socket.display()
            ),
            Self::Silent => write!(
                f,
                "the agent did not answer within {} seconds. Is it running? Try: systemctl status miaf-agent",
                LIMIT.as_secs()
            ),
            Self::Broken(why) => write!(f, "the agent did not answer: {why}"),
            Self::Refused(detail) => f.write_str(detail),
        }
    }
}

/// `GET path` on the reading socket: the one named, else the one of the configuration.
pub(super) fn get(config: &Path, output: &Output, path: &str) -> Result<Vec<u8>, AskError> {
    let socket = output.socket.clone().or_else(|| Some(sockets(config)?.path)).unwrap_or_default();
    ask(&socket, Request::get(path), Vec::new())
}

/// The socket for commands, and what is asked there.
pub(super) struct Admin(PathBuf);

impl Admin {
    /// The one named, else the one of the configuration.
    pub(super) fn new(config: &Path, output: &Output) -> Self {
        Self(output.socket.clone().or_else(|| Some(sockets(config)?.admin_path)).unwrap_or_default())
    }

    pub(super) fn get(&self, path: &str) -> Result<Vec<u8>, AskError> {
        self.ask(Request::get(path), Vec::new())
    }

    /// Gives an order. The answer says what will happen.
    pub(super) fn order(&self, address: Address, body: Vec<u8>) -> Result<Vec<u8>, AskError> {
        self.ask(Request::post(address.as_str()), body)
    }

    fn ask(&self, request: request::Builder, body: Vec<u8>) -> Result<Vec<u8>, AskError> {
        ask(&self.0, request, body).map_err(|e| match e {
            AskError::Connect(socket, e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                AskError::NotRoot(socket)
            }
            other => other,
        })
    }
}

/// As the configuration has them, as far as the caller may read it.
fn sockets(config: &Path) -> Option<config::Socket> {
    let place = agent::place(Some(config));
    let config = place.load().or_else(|_| Config::parse("", &place.file, None));
    config.map(|config| config.socket).ok()
}

fn ask(socket: &Path, request: request::Builder, body: Vec<u8>) -> Result<Vec<u8>, AskError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| AskError::Broken(e.to_string()))?;
    runtime.block_on(async {
        match tokio::time::timeout(LIMIT, exchange(socket, request, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(AskError::Silent),
        }
    })
}

async fn exchange(socket: &Path, request: request::Builder, body: Vec<u8>) -> Result<Vec<u8>, AskError> {
    let broken = |e: &dyn fmt::Display| AskError::Broken(e.to_string());
    let stream = UnixStream::connect(socket).await.map_err(|e| AskError::Connect(socket.into(), e))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
    let driven = tokio::spawn(connection);
    let request = request.header("host", "miaf-agent").body(Full::new(Bytes::from(body)));
    let answer = sender.send_request(request.map_err(|e| broken(&e))?).await.map_err(|e| broken(&e))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|e| broken(&e))?;
    driven.abort();
    let body = body.to_bytes().to_vec();
    if status.is_success() {
        return Ok(body);
    }
    #[derive(Deserialize)]
    struct Problem {
        detail: String,
    }
    let problem: Result<Problem, _> = serde_json::from_slice(&body);
    Err(AskError::Refused(problem.map_or_else(|_| format!("the agent answered {status}"), |p| p.detail)))
}
