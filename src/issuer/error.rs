//! Failures of requests to an issuer, and their meaning for the lifecycle.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use hyper::StatusCode;
use url::Url;

use super::est::EstError;
use super::miaf_v0::margo_code;
use super::{BundleLocation, DiscoveryError, MissingMember};
use crate::hint::{Hint, Reason};
use crate::lifecycle::{Failure, FailureKind};
use crate::problem::{MAX_DETAIL, ProblemCode, Report, ResponseReport};
use crate::transport::{ErrorResponse, ProxyError, TransportError, shown};
use miaf_spiffe::svid::SvidError;
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::{BundleError, TrustDomain};

/// Limit on the characters of the fault of a response.
const MAX_REASON: usize = 200;

/// Why an MIS may report that no certificate was sent.
const CERTIFICATE_NOT_REQUESTED: &str = "The server that ended TLS did not request a certificate \
                                         from this device: a load balancer or reverse proxy in \
                                         front of the MIS seems to end TLS there";
const CERTIFICATE_NOT_REQUESTED_HINT: &str =
    "Have it pass TLS through to the MIS, or have it request client certificates at this URL";

/// The same of a WFM, whose SVID shows that nothing ends TLS in front of it.
const NOT_REQUESTED_BY_WFM: &str = "The WFM did not request a certificate from this device";

const ASSERTION_REFUSED_HINT: &str =
    "Show this to the operators of the MIS and of the WFM: the MIS does not accept the assertion of the WFM";

const NO_DISCOVERY_DOCUMENT_HINT: &str = "Ask the operator of the MIS for the URL of its trust bundle, and set mis.bundle_url and mis.trust_domain in place of \
     mis.discovery_url or mis.origin";

const BUNDLE_FILE_HINT: &str =
    "Correct the file that mis.bundle_file names; it is read again at once when it changes";

/// The recipe is run by the tests of the documents.
pub(super) const NOT_A_BUNDLE_HINT: &str = "Make a bundle of the CA certificates, as docs/identities.md shows under \"With openssl, and no MIS at all\", and \
     put it in the place of the file";

/// Limit on the characters of a path.
const MAX_PATH: usize = 512;

