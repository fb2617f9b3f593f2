//! The documents of SPIFFE as types that cannot be wrong: the [`SpiffeId`], the trust [`Bundle`], and the
//! validation of an [`X509Svid`](svid::X509Svid); with what reading them takes: JSON and PEM of bounded size,
//! text of others made harmless, points in time. Pure: values in, values out, no I/O and no clock.

// Tests may break off where they please.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod bundle;
pub mod digest;
#[cfg(any(test, fuzzing, feature = "testing"))]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
pub mod fuzzing;
mod id;
pub mod json;
pub mod pem;
pub mod svid;
#[cfg(any(test, fuzzing, feature = "testing"))]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
pub mod testing;
pub mod text;
pub mod time;

pub use bundle::{
    AnchorFacts, Bundle, BundleDocument, BundleError, BundleKey, MAX_ANCHORS, Remark, SequenceVerdict,
    judge_sequence,
};
pub use id::{SpiffeId, SpiffeIdError, TrustDomain};
