//! Fuzz targets: input from an MIS, and from a WFM.

use url::Url;

use super::{enrollment, problem as meanings};
use crate::issuer::{BootstrapMethod, BundleLocation, Discovery};
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
            if let Ok(v0) = document.miaf_v0() {
                assert_eq!(v0.identities_uri().scheme(), "https");
            }
            let BundleLocation::Url(bundle) = document.bundle() else { return false };
            assert_eq!(bundle.scheme(), "https");
            for refused in [document.check_origin(&url()), document.check_bundle_origin(&url(), &[])] {
                if let Err(e) = refused {
                    check_error(e);
                }
            }
            for report in [BootstrapMethod::FactoryCert, BootstrapMethod::WfmBinding]
                .map(|method| document.rules_out_enrollment(method, "device", "do something else"))
            {
                check_error(report.map(|report| report.message()).unwrap_or_default());
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

/// Checks the response to an onboarding at a WFM.
pub(crate) fn onboarded(data: &[u8]) -> bool {
    crate::issuer::wfm_binding::fuzz(data)
}

/// Checks the response to an enrollment or a renewal.
pub(crate) fn issued(data: &[u8]) -> bool {
    match enrollment::read_response(&url(), data) {
        Ok(chain) => !chain.certificates().is_empty(),
        Err(e) => check_error(e),
    }
}
