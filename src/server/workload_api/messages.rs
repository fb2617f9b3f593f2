//! Response messages of the Workload API (`workloadapi.proto` of the SPIFFE project). Each of their
//! fields is a string, bytes or a message, which are encoded alike.

use rustls_pki_types::CertificateDer;

use crate::server::protobuf::{Message, message};
use miaf_client::api::IdentityName;
use miaf_spiffe::TrustDomain;
use miaf_spiffe::svid::X509Svid;

/// `X509SVID` (SPIFFE Workload API, section 5.1) of one identity, whose name is the hint. `key` is
/// PKCS#8.
pub(super) fn x509_svid(
    identity: &IdentityName,
    svid: &X509Svid,
    key: &[u8],
    anchors: &[CertificateDer<'_>],
) -> Message {
    let spiffe_id = svid.spiffe_id().to_string();
    let (chain, bundle) = (concatenated(svid.chain().certificates()), concatenated(anchors));
    let hint = identity.as_str().as_bytes();
    message(&[(1, spiffe_id.as_bytes()), (2, &chain), (3, key), (4, &bundle), (5, hint)])
}

/// `X509SVIDResponse` (section 5.1) with these SVIDs; the first is the default for clients.
pub(super) fn x509_svids<'a>(svids: impl IntoIterator<Item = &'a Message>) -> Message {
    let fields: Vec<(u8, &[u8])> = svids.into_iter().map(|svid| (1, svid.as_slice())).collect();
    message(&fields)
}

/// `X509BundlesResponse` (section 5.1) with the bundle of the device's own trust domain.
pub(super) fn x509_bundles(trust_domain: &TrustDomain, anchors: &[CertificateDer<'_>]) -> Message {
    message(&[(2, &entry(trust_domain, &concatenated(anchors)))])
}

/// `JWTBundlesResponse` (section 6.1) with an empty bundle: no JWT-SVID is valid in the device's
/// own trust domain.
pub(super) fn empty_jwt_bundle(trust_domain: &TrustDomain) -> Message {
    message(&[(1, &entry(trust_domain, br#"{"keys":[]}"#))])
}

/// Concatenates certificates in DER, with nothing between them, as the API has them.
fn concatenated(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    certificates.iter().flat_map(|certificate| certificate.iter().copied()).collect()
}

/// Entry of a map from the SPIFFE IDs of trust domains to their bundles.
fn entry(trust_domain: &TrustDomain, bundle: &[u8]) -> Message {
    message(&[(1, format!("spiffe://{trust_domain}").as_bytes()), (2, bundle)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use miaf_spiffe::svid::Chain;

    #[test]
    fn svids_have_their_identities_as_hints() {
        let svid = |path: &str| {
            let mut params = rcgen::CertificateParams::default();
            let id = format!("spiffe://a.example{path}");
            params.subject_alt_names = vec![rcgen::SanType::URI(id.as_str().try_into().unwrap())];
            let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            X509Svid::from_stored(Chain::from_pem(&[certificate.pem()]).unwrap()).unwrap()
        };
        let entry = |name: &str| {
            x509_svid(&IdentityName::parse(name).unwrap(), &svid(&format!("/{name}")), b"key", &[])
        };
        let (first, second) = (entry("device"), entry("wfm-client"));
        assert!(first.ends_with(b"\x1a\x03key\x22\x00\x2a\x06device"));
        assert!(second.ends_with(b"\x1a\x03key\x22\x00\x2a\x0awfm-client"));
        let both = x509_svids([&first, &second]);
        let at = |entry: &Message| both.windows(entry.len()).position(|part| part == entry.as_slice());
        assert!(at(&first).unwrap() < at(&second).unwrap(), "the default comes first");
        assert!(both.starts_with(b"\x0a"));
    }

    #[test]
    fn jwt_bundle_is_an_empty_set_of_keys() {
        let domain = TrustDomain::parse("a.example").unwrap();
        let expected = b"\x0a\x21\x0a\x12spiffe://a.example\x12\x0b{\"keys\":[]}";
        assert_eq!(empty_jwt_bundle(&domain).as_slice(), expected);
    }
}
