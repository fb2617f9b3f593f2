//! Enrollment of a WFM Client by binding assertion (docs/conformance.md, W1 to W4): the WFM vouches
//! for its client in an assertion, and the MIS issues an SVID for it. The device is the client of
//! both.
//!
//! An assertion is good for one request, and for minutes: each attempt begins with a new one. Its
//! content is between the WFM and the MIS; here it is a text of a form and a size, which no message
//! quotes.
//!
//! The connection to the WFM is as bounded as that to the MIS, and goes through the same proxy. The
//! SVID of the WFM alone authenticates it (W2): a trusted CA, a pin, or the host name do not.

use std::fmt;
use std::sync::Arc;

use miaf_client::wfm::PeerVerifier;
use serde::Deserialize;
use serde_json::json;
use url::Url;

use super::miaf_v0::{self, margo_code};
use super::{CertificateRequest, Discovery, IssuerError, Wfm};
use crate::lifecycle::FailureKind;
use crate::transport::{ClientIdentity, ProblemDetails, Response, ServerAuth, Transport, TransportError};
use miaf_spiffe::json;
use miaf_spiffe::peer::ExpectedPeer;
use miaf_spiffe::svid::Chain;
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::{Bundle, SpiffeId};

/// Path of the onboarding, below the base URL of the WFM (W1).
const ONBOARDING: &str = "/api/v1/onboarding";
/// Member of the request that names the client, in v0 and in the archived newest form (W1).
const HANDLE_MEMBERS: [&str; 2] = ["clientHandle", "wfmClientId"];
/// Limit on the bytes of a response: an assertion, and what else there may be.
const MAX_RESPONSE: usize = 64 * 1024;
/// Limit on the bytes of an assertion. With the longest chain of RSA certificates in it, it has about
/// 28 KiB.
const MAX_ASSERTION: usize = 32 * 1024;
/// Limit on the characters of the fault of a response.
const MAX_REASON: usize = 200;

/// Enrolls a WFM Client.
pub(super) async fn bind(
    transport: &Transport,
    discovery: &Discovery,
    wfm: &Wfm,
    csr: &CertificateRequest,
    device: ClientIdentity,
    bundle: Option<Arc<Bundle>>,
) -> Result<Chain, IssuerError> {
    discovery.miaf_v0()?; // no assertion is requested that could not be used
    let server = ServerAuth::Svid(Arc::new(verifier(wfm, bundle)?));
    let assertion = onboard(transport, wfm, &device, server).await?;
    miaf_v0::enroll_with_assertion(transport, discovery, csr, &assertion.0, device)
        .await
        .map_err(of_assertion)
}

/// Verifier that accepts the configured WFM, by its SVID, and no other server (W2).
fn verifier(wfm: &Wfm, bundle: Option<Arc<Bundle>>) -> Result<PeerVerifier, IssuerError> {
    let bundle = bundle.ok_or(IssuerError::NoBundle)?;
    let id = SpiffeId::wfm(bundle.trust_domain(), &wfm.wfm_id).map_err(|why| {
        let what = format_args!("its wfm-id cannot be part of a SPIFFE ID: {why}");
        malformed(&wfm.url, what)
    })?;
    Ok(PeerVerifier::new(ExpectedPeer::SpiffeId(id), bundle))
}

/// Has the WFM vouch for its client on this device (W1).
async fn onboard(
    transport: &Transport,
    wfm: &Wfm,
    device: &ClientIdentity,
    server: ServerAuth,
) -> Result<BindingAssertion, IssuerError> {
    let url = &onboarding_url(&wfm.url);
    let send = async |body: serde_json::Value| {
        let (device, server) = (device.clone(), server.clone());
        let sent = transport.post_json(url, body.to_string(), device, server, MAX_RESPONSE).await;
        sent.map_err(IssuerError::Wfm)
    };
    let [member, other_member] = HANDLE_MEMBERS;
    let response = match &wfm.client_handle {
        None => send(json!({})).await?,
        Some(handle) => {
            let first = send(json!({ member: handle })).await?;
            // A server of either form refuses the member of the other one, and has issued nothing.
            if first.status == 400 {
                let second = send(json!({ other_member: handle })).await?;
                if second.status == 400 { first } else { second }
            } else {
                first
            }
        }
    };
    match response.status {
        200 | 201 => BindingAssertion::read(response, url),
        // An error would quote the body, which may be the assertion.
        status @ 202..=299 => {
            Err(malformed(url, format_args!("it has the status {status}, and not 200 or 201")))
        }
        _ => Err(error_response(response, url)),
    }
}

