//! The SPIFFE documents this agent handles, as types that cannot be wrong: the [`SpiffeId`], the trust
//! [`Bundle`] and the judgement of an [`X509Svid`](svid::X509Svid). Pure: values in, values out, no I/O.

mod bundle;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod id;
pub mod svid;

pub use bundle::{
    AnchorFacts, Bundle, BundleDocument, BundleError, BundleKey, MAX_ANCHORS, Remark, SequenceVerdict,
    judge_sequence,
};
pub use id::{SpiffeId, SpiffeIdError, TrustDomain};
