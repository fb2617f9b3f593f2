//! The certificates that an EST server serves at `/cacerts`, and the chain that is assembled from
//! them (X60, X62).

use std::borrow::Cow;
use std::fmt;

use rustls_pki_types::CertificateDer;

use crate::hint::Hint;
use miaf_spiffe::svid::{self, Algorithms, CandidateIssuers, Chain, SvidError};
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::time::Timestamp;
use miaf_spiffe::{Bundle, BundleContent};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

/// Characters of a subject in a message.
const MAX_SUBJECT: usize = 128;

/// Certificates of `/cacerts`: candidates for the path from an issued certificate to an anchor of the
/// trust bundle. They are no anchors themselves (X60).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaCertificates {
    candidates: CandidateIssuers,
    /// All that the server sent, in an order of their own.
    served: Vec<CertificateDer<'static>>,
}

impl CaCertificates {
    /// Takes the certificates of a response, at most [`CandidateIssuers::MAX`] of them.
    pub(super) fn new(served: &[&[u8]]) -> Self {
        let candidates = CandidateIssuers::from_bag(served.iter().copied());
        let mut served: Vec<_> = served.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        served.sort_unstable_by(|one, other| one.as_ref().cmp(other.as_ref()));
        Self { candidates, served }
    }

    /// Checks, before anything is issued, that they may lead from it to an anchor of the bundle at `now`
    /// (X59). The search is bounded, and takes seconds at the worst.
    ///
    /// # Errors
    /// [`OtherAuthority`]: what they issue would have no chain.
    pub fn check_before_issuance(
        &self,
        bundle: &BundleContent,
        now: Timestamp,
    ) -> Result<(), OtherAuthority> {
        let served = self.served.iter().map(CertificateDer::as_ref);
        let Err(why) = svid::may_lead_to(served, bundle, Algorithms::Released, now) else { return Ok(()) };
        let readable = self.served.iter().filter_map(|der| X509Certificate::from_der(der).ok());
        let (mut own, mut first) = (None, None);
        for (_, certificate) in readable {
            let subject = || Excerpt::of(certificate.subject(), MAX_SUBJECT);
            if own.is_none() && certificate.subject().as_raw() == certificate.issuer().as_raw() {
                own = Some(subject());
            }
            first.get_or_insert_with(subject);
        }
        let anchor = bundle.anchors().first().and_then(|der| {
            let (_, certificate) = X509Certificate::from_der(der).ok()?;
            Some(Excerpt::of(certificate.subject(), MAX_SUBJECT))
        });
        let (served, anchors) = (self.served.len(), bundle.anchors().len());
        Err(OtherAuthority { authority: own.or(first), served, anchor, anchors, why })
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
        chain.map_err(|why| NoPath { why, served: self.served.len() })
    }
}

/// The CA of an EST server has nothing to do with the bundle, or may not issue SVIDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherAuthority {
    /// The subject of a root among what the server sent, or else of any.
    pub authority: Option<Excerpt>,
    /// How many certificates the server sent.
    pub served: usize,
    /// The subject of the first anchor of the bundle.
    pub anchor: Option<Excerpt>,
    /// How many anchors the bundle has.
    pub anchors: usize,
    /// [`SvidError::UnknownIssuer`], or why the CA may not issue.
    pub why: SvidError,
}

impl OtherAuthority {
    /// Whether the CA is one of the bundle, or issued by one.
    pub fn is_known(&self) -> bool {
        self.why != SvidError::UnknownIssuer
    }
}

impl std::error::Error for OtherAuthority {}

impl Hint for OtherAuthority {
    fn hint(&self) -> Option<Cow<'_, str>> {
        if let Some(hint) = self.why.hint() {
            return Some(hint.into());
        }
        let hint = "Show this to the operator of the MIS, who has to issue by another CA; the agent tries again by itself";
        self.is_known().then_some(hint.into())
    }
}

impl fmt::Display for OtherAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { authority, served, anchor, anchors, why } = self;
        if self.is_known() {
            return write!(
                f,
                "a CA that it serves at /cacerts, and that leads to the trust bundle, is refused: {why}"
            );
        }
        write!(f, "none of the certificates at /cacerts ({served}")?;
        if let Some(authority) = authority {
            write!(f, ", of the CA \"{authority}\"")?;
        }
        write!(f, ") leads to a CA of the trust bundle, which has {anchors}")?;
        match anchor {
            Some(anchor) if *anchors > 1 => write!(f, ", the first of them \"{anchor}\""),
            Some(anchor) => write!(f, ": \"{anchor}\""),
            None => Ok(()),
        }
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
