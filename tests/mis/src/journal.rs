//! Journal of requests and responses, for tests and for the log.

use std::fmt;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What a client presented in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientKind {
    /// No certificate.
    None,
    /// A credential that chains to a known manufacturer.
    Factory,
    /// A certificate with a SPIFFE ID, good or not.
    Svid,
    /// Something else.
    Unknown,
}

impl fmt::Display for ClientKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Factory => "factory",
            Self::Svid => "svid",
            Self::Unknown => "unknown",
        })
    }
}

/// One request.
#[derive(Debug, Clone)]
pub struct Entry {
    /// When it came, on the monotonic clock.
    pub at: Instant,
    /// The same on the wall clock, milliseconds since 1970.
    pub unix_ms: u64,
    /// The number of its connection.
    pub connection: usize,
    /// `GET`, `POST` …
    pub method: String,
    /// The path, as sent.
    pub path: String,
    /// What the client presented.
    pub client: ClientKind,
    /// The SPIFFE ID in the certificate that it presented, good or not.
    pub client_spiffe_id: Option<String>,
    /// The conditional header used, `Name: value`.
    pub conditional: Option<String>,
    /// SHA-256 (hexadecimal) of the SubjectPublicKeyInfo in the CSR, where a valid one was sent.
    pub csr_spki_sha256: Option<String>,
    /// The status decided on. `None` while under way, and where the client went away or a fault
    /// cut the connection before the server had decided.
    pub status: Option<u16>,
    /// The error code of a Margo problem, where the response is one.
    pub problem: Option<&'static str>,
    /// `Retry-After` in the response, in seconds.
    pub retry_after: Option<u64>,
    /// An SVID was issued for this request.
    pub issued: bool,
    /// The identity it was issued for.
    pub spiffe_id: Option<String>,
    /// The connection was cut on purpose instead of a response.
    pub answer_lost: bool,
    /// A fault took part.
    pub faulty: bool,
}

impl Entry {
    /// A request that has just come in.
    pub fn new(connection: usize, method: &str, path: &str, client: ClientKind) -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            at: Instant::now(),
            unix_ms: unix.as_millis().try_into().unwrap_or(u64::MAX),
            connection,
            method: method.to_owned(),
            path: path.to_owned(),
            client,
            client_spiffe_id: None,
            conditional: None,
            csr_spki_sha256: None,
            status: None,
            problem: None,
            retry_after: None,
            issued: false,
            spiffe_id: None,
            answer_lost: false,
            faulty: false,
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)?;
        match self.status {
            Some(status) => write!(f, " -> {status}")?,
            None => f.write_str(" -> no answer")?,
        }
        write!(f, " client={}", self.client)?;
        if let Some(problem) = self.problem {
            write!(f, " problem={problem}")?;
        }
        if let Some(seconds) = self.retry_after {
            write!(f, " retry-after={seconds}")?;
        }
        if let Some(id) = &self.spiffe_id {
            write!(f, " issued={id}")?;
        }
        if self.answer_lost {
            f.write_str(" answer-lost")?;
        }
        if self.faulty {
            f.write_str(" faulty")?;
        }
        Ok(())
    }
}

/// All requests and connections since the start.
pub type Journal = development_server::Journal<Entry, ClientKind>;
