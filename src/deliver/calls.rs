//! Limits concurrent gRPC calls per connection and per uid.
//!
//! HTTP/2 has a limit of its own (`SETTINGS_MAX_CONCURRENT_STREAMS`), but a client that meets it waits, silently and for as
//! long as its other calls last. The limits here are met first, and are answered.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::heap::HeapTrimmer;
use super::places::{Full, Place, Places};
use crate::config::Limits;

/// Concurrent calls on one connection. RFC 9113, section 6.5.2, recommends no fewer, and some clients share one connection
/// among all of a process.
const PER_CONNECTION: usize = 100;

/// Limits the calls of all connections. Clones share one count.
#[derive(Clone, Debug)]
pub struct CallLimits(Places);

impl CallLimits {
    /// A uid may have as many calls as connections, so that its memory has one bound, but always as many as one connection.
    pub(crate) fn set(&self, Limits { connections, of_one_user }: Limits) {
        self.0.limit(Limits {
            connections: connections.max(PER_CONNECTION),
            of_one_user: of_one_user.max(PER_CONNECTION),
        });
    }

    /// The limit of a new connection of this uid.
    pub(super) fn for_connection(&self, uid: Option<u32>, heap: Arc<HeapTrimmer>) -> CallLimit {
        CallLimit { connection: Arc::new(Semaphore::new(PER_CONNECTION)), all: self.0.clone(), uid, heap }
    }
}

impl Default for CallLimits {
    fn default() -> Self {
        Self(Places::new(Limits { connections: PER_CONNECTION, of_one_user: PER_CONNECTION }))
    }
}

/// Limits the calls of one connection, and those of its uid with them. Clones share one count.
#[derive(Clone, Debug)]
pub(super) struct CallLimit {
    connection: Arc<Semaphore>,
    all: Places,
    uid: Option<u32>,
    heap: Arc<HeapTrimmer>,
}

impl CallLimit {
    /// Acquires a permit; dropping it releases the slot.
    pub(super) fn acquire(&self) -> Result<CallPermit, TooManyCalls> {
        let connection = Arc::clone(&self.connection).try_acquire_owned();
        let connection = connection.map_err(|_| TooManyCalls::OnConnection)?;
        let user = self.all.take(self.uid).map_err(|full| match full {
            Full::ForUser(limit) => TooManyCalls::OfUser(limit),
            Full::ForAll(limit) => TooManyCalls::OfAll(limit),
        })?;
        Ok(CallPermit { _connection: connection, _user: user, heap: Arc::clone(&self.heap) })
    }
}

/// Permit for one call.
#[derive(Debug)]
pub(super) struct CallPermit {
    _connection: OwnedSemaphorePermit,
    _user: Place,
    heap: Arc<HeapTrimmer>,
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        self.heap.released();
    }
}

/// The limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TooManyCalls {
    OnConnection,
    OfUser(usize),
    OfAll(usize),
}

impl fmt::Display for TooManyCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnConnection => write!(
                f,
                "This connection has {PER_CONNECTION} calls open already. End one, or open another connection."
            ),
            Self::OfUser(limit) => write!(
                f,
                "Your user has {limit} calls open already. End one, or have an operator raise \
                 socket.max_connections_per_user in the agent's configuration."
            ),
            Self::OfAll(limit) => write!(
                f,
                "{limit} calls are open already, of all users together. Try again later, or have an operator raise \
                 socket.max_connections in the agent's configuration."
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_limited_per_connection_and_per_uid() {
        let limits = CallLimits::default();
        limits.set(Limits { connections: 300, of_one_user: 150 });
        let (first, second) = (limits.for_connection(Some(7), Arc::default()), limits.for_connection(Some(7), Arc::default()));
        let mut permits: Vec<_> = (0..100).map(|_| first.acquire().unwrap()).collect();
        assert_eq!(first.acquire().unwrap_err(), TooManyCalls::OnConnection);
        permits.extend((0..50).map(|_| second.acquire().unwrap()));
        assert_eq!(second.acquire().unwrap_err(), TooManyCalls::OfUser(150));
        let other = limits.for_connection(Some(8), Arc::default());
        let others: Vec<_> = (0..100).map(|_| other.acquire().unwrap()).collect();
        let third = limits.for_connection(Some(9), Arc::default());
        let thirds: Vec<_> = (0..50).map(|_| third.acquire().unwrap()).collect();
        assert_eq!(third.acquire().unwrap_err(), TooManyCalls::OfAll(300));
        permits.pop();
        let again = second.acquire().unwrap();
        drop((permits, others, thirds, again));
        assert!(first.acquire().is_ok() && other.acquire().is_ok());
    }

    #[test]
    fn however_few_connections_are_allowed_one_may_be_used_in_full() {
        let limits = CallLimits::default();
        limits.set(Limits { connections: 1, of_one_user: 1 });
        let only = limits.for_connection(Some(7), Arc::default());
        let permits: Vec<_> = (0..PER_CONNECTION).map(|_| only.acquire().unwrap()).collect();
        assert_eq!(permits.len(), PER_CONNECTION);
    }
}
