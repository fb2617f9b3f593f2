//! A key that signs: its public half, its protection, and its provider.

use std::fmt;

use p256::ecdsa::VerifyingKey;
use rustls::SignatureScheme;
use rustls::pki_types::alg_id::{ECDSA_P256, ECDSA_P384, ED25519, RSA_ENCRYPTION};
use zeroize::Zeroizing;

use super::tpm::rsa_name;
use super::{KeyError, ProviderKind};
use crate::x509::{BIT_STRING, INTEGER, SEQUENCE, key_of, take_tagged, wrap};
use miaf_client::api::Protection;
use miaf_spiffe::digest::{Hex, sha256};

/// A private key that signs and never shows itself.
///
/// Every key that the agent creates is on P-256 (rule K3). One that the operator brought in may be
/// of another [`KeyAlgorithm`].
pub trait Key: fmt::Debug + Send + Sync {
    /// The public half.
    fn public_key(&self) -> &PublicKey;

    /// Signs a SHA-256 digest by ECDSA. Returns a signature in DER that was verified with the
    /// public half.
    ///
    /// Blocks: a TPM takes a tenth of a second or more, and serves one caller at a time.
    ///
    /// # Errors
    /// [`KeyError::NotP256`], and whatever keeps the key from being used; [`KeyError::kind`] says
    /// whether that may pass.
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

    /// Signs a message in the scheme of the key's algorithm ([`KeyAlgorithm::scheme`]). May block,
    /// as [`Key::sign_digest`] does.
    ///
    /// # Errors
    /// Whatever keeps the key from being used.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.sign_digest(&sha256(message))
    }
}

/// The algorithm of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// ECDSA on P-256: that of every key that the agent creates (rule K3).
    EcdsaP256,
    /// ECDSA on P-384.
    EcdsaP384,
    /// Ed25519.
    Ed25519,
    /// RSA.
    Rsa,
}

impl KeyAlgorithm {
    /// All of them.
    pub(super) const ALL: [Self; 4] = [Self::EcdsaP256, Self::EcdsaP384, Self::Ed25519, Self::Rsa];

    /// The one scheme by which such a key signs in TLS 1.3 (RFC 8446 section 4.2.3).
    #[must_use]
    pub fn scheme(self) -> SignatureScheme {
        match self {
            Self::EcdsaP256 => SignatureScheme::ECDSA_NISTP256_SHA256,
            Self::EcdsaP384 => SignatureScheme::ECDSA_NISTP384_SHA384,
            Self::Ed25519 => SignatureScheme::ED25519,
            Self::Rsa => SignatureScheme::RSA_PSS_SHA256,
        }
    }

    /// The content of its AlgorithmIdentifier in a public or private key.
    pub(super) fn id(self) -> &'static [u8] {
        match self {
            Self::EcdsaP256 => &ECDSA_P256,
            Self::EcdsaP384 => &ECDSA_P384,
            Self::Ed25519 => &ED25519,
            Self::Rsa => &RSA_ENCRYPTION,
        }
    }
}

/// A public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    algorithm: KeyAlgorithm,
    name: &'static str,
    bits: Vec<u8>,
    spki: Vec<u8>,
    /// Decoded once: each signature is verified with it. Only of a key on P-256.
    p256: Option<VerifyingKey>,
}

impl PublicKey {
    /// Takes an uncompressed SEC1 point on P-256, `04 || X || Y`.
    ///
    /// # Errors
    /// [`KeyError::BadPublicKey`] if it has another form or does not lie on the curve.
    pub fn from_sec1(point: &[u8]) -> Result<Self, KeyError> {
        Self::new(KeyAlgorithm::EcdsaP256, point)
    }