fn onboarding_url(base: &Url) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}{ONBOARDING}", base.path().trim_end_matches('/')));
    url
}

/// An assertion of a WFM, in the form of a compact JWS (RFC 7515 section 3.1). It is a credential: it
/// is not shown.
struct BindingAssertion(String);

impl BindingAssertion {
    /// Reads the response of a WFM.
    fn read(response: Response, url: &Url) -> Result<Self, IssuerError> {
        let body = response.into_json(url, MAX_RESPONSE).map_err(|e| match e {
            // The text of the error would quote the body, which may be the assertion itself.
            TransportError::Malformed { .. } => malformed(url, format_args!("it is no JSON object")),
            e => IssuerError::Wfm(e),
        })?;
        Self::from_json(&body).map_err(|why| malformed(url, format_args!("{why}")))
    }

    fn from_json(body: &str) -> Result<Self, &'static str> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Onboarded {
            binding_assertion: String,
        }
        match json::read::<Onboarded>(body.as_bytes()) {
            Ok(onboarded) => Self::parse(onboarded.binding_assertion),
            Err(_) => Err("it is no JSON object with one text, bindingAssertion"),
        }
    }

    fn parse(text: String) -> Result<Self, &'static str> {
        if text.len() > MAX_ASSERTION {
            return Err("its bindingAssertion is larger than 32 KiB");
        }
        let is_base64url = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if text.split('.').count() != 3 || !text.split('.').all(is_base64url) {
            return Err("its bindingAssertion is not three parts of base64url, a compact JWS");
        }
        Ok(Self(text))
    }
}

impl fmt::Debug for BindingAssertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BindingAssertion").field("len", &self.0.len()).finish_non_exhaustive()
    }
}

fn malformed(url: &Url, what: fmt::Arguments<'_>) -> IssuerError {
    IssuerError::Wfm(TransportError::Malformed { url: url.clone(), what: Excerpt::of(what, MAX_REASON) })
}

/// Converts a response of a WFM without success.
fn error_response(response: Response, url: &Url) -> IssuerError {
    match response.into_error_response(url) {
        Ok(response) => {
            let failure_kind = failure_kind(response.status, response.problem.as_ref());
            IssuerError::WfmRefused { response: Box::new(response), failure_kind }
        }
        Err(e) => IssuerError::Wfm(e),
    }
}

/// The errors of W1 by the table of P. What it says of the MIS alone a WFM cannot cause: a pending
/// admission, a refused key, a discovery document that is out of date.
fn failure_kind(status: u16, problem: Option<&ProblemDetails>) -> FailureKind {
    match (problem.and_then(|problem| margo_code(&problem.kind)), status) {
        (Some("wfm-client-handle-conflict" | "wfm-client-id-conflict"), _) => FailureKind::Permanent,
        (Some("wfm-client-onboarding-forbidden"), _) => FailureKind::Slow,
        (Some("too-many-requests"), _) => FailureKind::Transient,
        (_, 400 | 422) if problem.is_some() => FailureKind::Permanent,
        (_, 401) => FailureKind::NotAuthenticated,
        (_, 403 | 404) => FailureKind::Slow,
        _ => FailureKind::Transient,
    }
}

/// Tells what the MIS has against the assertion from what it has against the request. It means the
/// same: the next attempt has another assertion, and may be the good one.
fn of_assertion(error: IssuerError) -> IssuerError {
    let IssuerError::Refused { response, failure_kind } = error else { return error };
    match response.problem.as_ref().and_then(|problem| margo_code(&problem.kind)) {
        Some("invalid-bootstrap-proof" | "invalid-audience") => {
            IssuerError::AssertionRefused { response, failure_kind }
        }
        _ => IssuerError::Refused { response, failure_kind },
    }
}

