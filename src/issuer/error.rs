//! Why an issuer gave nothing that can be used, and what that means to the lifecycle.

use std::fmt;

use hyper::StatusCode;
use url::Url;

use super::DiscoveryError;
use crate::lifecycle::{Failure, FailureKind, MAX_DETAIL, Report};
use crate::spiffe::{BundleError, TrustDomain};
use crate::text::Excerpt;
use crate::transport::{ProxyError, Refusal, TransportError, shown};

/// Characters of what is wrong with a response.
const MAX_REASON: usize = 200;

/// Why an MIS may say that no certificate was shown.
const UNASKED: &str = ". The server that ended TLS did not ask this device for its certificate: a load balancer or reverse \
                       proxy in front of the MIS seems to end TLS there. Have it pass TLS through to the MIS, or ask for \
                       client certificates at this URL";

/// Why the issuer gave nothing that can be used.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// No response, or none that can be used.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// No issuer is configured.
    #[error("no MIS is configured: set discovery_url under [mis]")]
    NotConfigured,
    /// A request that needs the discovery document, before there is one.
    #[error("the discovery document of the MIS has not been read yet")]
    NotDiscovered,
    /// A renewal without an SVID to authenticate it.
    #[error("there is no SVID that a renewal could be authenticated with")]
    NothingToRenew,
    /// The issuer said no, or something between said so.
    #[error("{refusal}")]
    Refused {
        /// The response.
        refusal: Box<Refusal>,
        /// What it means in the protocol of this issuer.
        failure_kind: FailureKind,
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

impl IssuerError {
    /// 304 (Not Modified) for a document that is not cached.
    pub(crate) fn not_cached(url: &Url) -> Self {
        let what = Excerpt::of("304, and no document is cached that it could mean", MAX_REASON);
        Self::Malformed { url: url.clone(), what }
    }

    /// What to make of it, in the lifecycle's terms.
    pub fn to_failure(&self) -> Failure {
        let retry_after = match self {
            Self::Refused { refusal, .. } => refusal.retry_after,
            _ => None,
        };
        Failure { kind: self.failure_kind(), retry_after, report: self.report() }
    }

    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Transport(error) => transport_failure_kind(error),
            Self::NotConfigured | Self::NotDiscovered | Self::NothingToRenew => FailureKind::Local,
            Self::Refused { failure_kind, .. } => *failure_kind,
            Self::OtherTrustDomain { .. } => FailureKind::Permanent,
            Self::Malformed { .. }
            | Self::Discovery { .. }
            | Self::Bundle { .. }
            | Self::BundleRegressed { .. } => FailureKind::Transient,
        }
    }

    fn report(&self) -> Report {
        let (code, title) = match self {
            Self::Refused { refusal, .. } => return refusal_report(refusal),
            Self::Transport(error) => error.kind(),
            Self::NotConfigured => ("unconfigured", "No MIS is configured"),
            Self::NotDiscovered => ("not-discovered", "The MIS has not been discovered yet"),
            Self::NothingToRenew => ("state", "There is no SVID to renew"),
            Self::Malformed { .. } => ("malformed-answer", "The MIS's answer cannot be used"),
            Self::Discovery { .. } | Self::OtherTrustDomain { .. } => {
                ("discovery-refused", "The discovery document is refused")
            }
            Self::Bundle { .. } | Self::BundleRegressed { .. } => {
                ("bundle-refused", "The trust bundle is refused")
            }
        };
        Report::of_agent(code, title, self)
    }
}

