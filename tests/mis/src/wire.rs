//! MIAF v0 on the wire: request bodies read strictly, responses, Problem Details (P).

use crate::keys;
use crate::policy::Documents;
use development_server::Result;
use hyper::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// The bootstrap method of v0 for devices.
pub const FACTORY_METHOD: &str = "urn:margo:bootstrap:factory-cert-mtls:v1";
/// The bootstrap method for WFM Clients (W3).
pub const BINDING_METHOD: &str = "urn:margo:bootstrap:wfm-client-binding:v1";
/// The one SVID profile of v0.
pub const X509_PROFILE: &str = "https://margo.org/profiles/spiffe/x509-svid/v1";
/// Where the discovery document is (D2).
pub const DISCOVERY_PATH: &str = "/.well-known/margo";
/// Where the Bundle Map is (B1).
pub const BUNDLE_PATH: &str = "/.well-known/spiffe/bundle.json";
/// Where devices enroll (E).
pub const IDENTITIES_PATH: &str = "/api/v1/identities";

/// A refusal, RFC 9457.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status, in the body too.
    pub status: StatusCode,
    code: Option<&'static str>,
    title: &'static str,
    detail: String,
    /// `Retry-After` in seconds.
    pub retry_after: Option<u64>,
}

impl Problem {
    fn margo(status: u16, code: &'static str, title: &'static str, detail: String) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, code: Some(code), title, detail, retry_after: None }
    }

    /// `400`: the request itself is wrong.
    pub fn invalid_request(detail: impl Into<String>) -> Self {
        Self::margo(400, "invalid-svid-request", "Invalid SVID Request", detail.into())
    }

    /// `401`: the bootstrap proof fails.
    pub fn invalid_proof(detail: impl Into<String>) -> Self {
        Self::margo(401, "invalid-bootstrap-proof", "Invalid Bootstrap Proof", detail.into())
    }

    /// `400`: the bootstrap proof is made for another place.
    pub fn invalid_audience(detail: impl Into<String>) -> Self {
        Self::margo(400, "invalid-audience", "Invalid Audience", detail.into())
    }

    /// `422`: a bootstrap method that is not offered.
    pub fn unsupported_method(detail: impl Into<String>) -> Self {
        Self::margo(422, "unsupported-method", "Unsupported Bootstrap Method", detail.into())
    }

    /// `422`: an SVID profile that is not offered.
    pub fn unsupported_profile(detail: impl Into<String>) -> Self {
        Self::margo(422, "unsupported-svid-profile", "Unsupported SVID Profile", detail.into())
    }

    /// `409`: a new key where policy wants the old one (E6, R4).
    pub fn rotation_refused(detail: impl Into<String>) -> Self {
        Self::margo(409, "key-rotation-not-permitted", "Key Rotation Not Permitted", detail.into())
    }

    /// `409` until the operator admits the device (E7).
    pub fn pending(retry_after: u64) -> Self {
        let detail = "the operator has not admitted this device yet".to_owned();
        let problem = Self::margo(409, "enrollment-pending", "Enrollment Pending", detail);
        Self { retry_after: Some(retry_after), ..problem }
    }

    /// `429` (R5).
    pub fn too_many(retry_after: u64) -> Self {
        let detail = "this identity has had all the SVIDs of its time window".to_owned();
        let problem = Self::margo(429, "too-many-requests", "Too Many Requests", detail);
        Self { retry_after: Some(retry_after), ..problem }
    }

    /// `404`: this MIS has no discovery document (N3).
    pub fn no_discovery_document() -> Self {
        let detail = "this MIS has no discovery document".to_owned();
        let problem =
            Self::margo(404, "discovery-document-not-found", "Discovery Document Not Found", detail);
        Self { retry_after: Some(30), ..problem }
    }

    /// A general HTTP error: `about:blank`, titled with the reason phrase.
    pub fn bare(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self { status, code: None, title, detail: detail.into(), retry_after: None }
    }

    /// Bare `401`: the SVID presented is not good (R6).
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::bare(StatusCode::UNAUTHORIZED, detail)
    }

    /// The Margo error code; `None` for `about:blank`.
    pub fn code(&self) -> Option<&'static str> {
        self.code
    }

    /// `Retry-After` in seconds, where the header belongs: in released Margo with `429` and `503`
    /// only (N13).
    pub fn retry_after_header(&self, documents: Documents) -> Option<u64> {
        let fits = documents == Documents::V0 || matches!(self.status.as_u16(), 429 | 503);
        self.retry_after.filter(|_| fits)
    }

    /// The body in the form of these documents; `instance` is new each time.
    pub fn body(&self, documents: Documents) -> Value {
        let base = match documents {
            Documents::V0 => "https://margo.org/docs/errors/",
            Documents::Released => "https://docs.margo.org/specification/problem-types#",
        };
        let kind = self.code.map_or_else(|| "about:blank".to_owned(), |code| format!("{base}{code}"));
        let instance = random_uuid().map(|id| format!("urn:uuid:{id}")).unwrap_or_default();
        let mut body = json!({
            "type": kind,
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
            "instance": instance,
        });
        if documents == Documents::Released {
            let retryable = self.retry_after.is_some() || self.status.is_server_error();
            body["retryable"] = retryable.into();
            body["backoffStrategy"] = if retryable { "exponential" } else { "none" }.into();
            if let Some(seconds) = self.retry_after {
                body["retryAfterSeconds"] = seconds.into();
            }
        }
        body
    }
}

