//! Why there is no connection to a WFM.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::time::Duration;

use rustls::AlertDescription;

use miaf_spiffe::peer::PeerError;
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::time::Timestamp;

use super::peer_error;
use crate::ClientError;
use crate::api::{IdentityName, SvidDocument};

/// Characters of what a message quotes of a name or of a library's error.
const MAX_QUOTE: usize = 256;

/// The identity is no WFM Client, so that its SVID names no WFM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAWfmClient {
    /// The identity.
    pub identity: IdentityName,
    /// The SPIFFE ID in its SVID.
    pub spiffe_id: Excerpt,
}

impl NotAWfmClient {
    pub(super) fn of(svid: &SvidDocument) -> Self {
        let (identity, spiffe_id) = (svid.identity.clone(), Excerpt::of(&svid.spiffe_id, MAX_QUOTE));
        Self { identity, spiffe_id }
    }
}

impl fmt::Display for NotAWfmClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { identity, spiffe_id } = self;
        write!(
            f,
            "the identity \"{identity}\" is {spiffe_id}, which is no WFM Client \
             (/margo/wfm/<wfm-id>/client/<wfm-client-id>)"
        )
    }
}

impl std::error::Error for NotAWfmClient {}

/// Why there is no connection. Displays what failed; [`hint`](Self::hint) says what to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectError {
    /// The agent does not respond, or has no such identity.
    Agent(ClientError),
    /// The identity has no SVID yet.
    NoSvid(IdentityName),
    /// The SVID of the identity has expired.
    OwnSvidExpired(IdentityName, Timestamp),
    /// There is no trust bundle to validate a peer with.
    NoBundle,
    /// The identity is no WFM Client.
    NotAWfmClient(NotAWfmClient),
    /// The text is neither a host name nor an IP address.
    NotAHost(Excerpt),
    /// No connection to the address, or it broke in the handshake.
    Unreachable(Excerpt, io::Error),
    /// The handshake was not complete in time.
    Silent(Excerpt, Duration),
    /// The peer is not the expected one, or not trusted, or its SVID is not valid now. Nothing but
    /// the TLS handshake was sent to it.
    Peer(Excerpt, PeerError),
    /// The peer does not accept this identity.
    Refused(Excerpt, AlertDescription),
    /// TLS failed for another reason.
    Tls(Excerpt, rustls::Error),
}

impl ConnectError {
    /// The error of a TLS handshake with the peer at this address.
    pub(super) fn of_handshake(address: Excerpt, error: rustls::Error) -> Self {
        if let Some(why) = peer_error(&error) {
            return Self::Peer(address, why.clone());
        }
        match refusal(&error) {
            Some(alert) => Self::Refused(address, alert),
            None => Self::Tls(address, error),
        }
    }

    /// What to do, as an imperative without a full stop at its end. `None`: nothing is known to
    /// help.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        let fixed = match self {
            Self::Agent(error) => return error.hint(),
            Self::Peer(_, error) => error.hint(),
            Self::NoSvid(_) | Self::NoBundle => "See why in the status: miaf-agent status",
            Self::OwnSvidExpired(..) => "See why it was not renewed in the status: miaf-agent status",
            Self::NotAWfmClient(_) => {
                "Use an identity that is a WFM Client; or give the SPIFFE ID of the peer that is meant"
            }
            Self::NotAHost(_) => "Give a host name or an IP address",
            Self::Unreachable(..) | Self::Silent(..) => {
                "Compare the address with what the operator of the WFM says, and see to firewalls on the way"
            }
            Self::Refused(..) => "Ask the operator of the WFM to accept this WFM Client, by its SPIFFE ID",
            Self::Tls(..) => "Check that a WFM with TLS 1.3 listens at the address",
        };
        Some(fixed.into())
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(error) => error.fmt(f),
            Self::NoSvid(name) => write!(f, "the identity \"{name}\" has no SVID"),
            Self::OwnSvidExpired(name, at) => {
                write!(f, "the SVID of the identity \"{name}\" expired at {at}")
            }
            Self::NoBundle => f.write_str("there is no trust bundle to validate a peer with"),
            Self::NotAWfmClient(error) => error.fmt(f),
            Self::NotAHost(text) => write!(f, "\"{text}\" is neither a host name nor an IP address"),
            Self::Unreachable(address, e) => {
                write!(f, "no connection to {address}: {}", Excerpt::of(e, MAX_QUOTE))
            }
            Self::Silent(address, limit) => write!(
                f,
                "the TLS handshake with {address} was not complete within {}",
                humantime::format_duration(Duration::from_secs(limit.as_secs().max(1)))
            ),
            Self::Peer(address, error) => write!(f, "the server at {address} is not accepted: {error}"),
            Self::Refused(address, alert) => {
                write!(f, "the server at {address} refuses this identity's certificate (alert {alert:?})")
            }
            Self::Tls(address, error) => {
                write!(f, "TLS with {address} failed: {}", Excerpt::of(error, MAX_QUOTE))
            }
        }
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Peer(_, error) => Some(error),
            _ => None,
        }
    }
}

impl From<ClientError> for ConnectError {
    fn from(error: ClientError) -> Self {
        Self::Agent(error)
    }
}

/// The alert by which a peer refuses the certificate that it was sent. In TLS 1.3 it may arrive
/// after the handshake, in place of the first response.
pub(super) fn refusal(error: &rustls::Error) -> Option<AlertDescription> {
    use AlertDescription as A;
    match error {
        rustls::Error::AlertReceived(
            alert @ (A::AccessDenied
            | A::BadCertificate
            | A::CertificateExpired
            | A::CertificateRequired
            | A::CertificateRevoked
            | A::CertificateUnknown
            | A::UnknownCA
            | A::UnsupportedCertificate),
        ) => Some(*alert),
        _ => None,
    }
}