/// Why a request to an issuer has no usable result.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// No response, or none that can be used.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// No issuer is configured.
    #[error("no MIS is configured")]
    NotConfigured,
    /// A request that needs the discovery document, before there is one.
    #[error("the discovery document of the MIS has not been fetched yet")]
    NotDiscovered,
    /// A renewal without a current SVID to authenticate it.
    #[error("there is no current SVID to renew")]
    NothingToRenew,
    /// The device has no SVID that could authenticate the request.
    #[error("the device has no SVID yet, which authenticates this enrollment")]
    NoDeviceIdentity,
    /// No issuer is asked for the SVIDs of this identity.
    #[error("an operator brings the SVIDs of this identity")]
    ByOperator,
    /// An error response of the issuer, or of an intermediary.
    #[error("{response}")]
    Refused {
        /// The response.
        response: Box<ErrorResponse>,
        /// Its meaning in the protocol of this issuer.
        failure_kind: FailureKind,
    },
    /// A request to an EST server without a usable result.
    #[error(transparent)]
    Est(Box<EstError>),
    /// No response of a WFM, or none that can be used.
    #[error(transparent)]
    Wfm(TransportError),
    /// An error response of a WFM (miaf-v0 W1).
    #[error("{response}")]
    WfmRefused {
        /// The response.
        response: Box<ErrorResponse>,
        /// Its meaning.
        failure_kind: FailureKind,
    },
    /// A WFM, and no bundle to authenticate it by.
    #[error("there is no trust bundle yet, and a WFM is authenticated by nothing else")]
    NoBundle,
    /// The issuer does not accept the assertion of a WFM (miaf-v0 W5).
    #[error("{response}")]
    AssertionRefused {
        /// The response.
        response: Box<ErrorResponse>,
        /// Its meaning.
        failure_kind: FailureKind,
    },
    /// A response that is not what the protocol says.
    #[error("the response of {shown} cannot be used: {what}", shown = shown(url))]
    Malformed {
        /// The URL of the request.
        url: Url,
        /// What is wrong with it.
        what: Excerpt,
    },
    /// The certificates that were issued are no chain.
    #[error(transparent)]
    Svid(SvidError),
    /// A discovery document that breaks D3 or D7.
    #[error("the discovery document at {shown} is refused: {why}", shown = shown(url))]
    Discovery {
        /// The URL of the request.
        url: Url,
        /// Why.
        why: DiscoveryError,
    },
    /// A discovery document, or a configuration, for another trust domain (miaf-v0 D6).
    #[error("{named_by} the trust domain \"{got}\", but {because} \"{want}\"")]
    OtherTrustDomain {
        /// What names the one that is refused.
        named_by: NamedBy,
        /// The trust domain that it names.
        got: TrustDomain,
        /// The expected one.
        want: TrustDomain,
        /// Where the expected one comes from.
        because: &'static str,
        /// What to do.
        hint: Cow<'static, str>,
    },
    /// A bundle file that cannot be read.
    #[error("the trust bundle {path} cannot be read: {why}", path = Excerpt::of(path.display(), MAX_PATH))]
    BundleFile {
        /// The file.
        path: PathBuf,
        /// Why.
        why: Reason,
    },
    /// A request of a protocol of which the discovery document says nothing.
    #[error("the discovery document does not say how the MIS issues: {0}")]
    NotOffered(#[from] MissingMember),
    /// A bundle that breaks B1 or B2.
    #[error("the trust bundle at {location} is refused: {why}")]
    Bundle {
        /// Where it was read.
        location: BundleLocation,
        /// Why.
        why: BundleError,
    },
    /// A bundle with a lower sequence than the current one (miaf-v0 B5).
    #[error(
        "the trust bundle at {location} has the sequence {served}, lower than the {current} of the \
         current one; it is used once it has been served for 24 hours"
    )]
    BundleRegressed {
        /// Where it was read.
        location: BundleLocation,
        /// Its sequence.
        served: u64,
        /// The sequence of the current bundle.
        current: u64,
        /// What to do.
        hint: &'static str,
    },
}

/// What names a trust domain that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedBy {
    /// The discovery document at this URL.
    Document(String),
    /// `mis.trust_domain` or a guard, where there is no discovery document.
    Configuration,
    /// The SVID of another identity, where nothing else names one.
    OtherIdentity,
}

impl NamedBy {
    fn title(&self) -> &'static str {
        match self {
            Self::Document(_) => "The discovery document is refused",
            Self::Configuration => "The configuration names another trust domain than that of this device",
            Self::OtherIdentity => "The identities of this device are in different trust domains",
        }
    }
}

impl fmt::Display for NamedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Document(url) => write!(f, "{} is for", Excerpt::of(url, MAX_PATH)),
            Self::Configuration => f.write_str("the configuration names"),
            Self::OtherIdentity => f.write_str("another identity of this device is in"),
        }
    }
}

impl From<EstError> for IssuerError {
    fn from(error: EstError) -> Self {
        Self::Est(Box::new(error))
    }
}

