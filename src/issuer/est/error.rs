//! Failures of requests to an EST server, and their meaning for the lifecycle (X section 12).

use std::borrow::Cow;
use std::time::Duration;

use ::url::Url;

use super::pkcs7::BodyError;
use super::url::Operation;
use super::{EnrollmentToken, EstEndpoint, EstUrl};
use crate::hint::Hint;
use crate::issuer::error::{response_report, transport_failure_kind};
use crate::lifecycle::{Failure, FailureKind};
use crate::problem::{ProblemCode, Report};
use crate::transport::{ErrorResponse, Response, TransportError, shown};

/// A request to an EST server, and what authorizes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EstRequest {
    /// `/cacerts`.
    CaCertificates,
    /// `/simpleenroll`, by a token.
    EnrollWithToken,
    /// `/simpleenroll`, by a certificate.
    EnrollWithCertificate,
    /// `/simplereenroll`, by the current SVID.
    Renew {
        /// The request is signed by another key than the SVID's.
        rekey: bool,
    },
}

impl EstRequest {
    pub(super) fn operation(self) -> Operation {
        match self {
            Self::CaCertificates => Operation::CaCertificates,
            Self::EnrollWithToken | Self::EnrollWithCertificate => Operation::Enroll,
            Self::Renew { .. } => Operation::Renew,
        }
    }

    /// Whether a certificate may have been issued.
    fn issues(self) -> bool {
        self != Self::CaCertificates
    }
}

/// Why a request to an EST server has no usable result.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct EstError {
    /// The request.
    pub request: EstRequest,
    url: EstUrl,
    tls12: bool,
    cause: Cause,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Cause {
    /// No response, or none that can be used.
    #[error(transparent)]
    Transport(TransportError),
    /// An error response, and what its body shows beyond its status.
    #[error("{response}")]
    Response { response: Box<ErrorResponse>, sign: Sign },
    /// `202` (RFC 7030 section 4.2.3).
    #[error("{shown} has accepted the request, and has issued nothing yet", shown = shown(url))]
    Pending { url: Url, retry_after: Option<Duration> },
    /// A status that is none of EST.
    #[error("{shown} responded with {status}, which is not an EST response", shown = shown(url))]
    NotEst { url: Url, status: u16 },
    /// `200` with something else than what was requested.
    #[error("the response of {shown} cannot be used: {why}", shown = shown(url))]
    Unusable { url: Url, why: Unusable },
}

/// Why a `200` cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error("none of its {certificates} certificates is for the public key of the request")]
    NoLeaf { certificates: usize },
    #[error("it has two different certificates for the public key of the request")]
    SeveralLeaves,
}

/// What an error response shows of its cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// Its status alone.
    None,
    /// A front end refuses the client certificate, or wants one: `400` with a web page, or with a
    /// text that names a certificate.
    ClientCertificate,
    /// A front end requests the client certificate when it is too late.
    AfterHandshake,
    /// The server wants a password, by this scheme.
    Password(&'static str),
}

impl Cause {
    /// A response without success, whose texts were redacted: those in Problem Details are once more,
    /// since JSON has other ways to write them.
    pub(super) fn of_response(response: Response, url: &Url, token: Option<&EnrollmentToken>) -> Self {
        let status = response.status;
        match status {
            202 => return Self::Pending { url: url.clone(), retry_after: response.retry_after() },
            304 | ..300 => return Self::NotEst { url: url.clone(), status },
            _ => {}
        }
        let sign = match status {
            400 if response.is_web_page() || response.names_a_certificate() => Sign::ClientCertificate,
            495 | 496 => Sign::ClientCertificate, // nginx's own numbers for it
            403 if response.is_web_page() && response.says("post-handshake authentication") => {
                Sign::AfterHandshake
            }
            401 => response.password_scheme().map_or(Sign::None, Sign::Password),
            _ => Sign::None,
        };
        match response.into_error_response(url) {
            Ok(mut response) => {
                if let Some(token) = token {
                    response.redact(&|text| token.removed_from(text).into_owned());
                }
                Self::Response { response: Box::new(response), sign }
            }
            Err(why) => Self::Transport(why),
        }
    }
}

impl EstError {
    pub(super) fn new(request: EstRequest, endpoint: &EstEndpoint, cause: Cause) -> Self {
        Self { request, url: endpoint.url.clone(), tls12: endpoint.tls12, cause }
    }

