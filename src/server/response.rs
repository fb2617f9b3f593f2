//! HTTP responses: JSON, Problem Details (RFC 9457) for errors, or a stream.

use std::convert::Infallible;
use std::error::Error;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde_json::json;

use miaf_client::api::IdentityName;

pub(super) const JSON: &str = "application/json";
/// Detail of the response where an SVID is needed and there is none.
pub(super) const NO_SVID: &str =
    "This identity has no SVID yet. GET /v1/status says what the agent is waiting for.";

/// Detail of the response where a request names an identity that there is not.
pub(super) fn unknown_identity(name: &IdentityName) -> String {
    format!("There is no identity \"{name}\". GET /v1/status lists those that there are.")
}

pub(super) type ResponseBody = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;
pub(super) type HttpResponse = Response<ResponseBody>;

pub(super) fn method_not_allowed(allowed: &'static str, detail: &str) -> HttpResponse {
    let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, detail);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

pub(super) fn problem(status: StatusCode, detail: &str) -> HttpResponse {
    let title = status.canonical_reason().unwrap_or("Error");
    let body = json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail });
    json(status, "application/problem+json", &body)
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
