//! Ctrl-C and SIGTERM: the check at hand is ended in order, and what it has put in the TPM is taken
//! out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::Failure;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From here on these signals end the suite in order. Handlers, unlike a mask, are not inherited by
/// tpm2-tools.
pub(crate) fn watch() -> Result<(), Failure> {
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    let signals = {
        let _guard = runtime.enter();
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal)
    };
    let [interrupt, terminate, hangup] = signals;
    let (mut interrupt, mut terminate, mut hangup) = (interrupt?, terminate?, hangup?);
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        REQUESTED.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// Whether the suite is to end.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Fails once the suite is to end. To be asked in everything that takes long.
pub(crate) fn check() -> Result<(), Failure> {
    if requested() { Err("interrupted".into()) } else { Ok(()) }
}
