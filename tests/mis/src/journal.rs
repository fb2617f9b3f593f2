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

/// What a client of EST must not do. It is recorded, and most of it changes nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// A client certificate together with `Authorization` at `/simpleenroll` (X27); also `400`.
    CertificateWithToken,
    /// An SVID at `/simpleenroll` that is not registered there.
    SvidAtEnrollment,
    /// `Authorization` at `/simplereenroll` (X64).
    AuthorizationAtReenroll,
    /// `Authorization` at `/cacerts` (X28).
    AuthorizationAtCaCerts,
    /// A client certificate at `/cacerts` (X28).
    CertificateAtCaCerts,
    /// A renewal that does not repeat the criticality of the subject alternative name (X65).
    SanCriticality,
    /// A connection that carried another kind of request before (X28).
    SharedConnection,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CertificateWithToken => "certificate-with-token",
            Self::SvidAtEnrollment => "svid-at-enrollment",
            Self::AuthorizationAtReenroll => "authorization-at-reenroll",
            Self::AuthorizationAtCaCerts => "authorization-at-cacerts",
            Self::CertificateAtCaCerts => "certificate-at-cacerts",
            Self::SanCriticality => "san-criticality",
            Self::SharedConnection => "shared-connection",
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
    /// SHA-256 (hexadecimal) of the body, white space left out: the same CSR gives the same value in
    /// each form of base64.
    pub body_sha256: Option<String>,
    /// The status decided on. `None` while under way, and where the client went away or a fault
    /// cut the connection before the server had decided.
    pub status: Option<u16>,
    /// Whether there was an `Authorization` header.
    pub authorization: bool,
    /// SHA-256 (hexadecimal) of the client certificate.
    pub client_leaf_sha256: Option<String>,
    /// What the client must not do (EST).
    pub violations: Vec<Violation>,
    /// Why an EST request was refused, in words that the client may not get.
    pub refusal: Option<String>,
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
            body_sha256: None,
            authorization: false,
            client_leaf_sha256: None,
            violations: Vec::new(),
            refusal: None,
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
        if self.authorization {
            f.write_str(" authorization")?;
        }
        for violation in &self.violations {
            write!(f, " violation={violation}")?;
        }
        if let Some(why) = &self.refusal {
            write!(f, " refused={why:?}")?;
        }
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
