//! Limits the connections that a socket serves at the same time, in all and per user. Clients that
//! open one connection after the other cost others nothing, and the device no memory beyond what is
//! configured.
//!
//! Users are not persons: with subordinate uids (subuid(5)) one person is 65,536 of them. The last
//! quarter is therefore reserved for users without a permit, and root and the agent's own user have
//! a few permits beyond the limit, however many others hold.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::unistd::geteuid;

use crate::config::Limits;
use crate::hint::Hint;

/// Permits that root and the agent's own user have each beyond the limit of all users. No more than
/// a quarter of that.
const RESERVE: usize = 8;

/// Limits the connections of one socket. Clones share one count.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionLimit(Arc<Mutex<Usage>>);

#[derive(Debug)]
struct Usage {
    limits: Limits,
    all: usize,
    by_user: BTreeMap<Option<u32>, usize>,
}

/// Decides whether `uid`, which has `own` permits of the `all` that are held, gets another.
pub(super) fn admit(limits: Limits, uid: Option<u32>, own: usize, all: usize) -> Result<(), LimitReached> {
    let Limits { connections, of_one_user } = limits;
    let last_quarter = connections / 4;
    let is_trusted = uid.is_some_and(|uid| uid == 0 || uid == geteuid().as_raw());
    if is_trusted && own < RESERVE.min(last_quarter.max(1)).min(of_one_user) {
        return Ok(());
    }
    if all >= connections {
        return Err(LimitReached::Total(connections));
    }
    if own >= of_one_user {
        return Err(LimitReached::User(of_one_user));
    }
    if !is_trusted && own > 0 && all >= connections - last_quarter {
        return Err(LimitReached::Shared(connections - last_quarter));
    }
    Ok(())
}

impl ConnectionLimit {
    /// A limit with all permits free.
    pub(crate) fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(Usage { limits, all: 0, by_user: BTreeMap::new() })))
    }

    /// Changes the limits. Permits that are held stay valid.
    pub(crate) fn set_limits(&self, limits: Limits) {
        self.usage().limits = limits;
    }

    /// Acquires a permit for a connection of this user; dropping it releases the slot.
    pub(super) fn acquire(&self, uid: Option<u32>) -> Result<ConnectionPermit, LimitReached> {
        let mut usage = self.usage();
        let own = usage.by_user.get(&uid).copied().unwrap_or_default();
        admit(usage.limits, uid, own, usage.all)?;
        usage.by_user.insert(uid, own + 1);
        usage.all += 1;
        Ok(ConnectionPermit { limit: self.clone(), uid })
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Permit for one connection.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    limit: ConnectionLimit,
    uid: Option<u32>,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut usage = self.limit.usage();
        usage.all = usage.all.saturating_sub(1);
        if let Some(of_user) = usage.by_user.get_mut(&self.uid) {
            *of_user = of_user.saturating_sub(1);
            if *of_user == 0 {
                usage.by_user.remove(&self.uid); // there are more users than any device has
            }
        }
    }
}

/// The limit because of which a permit is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LimitReached {
    /// Of all users.
    Total(usize),
    /// Of users with a permit: the rest is reserved for others.
    Shared(usize),
    /// Of this user.
    User(usize),
}

impl fmt::Display for LimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Total(limit) => write!(
                f,
                "{limit} connections are open on this socket already, and more are not served \
                 (socket.max_connections in the agent's configuration)"
            ),
            Self::Shared(limit) => write!(
                f,
                "{limit} connections are open on this socket already, and the last quarter (of \
                 socket.max_connections in the agent's configuration) is reserved for users who have none"
            ),
            Self::User(limit) => write!(
                f,
                "your user has {limit} connections open on this socket already, and more are not served \
                 (socket.max_connections_per_user in the agent's configuration)"
            ),
        }
    }
}

impl Hint for LimitReached {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match self {
            Self::Total(_) => "Try again later",
            Self::Shared(_) => "Use one of your connections for several requests, or try again later",
            Self::User(_) => "Close a connection, or use one for several requests",
        };
        Some(hint.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Acquires up to `each` permits for every one of these users.
    fn fill(limit: &ConnectionLimit, users: std::ops::Range<u32>, each: usize) -> Vec<ConnectionPermit> {
        users.flat_map(|uid| (0..each).map_while(move |_| limit.acquire(Some(uid)).ok())).collect()
    }

    fn limits(connections: usize, of_one_user: usize) -> Limits {
        Limits { connections, of_one_user }
    }

    #[test]
    fn permits_are_limited_in_all_and_per_user() {
        let limit = ConnectionLimit::new(limits(3, 2));
        let acquire = |uid| limit.acquire(Some(uid));
        let (first, _second) = (acquire(7).unwrap(), acquire(7).unwrap());
        assert_eq!(acquire(7).unwrap_err(), LimitReached::User(2));
        let third = acquire(8).unwrap();
        assert_eq!(acquire(9).unwrap_err(), LimitReached::Total(3));
        drop(first);
        let _fourth = acquire(9).unwrap();
        assert_eq!(acquire(7).unwrap_err(), LimitReached::Total(3));
        drop(third);
        assert_eq!(limit.usage().by_user.len(), 2, "users without a permit are forgotten");
        limit.set_limits(limits(1, 1));
        assert_eq!(acquire(7).unwrap_err(), LimitReached::Total(1), "and permits that are held stay valid");
        assert_eq!(limit.usage().all, 2);
    }

    #[test]
    fn last_quarter_is_reserved_for_users_who_have_none() {
        for (connections, of_one_user) in [(2048, 1024), (100, 100), (8, 8), (4, 2)] {
            let limit = ConnectionLimit::new(limits(connections, of_one_user));
            let held = fill(&limit, 100_000..100_002, of_one_user);
            let shared = connections - connections / 4;
            // The second may have come only when the last quarter was begun.
            assert!((shared..=shared + 1).contains(&held.len()), "{} of {connections}", held.len());
            assert_eq!(limit.acquire(Some(100_001)).unwrap_err(), LimitReached::Shared(shared));
            let others = fill(&limit, 200_000..300_000, 1);
            assert_eq!(held.len() + others.len(), connections);
            assert_eq!(limit.acquire(Some(7)).unwrap_err(), LimitReached::Total(connections));
        }
    }

    #[test]
    fn root_and_the_agents_user_are_always_served() {
        let own = geteuid().as_raw();
        for connections in [1, 2, 24, 2048] {
            let limit = ConnectionLimit::new(limits(connections, connections));
            let held = fill(&limit, 100_000..165_536, 1);
            assert_eq!(held.len(), connections);
            let reserve = RESERVE.min((connections / 4).max(1));
            for uid in [0, own] {
                let of_root: Vec<_> = (0..reserve).map(|_| limit.acquire(Some(uid)).unwrap()).collect();
                assert!(limit.acquire(Some(uid)).is_err());
                drop(of_root);
            }
            assert!(limit.acquire(None).is_err(), "a user that the kernel does not name is not trusted");
        }
    }

    #[test]
    fn root_has_the_last_quarter_too() {
        let limit = ConnectionLimit::new(limits(100, 50));
        let _held = fill(&limit, 100_000..100_002, 50);
        assert_eq!(fill(&limit, 0..1, 50).len(), 25);
    }
}
