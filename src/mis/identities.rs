//! Enrollment and renewal: the two requests and their one answer (miaf-v0 E1 to E3, R1).

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::sign::CertifiedKey;
use serde::Deserialize;
use serde_json::json;
use url::Url;

use super::{FACTORY_CERT_MTLS, MisError, X509_SVID_V1, problem};

pub(super) const MAX_ANSWER: usize = 512 * 1024;

/// A PKCS#10 certification request, DER.
#[derive(Clone, Debug)]
pub struct CertificateRequest(pub Vec<u8>);

/// What the device proves its identity with in the TLS handshake: a certificate chain and the key that signs for it.
#[derive(Clone)]
pub struct Identified(pub(super) Arc<CertifiedKey>);

impl Identified {
    /// A chain, and a key that is seen to belong to its leaf.
    ///
    /// # Errors
    /// When the key is another than the certificate's.
    pub fn new(key: CertifiedKey) -> Result<Self, rustls::Error> {
        match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
                Ok(Self(Arc::new(key)))
            }
            Err(mismatch) => Err(mismatch),
        }
    }
}

impl fmt::Debug for Identified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identified").field("chain", &self.0.cert.len()).finish_non_exhaustive()
    }
}

/// No member beyond these: the MIS answers others with `400` (miaf-v0 E1).
pub(super) fn enrollment(csr: &CertificateRequest) -> String {
    json!({
        "svidProfileUri": X509_SVID_V1,
        "svidRequest": { "csr": BASE64.encode(&csr.0) },
        "bootstrapCredential": { "method": FACTORY_CERT_MTLS },
    })
    .to_string()
}

pub(super) fn renewal(csr: &CertificateRequest) -> String {
    json!({ "svidProfileUri": X509_SVID_V1, "svidRequest": { "csr": BASE64.encode(&csr.0) } }).to_string()
}

pub(super) fn read_answer(url: &Url, body: &[u8]) -> Result<Vec<String>, MisError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        svid_profile_uri: String,
        svid: Svid,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Svid {
        certificate_chain_pem: Vec<String>,
    }
    let malformed = |what| MisError::Malformed { url: url.clone(), what };
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|e| malformed(format!("the answer does not hold an SVID: {e}")))?;
    if answer.svid_profile_uri != X509_SVID_V1 {
        let other = problem::quoted(&answer.svid_profile_uri);
        return Err(malformed(format!(
            "an SVID of the profile {X509_SVID_V1} was asked for, and the answer is of \"{other}\""
        )));
    }
    Ok(answer.svid.certificate_chain_pem)
}
