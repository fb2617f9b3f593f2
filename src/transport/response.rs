//! HTTP responses: their bodies as JSON documents, and quotations of other bodies.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

use super::error::{TransportError, shown};
use super::problem_details::ProblemDetails;
use super::server_verifier::TrustSource;
use miaf_spiffe::json;
use miaf_spiffe::text::Excerpt;

/// Limit on the characters of a quotation.
pub(super) const MAX_EXCERPT: usize = 200;
/// Bytes in which the title of an HTML page is searched.
const TITLE_WITHIN: usize = 4096;
/// The fault of a response whose connection ended too early.
pub(super) const CUT_OFF: &str = "it ended the connection before its response was complete";

/// Validators of a cached document (RFC 9110 section 13).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validators {
    /// As received, weak or strong.
    pub etag: Option<String>,
    /// As received.
    pub last_modified: Option<String>,
}

impl Validators {
    /// Whether there is nothing to revalidate with.
    pub fn is_empty(&self) -> bool {
        self.etag.is_none() && self.last_modified.is_none()
    }
}

/// Response to one call, with its body up to the limit.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) validators: Validators,
    /// The trust that authenticated its server.
    pub(crate) trust_source: TrustSource,
    /// The server did not request the client certificate that was to be sent.
    pub(super) certificate_not_requested: bool,
    pub(super) content_type: Option<String>,
    /// `Content-Encoding`, or a `Transfer-Encoding` that is not undone, unless it is none.
    pub(super) encoding: Option<Excerpt>,
    pub(super) location: Option<Excerpt>,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Vec<u8>,
    /// The body is over the limit.
    pub(super) cut: bool,
    /// The end of the body is the end of the connection, and that came without TLS's
    /// `close_notify`.
    pub(super) unclosed: bool,
}

impl Response {
    /// Returns the body if it can be a JSON document: it is complete, it is UTF-8, and it begins as
    /// one.
    pub(crate) fn into_json(self, url: &Url, limit: usize) -> Result<String, TransportError> {
        let malformed = |what: Excerpt| TransportError::Malformed { url: url.clone(), what };
        if self.cut {
            return Err(TransportError::TooLarge { url: url.clone(), limit });
        }
        if let Some(what) = self.other_than_json() {
            return Err(malformed(what));
        }
        // RFC 9112 section 9.8 treats such a response as cut off, since it may be. A JSON object
        // marks its own end: if it was cut off, it is no JSON object.
        if self.unclosed && !json::is_whole(&self.body) {
            return Err(malformed(Excerpt::of(CUT_OFF, MAX_EXCERPT)));
        }
        let text = String::from_utf8(self.body);
        text.map_err(|_| malformed(Excerpt::of("it is not UTF-8 text", MAX_EXCERPT)))
    }

    /// Describes the body where it is plainly something else than JSON in UTF-8.
    fn other_than_json(&self) -> Option<Excerpt> {
        let says = |what: fmt::Arguments<'_>| Some(Excerpt::of(what, MAX_EXCERPT));
        if let Some(encoding) = &self.encoding {
            return says(format_args!(
                "its body is encoded as \"{encoding}\", and the agent accepts none (Accept-Encoding: identity)"
            ));
        }
        let text = self.body.strip_prefix(json::BYTE_ORDER_MARK).unwrap_or(&self.body).trim_ascii_start();
        match text {
            [] => says(format_args!("its body is empty")),
            [b'{', 0, ..] | [0, b'{', ..] | [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
                says(format_args!("its body is UTF-16, and JSON is UTF-8 (RFC 8259 section 8.1)"))
            }
            [b'{' | b'[', ..] => None,
            [0x1f, 0x8b, ..] => says(format_args!("its body is gzip data, and its head does not say so")),
            other if str::from_utf8(other).is_err() => None, // has its own message
            _ => says(format_args!("its body is {}, and no JSON object", self.described()?)),
        }
    }

    /// Describes the body in a few words. `None`: it is empty.
    fn described(&self) -> Option<Excerpt> {
        let says = |what: fmt::Arguments<'_>| Some(Excerpt::of(what, MAX_EXCERPT));
        if let Some(encoding) = &self.encoding {
            return says(format_args!("a body encoded as \"{encoding}\""));
        }
        if self.body.trim_ascii().is_empty() {
            return None;
        }
        let begin = Excerpt::of_bytes(&self.body, MAX_EXCERPT);
        if !begin.starts_with('<') {
            return Some(begin);
        }
        match title(&self.body) {
            Some(title) => says(format_args!("a web page, \"{title}\"")),
            None => says(format_args!("a web page: {begin}")),
        }
    }

    /// Converts a response without success.
    ///
    /// # Errors
    /// When it is no error response: a redirect, or a status below 400 that fits no request of this
    /// agent.
    pub(crate) fn into_error_response(self, url: &Url) -> Result<ErrorResponse, TransportError> {
        let (url, status) = (url.clone(), self.status);
        if (300..400).contains(&status) && status != 304 {
            let location = self.location.unwrap_or_else(|| Excerpt::of("an unnamed address", MAX_EXCERPT));
            return Err(TransportError::Redirected { url, status, location });
        }
        if status < 400 {
            let what = format_args!("{status} is not a response to this request");
            return Err(TransportError::Malformed { url, what: Excerpt::of(what, MAX_EXCERPT) });
        }
        let body = self.encoding.is_none().then_some(&self.body);
        let problem = body.and_then(|body| ProblemDetails::read(status, self.content_type.as_deref(), body));
        let excerpt = if problem.is_none() { self.described() } else { None };
        // By RFC 9110 it is the header that says it. Where there is none, the body's word counts for
        // the two statuses that the header is for; other errors have a delay by their meaning.
        let in_body = || problem.as_ref().filter(|_| matches!(status, 429 | 503))?.retry_after;
        Ok(ErrorResponse {
            url,
            status,
            retry_after: self.retry_after.or_else(in_body),
            problem,
            excerpt,
            certificate_not_requested: self.certificate_not_requested,
        })
    }
}

/// Error response: status 400 or higher, of the issuer or of an intermediary.
#[derive(Debug)]
pub struct ErrorResponse {
    /// URL of the request.
    pub url: Url,
    /// HTTP status.
    pub status: u16,
    /// A genuine Problem Details body.
    pub problem: Option<ProblemDetails>,
    /// Retry-After delay.
    pub retry_after: Option<Duration>,
    /// The beginning of any other body.
    pub excerpt: Option<Excerpt>,
    /// The server did not request the client certificate that was to be sent.
    pub certificate_not_requested: bool,
}

impl fmt::Display for ErrorResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} responded with {}", shown(&self.url), self.status)?;
        self.problem.as_ref().map_or(Ok(()), |problem| write!(f, " {}", problem.title))
    }
}

/// Title of an HTML page.
fn title(page: &[u8]) -> Option<Excerpt> {
    let begin = page.get(..page.len().min(TITLE_WITHIN))?.to_ascii_lowercase();
    let find = |from: usize, what: &[u8]| {
        let found = begin.get(from..)?.windows(what.len()).position(|there| there == what)?;
        Some(from + found)
    };
    let from = find(find(0, b"<title")?, b">")? + 1;
    let title = Excerpt::of_bytes(page.get(from..find(from, b"<")?)?, MAX_EXCERPT / 2);
    (!title.is_empty()).then_some(title)
}
