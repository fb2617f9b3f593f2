//! What leads from the sockets to the agent.

use std::sync::Arc;

use tokio::sync::watch;

use crate::publish::Snapshot;
use crate::publish::broadcast::{Change, Publication};
use crate::server::admin::Orders;
use crate::server::audit::{KeyUses, Refusals, Use};
use crate::server::heap::HeapTrimmer;
use crate::server::metrics::Counters;
use crate::server::signing_queue::Signing;
use crate::server::turns::Turns;

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
    /// Who has been refused something, as far as it is on record.
    pub refusals: Arc<Refusals>,
    /// Signatures for local programs, and which of them are on record.
    pub signatures: Arc<KeyUses>,
    /// Keys that have been given out, and which of them are on record.
    pub keys_given: Arc<KeyUses>,
    /// Returns memory after a crowd of clients.
    pub heap: Arc<HeapTrimmer>,
    /// To look a user up, and to open the seal of a software key, can take long: so many at once, and of one user one.
    pub key_readers: Arc<Turns>,
    /// What is counted.
    pub counters: Arc<Counters>,
}

/// How many read a key at once, for callers of the Workload API.
const KEY_READERS: usize = 2;

impl Lines {
    /// To what is published there, and to whoever takes these orders.
    pub fn new(publication: &Publication, orders: Orders) -> Self {
        Self {
            snapshots: publication.snapshots(),
            changes: publication.changes(),
            orders,
            signing: Signing::default(),
            refusals: Arc::default(),
            signatures: Arc::new(KeyUses::new(Use::Signature)),
            keys_given: Arc::new(KeyUses::new(Use::Key)),
            heap: Arc::default(),
            key_readers: Arc::new(Turns::new(KEY_READERS)),
            counters: Arc::default(),
        }
    }
}
