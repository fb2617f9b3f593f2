//! The service manager: what it is told (sd_notify(3)), the sockets it passes (sd_listen_fds(3)), and its watchdog
//! (sd_watchdog_enabled(3)). Without one, nothing happens.

use std::convert::Infallible;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use crate::text::Excerpt;
use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

/// Characters of a status line: a SPIFFE ID has 2048 at most.
const MAX_STATUS: usize = 2200;

/// The sockets listen: the service is up, whatever the state of the identity.
pub fn ready() {
    send(NotifyState::Ready);
}

/// One line for `systemctl status`.
pub fn status(line: &str) {
    send(NotifyState::Status(&Excerpt::of(line, MAX_STATUS)));
}

/// The service ends.
pub fn stopping() {
    send(NotifyState::Stopping);
}

fn send(state: NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::debug!(error = %e, "the service manager could not be told");
    }
}

/// A listening socket, and its `FileDescriptorName=`.
#[derive(Debug)]
pub struct PassedSocket {
    /// What it is for.
    pub name: String,
    /// The socket.
    pub listener: UnixListener,
}

/// The listening Unix sockets that were passed to this process. To be asked once, and before any thread is started: the
/// variables that tell are taken out of the environment.
pub fn passed_sockets() -> Vec<PassedSocket> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut passed = ListenFd::from_env();
    let mut names = names.split(':');
    (0..passed.len())
        .filter_map(|at| {
            let name = names.next().unwrap_or_default().to_owned();
            match passed.take_unix_listener(at) {
                Ok(listener) => Some(PassedSocket { name, listener: listener? }),
                Err(e) => {
                    tracing::error!(name, "what was passed to the agent is no listening Unix socket: {e}");
                    None
                }
            }
        })
        .collect()
}

/// Tells the service manager in time that the main loop is alive, and stops telling it when it is not: then the agent is
/// ended and started anew.
pub struct Watchdog {
    /// `None` where nobody watches.
    ticks: Option<Interval>,
    /// What the main loop waits for must have happened by then.
    deadline: Option<Instant>,
    /// Says whether another thread of the agent is there.
    others: Vec<Box<dyn FnMut() -> bool>>,
}

impl std::fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watchdog").field("ticks", &self.ticks).field("deadline", &self.deadline).finish()
    }
}

impl Watchdog {
    /// As the environment tells. `others` say whether other threads of the agent are there.
    pub fn new(others: impl IntoIterator<Item = Box<dyn FnMut() -> bool>>) -> Self {
        let ticks = sd_notify::watchdog_enabled().map(|limit| {
            // Half of it, as sd_watchdog_enabled(3) advises.
            let mut ticks = interval((limit / 2).max(Duration::from_millis(1)));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        Self { ticks, deadline: None, others: others.into_iter().collect() }
    }

    /// The main loop begins to wait. `limit` is how long this may take at most; `None` for a wait that may be long.
    pub fn wait_begins(&mut self, limit: Option<Duration>) {
        self.deadline = limit.map(|limit| Instant::now() + limit);
    }

    /// Keeps the service manager content for as long as it is polled and the wait is not overdue. Never ends.
    pub async fn keep_fed(&mut self) -> Infallible {
        loop {
            if self.is_content().await {
                send(NotifyState::Watchdog);
            } else {
                tracing::error!(
                    "what the agent does hangs: the service manager will end it and start it anew"
                );
            }
        }
    }

    /// When it is time to feed it, whether there is reason to.
    async fn is_content(&mut self) -> bool {
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
    async fn a_wait_that_is_overdue_is_not_fed_and_one_without_a_limit_always() {
        let ticks = Some(interval(Duration::from_millis(1)));
        let mut watchdog = Watchdog { ticks, deadline: None, others: Vec::new() };
        assert!(watchdog.is_content().await);
        watchdog.wait_begins(Some(Duration::from_millis(50)));
        assert!(watchdog.is_content().await);
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert!(!watchdog.is_content().await);
        watchdog.wait_begins(None);
        assert!(watchdog.is_content().await);
        watchdog.others.push(Box::new(|| false));
        assert!(!watchdog.is_content().await, "another thread hangs");
    }
}