/// Checks the body of a WFM's response. An accepted assertion is a value of JSON as it is.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(body: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(body) else { return false };
    let Ok(BindingAssertion(assertion)) = BindingAssertion::from_json(text) else { return false };
    assert_eq!(serde_json::Value::from(assertion.as_str()).to_string(), format!("\"{assertion}\""));
    let again = BindingAssertion::from_json(&json!({ "bindingAssertion": assertion }).to_string());
    again.is_ok_and(|again| again.0 == assertion)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assertion_is_a_bounded_compact_jws() {
        let parse = |text: &str| BindingAssertion::parse(text.to_owned()).map(|assertion| assertion.0);
        let longest = format!("{}.b-_9.c", "a".repeat(MAX_ASSERTION - 7));
        for good in ["a.b.c", "eyJ0-.eyJ_.Zm9", longest.as_str()] {
            assert_eq!(parse(good).as_deref(), Ok(good));
        }
        let too_long = format!("a{longest}");
        for bad in [
            "",
            ".",
            "..",
            "a.b",
            "a.b.",
            ".b.c",
            "a..c",
            "a.b.c.d",
            "a.b.c ",
            "a.b.c\n",
            "a=.b.c",
            "a+.b/.c",
            "a.b.\u{e9}",
            "not a JWS",
            too_long.as_str(),
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn assertion_is_not_shown() {
        let assertion = BindingAssertion::parse("header.claims.signature".into()).unwrap();
        assert_eq!(format!("{assertion:?}"), "BindingAssertion { len: 23, .. }");
    }

    #[test]
    fn onboarding_is_below_the_base_url() {
        for (base, url) in [
            ("https://wfm.example", "https://wfm.example/api/v1/onboarding"),
            ("https://wfm.example/", "https://wfm.example/api/v1/onboarding"),
            (
                "https://wfm.example:8443/v1alpha2/margo/",
                "https://wfm.example:8443/v1alpha2/margo/api/v1/onboarding",
            ),
        ] {
            assert_eq!(onboarding_url(&base.parse().unwrap()).as_str(), url);
        }
    }

    #[test]
    fn errors_of_w1_have_the_meanings_of_the_table() {
        let meaning = |status: u16, kind: Option<&str>| {
            let body = kind.map(|kind| format!(r#"{{"type":"{kind}","title":"T","status":{status}}}"#));
            let problem = body.and_then(|body| {
                ProblemDetails::read(status, Some("application/problem+json"), body.as_bytes())
            });
            failure_kind(status, problem.as_ref())
        };
        let margo = |code: &str| format!("https://margo.org/docs/errors/{code}");
        for (status, code, expected) in [
            (403, "wfm-client-onboarding-forbidden", FailureKind::Slow),
            (422, "wfm-client-handle-conflict", FailureKind::Permanent),
            (422, "wfm-client-id-conflict", FailureKind::Permanent),
            (429, "too-many-requests", FailureKind::Transient),
            // These are an MIS's.
            (409, "enrollment-pending", FailureKind::Transient),
            (409, "key-rotation-not-permitted", FailureKind::Transient),
            (404, "discovery-document-not-found", FailureKind::Slow),
        ] {
            assert_eq!(meaning(status, Some(&margo(code))), expected, "{status} {code}");
        }
        for (status, with_problem, without) in [
            (400, FailureKind::Permanent, FailureKind::Transient),
            (401, FailureKind::NotAuthenticated, FailureKind::NotAuthenticated),
            (403, FailureKind::Slow, FailureKind::Slow),
            (404, FailureKind::Slow, FailureKind::Slow),
            (422, FailureKind::Permanent, FailureKind::Transient),
            (429, FailureKind::Transient, FailureKind::Transient),
            (503, FailureKind::Transient, FailureKind::Transient),
        ] {
            assert_eq!(meaning(status, Some("about:blank")), with_problem, "{status}");
            assert_eq!(meaning(status, None), without, "{status}");
        }
    }
}
