//! Signals, and the watchdog that is fed while they are waited for: both belong to the main loop alone.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::system::service::Watchdog;

/// What a signal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// End.
    Stop,
    /// Read the configuration anew.
    Reload,
}

/// The signals that the agent listens to.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    watchdog: Watchdog,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            watchdog: Watchdog::new(),
        })
    }

    /// What is begun now ends within `limit`, or something hangs; `None` for a wait that may be long.
    pub(super) fn wait_begins(&mut self, limit: Option<Duration>) {
        self.watchdog.wait_begins(limit);
    }

    pub(super) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload,
            never = self.watchdog.keep_fed() => match never {},
        }
    }
}
