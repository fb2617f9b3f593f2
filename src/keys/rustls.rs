//! A key as a signing key of rustls.

use std::sync::Arc;

use miaf_client::rustls::Signs;
use rustls::SignatureScheme;
use rustls::sign::SigningKey;

use super::{Key, KeyError};

#[derive(Debug)]
struct KeySigner(Arc<dyn Key>);

impl Signs for KeySigner {
    type Error = KeyError;

    fn spki_der(&self) -> Vec<u8> {
        self.0.public_key().spki_der()
    }

    fn scheme(&self) -> SignatureScheme {
        self.0.public_key().algorithm().scheme()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.0.sign(message)
    }
}

/// A signing key for TLS, in the one scheme of its algorithm and no other: for every key that the
/// agent created `ecdsa_secp256r1_sha256` (rule K3).
///
/// rustls signs synchronously: a slow TPM blocks the thread that runs the handshake.
#[must_use]
pub fn signing_key(key: Arc<dyn Key>) -> Arc<dyn SigningKey> {
    miaf_client::rustls::signing_key(Arc::new(KeySigner(key)))
}
