//! Ctrl-C and SIGTERM: the check at hand is ended in order, and what it has put in the TPM is taken out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use crate::Failure;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// To be called before any other thread is started: they inherit that these signals are kept from them.
pub(crate) fn watch() -> Result<(), Failure> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().map_err(|error| format!("cannot watch for signals: {error}"))?;
    thread::spawn(move || {
        while signals.wait().is_ok() {
            REQUESTED.store(true, Ordering::Relaxed);
        }
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
