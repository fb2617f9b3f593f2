//! Limits concurrent gRPC calls per connection and per uid.
//!
//! HTTP/2 has a limit of its own (`SETTINGS_MAX_CONCURRENT_STREAMS`), but a client that meets it waits, silently and for as
//! long as its other calls last. The limits here are met first, and are answered.
//!
//! Each stream costs some 3 KB for as long as its connection lasts, whether its call is served or refused. A uid with many
//! connections therefore has few streams on most of them: nobody needs both.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::heap::HeapTrimmer;
use super::places::{Full, Place, Places};
use crate::config::Limits;

/// Calls on one connection: RFC 9113, section 6.5.2, recommends no fewer, and some clients share one connection among all of
/// a process.
const MANY: usize = 100;
/// Calls on one connection of a uid that has many connections.
const FEW: usize = 10;
/// Connections with [`MANY`] calls, of one uid and of all.
const WITH_MANY: Limits = Limits { connections: 128, of_one_user: 16 };

/// Limits the calls of all connections. Clones share one count.
#[derive(Clone, Debug)]
pub struct CallLimits {
    calls: Places,
    with_many: Places,
}

impl CallLimits {
    /// A uid may have as many calls as connections, and always as many as one connection may have.
    pub(crate) fn set(&self, Limits { connections, of_one_user }: Limits) {
        self.calls.limit(Limits { connections: connections.max(MANY), of_one_user: of_one_user.max(MANY) });
    }

    /// The limit of a new HTTP/2 connection of this uid.
    pub(super) fn for_connection(&self, uid: Option<u32>, heap: Arc<HeapTrimmer>) -> CallLimit {
        let with_many = self.with_many.take(uid).ok();
        let most = if with_many.is_some() { MANY } else { FEW };
        let free = Arc::new(Semaphore::new(most));
        CallLimit { most, free, all: self.calls.clone(), uid, heap, _with_many: with_many.map(Arc::new) }
    }
}

impl Default for CallLimits {
    fn default() -> Self {
        let least = Limits { connections: MANY, of_one_user: MANY };
        Self { calls: Places::new(least), with_many: Places::new(WITH_MANY) }
    }
}

/// Limits the calls of one connection, and those of its uid with them. Clones share one count.
#[derive(Clone, Debug)]
pub(super) struct CallLimit {
    most: usize,
    free: Arc<Semaphore>,
    all: Places,
    uid: Option<u32>,
    heap: Arc<HeapTrimmer>,
    _with_many: Option<Arc<Place>>,
}

impl CallLimit {
    /// HTTP/2 streams that the connection may have at once: more than calls, for those that are refused.
    pub(super) fn streams(&self) -> u32 {
        (self.most + self.most / 4) as u32
    }

    /// Acquires a permit; dropping it releases the slot.
    pub(super) fn acquire(&self) -> Result<CallPermit, TooManyCalls> {
        let connection = Arc::clone(&self.free).try_acquire_owned();
        let connection = connection.map_err(|_| TooManyCalls::OnConnection(self.most))?;
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
    OnConnection(usize),
    OfUser(usize),
    OfAll(usize),
}

impl fmt::Display for TooManyCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnConnection(limit) => write!(
                f,
                "This connection has {limit} calls open already. End one, or open another connection."
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
        let (first, second) =
            (limits.for_connection(Some(7), Arc::default()), limits.for_connection(Some(7), Arc::default()));
        let mut permits: Vec<_> = (0..100).map(|_| first.acquire().unwrap()).collect();
        assert_eq!(first.acquire().unwrap_err(), TooManyCalls::OnConnection(100));
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
    fn a_uid_with_many_connections_has_few_calls_on_most_of_them() {
        let limits = CallLimits::default();
        limits.set(Limits { connections: 10_000, of_one_user: 10_000 });
        let connect = |uid| limits.for_connection(Some(uid), Arc::default());
        let mut connections: Vec<_> = (0..WITH_MANY.of_one_user).map(|_| connect(7)).collect();
        assert!(connections.iter().all(|connection| connection.streams() == 125));
        let narrow = connect(7);
        let permits: Vec<_> = (0..FEW).map(|_| narrow.acquire().unwrap()).collect();
        assert_eq!(narrow.acquire().unwrap_err(), TooManyCalls::OnConnection(FEW));
        assert!(narrow.streams() as usize > permits.len(), "room for a refusal");
        assert_eq!(connect(8).streams(), 125, "others are not affected");
        let clone = connections.pop().unwrap().clone();
        assert_eq!(connect(7).streams(), 12);
        drop(clone);
        assert_eq!(connect(7).streams(), 125);
    }

    #[test]
    fn however_few_connections_are_allowed_one_may_be_used_in_full() {
        let limits = CallLimits::default();
        limits.set(Limits { connections: 1, of_one_user: 1 });
        let only = limits.for_connection(Some(7), Arc::default());
        let permits: Vec<_> = (0..MANY).map(|_| only.acquire().unwrap()).collect();
        assert_eq!(permits.len(), MANY);
    }
}
