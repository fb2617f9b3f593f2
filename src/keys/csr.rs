//! The certification request: what the agent sends to have a key certified.

use std::cell::Cell;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SignatureAlgorithm,
};

use super::{Key, KeyError};
use miaf_spiffe::{SpiffeId, pem};

/// The subject of every request. It is without meaning: the identity service decides on the
/// identity.
const COMMON_NAME: &str = "margo-device";

/// Label of a request in PEM (RFC 7468 section 7).
const LABEL: &str = "CERTIFICATE REQUEST";

/// A PKCS#10 request in DER for `key`, signed by it: subject `CN=margo-device`, ECDSA with SHA-256
/// (rule K3). With a SPIFFE ID there is one extension, a SAN with that URI and nothing else, which
/// the released MIS signs; without one there is no extension.
///
/// # Errors
/// [`KeyError::NotP256`]; the error of the key, if it cannot sign; otherwise
/// [`KeyError::Internal`].
pub fn certification_request(key: &dyn Key, spiffe_id: Option<&SpiffeId>) -> Result<Vec<u8>, KeyError> {
    key.public_key().check_p256()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, COMMON_NAME);
    if let Some(id) = spiffe_id {
        let uri = id.to_string().try_into();
        let uri = uri.map_err(|_| KeyError::Internal("a SPIFFE ID is not ASCII".into()))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
    }

    let subject = Subject { key, failure: Cell::new(None) };
    match params.serialize_request(&subject) {
        Ok(request) => Ok(request.der().to_vec()),
        Err(error) => Err(subject.failure.take().unwrap_or_else(|| {
            KeyError::Internal(format!("a certification request cannot be encoded: {error}"))
        })),
    }
}

/// A request in DER as PEM.
///
/// # Errors
/// [`KeyError::Internal`] if it cannot be encoded.
pub fn to_pem(der: &[u8]) -> Result<String, KeyError> {
    let pem = pem::encode(LABEL, der).map(|pem| pem.to_string());
    pem.ok_or_else(|| KeyError::Internal("a certification request cannot be encoded".into()))
}

/// A key for rcgen, which cannot return our error: that is kept here.
struct Subject<'a> {
    key: &'a dyn Key,
    failure: Cell<Option<KeyError>>,
}

impl PublicKeyData for Subject<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.key.public_key().as_bytes()
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
