//! Signatures that are verified before they are used.
//!
//! A fault while an ECDSA or RSA signature is computed (a flipped bit, a glitch of the supply
//! voltage) can reveal the private key: Boneh, DeMillo and Lipton, "On the Importance of
//! Eliminating Errors in Cryptographic Computations".

use std::sync::Arc;

use p256::ecdsa::Signature;
use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, UnparsedPublicKey, VerificationAlgorithm,
};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::{Signer, SigningKey};
use rustls::{OtherError, SignatureAlgorithm, SignatureScheme};

use super::{KeyError, PublicKey};
use crate::x509;

/// Returns an ECDSA signature in DER if it is one of this digest by this key. `signer` names in
/// errors what made it.
///
/// # Errors
/// [`KeyError::WrongSignature`].
pub(super) fn checked(
    key: &PublicKey,
    digest: &[u8; 32],
    signature: Vec<u8>,
    signer: impl FnOnce() -> String,
) -> Result<Vec<u8>, KeyError> {
    let is_right = || key.as_p256()?.verify_prehash(digest, &Signature::from_der(&signature).ok()?).ok();
    match is_right() {
        Some(()) => Ok(signature),
        None => Err(KeyError::WrongSignature { signer: signer() }),
    }
}

/// Returns a signature if it is one of this message by this key, in the key's scheme.
///
/// # Errors
/// [`KeyError::WrongSignature`].
pub(super) fn checked_of_message(
    key: &PublicKey,
    message: &[u8],
    signature: Vec<u8>,
    signer: impl FnOnce() -> String,
) -> Result<Vec<u8>, KeyError> {
    let algorithm = verification(key.algorithm().scheme());
    let verifies = |algorithm| UnparsedPublicKey::new(algorithm, key.as_bytes()).verify(message, &signature);
    match algorithm.map(verifies) {
        Some(Ok(())) => Ok(signature),
        _ => Err(KeyError::WrongSignature { signer: signer() }),
    }
}

/// A private key for TLS whose signatures are verified.
#[derive(Debug)]
pub(super) struct Checked {
    key: Arc<dyn SigningKey>,
    /// Its name in errors.
    origin: Arc<str>,
}

impl Checked {
    pub(super) fn new(key: Arc<dyn SigningKey>, origin: &str) -> Self {
        Self { key, origin: origin.into() }
    }
}

impl SigningKey for Checked {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let signer = self.key.choose_scheme(offered)?;
        let public = self.key.public_key()?;
        let spki = x509::take(&mut public.as_ref())?;
        let (_, public) = x509::key_of(spki.content)?;
        let public = public.to_vec();
        Some(Box::new(CheckedSigner { signer, public, origin: Arc::clone(&self.origin) }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.key.public_key()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.key.algorithm()
    }
}

#[derive(Debug)]
struct CheckedSigner {
    signer: Box<dyn Signer>,
    /// A point in SEC1 form, an `RSAPublicKey`, or the 32 bytes of Ed25519.
    public: Vec<u8>,
    origin: Arc<str>,
}

impl Signer for CheckedSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let signature = self.signer.sign(message)?;
        let algorithm = verification(self.signer.scheme());
        let verifies =
            |algorithm| UnparsedPublicKey::new(algorithm, &self.public).verify(message, &signature);
        match algorithm.map(verifies) {
            Some(Ok(())) => Ok(signature),
            _ => {
                let signer = self.origin.to_string();
                Err(rustls::Error::Other(OtherError(Arc::new(KeyError::WrongSignature { signer }))))
            }
        }
    }

    fn scheme(&self) -> SignatureScheme {
        self.signer.scheme()
    }
}

