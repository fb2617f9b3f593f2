//! What the agent hears from outside while it waits: signals, changes to its configuration, and orders. Meanwhile the
//! watchdog is fed: all of this belongs to the main loop alone.

use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::orders::Taken;
use crate::deliver::order::Given;
use crate::system::service::Watchdog;
use crate::system::watch::FolderWatch;

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

/// Signals, the folders of the configuration, orders, and the watchdog.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    watchdog: Watchdog,
    folders: [PathBuf; 2],
    changes: FolderWatch,
    orders: mpsc::Receiver<Given>,
    /// Orders that were taken and are not carried out yet.
    pub(super) taken: Taken,
}

impl Signals {
    /// `folders` are those that the configuration is in. They are watched from now on.
    pub(super) fn new(folders: [PathBuf; 2], orders: mpsc::Receiver<Given>) -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            watchdog: Watchdog::new(),
            changes: FolderWatch::on(&folders),
            folders,
            orders,
            taken: Taken::default(),
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
            never = self.watchdog.keep_fed() => match never {},
        };
        if matches!(told, Told::Changed) {
            // Before it is read: no change falls between the two.
            self.changes = FolderWatch::on(&self.folders);
        }
        told
    }

    /// Does work that signals can wait for.
    pub(super) async fn undisturbed<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            never = self.watchdog.keep_fed() => match never {},
        }
    }
}
