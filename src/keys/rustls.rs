//! A key as a signing key of rustls.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::{Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};

use super::{Key, KeyError};

/// What TLS needs of a key on P-256 (rule K3), in this process or another.
pub trait Signs: fmt::Debug + Send + Sync {
    /// Why there is no signature.
    type Error: Error + Send + Sync + 'static;

    /// The public half, as a DER `SubjectPublicKeyInfo`.
    fn spki_der(&self) -> Vec<u8>;

    /// Hashes a message with SHA-256 and signs it: an ECDSA signature in DER.
    ///
    /// # Errors
    /// Whatever keeps the key from being used.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Self::Error>;
}

impl<K: Key + ?Sized> Signs for K {
    type Error = KeyError;

    fn spki_der(&self) -> Vec<u8> {
        self.public_key().spki_der()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        Key::sign(self, message)
    }
}

/// A signing key for TLS: `ecdsa_secp256r1_sha256` and nothing else (rule K3).
///
/// rustls signs synchronously: a slow TPM blocks the thread that runs the handshake.
#[must_use]
pub fn signing_key<K: Signs + ?Sized + 'static>(key: Arc<K>) -> Arc<dyn SigningKey> {
    Arc::new(TlsKey(key))
}

#[derive(Debug)]
struct TlsKey<K: ?Sized>(Arc<K>);

impl<K: Signs + ?Sized + 'static> SigningKey for TlsKey<K> {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered
            .contains(&SignatureScheme::ECDSA_NISTP256_SHA256)
            .then(|| Box::new(Self(Arc::clone(&self.0))) as Box<dyn Signer>)
    }

    /// Given, so that rustls can tell when a certificate belongs to another key.
    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.0.spki_der()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl<K: Signs + ?Sized> Signer for TlsKey<K> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.0.sign(message).map_err(|error| rustls::Error::Other(rustls::OtherError(Arc::new(error))))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}
