//! How many connections a socket serves at once, in all and for one user: whoever opens one after the other costs others
//! nothing, and the device no memory beyond what is configured.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Limits;

/// The places of one socket. Clones are the same ones.
#[derive(Clone, Debug)]
pub struct Places(Arc<Mutex<Taken>>);

#[derive(Debug)]
struct Taken {
    limits: Limits,
    all: usize,
    by_user: BTreeMap<Option<u32>, usize>,
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
        let Limits { connections, of_one_user } = taken.limits;
        if taken.all >= connections {
            return Err(Full::ForAll(connections));
        }
        let of_user = taken.by_user.entry(uid).or_default();
        if *of_user >= of_one_user {
            return Err(Full::ForUser(of_one_user));
        }
        *of_user += 1;
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
    ForAll(usize),
    ForUser(usize),
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForAll(limit) => write!(
                f,
                "{limit} connections are open on this socket already, and more are not served (socket.max_connections in \
                 the agent's configuration). Try again later"
            ),
            Self::ForUser(limit) => write!(
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

    #[test]
    fn a_user_has_so_many_places_all_have_so_many_and_who_leaves_makes_room() {
        let places = Places::new(Limits { connections: 3, of_one_user: 2 });
        let take = |uid| places.take(Some(uid));
        let (first, _second) = (take(7).unwrap(), take(7).unwrap());
        assert_eq!(take(7).unwrap_err(), Full::ForUser(2));
        let third = take(8).unwrap();
        assert_eq!(take(9).unwrap_err(), Full::ForAll(3));
        drop(first);
        let _fourth = take(9).unwrap();
        assert_eq!(take(7).unwrap_err(), Full::ForAll(3));
        drop(third);
        assert_eq!(places.taken().by_user.len(), 2, "who has none left is forgotten");
        places.limit(Limits { connections: 1, of_one_user: 1 });
        assert_eq!(take(7).unwrap_err(), Full::ForAll(1), "and whoever is there stays");
        assert_eq!(places.taken().all, 2);
    }
}
