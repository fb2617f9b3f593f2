//! The service manager: notifications to it (sd_notify(3)), the sockets it passes
//! (sd_listen_fds(3)), and its watchdog (sd_watchdog_enabled(3)). Without a service manager,
//! nothing happens.

use std::convert::Infallible;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use listenfd::ListenFd;
use miaf_spiffe::text::Excerpt;
use sd_notify::NotifyState;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

/// Limit of characters of a status line: a SPIFFE ID has 2048 at most.
const MAX_STATUS: usize = 2200;

/// Notifies that the sockets listen: the service is up, whatever the state of the identity.
pub(crate) fn ready() {
    send(NotifyState::Ready);
}

/// Sets the line for `systemctl status`.
pub(crate) fn status(line: &str) {
    send(NotifyState::Status(&Excerpt::of(line, MAX_STATUS)));
}

/// Notifies that the service ends.
pub(crate) fn stopping() {
    send(NotifyState::Stopping);
}

fn send(state: NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::debug!(error = %e, "service manager could not be notified");
    }
}

/// A listening socket, and its `FileDescriptorName=`.
#[derive(Debug)]
pub struct PassedSocket {
    /// Its name, which says what it is for.
    pub name: String,
    /// The socket.
    pub listener: UnixListener,
}

/// The listening Unix sockets that were passed to this process. To be called once, and before any
/// thread is started: it removes the variables from the environment.
pub(crate) fn passed_sockets() -> Vec<PassedSocket> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut passed = ListenFd::from_env();
    let mut names = names.split(':');
    (0..passed.len())
        .filter_map(|at| {
            let name = names.next().unwrap_or_default().to_owned();
            match passed.take_unix_listener(at) {
                Ok(listener) => Some(PassedSocket { name, listener: listener? }),
                Err(e) => {
                    tracing::error!(name, "passed descriptor is no listening Unix socket: {e}");
                    None
                }
            }
        })
        .collect()
}

/// Notifies the watchdog of the service manager while the event loop is alive. When it is not, the
/// notifications stop, and the service manager restarts the agent.
pub(crate) struct Watchdog {
    /// `None` without a watchdog.
    ticks: Option<Interval>,
    /// Deadline of the current wait of the event loop.
    deadline: Option<Instant>,
    /// Whether each of the other threads is alive.
    others: Vec<Box<dyn FnMut() -> bool>>,
}

impl std::fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watchdog").field("ticks", &self.ticks).field("deadline", &self.deadline).finish()
    }
}

impl Watchdog {
    /// Creates a watchdog from the environment. `others` return whether other threads of the agent
    /// are alive.
    pub(crate) fn new(others: impl IntoIterator<Item = Box<dyn FnMut() -> bool>>) -> Self {
        let ticks = sd_notify::watchdog_enabled().map(|limit| {
            // Half of it, as sd_watchdog_enabled(3) advises.
            let mut ticks = interval((limit / 2).max(Duration::from_millis(1)));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        Self { ticks, deadline: None, others: others.into_iter().collect() }
    }

    /// Starts a wait of the event loop, of at most `limit`; `None` for a wait of any length.
    pub(crate) fn wait_begins(&mut self, limit: Option<Duration>) {
        self.deadline = limit.map(|limit| Instant::now() + limit);
    }

    /// Notifies the watchdog for as long as it is polled and the wait is not overdue. Never ends.
    pub(crate) async fn run(&mut self) -> Infallible {
        loop {
            if self.is_alive().await {
                send(NotifyState::Watchdog);
            } else {
                tracing::error!("agent hangs; the service manager will restart it");
            }
        }
    }

    /// Waits until the next notification is due, and returns whether to send it.
    async fn is_alive(&mut self) -> bool {
        let Some(ticks) = &mut self.ticks else { return std::future::pending().await };
        ticks.tick().await;
        self.deadline.is_none_or(|deadline| Instant::now() < deadline)
            && self.others.iter_mut().all(|is_there| is_there())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn watchdog_is_not_fed_while_a_wait_is_overdue() {
        let ticks = Some(interval(Duration::from_millis(1)));
        let mut watchdog = Watchdog { ticks, deadline: None, others: Vec::new() };
        assert!(watchdog.is_alive().await);
        watchdog.wait_begins(Some(Duration::from_millis(50)));
        assert!(watchdog.is_alive().await);
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert!(!watchdog.is_alive().await);
        watchdog.wait_begins(None);
        assert!(watchdog.is_alive().await);
        watchdog.others.push(Box::new(|| false));
        assert!(!watchdog.is_alive().await, "another thread hangs");
    }
}
