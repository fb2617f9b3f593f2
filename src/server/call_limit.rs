//! Limits concurrent gRPC calls per connection and per uid.
//!
//! HTTP/2 has a limit of its own (`SETTINGS_MAX_CONCURRENT_STREAMS`), but a client that meets it
//! waits, silently and for as long as its other calls last. The limits here are met first, and a
//! call over them gets a response.
//!
//! Each stream costs some 3 KB for as long as its connection lasts, whether its call is served or
//! refused. A uid with many connections therefore has few streams on most of them: no client needs
//! both.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Limits;
use crate::server::connection_limit::{ConnectionLimit, ConnectionPermit, LimitReached};
use crate::server::heap::{HeapTrimmer, InUse};

/// Calls on one connection: RFC 9113, section 6.5.2, recommends no fewer, and some clients share
/// one connection among all of a process.
const PER_CONNECTION: usize = 100;
/// The same for the further connections of a uid with many connections.
const PER_FURTHER_CONNECTION: usize = 10;
/// Connections with [`PER_CONNECTION`] calls, of one uid and of all; and no more than an eighth of
/// all connections.
const FULL_CONNECTIONS: Limits = Limits { connections: 128, of_one_user: 16 };
/// A SPIFFE client has two or three streams on its connection.
const CALLS_FOR_EACH_CONNECTION: usize = 4;

/// Limits the calls on one socket. Clones share one count.
#[derive(Clone, Debug)]
pub(crate) struct CallLimits {
    calls: ConnectionLimit,
    full_connections: ConnectionLimit,
}

impl CallLimits {
    /// Sets the limits of calls by those of connections: four calls for each, and at least as many
    /// as one connection may have. One uid has at most a quarter of them, and the last quarter is
    /// reserved for those who have none.
    pub(crate) fn set(&self, Limits { connections, of_one_user }: Limits) {
        let calls_for = |connections: usize| connections.saturating_mul(CALLS_FOR_EACH_CONNECTION);
        let of_one_user = calls_for(of_one_user).max(PER_CONNECTION);
        let all = calls_for(connections).max(of_one_user.saturating_mul(4));
        self.calls.set_limits(Limits { connections: all, of_one_user });
        let full = (connections / 8).clamp(1, FULL_CONNECTIONS.connections);
        self.full_connections.set_limits(Limits { connections: full, ..FULL_CONNECTIONS });
    }

    /// The limit of a new HTTP/2 connection of this uid.
    pub(super) fn for_connection(&self, uid: Option<u32>, heap: Arc<HeapTrimmer>) -> CallLimit {
        let full = self.full_connections.acquire(uid).ok();
        let max = if full.is_some() { PER_CONNECTION } else { PER_FURTHER_CONNECTION };
        let free = Arc::new(Semaphore::new(max));
        CallLimit { max, free, all: self.calls.clone(), uid, heap, _full: full.map(Arc::new) }
    }
}

impl Default for CallLimits {
    fn default() -> Self {
        let none = Limits { connections: 0, of_one_user: 0 };
        let limits = Self {
            calls: ConnectionLimit::new(none),
            full_connections: ConnectionLimit::new(FULL_CONNECTIONS),
        };
        limits.set(none);
        limits
    }
}

/// Limits the calls of one connection, and those of its uid with them. Clones share one count.
#[derive(Clone, Debug)]
pub(super) struct CallLimit {
    max: usize,
    free: Arc<Semaphore>,
    all: ConnectionLimit,
    uid: Option<u32>,
    heap: Arc<HeapTrimmer>,
    _full: Option<Arc<ConnectionPermit>>,
}

impl CallLimit {
    /// HTTP/2 streams that the connection may have at once: more than calls, for those that are
    /// refused.
    pub(super) fn streams(&self) -> u32 {
        (self.max + self.max / 4) as u32
    }

    /// Whether no call is open on the connection.
    pub(super) fn is_idle(&self) -> bool {
        self.free.available_permits() == self.max
    }

    /// Acquires a permit; dropping it releases the slot.
    pub(super) fn acquire(&self) -> Result<CallPermit, TooManyCalls> {
        let connection = Arc::clone(&self.free).try_acquire_owned();
        let connection = connection.map_err(|_| TooManyCalls::Connection(self.max))?;
        let user = self.all.acquire(self.uid).map_err(|limit| match limit {
            LimitReached::User(limit) => TooManyCalls::User(limit),
            LimitReached::Shared(limit) => TooManyCalls::Shared(limit),
            LimitReached::Total(limit) => TooManyCalls::Total(limit),
        })?;
        Ok(CallPermit { _connection: connection, _user: user, _in_use: HeapTrimmer::in_use(&self.heap) })
    }
}

