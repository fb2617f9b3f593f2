//! Journal of connections, requests and responses, for tests and for the log.

use crate::lock;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// A TLS connection whose handshake succeeded, and its client `C`.
#[derive(Debug, Clone)]
pub struct Connection<C> {
    /// From 0, in the order of handshakes.
    pub number: usize,
    /// When the handshake was done, on the monotonic clock.
    pub at: Instant,
    /// What the client presented.
    pub client: C,
    /// It resumed an earlier session.
    pub resumed: bool,
    /// Bytes of application data received on it so far.
    pub bytes: u64,
    /// It has ended.
    pub ended: bool,
}

/// Everything since the start: requests `E` and connections of clients `C`. Not stored across
/// restarts.
pub struct Journal<E, C> {
    inner: Mutex<Inner<E, C>>,
    changed: Condvar,
}

struct Inner<E, C> {
    entries: Vec<E>,
    connections: Vec<Connection<C>>,
    refused_handshakes: Vec<String>,
}

impl<E, C> Default for Journal<E, C> {
    fn default() -> Self {
        let inner = Inner { entries: Vec::new(), connections: Vec::new(), refused_handshakes: Vec::new() };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }
}

impl<E: Clone, C: Clone> Journal<E, C> {
    /// Notes a connection, and returns its number.
    pub fn connected(&self, client: C, resumed: bool) -> usize {
        let mut inner = lock(&self.inner);
        let number = inner.connections.len();
        let at = Instant::now();
        inner.connections.push(Connection { number, at, client, resumed, bytes: 0, ended: false });
        self.changed.notify_all();
        number
    }

    /// Notes application data received.
    pub fn received(&self, connection: usize, bytes: u64) {
        if let Some(connection) = lock(&self.inner).connections.get_mut(connection) {
            connection.bytes += bytes;
        }
        self.changed.notify_all();
    }

    /// Notes the end of a connection.
    pub fn ended(&self, connection: usize) {
        if let Some(connection) = lock(&self.inner).connections.get_mut(connection) {
            connection.ended = true;
        }
        self.changed.notify_all();
    }

    /// Notes a handshake that failed.
    pub fn refused(&self, why: String) {
        lock(&self.inner).refused_handshakes.push(why);
        self.changed.notify_all();
    }

    /// Notes a request as it comes in, and returns its index.
    pub fn open(&self, entry: E) -> usize {
        let mut inner = lock(&self.inner);
        inner.entries.push(entry);
        self.changed.notify_all();
        inner.entries.len() - 1
    }

    /// Completes what [`Journal::open`] began.
    pub fn update(&self, index: usize, entry: E) {
        if let Some(slot) = lock(&self.inner).entries.get_mut(index) {
            *slot = entry;
        }
        self.changed.notify_all();
    }

    /// A copy of all entries, oldest first.
    pub fn entries(&self) -> Vec<E> {
        lock(&self.inner).entries.clone()
    }

    /// A copy of all connections, oldest first.
    pub fn connections(&self) -> Vec<Connection<C>> {
        lock(&self.inner).connections.clone()
    }

    /// Why handshakes failed, oldest first.
    pub fn refused_handshakes(&self) -> Vec<String> {
        lock(&self.inner).refused_handshakes.clone()
    }

    /// Waits until `done` accepts the entries, and returns them; `None` after `limit`.
    pub fn wait(&self, limit: Duration, mut done: impl FnMut(&[E]) -> bool) -> Option<Vec<E>> {
        self.wait_inner(limit, |inner| done(&inner.entries).then(|| inner.entries.clone()))
    }

    /// Waits until `done` accepts the connections, and returns them; `None` after `limit`.
    pub fn wait_connections(
        &self,
        limit: Duration,
        mut done: impl FnMut(&[Connection<C>]) -> bool,
    ) -> Option<Vec<Connection<C>>> {
        self.wait_inner(limit, |inner| done(&inner.connections).then(|| inner.connections.clone()))
    }

    /// Waits for so many failed handshakes, and returns why they failed; `None` after `limit`.
    pub fn wait_refused(&self, limit: Duration, count: usize) -> Option<Vec<String>> {
        self.wait_inner(limit, |inner| {
            (inner.refused_handshakes.len() >= count).then(|| inner.refused_handshakes.clone())
        })
    }

    fn wait_inner<T>(&self, limit: Duration, mut done: impl FnMut(&Inner<E, C>) -> Option<T>) -> Option<T> {
        let mut found = None;
        let waited = self.changed.wait_timeout_while(lock(&self.inner), limit, |inner| {
            found = done(inner);
            found.is_none()
        });
        drop(waited);
        found
    }
}
