//! A key that signs: its public half, its protection, and its provider.

use std::fmt;

use p256::pkcs8::EncodePublicKey as _;
use zeroize::Zeroizing;

use super::{KeyError, ProviderKind};
use miaf_client::api::Protection;
use miaf_spiffe::digest::{Hex, sha256};

/// A private key that signs and never shows itself.
///
/// Every key is ECDSA on P-256, and every signature is over SHA-256 (rule K3).
pub trait Key: fmt::Debug + Send + Sync {
    /// The public half.
    fn public_key(&self) -> &PublicKey;

    /// Signs a SHA-256 digest. Returns an ECDSA signature in DER that was verified with the public
    /// half.
    ///
    /// Blocks: a TPM takes a tenth of a second or more, and serves one caller at a time.
    ///
    /// # Errors
    /// Whatever keeps the key from being used; [`KeyError::kind`] says whether that may pass.
    fn sign_digest(&self, digest: &[u8; 32]) -> Result<Vec<u8>, KeyError>;

    /// The protection class of the private half.
    fn protection(&self) -> Protection;

    /// The provider that created the key, which its record names.
    fn provider(&self) -> ProviderKind;

    /// Checks that the key could be used, as far as that can be told without using it: the TPM is
    /// not involved. May read files.
    ///
    /// # Errors
    /// As for [`Key::sign_digest`].
    fn check_available(&self) -> Result<(), KeyError> {
        Ok(())
    }

    /// The key's record: the PEM text that [`Provider::open`](super::Provider::open) takes. Useless
    /// without this very TPM, or without the key-encryption key.
    ///
    /// # Errors
    /// [`KeyError::Internal`] if the key cannot be encoded.
    fn to_pem(&self) -> Result<String, KeyError>;

    /// The key as a file for local programs, where they are given one. May block, as
    /// [`Key::sign_digest`] does.
    ///
    /// # Errors
    /// As for [`Key::sign_digest`].
    fn to_key_file(&self) -> Result<KeyFile, KeyError>;

    /// Hashes a message with SHA-256 and signs it. May block, as [`Key::sign_digest`] does.
    ///
    /// # Errors
    /// As for [`Key::sign_digest`].
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.sign_digest(&sha256(message))
    }
}

/// A public key: a point on P-256 (rule K3).
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    key: p256::PublicKey,
    sec1: [u8; 65],
    spki: Vec<u8>,
}

impl PublicKey {
    /// Takes an uncompressed SEC1 point, `04 || X || Y`.
    ///
    /// # Errors
    /// [`KeyError::BadPublicKey`] if it has another form or does not lie on the curve.
    pub fn from_sec1(point: &[u8]) -> Result<Self, KeyError> {
        let sec1: [u8; 65] = point.try_into().map_err(|_| KeyError::BadPublicKey {
            why: "not 65 bytes long, as an uncompressed P-256 point is",
        })?;
        if sec1.first() != Some(&4) {
            return Err(KeyError::BadPublicKey { why: "not an uncompressed point" });
        }
        let key = p256::PublicKey::from_sec1_bytes(&sec1)
            .map_err(|_| KeyError::BadPublicKey { why: "not a point on the curve P-256" })?;
        let spki = key
            .to_public_key_der()
            .map_err(|_| KeyError::Internal("a public key cannot be encoded".into()))?
            .into_vec();
        Ok(Self { key, sec1, spki })
    }

    /// The point in SEC1 form, `04 || X || Y`.
    #[must_use]
    pub fn sec1(&self) -> &[u8; 65] {
        &self.sec1
    }

    /// The key as a DER `SubjectPublicKeyInfo`, the form a certificate carries.
    #[must_use]
    pub fn spki_der(&self) -> Vec<u8> {
        self.spki.clone()
    }

    /// The algorithm's name, for people and for the status page.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        "ecdsa-p256"
    }

    pub(super) fn as_p256(&self) -> &p256::PublicKey {
        &self.key
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({} {})", self.algorithm(), Hex(&self.sec1))
    }
}

/// A private key for local programs.
pub enum KeyFile {
    /// A `TSS2 PRIVATE KEY`: a reference to a key of the TPM, and no secret.
    Tss2(String),
    /// The key itself, PKCS#8 (RFC 5208): never to be written to persistent storage (rule K2).
    Secret {
        /// In DER.
        der: Zeroizing<Vec<u8>>,
        /// The same in PEM.
        pem: Zeroizing<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The generator of P-256.
    fn generator() -> Vec<u8> {
        let hex = "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296\
                   4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";
        (0..hex.len()).step_by(2).filter_map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect()
    }

    #[test]
    fn public_key_is_a_point_on_the_curve() {
        let good = generator();
        assert!(PublicKey::from_sec1(&good).is_ok());

        let mut off_the_curve = good.clone();
        *off_the_curve.last_mut().unwrap() ^= 1;
        let mut compressed = good.clone();
        *compressed.first_mut().unwrap() = 2;
        for bad in [off_the_curve, compressed, good.get(..64).unwrap().to_vec(), Vec::new(), vec![0; 65]] {
            assert!(matches!(PublicKey::from_sec1(&bad), Err(KeyError::BadPublicKey { .. })), "{bad:02x?}");
        }
    }

    #[test]
    fn spki_has_the_form_of_rfc_5480() {
        let key = PublicKey::from_sec1(&generator()).unwrap();
        // SEQUENCE { SEQUENCE { id-ecPublicKey, prime256v1 }, BIT STRING { point } }
        let prefix = [
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
            0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ];
        assert_eq!(key.spki_der(), [prefix.as_slice(), key.sec1()].concat());
        assert_eq!(key.algorithm(), "ecdsa-p256");
    }

    #[test]
    fn protection_classes_have_their_names() {
        let all = [Protection::Hardware, Protection::SoftwareIsolated, Protection::SoftwareBasic];
        assert_eq!(all.map(|p| p.to_string()), ["hardware", "software-isolated", "software-basic"]);
    }
}
