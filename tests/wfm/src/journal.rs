//! Journal of connections and requests, for tests and for the log.

use crate::clients::{self, Name};
use development_server::hex;
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::time::Instant;

/// What the certificate of a client names, whether the certificate is valid or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientKind {
    /// No certificate.
    None,
    /// A device.
    Device,
    /// A WFM Client.
    WfmClient,
    /// Another SPIFFE ID.
    OtherSvid,
    /// A certificate without a SPIFFE ID, such as a factory certificate.
    NoSvid,
}

/// The certificate that a client presented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// What it names.
    pub kind: ClientKind,
    /// Its SPIFFE ID, where there is one.
    pub spiffe_id: Option<String>,
    /// SHA-256 of the leaf, lowercase hexadecimal.
    pub leaf_sha256: Option<String>,
    /// Certificates in the chain.
    pub chain: usize,
}

impl Client {
    /// Reads a chain; empty without a certificate.
    pub fn of(chain: &[CertificateDer<'_>]) -> Self {
        let leaf = chain.first();
        let uris = leaf.map(|leaf| clients::uris(leaf)).unwrap_or_default();
        let spiffe_id = uris.into_iter().find(|uri| uri.starts_with("spiffe://"));
        let kind = match (leaf, &spiffe_id) {
            (None, _) => ClientKind::None,
            (Some(_), None) => ClientKind::NoSvid,
            (Some(_), Some(id)) => match Name::of(id) {
                Name::Device => ClientKind::Device,
                Name::WfmClient { .. } => ClientKind::WfmClient,
                Name::Wfm(_) | Name::Other => ClientKind::OtherSvid,
            },
        };
        let digest =
            |leaf: &CertificateDer<'_>| hex(ring::digest::digest(&ring::digest::SHA256, leaf).as_ref());
        Self { kind, spiffe_id, leaf_sha256: leaf.map(digest), chain: chain.len() }
    }
}

/// A TLS connection whose handshake succeeded.
pub type Connection = development_server::Connection<Client>;

/// One request.
#[derive(Debug, Clone)]
pub struct Entry {
    /// When it came, on the monotonic clock.
    pub at: Instant,
    /// The number of its connection.
    pub connection: usize,
    /// `GET`, `POST` …
    pub method: String,
    /// The path, as sent.
    pub path: String,
    /// The client certificate of its connection.
    pub client: Client,
    /// The status decided on; `None` while under way, and where a fault cut the connection before.
    pub status: Option<u16>,
    /// The last part of the problem's type, where the response has one.
    pub problem: Option<&'static str>,
    /// `Retry-After` in the response, in seconds.
    pub retry_after: Option<u64>,
    /// The client that an assertion was issued for.
    pub onboarded: Option<String>,
    /// The connection was cut on purpose instead of a response.
    pub response_lost: bool,
    /// A fault took part.
    pub faulty: bool,
}

impl Entry {
    /// A request that has just come in.
    pub fn new(connection: usize, method: &str, path: &str, client: Client) -> Self {
        Self {
            at: Instant::now(),
            connection,
            method: method.to_owned(),
            path: path.to_owned(),
            client,
            status: None,
            problem: None,
            retry_after: None,
            onboarded: None,
            response_lost: false,
            faulty: false,
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)?;
        match self.status {
            Some(status) => write!(f, " -> {status}")?,
            None => f.write_str(" -> no response")?,
        }
        match (&self.client.spiffe_id, self.client.kind) {
            (Some(id), _) => write!(f, " client={id}")?,
            (None, ClientKind::None) => f.write_str(" client=none")?,
            (None, _) => f.write_str(" client=no-svid")?,
        }
        if let Some(problem) = self.problem {
            write!(f, " problem={problem}")?;
        }
        if let Some(seconds) = self.retry_after {
            write!(f, " retry-after={seconds}")?;
        }
        if let Some(id) = &self.onboarded {
            write!(f, " onboarded={id}")?;
        }
        if self.response_lost {
            f.write_str(" response-lost")?;
        }
        if self.faulty {
            f.write_str(" faulty")?;
        }
        Ok(())
    }
}

/// Everything that came in.
pub type Journal = development_server::Journal<Entry, Client>;
