//! Validation of the SVID that a peer presents in a TLS handshake: one pure function,
//! [`validate_peer`] (SPIFFE X509-SVID section 5; margo-now N6, N7, N10).
//!
//! The peer is known by its SPIFFE ID and the trust bundle alone. Host names, its address and other
//! names of the certificate prove nothing.

use std::fmt;

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::x509::X509Version;

use crate::algorithms::{Algorithms, key_is_allowed};
use crate::bundle::Bundle;
use crate::chain::{Chain, parse};
use crate::id::{SpiffeId, TrustDomain};
use crate::svid::{self, Path, validity};
use crate::svid_error::SvidError;
use crate::time::Timestamp;

/// The peer that a connection is meant for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpectedPeer {
    /// The one with this SPIFFE ID.
    SpiffeId(SpiffeId),
    /// Any WFM Client of the WFM with this SPIFFE ID: what a WFM expects.
    WfmClientOf(SpiffeId),
}

impl ExpectedPeer {
    /// The trust domain that it must be in.
    pub fn trust_domain(&self) -> &TrustDomain {
        match self {
            Self::SpiffeId(id) | Self::WfmClientOf(id) => id.trust_domain(),
        }
    }

    fn includes(&self, found: &SpiffeId) -> bool {
        match self {
            Self::SpiffeId(id) => found == id,
            Self::WfmClientOf(wfm) => found.wfm_of_client().is_some_and(|of_found| of_found == *wfm),
        }
    }
}

impl fmt::Display for ExpectedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SpiffeId(id) => id.fmt(f),
            Self::WfmClientOf(wfm) => write!(f, "a WFM Client of {wfm}"),
        }
    }
}

/// An SVID that passed [`validate_peer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSvid {
    /// The peer.
    pub spiffe_id: SpiffeId,
    /// First moment of the certificate's validity.
    pub not_before: Timestamp,
    /// Last moment at which it can be used: the first end among the certificate and the issuers
    /// that lead to an anchor.
    pub not_after: Timestamp,
}

/// Why a peer is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// What it presents is not an X.509-SVID: a certificate of the Web PKI, for one.
    #[error("the peer presents no usable SVID: {0}")]
    NoSvid(SvidError),
    /// It names another one, perhaps of another trust domain.
    #[error("the peer is {found}, not {expected}")]
    NotExpected {
        /// The peer that the connection was meant for.
        expected: ExpectedPeer,
        /// The SPIFFE ID in its certificate.
        found: SpiffeId,
    },
    /// The trust bundle does not vouch for it.
    #[error("the trust bundle of \"{}\" does not vouch for {found}: {why}", found.trust_domain())]
    NotTrusted {
        /// The SPIFFE ID in its certificate.
        found: SpiffeId,
        /// The rule that its chain breaks.
        why: Box<SvidError>,
    },
    /// The bundle is that of another trust domain than the expected peer's.
    #[error("{expected} cannot be validated: the only trust bundle is that of \"{bundle}\"")]
    NoBundle {
        /// The peer that the connection was meant for.
        expected: ExpectedPeer,
        /// The trust domain of the bundle.
        bundle: TrustDomain,
    },
    /// Its certificate, or an issuer that it needs, has expired.
    #[error("the SVID of {found} expired at {not_after}, and it is {now} here")]
    Expired {
        /// The SPIFFE ID in its certificate.
        found: SpiffeId,
        /// Last moment of validity.
        not_after: Timestamp,
        /// The clock of this device.
        now: Timestamp,
    },
    /// Its certificate, or an issuer that it needs, is not valid yet.
    #[error("the SVID of {found} becomes valid at {not_before}, and it is {now} here")]
    NotYetValid {
        /// The SPIFFE ID in its certificate.
        found: SpiffeId,
        /// First moment of validity.
        not_before: Timestamp,
        /// The clock of this device.
        now: Timestamp,
    },
}

impl PeerError {
    /// What to do, as an imperative without a full stop at its end.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoSvid(_) => {
                "Check that the address is that of the peer itself and of nothing that ends TLS in front of it"
            }
            Self::NotExpected { .. } => "Compare the address with what the operator of the peer says",
            Self::NotTrusted { .. } => {
                "Check that the peer has its SVID from the MIS of this trust domain, and that it sends its intermediates"
            }
            Self::NoBundle { .. } => "Connect to peers of the own trust domain only",
            Self::Expired { .. } => "Ask the operator of the peer to renew its SVID; compare the clocks",
            Self::NotYetValid { .. } => "Compare the clock of this device with that of the peer",
        }
    }
}

/// Validates the chain that a peer presented, leaf first, as of the wall clock's `now`.
///
/// Intermediates, further names that are no URIs, and an empty subject are accepted. The
/// algorithms are those of the released Margo (margo-now N7).
///
/// # Errors
/// [`PeerError`]: the first rule that the peer breaks. Its name comes before its trust: a WFM that
/// is not the expected one is reported as such, whatever issuer its certificate has.
pub fn validate_peer(
    chain: &[CertificateDer<'_>],
    expected: &ExpectedPeer,
    bundle: &Bundle,
    now: Timestamp,
) -> Result<PeerSvid, PeerError> {
    if bundle.trust_domain() != expected.trust_domain() {
        let bundle = bundle.trust_domain().clone();
        return Err(PeerError::NoBundle { expected: expected.clone(), bundle });
    }
    let chain = Chain::from_der(chain).map_err(PeerError::NoSvid)?;
    let leaf = parse(0, chain.leaf()).map_err(PeerError::NoSvid)?;
    let found = svid::only_spiffe_id(&leaf).map_err(PeerError::NoSvid)?;
    if !expected.includes(&found) {
        return Err(PeerError::NotExpected { expected: expected.clone(), found });
    }
    check_leaf(&leaf).map_err(PeerError::NoSvid)?;
    let (not_before, not_after) = validity(&leaf);
    if now > not_after {
        return Err(PeerError::Expired { found, not_after, now });
    }
    if now < not_before {
        return Err(PeerError::NotYetValid { found, not_before, now });
    }
    let path = Path {
        leaf: chain.leaf(),
        intermediates: chain.intermediates(),
        algorithms: Algorithms::Released,
        usage: match expected {
            ExpectedPeer::SpiffeId(_) => webpki::KeyUsage::server_auth(),
            ExpectedPeer::WfmClientOf(_) => webpki::KeyUsage::client_auth(),
        },
    };
    match svid::path_validates(path, bundle, now) {
        Ok(()) => {
            let not_after = svid::end_of_use(path, bundle, now, not_after);
            Ok(PeerSvid { spiffe_id: found, not_before, not_after })
        }
        Err(SvidError::IssuerExpired { not_after, .. }) => Err(PeerError::Expired { found, not_after, now }),
        Err(SvidError::FarFuture { not_before, .. }) => {
            Err(PeerError::NotYetValid { found, not_before, now })
        }
        Err(why) => Err(PeerError::NotTrusted { found, why: Box::new(why) }),
    }
}

/// Checks what the certificate of the peer itself says (SPIFFE X509-SVID sections 4 and 5.2).
fn check_leaf(leaf: &X509Certificate<'_>) -> Result<(), SvidError> {
    if leaf.version() != X509Version::V3 {
        return Err(SvidError::Version);
    }
    svid::extensions_are_sound(leaf)?;
    svid::names_are_critical(leaf)?;
    svid::leaf_may_authenticate(leaf)?;
    key_is_allowed(leaf.public_key(), Algorithms::Released)
}
