//! SPIFFE documents as types that cannot be wrong: the [`SpiffeId`], the trust [`Bundle`], and the
//! validation of an [`X509Svid`](svid::X509Svid); with what reading them takes: JSON and PEM of
//! bounded size, text from outside made harmless, points in time. Pure: values in, values out, no
//! I/O and no clock.

// A test may panic.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod algorithms;
mod assembly;
mod bundle;
mod chain;
pub mod digest;
mod encoding;
#[cfg(any(test, fuzzing, feature = "testing"))]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
pub mod fuzzing;
mod id;
pub mod json;
pub mod peer;
pub mod pem;
pub mod svid;
mod svid_error;
#[cfg(any(test, fuzzing, feature = "testing"))]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
pub mod testing;
pub mod text;
pub mod time;

pub use bundle::{
    AnchorFacts, Bundle, BundleContent, BundleDocument, BundleError, BundleKey, BundleWarning,
    MaybeNamedBundle, SequenceCheck, check_sequence,
};
pub use id::{MargoName, NameKind, SpiffeId, SpiffeIdError, TrustDomain};