    /// Converts the error for the lifecycle.
    pub fn to_failure(&self) -> Failure {
        let retry_after = match &self.cause {
            Cause::Response { response, .. } => response.retry_after,
            Cause::Pending { retry_after, .. } => *retry_after,
            _ => None,
        };
        Failure { kind: self.failure_kind(), retry_after, report: self.report() }
    }

    pub(in crate::issuer) fn failure_kind(&self) -> FailureKind {
        use TransportError as E;
        match &self.cause {
            Cause::Response { response, sign } => refusal(self.request, response.status, *sign),
            Cause::Pending { .. } if self.request.issues() => FailureKind::Pending,
            // A certificate may have been issued: each repetition may cost another one.
            Cause::Unusable { .. } | Cause::Transport(E::TooLarge { .. } | E::Malformed { .. })
                if self.request.issues() =>
            {
                FailureKind::Slow
            }
            Cause::Transport(E::ClientCertificateNotSent { .. } | E::ClientCertificateRequired { .. }) => {
                FailureKind::Slow
            }
            Cause::Transport(why) => transport_failure_kind(why),
            Cause::Pending { .. } | Cause::NotEst { .. } | Cause::Unusable { .. } => FailureKind::Transient,
        }
    }

    pub(in crate::issuer) fn report(&self) -> Report {
        use EstRequest as R;
        use ProblemCode as P;
        use TransportError as E;
        let (code, title) = match &self.cause {
            Cause::Response { response, sign } => {
                let code = refusal_code(response.status, self.failure_kind());
                return response_report(response, code, self.meaning(*sign)).with_hint(self.hint());
            }
            Cause::Pending { .. } if self.request.issues() => match self.request {
                R::Renew { .. } => (P::PendingAdmission, "The EST server has yet to process the renewal"),
                _ => (P::PendingAdmission, "The MIS has yet to approve the request"),
            },
            Cause::Pending { .. } | Cause::NotEst { .. } => {
                (P::MalformedResponse, "The response is not one of an EST server")
            }
            Cause::Unusable { .. } => (P::MalformedResponse, "The EST server's response cannot be used"),
            Cause::Transport(E::ClientCertificateNotSent { .. }) => match self.request {
                R::Renew { .. } => (P::UnsupportedByMis, "The MIS takes no SVID for a renewal"),
                _ => (P::UnsupportedByMis, "The MIS does not take the certificate form"),
            },
            Cause::Transport(E::ClientCertificateRequired { .. }) => {
                (P::UnsupportedByMis, "The EST server wants a client certificate of everyone")
            }
            Cause::Transport(E::ClientCertificateRefused { .. }) => {
                (P::CertificateRefused, "The EST server refused this device's certificate")
            }
            Cause::Transport(why) => match why.kind() {
                (code @ P::Redirected, _) => (code, "The EST server redirects"),
                (code @ P::MalformedResponse, _) => (code, "The EST server's response cannot be used"),
                (code @ P::Unreachable, _) => (code, "The EST server could not be reached"),
                (code @ P::Proxy, _) => (code, "The proxy does not lead to the EST server"),
                rest => rest,
            },
        };
        Report::of(code, title, self)
    }

    /// What an error response seems to mean, as a sentence without a full stop.
    fn meaning(&self, sign: Sign) -> Option<&'static str> {
        use EstRequest as R;
        match (sign, self.request) {
            (Sign::ClientCertificate, R::EnrollWithCertificate | R::Renew { .. }) => Some(
                "So a front end responds to a client certificate that it does not accept, that has expired, or whose \
                 chain is incomplete",
            ),
            (Sign::ClientCertificate, R::EnrollWithToken | R::CaCertificates) => Some(
                "So a front end responds that wants a client certificate of everyone; this request is made without \
                 one",
            ),
            (Sign::AfterHandshake, _) => Some(
                "The front end requests the client certificate for this path only, after the handshake, which is too \
                 late in TLS 1.3",
            ),
            (Sign::Password(_), R::Renew { .. }) => {
                Some("Renewal by certificate alone is not offered: the server wants a password")
            }
            _ => None,
        }
    }
}