impl Hint for IssuerError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Transport(error) => error.hint(),
            Self::Est(error) => error.hint(),
            Self::Wfm(error) => wfm_hint(error),
            Self::WfmRefused { response, .. } => wfm_refusal_hint(response).map(Cow::Borrowed),
            Self::AssertionRefused { .. } => Some(ASSERTION_REFUSED_HINT.into()),
            Self::Discovery { why, .. } => why.hint(),
            Self::Svid(why) => Hint::hint(why),
            Self::BundleFile { why, .. } => Some(why.hint.as_deref().unwrap_or(BUNDLE_FILE_HINT).into()),
            Self::NotConfigured => Some("Set discovery_url under [mis]".into()),
            Self::OtherTrustDomain { hint, .. } => Some(Cow::Borrowed(hint)),
            Self::BundleRegressed { hint, .. } => Some((*hint).into()),
            Self::Refused { response, .. } if certificate_not_requested(response) => {
                Some(CERTIFICATE_NOT_REQUESTED_HINT.into())
            }
            Self::Refused { response, .. } if has_no_discovery_document(response) => {
                Some(NO_DISCOVERY_DOCUMENT_HINT.into())
            }
            Self::Bundle { location, why } => bundle_hint(location, why).map(Cow::Borrowed),
            Self::Refused { .. }
            | Self::NotDiscovered
            | Self::NothingToRenew
            | Self::NoDeviceIdentity
            | Self::NoBundle
            | Self::ByOperator
            | Self::NotOffered(_)
            | Self::Malformed { .. } => None,
        }
    }
}

impl IssuerError {
    /// Error for a 304 (Not Modified) where no document is cached.
    pub(crate) fn not_cached(url: &Url) -> Self {
        let what = Excerpt::of("304, and no document is cached that it could mean", MAX_REASON);
        Self::Malformed { url: url.clone(), what }
    }

    /// Converts the error for the lifecycle.
    pub fn to_failure(&self) -> Failure {
        let retry_after = match self {
            Self::Est(error) => return error.to_failure(),
            Self::Refused { response, .. }
            | Self::WfmRefused { response, .. }
            | Self::AssertionRefused { response, .. } => response.retry_after,
            _ => None,
        };
        Failure { kind: self.failure_kind(), retry_after, report: self.report() }
    }

    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Transport(error) | Self::Wfm(error) => transport_failure_kind(error),
            Self::Est(error) => error.failure_kind(),
            Self::NotConfigured | Self::NotDiscovered | Self::NothingToRenew | Self::ByOperator => {
                FailureKind::Local
            }
            Self::NoDeviceIdentity | Self::NoBundle => FailureKind::Transient,
            Self::Refused { failure_kind, .. }
            | Self::WfmRefused { failure_kind, .. }
            | Self::AssertionRefused { failure_kind, .. } => *failure_kind,
            Self::Svid(_) => FailureKind::Slow, // each costs the device one of its few renewals a day (E4)
            Self::OtherTrustDomain { .. } | Self::NotOffered(_) => FailureKind::Permanent,
            // A file that is just being replaced, perhaps.
            Self::BundleFile { .. }
            | Self::Malformed { .. }
            | Self::Discovery { .. }
            | Self::Bundle { .. }
            | Self::BundleRegressed { .. } => FailureKind::Transient,
        }
    }

    fn report(&self) -> Report {
        use ProblemCode as P;
        let (code, title) = match self {
            Self::Refused { response, failure_kind } | Self::AssertionRefused { response, failure_kind } => {
                let cause = certificate_not_requested(response).then_some(CERTIFICATE_NOT_REQUESTED);
                let report = response_report(response, response_code(response, *failure_kind), cause);
                return report.with_hint(self.hint());
            }
            Self::WfmRefused { response, .. } => {
                let cause = certificate_not_requested(response).then_some(NOT_REQUESTED_BY_WFM);
                return response_report(response, wfm_code(response), cause).with_hint(self.hint());
            }
            Self::Est(error) => return error.report(),
            Self::Transport(error) => error.kind(),
            Self::Wfm(error) => wfm_kind(error),
            Self::NoBundle => (P::WfmNotTrusted, "The WFM cannot be authenticated"),
            Self::NotConfigured => (P::Configuration, "No MIS is configured"),
            Self::NotDiscovered => (P::NotDiscovered, "The discovery document has not been fetched yet"),
            Self::NothingToRenew => (P::NothingToRenew, "There is no SVID to renew"),
            Self::NoDeviceIdentity => (P::DeviceIdentityNeeded, "The device has no identity yet"),
            Self::ByOperator => (P::OperatorNeeded, "An operator brings the SVIDs of this identity"),
            Self::Malformed { .. } => (P::MalformedResponse, "The MIS's response cannot be used"),
            Self::Svid(_) => (P::SvidRefused, "The SVID that the MIS issued is refused"),
            Self::Discovery { .. } => (P::DiscoveryRefused, "The discovery document is refused"),
            Self::OtherTrustDomain { named_by, .. } => (P::DiscoveryRefused, named_by.title()),
            Self::NotOffered(_) => (P::UnsupportedByMis, "The MIS issues nothing over the network"),
            Self::Bundle { .. } | Self::BundleFile { .. } | Self::BundleRegressed { .. } => {
                (P::BundleRefused, "The trust bundle is refused")
            }
        };
        Report::of(code, title, self)
    }
}

