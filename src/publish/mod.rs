//! What the agent tells local programs, as values and as files: the [`Snapshot`], the [`status`] document, and the
//! published [`files`]. It does not reach into the lifecycle; the [`server`](crate::server) answers from it.

pub mod broadcast;
pub mod files;
mod snapshot;
pub mod status;

pub use snapshot::{CONFIGURATION, HeldBundle, Identity, Snapshot};