/// What follows from an error response (X section 12).
fn refusal(request: EstRequest, status: u16, sign: Sign) -> FailureKind {
    use EstRequest as R;
    use FailureKind as K;
    let shows_certificate = matches!(request, R::EnrollWithCertificate | R::Renew { .. });
    match (status, sign) {
        (404 | 405 | 410 | 501, _) => return K::NotFound,
        (408 | 409 | 421 | 425 | 429 | 500.., _) => return K::Transient,
        (_, Sign::ClientCertificate) if shows_certificate => return K::NotAuthenticated,
        // The front end has not looked at the token.
        (_, Sign::ClientCertificate | Sign::AfterHandshake) if request == R::EnrollWithToken => {
            return K::Slow;
        }
        (401, _) if request != R::CaCertificates => return K::NotAuthenticated,
        _ => {}
    }
    match (request, status) {
        (R::CaCertificates, 401 | 403) => K::RefusedForNow,
        (R::CaCertificates, _) => K::Transient,
        (R::Renew { rekey: true }, _) => K::KeyRotationRefused,
        (_, 403) => K::NotAuthenticated,
        (R::Renew { rekey: false }, _) => K::Transient,
        (R::EnrollWithToken | R::EnrollWithCertificate, _) => K::RefusedForNow,
    }
}

fn refusal_code(status: u16, kind: FailureKind) -> ProblemCode {
    match kind {
        FailureKind::NotAuthenticated => ProblemCode::NotAuthenticated,
        FailureKind::KeyRotationRefused => ProblemCode::KeyRotationRefused,
        FailureKind::NotFound => ProblemCode::NotFound,
        FailureKind::Slow => ProblemCode::UnsupportedByMis,
        _ => match status {
            401 | 403 => ProblemCode::Denied,
            429 => ProblemCode::TooManyRequests,
            408 | 409 | 421 | 425 | 500.. => ProblemCode::ServerError,
            _ => ProblemCode::RequestRefused,
        },
    }
}

const OF_EVERYONE_HINT: &str = "Have the operator of the EST server make the client certificate optional at this URL; or, to enroll by a \
                                certificate, set cert_file and key under [identity.est]";
const URL_HINT: &str = "Compare mis.est_url, or estBaseUri of the discovery document, with what the operator of the MIS \
                        says: it ends in /.well-known/est or /.well-known/est/LABEL";
const OTHER_CONTENT_HINT: &str = "Show this to the operator of the EST server: a response is the base64 of a certs-only PKCS#7 message (RFC 8951), \
                                  of type application/pkcs7-mime";

impl Hint for EstError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        use EstRequest as R;
        use TransportError as E;
        let hint: Cow<'_, str> = match &self.cause {
            Cause::Response { response, sign } => return self.refusal_hint(response.status, *sign).map(Cow::Borrowed),
            Cause::Pending { .. } => match self.request {
                R::CaCertificates => URL_HINT.into(),
                R::Renew { .. } => {
                    "If it lasts, ask the operator of the MIS why: this request needs no approval".into()
                }
                _ => "Have the operator of the MIS approve the enrollment; the agent repeats its request by itself".into(),
            },
            Cause::NotEst { .. } => URL_HINT.into(),
            Cause::Unusable { why: Unusable::Body(BodyError::WebPage | BodyError::OtherMediaType(_)), .. } => {
                URL_HINT.into()
            }
            Cause::Unusable { why: Unusable::Body(_), .. } => OTHER_CONTENT_HINT.into(),
            Cause::Unusable { why: Unusable::NoLeaf { .. } | Unusable::SeveralLeaves, .. } => {
                "Show this to the operator of the EST server: a response has the one certificate that was issued for the \
                 request"
                    .into()
            }
            Cause::Transport(why) => match why {
                E::ClientCertificateNotSent { .. } => match self.request {
                    R::Renew { .. } => {
                        "Have the server that ends TLS request client certificates at this URL, in the handshake".into()
                    }
                    _ => "Have the server that ends TLS request client certificates at this URL, in the handshake; or, to \
                          enroll by a token, remove cert_file and key under [identity.est]"
                        .into(),
                },
                E::ClientCertificateRequired { .. } => OF_EVERYONE_HINT.into(),
                E::ClientCertificateRefused { .. } => self.certificate_hint().into(),
                E::TlsVersion { .. } if !self.tls12 => {
                    "Have the server support TLS 1.3; or, if it cannot, set tls12 = true under [identity.est]".into()
                }
                E::ServerNotTrusted { hint: None, .. } => {
                    "Provision the CA of the EST server in ca_file under [mis.trust], or pin it in spki_sha256; if that is \
                     right already, the server does not send its intermediates: have it send them"
                        .into()
                }
                E::Redirected { .. } => {
                    "Set mis.est_url, or have estBaseUri of the discovery document set, to the address itself".into()
                }
                E::Unreachable { .. } | E::TlsFailed { hint: None, .. } | E::TlsVersion { .. } | E::TimedOut { .. } => {
                    "If it lasts, compare mis.est_url, or estBaseUri of the discovery document, with what the operator of \
                     the MIS says, and see to firewalls and proxies on the way"
                        .into()
                }
                E::TooLarge { .. } | E::Malformed { .. } => OTHER_CONTENT_HINT.into(),
                _ => return why.hint(),
            },
        };
        Some(hint)
    }
}