/// The signature schemes of TLS 1.3 that there are keys for (RFC 8446, section 4.2.3).
fn verification(scheme: SignatureScheme) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match scheme {
        SignatureScheme::ECDSA_NISTP256_SHA256 => &ECDSA_P256_SHA256_ASN1,
        SignatureScheme::ECDSA_NISTP384_SHA384 => &ECDSA_P384_SHA384_ASN1,
        SignatureScheme::ED25519 => &ED25519,
        SignatureScheme::RSA_PSS_SHA256 => &RSA_PSS_2048_8192_SHA256,
        SignatureScheme::RSA_PSS_SHA384 => &RSA_PSS_2048_8192_SHA384,
        SignatureScheme::RSA_PSS_SHA512 => &RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Key as _;
    use crate::keys::software::Software;
    use rustls::crypto::ring::sign::any_supported_type;
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

    fn signer() -> String {
        "the TPM".into()
    }

    #[test]
    fn signature_passes_only_with_its_digest_and_key() {
        let directory = tempfile::tempdir().unwrap();
        let keys = Software::new(None, directory.path().join("kek"));
        let (key, other) = (keys.create_key().unwrap(), keys.create_key().unwrap());
        let digest = [7; 32];
        let signature = key.sign_digest(&digest).unwrap();
        let public = key.public_key();
        assert_eq!(checked(public, &digest, signature.clone(), signer).unwrap(), signature);
        assert!(checked(public, &[8; 32], signature.clone(), signer).is_err());
        assert!(checked(other.public_key(), &digest, signature.clone(), signer).is_err());
        for bit in 0..signature.len() * 8 {
            let mut faulted = signature.clone();
            faulted[bit / 8] ^= 1 << (bit % 8);
            let refused = checked(public, &digest, faulted, signer).unwrap_err();
            assert!(refused.to_string().starts_with("the TPM has made a signature that"), "{refused}");
        }
        assert!(checked(public, &digest, Vec::new(), signer).is_err());
    }

    /// A key whose signatures have one wrong bit.
    #[derive(Debug)]
    struct Faulted(Arc<dyn SigningKey>);

    #[derive(Debug)]
    struct FaultedSigner(Box<dyn Signer>);

    impl SigningKey for Faulted {
        fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
            Some(Box::new(FaultedSigner(self.0.choose_scheme(offered)?)))
        }
        fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
            self.0.public_key()
        }
        fn algorithm(&self) -> SignatureAlgorithm {
            self.0.algorithm()
        }
    }

    impl Signer for FaultedSigner {
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
            let mut signature = self.0.sign(message)?;
            *signature.last_mut().unwrap() ^= 1;
            Ok(signature)
        }
        fn scheme(&self) -> SignatureScheme {
            self.0.scheme()
        }
    }

    #[test]
    fn signatures_of_every_algorithm_are_verified() {
        let generated =
            [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
                .map(|algorithm| rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_der());
        let rsa = include_bytes!("../../tests/data/test-key-rsa-2048.pk8.der").to_vec();
        for der in generated.into_iter().chain([rsa]) {
            let key = any_supported_type(&PrivateKeyDer::from(PrivatePkcs8KeyDer::from(der))).unwrap();
            let schemes: Vec<SignatureScheme> = [
                SignatureScheme::ECDSA_NISTP256_SHA256,
                SignatureScheme::ECDSA_NISTP384_SHA384,
                SignatureScheme::ED25519,
                SignatureScheme::RSA_PSS_SHA256,
                SignatureScheme::RSA_PSS_SHA384,
                SignatureScheme::RSA_PSS_SHA512,
            ]
            .into_iter()
            .filter(|scheme| key.choose_scheme(&[*scheme]).is_some())
            .collect();
            assert!(!schemes.is_empty());
            for scheme in schemes {
                let sign = |key: Arc<dyn SigningKey>| {
                    let signer = Checked::new(key, "the key file x").choose_scheme(&[scheme]).unwrap();
                    assert_eq!(signer.scheme(), scheme);
                    signer.sign(b"message")
                };
                assert!(sign(key.clone()).is_ok(), "{scheme:?}");
                let refused = sign(Arc::new(Faulted(key.clone()))).unwrap_err();
                assert!(refused.to_string().contains("the key file x has made a signature"), "{refused}");
            }
        }
    }
}
