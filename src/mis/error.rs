//! Everything that can go wrong between this device and its MIS, as a person can act on it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use hyper::StatusCode;
use url::Url;

use super::{DiscoveryError, Problem, ProxyError, problem};
use crate::lifecycle::{Failure, MAX_DETAIL, Meaning, Report};
use crate::spiffe::{BundleError, TrustDomain};
use crate::text::Excerpt;

/// Characters of a reason that comes from elsewhere.
const MAX_REASON: usize = 200;

/// Why an MIS may say that no certificate was shown.
const UNASKED: &str = ". The server that ended TLS did not ask this device for its certificate: a load balancer or reverse \
                       proxy in front of the MIS seems to end TLS there. Have it pass TLS through to the MIS, or ask for \
                       client certificates at this URL";

/// Why the MIS gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum MisError {
    /// Nothing is configured that could authenticate the MIS. No one was contacted (miaf-v0 T2).
    #[error(
        "no initial trust is configured, so no one is contacted: set ca_file, spki_sha256 or system_roots under \
         [mis.trust]"
    )]
    NoTrust,
    /// A trust file that cannot be used.
    #[error("the trust anchors for the MIS in {path} cannot be used: {why}")]
    TrustFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// `system_roots` is set, and there are none.
    #[error(
        "the operating system's store of CAs (system_roots) holds none that can be used: {0}. Install the package \
         ca-certificates, or correct SSL_CERT_FILE and SSL_CERT_DIR if they are set"
    )]
    NoSystemRoots(String),
    /// The proxy on the way to the MIS.
    #[error("{url} could not be asked: {why}")]
    Proxy {
        /// What was asked.
        url: Url,
        /// What the proxy did, or why it was not asked.
        why: ProxyError,
    },
    /// TLS could not be set up on this side.
    #[error("TLS could not be set up: {0}")]
    TlsSetup(rustls::Error),
    /// Nothing can leave this device: a link is down, or an address or a default route is missing.
    #[error(
        "{url} could not be reached, for no network route leads there from this device: {why}. Check the cable or the \
         radio, the address of the interface, and the default route"
    )]
    Offline {
        /// What was asked.
        url: Url,
        /// The innermost reasons.
        why: String,
    },
    /// The name of the MIS leads to no address, though this device is in a network.
    #[error(
        "{url} could not be reached, for the name \"{name}\" cannot be resolved: {why}. Check the name in the \
         configuration, and the name servers of this device (/etc/resolv.conf){}",
        if *has_way_out { "" } else { ". It has no default route either: check its uplink" }
    )]
    NameNotResolved {
        /// What was asked.
        url: Url,
        /// The name.
        name: String,
        /// Whether it is the name or the server.
        why: &'static str,
        /// There is a default route. Without one the network may be one on this device (a bridge for containers).
        has_way_out: bool,
    },
    /// No connection, or no answer on it.
    #[error("{url} could not be reached: {why}")]
    Unreachable {
        /// What was asked.
        url: Url,
        /// The innermost reasons.
        why: String,
    },
    /// The server is not one that the initial trust vouches for.
    #[error("the server at {url} is not trusted: {why}")]
    ServerNotTrusted {
        /// What was asked.
        url: Url,
        /// Why.
        why: String,
    },
    /// The server ended the handshake because of this device's certificate.
    #[error("{url} refused this device's certificate in the TLS handshake: {why}")]
    ClientCertificateRefused {
        /// What was asked.
        url: Url,
        /// What its TLS alert says.
        why: String,
    },
    /// No complete answer in time.
    #[error("{url} did not answer completely within {} seconds", limit.as_secs())]
    TimedOut {
        /// What was asked.
        url: Url,
        /// The time it had.
        limit: Duration,
    },
    /// An answer larger than anything believable.
    #[error("the answer of {url} is larger than {limit} bytes")]
    TooLarge {
        /// What was asked.
        url: Url,
        /// Bytes.
        limit: usize,
    },
    /// The MIS said no, or something between said so.
    #[error("{url} answered {status}{}", .problem.as_ref().map(|p| format!(" {}", p.title)).unwrap_or_default())]
    Refused {
        /// What was asked.
        url: Url,
        /// HTTP status.
        status: u16,
        /// A genuine Problem Details body.
        problem: Option<Problem>,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
        /// The beginning of any other body.
        excerpt: Option<Excerpt>,
        /// The server did not ask for the client certificate that it was to be shown.
        unasked: bool,
    },
    /// A redirect, which is not followed (miaf-v0 D2).
    #[error(
        "{url} redirects ({status}) to {location}; redirects are not followed: configure the address itself"
    )]
    Redirected {
        /// What was asked.
        url: Url,
        /// HTTP status.
        status: u16,
        /// Where to.
        location: Excerpt,
    },
    /// An answer that is not what the protocol says.
    #[error("the answer of {url} cannot be used: {what}")]
    Malformed {
        /// What was asked.
        url: Url,
        /// What is wrong with it.
        what: Excerpt,
    },
    /// A discovery document that breaks D3.
    #[error("the discovery document at {url} is refused: {why}")]
    Discovery {
        /// What was asked.
        url: Url,
        /// Why.
        why: DiscoveryError,
    },
    /// A discovery document for another trust domain (miaf-v0 D6).
    #[error(
        "the discovery document at {url} is for the trust domain \"{got}\", but {because} \"{want}\"{way_out}"
    )]
    OtherTrustDomain {
        /// What was asked.
        url: Url,
        /// What it names.
        got: TrustDomain,
        /// What it should name.
        want: TrustDomain,
        /// Where that is said.
        because: &'static str,
        /// What else to do than to correct the address.
        way_out: &'static str,
    },
    /// A bundle that breaks B1 or B2.
    #[error("the trust bundle at {url} is refused: {why}")]
    Bundle {
        /// What was asked.
        url: Url,
        /// Why.
        why: BundleError,
    },
    /// A bundle older than the one held (miaf-v0 B5).
    #[error(
        "the trust bundle at {url} has the sequence number {served}, lower than the {held} already seen; \
         it is used once it has been served for 24 hours, or at the order: miaf-agent retry"
    )]
    BundleRegressed {
        /// What was asked.
        url: Url,
        /// Its number.
        served: u64,
        /// The number of the bundle held.
        held: u64,
    },
}

