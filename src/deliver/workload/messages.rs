//! What is answered, in protobuf (`workloadapi.proto` of the SPIFFE project). Each field of these messages is a text, octets
//! or a message, which are written alike: its number, its length, its content.

use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::spiffe::TrustDomain;
use crate::spiffe::svid::X509Svid;

/// A message, or what is to be one. It is wiped when it is let go: there may be a key in it.
pub(super) type Message = Zeroizing<Vec<u8>>;

/// `X509SVIDResponse` (SPIFFE Workload API, section 5.1) with the one SVID that a device has. `key` is PKCS#8.
pub(super) fn x509_svid(svid: &X509Svid, key: &[u8], anchors: &[CertificateDer<'_>]) -> Message {
    let spiffe_id = svid.spiffe_id().to_string();
    let (chain, bundle) = (one_after_the_other(svid.chain().certificates()), one_after_the_other(anchors));
    let svid = message(&[(1, spiffe_id.as_bytes()), (2, &chain), (3, key), (4, &bundle)]);
    message(&[(1, &svid)])
}

/// `X509BundlesResponse` (section 5.1) with the bundle of the device's own trust domain.
pub(super) fn x509_bundles(trust_domain: &TrustDomain, anchors: &[CertificateDer<'_>]) -> Message {
    message(&[(2, &entry(trust_domain, &one_after_the_other(anchors)))])
}

/// `JWTBundlesResponse` (section 6.1): in the device's own trust domain nothing vouches for JWT-SVIDs.
pub(super) fn no_jwt_bundles(trust_domain: &TrustDomain) -> Message {
    message(&[(1, &entry(trust_domain, br#"{"keys":[]}"#))])
}

/// As the API has certificates: in DER, with nothing between them.
fn one_after_the_other(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    certificates.iter().flat_map(|certificate| certificate.iter().copied()).collect()
}

/// Of a map from trust domains, by their SPIFFE IDs, to bundles.
fn entry(trust_domain: &TrustDomain, bundle: &[u8]) -> Message {
    message(&[(1, format!("spiffe://{trust_domain}").as_bytes()), (2, bundle)])
}

/// The fields by their numbers, of which none is above 15.
fn message(fields: &[(u8, &[u8])]) -> Message {
    let length = fields.iter().map(|(_, content)| 1 + MAX_VARINT + content.len()).sum();
    let mut message = Zeroizing::new(Vec::with_capacity(length)); // never grows: no copy stays behind
    for (number, content) in fields {
        message.push(number << 3 | LENGTH_DELIMITED);
        write_varint(content.len(), &mut message);
        message.extend_from_slice(content);
    }
    message
}

const LENGTH_DELIMITED: u8 = 2;
const MAX_VARINT: usize = 10;

/// Seven bits an octet, the lowest first; the eighth says that more follow.
fn write_varint(mut number: usize, message: &mut Vec<u8>) {
    while number > 0x7f {
        message.push(number as u8 | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_written_as_protobuf_has_them() {
        assert_eq!(message(&[(1, b"abc"), (4, b"")]).as_slice(), b"\x0a\x03abc\x22\x00");
        for (length, written) in
            [(127, &[0x7f][..]), (128, &[0x80, 1]), (300, &[0xac, 2]), (16_384, &[0x80, 0x80, 1])]
        {
            let message = message(&[(2, &vec![7; length])]);
            assert_eq!(message[0], 0x12);
            assert_eq!(&message[1..=written.len()], written, "{length}");
            assert_eq!(message.len(), 1 + written.len() + length);
        }
    }

    #[test]
    fn no_jwt_bundle_is_an_empty_set_of_keys() {
        let domain = TrustDomain::parse("a.example").unwrap();
        let expected = b"\x0a\x21\x0a\x12spiffe://a.example\x12\x0b{\"keys\":[]}";
        assert_eq!(no_jwt_bundles(&domain).as_slice(), expected);
    }
}