    /// Takes the bits of a `SubjectPublicKeyInfo`.
    ///
    /// # Errors
    /// [`KeyError::BadPublicKey`] if they are not those of such a key.
    pub(super) fn new(algorithm: KeyAlgorithm, bits: &[u8]) -> Result<Self, KeyError> {
        let bad = |why| Err(KeyError::BadPublicKey { why });
        let mut p256 = None;
        let name = match (algorithm, bits) {
            (KeyAlgorithm::EcdsaP256, point) if point.len() != 65 => {
                return bad("not 65 bytes long, as an uncompressed P-256 point is");
            }
            (KeyAlgorithm::EcdsaP256 | KeyAlgorithm::EcdsaP384, [first, ..]) if *first != 4 => {
                return bad("not an uncompressed point");
            }
            (KeyAlgorithm::EcdsaP256, point) => match VerifyingKey::from_sec1_bytes(point) {
                Ok(key) => {
                    p256 = Some(key);
                    "ecdsa-p256"
                }
                Err(_) => return bad("not a point on the curve P-256"),
            },
            (KeyAlgorithm::EcdsaP384, point) if point.len() == 97 => "ecdsa-p384",
            (KeyAlgorithm::EcdsaP384, _) => {
                return bad("not 97 bytes long, as an uncompressed P-384 point is");
            }
            (KeyAlgorithm::Ed25519, key) if key.len() == 32 => "ed25519",
            (KeyAlgorithm::Ed25519, _) => return bad("not 32 bytes long, as one of Ed25519 is"),
            (KeyAlgorithm::Rsa, key) => match rsa_bits(key) {
                Some(bits) => rsa_name(bits),
                None => return bad("not one of RSA"),
            },
        };
        let info = [wrap(SEQUENCE, algorithm.id()), wrap(BIT_STRING, &[&[0], bits].concat())].concat();
        Ok(Self { algorithm, name, bits: bits.to_vec(), spki: wrap(SEQUENCE, &info), p256 })
    }

    /// Takes a DER `SubjectPublicKeyInfo`.
    ///
    /// # Errors
    /// [`KeyError::BadPublicKey`] if it is none of a known algorithm, or not a sound one.
    pub(super) fn from_spki(mut spki: &[u8]) -> Result<Self, KeyError> {
        let parts = take_tagged(&mut spki, SEQUENCE).and_then(|spki| key_of(spki.content));
        let known = parts.and_then(|(id, bits)| {
            let algorithm = KeyAlgorithm::ALL.into_iter().find(|known| known.id() == id)?;
            Some((algorithm, bits))
        });
        let (algorithm, bits) =
            known.ok_or(KeyError::BadPublicKey { why: "of no algorithm that the agent knows" })?;
        Self::new(algorithm, bits)
    }

    /// The key without its algorithm, as a certificate carries it: the point `04 || X || Y` for
    /// ECDSA, 32 bytes for Ed25519, an `RSAPublicKey` for RSA.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bits
    }

    /// The key, if it is on P-256.
    pub(super) fn as_p256(&self) -> Option<&VerifyingKey> {
        self.p256.as_ref()
    }

    /// The key as a DER `SubjectPublicKeyInfo`, the form a certificate carries.
    #[must_use]
    pub fn spki_der(&self) -> Vec<u8> {
        self.spki.clone()
    }

    /// The algorithm.
    #[must_use]
    pub fn algorithm(&self) -> KeyAlgorithm {
        self.algorithm
    }

    /// The algorithm's name, for people and for the status page: `ecdsa-p256`, `ecdsa-p384`,
    /// `ed25519`, `rsa-3072`, `rsa-4096`, or `rsa` for sizes in between.
    #[must_use]
    pub fn algorithm_name(&self) -> &'static str {
        self.name
    }

    /// Checks that the key is on P-256.
    ///
    /// # Errors
    /// [`KeyError::NotP256`].
    pub fn check_p256(&self) -> Result<(), KeyError> {
        match self.algorithm {
            KeyAlgorithm::EcdsaP256 => Ok(()),
            _ => Err(KeyError::NotP256 { algorithm: self.name }),
        }
    }
}

/// The size in bits of an `RSAPublicKey` (RFC 8017 appendix A.1.1).
fn rsa_bits(mut key: &[u8]) -> Option<usize> {
    let mut numbers = take_tagged(&mut key, SEQUENCE)?.content;
    let modulus = take_tagged(&mut numbers, INTEGER)?.content;
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let first = modulus.get(zeros)?;
    key.is_empty().then_some((modulus.len() - zeros) * 8 - first.leading_zeros() as usize)
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({} {})", self.name, Hex(&self.bits))
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
        assert_eq!(key.spki_der(), [prefix.as_slice(), key.as_bytes()].concat());
        assert_eq!(key.algorithm_name(), "ecdsa-p256");
        assert_eq!(PublicKey::from_spki(&key.spki_der()).unwrap(), key);
    }

    #[test]
    fn protection_classes_have_their_names() {
        let all = [Protection::Hardware, Protection::SoftwareIsolated, Protection::SoftwareBasic];
        assert_eq!(all.map(|p| p.to_string()), ["hardware", "software-isolated", "software-basic"]);
    }
}
