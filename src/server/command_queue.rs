//! Admin commands on their way from the administration socket to the event loop.

use std::fmt;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::hint::Reason;
use miaf_client::api::IdentityName;
use miaf_spiffe::SpiffeId;
use miaf_spiffe::svid::Chain;

/// Commands that wait for the event loop at the same time. An operator sends one.
const QUEUE_LENGTH: usize = 4;
/// Time for the event loop to accept or reject a command.
const DECISION_LIMIT: Duration = Duration::from_secs(10);
/// Time for the event loop to execute a command that is decided by its execution: an action that is
/// in flight ends first.
const EXECUTION_LIMIT: Duration = Duration::from_secs(120);

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
    /// Make a certification request for an identity whose SVIDs an operator brings (N9). The
    /// decision is the request in PEM.
    Csr {
        /// The identity.
        identity: IdentityName,
        /// The SPIFFE ID that the request names.
        spiffe_id: Option<SpiffeId>,
    },
    /// Adopt a chain that an operator brings (N9).
    Install {
        /// The identity.
        identity: IdentityName,
        /// The chain, not validated yet.
        chain: Chain,
    },
    /// Use an enrollment token that an operator hands over (X31).
    Enroll {
        /// The identity.
        identity: IdentityName,
        /// The token, not parsed yet.
        token: SecretText,
    },
}

/// A text that is secret: it is wiped when it is dropped, and is not shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SecretText(Zeroizing<String>);

impl SecretText {
    pub(crate) fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText")
    }
}

impl AdminCommand {
    /// The command as on the command line.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Retry { new_key: None } => "retry",
            Self::Retry { new_key: Some(_) } => "retry --new-key",
            Self::Renew(_) => "renew",
            Self::Retire(_) => "retire",
            Self::Csr { .. } => "csr",
            Self::Install { .. } => "install",
            Self::Enroll { .. } => "enroll",
        }
    }

    /// Whether the decision about it is its outcome: it is made when the command is executed, and
    /// not before.
    pub(crate) fn is_decided_by_execution(&self) -> bool {
        matches!(self, Self::Csr { .. } | Self::Install { .. } | Self::Enroll { .. })
    }

    /// The identity that it is about.
    pub(crate) fn identity(&self) -> Option<&IdentityName> {
        match self {
            Self::Retry { new_key } => new_key.as_ref(),
            Self::Renew(identity)
            | Self::Retire(identity)
            | Self::Csr { identity, .. }
            | Self::Install { identity, .. }
            | Self::Enroll { identity, .. } => Some(identity),
        }
    }
}

/// What the event loop says of a command that it accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// What will happen, as a sentence.
    Accepted(String),
    /// The certification request, in PEM.
    Csr(String),
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
    decision: oneshot::Sender<Result<Decision, CommandError>>,
}

impl QueuedCommand {
    /// Accepts the command; `detail` tells the caller what will happen. Returns `false` if the
    /// caller has left: it takes the command for rejected.
    #[must_use]
    pub(crate) fn accept(self, detail: String) -> bool {
        self.decide(Ok(Decision::Accepted(detail)))
    }

    /// Sends the decision. Returns `false` if the caller has left.
    pub(crate) fn decide(self, decision: Result<Decision, CommandError>) -> bool {
        self.decision.send(decision).is_ok()
    }

    /// Rejects the command.
    pub(crate) fn reject(self, reason: CommandError) {
        let _ = self.decide(Err(reason)); // a caller that has left needs no decision
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

    /// Sends a command and waits for the decision: until it is accepted, or executed where the
    /// decision is the outcome.
    ///
    /// # Errors
    /// [`CommandError`].
    pub(super) async fn send(&self, command: AdminCommand) -> Result<Decision, CommandError> {
        let limit = if command.is_decided_by_execution() { EXECUTION_LIMIT } else { DECISION_LIMIT };
        let (decision, decided) = oneshot::channel();
        self.0.try_send(QueuedCommand { command, decision }).map_err(|_| CommandError::Busy)?;
        match timeout(limit, decided).await {
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
        let decision = waiting.next().unwrap().await.unwrap();
        assert_eq!(decision, Ok(Decision::Accepted("it happens".into())));
        waiting.next().unwrap().abort();
        tokio::task::yield_now().await;
        assert!(!receiver.recv().await.unwrap().accept(String::new()), "its caller has left");
    }
}
