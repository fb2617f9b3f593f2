//! Fuzz targets: input from an EST server, and from an operator.

use rustls_pki_types::CertificateDer;

use super::{CaCertificates, EnrollmentToken, pkcs7};
use crate::x509::{OBJECT_IDENTIFIER, SEQUENCE, SET, wrap};
use miaf_spiffe::svid::CandidateIssuers;
use miaf_spiffe::testing::{check_error, parts};
use miaf_spiffe::time::Timestamp;
use miaf_spiffe::{Bundle, TrustDomain};

/// In the validity of the certificates in the corpora: 2027-01-01.
const NOW: Timestamp = Timestamp::from_millis(1_798_761_600_000);

/// A certs-only message.
fn certs_only(certificates: &[&[u8]]) -> Vec<u8> {
    let content_type = |last| wrap(OBJECT_IDENTIFIER, &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, last]);
    let data = wrap(SEQUENCE, &content_type(1));
    let certificates = wrap(0xa0, &certificates.concat());
    let fields = [&[2, 1, 1], &wrap(SET, &[])[..], &data, &certificates, &wrap(SET, &[])].concat();
    wrap(SEQUENCE, &[content_type(2), wrap(0xa0, &wrap(SEQUENCE, &fields))].concat())
}

/// The body of a response. The certificates of an accepted one are those of the message that is made of
/// them.
pub(crate) fn pkcs7(data: &[u8]) -> bool {
    let message = match pkcs7::decode(data) {
        Ok(message) => message,
        Err(e) => return check_error(e),
    };
    match pkcs7::certificates(&message) {
        Ok(certificates) => {
            let again = certs_only(&certificates);
            assert_eq!(pkcs7::certificates(&again).expect("a message"), certificates);
            true
        }
        Err(e) => check_error(e),
    }
}

/// An anchor, a leaf and the message of `/cacerts`, as [`parts`]. The chain of an accepted one is the
/// leaf and certificates of the message, whatever their order, and no token is held back from it.
pub(crate) fn ca_certificates(data: &[u8]) -> bool {
    let [anchor, leaf, message] = parts(data)[..] else { return false };
    let domain = TrustDomain::parse("factory.example").expect("a valid name");
    let x5c = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, anchor);
    let bundle = serde_json::json!({ "keys": [{ "kty": "EC", "use": "x509-svid", "x5c": [x5c] }] });
    let Ok(bundle) = Bundle::from_served(bundle.to_string().as_bytes(), &domain) else { return false };
    let Ok(mut certificates) = pkcs7::certificates(message) else { return false };
    let before_issuance = CaCertificates::new(&certificates).check_before_issuance(&bundle, NOW);
    if let Err(e) = &before_issuance {
        check_error(e);
    }
    let leaf = CertificateDer::from(leaf);
    let assemble = |certificates: &[&[u8]]| CaCertificates::new(certificates).chain(&leaf, &bundle, NOW);
    match assemble(&certificates) {
        Ok(chain) => {
            let [own, intermediates @ ..] = chain.certificates() else { panic!("an empty chain") };
            assert_eq!(*own, leaf);
            assert!(intermediates.iter().all(|der| certificates.contains(&der.as_ref())));
            assert!(intermediates.is_empty() || before_issuance.is_ok(), "{before_issuance:?}");
            certificates.reverse();
            // More than are used: those that are depend on the order.
            if certificates.len() <= CandidateIssuers::MAX {
                assert_eq!(assemble(&certificates), Ok(chain));
            }
            true
        }
        Err(e) => check_error(e),
    }
}

/// The file of an enrollment token. An accepted one is read again as itself, and is not in what is shown
/// of a text with it.
pub(crate) fn token(data: &[u8]) -> bool {
    match EnrollmentToken::parse(data) {
        Ok(token) => {
            let text = token.expose().to_owned();
            let again = EnrollmentToken::parse(text.as_bytes()).expect("the same");
            assert_eq!(again.hash(&[0; 16]), token.hash(&[0; 16]));
            let (_, secret) = text.split_once(':').expect("a colon");
            let shown = token.removed_from(&text).into_owned();
            // A short one may be a word of what is shown in its place.
            assert!(secret.len() < 16 || !shown.contains(secret), "{shown}");
            true
        }
        Err(e) => check_error(e),
    }
}
