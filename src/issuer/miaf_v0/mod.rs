//! MIAF v0 (docs/conformance.md, E, R and P): enrollment and renewal as JSON, and the meaning of
//! Problem Details.

mod enrollment;
mod problem;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;

pub(super) use problem::margo_code;

use url::Url;

use super::{CertificateRequest, Discovery, IssuerError};
use crate::transport::{ClientIdentity, Response, ServerAuth, Transport};
use miaf_spiffe::SpiffeId;
use miaf_spiffe::svid::Chain;

/// Enrolls with the factory certificate (miaf-v0 E1).
pub(super) async fn enroll(
    transport: &Transport,
    discovery: &Discovery,
    csr: &CertificateRequest,
    factory: ClientIdentity,
) -> Result<Chain, IssuerError> {
    issue(transport, discovery.miaf_v0()?.identities_uri(), enrollment::enrollment(csr), factory).await
}

/// Renews with the current SVID (miaf-v0 R1).
pub(super) async fn renew(
    transport: &Transport,
    discovery: &Discovery,
    id: &SpiffeId,
    csr: &CertificateRequest,
    svid: ClientIdentity,
) -> Result<Chain, IssuerError> {
    issue(transport, discovery.miaf_v0()?.renewal_uri(id), enrollment::renewal(csr), svid).await
}

/// Enrolls a WFM Client as the device, with an assertion of its WFM (miaf-v0 W3).
pub(super) async fn enroll_with_assertion(
    transport: &Transport,
    discovery: &Discovery,
    csr: &CertificateRequest,
    assertion: &str,
    device: ClientIdentity,
) -> Result<Chain, IssuerError> {
    let body = enrollment::with_assertion(csr, assertion);
    issue(transport, discovery.miaf_v0()?.identities_uri(), body, device).await
}

async fn issue(
    transport: &Transport,
    url: Url,
    body: String,
    client: ClientIdentity,
) -> Result<Chain, IssuerError> {
    let limit = enrollment::MAX_RESPONSE;
    let response = transport.post_json(&url, body, client, ServerAuth::Provisioned, limit).await?;
    match response.status {
        200 | 201 => enrollment::read_response(&url, response.into_json(&url, limit)?.as_bytes()),
        _ => Err(error_response(response, &url)),
    }
}

/// Converts a response without success, with its meaning (miaf-v0 P).
pub(super) fn error_response(response: Response, url: &Url) -> IssuerError {
    match response.into_error_response(url) {
        Ok(response) => {
            let failure_kind = problem::failure_kind(response.status, response.problem.as_ref());
            IssuerError::Refused { response: Box::new(response), failure_kind }
        }
        Err(e) => e.into(),
    }
}
