//! FailureKind of each error response (miaf-v0 P).

use crate::lifecycle::FailureKind;
use crate::transport::ProblemDetails;

/// Prefixes of Margo's problem types: those of MIAF v0, and those of the released specification
/// (N13).
const MARGO_ERRORS: [&str; 2] =
    ["https://margo.org/docs/errors/", "https://docs.margo.org/specification/problem-types#"];

/// The code in a problem type of Margo's. `None`: it is another's.
pub(in crate::issuer) fn margo_code(kind: &str) -> Option<&str> {
    MARGO_ERRORS.iter().find_map(|prefix| kind.strip_prefix(prefix))
}

/// Looks up the table of miaf-v0 P. Known types are identified by their name, unknown ones by the
/// status (P1). A `400` or `422` is permanent only with a genuine Problem Details body (P5).
pub(super) fn failure_kind(status: u16, problem: Option<&ProblemDetails>) -> FailureKind {
    let code = problem.and_then(|problem| margo_code(&problem.kind));
    match code {
        Some("enrollment-pending") => return FailureKind::Pending,
        Some("key-rotation-not-permitted") => return FailureKind::KeyRotationRefused,
        Some("too-many-requests") => return FailureKind::Transient,
        Some("invalid-bootstrap-proof") => return FailureKind::NotAuthenticated,
        Some(
            "invalid-svid-request" | "invalid-audience" | "unsupported-method" | "unsupported-svid-profile",
        ) => {
            return FailureKind::Permanent;
        }
        Some("not-authorized") => return FailureKind::Slow,
        Some("discovery-document-not-found" | "spiffe-bundle-not-found") => return FailureKind::NotFound,
        _ => {}
    }
    match status {
        400 | 422 if problem.is_some() => FailureKind::Permanent,
        401 => FailureKind::NotAuthenticated,
        403 => FailureKind::Slow,
        404 => FailureKind::NotFound,
        _ => FailureKind::Transient,
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
            ("https://margo.org/docs/errors/invalid-svid-request", 400, FailureKind::Permanent),
            ("https://margo.org/docs/errors/invalid-bootstrap-proof", 401, FailureKind::NotAuthenticated),
            ("https://margo.org/docs/errors/invalid-audience", 400, FailureKind::Permanent),
            ("https://margo.org/docs/errors/unsupported-method", 422, FailureKind::Permanent),
            ("https://margo.org/docs/errors/unsupported-svid-profile", 422, FailureKind::Permanent),
            (
                "https://margo.org/docs/errors/key-rotation-not-permitted",
                409,
                FailureKind::KeyRotationRefused,
            ),
            ("https://margo.org/docs/errors/too-many-requests", 429, FailureKind::Transient),
            ("https://margo.org/docs/errors/enrollment-pending", 409, FailureKind::Pending),
            ("https://margo.org/docs/errors/of-the-future", 409, FailureKind::Transient),
            ("https://margo.org/docs/errors/of-the-future", 422, FailureKind::Permanent),
            // Of the released specification (N13).
            ("https://docs.margo.org/specification/problem-types#not-authorized", 403, FailureKind::Slow),
            (
                "https://docs.margo.org/specification/problem-types#discovery-document-not-found",
                404,
                FailureKind::NotFound,
            ),
            (
                "https://docs.margo.org/specification/problem-types#spiffe-bundle-not-found",
                404,
                FailureKind::NotFound,
            ),
            (
                "https://docs.margo.org/specification/problem-types#server-cannot-generate-response",
                406,
                FailureKind::Transient,
            ),
            (
                "https://docs.margo.org/specification/problem-types#enrollment-pending",
                409,
                FailureKind::Pending,
            ),
            ("https://docs.margo.org/specification/problem-types", 403, FailureKind::Slow),
            ("about:blank", 400, FailureKind::Permanent),
            ("about:blank", 401, FailureKind::NotAuthenticated),
            ("about:blank", 403, FailureKind::Slow),
            ("about:blank", 404, FailureKind::NotFound),
            ("about:blank", 408, FailureKind::Transient),
            ("about:blank", 503, FailureKind::Transient),
        ] {
            let problem = ProblemDetails::read(status, PROBLEM, &body(code, status)).unwrap();
            assert_eq!(failure_kind(status, Some(&problem)), want, "{code} {status}");
        }
    }

    #[test]
    fn bare_400_or_422_is_not_permanent() {
        for status in [400, 422] {
            assert_eq!(failure_kind(status, None), FailureKind::Transient);
        }
    }
}
