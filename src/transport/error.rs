//! Failures between this device and a server.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::ProxyError;
use crate::hint::{Hint, Reason};
use crate::problem::ProblemCode;
use miaf_spiffe::text::Excerpt;

/// Limit on the characters of a reason from outside.
pub(super) const MAX_REASON: usize = 200;

/// Limit on the characters of a URL; a discovery document may name one of 2048 bytes.
const MAX_URL: usize = 512;

/// Why there is no response, or none that can be used.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No trust anchor is configured that could authenticate the server. No connection was made
    /// (miaf-v0 T2).
    #[error("no trust anchor is configured for the MIS, so no connection is made")]
    NoTrust,
    /// A file of trust anchors that cannot be used.
    #[error("the trust anchors for the MIS in {path} cannot be used: {why}")]
    TrustFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: Reason,
    },
    /// The operating system's CAs are to be trusted, and there are none.
    #[error("the operating system's store of CAs (system_roots) holds none that can be used: {why}")]
    NoSystemRoots {
        /// What was found.
        why: String,
        /// Whether the environment (`SSL_CERT_FILE`, `SSL_CERT_DIR`) says where the store is.
        from_environment: bool,
    },
    /// The proxy does not lead to the server.
    #[error("no connection to {shown}: {why}", shown = shown(url))]
    Proxy {
        /// The URL of the request.
        url: Url,
        /// What the proxy did, or why it was not used.
        why: ProxyError,
    },
    /// TLS could not be set up on this side.
    #[error("TLS could not be set up: {0}")]
    TlsSetup(rustls::Error),
    /// Nothing can leave this device: a link is down, or an address or a default route is missing.
    #[error(
        "{shown} could not be reached, for no network route leads there from this device: {why}",
        shown = shown(url)
    )]
    Offline {
        /// The URL of the request.
        url: Url,
        /// The innermost reasons.
        why: String,
    },
    /// The name of the server has no address, though this device is in a network.
    #[error(
        "{shown} could not be reached, for the name \"{name}\" cannot be resolved: {why}",
        shown = shown(url)
    )]
    NameNotResolved {
        /// The URL of the request.
        url: Url,
        /// The name.
        name: String,
        /// Whether it is the name or the name server.
        why: &'static str,
        /// Whether there is a default route. Without one the network may be one on this device (a
        /// bridge for containers).
        has_default_route: bool,
    },
    /// No connection, or no response on it.
    #[error("{shown} could not be reached: {why}", shown = shown(url))]
    Unreachable {
        /// The URL of the request.
        url: Url,
        /// The innermost reasons.
        why: String,
    },
    /// The server is not authenticated by the initial trust.
    #[error("the server at {shown} is not trusted: {why}", shown = shown(url))]
    ServerNotTrusted {
        /// The URL of the request.
        url: Url,
        /// Why.
        why: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The server is not the peer that its SVID has to show (miaf-v0 W2). Nothing was sent.
    #[error("the server at {shown} is not accepted: {why}", shown = shown(url))]
    PeerNotTrusted {
        /// The URL of the request.
        url: Url,
        /// Why.
        why: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The server ended the handshake because of this device's certificate.
    #[error("{shown} refused this device's certificate in the TLS handshake: {why}", shown = shown(url))]
    ClientCertificateRefused {
        /// The URL of the request.
        url: Url,
        /// What its TLS alert says.
        why: String,
    },
    /// The server did not take this device's certificate in the handshake, and nothing was sent: the
    /// request means something else without it (X29).
    #[error(
        "no request was sent to {shown}, since the server did not take this device's certificate in the TLS handshake: \
         {why}",
        shown = shown(url)
    )]
    ClientCertificateNotSent {
        /// The URL of the request.
        url: Url,
        /// Why it was not sent.
        why: &'static str,
    },
    /// The server ended the handshake since this request is made without a client certificate.
    #[error("{shown} could not be reached: TLS failed: {why}", shown = shown(url))]
    ClientCertificateRequired {
        /// The URL of the request.
        url: Url,
        /// What its TLS alert says.
        why: String,
    },
    /// The server speaks no version of TLS that is offered.
    #[error("{shown} could not be reached: TLS failed: {why}", shown = shown(url))]
    TlsVersion {
        /// The URL of the request.
        url: Url,
        /// Which it does not speak.
        why: String,
    },
    /// TLS failed for another reason.
    #[error("{shown} could not be reached: TLS failed: {why}", shown = shown(url))]
    TlsFailed {
        /// The URL of the request.
        url: Url,
        /// Why.
        why: Excerpt,
        /// What to do.
        hint: Option<String>,
    },
    /// No complete response in time.
    #[error("{shown} did not respond completely within {} seconds", limit.as_secs(), shown = shown(url))]
    TimedOut {
        /// The URL of the request.
        url: Url,
        /// Time limit of the request.
        limit: Duration,
    },
    /// A response over the limit.
    #[error("the response of {shown} is larger than {limit} bytes", shown = shown(url))]
    TooLarge {
        /// The URL of the request.
        url: Url,
        /// Bytes.
        limit: usize,
    },
    /// A redirect, which is not followed (miaf-v0 D2).
    #[error("{shown} redirects ({status}) to {location}, and redirects are not followed", shown = shown(url))]
    Redirected {
        /// The URL of the request.
        url: Url,
        /// HTTP status.
        status: u16,
        /// Its `Location`.
        location: Excerpt,
    },
    /// A response that is not what the protocol says.
    #[error("the response of {shown} cannot be used: {what}", shown = shown(url))]
    Malformed {
        /// The URL of the request.
        url: Url,
        /// What is wrong with it.
        what: Excerpt,
    },
}

