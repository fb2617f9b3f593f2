//! TLS to the MIS: how its servers are authenticated, and as whom this device shows itself (miaf-v0 T1 to T5). The trust
//! bundle plays no part here (B6), and the factory certificate says nothing about the server (T5).

use std::error::Error;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{AlertDescription, ClientConfig};

use super::MisError;
use super::trust::Loaded;
use super::verify::{self, Note, Verifier};

/// A TLS 1.3 client that trusts what was provisioned and nothing else, for one call.
pub(super) fn client(
    trust: Arc<Loaded>,
    identity: Option<Arc<CertifiedKey>>,
    note: Arc<Note>,
) -> Result<ClientConfig, MisError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier::new(trust, provider.signature_verification_algorithms, note);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(MisError::TlsSetup)?
        .dangerous() // rustls' word for any verifier but its own, which knows no pins
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    };
    // A resumed session would go on under the identity it was opened with.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// What TLS had to do with an error of the HTTP client, if anything.
pub(super) enum TlsReason {
    /// The server is not who it should be.
    Server(String),
    /// The server did not like this device's certificate.
    Client(String),
    /// Any other TLS failure.
    Other(String),
}

/// Looks for a TLS error among the causes. An I/O error hides what it wraps from `source`, and may wrap another.
pub(super) fn reason(error: &(dyn Error + 'static)) -> Option<TlsReason> {
    if let Some(tls) = error.downcast_ref() {
        return Some(describe(tls));
    }
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    match wrapped {
        Some(inner) => reason(inner),
        None => error.source().and_then(reason),
    }
}

fn describe(error: &rustls::Error) -> TlsReason {
    use AlertDescription as A;
    match error {
        rustls::Error::InvalidCertificate(why) => TlsReason::Server(verify::describe(why)),
        rustls::Error::NoCertificatesPresented => TlsReason::Server("it presented no certificate".into()),
        rustls::Error::AlertReceived(
            alert @ (A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::CertificateRequired),
        ) => TlsReason::Client(format!("{alert:?}")),
        rustls::Error::AlertReceived(A::ProtocolVersion) | rustls::Error::PeerIncompatible(_) => {
            TlsReason::Other(format!("{error}; TLS 1.3 is required"))
        }
        other => TlsReason::Other(other.to_string()),
    }
}

#[cfg(test)]
mod tests;
