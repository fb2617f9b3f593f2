//! HTTP responses: JSON, Problem Details (RFC 9457) for errors, or a stream.

use std::convert::Infallible;
use std::error::Error;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::hint::Reason;
use miaf_client::api::{IdentityName, ProblemCode};

pub(super) const JSON: &str = "application/json";
/// Hint of the responses where something is not available yet, or not now.
pub(super) const SEE_STATUS: &str = "See the reason in the status: GET /v1/status, or miaf-agent status";

pub(super) type ResponseBody = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;
pub(super) type HttpResponse = Response<ResponseBody>;

/// Response where an SVID is needed and there is none.
pub(super) fn no_svid() -> HttpResponse {
    let detail = "this identity has no SVID yet";
    problem(StatusCode::SERVICE_UNAVAILABLE, ProblemCode::NotAvailable, detail, Some(SEE_STATUS))
}

/// Why a request that names this identity is refused, where there is none of that name.
pub(super) fn unknown_identity(name: &IdentityName) -> Reason {
    Reason::from(format!("there is no identity \"{name}\""))
        .with_hint_text("See those that there are: GET /v1/status, or miaf-agent status")
}

pub(super) fn method_not_allowed(allowed: &'static str, detail: &str, hint: &str) -> HttpResponse {
    let code = ProblemCode::MethodNotAllowed;
    let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, code, detail, Some(hint));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// Body of a response to a request that is refused.
#[derive(Debug, Serialize)]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    code: &'static str,
    detail: &'a str,
    hint: Option<&'a str>,
}

/// Response to a request that is refused. `detail` says what failed and why, `hint` what to do: an
/// imperative. Neither has a full stop at its end, as in the errors of the status.
pub(super) fn problem(
    status: StatusCode,
    code: ProblemCode,
    detail: &str,
    hint: Option<&str>,
) -> HttpResponse {
    let title = status.canonical_reason().unwrap_or("Error");
    let (kind, code) = ("about:blank", code.as_str());
    let body = Problem { kind, title, status: status.as_u16(), code, detail, hint };
    json(status, "application/problem+json", &body)
}

/// The same, of a reason.
pub(super) fn refusal(status: StatusCode, code: ProblemCode, reason: &Reason) -> HttpResponse {
    problem(status, code, &reason.what, reason.hint.as_deref())
}

pub(super) fn json(status: StatusCode, media_type: &'static str, body: &impl Serialize) -> HttpResponse {
    response(status, media_type, Full::new(json_line(body)))
}

/// Serialises to JSON on one line.
pub(super) fn json_line(body: &impl Serialize) -> Bytes {
    let mut text = serde_json::to_vec(body).unwrap_or_default(); // these types always serialise
    text.push(b'\n');
    text.into()
}

pub(super) fn response<B>(status: StatusCode, media_type: &'static str, body: B) -> HttpResponse
where
    B: hyper::body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
