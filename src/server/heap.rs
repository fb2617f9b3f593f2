//! Returns memory to the operating system after a crowd of clients: the C library would keep it for
//! ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// So many connections or calls that have ended are a crowd. Fewer leave behind less than is worth
/// the work.
const CROWD: usize = 64;
/// Time for the rest of the crowd to leave.
const DELAY: Duration = Duration::from_secs(10);

/// Counts what has ended on the sockets, for [`HeapTrimmer::run`].
#[derive(Debug, Default)]
pub struct HeapTrimmer {
    ended: AtomicUsize,
    crowd: Notify,
}

impl HeapTrimmer {
    /// A connection or a call has ended, and its memory is free.
    pub(super) fn released(&self) {
        if self.ended.fetch_add(1, Ordering::Relaxed) + 1 == CROWD {
            self.crowd.notify_one();
        }
    }

    /// For the time of a request: what ends with it counts as released.
    pub(super) fn in_use(heap: &Arc<Self>) -> InUse {
        InUse(Arc::clone(heap))
    }

    /// Returns free memory after each crowd. Never ends; an agent without clients is not woken by
    /// it.
    pub async fn run(&self) {
        loop {
            self.crowd.notified().await;
            sleep(DELAY).await;
            self.ended.store(0, Ordering::Relaxed); // what ends from now on counts anew
            let _ = spawn_blocking(heap_trim::trim).await; // it cannot fail
        }
    }
}

/// Memory of a request. Dropping it counts as [`HeapTrimmer::released`].
#[derive(Debug)]
pub(super) struct InUse(Arc<HeapTrimmer>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.released();
    }
}