/// Permit for one call.
#[derive(Debug)]
pub(super) struct CallPermit {
    _connection: OwnedSemaphorePermit,
    _user: ConnectionPermit,
    _in_use: InUse,
}

/// The limit because of which a call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TooManyCalls {
    /// Of this connection.
    Connection(usize),
    /// Of this user.
    User(usize),
    /// Of users with a call: the rest is reserved for others.
    Shared(usize),
    /// Of all users.
    Total(usize),
}

impl fmt::Display for TooManyCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(limit) => write!(
                f,
                "This connection has {limit} calls open already. End one, or open another connection. A user's \
                 first 16 connections have {PER_CONNECTION} calls each."
            ),
            Self::User(limit) => write!(
                f,
                "Your user has {limit} calls open already. End one, or have an operator raise \
                 socket.max_connections_per_user in the agent's configuration."
            ),
            Self::Shared(limit) => write!(
                f,
                "{limit} calls are open already, of all users together, and the rest is reserved for users who have \
                 none. Try again later, or have an operator raise socket.max_connections in the agent's \
                 configuration."
            ),
            Self::Total(limit) => write!(
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
        limits.set(Limits { connections: 75, of_one_user: 37 }); // 148 calls for one uid, 592 in all
        let connect = |uid| limits.for_connection(Some(uid), Arc::default());
        let (first, second) = (connect(7), connect(7));
        let mut permits: Vec<_> = (0..100).map(|_| first.acquire().unwrap()).collect();
        assert_eq!(first.acquire().unwrap_err(), TooManyCalls::Connection(100));
        permits.extend((0..48).map(|_| second.acquire().unwrap()));
        assert_eq!(second.acquire().unwrap_err(), TooManyCalls::User(148));
        let others: Vec<_> = (8..13).map(connect).collect();
        let of_others = others.iter().flat_map(|other| (0..100).map_while(|_| other.acquire().ok()));
        let mut of_others: Vec<_> = of_others.collect();
        // The two last users have one each: the last quarter is for users who have none.
        assert_eq!(permits.len() + of_others.len(), 444 + 2);
        assert_eq!(others[4].acquire().unwrap_err(), TooManyCalls::Shared(444));
        of_others.extend((1000..2000).map_while(|uid| connect(uid).acquire().ok()));
        assert_eq!(permits.len() + of_others.len(), 592);
        assert_eq!(connect(14).acquire().unwrap_err(), TooManyCalls::Total(592));
        let root = connect(0).acquire().unwrap();
        permits.extend([root]);
        permits.truncate(140);
        let again = connect(14).acquire().unwrap();
        drop((permits, of_others, again));
        assert!(first.acquire().is_ok() && others[0].acquire().is_ok());
    }

    #[test]
    fn uid_with_many_connections_has_few_calls_on_most() {
        let limits = CallLimits::default();
        limits.set(Limits { connections: 10_000, of_one_user: 10_000 });
        let connect = |uid| limits.for_connection(Some(uid), Arc::default());
        let mut connections: Vec<_> = (0..FULL_CONNECTIONS.of_one_user).map(|_| connect(7)).collect();
        assert!(connections.iter().all(|connection| connection.streams() == 125));
        let narrow = connect(7);
        let permits: Vec<_> = (0..PER_FURTHER_CONNECTION).map(|_| narrow.acquire().unwrap()).collect();
        assert_eq!(narrow.acquire().unwrap_err(), TooManyCalls::Connection(PER_FURTHER_CONNECTION));
        assert!(narrow.streams() as usize > permits.len(), "room for a refusal");
        assert_eq!(connect(8).streams(), 125, "others are not affected");
        let clone = connections.pop().unwrap().clone();
        assert_eq!(connect(7).streams(), 12);
        drop(clone);
        assert_eq!(connect(7).streams(), 125);
    }

    #[test]
    fn single_connection_may_be_used_in_full() {
        let limits = CallLimits::default();
        limits.set(Limits { connections: 1, of_one_user: 1 });
        let only = limits.for_connection(Some(7), Arc::default());
        let permits: Vec<_> = (0..PER_CONNECTION).map(|_| only.acquire().unwrap()).collect();
        assert_eq!(permits.len(), PER_CONNECTION);
        let another = limits.for_connection(Some(8), Arc::default());
        assert!(another.acquire().is_ok(), "one uid never has all of them");
    }
}