pub(super) fn transport_failure_kind(error: &TransportError) -> FailureKind {
    use TransportError as E;
    match error {
        E::NoTrust | E::TrustFile { .. } | E::NoSystemRoots { .. } | E::TlsSetup(_) => FailureKind::Local,
        E::Proxy { why, .. } => match why {
            ProxyError::Environment { .. } | ProxyError::Secret(_) | ProxyError::SecretForm => {
                FailureKind::Local
            }
            ProxyError::Unreachable { .. }
            | ProxyError::NameNotResolved { .. }
            | ProxyError::AuthRequired { .. }
            | ProxyError::AuthRefused { .. }
            | ProxyError::Forbidden { .. }
            | ProxyError::NoTunnel { .. } => FailureKind::Transient,
        },
        E::ClientCertificateRefused { .. } => FailureKind::NotAuthenticated,
        E::Offline { .. } | E::NameNotResolved { has_default_route: false, .. } => FailureKind::Offline,
        E::NameNotResolved { .. }
        | E::Unreachable { .. }
        | E::TlsFailed { .. }
        | E::TlsVersion { .. }
        | E::ClientCertificateNotSent { .. }
        | E::ClientCertificateRequired { .. }
        | E::ServerNotTrusted { .. }
        | E::PeerNotTrusted { .. }
        | E::TimedOut { .. }
        | E::TooLarge { .. }
        | E::Redirected { .. }
        | E::Malformed { .. } => FailureKind::Transient,
    }
}

/// Code and title of a request to a WFM without a usable response.
fn wfm_kind(error: &TransportError) -> (ProblemCode, &'static str) {
    use TransportError as E;
    let (code, title) = error.kind();
    match error {
        E::ClientCertificateRefused { .. } => {
            (ProblemCode::WfmRefused, "The WFM refused this device's certificate")
        }
        E::Redirected { .. } => (code, "The WFM redirects"),
        E::TooLarge { .. } | E::Malformed { .. } => (code, "The WFM's response cannot be used"),
        E::Proxy { .. } => (code, "The proxy does not lead to the WFM"),
        E::Unreachable { .. } | E::TlsFailed { .. } | E::TlsVersion { .. } | E::TimedOut { .. } => {
            (code, "The WFM could not be reached")
        }
        _ => (code, title),
    }
}

/// What to do about it. The remedies of these codes are about an MIS.
fn wfm_hint(error: &TransportError) -> Option<Cow<'_, str>> {
    use TransportError as E;
    let of_wfm = match error {
        E::Redirected { .. } => "Set url under [identity.wfm] to the address itself",
        E::TooLarge { .. } | E::Malformed { .. } => "Show this to the operator of the WFM",
        E::Unreachable { .. }
        | E::TlsFailed { hint: None, .. }
        | E::TlsVersion { .. }
        | E::TimedOut { .. } => {
            "If it lasts, compare url under [identity.wfm] with what the operator of the WFM says, and see to \
             firewalls and a proxy on the way"
        }
        _ => return error.hint(),
    };
    Some(of_wfm.into())
}

/// The code of a WFM's error response.
fn wfm_code(response: &ErrorResponse) -> ProblemCode {
    match response.status {
        400..500 => ProblemCode::WfmRefused,
        _ => ProblemCode::ServerError,
    }
}