impl TransportError {
    /// Code and title of the error.
    pub(crate) fn kind(&self) -> (ProblemCode, &'static str) {
        match self {
            Self::NoTrust => (ProblemCode::NoInitialTrust, "No trust anchor is configured for the MIS"),
            Self::TrustFile { .. } | Self::NoSystemRoots { .. } => {
                (ProblemCode::InitialTrustUnusable, "The trust anchors for the MIS cannot be used")
            }
            Self::TlsSetup(_) => (ProblemCode::TlsSetup, "TLS could not be set up"),
            Self::Proxy { .. } => (ProblemCode::Proxy, "The proxy does not lead to the MIS"),
            Self::ServerNotTrusted { .. } => (ProblemCode::ServerNotTrusted, "The server is not trusted"),
            Self::PeerNotTrusted { .. } => {
                (ProblemCode::WfmNotTrusted, "The server is not the configured WFM")
            }
            Self::ClientCertificateRefused { .. } => {
                (ProblemCode::CertificateRefused, "The MIS refused this device's certificate")
            }
            Self::ClientCertificateNotSent { .. } => {
                (ProblemCode::UnsupportedByMis, "The MIS does not take this device's certificate")
            }
            Self::Redirected { .. } => (ProblemCode::Redirected, "The MIS redirects"),
            Self::TooLarge { .. } | Self::Malformed { .. } => {
                (ProblemCode::MalformedResponse, "The MIS's response cannot be used")
            }
            Self::Offline { .. } => (ProblemCode::Offline, "This device is offline"),
            Self::NameNotResolved { .. } => (ProblemCode::NameNotResolved, "A name cannot be resolved"),
            Self::Unreachable { .. }
            | Self::ClientCertificateRequired { .. }
            | Self::TlsVersion { .. }
            | Self::TlsFailed { .. }
            | Self::TimedOut { .. } => (ProblemCode::Unreachable, "The MIS could not be reached"),
        }
    }
}

