//! One question to the agent's socket.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

use super::Output;
use crate::agent;
use crate::config::Config;

/// Longer than systemd waits before it starts an agent again that has ended: its sockets stay open meanwhile.
const LIMIT: Duration = Duration::from_secs(20);
const MAX_ANSWER: usize = 8 * 1024 * 1024;

/// Why the agent gave no answer.
#[derive(Debug)]
pub(super) enum AskError {
    /// Nobody listens, or the caller may not connect.
    Connect(PathBuf, std::io::Error),
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

/// `GET path`. The socket is the one named, else the one of the configuration, as far as the caller may read it.
pub(super) fn get(config: &Path, output: &Output, path: &str) -> Result<Vec<u8>, AskError> {
    let socket = output.socket.clone().unwrap_or_else(|| {
        let place = agent::place(Some(config));
        let config = place.load().or_else(|_| Config::parse("", &place.file, None));
        config.map(|config| config.socket.path).unwrap_or_default()
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| AskError::Broken(e.to_string()))?;
    runtime.block_on(async {
        match tokio::time::timeout(LIMIT, exchange(&socket, path)).await {
            Ok(answer) => answer,
            Err(_) => Err(AskError::Silent),
        }
    })
}

async fn exchange(socket: &Path, path: &str) -> Result<Vec<u8>, AskError> {
    let broken = |e: &dyn fmt::Display| AskError::Broken(e.to_string());
    let stream = UnixStream::connect(socket).await.map_err(|e| AskError::Connect(socket.into(), e))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
    let driven = tokio::spawn(connection);
    let request = Request::get(path).header("host", "miaf-agent").body(Empty::<Bytes>::new());
    let answer = sender.send_request(request.map_err(|e| broken(&e))?).await.map_err(|e| broken(&e))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(|e| broken(&e))?;
    driven.abort();
    let body = body.to_bytes().to_vec();
    if status == StatusCode::OK {
        return Ok(body);
    }
    #[derive(Deserialize)]
    struct Problem {
        detail: String,
    }
    let problem: Result<Problem, _> = serde_json::from_slice(&body);
    Err(AskError::Refused(problem.map_or_else(|_| format!("the agent answered {status}"), |p| p.detail)))
}
