//! Turns of users at what may block a thread: however many of one user wait, another waits for one of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A number of turns at once, and of one user one. Who waits has them in the order of asking, but for those whose user
/// has one.
#[derive(Debug)]
pub struct Turns {
    all: Arc<Semaphore>,
    /// Of those who have a turn or wait for one.
    by_user: Mutex<BTreeMap<Option<u32>, Weak<Semaphore>>>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _of_all: Option<OwnedSemaphorePermit>,
    _of_user: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// So many at once.
    pub(super) fn new(at_once: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(at_once)), by_user: Mutex::default() }
    }

    /// Waits for a turn of `uid`.
    pub(super) async fn take(&self, uid: Option<u32>) -> Turn {
        // Nobody closes these: there is a permit in the end.
        let of_user = self.of_user(uid).acquire_owned().await.ok();
        let of_all = Arc::clone(&self.all).acquire_owned().await.ok();
        Turn { _of_all: of_all, _of_user: of_user }
    }

    fn of_user(&self, uid: Option<u32>) -> Arc<Semaphore> {
        let mut by_user = self.by_user.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = by_user.get(&uid).and_then(Weak::upgrade) {
            return there;
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
    async fn turns_of_one_user_cost_another_none() {
        let turns = Turns::new(2);
        let first = turns.take(Some(7)).await;
        let mut waiting: Vec<_> = (0..1000).map(|_| Box::pin(turns.take(Some(7)))).collect();
        assert!(waiting.iter_mut().all(|one| one.now_or_never().is_none()), "of one user one at once");
        let second = turns.take(Some(8)).now_or_never().expect("another has the second");
        let mut third = pin!(turns.take(Some(9)));
        assert!(third.as_mut().now_or_never().is_none(), "two at once");
        drop(first);
        assert!(
            waiting.iter_mut().all(|one| one.now_or_never().is_none()),
            "the next of its user comes after"
        );
        let third = third.now_or_never().expect("who asked first");
        drop(second);
        assert!(waiting[0].as_mut().now_or_never().is_some(), "and then it has its turn");
        drop((third, waiting));
        assert!(turns.take(None).now_or_never().is_some());
        assert_eq!(turns.by_user.lock().unwrap().len(), 1, "who has left is forgotten");
    }
}
