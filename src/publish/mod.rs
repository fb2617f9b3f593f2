//! What the agent publishes to local programs, as values and as files: the [`Snapshot`], the
//! [`status`] document, and the published [`files`]. It does not reach into the lifecycle; the
//! [`server`](crate::server) responds from it.

pub mod broadcast;
pub(crate) mod files;
pub(crate) mod released_client;
mod snapshot;
pub mod status;

pub(crate) use snapshot::{CurrentBundle, IdentitySnapshot, ShownError, Snapshot, SvidAndKey};
