//! Admin commands on their way from the administration socket to the event loop.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::hint::Reason;
use miaf_client::api::IdentityName;

/// Commands that wait for the event loop at the same time. An operator sends one.
const QUEUE_LENGTH: usize = 4;
/// Time for the event loop to accept or reject a command.
const DECISION_LIMIT: Duration = Duration::from_secs(10);

/// A command of an administrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AdminCommand {
    /// Try again now what was refused or is being waited for, unless a retry-after delay forbids it
    /// (miaf-v0 P2, E8); accept the trust bundle that is served (miaf-v0 B5); take this device's
    /// clock as right.
    Retry {
        /// The identity that is to enroll with a new key, where its key is lost.
        new_key: Option<IdentityName>,
    },
    /// Renew an identity now.
    Renew(IdentityName),
    /// Retire an identity: store it, its keys and documents apart, withdraw what was published, and
    /// start anew under the configuration.
    Retire(IdentityName),
}

impl AdminCommand {
    /// The command as on the command line.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Retry { new_key: None } => "retry",
            Self::Retry { new_key: Some(_) } => "retry --new-key",
            Self::Renew(_) => "renew",
            Self::Retire(_) => "retire",
        }
    }

    /// The identity that it is about.
    pub(crate) fn identity(&self) -> Option<&IdentityName> {
        match self {
            Self::Retry { new_key } => new_key.as_ref(),
            Self::Renew(identity) | Self::Retire(identity) => Some(identity),
        }
    }
}

/// The reason why a command is rejected. Nothing happens then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CommandError {
    /// It does not apply in the present state, and why.
    NotApplicable(Reason),
    /// Too many commands wait already, or the event loop does not respond.
    Busy,
}

/// A command, and the caller that waits for the decision about it.
#[derive(Debug)]
pub(crate) struct QueuedCommand {
    /// The command.
    pub(crate) command: AdminCommand,
    decision: oneshot::Sender<Result<String, CommandError>>,
}

impl QueuedCommand {
    /// Accepts the command; `detail` tells the caller what will happen. Returns `false` if the
    /// caller has left: it takes the command for rejected.
    #[must_use]
    pub(crate) fn accept(self, detail: String) -> bool {
        self.decision.send(Ok(detail)).is_ok()
    }

    /// Rejects the command.
    pub(crate) fn reject(self, reason: CommandError) {
        let _ = self.decision.send(Err(reason)); // a caller that has left needs no decision
    }
}

/// Queue of commands for the event loop. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct CommandQueue(mpsc::Sender<QueuedCommand>);

impl CommandQueue {
    /// A queue, and its end at the event loop.
    pub(crate) fn new() -> (Self, mpsc::Receiver<QueuedCommand>) {
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        (Self(sender), receiver)
    }

    /// Sends a command and waits until it is accepted, not until it is executed. Returns what will
    /// happen.
    ///
    /// # Errors
    /// [`CommandError`].
    pub(super) async fn send(&self, command: AdminCommand) -> Result<String, CommandError> {
        let (decision, decided) = oneshot::channel();
        self.0.try_send(QueuedCommand { command, decision }).map_err(|_| CommandError::Busy)?;
        match timeout(DECISION_LIMIT, decided).await {
            Ok(Ok(decision)) => decision,
            _ => Err(CommandError::Busy), // the agent is shutting down, or hangs
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn command_without_a_decision_is_rejected() {
        let (queue, receiver) = CommandQueue::new();
        drop(receiver);
        assert_eq!(queue.send(AdminCommand::Renew(IdentityName::DEVICE)).await, Err(CommandError::Busy));

        let (queue, mut receiver) = CommandQueue::new();
        let waiting: Vec<_> = (0..QUEUE_LENGTH)
            .map(|_| {
                tokio::spawn({
                    let queue = queue.clone();
                    async move { queue.send(AdminCommand::Renew(IdentityName::DEVICE)).await }
                })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(
            queue.send(AdminCommand::Renew(IdentityName::DEVICE)).await,
            Err(CommandError::Busy),
            "too many"
        );
        let mut waiting = waiting.into_iter();
        assert!(receiver.recv().await.unwrap().accept("it happens".into()));
        assert_eq!(waiting.next().unwrap().await.unwrap(), Ok("it happens".into()));
        waiting.next().unwrap().abort();
        tokio::task::yield_now().await;
        assert!(!receiver.recv().await.unwrap().accept(String::new()), "its caller has left");
    }
}
