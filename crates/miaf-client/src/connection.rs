//! One request and its response, over HTTP/1.0: the body of a response ends with the connection.

use std::io::{self, BufRead as _, BufReader, ErrorKind, Read, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, time_t};
use serde::Deserialize;

use super::ClientError;
use super::api::{Open, ProblemCode};
use miaf_spiffe::json;

const MAX_HEAD: usize = 16 * 1024;
pub(super) const MAX_RESPONSE: usize = 8 * 1024 * 1024;

pub(super) enum Request {
    Get(String),
    Post(String, String),
}

impl Request {
    fn to_text(&self) -> String {
        match self {
            Self::Get(path) => format!("GET {path} HTTP/1.0\r\n\r\n"),
            Self::Post(path, body) => {
                let length = body.len();
                format!(
                    "POST {path} HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
                )
            }
        }
    }
}

/// A successful response, whose body is still to be read.
#[derive(Debug)]
pub(super) struct Response {
    body: BufReader<Timed>,
    limit: Duration,
}

/// Sends a request and reads the head of the response. `limit` is for all of it, the body included.
pub(super) fn send(at: &Path, limit: Duration, request: Request) -> Result<Response, ClientError> {
    let until = Instant::now().checked_add(limit);
    let mut stream = connected(at, limit)?;
    let broken = |e: io::Error| failed(&e, limit);
    stream.write_all(request.to_text().as_bytes()).map_err(broken)?;
    Response::read(Timed { stream, until }, limit)
}

/// Connects, and waits at most `limit` where the agent hangs and its backlog is full: the kernel
/// applies the send timeout to connect(2), and std cannot set it before.
fn connected(at: &Path, limit: Duration) -> Result<UnixStream, ClientError> {
    let seconds = limit.as_secs().clamp(1, 3600 * 24 * 365); // zero would be no limit
    let timeout = TimeVal::new(time_t::try_from(seconds).unwrap_or(1), 0);
    let stream = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .and_then(|stream| setsockopt(&stream, sockopt::SendTimeout, &timeout).map(|()| stream))
        .and_then(|stream| connect(stream.as_raw_fd(), &UnixAddr::new(at)?).map(|()| stream));
    match stream {
        Ok(stream) => Ok(stream.into()),
        Err(Errno::EAGAIN) => Err(ClientError::Silent(limit)),
        Err(e) => Err(ClientError::Connect(at.to_owned(), e.into())),
    }
}

impl Response {
    /// Reads the head. Any status but a success is an error.
    pub(super) fn read(stream: Timed, limit: Duration) -> Result<Self, ClientError> {
        let mut response = Self { body: BufReader::new(stream), limit };
        match response.status()? {
            200..=299 => Ok(response),
            status => Err(refusal(status, &response.body()?)),
        }
    }

    fn status(&mut self) -> Result<u16, ClientError> {
        let mut left = MAX_HEAD;
        let first = self.line(&mut left)?.unwrap_or_default();
        let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
        // No other header field is needed.
        while !self.line(&mut left)?.ok_or_else(|| broken("it ended the connection"))?.is_empty() {}
        status.ok_or_else(|| ClientError::Unintelligible("it is not HTTP".into()))
    }

    pub(super) fn body(mut self) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        let read = self.body.by_ref().take(MAX_RESPONSE as u64 + 1).read_to_end(&mut body);
        read.map_err(|e| failed(&e, self.limit))?;
        if body.len() > MAX_RESPONSE { Err(too_long()) } else { Ok(body) }
    }

    /// Sets the moment until which the rest is read; `None` sets no limit.
    pub(super) fn read_until(&mut self, until: Option<Instant>) {
        self.body.get_mut().until = until;
    }

    /// Reads the next line; `left` is what may be read of it and of those after it, in bytes.
    /// `None`: the agent has ended.
    pub(super) fn line(&mut self, left: &mut usize) -> Result<Option<String>, ClientError> {
        let mut line = Vec::new();
        let read = self.body.by_ref().take(*left as u64).read_until(b'\n', &mut line);
        let length = read.map_err(|e| failed(&e, self.limit))?;
        *left -= length;
        if line.pop_if(|last| *last == b'\n').is_none() {
            return match length {
                0 if *left > 0 => Ok(None),
                _ if *left == 0 => Err(too_long()),
                _ => Err(broken("it ended the connection half-way")),
            };
        }
        line.pop_if(|last| *last == b'\r');
        let line = String::from_utf8(line);
        line.map(Some).map_err(|_| ClientError::Unintelligible("it is not UTF-8".into()))
    }
}

/// A stream with a moment until which it is read.
#[derive(Debug)]
pub(super) struct Timed {
    pub(super) stream: UnixStream,
    pub(super) until: Option<Instant>,
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(left)?;
        self.stream.read(buffer)
    }
}

fn failed(e: &io::Error, limit: Duration) -> ClientError {
    match e.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => ClientError::Silent(limit),
        _ => ClientError::Broken(e.to_string()),
    }
}

fn broken(why: &str) -> ClientError {
    ClientError::Broken(why.to_owned())
}

fn too_long() -> ClientError {
    ClientError::Unintelligible("it is too long".into())
}

/// The error of a response that is not a success.
fn refusal(status: u16, body: &[u8]) -> ClientError {
    #[derive(Deserialize)]
    struct Problem {
        #[serde(default)]
        code: Option<Open<ProblemCode>>,
        detail: String,
        #[serde(default)]
        hint: Option<String>,
    }
    match json::read(body) {
        Ok(Problem { code, detail, hint }) => ClientError::refused(status, code, &detail, hint.as_deref()),
        Err(_) => ClientError::refused(status, None, &format_args!("the agent answered {status}"), None),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn parts(body: &str) -> (Option<String>, String, Option<String>) {
        let error = refusal(404, body.as_bytes());
        let hint = error.hint().map(|hint| hint.into_owned());
        match error {
            ClientError::Refused { code, detail, .. } => {
                (code.map(|code| code.as_str().to_owned()), detail, hint)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn refusal_has_what_the_response_has() {
        let some = |text: &str| Some(text.to_owned());
        for (body, code, detail, hint) in [
            (r#"{"code":"unknown-path","detail":"d","hint":"h"}"#, some("unknown-path"), "d", some("h")),
            (r#"{"code":"of-a-newer-agent","detail":"d","hint":null}"#, some("of-a-newer-agent"), "d", None),
            (r#"{"type":"about:blank","detail":"d"}"#, None, "d", None),
            ("<html>", None, "the agent answered 404", None),
        ] {
            assert_eq!(parts(body), (code, detail.to_owned(), hint), "{body}");
        }
    }

    #[test]
    fn refusal_is_bounded_and_harmless() {
        let text = format!("a\\u001b[2J\\n{}", "x".repeat(10_000));
        let (code, detail, hint) =
            parts(&format!(r#"{{"code":"{text}","detail":"{text}","hint":"{text}"}}"#));
        for (text, limit) in [(code.unwrap(), 64), (detail, 2048), (hint.unwrap(), 512)] {
            assert!(text.chars().count() <= limit + 1, "{}", text.len());
            assert!(!text.contains(char::is_control), "{text}");
        }
    }
}