/// A random UUID, RFC 4122 version 4, lowercase with hyphens.
pub fn random_uuid() -> Result<String> {
    let mut bytes = keys::random::<16>()?;
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = crate::x509::hex(&bytes);
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

/// Body of an enrollment, as far as every method and profile shares it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Enrollment {
    /// The profile wanted.
    pub svid_profile_uri: String,
    /// For the profile to read.
    pub svid_request: Option<Box<RawValue>>,
    bootstrap_credential: Box<RawValue>,
}

/// `bootstrapCredential`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootstrapCredential {
    /// A URN.
    pub method: String,
    /// Absent or null in the factory certificate method, the assertion in the binding method.
    pub proof: Option<Value>,
}

/// Body of a renewal.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Renewal {
    /// The profile wanted.
    pub svid_profile_uri: String,
    /// For the profile to read.
    pub svid_request: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BindingProof {
    binding_assertion: String,
}

impl BootstrapCredential {
    /// The assertion of the binding method.
    pub fn binding_assertion(&self) -> std::result::Result<String, Problem> {
        let proof =
            self.proof.as_ref().ok_or_else(|| Problem::invalid_proof("proof.bindingAssertion is missing"))?;
        object::<BindingProof>(proof.to_string().as_bytes(), "proof").map(|proof| proof.binding_assertion)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct X509Request {
    csr: String,
}

impl Enrollment {
    /// Reads the body: a JSON object with these members and no others.
    pub fn parse(body: &[u8]) -> std::result::Result<(Self, BootstrapCredential), Problem> {
        let this: Self = object(body, "the body")?;
        let credential = object(this.bootstrap_credential.get().as_bytes(), "bootstrapCredential")?;
        Ok((this, credential))
    }
}

impl Renewal {
    /// Reads the body: a JSON object with these members and no others.
    pub fn parse(body: &[u8]) -> std::result::Result<Self, Problem> {
        object(body, "the body")
    }
}

/// The `csr` member of an X.509 profile's `svidRequest`.
pub fn csr_of(request: Option<&RawValue>) -> std::result::Result<String, Problem> {
    let request = request.ok_or_else(|| Problem::invalid_request("svidRequest is missing"))?;
    object::<X509Request>(request.get().as_bytes(), "svidRequest").map(|request| request.csr)
}

/// A JSON object and nothing else: serde would take an array for a struct as well.
fn object<T: DeserializeOwned>(text: &[u8], what: &str) -> std::result::Result<T, Problem> {
    let first = text.iter().find(|byte| !byte.is_ascii_whitespace());
    if first != Some(&b'{') {
        return Err(Problem::invalid_request(format!("{what} is not a JSON object")));
    }
    serde_json::from_slice(text).map_err(|error| Problem::invalid_request(format!("{what}: {error}")))
}

/// Body of a successful enrollment or renewal (E2).
pub fn svid_answer(profile: &str, chain: &[String]) -> Value {
    json!({
        "svidProfileUri": profile,
        "svid": { "certificateChainPem": chain },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"svidProfileUri":"p","svidRequest":{"csr":"x"},
                           "bootstrapCredential":{"method":"m"}}"#;

    fn refused(body: &str) -> bool {
        match Enrollment::parse(body.as_bytes()) {
            Err(problem) => problem.status == StatusCode::BAD_REQUEST,
            Ok((body, _)) => csr_of(body.svid_request.as_deref()).is_err(),
        }
    }

    #[test]
    fn requests_of_the_protocol_are_parsed() {
        assert!(!refused(GOOD));
        assert!(!refused(&GOOD.replace(r#""m""#, r#""m","proof":null"#)));
    }

    #[test]
    fn other_requests_are_refused() {
        for (from, to) in [
            ("{\"svidProfileUri\"", "{\"extra\":1,\"svidProfileUri\""),
            ("\"csr\":\"x\"", "\"csr\":\"x\",\"extra\":1"),
            ("\"csr\":\"x\"", "\"csr\":1"),
            ("\"csr\":\"x\"", ""),
            ("\"method\":\"m\"", "\"method\":\"m\",\"extra\":1"),
            ("\"method\":\"m\"", "\"method\":\"m\",\"method\":\"m\""),
            ("{\"csr\":\"x\"}", "[\"x\"]"),
            ("{\"csr\":\"x\"}", "null"),
            ("{\"method\":\"m\"}", "[\"m\",null]"),
            (",\n", ",,"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            assert!(refused(&GOOD.replace(from, to)), "{from} -> {to}");
        }
        assert!(refused(""));
        assert!(refused("[]"));
        assert!(refused(&format!("{GOOD} {{}}")));
        assert!(refused(r#"["p",{"csr":"x"},{"method":"m"}]"#));
    }

    #[test]
    fn uuids_are_version_4() {
        let id = random_uuid().unwrap();
        assert_eq!(id.len(), 36);
        assert_eq!(&id[14..15], "4");
        assert!("89ab".contains(&id[19..20]));
    }
}
