//! Returns memory to the operating system after a burst of clients: the C library would keep it for
//! ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// Ended connections or calls that make a burst. Fewer leave behind less than is worth the work.
const BURST: usize = 64;
/// Time for the rest of the burst to end.
const DELAY: Duration = Duration::from_secs(10);

/// Counts the connections and calls that have ended, for [`HeapTrimmer::run`].
#[derive(Debug, Default)]
pub(crate) struct HeapTrimmer {
    ended: AtomicUsize,
    burst: Notify,
}

impl HeapTrimmer {
    /// Counts a connection or call that has ended, so that its memory is free.
    pub(super) fn released(&self) {
        if self.ended.fetch_add(1, Ordering::Relaxed) + 1 == BURST {
            self.burst.notify_one();
        }
    }

    /// Guards the memory of a request: dropping the guard counts it as released.
    pub(super) fn in_use(heap: &Arc<Self>) -> InUse {
        InUse(Arc::clone(heap))
    }

    /// Returns free memory after each burst. Never ends; an agent without clients is not woken by
    /// it.
    pub(crate) async fn run(&self) {
        loop {
            self.burst.notified().await;
            sleep(DELAY).await;
            self.ended.store(0, Ordering::Relaxed); // what ends from now on counts anew
            let _ = spawn_blocking(heap_trim::trim).await; // it cannot fail
        }
    }
}

/// Guard of the memory of a request. Dropping it counts as [`HeapTrimmer::released`].
#[derive(Debug)]
pub(super) struct InUse(Arc<HeapTrimmer>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.released();
    }
}
