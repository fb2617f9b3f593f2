//! Semaphore with one permit per user: however many callers of one user wait, another user's waits
//! for one of them at most.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A number of permits, and one of them per user. They are given in the order of the requests,
/// except to those whose user has one.
#[derive(Debug)]
pub(super) struct UserSemaphore {
    all: Arc<Semaphore>,
    /// Those of users who have a permit or wait for one.
    by_user: Mutex<BTreeMap<Option<u32>, Weak<Semaphore>>>,
}

/// A permit; dropping it releases it.
#[derive(Debug)]
pub(super) struct UserPermit {
    _of_all: Option<OwnedSemaphorePermit>,
    _of_user: Option<OwnedSemaphorePermit>,
}

impl UserSemaphore {
    pub(super) fn new(permits: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(permits)), by_user: Mutex::default() }
    }

    /// Waits for a permit of `uid`.
    pub(super) async fn acquire(&self, uid: Option<u32>) -> UserPermit {
        // These are never closed: there is a permit in the end.
        let of_user = self.of_user(uid).acquire_owned().await.ok();
        let of_all = Arc::clone(&self.all).acquire_owned().await.ok();
        UserPermit { _of_all: of_all, _of_user: of_user }
    }

    fn of_user(&self, uid: Option<u32>) -> Arc<Semaphore> {
        let mut by_user = self.by_user.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = by_user.get(&uid).and_then(Weak::upgrade) {
            return known;
        }
        by_user.retain(|_, of_user| of_user.strong_count() > 0);
        let one = Arc::new(Semaphore::new(1));
        by_user.insert(uid, Arc::downgrade(&one));
        one
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::pin::pin;

    #[tokio::test]
    async fn permits_of_one_user_cost_another_none() {
        let semaphore = UserSemaphore::new(2);
        let first = semaphore.acquire(Some(7)).await;
        let mut waiting: Vec<_> = (0..1000).map(|_| Box::pin(semaphore.acquire(Some(7)))).collect();
        assert!(waiting.iter_mut().all(|one| one.now_or_never().is_none()), "one per user");
        let second = semaphore.acquire(Some(8)).now_or_never().expect("another user has the second");
        let mut third = pin!(semaphore.acquire(Some(9)));
        assert!(third.as_mut().now_or_never().is_none(), "two in all");
        drop(first);
        assert!(
            waiting.iter_mut().all(|one| one.now_or_never().is_none()),
            "the next of its user comes after"
        );
        let third = third.now_or_never().expect("the first to wait");
        drop(second);
        assert!(waiting[0].as_mut().now_or_never().is_some(), "and then the next of its user");
        drop((third, waiting));
        assert!(semaphore.acquire(None).now_or_never().is_some());
        assert_eq!(semaphore.by_user.lock().unwrap().len(), 1, "users who have left are forgotten");
    }
}
