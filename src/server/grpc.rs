//! gRPC over HTTP/2, the part of it that these services need: one request message, a stream of
//! response messages, and a status that ends it (`PROTOCOL-HTTP2.md` of the gRPC project).

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::time::Duration;

use futures_util::stream::{Stream, StreamExt as _, iter};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, Version};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::server::response::{HttpResponse, ResponseBody};

const MEDIA_TYPE: &str = "application/grpc";
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const ACCEPTED_ENCODINGS: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Longest request message, in bytes: the longest field of any request is the name of a service.
const MAX_REQUEST: usize = 4 * 1024;
/// A request's message must be complete within this time.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Status codes (`google.rpc.Code`) that the services use. A stream of the Workload API never ends
/// with `Ok`: some clients stop watching for good then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    Ok = 0,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

/// Status that ends a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GrpcStatus {
    pub(super) code: Code,
    pub(super) message: Cow<'static, str>,
}

impl GrpcStatus {
    pub(super) fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }

    fn write(&self, headers: &mut HeaderMap) {
        headers.insert(STATUS, HeaderValue::from(self.code as u16));
        if self.message.is_empty() {
            return;
        }
        if let Ok(message) = HeaderValue::try_from(percent_encoded(&self.message)) {
            headers.insert(MESSAGE, message); // always: it consists of what a header may have
        }
    }
}

/// Status of a call that the agent ends. Clients retry after UNAVAILABLE (SPIFFE Workload Endpoint,
/// section 6).
pub(super) fn shutting_down() -> GrpcStatus {
    GrpcStatus::new(Code::Unavailable, "The agent is shutting down, or closes this socket. Connect again.")
}

/// Encodes every byte but the printable characters of ASCII, and the percent sign itself.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(byte.into()),
            _ => {
                let _ = write!(encoded, "%{byte:02X}"); // writing to a String cannot fail
            }
        }
    }
    encoded
}

/// Whether this is a gRPC call, whatever its service and the encoding of its messages.
pub(super) fn is_call<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_2
        && request.method() == Method::POST
        && message_encoding(request).is_some()
}

/// What follows `application/grpc`: `""` or `"+proto"` for protobuf. `None` where the content type
/// is another.
fn message_encoding<B>(request: &Request<B>) -> Option<&str> {
    let media_type = request.headers().get(CONTENT_TYPE)?.to_str().ok()?;
    let (media_type, _parameters) = media_type.split_once(';').unwrap_or((media_type, ""));
    let encoding = media_type.trim_end().strip_prefix(MEDIA_TYPE)?;
    (encoding.is_empty() || encoding.starts_with('+')).then_some(encoding)
}

/// Refuses a call whose messages are not protobuf.
pub(super) fn require_protobuf<B>(request: &Request<B>) -> Result<(), GrpcStatus> {
    if message_encoding(request).is_some_and(|encoding| ["", "+proto"].contains(&encoding)) {
        return Ok(());
    }
    Err(GrpcStatus::new(
        Code::Unimplemented,
        "Messages are protobuf: send the content type application/grpc.",
    ))
}

/// Reads the one message of a request to the end of the request.
pub(super) async fn read_message(body: &mut Incoming) -> Result<Bytes, GrpcStatus> {
    let body = match timeout(REQUEST_LIMIT, Limited::new(body, MAX_REQUEST).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(e)) if e.is::<LengthLimitError>() => {
            return Err(GrpcStatus::new(Code::ResourceExhausted, "A request has at most 4096 bytes here."));
        }
        Ok(Err(_)) => return Err(GrpcStatus::new(Code::Internal, "The request is not complete.")),
        Err(_) => {
            let message = "The request was not complete within 10 seconds.";
            return Err(GrpcStatus::new(Code::DeadlineExceeded, message));
        }
    };
    match body.split_first_chunk::<5>() {
        Some(([1, ..], _)) => {
            Err(GrpcStatus::new(Code::Unimplemented, "Compressed messages are not read here."))
        }
        Some(([0, length @ ..], message)) if u32::from_be_bytes(*length) as usize == message.len() => {
            Ok(body.slice_ref(message))
        }
        _ => Err(GrpcStatus::new(
            Code::Internal,
            "The request must be one message, with its length before it.",
        )),
    }
}

/// A message with its prefix. It is wiped once it is sent, for there may be a key in it.
pub(super) fn framed(message: &[u8]) -> Result<Bytes, GrpcStatus> {
    let length = u32::try_from(message.len())
        .map_err(|_| GrpcStatus::new(Code::Internal, "The message is too long."))?;
    let mut frame = Zeroizing::new(Vec::with_capacity(5 + message.len())); // never grows: no copy is left in memory
    frame.push(0); // not compressed
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(message);
    Ok(Bytes::from_owner(frame))
}

/// Response to a call with one message.
pub(super) fn unary(message: Bytes) -> HttpResponse {
    stream(iter([Ok(message), Err(GrpcStatus::new(Code::Ok, ""))]))
}

/// Response to a call that ends without a message.
pub(super) fn refusal(status: &GrpcStatus) -> HttpResponse {
    let mut response = response(Empty::new().map_err(|never| match never {}).boxed_unsync());
    status.write(response.headers_mut());
    response
}

/// Response with these messages, and then the status that ends them.
pub(super) fn stream(
    messages: impl Stream<Item = Result<Bytes, GrpcStatus>> + Send + 'static,
) -> HttpResponse {
    let frames = messages.map(|message| {
        Ok(match message {
            Ok(message) => Frame::data(message),
            Err(status) => {
                let mut trailers = HeaderMap::new();
                status.write(&mut trailers);
                Frame::trailers(trailers)
            }
        })
    });
    response(StreamBody::new(frames).map_err(|never: Infallible| match never {}).boxed_unsync())
}

fn response(body: ResponseBody) -> HttpResponse {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    response.headers_mut().insert(ACCEPTED_ENCODINGS, HeaderValue::from_static("identity"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_message_fits_into_a_header() {
        let mut headers = HeaderMap::new();
        GrpcStatus::new(Code::PermissionDenied, "100 % of \"it\"\nis Ä.").write(&mut headers);
        assert_eq!(headers.get("grpc-status").unwrap(), "7");
        assert_eq!(headers.get("grpc-message").unwrap(), "100 %25 of \"it\"%0Ais %C3%84.");
    }

    #[test]
    fn call_has_the_content_type_of_grpc() {
        let request = |version, method: &str, media_type: &str| {
            let request = Request::builder().version(version).method(method);
            request.header(CONTENT_TYPE, media_type).body(()).unwrap()
        };
        assert!(is_call(&request(Version::HTTP_2, "POST", "application/grpc")));
        assert!(is_call(&request(Version::HTTP_2, "POST", "application/grpc+proto")));
        assert!(!is_call(&request(Version::HTTP_11, "POST", "application/grpc")));
        assert!(!is_call(&request(Version::HTTP_2, "GET", "application/grpc")));
        for other in ["application/grpc-web", "application/json"] {
            assert!(!is_call(&request(Version::HTTP_2, "POST", other)), "{other}");
        }
        for (media_type, is_protobuf) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc; charset=utf-8", true),
            ("application/grpc+json", false),
        ] {
            let request = request(Version::HTTP_2, "POST", media_type);
            assert!(is_call(&request), "{media_type}");
            assert_eq!(require_protobuf(&request).is_ok(), is_protobuf, "{media_type}");
        }
    }

    #[test]
    fn message_is_framed_with_its_length() {
        assert_eq!(framed(b"abc").unwrap().as_ref(), b"\0\0\0\0\x03abc");
    }
}
