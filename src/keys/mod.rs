//! Private keys: they sign, and never show themselves.
//!
//! The rest of the agent sees a [`Key`] and nothing behind it. A [`Provider`] makes keys and finds them again: in the
//! TPM ([`tpm::TpmKey`], rule K1), or in software, sealed ([`software::SoftwareKey`], rule K2), as the configuration
//! says. [`csr`] and [`tls`] put any [`Key`] to work, and [`factory`] opens the key that the device maker left on disk or
//! in the TPM (rule K5), which the agent only ever uses for TLS.
//!
//! libtss2 writes to stderr on its own account and reads `TSS2_LOG` when it is loaded. Start the process with
//! `TSS2_LOG=all+none`: every failure is reported as a [`KeyError`] anyway.

use std::fmt;

use ring::agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use zeroize::Zeroizing;

mod checked;
pub mod csr;
mod error;
pub mod factory;
mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod provider;
pub mod software;
pub mod tls;
pub mod tpm;
pub mod tss2;

pub use error::{ErrorKind, KeyError, KeyForm, Unfit, UnreachableCause};
pub use provider::{Provider, ProviderKind, check_form};

/// A private key that signs and never shows itself.
///
/// Every key is ECDSA on P-256, and every signature is over SHA-256 (rule K3).
pub trait Key: fmt::Debug + Send + Sync {
    /// The public half.
    fn public_key(&self) -> &PublicKey;

    /// Signs a SHA-256 digest; the answer is an ECDSA signature in DER, which has been verified with the public half.
    ///
    /// This may block: a chip takes a tenth of a second or more, and waits its turn behind other callers.
    ///
    /// # Errors
    /// Whatever keeps the key from being used; [`KeyError::kind`] tells whether that may pass.
    fn sign_digest(&self, digest: &[u8; 32]) -> Result<Vec<u8>, KeyError>;

    /// How well the private half is protected.
    fn protection(&self) -> Protection;

    /// Where it was made.
    fn provider(&self) -> ProviderKind {
        match self.protection() {
            Protection::Hardware => ProviderKind::Tpm,
            Protection::SoftwareIsolated | Protection::SoftwareBasic => ProviderKind::Software,
        }
    }

    /// Whether the key could be used, as far as that can be told without using it: the TPM is not asked. May read files.
    ///
    /// # Errors
    /// As for [`Key::sign_digest`].
    fn is_within_reach(&self) -> Result<(), KeyError> {
        Ok(())
    }

    /// What to keep on disk so that the key can be had again: of no use to anyone without this very TPM, or without
    /// the key-encryption key.
    ///
    /// # Errors
    /// [`KeyError::Internal`] if the key cannot be put in writing.
    fn to_pem(&self) -> Result<String, KeyError>;

    /// What local programs can use the key by, if they are let. May block, as [`Key::sign_digest`] does.
    ///
    /// # Errors
    /// As for [`Key::sign_digest`].
    fn for_programs(&self) -> Result<KeyFile, KeyError>;

    /// Hashes a message with SHA-256 and signs it. May block, as [`Key::sign_digest`] does.
    ///
    /// # Errors
    /// As for [`Key::sign_digest`].
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let mut hash = [0; 32];
        for (to, from) in hash.iter_mut().zip(digest(&SHA256, message).as_ref()) {
            *to = *from;
        }
        self.sign_digest(&hash)
    }
}

/// A public key: a point on P-256 (rule K3).
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    sec1: [u8; 65],
}

impl PublicKey {
    /// Takes an uncompressed SEC1 point, `04 || X || Y`.
    ///
    /// # Errors
    /// [`KeyError::BadPublicKey`] if it has another form or does not lie on the curve.
    pub fn from_sec1(point: &[u8]) -> Result<Self, KeyError> {
        let sec1: [u8; 65] = point.try_into().map_err(|_| KeyError::BadPublicKey {
            why: "not 65 octets long, as an uncompressed P-256 point is",
        })?;
        if sec1.first() != Some(&4) {
            return Err(KeyError::BadPublicKey { why: "not an uncompressed point" });
        }
        if !lies_on_p256(&sec1) {
            return Err(KeyError::BadPublicKey { why: "not a point on the curve P-256" });
        }
        Ok(Self { sec1 })
    }

    /// The point in SEC1 form, `04 || X || Y`.
    #[must_use]
    pub fn sec1(&self) -> &[u8; 65] {
        &self.sec1
    }

    /// The key as a DER `SubjectPublicKeyInfo`, the form a certificate carries.
    #[must_use]
    pub fn spki_der(&self) -> Vec<u8> {
        [SPKI_P256_PREFIX.as_slice(), self.sec1.as_slice()].concat()
    }

    /// The algorithm's name, for people and for the status page.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        "ecdsa-p256"
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({} ", self.algorithm())?;
        self.sec1.iter().try_for_each(|octet| write!(f, "{octet:02x}"))?;
        write!(f, ")")
    }
}

/// A private key as a PEM file for local programs.
pub enum KeyFile {
    /// A `TSS2 PRIVATE KEY`: the way to a key of the TPM, and no secret.
    Tss2(String),
    /// The key itself, PKCS#8 (RFC 5208): never to be written to persistent storage (rule K2).
    Secret(Zeroizing<String>),
}

/// How well a private key is protected, in the words MIAF has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protection {
    /// The key was made by a chip and cannot leave it (rule K1).
    Hardware,
    /// The key is software, sealed with a key that the system keeps for the agent (rule K2).
    SoftwareIsolated,
    /// The key is software, sealed with a key beside it (rule K2).
    SoftwareBasic,
}

impl Protection {
    /// `hardware`, `software-isolated` or `software-basic`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hardware => "hardware",
            Self::SoftwareIsolated => "software-isolated",
            Self::SoftwareBasic => "software-basic",
        }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A `SubjectPublicKeyInfo` of `id-ecPublicKey` on `prime256v1`, up to where the point begins.
const SPKI_P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// ring judges a point only when it computes with it, so a throw-away key agreement asks it.
fn lies_on_p256(sec1: &[u8; 65]) -> bool {
    EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new())
        .and_then(|ours| agree_ephemeral(ours, &UnparsedPublicKey::new(&ECDH_P256, sec1), |_| ()))
        .is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The generator of P-256.
    fn generator() -> Vec<u8> {
        let hex = "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296\
                   4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";
        (0..hex.len()).step_by(2).filter_map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect()
    }

    #[test]
    fn takes_a_point_on_the_curve_and_only_that() {
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
    fn spki_is_the_prefix_and_the_point() {
        let key = PublicKey::from_sec1(&generator()).unwrap();
        let spki = key.spki_der();
        assert_eq!(spki.len(), 91);
        assert!(spki.ends_with(key.sec1()));
        assert_eq!(key.algorithm(), "ecdsa-p256");
    }

    #[test]
    fn protections_have_their_names() {
        let all = [Protection::Hardware, Protection::SoftwareIsolated, Protection::SoftwareBasic];
        assert_eq!(all.map(|p| p.to_string()), ["hardware", "software-isolated", "software-basic"]);
    }
}
