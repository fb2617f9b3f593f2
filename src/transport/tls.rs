//! TLS client configuration: authentication of the server and the client certificate (miaf-v0 T1 to
//! T6). The provisioned trust and the trust bundle never meet (B6): a server is verified by the one
//! or the other. The factory certificate does not authenticate the server (T5).

use std::error::Error;
use std::sync::Arc;

use miaf_client::wfm::peer_error;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, ClientConfig, InvalidMessage, OtherError, PeerIncompatible, SignatureScheme};

use super::error::TransportError;
use super::server_trust::LoadedTrust;
use super::server_verifier::{self, ClientAuthRequest, HandshakeObservation, Verifier};
use crate::hint::{Hint as _, Reason};
use crate::keys::KeyError;
use crate::platform::clock;
use crate::x509;
use miaf_spiffe::peer::PeerError;
use miaf_spiffe::text::Excerpt;

/// The parameters that this client offers, for the operator of a server that offers others.
const OFFER: &str = "This client offers TLS 1.3 with AES-GCM and ChaCha20-Poly1305, the groups \
                     X25519, P-256 and P-384, and takes a server's certificate with a key that is \
                     RSA (2048 to 8192 bits), ECDSA on P-256 or P-384, or Ed25519";
const OFFER_HINT: &str =
    "Have the server support one of them as well: a P-521 key or group alone is not enough";
/// Limit on the characters of a reason from outside.
const MAX_REASON: usize = 200;
/// Limit on the characters of why a peer is not accepted: it names up to two SPIFFE IDs.
const MAX_PEER: usize = 700;

/// Creates a verifier of servers that trusts the provisioned trust and nothing else.
pub(super) fn provisioned(
    trust: Arc<LoadedTrust>,
    observation: Arc<HandshakeObservation>,
) -> Arc<dyn ServerCertVerifier> {
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    Arc::new(Verifier::new(trust, algorithms, observation))
}

/// Creates the configuration of a TLS 1.3 client for one call. `tls12`: TLS 1.2 is offered, too; rustls
/// has it with ephemeral keys and AEAD only (RFC 9325).
pub(super) fn client(
    verifier: Arc<dyn ServerCertVerifier>,
    identity: Option<Arc<CertifiedKey>>,
    observation: Arc<HandshakeObservation>,
    tls12: bool,
) -> Result<ClientConfig, TransportError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions: &[_] = match tls12 {
        true => &[&rustls::version::TLS13, &rustls::version::TLS12],
        false => &[&rustls::version::TLS13],
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(TransportError::TlsSetup)?
        .dangerous() // rustls's name for any verifier but its own, which knows no pins
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(ClientCertificate { identity, observation }));
    // A resumed session would keep the client certificate that it was opened with.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The client certificate of one call; records whether the server requested it.
#[derive(Debug)]
struct ClientCertificate {
    identity: Option<Arc<CertifiedKey>>,
    observation: Arc<HandshakeObservation>,
}

impl ResolvesClientCert for ClientCertificate {
    fn resolve(
        &self,
        _acceptable_issuers: &[&[u8]],
        accepted: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let (request, certificate) = match &self.identity {
            None => (ClientAuthRequest::NoCertificate, None),
            Some(identity) if identity.key.choose_scheme(accepted).is_none() => {
                (ClientAuthRequest::OtherKeys, None)
            }
            Some(identity) => (ClientAuthRequest::Sent(identity.clone()), Some(identity.clone())),
        };
        self.observation.requested(request);
        certificate
    }

    fn has_certs(&self) -> bool {
        self.identity.is_some()
    }
}

