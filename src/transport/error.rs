//! Everything that can go wrong between this device and a server, as a person can act on it.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::ProxyError;
use crate::text::Excerpt;

/// Characters of a reason that comes from elsewhere.
const MAX_REASON: usize = 200;

/// Characters of a URL; a discovery document may name one of 2048 bytes.
const MAX_URL: usize = 512;

/// Why there is no response, or none that can be used.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
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
}

impl TransportError {
    /// Name of the kind, and a title for people.
    pub(crate) fn kind(&self) -> (&'static str, &'static str) {
        match self {
            Self::NoTrust | Self::TrustFile { .. } | Self::NoSystemRoots(_) => {
                ("no-initial-trust", "The MIS cannot be authenticated")
            }
            Self::TlsSetup(_) => ("tls-setup", "TLS could not be set up"),
            Self::Proxy { .. } => ("proxy", "The proxy does not lead to the MIS"),
            Self::ServerNotTrusted { .. } => ("server-not-trusted", "The server is not trusted"),
            Self::ClientCertificateRefused { .. } => {
                ("certificate-refused", "The MIS refused this device's certificate")
            }
            Self::Redirected { .. } => ("redirected", "The MIS redirects"),
            Self::TooLarge { .. } | Self::Malformed { .. } => {
                ("malformed-answer", "The MIS's answer cannot be used")
            }
            Self::Offline { .. } => ("offline", "This device is offline"),
            Self::NameNotResolved { .. } => ("name-not-resolved", "A name cannot be resolved"),
            Self::Unreachable { .. } | Self::TimedOut { .. } => {
                ("unreachable", "The MIS could not be reached")
            }
        }
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
