//! How many connections a socket serves at once, in all and for one user: whoever opens one after the other costs others
//! nothing, and the device no memory beyond what is configured.
//!
//! Users are not persons: with subordinate uids (subuid(5)) one person is 65,536 of them. The last
//! quarter is therefore kept for users who have no permit, and root and the agent's own user have a few
//! beyond the limit, whatever others hold.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::unistd::geteuid;

use crate::config::Limits;

/// Permits that root and the agent's own user have each beyond the limit of all users. No more than a
/// quarter of that.
const RESERVE: usize = 8;

/// The places of one socket. Clones are the same ones.
#[derive(Clone, Debug)]
pub struct Places(Arc<Mutex<Taken>>);

#[derive(Debug)]
struct Taken {
    limits: Limits,
    all: usize,
    by_user: BTreeMap<Option<u32>, usize>,
}

/// Decides whether `uid`, which has `own` permits of the `all` that are held, gets another.
pub(super) fn admit(limits: Limits, uid: Option<u32>, own: usize, all: usize) -> Result<(), Full> {
    let Limits { connections, of_one_user } = limits;
    let last_quarter = connections / 4;
    let is_trusted = uid.is_some_and(|uid| uid == 0 || uid == geteuid().as_raw());
    if is_trusted && own < RESERVE.min(last_quarter.max(1)).min(of_one_user) {
        return Ok(());
    }
    if all >= connections {
        return Err(Full::All(connections));
    }
    if own >= of_one_user {
        return Err(Full::User(of_one_user));
    }
    if !is_trusted && own > 0 && all >= connections - last_quarter {
        return Err(Full::Holders(connections - last_quarter));
    }
    Ok(())
}

impl Places {
    /// All of them free.
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(Taken { limits, all: 0, by_user: BTreeMap::new() })))
    }

    /// Other limits from now on. Whoever has a place keeps it.
    pub fn limit(&self, limits: Limits) {
        self.taken().limits = limits;
    }

    /// A place for a connection of this user, until the [`Place`] is dropped.
    pub(super) fn take(&self, uid: Option<u32>) -> Result<Place, Full> {
        let mut taken = self.taken();
        let own = taken.by_user.get(&uid).copied().unwrap_or_default();
        admit(taken.limits, uid, own, taken.all)?;
        taken.by_user.insert(uid, own + 1);
        taken.all += 1;
        Ok(Place { places: self.clone(), uid })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    uid: Option<u32>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all = taken.all.saturating_sub(1);
        if let Some(of_user) = taken.by_user.get_mut(&self.uid) {
            *of_user = of_user.saturating_sub(1);
            if *of_user == 0 {
                taken.by_user.remove(&self.uid); // there are more users than any device has
            }
        }
    }
}

/// There is no place: the limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    All(usize),
    /// For users who have a place: the rest is kept for others.
    Holders(usize),
    User(usize),
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(limit) => write!(
                f,
                "{limit} connections are open on this socket already, and more are not served (socket.max_connections in \
                 the agent's configuration). Try again later"
            ),
            Self::Holders(limit) => write!(
                f,
                "{limit} connections are open on this socket already, and the last quarter (of socket.max_connections in \
                 the agent's configuration) is kept for users who have none. Use one of yours for several requests, or try \
                 again later"
            ),
            Self::User(limit) => write!(
                f,
                "your user has {limit} connections open on this socket already, and more are not served \
                 (socket.max_connections_per_user in the agent's configuration). Close one, or use one for several requests"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many as there are for users from this one on, so many each.
    fn fill(places: &Places, users: std::ops::Range<u32>, each: usize) -> Vec<Place> {
        users.flat_map(|uid| (0..each).map_while(move |_| places.take(Some(uid)).ok())).collect()
    }

    fn limits(connections: usize, of_one_user: usize) -> Limits {
        Limits { connections, of_one_user }
    }

    #[test]
    fn a_user_has_so_many_places_all_have_so_many_and_who_leaves_makes_room() {
        let places = Places::new(limits(3, 2));
        let take = |uid| places.take(Some(uid));
        let (first, _second) = (take(7).unwrap(), take(7).unwrap());
        assert_eq!(take(7).unwrap_err(), Full::User(2));
        let third = take(8).unwrap();
        assert_eq!(take(9).unwrap_err(), Full::All(3));
        drop(first);
        let _fourth = take(9).unwrap();
        assert_eq!(take(7).unwrap_err(), Full::All(3));
        drop(third);
        assert_eq!(places.taken().by_user.len(), 2, "who has none left is forgotten");
        places.limit(limits(1, 1));
        assert_eq!(take(7).unwrap_err(), Full::All(1), "and whoever is there stays");
        assert_eq!(places.taken().all, 2);
    }

    #[test]
    fn last_quarter_is_kept_for_users_who_have_none() {
        for (connections, of_one_user) in [(2048, 1024), (100, 100), (8, 8), (4, 2)] {
            let places = Places::new(limits(connections, of_one_user));
            let held = fill(&places, 100_000..100_002, of_one_user);
            let shared = connections - connections / 4;
            // The second may have come only when the last quarter was begun.
            assert!((shared..=shared + 1).contains(&held.len()), "{} of {connections}", held.len());
            assert_eq!(places.take(Some(100_001)).unwrap_err(), Full::Holders(shared));
            let others = fill(&places, 200_000..300_000, 1);
            assert_eq!(held.len() + others.len(), connections);
            assert_eq!(places.take(Some(7)).unwrap_err(), Full::All(connections));
        }
    }

    #[test]
    fn root_and_the_agents_user_are_served_whatever_others_hold() {
        let own = geteuid().as_raw();
        for connections in [1, 2, 24, 2048] {
            let places = Places::new(limits(connections, connections));
            let held = fill(&places, 100_000..165_536, 1);
            assert_eq!(held.len(), connections);
            let reserve = RESERVE.min((connections / 4).max(1));
            for uid in [0, own] {
                let of_root: Vec<_> = (0..reserve).map(|_| places.take(Some(uid)).unwrap()).collect();
                assert!(places.take(Some(uid)).is_err());
                drop(of_root);
            }
            assert!(places.take(None).is_err(), "a user that the kernel does not name is not trusted");
        }
    }

    #[test]
    fn root_has_the_last_quarter_too() {
        let places = Places::new(limits(100, 50));
        let _held = fill(&places, 100_000..100_002, 50);
        assert_eq!(fill(&places, 0..1, 50).len(), 25);
    }
}
