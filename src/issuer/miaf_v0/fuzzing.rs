//! Fuzz targets: input from an MIS.

use url::Url;

use super::{Discovery, enrollment, problem as meanings};
use crate::transport;
use miaf_spiffe::testing::check_error;

fn url() -> Url {
    Url::parse("https://mis.example/").expect("a valid URL")
}

/// Checks a discovery document. An accepted one has its addresses below its base URI.
pub(crate) fn discovery(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    match Discovery::from_json(text) {
        Ok(document) => {
            assert_eq!(document.identities_uri().scheme(), "https");
            assert_eq!(document.trust_bundle_uri().scheme(), "https");
            if let Err(e) = document.check_origin(&url()) {
                check_error(e);
            }
            true
        }
        Err(e) => check_error(e),
    }
}

/// Checks an error response: its status in two bytes, then its body.
pub(crate) fn problem(data: &[u8]) -> bool {
    let [high, low, body @ ..] = data else { return false };
    let status = 400 + u16::from_be_bytes([*high, *low]) % 200;
    let problem = transport::fuzzing::problem(status, body);
    let _ = meanings::failure_kind(status, problem.as_ref());
    let Some(problem) = problem else { return false };
    for text in [Some(problem.kind), Some(problem.title), problem.detail, problem.instance] {
        check_error(text.unwrap_or_default());
    }
    true
}

/// Checks the response to an enrollment or a renewal.
pub(crate) fn issued(data: &[u8]) -> bool {
    match enrollment::read_response(&url(), data) {
        Ok(chain) => !chain.certificates().is_empty(),
        Err(e) => check_error(e),
    }
}