/// TLS failure that caused an error of the HTTP client.
#[derive(Debug)]
pub(super) enum TlsReason {
    /// The server is not authenticated.
    Server(Reason),
    /// The server refused this device's certificate.
    Client(String),
    /// The server requires a client certificate, and this request is made without one.
    Required(String),
    /// The server speaks no version that is offered.
    Version(&'static str),
    /// Any other TLS failure.
    Other(Reason),
}

/// Finds a TLS error among the causes. An I/O error hides what it wraps from `source`, and may wrap
/// another.
pub(super) fn reason(error: &(dyn Error + 'static), observation: &HandshakeObservation) -> Option<TlsReason> {
    if let Some(tls) = error.downcast_ref() {
        return Some(describe(tls, observation));
    }
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    match wrapped {
        Some(inner) => reason(inner, observation),
        None => error.source().and_then(|source| reason(source, observation)),
    }
}

fn describe(error: &rustls::Error, observation: &HandshakeObservation) -> TlsReason {
    use rustls::Error as E;
    let other = |why: &str| TlsReason::Other(why.into());
    if let Some(why) = peer_error(error) {
        return TlsReason::Server(of_peer(why));
    }
    match error {
        E::InvalidCertificate(why) => TlsReason::Server(server_verifier::describe(why)),
        E::NoCertificatesPresented => TlsReason::Server("it presented no certificate".into()),
        E::AlertReceived(alert) => of_alert(*alert, &observation.request()),
        E::InvalidMessage(
            InvalidMessage::CertificatePayloadTooLarge | InvalidMessage::HandshakePayloadTooLarge,
        ) => TlsReason::Server("it presented more than 64 KB of certificates, and no more are read".into()),
        E::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge
            | InvalidMessage::InvalidEmptyPayload,
        )
        | E::PeerSentOversizedRecord => other(
            "it does not speak TLS here: another service, plain HTTP, or a portal with a \
             login seems to respond at this host and port",
        ),
        E::InvalidMessage(_) => other("it sent a TLS message that is damaged or not allowed"),
        E::InappropriateMessage { .. } | E::InappropriateHandshakeMessage { .. } => {
            other("it sent a TLS message that has no place at that point of the handshake")
        }
        E::PeerIncompatible(why) => incompatible(why),
        E::PeerMisbehaved(_) => other("it broke the rules of TLS (RFC 8446)"),
        E::DecryptError => other("a TLS message was changed or damaged on the way"),
        E::NoApplicationProtocol => other("it does not speak HTTP/1.1 (ALPN http/1.1)"),
        E::UnsupportedNameType => other("the host in the URL is neither a name nor an address"),
        E::FailedToGetCurrentTime | E::FailedToGetRandomBytes => {
            other("this system gave no time or no random numbers")
        }
        E::Other(OtherError(why)) => {
            // The device's own key, whose errors are described by its provider.
            let hint = why.downcast_ref::<KeyError>().and_then(|why| Some(why.hint()?.into_owned()));
            let why = Excerpt::of(why, MAX_REASON);
            let what = format!("this device's key could not be used: {why}");
            TlsReason::Other(Reason { what, hint })
        }
        rest => TlsReason::Other(Excerpt::of(rest, MAX_REASON).into_string().into()),
    }
}

/// Why a server is not the peer that is meant.
fn of_peer(why: &PeerError) -> Reason {
    let hint = match why {
        // What the peer has to be is configured: the remedy of the error's code names the keys.
        PeerError::NotExpected { .. } | PeerError::NoBundle { .. } => None,
        _ => Some(why.hint().to_owned()),
    };
    Reason { what: Excerpt::of(why, MAX_PEER).into(), hint }
}

fn incompatible(why: &PeerIncompatible) -> TlsReason {
    use PeerIncompatible as P;
    match why {
        P::ServerDoesNotSupportTls12Or13
        | P::ServerTlsVersionIsDisabledByOurConfig
        | P::SupportedVersionsExtensionRequired
        | P::Tls12NotOffered
        | P::Tls12NotOfferedOrEnabled => {
            TlsReason::Version("it does not speak TLS 1.3, and TLS 1.3 is required")
        }
        P::NoCertificateRequestSignatureSchemesInCommon => TlsReason::Other(
            "it accepts client certificates with no signature algorithm that is known here. TLS 1.3 is required".into(),
        ),
        _ => TlsReason::Other(Reason::from(format!(
            "it and this client have no common parameters for TLS; TLS 1.3 is required. {OFFER}"
        ))
        .with_hint_text(OFFER_HINT)),
    }
}

fn of_alert(alert: AlertDescription, request: &ClientAuthRequest) -> TlsReason {
    use AlertDescription as A;
    let name = alert_name(alert);
    let about_certificates = matches!(
        alert,
        A::NoCertificate
            | A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::CertificateRequired
    );
    // Once it has requested a certificate, and has got one, what it cannot read is that.
    let may_be_about_one = about_certificates
        || matches!(
            alert,
            A::DecodeError
                | A::IllegalParameter
                | A::DecryptError
                | A::HandshakeFailure
                | A::InsufficientSecurity
        );
    match request {
        ClientAuthRequest::Sent(identity) if may_be_about_one => {
            let peculiar = peculiarities(identity).map(|what| format!(". Possible causes: {what}"));
            let why = of_client_alert(alert);
            TlsReason::Client(format!("{why} ({name}){}", peculiar.unwrap_or_default()))
        }
        ClientAuthRequest::NoCertificate if about_certificates || alert == A::HandshakeFailure => {
            TlsReason::Required(format!(
                "the server requires a client certificate here ({name}), and this request is made without one"
            ))
        }
        ClientAuthRequest::OtherKeys if may_be_about_one => TlsReason::Other(
            Reason::from(format!(
                "the server requires a client certificate ({name}) and does not accept signatures \
                 of the kind that this device's key makes, so none was sent"
            ))
            .with_hint_text("Have it accept the algorithm of the key"),
        ),
        _ if alert == A::ProtocolVersion => {
            TlsReason::Version("it does not speak TLS 1.3, and TLS 1.3 is required (protocol_version)")
        }
        _ => TlsReason::Other(match alert {
            A::HandshakeFailure | A::InsufficientSecurity => {
                Reason::from(format!(
                    "it ended the TLS handshake ({name}): it accepts nothing that this client offers. {OFFER}"
                ))
                .with_hint_text(OFFER_HINT)
            }
            A::UnrecognisedName => {
                Reason::from("it serves no host of this name (unrecognized_name)")
                    .with_hint_text("Check the host in the URL")
            }
            A::InternalError => "it ended the TLS handshake for a fault of its own (internal_error)".into(),
            _ if about_certificates => format!(
                "it ended the TLS handshake ({name}), although it had not requested a certificate from this device"
            )
            .into(),
            _ => format!("it ended the TLS handshake ({name})").into(),
        }),
    }
}

fn of_client_alert(alert: AlertDescription) -> &'static str {
    use AlertDescription as A;
    match alert {
        A::BadCertificate => "it considers the certificate damaged or wrongly signed",
        A::UnsupportedCertificate => "it does not accept certificates of this kind or purpose",
        A::CertificateRevoked => "it considers the certificate revoked",
        A::CertificateExpired => {
            "the certificate, or an intermediate of it, is expired or not yet valid by its clock"
        }
        A::UnknownCA => "it does not know or trust the CA of the certificate",
        A::AccessDenied => "it denies access to the holder of this certificate",
        A::DecodeError | A::IllegalParameter => "its TLS library cannot read the certificate or its key",
        A::DecryptError => "it could not verify a signature with the certificate's key",
        A::HandshakeFailure | A::InsufficientSecurity => {
            "it does not accept this certificate or a key of this kind"
        }
        _ => "it does not accept the certificate",
    }
}

