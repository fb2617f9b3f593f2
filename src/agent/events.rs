//! Events from outside the lifecycle: signals, changes of the configuration, and admin commands.
//! While the main loop waits for them, the watchdog is fed.

use std::future::{pending, poll_fn};
use std::path::PathBuf;
use std::task::Poll;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::admin::AcceptedCommands;
use super::reporting::RepeatFilter;
use crate::platform::inotify::FileWatch;
use crate::platform::systemd::Watchdog;
use crate::problem::LastError;
use crate::server::command_queue::QueuedCommand;
use crate::server::runtime::Pulse;

/// An event from outside.
#[derive(Debug)]
pub(super) enum ExternalEvent {
    /// SIGTERM or SIGINT.
    Shutdown,
    /// SIGHUP: the configuration is to be read.
    Reload,
    /// A file of the configuration has changed. More changes may follow.
    ConfigurationChanged,
    /// A file that an operator supplies an identity with, or the one with the trust bundle, has changed.
    InputChanged,
    /// An admin command, whose client waits for the response.
    Command(QueuedCommand),
}

/// Sources of external events, and what is queued of them.
pub(super) struct ExternalEvents {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    watchdog: Watchdog,
    changes: FileWatch,
    /// Files that operators supply identities with, and the one with the trust bundle.
    inputs: Vec<FileWatch>,
    commands: mpsc::Receiver<QueuedCommand>,
    /// Accepted commands that are not executed yet.
    pub(super) queue: AcceptedCommands,
    /// Why the configuration on disk is not in use, while the one before it is.
    pub(super) rejected: Option<LastError>,
    /// An operator's file has changed, and is to be read. Until then no further change is reported.
    inputs_changed: bool,
    reads: ReadBudget,
    /// When a change counts as complete, unless another one follows. It is not read before.
    pub(super) complete_at: Option<Instant>,
    /// What was logged last of a state in which nothing is done.
    pub(super) repeats: RepeatFilter,
}

impl ExternalEvents {
    /// `changes` watches the configuration. The watchdog is fed for as long as the threads of the
    /// sockets run as well.
    pub(super) fn new(
        changes: FileWatch,
        commands: mpsc::Receiver<QueuedCommand>,
        pulses: Vec<Pulse>,
    ) -> std::io::Result<Self> {
        let others = pulses
            .into_iter()
            .map(|mut pulse| -> Box<dyn FnMut() -> bool> { Box::new(move || pulse.is_alive()) });
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            watchdog: Watchdog::new(others),
            changes,
            inputs: Vec::new(),
            commands,
            queue: AcceptedCommands::default(),
            rejected: None,
            inputs_changed: false,
            reads: ReadBudget::new(Instant::now()),
            complete_at: None,
            repeats: RepeatFilter::default(),
        })
    }

    /// Watches these files from now on, in place of those before.
    pub(super) fn watch_inputs(&mut self, files: Vec<PathBuf>) {
        self.inputs = files.into_iter().map(FileWatch::on_file).collect();
    }

    /// Tells the watchdog that what begins now ends within `limit`, or hangs; `None` for a wait
    /// that may be long.
    pub(super) fn wait_begins(&mut self, limit: Option<Duration>) {
        self.watchdog.wait_begins(limit);
    }

    /// Waits for the next event; for a change of the configuration only `with_changes`.
    pub(super) async fn next(&mut self, with_changes: bool) -> ExternalEvent {
        let event = tokio::select! {
            _ = self.terminate.recv() => ExternalEvent::Shutdown,
            _ = self.interrupt.recv() => ExternalEvent::Shutdown,
            _ = self.hangup.recv() => ExternalEvent::Reload,
            () = self.changes.changed(), if with_changes => ExternalEvent::ConfigurationChanged,
            () = any_changed(&mut self.inputs), if !self.inputs_changed => ExternalEvent::InputChanged,
            Some(given) = self.commands.recv() => ExternalEvent::Command(given),
            never = self.watchdog.run() => match never {},
        };
        match event {
            ExternalEvent::ConfigurationChanged => self.changes.renew(), // before it is read
            ExternalEvent::InputChanged => {
                self.inputs.iter_mut().for_each(FileWatch::renew);
                self.inputs_changed = true;
            }
            _ => {}
        }
        event
    }

    /// Whether operators' files are to be read now. They are then read, and count as unchanged.
    pub(super) fn takes_changed_inputs(&mut self) -> bool {
        let is_due = self.inputs_changed && self.reads.take(Instant::now());
        self.inputs_changed &= !is_due;
        is_due
    }

    /// Time until operators' files are to be read. `None`: nothing has changed in them.
    pub(super) fn changed_inputs_due_in(&self) -> Option<Duration> {
        self.inputs_changed.then(|| self.reads.next_in(Instant::now()))
    }

    /// Does work that external events can wait for.
    pub(super) async fn undisturbed<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            never = self.watchdog.run() => match never {},
        }
    }
}

/// The reads of operators' files that are left. Each reads the files of all identities and that of the
/// trust bundle, checks the factory credential, and may have the bundle fetched: who may write one of
/// these files must not cause as many of them as they like.
#[derive(Debug)]
struct ReadBudget {
    left: u32,
    refilled_at: Instant,
}

impl ReadBudget {
    /// An operator replaces a few files, one after the other.
    const MOST: u32 = 16;
    /// Interval at which one more is allowed.
    const REFILL: Duration = Duration::from_secs(10);

    fn new(now: Instant) -> Self {
        Self { left: Self::MOST, refilled_at: now }
    }

    /// Whether one is allowed now. It is then used up.
    fn take(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.refilled_at);
        let more = u32::try_from(since.as_secs() / Self::REFILL.as_secs()).unwrap_or(u32::MAX);
        if self.left.saturating_add(more) >= Self::MOST {
            (self.left, self.refilled_at) = (Self::MOST, now);
        } else {
            self.left += more;
            self.refilled_at += Self::REFILL * more;
        }
        let is_allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_allowed
    }

    /// Time until one is allowed.
    fn next_in(&self, now: Instant) -> Duration {
        match self.left {
            0 => Self::REFILL.saturating_sub(now.saturating_duration_since(self.refilled_at)),
            _ => Duration::ZERO,
        }
    }
}

/// Waits until one of the files has changed; for ever where there is none.
async fn any_changed(files: &mut [FileWatch]) {
    let mut changes: Vec<_> = files.iter_mut().map(|file| Box::pin(file.changed())).collect();
    if changes.is_empty() {
        return pending().await;
    }
    poll_fn(|context| {
        let is_ready = changes.iter_mut().any(|change| change.as_mut().poll(context).is_ready());
        if is_ready { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_of_operators_files_are_bounded() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut reads = ReadBudget::new(begin);
        let allowed = |reads: &mut ReadBudget, now| (0..1000).filter(|_| reads.take(now)).count();
        assert_eq!(allowed(&mut reads, begin), 16, "a burst");
        assert_eq!(reads.next_in(at(4)), Duration::from_secs(6));
        assert!(!reads.take(at(9)));
        assert_eq!(reads.next_in(at(10)), Duration::ZERO);
        assert_eq!(allowed(&mut reads, at(10)), 1);
        // In a flood, one each ten seconds.
        let flood = (101..=3700).map(|tenth| begin + Duration::from_millis(100 * tenth));
        assert_eq!(flood.filter(|now| reads.take(*now)).count(), 36);
        assert_eq!(allowed(&mut reads, at(100_000)), 16, "and no more than a burst after a rest");
    }
}
