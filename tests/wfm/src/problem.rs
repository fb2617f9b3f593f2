//! Refusals: Problem Details (RFC 9457).

use hyper::StatusCode;
use serde_json::{Value, json};

/// Base of the types of the onboarding call (W1).
const ONBOARDING: &str = "https://margo.org/docs/errors/";
/// Base of the types of the management interface (N13).
const MANAGEMENT: &str = "https://docs.margo.org/specification/problem-types#";

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status, in the body too.
    pub status: StatusCode,
    /// The last part of the type; `None` for `about:blank`.
    pub code: Option<&'static str>,
    /// `Retry-After` in seconds.
    pub retry_after: Option<u64>,
    base: &'static str,
    detail: String,
}

impl Problem {
    /// A general HTTP error: `about:blank`.
    pub fn bare(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, code: None, retry_after: None, base: "", detail: detail.into() }
    }

    /// `400`: the request is wrong.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::bare(StatusCode::BAD_REQUEST, detail)
    }

    /// `401`: the client certificate is not a valid SVID of the right kind.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::bare(StatusCode::UNAUTHORIZED, detail)
    }

    /// `403`: this device may not onboard a client.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        let code = Some("wfm-client-onboarding-forbidden");
        Self { code, base: ONBOARDING, ..Self::bare(StatusCode::FORBIDDEN, detail) }
    }

    /// `422`: the handle belongs to a client of another device; `code` by the request's vocabulary.
    pub fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self { code: Some(code), base: ONBOARDING, ..Self::bare(StatusCode::UNPROCESSABLE_ENTITY, detail) }
    }

    /// `429`: too many assertions.
    pub fn too_many(retry_after: u64) -> Self {
        Self {
            code: Some("too-many-requests"),
            base: ONBOARDING,
            retry_after: Some(retry_after),
            ..Self::bare(StatusCode::TOO_MANY_REQUESTS, "this device has had all its assertions for now")
        }
    }

    /// `403`: a valid SVID that may not use the management interface.
    pub fn not_authorized(detail: impl Into<String>) -> Self {
        let code = Some("not-authorized");
        Self { code, base: MANAGEMENT, ..Self::bare(StatusCode::FORBIDDEN, detail) }
    }

    /// The body.
    pub fn body(&self) -> Value {
        let kind = self.code.map_or_else(|| "about:blank".to_owned(), |code| format!("{}{code}", self.base));
        let title = self.code.or(self.status.canonical_reason()).unwrap_or("Error");
        let mut body = json!({
            "type": kind,
            "title": title,
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if self.base == MANAGEMENT {
            body["retryable"] = self.retry_after.is_some().into();
        }
        body
    }
}
