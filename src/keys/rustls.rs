//! A key as a signing key of rustls.

use std::sync::Arc;

use miaf_client::rustls::Signs;
use rustls::sign::SigningKey;

use super::{Key, KeyError};

#[derive(Debug)]
struct KeySigner(Arc<dyn Key>);

impl Signs for KeySigner {
    type Error = KeyError;

    fn spki_der(&self) -> Vec<u8> {
        self.0.public_key().spki_der()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.0.sign(message)
    }
}

/// A signing key for TLS: `ecdsa_secp256r1_sha256` and nothing else (rule K3).
///
/// rustls signs synchronously: a slow TPM blocks the thread that runs the handshake.
#[must_use]
pub fn signing_key(key: Arc<dyn Key>) -> Arc<dyn SigningKey> {
    miaf_client::rustls::signing_key(Arc::new(KeySigner(key)))
}