/// What to do about a WFM's error response. `None`: have the WFM accept this device.
fn wfm_refusal_hint(response: &ErrorResponse) -> Option<&'static str> {
    let code = response.problem.as_ref().and_then(|problem| margo_code(&problem.kind));
    match (response.status, code) {
        _ if certificate_not_requested(response) => {
            Some("Have the WFM request client certificates at this URL")
        }
        (_, Some("wfm-client-handle-conflict" | "wfm-client-id-conflict")) => Some(
            "Set another client_handle under [identity.wfm]; or have the operator of the WFM release this \
             one, then: miaf-agent retry",
        ),
        (401, _) => Some(
            "Ask the operator of the WFM why it does not accept the SVID of this device: its trust bundle or \
             its clock may be wrong",
        ),
        (403, _) => None,
        (404, _) => Some(
            "Set url under [identity.wfm] to what comes before /api/v1/onboarding; a WFM without that call has \
             its clients enrolled by hand: enroll = \"manual\"",
        ),
        (429, _) => Some("If it lasts, ask the operator of the WFM to raise its limit"),
        (400..500, _) => Some("Show this to the operator of the WFM; once it is corrected: miaf-agent retry"),
        _ => Some("If it lasts, show this to the operator of the WFM"),
    }
}

/// What to do about a bundle that is refused. `None`: have the operator of the MIS correct it.
fn bundle_hint(location: &BundleLocation, why: &BundleError) -> Option<&'static str> {
    match (why, location) {
        (BundleError::NotOneEntry(_), _) => {
            Some("Set trust_domain under [mis]; or provide the bundle of one trust domain alone")
        }
        (_, BundleLocation::Url(_)) => None,
        (BundleError::OtherEncoding(_), BundleLocation::File(_)) => Some(NOT_A_BUNDLE_HINT),
        (BundleError::NoEntry(_), BundleLocation::File(_)) => Some(
            "Correct trust_domain under [mis] or spiffe_id under [[identity]]; or put a bundle of this trust domain in the \
             place of the file that mis.bundle_file names",
        ),
        (_, BundleLocation::File(_)) => Some(BUNDLE_FILE_HINT),
    }
}

/// Whether the server may have refused the request because it did not request a client certificate.
fn certificate_not_requested(response: &ErrorResponse) -> bool {
    response.certificate_not_requested && (400..500).contains(&response.status)
}

/// Whether the MIS says that it has no discovery document (N3).
fn has_no_discovery_document(response: &ErrorResponse) -> bool {
    let problem = response.problem.as_ref();
    problem.and_then(|problem| margo_code(&problem.kind)) == Some("discovery-document-not-found")
}

/// The code of an error response, by what follows from it.
fn response_code(response: &ErrorResponse, failure_kind: FailureKind) -> ProblemCode {
    match failure_kind {
        FailureKind::Pending => ProblemCode::PendingAdmission,
        FailureKind::KeyRotationRefused => ProblemCode::KeyRotationRefused,
        FailureKind::NotAuthenticated => ProblemCode::NotAuthenticated,
        FailureKind::Permanent => ProblemCode::RequestRefused,
        FailureKind::Slow => ProblemCode::Denied,
        FailureKind::NotFound => ProblemCode::NotFound,
        _ if response.status == StatusCode::TOO_MANY_REQUESTS.as_u16() => ProblemCode::TooManyRequests,
        _ => ProblemCode::ServerError,
    }
}

