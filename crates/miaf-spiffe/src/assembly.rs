//! Assembly of a chain from certificates in no order, as an EST server serves them (miaf-est X60,
//! X62). The path is found by the rules of [`validate`](crate::svid::validate), by which the chain is
//! validated afterwards.

use std::cmp::Reverse;

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm};
use webpki::EndEntityCert;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;

use crate::algorithms::Algorithms;
use crate::bundle::{Bundle, BundleContent};
use crate::chain::{Chain, parse};
use crate::svid::{
    MAX_AHEAD, Path, anchor_may_issue, issuer_may_issue, path_to_anchor, path_validates_soon, validity,
};
use crate::svid_error::SvidError;
use crate::time::Timestamp;

/// Certificates that may be on the path from an issued certificate to an anchor. They are no anchors
/// themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CandidateIssuers(Vec<CertificateDer<'static>>);

impl CandidateIssuers {
    /// Limit of candidates: the work of the search is bounded by it.
    pub const MAX: usize = 32;

    /// Limit of certificates that are looked at: those that are self-signed cost a signature each.
    const MAX_READ: usize = 16 * Self::MAX;

    /// Takes the candidates from a bag, each once: the first [`MAX`](Self::MAX) that are certificates
    /// in DER and not self-signed, among the first 512.
    ///
    /// Self-signed is what its own key has signed. Equal names are not enough: the certificates of a
    /// root's rollover (RFC 7030 section 4.1.3) are self-issued, and carry the path.
    pub fn from_bag<'a>(bag: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut candidates: Vec<(Reverse<Timestamp>, CertificateDer<'static>)> = Vec::new();
        for der in bag.into_iter().take(Self::MAX_READ) {
            if candidates.len() == Self::MAX {
                break;
            }
            let der = CertificateDer::from(der);
            if candidates.iter().any(|(_, known)| *known == der) {
                continue;
            }
            if let Some(not_after) = candidate_until(&der) {
                candidates.push((Reverse(not_after), der.into_owned()));
            }
        }
        // The search takes the first path that it finds: it depends on the certificates alone, and of
        // twins the one that lasts longer comes first.
        candidates.sort_unstable_by(|one, other| (one.0, one.1.as_ref()).cmp(&(other.0, other.1.as_ref())));
        Self(candidates.into_iter().map(|(_, der)| der).collect())
    }

    /// The candidates, in the order of the search.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0
    }

    /// Assembles the chain of a leaf: itself, then the certificates between it and an anchor, which is
    /// left out. A chain that becomes valid in a few minutes counts.
    ///
    /// # Errors
    /// [`SvidError`] of the path that came closest; [`SvidError::Expired`] for the leaf.
    pub fn chain(
        &self,
        leaf: &CertificateDer<'_>,
        bundle: &Bundle,
        algorithms: Algorithms,
        now: Timestamp,
    ) -> Result<Chain, SvidError> {
        let (not_before, not_after) = validity(&parse(0, leaf)?);
        if now > not_after {
            return Err(SvidError::Expired { not_after, now });
        }
        let intermediates = &self.0[..];
        let path = Path { leaf, intermediates, algorithms, usage: webpki::KeyUsage::client_auth() };
        let at = path_validates_soon(path, bundle, now, not_before)?;
        let found = path_to_anchor(path, bundle, at, |anchor| anchor.is_valid(at))
            .or_else(|_| path_to_anchor(path, bundle, at, |_| true))?;
        let leaf = CertificateDer::from(leaf.as_ref());
        let chain: Vec<_> = std::iter::once(leaf).chain(found.intermediates).collect();
        Chain::from_der(&chain)
    }
}

/// Limit of signatures that [`may_lead_to`] verifies.
const MAX_SIGNATURES: usize = 256;

