//! Everything this server does wrong, and only on request of a test.

use crate::assertion::Claims;
use crate::tls::Credential;
use development_server::RawResponse;
use serde_json::json;
use std::time::Duration;

/// Where a fault takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `POST /api/v1/onboarding`
    Onboarding,
    /// `GET /api/v1/deployments`
    Deployments,
}

/// One thing to do wrong at one request. A wrong certificate of the server is
/// [`Wfm::show`](crate::Wfm::show).
#[derive(Debug, Clone)]
pub enum Fault {
    /// Cuts the connection before anything is processed.
    CutBefore,
    /// Processes the request, then cuts the connection without a response.
    LoseResponse,
    /// Waits, then processes.
    Stall(Duration),
    /// Processes nothing and responds with this.
    Response(RawResponse),
    /// Issues a wrong assertion.
    Assertion(AssertionFault),
}

impl Fault {
    /// A response with this status, headers and body.
    pub fn response(status: u16, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Self {
        Self::Response(RawResponse::new(status, headers, body))
    }

    /// A Problem Details response; a `code` without a slash or colon is one of W1, the empty one
    /// `about:blank`.
    pub fn problem(status: u16, code: &str, retry_after: Option<&str>) -> Self {
        let kind = match code {
            "" => "about:blank".to_owned(),
            code if code.contains([':', '/']) => code.to_owned(),
            code => format!("https://margo.org/docs/errors/{code}"),
        };
        let body = json!({"type": kind, "title": "Made by a test", "status": status});
        let mut headers = vec![("content-type", "application/problem+json")];
        headers.extend(retry_after.map(|value| ("retry-after", value)));
        Self::response(status, &headers, body.to_string())
    }
}

/// Ways in which an assertion may be wrong.
#[derive(Debug, Clone)]
pub enum AssertionFault {
    /// The assertion that was issued last, again; where there is none yet, a good one.
    Replayed,
    /// Over a minute ago.
    Expired,
    /// Issued in ten minutes.
    NotYetValid,
    /// Valid for ten minutes.
    TooLong,
    /// For another place.
    WrongAudience(String),
    /// Signed by another SVID, whose SPIFFE ID is in `iss` and `sub`: of a foreign trust domain, of
    /// another WFM, of a device.
    ForeignSigner(Credential),
    /// The own SVID in `x5c`, and signed with another key.
    WrongSignature(Credential),
    /// Signed by another SVID, under this WFM's name.
    ForeignSignerOwnName(Credential),
    /// About a client of another WFM.
    OtherWfmId(String),
    /// About another client than the one asked for.
    OtherHandle(String),
    /// Another `typ`.
    WrongType(String),
    /// Not a JWS at all.
    Garbage,
}

impl AssertionFault {
    /// Changes the claims before they are signed.
    pub(crate) fn bend(&self, claims: &mut Claims) {
        match self {
            Self::Expired => {
                claims.issued -= 400;
                claims.expires = claims.issued + 300;
            }
            Self::NotYetValid => {
                claims.issued += 600;
                claims.expires += 600;
            }
            Self::TooLong => claims.expires = claims.issued + 600,
            Self::WrongAudience(audience) => claims.audience.clone_from(audience),
            Self::OtherWfmId(id) => claims.wfm_id.clone_from(id),
            Self::OtherHandle(handle) => claims.handle.clone_from(handle),
            Self::WrongType(kind) => claims.kind.clone_from(kind),
            Self::Replayed
            | Self::ForeignSigner(_)
            | Self::WrongSignature(_)
            | Self::ForeignSignerOwnName(_)
            | Self::Garbage => {}
        }
    }
}

/// The faults waiting to take effect.
pub type Faults = development_server::Faults<Endpoint, Fault>;
