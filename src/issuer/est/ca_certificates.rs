//! The certificates that an EST server serves at `/cacerts`, and the chain that is assembled from
//! them (X60, X62).

use std::borrow::Cow;

use rustls_pki_types::CertificateDer;

use crate::hint::Hint;
use miaf_spiffe::Bundle;
use miaf_spiffe::svid::{Algorithms, CandidateIssuers, Chain, SvidError};
use miaf_spiffe::time::Timestamp;

/// Certificates of `/cacerts`: candidates for the path from an issued certificate to an anchor of the
/// trust bundle. They are no anchors themselves (X60).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaCertificates {
    candidates: CandidateIssuers,
    /// How many the server sent.
    served: usize,
}

impl CaCertificates {
    /// Takes the certificates of a response, at most [`CandidateIssuers::MAX`] of them.
    pub(super) fn new(served: &[&[u8]]) -> Self {
        Self { candidates: CandidateIssuers::from_bag(served.iter().copied()), served: served.len() }
    }

    /// Assembles the chain of an issued certificate: itself, then the certificates between it and an
    /// anchor of the bundle, which is left out. The result does not depend on their order in the
    /// response. The search is bounded, and takes seconds at the worst. The leaf is not validated: that
    /// is [`svid::validate`](miaf_spiffe::svid::validate).
    ///
    /// # Errors
    /// [`NoPath`]: none of them leads to an anchor at `now`.
    pub fn chain(&self, leaf: &CertificateDer<'_>, bundle: &Bundle, now: Timestamp) -> Result<Chain, NoPath> {
        let chain = self.candidates.chain(leaf, bundle, Algorithms::Released, now);
        chain.map_err(|why| NoPath { why, served: self.served })
    }
}

/// No path leads from an issued certificate over those of `/cacerts` to an anchor of the bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "with the {served} certificates that the EST server serves at /cacerts, the issued certificate \
     has no chain to the trust bundle: {why}"
)]
pub struct NoPath {
    /// Of the path that came closest.
    pub why: SvidError,
    /// How many certificates the server sent.
    pub served: usize,
}

impl NoPath {
    /// Whether a newer bundle, or other certificates of the server, could lead to another result.
    pub fn may_change(&self) -> bool {
        self.why.depends_on_bundle()
    }
}

impl Hint for NoPath {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let hint = match &self.why {
            SvidError::UnknownIssuer => {
                "Have the operator of the MIS serve each intermediate CA at /cacerts, and the CA above them in the \
                 trust bundle"
            }
            why => return Hint::hint(why).map(|hint| hint.into_owned().into()),
        };
        Some(hint.into())
    }
}
