//! Word to the service manager (sd_notify(3)). Without one, nothing happens.

use sd_notify::NotifyState;

/// The sockets listen: the service is up, whatever the state of the identity.
pub fn ready() {
    send(NotifyState::Ready);
}

/// One line for `systemctl status`.
pub fn status(line: &str) {
    send(NotifyState::Status(line));
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
