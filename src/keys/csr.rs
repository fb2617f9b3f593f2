//! The certification request: what the agent sends to have a key certified.

use std::cell::Cell;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};

use super::{Key, KeyError};

/// The subject of every request. It is without meaning: the identity service decides on the
/// identity.
const COMMON_NAME: &str = "margo-device";

/// A PKCS#10 request in DER for `key`, signed by it: subject `CN=margo-device`, no SAN, ECDSA with
/// SHA-256 (rule K3).
///
/// # Errors
/// The error of the key, if it cannot sign; otherwise [`KeyError::Internal`].
pub fn certification_request(key: &dyn Key) -> Result<Vec<u8>, KeyError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, COMMON_NAME);

    let subject = Subject { key, failure: Cell::new(None) };
    match params.serialize_request(&subject) {
        Ok(request) => Ok(request.der().to_vec()),
        Err(error) => Err(subject.failure.take().unwrap_or_else(|| {
            KeyError::Internal(format!("a certification request cannot be encoded: {error}"))
        })),
    }
}

/// A key for rcgen, which cannot return our error: that is kept here.
struct Subject<'a> {
    key: &'a dyn Key,
    failure: Cell<Option<KeyError>>,
}

impl PublicKeyData for Subject<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.key.public_key().sec1()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Subject<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.key.sign(message).map_err(|error| {
            self.failure.set(Some(error));
            rcgen::Error::RemoteKeyError
        })
    }
}
