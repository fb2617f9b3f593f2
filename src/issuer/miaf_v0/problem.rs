//! Meaning of each error response (miaf-v0 P).

use crate::lifecycle::Meaning;
use crate::transport::ProblemDetails;

const MARGO_ERRORS: &str = "https://margo.org/docs/errors/";

/// Looks up the table of miaf-v0 P. Known types are identified by their name, unknown ones by the
/// status (P1). A `400` or `422` is permanent only with a genuine Problem Details body (P5).
pub(super) fn meaning(status: u16, problem: Option<&ProblemDetails>) -> Meaning {
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
    fn problem_types_have_the_meanings_of_the_table() {
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
            let problem = ProblemDetails::read(status, PROBLEM, &body(code, status)).unwrap();
            assert_eq!(meaning(status, Some(&problem)), want, "{code} {status}");
        }
    }

    #[test]
    fn bare_400_or_422_is_not_permanent() {
        for status in [400, 422] {
            assert_eq!(meaning(status, None), Meaning::Transient);
        }
    }
}
