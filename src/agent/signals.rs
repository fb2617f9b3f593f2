//! What the agent hears from outside while it waits: signals, changes to its configuration, and orders. Meanwhile the
//! watchdog is fed: all of this belongs to the main loop alone.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::failures::Complaint;
use super::orders::Taken;
use crate::lifecycle::LastError;
use crate::platform::inotify::FileWatch;
use crate::platform::systemd::Watchdog;
use crate::server::admin::Given;
use crate::server::runtime::Pulse;

/// What is heard.
#[derive(Debug)]
pub(super) enum Told {
    /// End.
    Stop,
    /// Read the configuration anew.
    Reload,
    /// The configuration may have changed, and nobody has said that it is complete.
    Changed,
    /// An operator wants something done, and waits for the answer.
    Order(Given),
}

/// Signals, the files of the configuration, orders, and the watchdog.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    watchdog: Watchdog,
    changes: FileWatch,
    orders: mpsc::Receiver<Given>,
    /// Orders that were taken and are not carried out yet.
    pub(super) taken: Taken,
    /// Why the configuration that is there is not in use, while the one before it is.
    pub(super) rejected: Option<LastError>,
    /// When a change is complete as far as can be told, if nothing more is heard of it. It is not read yet.
    pub(super) complete_at: Option<Instant>,
    /// Why nothing is done.
    pub(super) complaint: Complaint,
}

impl Signals {
    /// `changes` watches the configuration. The watchdog is fed for as long as the threads of the
    /// sockets are there as well.
    pub(super) fn new(
        changes: FileWatch,
        orders: mpsc::Receiver<Given>,
        pulses: Vec<Pulse>,
    ) -> std::io::Result<Self> {
        let others = pulses
            .into_iter()
            .map(|mut pulse| -> Box<dyn FnMut() -> bool> { Box::new(move || pulse.is_there()) });
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            watchdog: Watchdog::new(others),
            changes,
            orders,
            taken: Taken::default(),
            rejected: None,
            complete_at: None,
            complaint: Complaint::default(),
        })
    }

    /// What is begun now ends within `limit`, or something hangs; `None` for a wait that may be long.
    pub(super) fn wait_begins(&mut self, limit: Option<Duration>) {
        self.watchdog.wait_begins(limit);
    }

    /// What is heard next; of the configuration only if `changes_too`.
    pub(super) async fn next(&mut self, changes_too: bool) -> Told {
        let told = tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload,
            () = self.changes.changed(), if changes_too => Told::Changed,
            Some(given) = self.orders.recv() => Told::Order(given),
            never = self.watchdog.run() => match never {},
        };
        if matches!(told, Told::Changed) {
            self.changes.renew(); // before it is read
        }
        told
    }

    /// Does work that signals can wait for.
    pub(super) async fn undisturbed<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            never = self.watchdog.run() => match never {},
        }
    }
}
