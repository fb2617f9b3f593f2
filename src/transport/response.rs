//! HTTP responses: their bodies as JSON documents, and quotations of other bodies.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

use super::error::{TransportError, shown};
use super::problem_details::ProblemDetails;
use super::server_verifier::TrustSource;
use crate::problem::MAX_DETAIL;
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
    /// The scheme by which a `WWW-Authenticate` wants a password.
    pub(super) password_scheme: Option<&'static str>,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Vec<u8>,
    /// The body is over the limit.
    pub(super) cut: bool,
    /// The end of the body is the end of the connection, and that came without TLS's
    /// `close_notify`.
    pub(super) unclosed: bool,
}

impl Response {
    /// A response for tests of its meaning. `headers`: in lower case.
    #[cfg(test)]
    pub(crate) fn example(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let header = |name| headers.iter().find(|(there, _)| *there == name).map(|(_, value)| *value);
        let challenge = header("www-authenticate").and_then(|value| value.split(' ').next());
        Self {
            status,
            validators: Validators::default(),
            trust_source: TrustSource::Provisioned,
            certificate_not_requested: false,
            content_type: header("content-type").map(str::to_owned),
            encoding: None,
            location: header("location").map(|to| Excerpt::of(to, MAX_EXCERPT)),
            password_scheme: ["Basic", "Digest"].into_iter().find(|scheme| challenge == Some(scheme)),
            retry_after: header("retry-after")
                .map(|value| Duration::from_secs(value.parse().expect("seconds"))),
            body: body.to_vec(),
            cut: false,
            unclosed: false,
        }
    }

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

    /// Returns the body of a document that is no JSON, if it is complete.
    pub(crate) fn into_bytes(self, url: &Url, limit: usize) -> Result<Vec<u8>, TransportError> {
        if self.cut {
            return Err(TransportError::TooLarge { url: url.clone(), limit });
        }
        if let Some(encoding) = &self.encoding {
            let what = format_args!(
                "its body is encoded as \"{encoding}\", and the agent accepts none (Accept-Encoding: identity)"
            );
            return Err(TransportError::Malformed { url: url.clone(), what: Excerpt::of(what, MAX_EXCERPT) });
        }
        if self.unclosed {
            return Err(TransportError::Unreachable { url: url.clone(), why: CUT_OFF.into() });
        }
        Ok(self.body)
    }

    pub(crate) fn media_type(&self) -> Option<&str> {
        self.content_type.as_deref()
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    pub(crate) fn password_scheme(&self) -> Option<&'static str> {
        self.password_scheme
    }

    /// Whether the body is HTML or XHTML.
    pub(crate) fn is_web_page(&self) -> bool {
        let media_type =
            self.content_type.as_deref().and_then(|given| given.split(';').next()).unwrap_or_default();
        ["text/html", "application/xhtml+xml"].iter().any(|html| media_type.trim().eq_ignore_ascii_case(html))
            || self.says("<html")
    }

    /// Whether the beginning of the body has these words. They are in lower case.
    pub(crate) fn says(&self, words: &str) -> bool {
        self.beginning().contains(words)
    }

    /// Whether the body is about a certificate, and not about the request for one.
    pub(crate) fn names_a_certificate(&self) -> bool {
        const CERTIFICATE: &str = "certificate";
        let text = self.beginning();
        let after = text.match_indices(CERTIFICATE).filter_map(|(at, _)| text.get(at + CERTIFICATE.len()..));
        let is_request = |after: &str| {
            let next = after.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
            ["request", "signing"].iter().any(|word| next.starts_with(word))
        };
        after.into_iter().any(|after| !is_request(after))
    }

    /// The beginning of the body, in lower case.
    fn beginning(&self) -> String {
        let begin = self.body.get(..self.body.len().min(TITLE_WITHIN)).unwrap_or_default();
        String::from_utf8_lossy(begin).to_ascii_lowercase()
    }

    /// Changes each text of the server that may be shown. The body of a `200` is not.
    pub(crate) fn redact(&mut self, redacted: &dyn Fn(&str) -> String) {
        if self.status != 200 {
            self.body = redacted(&String::from_utf8_lossy(&self.body)).into_bytes();
        }
        for text in [&mut self.encoding, &mut self.location].into_iter().flatten() {
            *text = Excerpt::of(redacted(text), MAX_EXCERPT);
        }
        if let Some(content_type) = &mut self.content_type {
            *content_type = redacted(content_type);
        }
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

impl ErrorResponse {
    /// Changes each text of the server.
    pub(crate) fn redact(&mut self, redacted: &dyn Fn(&str) -> String) {
        let of_problem = self.problem.as_mut().map(|problem| {
            [
                Some(&mut problem.kind),
                Some(&mut problem.title),
                problem.detail.as_mut(),
                problem.instance.as_mut(),
            ]
        });
        for text in of_problem.into_iter().flatten().flatten().chain(self.excerpt.as_mut()) {
            *text = Excerpt::of(redacted(text), MAX_DETAIL);
        }
    }
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