impl MisError {
    /// What to make of it, in the lifecycle's words.
    pub fn to_failure(&self) -> Failure {
        let retry_after = match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        };
        Failure { meaning: self.meaning(), retry_after, report: self.report() }
    }

    fn meaning(&self) -> Meaning {
        match self {
            Self::NoTrust | Self::TrustFile { .. } | Self::NoSystemRoots(_) | Self::TlsSetup(_) => {
                Meaning::Local
            }
            Self::Proxy { why, .. } => why.meaning(),
            Self::ClientCertificateRefused { .. } => Meaning::NotAuthenticated,
            Self::OtherTrustDomain { .. } => Meaning::Permanent,
            Self::Refused { status, problem, .. } => problem::meaning(*status, problem.as_ref()),
            Self::Offline { .. } | Self::NameNotResolved { has_way_out: false, .. } => Meaning::Offline,
            Self::NameNotResolved { .. }
            | Self::Unreachable { .. }
            | Self::ServerNotTrusted { .. }
            | Self::TimedOut { .. }
            | Self::TooLarge { .. }
            | Self::Redirected { .. }
            | Self::Malformed { .. }
            | Self::Discovery { .. }
            | Self::Bundle { .. }
            | Self::BundleRegressed { .. } => Meaning::Transient,
        }
    }

    fn report(&self) -> Report {
        if let Self::Refused { url, status, problem, excerpt, unasked, .. } = self {
            // A server's own words are limited, and so is what is left of them beside this.
            let unasked = if *unasked && (400..500).contains(status) { UNASKED } else { "" };
            return match problem {
                // The MIS's own words, as it said them (P3).
                Some(problem) => Report {
                    kind: problem.kind.to_string(),
                    title: problem.title.to_string(),
                    status: Some(*status),
                    // And who said so: it may be another than the one meant.
                    detail: Some(match &problem.detail {
                        Some(detail) => limited(format_args!("{detail} (answered by {url}){unasked}")),
                        None => limited(format_args!("answered by {url}{unasked}")),
                    }),
                    instance: problem.instance.as_ref().map(ToString::to_string),
                },
                None => Report {
                    kind: "about:blank".into(),
                    title: match StatusCode::from_u16(*status).ok().and_then(|code| code.canonical_reason()) {
                        Some(reason) => format!("The server answered {status} {reason}"),
                        None => format!("The server answered {status}"),
                    },
                    status: Some(*status),
                    detail: Some(match excerpt {
                        Some(excerpt) => limited(format_args!("{url} answered: {excerpt}{unasked}")),
                        None => limited(format_args!("{url} answered without a word{unasked}")),
                    }),
                    instance: None,
                },
            };
        }
        let (code, title) = match self {
            Self::NoTrust | Self::TrustFile { .. } | Self::NoSystemRoots(_) => {
                ("no-initial-trust", "The MIS cannot be authenticated")
            }
            Self::TlsSetup(_) => ("tls-setup", "TLS could not be set up"),
            Self::Proxy { .. } => ("proxy", "The proxy does not lead to the MIS"),
            Self::ServerNotTrusted { .. } => ("server-not-trusted", "The server is not trusted"),
            Self::ClientCertificateRefused { .. } => {
                ("certificate-refused", "The MIS refused this device's certificate")
            }
            Self::Discovery { .. } | Self::OtherTrustDomain { .. } => {
                ("discovery-refused", "The discovery document is refused")
            }
            Self::Bundle { .. } | Self::BundleRegressed { .. } => {
                ("bundle-refused", "The trust bundle is refused")
            }
            Self::Redirected { .. } => ("redirected", "The MIS redirects"),
            Self::TooLarge { .. } | Self::Malformed { .. } => {
                ("malformed-answer", "The MIS's answer cannot be used")
            }
            Self::Offline { .. } => ("offline", "This device is offline"),
            Self::NameNotResolved { .. } => ("name-not-resolved", "A name cannot be resolved"),
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Refused { .. } => {
                ("unreachable", "The MIS could not be reached")
            }
        };
        Report::of_agent(code, title, self)
    }
}

fn limited(text: fmt::Arguments<'_>) -> String {
    Excerpt::of(text, MAX_DETAIL).into()
}

/// The cause at the bottom says the most: "Connection refused", "Name or service not known".
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    Excerpt::of(inner, MAX_REASON).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever has no way out asks nobody, and goes on soon after the link is back.
    #[test]
    fn a_name_that_is_not_resolved_without_a_way_out_is_retried_as_offline() {
        let meaning = |has_way_out| {
            let url = Url::parse("https://mis.example/").unwrap();
            MisError::NameNotResolved { url, name: "mis.example".into(), why: "", has_way_out }.meaning()
        };
        assert_eq!(meaning(false), Meaning::Offline);
        assert_eq!(meaning(true), Meaning::Transient);
    }
}
