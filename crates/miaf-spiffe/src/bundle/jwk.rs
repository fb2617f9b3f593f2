//! The JWK of a certificate (RFC 7518 section 6, RFC 8037 section 2).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64_URL};
use rustls_pki_types::CertificateDer;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519, Oid,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::RSAPublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::BundleKey;

impl BundleKey {
    /// A certificate as X.509 authority. `None`: it cannot be read, or its key has no form as a
    /// JWK.
    pub(super) fn of_certificate(der: &CertificateDer<'_>) -> Option<Self> {
        let mut key = parameters(der)?;
        key.usage = "x509-svid";
        key.x5c = [BASE64.encode(der)];
        Some(key)
    }

    /// Adds the parameters of the key where none is there. What an MIS gives of them stays as it
    /// is.
    pub(super) fn complete(&mut self, der: &CertificateDer<'_>) {
        let has_any = [&self.crv, &self.x, &self.y, &self.n, &self.e].iter().any(|member| member.is_some());
        if let Some(key) = parameters(der).filter(|key| key.kty == self.kty && !has_any) {
            let Self { crv, x, y, n, e, .. } = key;
            (self.crv, self.x, self.y, self.n, self.e) = (crv, x, y, n, e);
        }
    }
}

/// A JWK of a certificate's key, with the members that describe the key itself.
fn parameters(der: &CertificateDer<'_>) -> Option<BundleKey> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let spki = certificate.public_key();
    let kind = &spki.algorithm.algorithm;
    if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY {
        ec(spki)
    } else if *kind == OID_PKCS1_RSAENCRYPTION {
        rsa(spki)
    } else if *kind == OID_SIG_ED25519 {
        let x = text(&spki.subject_public_key.data);
        Some(BundleKey { kty: "OKP", crv: Some("Ed25519".to_owned()), x, ..BundleKey::default() })
    } else {
        None
    }
}

/// The curves of margo-now N7 by their names in RFC 7518 section 6.2.1.1, and the length of a
/// coordinate in bytes.
const CURVES: [(Oid<'static>, &str, usize); 2] =
    [(OID_EC_P256, "P-256", 32), (OID_NIST_EC_P384, "P-384", 48)];

fn ec(spki: &SubjectPublicKeyInfo<'_>) -> Option<BundleKey> {
    let curve = spki.algorithm.parameters.as_ref()?.as_oid().ok()?;
    let (_, name, length) = CURVES.into_iter().find(|(oid, ..)| *oid == curve)?;
    // 4: an uncompressed point (SEC 1 section 2.3.3).
    let [4, point @ ..] = &*spki.subject_public_key.data else { return None };
    let (x, y) = point.split_at_checked(length).filter(|(_, y)| y.len() == length)?;
    Some(BundleKey { kty: "EC", crv: Some(name.to_owned()), x: text(x), y: text(y), ..BundleKey::default() })
}

fn rsa(spki: &SubjectPublicKeyInfo<'_>) -> Option<BundleKey> {
    let (_, RSAPublicKey { modulus, exponent }) =
        RSAPublicKey::from_der(&spki.subject_public_key.data).ok()?;
    // As DER integers, they may have a zero in front that a JWK must not have.
    let magnitude = |number: &[u8]| text(number.strip_prefix(&[0]).unwrap_or(number));
    Some(BundleKey { kty: "RSA", n: magnitude(modulus), e: magnitude(exponent), ..BundleKey::default() })
}

#[allow(clippy::unnecessary_wraps)] // the members are optional
fn text(bytes: &[u8]) -> Option<String> {
    Some(BASE64_URL.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn point_of_another_length_than_the_curves_has_no_jwk_form() {
        let has_form = |length: u8| {
            let algorithm =
                [6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
            let mut spki = vec![0x30, length + 24, 0x30, 19];
            spki.extend(algorithm);
            spki.extend([3, length + 1, 0]);
            spki.extend(vec![4; usize::from(length)]);
            let (rest, spki) = SubjectPublicKeyInfo::from_der(&spki).unwrap();
            assert!(rest.is_empty());
            ec(&spki).is_some()
        };
        assert!(has_form(65));
        for length in [0, 1, 32, 33, 64, 66, 97] {
            assert!(!has_form(length), "{length}");
        }
    }
}
