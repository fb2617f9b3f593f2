//! Fuzz targets: what a MIS and its server say.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use url::Url;

use super::problem::{self, Problem};
use super::trust::Loaded;
use super::verify::{Note, Verifier};
use super::{Discovery, identities};
use crate::testing::{check_error, parts};
use crate::time::Timestamp;

/// In the validity of the certificates in the corpora: 2026-07-01.
const NOW: u64 = 1_782_864_000;

fn url() -> Url {
    Url::parse("https://mis.example/").expect("a valid URL")
}

/// A discovery document. From one that is accepted follow addresses below its base URI.
pub(crate) fn discovery(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    match Discovery::from_json(text) {
        Ok(document) => {
            assert_eq!(document.identities_uri().scheme(), "https");
            assert_eq!(document.trust_bundle_uri().scheme(), "https");
            if let Err(e) = document.stays_at_the_origin_of(&url()) {
                check_error(e);
            }
            true
        }
        Err(e) => check_error(e),
    }
}

/// A response that is an error: its status in two bytes, then its body.
pub(crate) fn problem(data: &[u8]) -> bool {
    let [high, low, body @ ..] = data else { return false };
    let status = 400 + u16::from_be_bytes([*high, *low]) % 200;
    let problem = Problem::read(status, Some("application/problem+json"), body);
    let _ = problem::meaning(status, problem.as_ref());
    let Some(problem) = problem else { return false };
    for text in [Some(problem.kind), Some(problem.title), problem.detail, problem.instance] {
        check_error(text.unwrap_or_default());
    }
    true
}

/// `Retry-After` and `Date`, as two lines.
pub(crate) fn retry_after(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let (value, date) = text.split_once('\n').map_or((text, None), |(value, date)| (value, Some(date)));
    let now = Timestamp::from_millis(NOW as i64 * 1000);
    let wait = problem::retry_after(value, date, now);
    wait.is_some_and(|wait| now.after(wait) >= now)
}

/// The response to an enrollment or a renewal.
pub(crate) fn issued(data: &[u8]) -> bool {
    match identities::read_answer(&url(), data) {
        Ok(chain) => match crate::spiffe::svid::Chain::from_pem(&chain) {
            Ok(chain) => !chain.certificates().is_empty(),
            Err(e) => check_error(e),
        },
        Err(e) => check_error(e),
    }
}

/// A server's certificates as [`parts`], the first for what is provisioned, the others as presented.
/// The first byte chooses between anchors, pins and both.
pub(crate) fn server_chain(data: &[u8]) -> bool {
    let [choice, data @ ..] = data else { return false };
    let parts: Vec<_> = parts(data).into_iter().map(|der| CertificateDer::from(der).into_owned()).collect();
    let [provisioned, end_entity, others @ ..] = &parts[..] else { return false };
    let mut trust = Loaded::default();
    if choice & 1 == 0 {
        trust.provisioned.extend(webpki::anchor_from_trusted_cert(provisioned).ok().map(|a| a.to_owned()));
    }
    if choice & 2 != 0
        && let Ok(certificate) = webpki::EndEntityCert::try_from(provisioned)
    {
        trust.pins.push(super::verify::pin_of(&certificate.subject_public_key_info()));
    }
    if trust.provisioned.is_empty() && trust.pins.is_empty() {
        return false;
    }
    let provider = rustls::crypto::ring::default_provider();
    let note = Arc::new(Note::default());
    let verifier = Verifier::new(Arc::new(trust), provider.signature_verification_algorithms, note.clone());
    let name = ServerName::try_from("mis.example").expect("a valid name");
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW));
    use rustls::client::danger::ServerCertVerifier as _;
    match verifier.verify_server_cert(end_entity, others, &name, &[], now) {
        Ok(_) => note.refusal().is_none(),
        Err(e) => {
            let rustls::Error::InvalidCertificate(_) = e else { panic!("{e}") };
            check_error(note.refusal().unwrap_or_default())
        }
    }
}
