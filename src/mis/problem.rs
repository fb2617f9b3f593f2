//! Problem Details (RFC 9457), and what each refusal means (miaf-v0 P).

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::json;
use crate::lifecycle::{MAX_DETAIL, MAX_INSTANCE, MAX_KIND, MAX_TITLE, Meaning};
use crate::text::Excerpt;
use crate::time::Timestamp;

const MARGO_ERRORS: &str = "https://margo.org/docs/errors/";

/// Types of the agent's own errors. Programs, metrics and the commands' advice go by them.
const OWN_ERRORS: &str = "urn:miaf-agent:";

/// The members that count. One of another type is as if it were missing (RFC 9457 section 3.1).
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
}

/// A genuine Problem Details body: the media type, the required members, and a `status` that agrees with the response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// A URI that names the kind of problem.
    pub kind: Excerpt,
    /// One line.
    pub title: Excerpt,
    /// Explanation of this occurrence.
    pub detail: Option<Excerpt>,
    /// Reference to this occurrence.
    pub instance: Option<Excerpt>,
}

impl Problem {
    /// `None`: the body is something else, a proxy's page say, and only the status code counts (miaf-v0 P4).
    pub(super) fn read(status: u16, content_type: Option<&str>, body: &[u8]) -> Option<Self> {
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
            kind: text(body.kind, MAX_KIND).map(foreign)?,
            title: text(body.title, MAX_TITLE)?,
            detail: text(body.detail, MAX_DETAIL / 2),
            instance: text(body.instance, MAX_INSTANCE),
        };
        genuine.then_some(problem)
    }
}

/// A type that a server may use. One of the agent's own says nothing (RFC 9457 section 4.2.1).
fn foreign(kind: Excerpt) -> Excerpt {
    let begin = kind.get(..OWN_ERRORS.len());
    match begin.is_some_and(|begin| begin.eq_ignore_ascii_case(OWN_ERRORS)) {
        true => Excerpt::of("about:blank", MAX_KIND),
        false => kind,
    }
}

/// The table of miaf-v0 P. Known types are told by their name, unknown ones by the status (P1); a `400` or `422` is
/// believed to be for good only from a genuine Problem Details body (P5).
pub(super) fn meaning(status: u16, problem: Option<&Problem>) -> Meaning {
    let code = problem.and_then(|problem| problem.kind.strip_prefix(MARGO_ERRORS));
    match code {
        Some("enrollment-pending") => return Meaning::Pending,
        Some("key-rotation-not-permitted") => return Meaning::KeyRotationRefused,
        Some("too-many-requests") => return Meaning::Transient,
        Some("invalid-bootstrap-proof") => return Meaning::NotAuthenticated,
        Some(
            "invalid-svid-request" | "invalid-audience" | "unsupported-method" | "unsupported-svid-profile",
        ) => {
            return Meaning::Permanent;
        }
        _ => {}
    }
    match status {
        400 | 422 if problem.is_some() => Meaning::Permanent,
        401 => Meaning::NotAuthenticated,
        403 => Meaning::Slow,
        404 => Meaning::NotFound,
        _ => Meaning::Transient,
    }
}

/// `Retry-After`: seconds, or an HTTP date (miaf-v0 R5). A date is measured from the response's own `Date`, so that a
/// clock difference does not count; a date that has passed is no wait; a number too large to hold is "very long".
pub(super) fn retry_after(value: &str, date: Option<&str>, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let until: Timestamp = httpdate::parse_http_date(value).ok()?.into();
    let from = date.and_then(|date| httpdate::parse_http_date(date).ok()).map_or(now, Timestamp::from);
    Some(from.until(until))
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
    fn each_row_of_the_table_means_what_it_says() {
        for (code, status, want) in [
            ("https://margo.org/docs/errors/invalid-svid-request", 400, Meaning::Permanent),
            ("https://margo.org/docs/errors/invalid-bootstrap-proof", 401, Meaning::NotAuthenticated),
            ("https://margo.org/docs/errors/invalid-audience", 400, Meaning::Permanent),
            ("https://margo.org/docs/errors/unsupported-method", 422, Meaning::Permanent),
            ("https://margo.org/docs/errors/unsupported-svid-profile", 422, Meaning::Permanent),
            ("https://margo.org/docs/errors/key-rotation-not-permitted", 409, Meaning::KeyRotationRefused),
            ("https://margo.org/docs/errors/too-many-requests", 429, Meaning::Transient),
            ("https://margo.org/docs/errors/enrollment-pending", 409, Meaning::Pending),
            ("https://margo.org/docs/errors/of-the-future", 409, Meaning::Transient),
            ("https://margo.org/docs/errors/of-the-future", 422, Meaning::Permanent),
            ("about:blank", 400, Meaning::Permanent),
            ("about:blank", 401, Meaning::NotAuthenticated),
            ("about:blank", 403, Meaning::Slow),
            ("about:blank", 404, Meaning::NotFound),
            ("about:blank", 408, Meaning::Transient),
            ("about:blank", 503, Meaning::Transient),
        ] {
            let problem = Problem::read(status, PROBLEM, &body(code, status)).unwrap();
            assert_eq!(meaning(status, Some(&problem)), want, "{code} {status}");
        }
    }

    #[test]
    fn a_server_does_not_speak_in_the_agents_name() {
        for (kind, taken) in [
            ("urn:miaf-agent:error:key-lost", "about:blank"),
            (" URN:Miaf-Agent:error:configuration", "about:blank"),
            ("urn:miaf-agents:error:key-lost", "urn:miaf-agents:error:key-lost"),
            ("urn:other:configuration", "urn:other:configuration"),
            ("urn:miaf-\u{e4}gent:", "urn:miaf-\u{e4}gent:"),
        ] {
            let problem = Problem::read(503, PROBLEM, &body(kind, 503)).unwrap();
            assert_eq!(&*problem.kind, taken);
        }
    }

    #[test]
    fn a_bare_400_or_422_is_not_for_good() {
        for (content_type, body) in [
            (Some("text/html"), b"<html>Bad Request</html>".to_vec()),
            (None, Vec::new()),
            (Some("application/json"), body("about:blank", 400)),
            (PROBLEM, body("about:blank", 500)),
            (PROBLEM, b"{\"title\":\"T\",\"status\":400}".to_vec()),
            (PROBLEM, b"not json".to_vec()),
        ] {
            let problem = Problem::read(400, content_type, &body);
            assert_eq!(problem, None);
            assert_eq!(meaning(400, problem.as_ref()), Meaning::Transient);
            assert_eq!(meaning(422, problem.as_ref()), Meaning::Transient);
        }
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now = Timestamp::from_secs(784_111_777 + 100); // this device is 100 s ahead
        let date = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        let read = |value| retry_after(value, date, now);
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read(" 0 "), Some(Duration::ZERO));
        assert_eq!(read("Sun, 06 Nov 1994 08:50:07 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(read("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:50:07 GMT", None, now), Some(Duration::ZERO));
        assert!(read("99999999999999999999999").unwrap() > Duration::from_secs(1 << 30));
        assert_eq!(read("-5"), None);
        assert_eq!(read("soon"), None);
        assert_eq!(read(""), None);
    }
}
