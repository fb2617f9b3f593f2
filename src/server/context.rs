//! Handles that the socket server needs from the agent.

use std::sync::Arc;

use tokio::sync::watch;

use crate::publish::Snapshot;
use crate::publish::broadcast::{Broadcaster, StateChange};
use crate::server::audit::{KeyUse, KeyUseLog, RefusalLog};
use crate::server::command_queue::CommandQueue;
use crate::server::heap::HeapTrimmer;
use crate::server::metrics::Counters;
use crate::server::signing_queue::SigningQueue;
use crate::server::user_semaphore::UserSemaphore;

/// Handles that the socket server needs from the agent. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct ServerContext {
    /// The latest snapshot, for responses.
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The latest change, for subscribers.
    pub(super) changes: watch::Receiver<Arc<StateChange>>,
    /// Admin commands to the event loop.
    pub(super) commands: CommandQueue,
    /// Signatures for local programs.
    pub(crate) signing: SigningQueue,
    /// Limits how often refusals are recorded in the audit log.
    pub(super) refusals: Arc<RefusalLog>,
    /// Records signatures for local programs in the audit log.
    pub(crate) signatures: Arc<KeyUseLog>,
    /// Records software keys that are sent to local programs in the audit log.
    pub(crate) keys_sent: Arc<KeyUseLog>,
    /// Returns memory after a burst of clients.
    pub(crate) heap: Arc<HeapTrimmer>,
    /// Permits for calls that may block a thread for long: a user is looked up, or a software key
    /// is unsealed.
    pub(super) key_readers: Arc<UserSemaphore>,
    /// Counters for `/metrics`.
    pub(super) counters: Arc<Counters>,
}

/// Callers of the Workload API for whom a key is read at the same time.
const MAX_KEY_READERS: usize = 2;

impl ServerContext {
    /// A context whose responses come from `broadcaster`, and whose admin commands go to
    /// `commands`.
    pub(crate) fn new(broadcaster: &Broadcaster, commands: CommandQueue) -> Self {
        Self {
            snapshots: broadcaster.snapshots(),
            changes: broadcaster.changes(),
            commands,
            signing: SigningQueue::default(),
            refusals: Arc::default(),
            signatures: Arc::new(KeyUseLog::new(KeyUse::Signature)),
            keys_sent: Arc::new(KeyUseLog::new(KeyUse::KeySent)),
            heap: Arc::default(),
            key_readers: Arc::new(UserSemaphore::new(MAX_KEY_READERS)),
            counters: Arc::default(),
        }
    }
}
