//! Journal of connections and requests, for tests and for the log.

use crate::clients::{self, Name};
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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

/// Lowercase hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A TLS connection whose handshake succeeded.
#[derive(Debug, Clone)]
pub struct Connection {
    /// From 0, in the order of handshakes.
    pub number: usize,
    /// When the handshake was done, on the monotonic clock.
    pub at: Instant,
    /// What the client presented.
    pub client: Client,
    /// It resumed an earlier session.
    pub resumed: bool,
    /// Bytes of application data received on it so far.
    pub bytes: u64,
    /// It has ended.
    pub ended: bool,
}

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
#[derive(Default)]
pub struct Journal {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    entries: Vec<Entry>,
    connections: Vec<Connection>,
    refused_handshakes: Vec<String>,
}

impl Journal {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a connection, and returns its number.
    pub fn connected(&self, client: Client, resumed: bool) -> usize {
        let mut inner = self.lock();
        let number = inner.connections.len();
        let at = Instant::now();
        inner.connections.push(Connection { number, at, client, resumed, bytes: 0, ended: false });
        self.changed.notify_all();
        number
    }

    /// Notes application data received.
    pub fn received(&self, connection: usize, bytes: u64) {
        if let Some(connection) = self.lock().connections.get_mut(connection) {
            connection.bytes += bytes;
        }
        self.changed.notify_all();
    }

    /// Notes the end of a connection.
    pub fn ended(&self, connection: usize) {
        if let Some(connection) = self.lock().connections.get_mut(connection) {
            connection.ended = true;
        }
        self.changed.notify_all();
    }

    /// Notes a handshake that failed.
    pub fn refused(&self, why: String) {
        self.lock().refused_handshakes.push(why);
        self.changed.notify_all();
    }

    /// Notes a request, and returns its index.
    pub fn open(&self, entry: Entry) -> usize {
        let mut inner = self.lock();
        inner.entries.push(entry);
        self.changed.notify_all();
        inner.entries.len() - 1
    }

    /// Notes what came of a request.
    pub fn update(&self, index: usize, entry: Entry) {
        if let Some(slot) = self.lock().entries.get_mut(index) {
            *slot = entry;
        }
        self.changed.notify_all();
    }

    /// A copy of all entries, oldest first.
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().entries.clone()
    }

    /// A copy of all connections, oldest first.
    pub fn connections(&self) -> Vec<Connection> {
        self.lock().connections.clone()
    }

    /// Why handshakes failed, oldest first.
    pub fn refused_handshakes(&self) -> Vec<String> {
        self.lock().refused_handshakes.clone()
    }

    /// Waits until `done` accepts the entries, and returns them; `None` after `limit`.
    pub fn wait(&self, limit: Duration, mut done: impl FnMut(&[Entry]) -> bool) -> Option<Vec<Entry>> {
        self.wait_inner(limit, |inner| done(&inner.entries).then(|| inner.entries.clone()))
    }

    /// Waits until `done` accepts the connections, and returns them; `None` after `limit`.
    pub fn wait_connections(
        &self,
        limit: Duration,
        mut done: impl FnMut(&[Connection]) -> bool,
    ) -> Option<Vec<Connection>> {
        self.wait_inner(limit, |inner| done(&inner.connections).then(|| inner.connections.clone()))
    }

    /// Waits for so many failed handshakes, and returns why they failed; `None` after `limit`.
    pub fn wait_refused(&self, limit: Duration, count: usize) -> Option<Vec<String>> {
        self.wait_inner(limit, |inner| {
            (inner.refused_handshakes.len() >= count).then(|| inner.refused_handshakes.clone())
        })
    }

    fn wait_inner<T>(&self, limit: Duration, mut done: impl FnMut(&Inner) -> Option<T>) -> Option<T> {
        let mut found = None;
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |inner| {
            found = done(inner);
            found.is_none()
        });
        drop(waited);
        found
    }
}
