//! Judging what clients present: device credentials at enrollment, SVIDs at renewal.

use crate::journal::ClientKind;
use crate::x509::{self, Der};
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

/// A client's certificate chain as it came in the handshake; empty without one.
pub type Chain = Vec<CertificateDer<'static>>;

/// The two algorithms that the Trust Domain permits (K4).
static SVID_ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] =
    &[webpki::ring::ECDSA_P256_SHA256, webpki::ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY];

/// A device credential: its chain must end at a known manufacturer, whose PKI may use other
/// algorithms (K5).
pub fn judge_factory(chain: &[CertificateDer<'_>], anchors: &[Der]) -> Result<(), String> {
    judge_certificate(chain, anchors, UnixTime::now())
}

/// The same at another time, for a certificate that authorizes an enrollment over EST (X40).
pub fn judge_certificate(chain: &[CertificateDer<'_>], anchors: &[Der], at: UnixTime) -> Result<(), String> {
    verify(chain, anchors, webpki::ALL_VERIFICATION_ALGS, at)
}

/// An SVID of this Trust Domain: chain, validity, algorithms, and exactly one URI SAN, which is
/// the identity (T6).
pub fn judge_svid(
    chain: &[CertificateDer<'_>],
    anchors: &[Der],
    trust_domain: &str,
) -> Result<String, String> {
    judge(chain, anchors, trust_domain, SVID_ALGORITHMS, UnixTime::now())
}

/// The same by the algorithms of released Margo (N7), at another time: for EST.
pub fn judge_released_svid(
    chain: &[CertificateDer<'_>],
    anchors: &[Der],
    trust_domain: &str,
    at: UnixTime,
) -> Result<String, String> {
    judge(chain, anchors, trust_domain, webpki::ALL_VERIFICATION_ALGS, at)
}

fn judge(
    chain: &[CertificateDer<'_>],
    anchors: &[Der],
    trust_domain: &str,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    at: UnixTime,
) -> Result<String, String> {
    verify(chain, anchors, algorithms, at)?;
    let mut uris = chain.first().map(|leaf| x509::uris_of(leaf)).unwrap_or_default();
    if uris.len() != 1 {
        return Err(format!("an SVID has exactly one URI SAN, this one has {}", uris.len()));
    }
    let id = uris.swap_remove(0);
    if let Some(why) = chain.first().and_then(|leaf| x509::svid_usage_error(leaf)) {
        return Err(format!("an SVID has the key usage digitalSignature: {why}"));
    }
    if !id.starts_with(&format!("spiffe://{trust_domain}/")) {
        return Err("the SPIFFE ID is not of this trust domain".to_owned());
    }
    Ok(id)
}

/// The SPIFFE ID that a certificate shows, good or not, for the journal.
pub fn shown_id(chain: &[CertificateDer<'_>]) -> Option<String> {
    let uris = chain.first().map(|leaf| x509::uris_of(leaf)).unwrap_or_default();
    uris.into_iter().find(|uri| uri.starts_with("spiffe://"))
}

/// Summary of a chain, for the journal.
pub fn kind(chain: &[CertificateDer<'_>], factory_anchors: &[Der]) -> ClientKind {
    match chain.first() {
        None => ClientKind::None,
        Some(_) if shown_id(chain).is_some() => ClientKind::Svid,
        Some(_) if judge_factory(chain, factory_anchors).is_ok() => ClientKind::Factory,
        Some(_) => ClientKind::Unknown,
    }
}

fn verify(
    chain: &[CertificateDer<'_>],
    anchors: &[Der],
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    at: UnixTime,
) -> Result<(), String> {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err("no client certificate was presented".to_owned());
    };
    let anchors: Vec<CertificateDer<'_>> =
        anchors.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let anchors: Vec<TrustAnchor<'_>> =
        anchors.iter().filter_map(|der| anchor_from_trusted_cert(der).ok()).collect();
    EndEntityCert::try_from(leaf)
        .and_then(|leaf| {
            leaf.verify_for_usage(
                algorithms,
                &anchors,
                intermediates,
                at,
                KeyUsage::client_auth(),
                None,
                None,
            )
            .map(|_| ())
        })
        .map_err(|error| format!("the client certificate is not good: {error}"))
}