/// Reports an error response. `cause`: what may have led to it, as a sentence.
pub(super) fn response_report(response: &ErrorResponse, code: ProblemCode, cause: Option<&str>) -> Report {
    let ErrorResponse { url, status, problem, excerpt, .. } = response;
    let url = shown(url);
    // A server's own text is bounded, so that there is room for this.
    let cause = cause.map(|cause| format!(". {cause}")).unwrap_or_default();
    let (title, detail) = match problem {
        // The MIS's own text, unchanged (P3).
        Some(problem) => (
            problem.title.to_string(),
            // With its source: it may be another server than intended.
            match &problem.detail {
                Some(detail) => limited(format_args!("{detail} (response of {url}){cause}")),
                None => limited(format_args!("response of {url}{cause}")),
            },
        ),
        None => (
            match StatusCode::from_u16(*status).ok().and_then(|code| code.canonical_reason()) {
                Some(reason) => format!("The server responded with {status} {reason}"),
                None => format!("The server responded with {status}"),
            },
            match excerpt {
                Some(excerpt) => limited(format_args!("{url} responded: {excerpt}{cause}")),
                None => limited(format_args!("{url} responded without a body{cause}")),
            },
        ),
    };
    Report {
        code: code.into(),
        title,
        detail: Some(detail),
        hint: None,
        response: Some(ResponseReport {
            status: *status,
            kind: problem.as_ref().map(|problem| problem.kind.to_string()),
            instance: problem.as_ref().and_then(|problem| problem.instance.as_ref()).map(ToString::to_string),
        }),
    }
}

