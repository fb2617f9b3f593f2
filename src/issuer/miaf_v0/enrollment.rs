//! Enrollment and renewal: the two requests and their response (miaf-v0 E1 to E3, R1).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::json;
use url::Url;

use crate::issuer::discovery::{FACTORY_CERT_MTLS, WFM_CLIENT_BINDING, X509_SVID_V1};
use crate::issuer::{CertificateRequest, IssuerError};
use miaf_spiffe::json::{self, AtMost, Object};
use miaf_spiffe::svid::Chain;
use miaf_spiffe::text::Excerpt;

/// Limit on the bytes of a response.
pub(super) const MAX_RESPONSE: usize = 512 * 1024;
/// Limit on the certificates that are read of a response. A [`Chain`] has fewer, and names their
/// number.
const MAX_CHAIN: usize = 32;
/// Limit on the characters of the fault of a response.
const MAX_REASON: usize = 400;

/// Body of an enrollment. It has no other members: the MIS rejects them with `400` (miaf-v0 E1).
pub(super) fn enrollment(csr: &CertificateRequest) -> String {
    json!({
        "svidProfileUri": X509_SVID_V1,
        "svidRequest": { "csr": BASE64.encode(&csr.0) },
        "bootstrapCredential": { "method": FACTORY_CERT_MTLS },
    })
    .to_string()
}

/// Body of the enrollment of a WFM Client (miaf-v0 W3).
pub(super) fn with_assertion(csr: &CertificateRequest, assertion: &str) -> String {
    json!({
        "svidProfileUri": X509_SVID_V1,
        "svidRequest": { "csr": BASE64.encode(&csr.0) },
        "bootstrapCredential": { "method": WFM_CLIENT_BINDING, "proof": { "bindingAssertion": assertion } },
    })
    .to_string()
}

/// Body of a renewal.
pub(super) fn renewal(csr: &CertificateRequest) -> String {
    json!({ "svidProfileUri": X509_SVID_V1, "svidRequest": { "csr": BASE64.encode(&csr.0) } }).to_string()
}

/// Parses a response into the issued chain.
///
/// # Errors
/// [`IssuerError::Malformed`]; [`IssuerError::Svid`] where the certificates are no chain.
pub(super) fn read_response(url: &Url, body: &[u8]) -> Result<Chain, IssuerError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Issued {
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
    let issued: Issued =
        json::read(body).map_err(|e| malformed(format_args!("the response does not hold an SVID: {e}")))?;
    if issued.svid_profile_uri != X509_SVID_V1 {
        let other = Excerpt::of(&issued.svid_profile_uri, 128);
        return Err(malformed(format_args!(
            "an SVID of the profile {X509_SVID_V1} was requested, and the response is of \"{other}\""
        )));
    }
    Chain::from_pem(&issued.svid.0.certificate_chain_pem.0).map_err(IssuerError::Svid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use miaf_spiffe::svid::certificate_pem;
    use serde_json::Value;

    #[test]
    fn requests_have_the_members_of_the_protocol_and_no_others() {
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
        let binding: Value = serde_json::from_str(&with_assertion(&csr, "a.b.c")).unwrap();
        assert_eq!(
            binding["bootstrapCredential"],
            json!({
                "method": "urn:margo:bootstrap:wfm-client-binding:v1",
                "proof": { "bindingAssertion": "a.b.c" },
            })
        );
        assert_eq!(binding.as_object().unwrap().len(), 3);
        let renewal: Value = serde_json::from_str(&renewal(&csr)).unwrap();
        let profile = "https://margo.org/profiles/spiffe/x509-svid/v1";
        assert_eq!(renewal, json!({ "svidProfileUri": profile, "svidRequest": { "csr": "+/8=" } }));
    }

    #[test]
    fn response_is_an_object_of_objects() {
        let url = Url::parse("https://mis.example/").unwrap();
        let read = |body: Value| read_response(&url, body.to_string().as_bytes());
        let pair = rcgen::KeyPair::generate().unwrap();
        let der = rcgen::CertificateParams::default().self_signed(&pair).unwrap().der().clone();
        let chain = [certificate_pem(&der)];
        let response = |chain: Value| json!({ "svidProfileUri": X509_SVID_V1, "svid": { "certificateChainPem": chain }, "new": 1 });
        assert_eq!(read(response(json!(chain))).unwrap().to_pems(), chain);
        for bad in [json!([]), json!(["x"]), json!(vec![&chain[0]; 32])] {
            assert!(matches!(read(response(bad.clone())), Err(IssuerError::Svid(_))), "{bad}");
        }
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