/// The name of an alert in RFC 8446 section 6, or its number.
fn alert_name(alert: AlertDescription) -> String {
    use AlertDescription as A;
    let name = match alert {
        A::CloseNotify => "close_notify",
        A::UnexpectedMessage => "unexpected_message",
        A::BadRecordMac => "bad_record_mac",
        A::RecordOverflow => "record_overflow",
        A::HandshakeFailure => "handshake_failure",
        A::NoCertificate => "no_certificate",
        A::BadCertificate => "bad_certificate",
        A::UnsupportedCertificate => "unsupported_certificate",
        A::CertificateRevoked => "certificate_revoked",
        A::CertificateExpired => "certificate_expired",
        A::CertificateUnknown => "certificate_unknown",
        A::IllegalParameter => "illegal_parameter",
        A::UnknownCA => "unknown_ca",
        A::AccessDenied => "access_denied",
        A::DecodeError => "decode_error",
        A::DecryptError => "decrypt_error",
        A::ProtocolVersion => "protocol_version",
        A::InsufficientSecurity => "insufficient_security",
        A::InternalError => "internal_error",
        A::InappropriateFallback => "inappropriate_fallback",
        A::UserCanceled => "user_canceled",
        A::MissingExtension => "missing_extension",
        A::UnsupportedExtension => "unsupported_extension",
        A::UnrecognisedName => "unrecognized_name",
        A::BadCertificateStatusResponse => "bad_certificate_status_response",
        A::UnknownPSKIdentity => "unknown_psk_identity",
        A::CertificateRequired => "certificate_required",
        A::NoApplicationProtocol => "no_application_protocol",
        other => return format!("alert {}", u8::from(other)),
    };
    name.to_owned()
}

/// Unusual properties of a client certificate that was sent, and its intermediates that have
/// expired.
fn peculiarities(identity: &CertifiedKey) -> Option<String> {
    let own = identity.cert.first().map(|own| x509::peculiarities(own)).unwrap_or_default();
    let ended = x509::ends_of_intermediates(&identity.cert);
    let now = clock::now().wall;
    let ended = ended.iter().filter(|end| end.not_after < now);
    let ended = ended.map(|end| format!("its intermediate \"{}\" expired at {}", end.subject, end.not_after));
    let all: Vec<String> = own.into_iter().chain(ended).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

#[cfg(test)]
mod tests;
