//! Fuzz targets: input from a server.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::problem_details::ProblemDetails;
use super::server_trust::LoadedTrust;
use super::server_verifier::{HandshakeObservation, Verifier};
use miaf_spiffe::testing::{check_error, parts};
use miaf_spiffe::time::Timestamp;

/// In the validity of the certificates in the corpora: 2026-07-01.
const NOW: u64 = 1_782_864_000;

/// `Retry-After` and `Date`, as two lines.
pub(crate) fn retry_after(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let (value, date) = text.split_once('\n').map_or((text, None), |(value, date)| (value, Some(date)));
    let now = Timestamp::from_millis(NOW as i64 * 1000);
    let wait = super::retry_after::retry_after(value, date, now);
    wait.is_some_and(|wait| now.after(wait) >= now)
}

/// A server's certificates as [`parts`]: the first is the provisioned one, the others are
/// presented. The first byte chooses between anchors, pins and both.
pub(crate) fn server_chain(data: &[u8]) -> bool {
    let [choice, data @ ..] = data else { return false };
    let parts: Vec<_> = parts(data).into_iter().map(|der| CertificateDer::from(der).into_owned()).collect();
    let [provisioned, end_entity, others @ ..] = &parts[..] else { return false };
    let mut trust = LoadedTrust::default();
    if choice & 1 == 0 {
        trust.provisioned.extend(webpki::anchor_from_trusted_cert(provisioned).ok().map(|a| a.to_owned()));
    }
    if choice & 2 != 0
        && let Ok(certificate) = webpki::EndEntityCert::try_from(provisioned)
    {
        trust.pins.push(super::server_verifier::pin_of(&certificate.subject_public_key_info()));
    }
    if trust.provisioned.is_empty() && trust.pins.is_empty() {
        return false;
    }
    let provider = rustls::crypto::ring::default_provider();
    let observation = Arc::new(HandshakeObservation::default());
    let verifier =
        Verifier::new(Arc::new(trust), provider.signature_verification_algorithms, observation.clone());
    let name = ServerName::try_from("mis.example").expect("a valid name");
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW));
    use rustls::client::danger::ServerCertVerifier as _;
    match verifier.verify_server_cert(end_entity, others, &name, &[], now) {
        Ok(_) => observation.untrusted().is_none(),
        Err(e) => {
            let rustls::Error::InvalidCertificate(_) = e else { panic!("{e}") };
            check_error(observation.untrusted().unwrap_or_default())
        }
    }
}

/// A body of Problem Details, of a response with this status.
pub(crate) fn problem(status: u16, body: &[u8]) -> Option<ProblemDetails> {
    ProblemDetails::read(status, Some("application/problem+json"), body)
}