/// What to do about an SVID that is refused at its renewal.
const SVID_REFUSED_HINT: &str = "Ask the operator of the MIS why the SVID of this device is refused: revoked, or of a CA \
                                 that the server does not know";

impl EstError {
    /// Whether the current SVID is refused at its renewal: only another enrollment helps on this side.
    pub(crate) fn refuses_svid(&self) -> bool {
        self.hint().is_some_and(|hint| hint == SVID_REFUSED_HINT)
    }

    /// What to do about a client certificate that is refused.
    fn certificate_hint(&self) -> &'static str {
        match self.request {
            EstRequest::Renew { .. } => SVID_REFUSED_HINT,
            _ => {
                "Have the operator of the MIS accept the certificate that cert_file under [identity.est] names; see that \
                 it is valid, and that its file has its intermediates"
            }
        }
    }

    fn refusal_hint(&self, status: u16, sign: Sign) -> Option<&'static str> {
        use EstRequest as R;
        let kind = refusal(self.request, status, sign);
        Some(match (self.request, kind, status) {
            (_, FailureKind::NotFound, _) if self.url.has_no_path() => {
                "Complete mis.est_url, or have estBaseUri of the discovery document completed, which names a host alone: \
                 it ends in /.well-known/est or /.well-known/est/LABEL"
            }
            (_, FailureKind::NotFound, _) if self.url.ends_in_operation() => {
                "Remove the operation at the end of mis.est_url or estBaseUri of the discovery document: the agent appends \
                 it itself"
            }
            (_, FailureKind::NotFound, _) => URL_HINT,
            (_, FailureKind::Slow, _) => OF_EVERYONE_HINT,
            (R::CaCertificates, _, 400) if sign == Sign::ClientCertificate => OF_EVERYONE_HINT,
            (R::CaCertificates, _, 401 | 403) => {
                "Have the operator of the EST server serve /cacerts to everyone, without a password or a certificate"
            }
            (R::Renew { .. }, FailureKind::NotAuthenticated, _) if matches!(sign, Sign::Password(_)) => {
                "Have the operator of the EST server accept the SVID alone at /simplereenroll, without a password"
            }
            (R::EnrollWithToken, FailureKind::NotAuthenticated, _) => {
                "Ask the operator of the MIS whether the token is still valid and unused, or for another one; replace it in \
                 its file, or with: miaf-agent enroll --token-file FILE"
            }
            (_, FailureKind::NotAuthenticated, _) => self.certificate_hint(),
            (R::Renew { .. }, FailureKind::KeyRotationRefused, _) => {
                "Set rotate = false under [identity.key], or ask the operator of the MIS to permit another key for this \
                 device"
            }
            (R::EnrollWithToken | R::EnrollWithCertificate, _, 500) => {
                "If it lasts, have the operator of the EST server look into its log; a CA that refuses an empty subject \
                 responds so: set common_name under [identity.est]"
            }
            (R::EnrollWithToken | R::EnrollWithCertificate, _, 400) => {
                "Show this to the operator of the EST server; if its CA wants a subject, set common_name under \
                 [identity.est]; once it is corrected: miaf-agent retry"
            }
            (_, _, 413) => {
                "Have the operator of the EST server allow requests of 64 KiB; then: miaf-agent retry"
            }
            (_, _, 415) => {
                "Have the operator of the EST server accept application/pkcs10; then: miaf-agent retry"
            }
            (_, _, 429) => "If it lasts, ask the operator of the MIS to raise its limit",
            (_, _, 400..500) if !matches!(status, 408 | 409 | 421 | 425) => {
                "Show this to the operator of the EST server; once it is corrected: miaf-agent retry"
            }
            _ => "If it lasts, show this to the operator of the EST server",
        })
    }
}
