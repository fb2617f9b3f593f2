//! What goes back over a socket: JSON, errors as Problem Details (RFC 9457), or a stream.

use std::convert::Infallible;
use std::error::Error;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde_json::json;

pub(super) type Body = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;
pub(super) type Answer = Response<Body>;

pub(super) fn not_this_way(allowed: &'static str, detail: &str) -> Answer {
    let mut refusal = problem(StatusCode::METHOD_NOT_ALLOWED, detail);
    refusal.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    refusal
}

pub(super) fn problem(status: StatusCode, detail: &str) -> Answer {
    let title = status.canonical_reason().unwrap_or("Error");
    let body = json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail });
    json(status, "application/problem+json", &body)
}

pub(super) fn json(status: StatusCode, media_type: &'static str, body: &impl Serialize) -> Answer {
    answer(status, media_type, Full::new(text(body)))
}

/// JSON on one line.
pub(super) fn text(body: &impl Serialize) -> Bytes {
    let mut text = serde_json::to_vec(body).unwrap_or_default(); // these types always serialise
    text.push(b'\n');
    text.into()
}

pub(super) fn answer<B>(status: StatusCode, media_type: &'static str, body: B) -> Answer
where
    B: hyper::body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