fn transport_failure_kind(error: &TransportError) -> FailureKind {
    use TransportError as E;
    match error {
        E::NoTrust | E::TrustFile { .. } | E::NoSystemRoots(_) | E::TlsSetup(_) => FailureKind::Local,
        E::Proxy { why, .. } => match why {
            ProxyError::Environment { .. } | ProxyError::Secret(_) | ProxyError::SecretForm => {
                FailureKind::Local
            }
            ProxyError::Unreachable { .. }
            | ProxyError::AuthRequired { .. }
            | ProxyError::AuthRefused { .. }
            | ProxyError::Forbidden { .. }
            | ProxyError::NoTunnel { .. } => FailureKind::Transient,
        },
        E::ClientCertificateRefused { .. } => FailureKind::NotAuthenticated,
        E::Offline { .. } | E::NameNotResolved { has_way_out: false, .. } => FailureKind::Offline,
        E::NameNotResolved { .. }
        | E::Unreachable { .. }
        | E::ServerNotTrusted { .. }
        | E::TimedOut { .. }
        | E::TooLarge { .. }
        | E::Redirected { .. }
        | E::Malformed { .. } => FailureKind::Transient,
    }
}

fn refusal_report(refusal: &Refusal) -> Report {
    let Refusal { url, status, problem, excerpt, unasked, .. } = refusal;
    let url = shown(url);
    // A server's own words are limited, and so is what is left of them beside this.
    let unasked = if *unasked && (400..500).contains(status) { UNASKED } else { "" };
    match problem {
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
    }
}

fn limited(text: fmt::Arguments<'_>) -> String {
    Excerpt::of(text, MAX_DETAIL).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_url_leaves_room_for_the_reason() {
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
                has_way_out: true,
            }
            .into(),
            TransportError::ServerNotTrusted { url: url.clone(), why: why() }.into(),
            TransportError::ClientCertificateRefused { url: url.clone(), why: why() }.into(),
            E::Malformed { url: url.clone(), what: Excerpt::of("the reason", 99) },
            TransportError::Redirected {
                url: url.clone(),
                status: 302,
                location: Excerpt::of("the reason", 99),
            }
            .into(),
            E::Bundle { url: url.clone(), why: BundleError::Anchor { index: 0, why: why() } },
            E::OtherTrustDomain {
                url: url.clone(),
                got: TrustDomain::parse("other.example").unwrap(),
                want: TrustDomain::parse("factory.example").unwrap(),
                because: "the reason says",
                way_out: "",
            },
            E::Refused {
                refusal: Box::new(Refusal {
                    url: url.clone(),
                    status: 403,
                    problem: None,
                    retry_after: None,
                    excerpt: Some(Excerpt::of("the reason", 99)),
                    unasked: true,
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

    /// Whoever has no way out asks nobody, and goes on soon after the link is back.
    #[test]
    fn a_name_that_is_not_resolved_without_a_way_out_is_retried_as_offline() {
        let failure_kind = |has_way_out| {
            let url = Url::parse("https://mis.example/").unwrap();
            transport_failure_kind(&TransportError::NameNotResolved {
                url,
                name: "mis.example".into(),
                why: "",
                has_way_out,
            })
        };
        assert_eq!(failure_kind(false), FailureKind::Offline);
        assert_eq!(failure_kind(true), FailureKind::Transient);
    }

    #[test]
    fn a_front_that_asks_for_no_certificate_is_named_with_a_refusal() {
        let refused = |status, unasked| IssuerError::Refused {
            refusal: Box::new(Refusal {
                url: "https://mis.example/api/v1/identities".parse().unwrap(),
                status,
                problem: None,
                retry_after: None,
                excerpt: Some(Excerpt::of("no client certificate", 80)),
                unasked,
            }),
            failure_kind: FailureKind::Transient,
        };
        for (status, unasked, named) in
            [(401, true, true), (400, true, true), (401, false, false), (503, true, false)]
        {
            let detail = refused(status, unasked).to_failure().report.detail.unwrap();
            assert!(detail.contains("no client certificate"), "{detail}");
            assert_eq!(
                detail.contains("load balancer or reverse proxy"),
                named,
                "{status} {unasked}: {detail}"
            );
        }
    }

    #[test]
    fn a_proxy_misconfigured_on_this_device_is_a_local_failure() {
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
