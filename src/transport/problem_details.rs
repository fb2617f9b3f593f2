//! Problem Details (RFC 9457).

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::problem::{MAX_DETAIL, MAX_INSTANCE, MAX_KIND, MAX_TITLE};
use miaf_spiffe::json;
use miaf_spiffe::text::Excerpt;

/// The members that are used. One of another type counts as missing (RFC 9457 section 3.1).
#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    title: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    detail: Option<&'a RawValue>,
    #[serde(borrow)]
    instance: Option<&'a RawValue>,
    #[serde(borrow, rename = "retryAfterSeconds")]
    retry_after_seconds: Option<&'a RawValue>,
}

/// Genuine Problem Details body: the media type, the required members, and a `status` that agrees
/// with the response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProblemDetails {
    /// A URI that names the kind of problem.
    pub kind: Excerpt,
    /// One line.
    pub title: Excerpt,
    /// Explanation of this occurrence.
    pub detail: Option<Excerpt>,
    /// Reference to this occurrence.
    pub instance: Option<Excerpt>,
    /// Margo's extension `retryAfterSeconds` (docs/conformance.md, N13): advisory.
    pub retry_after: Option<Duration>,
}

impl ProblemDetails {
    /// Parses a body. `None`: it is something else, a proxy's page say, and only the status code
    /// counts (miaf-v0 P4).
    pub(crate) fn read(status: u16, content_type: Option<&str>, body: &[u8]) -> Option<Self> {
        let media_type = content_type?.split(';').next()?.trim();
        if !media_type.eq_ignore_ascii_case("application/problem+json") {
            return None;
        }
        let body: Members<'_> = json::read(body).ok()?;
        let text = |member: Option<&RawValue>, limit| {
            member.and_then(json::text).map(|text| Excerpt::of(text, limit))
        };
        let genuine = body.status.and_then(json::whole_number) == Some(u64::from(status));
        let problem = Self {
            kind: text(body.kind, MAX_KIND)?,
            title: text(body.title, MAX_TITLE)?,
            detail: text(body.detail, MAX_DETAIL / 2),
            instance: text(body.instance, MAX_INSTANCE),
            retry_after: body.retry_after_seconds.and_then(json::whole_number).map(Duration::from_secs),
        };
        genuine.then_some(problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBLEM: Option<&str> = Some("application/problem+json; charset=utf-8");

    fn body(kind: &str, status: u16) -> Vec<u8> {
        format!(
            r#"{{"type":"{kind}","title":"T","status":{status},"detail":"d","instance":"urn:i","more":[]}}"#
        )
        .into_bytes()
    }

    #[test]
    fn problem_details_are_not_read_from_other_bodies() {
        for (content_type, body) in [
            (Some("text/html"), b"<html>Bad Request</html>".to_vec()),
            (None, Vec::new()),
            (Some("application/json"), body("about:blank", 400)),
            (PROBLEM, body("about:blank", 500)),
            (PROBLEM, b"{\"title\":\"T\",\"status\":400}".to_vec()),
            (PROBLEM, b"not json".to_vec()),
        ] {
            assert_eq!(ProblemDetails::read(400, content_type, &body), None);
        }
    }
}