fn limited(text: fmt::Arguments<'_>) -> String {
    Excerpt::of(text, MAX_DETAIL).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::ProblemDetails;

    /// The errors of a device that cannot make a request, one of each kind.
    fn local_errors() -> Vec<IssuerError> {
        let no_system_roots =
            |from_environment| TransportError::NoSystemRoots { why: "empty".into(), from_environment };
        vec![
            TransportError::NoTrust.into(),
            TransportError::TrustFile { path: "/etc/ca.pem".into(), why: "no certificate".into() }.into(),
            no_system_roots(false).into(),
            no_system_roots(true).into(),
            TransportError::TlsSetup(rustls::Error::FailedToGetRandomBytes).into(),
            IssuerError::NotConfigured,
            IssuerError::NotDiscovered,
            IssuerError::NothingToRenew,
        ]
    }

    #[test]
    fn missing_trust_is_reported_in_no_other_situation() {
        for error in local_errors() {
            let failure = error.to_failure();
            assert_eq!(failure.kind, FailureKind::Local, "{error}");
            let is_missing = matches!(error, IssuerError::Transport(TransportError::NoTrust));
            let said = |text: &str| text.to_lowercase().contains("no trust anchor is configured");
            assert_eq!(said(&failure.report.title), is_missing, "{:?}", failure.report);
            assert_eq!(said(failure.report.detail.as_deref().unwrap()), is_missing, "{:?}", failure.report);
            assert_eq!(
                failure.report.code == ProblemCode::NoInitialTrust,
                is_missing,
                "{:?}",
                failure.report
            );
        }
    }

    #[test]
    fn hints_are_imperatives_apart_from_the_message() {
        let now = miaf_spiffe::time::Timestamp::from_secs(0);
        let svid = [
            SvidError::FarFuture { not_before: now, now },
            SvidError::SerialInUse { serial: "07".into() },
            SvidError::EmptyChain,
        ];
        for error in local_errors().into_iter().chain(svid.map(IssuerError::Svid)) {
            crate::hint::assert_apart(&error);
            let Some(hint) = error.hint() else { continue };
            let (message, report) = (error.to_string(), error.report());
            assert_eq!((report.detail.as_deref(), report.hint()), (Some(&*message), Some(&*hint)));
        }
    }

    /// No remedy of a WFM's error is about an MIS, nor the other way round.
    #[test]
    fn errors_of_a_wfm_have_remedies_of_their_own() {
        let url: Url = "https://wfm.example/api/v1/onboarding".parse().unwrap();
        let why = || "it".to_owned();
        let refused = |status: u16, certificate_not_requested| IssuerError::WfmRefused {
            response: Box::new(ErrorResponse {
                url: url.clone(),
                status,
                problem: None,
                retry_after: None,
                excerpt: None,
                certificate_not_requested,
            }),
            failure_kind: FailureKind::Transient,
        };
        use TransportError as T;
        let not_reached = [
            T::Unreachable { url: url.clone(), why: why() },
            T::TimedOut { url: url.clone(), limit: std::time::Duration::from_secs(30) },
            T::TooLarge { url: url.clone(), limit: 1 },
            T::ClientCertificateRefused { url: url.clone(), why: why() },
            T::PeerNotTrusted { url: url.clone(), why: why(), hint: None },
            T::Redirected { url: url.clone(), status: 302, location: Excerpt::of("x", 9) },
            T::Malformed { url: url.clone(), what: Excerpt::of("x", 9) },
        ];
        let refusals = [400, 401, 403, 404, 409, 422, 429, 500, 503].map(|status| refused(status, false));
        let all = not_reached.into_iter().map(IssuerError::Wfm).chain(refusals).chain([refused(401, true)]);
        for error in all {
            crate::hint::assert_apart(&error);
            let report = error.report();
            let hint = report.hint().unwrap();
            assert!(hint.contains("WFM") || hint.contains("identity.wfm"), "{error}: {hint}");
            assert!(!hint.contains("MIS") && !report.title.contains("MIS"), "{report:?}");
        }
    }

    #[test]
    fn issued_certificates_that_are_no_chain_are_a_refused_svid() {
        let failure = IssuerError::Svid(SvidError::EmptyChain).to_failure();
        assert_eq!((failure.kind, failure.retry_after), (FailureKind::Slow, None));
        assert_eq!(failure.report.code, ProblemCode::SvidRefused);
        assert_eq!(failure.report.title, "The SVID that the MIS issued is refused");
    }

    /// Programs go by the code: no server chooses it.
    #[test]
    fn code_of_a_response_follows_from_its_meaning() {
        let url: Url = "https://mis.example/".parse().unwrap();
        let code = |status, failure_kind| {
            let kind = "urn:miaf-agent:error:key-lost";
            let body = format!(r#"{{"type":"{kind}","title":"T","status":{status}}}"#);
            let problem =
                ProblemDetails::read(status, Some("application/problem+json"), body.as_bytes()).unwrap();
            let response = ErrorResponse {
                url: url.clone(),
                status,
                problem: Some(problem),
                retry_after: None,
                excerpt: None,
                certificate_not_requested: false,
            };
            let report =
                IssuerError::Refused { response: Box::new(response), failure_kind }.to_failure().report;
            assert_eq!(report.response.unwrap().kind.as_deref(), Some(kind), "the MIS's own word (P3)");
            report.code.known().unwrap()
        };
        use FailureKind as F;
        use ProblemCode as P;
        for (status, failure_kind, expected) in [
            (409, F::Pending, P::PendingAdmission),
            (409, F::KeyRotationRefused, P::KeyRotationRefused),
            (401, F::NotAuthenticated, P::NotAuthenticated),
            (400, F::Permanent, P::RequestRefused),
            (403, F::Slow, P::Denied),
            (404, F::NotFound, P::NotFound),
            (429, F::Transient, P::TooManyRequests),
            (503, F::Transient, P::ServerError),
        ] {
            assert_eq!(code(status, failure_kind), expected);
        }
    }

    #[test]
    fn long_url_leaves_room_for_the_reason() {
        let url = Url::parse(&format!("{:a<2048}", "https://mis.example/")).unwrap();
        use IssuerError as E;
        let why = || "the reason".to_owned();
        for error in [
            E::from(TransportError::Unreachable { url: url.clone(), why: why() }),
            TransportError::Offline { url: url.clone(), why: why() }.into(),
            TransportError::NameNotResolved {
                url: url.clone(),
                name: "mis.example".into(),
                why: "the reason",
                has_default_route: true,
            }
            .into(),
            TransportError::ServerNotTrusted { url: url.clone(), why: why(), hint: None }.into(),
            TransportError::ClientCertificateRefused { url: url.clone(), why: why() }.into(),
            E::Wfm(TransportError::PeerNotTrusted { url: url.clone(), why: why(), hint: None }),
            E::Wfm(TransportError::ClientCertificateRefused { url: url.clone(), why: why() }),
            E::WfmRefused {
                response: Box::new(ErrorResponse {
                    url: url.clone(),
                    status: 401,
                    problem: None,
                    retry_after: None,
                    excerpt: Some(Excerpt::of("the reason", 99)),
                    certificate_not_requested: true,
                }),
                failure_kind: FailureKind::NotAuthenticated,
            },
            E::Malformed { url: url.clone(), what: Excerpt::of("the reason", 99) },
            TransportError::Redirected {
                url: url.clone(),
                status: 302,
                location: Excerpt::of("the reason", 99),
            }
            .into(),
            E::Bundle {
                location: BundleLocation::Url(url.clone()),
                why: BundleError::Anchor { index: 0, why: why() },
            },
            E::OtherTrustDomain {
                named_by: NamedBy::Document(url.to_string()),
                got: TrustDomain::parse("other.example").unwrap(),
                want: TrustDomain::parse("factory.example").unwrap(),
                because: "the reason says",
                hint: "".into(),
            },
            E::Refused {
                response: Box::new(ErrorResponse {
                    url: url.clone(),
                    status: 403,
                    problem: None,
                    retry_after: None,
                    excerpt: Some(Excerpt::of("the reason", 99)),
                    certificate_not_requested: true,
                }),
                failure_kind: FailureKind::Slow,
            },
        ] {
            let detail = error.report().detail.unwrap_or_default();
            assert!(detail.contains("the reason") && !detail.ends_with('…'), "{detail}");
            assert!(detail.contains("https://mis.example/aaa") && detail.len() < 1100, "{detail}");
            assert!(error.to_string().len() < 1100, "{error}");
        }
    }

    #[test]
    fn unresolved_name_without_a_default_route_is_offline() {
        let failure_kind = |has_default_route| {
            let url = Url::parse("https://mis.example/").unwrap();
            transport_failure_kind(&TransportError::NameNotResolved {
                url,
                name: "mis.example".into(),
                why: "",
                has_default_route,
            })
        };
        assert_eq!(failure_kind(false), FailureKind::Offline);
        assert_eq!(failure_kind(true), FailureKind::Transient);
    }

    #[test]
    fn front_that_requests_no_certificate_is_named() {
        let refused = |status, certificate_not_requested| IssuerError::Refused {
            response: Box::new(ErrorResponse {
                url: "https://mis.example/api/v1/identities".parse().unwrap(),
                status,
                problem: None,
                retry_after: None,
                excerpt: Some(Excerpt::of("no client certificate", 80)),
                certificate_not_requested,
            }),
            failure_kind: FailureKind::Transient,
        };
        for (status, certificate_not_requested, named) in
            [(401, true, true), (400, true, true), (401, false, false), (503, true, false)]
        {
            let detail = refused(status, certificate_not_requested).to_failure().report.detail.unwrap();
            assert!(detail.contains("no client certificate"), "{detail}");
            assert_eq!(
                detail.contains("load balancer or reverse proxy"),
                named,
                "{status} {certificate_not_requested}: {detail}"
            );
        }
    }

    #[test]
    fn misconfigured_proxy_is_a_local_failure() {
        let failure_kind = |why| {
            let url = Url::parse("https://mis.example/").unwrap();
            transport_failure_kind(&TransportError::Proxy { url, why })
        };
        let environment = ProxyError::Environment { variable: "ALL_PROXY", why: String::new() };
        assert_eq!(failure_kind(environment), FailureKind::Local);
        assert_eq!(failure_kind(ProxyError::SecretForm), FailureKind::Local);
        let text = String::new;
        assert_eq!(failure_kind(ProxyError::Forbidden { proxy: text(), to: text() }), FailureKind::Transient);
    }
}