impl Hint for TransportError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let fixed = match self {
            Self::NoTrust => {
                "Set ca_file, spki_sha256 or system_roots under [mis.trust], then: systemctl reload miaf-agent"
            }
            Self::TrustFile { why, .. } => {
                // What is wrong with the file says more.
                return why.hint().or(Some("Correct the file, or ca_file under [mis.trust]".into()));
            }
            Self::NoSystemRoots { from_environment: true, .. } => {
                "Correct SSL_CERT_FILE and SSL_CERT_DIR in the environment of the agent"
            }
            Self::ClientCertificateNotSent { .. } => {
                "Have the server that ends TLS request client certificates at this URL, in the handshake"
            }
            Self::ClientCertificateRequired { .. } => {
                "Have it require none for this URL: the discovery document and the trust bundle are for devices that \
                 have none yet"
            }
            Self::NoSystemRoots { from_environment: false, .. } => "Install the package ca-certificates",
            Self::Offline { .. } => {
                "Check the cable or the radio, the address of the interface, and the default route"
            }
            Self::NameNotResolved { has_default_route: true, .. } => {
                "Check the name in the configuration, and the name servers of this device (/etc/resolv.conf)"
            }
            Self::NameNotResolved { has_default_route: false, .. } => {
                "Check the uplink of this device, which has no default route; then the name in the \
                 configuration, and the name servers (/etc/resolv.conf)"
            }
            Self::Proxy { why, .. } => return why.hint(),
            Self::ServerNotTrusted { hint, .. }
            | Self::PeerNotTrusted { hint, .. }
            | Self::TlsFailed { hint, .. } => {
                return hint.as_deref().map(Cow::Borrowed);
            }
            Self::TlsSetup(_)
            | Self::Unreachable { .. }
            | Self::ClientCertificateRefused { .. }
            | Self::TlsVersion { .. }
            | Self::Redirected { .. }
            | Self::TimedOut { .. }
            | Self::TooLarge { .. }
            | Self::Malformed { .. } => return None,
        };
        Some(fixed.into())
    }
}

/// A URL in a message. Its whole length would leave no room for the reason.
pub(crate) fn shown(url: &Url) -> Excerpt {
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
    use crate::hint::assert_apart;
    use crate::platform::credentials::SecretError;

    fn denied() -> Reason {
        Reason::from("permission denied").with_hint_text("Let it in: chmod u+r /it")
    }

    #[test]
    fn hint_is_imperative_and_apart_from_the_message() {
        let url = || Url::parse("https://mis.example/").unwrap();
        let text = || "x".to_owned();
        let name = |has_default_route| TransportError::NameNotResolved {
            url: url(),
            name: text(),
            why: "there is no such name",
            has_default_route,
        };
        let no_system_roots =
            |from_environment| TransportError::NoSystemRoots { why: text(), from_environment };
        let redirected =
            TransportError::Redirected { url: url(), status: 302, location: Excerpt::of("/x", 9) };
        let of_proxy = [
            ProxyError::NameNotResolved { proxy: text(), why: text() },
            ProxyError::AuthRequired { proxy: text() },
            ProxyError::AuthRefused { proxy: text() },
            ProxyError::Forbidden { proxy: text(), to: text() },
            ProxyError::Environment { variable: "ALL_PROXY", why: "is not the URL of a proxy".into() },
            ProxyError::Secret(SecretError { what: text(), why: denied() }),
            ProxyError::Secret(SecretError { what: text(), why: "it is empty".into() }),
            ProxyError::SecretForm,
        ];
        let others = [
            TransportError::NoTrust,
            TransportError::TrustFile { path: "/ca.pem".into(), why: "it is empty".into() },
            TransportError::TrustFile { path: "/ca.pem".into(), why: denied() },
            no_system_roots(true),
            no_system_roots(false),
            TransportError::Offline { url: url(), why: text() },
            name(true),
            name(false),
        ];
        let of_proxy = of_proxy.into_iter().map(|why| TransportError::Proxy { url: url(), why });
        assert_apart(&redirected); // its code has the remedy
        for error in of_proxy.chain(others) {
            assert_apart(&error);
            assert!(error.hint().is_some(), "{error}");
        }
    }

    #[test]
    fn fault_of_a_trust_file_has_the_hint_that_says_more() {
        let hint = |why: Reason| {
            let error = TransportError::TrustFile { path: "/ca.pem".into(), why };
            error.hint().unwrap().into_owned()
        };
        assert_eq!(hint(denied()), "Let it in: chmod u+r /it");
        assert!(hint("it is empty".into()).starts_with("Correct the file"));
    }
}
