//! Enrollment and renewal: the two requests and their one answer (miaf-v0 E1 to E3, R1).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::json;
use url::Url;

use super::discovery::{FACTORY_CERT_MTLS, X509_SVID_V1};
use crate::issuer::{CertificateRequest, IssuerError};
use crate::json::{self, AtMost, Object};
use crate::text::Excerpt;

pub(super) const MAX_RESPONSE: usize = 512 * 1024;
/// Certificates that an answer may hold. What is judged later allows fewer.
const MAX_CHAIN: usize = 32;
/// Characters of what is wrong with an answer.
const MAX_REASON: usize = 400;

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

pub(super) fn read_response(url: &Url, body: &[u8]) -> Result<Vec<String>, IssuerError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        svid_profile_uri: String,
        svid: Object<Svid>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Svid {
        certificate_chain_pem: AtMost<String, MAX_CHAIN>,
    }
    let malformed = |what: fmt::Arguments<'_>| IssuerError::Malformed {
        url: url.clone(),
        what: Excerpt::of(what, MAX_REASON),
    };
    let answer: Answer =
        json::read(body).map_err(|e| malformed(format_args!("the answer does not hold an SVID: {e}")))?;
    if answer.svid_profile_uri != X509_SVID_V1 {
        let other = Excerpt::of(&answer.svid_profile_uri, 128);
        return Err(malformed(format_args!(
            "an SVID of the profile {X509_SVID_V1} was asked for, and the answer is of \"{other}\""
        )));
    }
    Ok(answer.svid.0.certificate_chain_pem.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn the_requests_have_the_members_of_the_protocol_and_no_others() {
        let csr = CertificateRequest(vec![0xfb, 0xff]);
        let enrollment: Value = serde_json::from_str(&enrollment(&csr)).unwrap();
        assert_eq!(
            enrollment,
            json!({
                "svidProfileUri": "https://margo.org/profiles/spiffe/x509-svid/v1",
                "svidRequest": { "csr": "+/8=" },
                "bootstrapCredential": { "method": "urn:margo:bootstrap:factory-cert-mtls:v1" },
            })
        );
        let renewal: Value = serde_json::from_str(&renewal(&csr)).unwrap();
        let profile = "https://margo.org/profiles/spiffe/x509-svid/v1";
        assert_eq!(renewal, json!({ "svidProfileUri": profile, "svidRequest": { "csr": "+/8=" } }));
    }

    #[test]
    fn an_answer_is_an_object_of_objects() {
        let url = Url::parse("https://mis.example/").unwrap();
        let read = |body: Value| read_response(&url, body.to_string().as_bytes());
        let good =
            json!({ "svidProfileUri": X509_SVID_V1, "svid": { "certificateChainPem": ["x"] }, "new": 1 });
        assert_eq!(read(good).unwrap(), ["x"]);
        for bad in [
            json!([X509_SVID_V1, { "certificateChainPem": ["x"] }]),
            json!({ "svidProfileUri": X509_SVID_V1, "svid": [["x"]] }),
            json!({ "svidProfileUri": "https://margo.org/profiles/other", "svid": { "certificateChainPem": ["x"] } }),
            json!({ "svidProfileUri": X509_SVID_V1, "svid": { "certificateChainPem": "x" } }),
            json!({ "svidProfileUri": X509_SVID_V1 }),
            json!({ "svid": { "certificateChainPem": ["x"] } }),
        ] {
            assert!(matches!(read(bad.clone()), Err(IssuerError::Malformed { .. })), "{bad}");
        }
    }
}
