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

/// Characters of a URL; a discovery document may name one of 2048 bytes.
const MAX_URL: usize = 512;

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
    #[error("{shown} could not be asked: {why}", shown = shown(url))]
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
        "{shown} could not be reached, for no network route leads there from this device: {why}. Check the cable or the \
         radio, the address of the interface, and the default route",
        shown = shown(url)
    )]
    Offline {
        /// What was asked.
        url: Url,
        /// The innermost reasons.
        why: String,
    },
    /// The name of the MIS leads to no address, though this device is in a network.
    #[error(
        "{shown} could not be reached, for the name \"{name}\" cannot be resolved: {why}. Check the name in the \
         configuration, and the name servers of this device (/etc/resolv.conf){}",
        if *has_way_out { "" } else { ". It has no default route either: check its uplink" },
        shown = shown(url)
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
    #[error("{shown} could not be reached: {why}", shown = shown(url))]
    Unreachable {
        /// What was asked.
        url: Url,
        /// The innermost reasons.
        why: String,
    },
    /// The server is not one that the initial trust vouches for.
    #[error("the server at {shown} is not trusted: {why}", shown = shown(url))]
    ServerNotTrusted {
        /// What was asked.
        url: Url,
        /// Why.
        why: String,
    },
    /// The server ended the handshake because of this device's certificate.
    #[error("{shown} refused this device's certificate in the TLS handshake: {why}", shown = shown(url))]
    ClientCertificateRefused {
        /// What was asked.
        url: Url,
        /// What its TLS alert says.
        why: String,
    },
    /// No complete answer in time.
    #[error("{shown} did not answer completely within {} seconds", limit.as_secs(), shown = shown(url))]
    TimedOut {
        /// What was asked.
        url: Url,
        /// The time it had.
        limit: Duration,
    },
    /// An answer larger than anything believable.
    #[error("the answer of {shown} is larger than {limit} bytes", shown = shown(url))]
    TooLarge {
        /// What was asked.
        url: Url,
        /// Bytes.
        limit: usize,
    },
    /// The MIS said no, or something between said so.
    #[error(
        "{shown} answered {status}{}",
        .problem.as_ref().map(|p| format!(" {}", p.title)).unwrap_or_default(),
        shown = shown(url)
    )]
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
        "{shown} redirects ({status}) to {location}; redirects are not followed: configure the address itself",
        shown = shown(url)
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
    #[error("the answer of {shown} cannot be used: {what}", shown = shown(url))]
    Malformed {
        /// What was asked.
        url: Url,
        /// What is wrong with it.
        what: Excerpt,
    },
    /// A discovery document that breaks D3.
    #[error("the discovery document at {shown} is refused: {why}", shown = shown(url))]
    Discovery {
        /// What was asked.
        url: Url,
        /// Why.
        why: DiscoveryError,
    },
    /// A discovery document for another trust domain (miaf-v0 D6).
    #[error(
        "the discovery document at {shown} is for the trust domain \"{got}\", but {because} \"{want}\"{way_out}",
        shown = shown(url)
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
    #[error("the trust bundle at {shown} is refused: {why}", shown = shown(url))]
    Bundle {
        /// What was asked.
        url: Url,
        /// Why.
        why: BundleError,
    },
    /// A bundle older than the one held (miaf-v0 B5).
    #[error(
        "the trust bundle at {shown} has the sequence number {served}, lower than the {held} already seen; \
         it is used once it has been served for 24 hours, or at the order: miaf-agent retry",
        shown = shown(url)
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
            let url = shown(url);
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

/// A URL in a message. Its whole length would leave no room for the reason.
fn shown(url: &Url) -> Excerpt {
    Excerpt::of(url, MAX_URL)
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

    #[test]
    fn a_long_url_leaves_room_for_the_reason() {
        let url = Url::parse(&format!("{:a<2048}", "https://mis.example/")).unwrap();
        let why = || "the reason".to_owned();
        for error in [
            MisError::Unreachable { url: url.clone(), why: why() },
            MisError::Offline { url: url.clone(), why: why() },
            MisError::NameNotResolved {
                url: url.clone(),
                name: "mis.example".into(),
                why: "the reason",
                has_way_out: true,
            },
            MisError::ServerNotTrusted { url: url.clone(), why: why() },
            MisError::ClientCertificateRefused { url: url.clone(), why: why() },
            MisError::Malformed { url: url.clone(), what: Excerpt::of("the reason", 99) },
            MisError::Redirected { url: url.clone(), status: 302, location: Excerpt::of("the reason", 99) },
            MisError::Bundle { url: url.clone(), why: BundleError::Anchor { index: 0, why: why() } },
            MisError::OtherTrustDomain {
                url: url.clone(),
                got: TrustDomain::parse("other.example").unwrap(),
                want: TrustDomain::parse("factory.example").unwrap(),
                because: "the reason says",
                way_out: "",
            },
            MisError::Refused {
                url: url.clone(),
                status: 403,
                problem: None,
                retry_after: None,
                excerpt: Some(Excerpt::of("the reason", 99)),
                unasked: true,
            },
        ] {
            let detail = error.report().detail.unwrap_or_default();
            assert!(detail.contains("the reason") && !detail.ends_with('…'), "{detail}");
            assert!(detail.contains("https://mis.example/aaa") && detail.len() < 1100, "{detail}");
            assert!(error.to_string().len() < 1100, "{error}");
        }
    }

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
