//! What leads from the sockets to the agent.

use std::sync::Arc;

use tokio::sync::watch;

use super::Snapshot;
use super::metrics::Counters;
use super::order::Orders;
use super::signing::Signing;
use super::watch::Change;

/// What leads from the sockets to the agent.
#[derive(Clone, Debug)]
pub struct Lines {
    /// What there is to tell.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// What changes.
    pub changes: watch::Receiver<Arc<Change>>,
    /// What is to be done.
    pub orders: Orders,
    /// What is to be signed.
    pub signing: Signing,
    /// What is counted.
    pub counters: Arc<Counters>,
}