/// Checks that a chain from a bag to an anchor is possible, before there is a leaf: one of its
/// certificates is a CA of the bundle, or issued by one, or has issued one, as the root does where the
/// bundle has a CA below it. A longer path has such a certificate at its end.
///
/// `Ok` also for an empty bag, for a bundle without anchors, and where the search would take too long.
///
/// # Errors
/// [`SvidError`]: what one of them issues has no chain. [`SvidError::UnknownIssuer`], or why a CA of
/// the bag that is one of the bundle, or issued by one, may not issue. A leaf that an anchor issues itself would need none of
/// the bag; but that of its issuer has the root (RFC 7030 section 4.1.3).
pub fn may_lead_to<'a>(
    bag: impl IntoIterator<Item = &'a [u8]>,
    bundle: &BundleContent,
    algorithms: Algorithms,
    now: Timestamp,
) -> Result<(), SvidError> {
    if bundle.anchors().is_empty() {
        return Ok(());
    }
    let anchors = bundle.anchors().iter().filter_map(|der| parse(0, der).ok());
    let anchors: Vec<_> = anchors.map(|anchor| (anchor_may_issue(&anchor, 0, algorithms), anchor)).collect();
    let (mut read, mut signatures) = (0, 0);
    let mut why = SvidError::UnknownIssuer;
    let mut is_signed = |issued: &X509Certificate<'_>, issuer: &X509Certificate<'_>, algorithms| {
        signatures += 1;
        signatures > MAX_SIGNATURES || is_signed_with_key_of(issued, issuer, algorithms)
    };
    for der in bag {
        read += 1;
        let der = CertificateDer::from(der);
        let Ok(ca) = parse(0, &der) else { continue };
        // An anchor is a name and a key. What else this certificate of them says does not count, nor
        // whether its validity has ended.
        for (may_issue, _) in anchors.iter().filter(|(_, anchor)| is_same_authority(&ca, anchor)) {
            match may_issue {
                Ok(()) => return Ok(()),
                Err(refused) => why = refused.clone(),
            }
        }
        for (_, anchor) in anchors.iter().filter(|(may_issue, _)| may_issue.is_ok()) {
            if is_authority(&ca)
                && is_named_issuer(anchor, &ca)
                && is_signed(&ca, anchor, algorithms.signatures())
            {
                let may_issue = may_issue_now(&ca, algorithms, now);
                match may_issue.and_then(|()| anchor_may_issue(anchor, below(&ca), algorithms)) {
                    Ok(()) => return Ok(()),
                    Err(refused) => why = refused,
                }
            }
            // A path ends at the anchor, so that what is above it may be of any age and algorithm.
            if is_named_issuer(&ca, anchor)
                && (is_identified_issuer(&ca, anchor)
                    || is_signed(anchor, &ca, webpki::ALL_VERIFICATION_ALGS))
            {
                return Ok(());
            }
        }
    }
    let is_undecided = read == 0 || read > CandidateIssuers::MAX_READ;
    if is_undecided { Ok(()) } else { Err(why) }
}

fn is_authority(certificate: &X509Certificate<'_>) -> bool {
    certificate.basic_constraints().is_ok_and(|found| found.is_some_and(|found| found.value.ca))
}

/// What a CA below an anchor must allow, now or in a few minutes.
fn may_issue_now(ca: &X509Certificate<'_>, algorithms: Algorithms, now: Timestamp) -> Result<(), SvidError> {
    let (not_before, not_after) = validity(ca);
    if now > not_after {
        return Err(SvidError::IssuerExpired { not_after, now });
    }
    if now.after(MAX_AHEAD) < not_before {
        return Err(SvidError::FarFuture { not_before, now });
    }
    issuer_may_issue(ca, algorithms)
}

/// What a CA counts in the path length of the anchor above it (RFC 5280 section 4.2.1.9).
fn below(ca: &X509Certificate<'_>) -> u32 {
    u32::from(ca.subject().as_raw() != ca.issuer().as_raw())
}

/// Whether two certificates are of one name and key.
fn is_same_authority(one: &X509Certificate<'_>, other: &X509Certificate<'_>) -> bool {
    one.subject().as_raw() == other.subject().as_raw() && one.public_key().raw == other.public_key().raw
}

fn is_named_issuer(issuer: &X509Certificate<'_>, issued: &X509Certificate<'_>) -> bool {
    issued.issuer().as_raw() == issuer.subject().as_raw()
}

/// Whether the key identifiers of two certificates say that one has issued the other (RFC 5280 section
/// 4.2.1.1): for an issuer with a key that signatures cannot be verified with here.
fn is_identified_issuer(issuer: &X509Certificate<'_>, issued: &X509Certificate<'_>) -> bool {
    let subject = issuer.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(key) => Some(key),
        _ => None,
    });
    let authority = issued.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(authority) => authority.key_identifier.as_ref(),
        _ => None,
    });
    subject.is_some() && subject == authority
}

fn is_signed_with_key_of(
    issued: &X509Certificate<'_>,
    issuer: &X509Certificate<'_>,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> bool {
    let key = &issuer.public_key().subject_public_key.data;
    let (signed, signature) = (issued.tbs_certificate.as_ref(), &issued.signature_value.data);
    algorithms.iter().any(|algorithm| algorithm.verify_signature(key, signed, signature).is_ok())
}

/// The end of validity of a certificate that may issue another. `None`: it is self-signed, or no
/// certificate that the search could use.
fn candidate_until(der: &CertificateDer<'_>) -> Option<Timestamp> {
    Chain::from_der(std::slice::from_ref(der)).ok()?;
    let certificate = parse(0, der).ok()?;
    let key = EndEntityCert::try_from(der).ok()?;
    (!is_signed_by(&certificate, &key)).then(|| validity(&certificate).1)
}

fn is_signed_by(certificate: &X509Certificate<'_>, key: &EndEntityCert<'_>) -> bool {
    let (signed, signature) = (certificate.tbs_certificate.as_ref(), &certificate.signature_value.data);
    webpki::ALL_VERIFICATION_ALGS
        .iter()
        .any(|algorithm| key.verify_signature(*algorithm, signed, signature).is_ok())
}
