//! Initial trust: how the MIS's HTTPS endpoints are authenticated, and as whom this device shows itself (miaf-v0 T1 to
//! T5). The trust bundle plays no part here (B6), and the factory certificate says nothing about the server (T5).

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::MisError;
use crate::config::InitialTrust;

/// A TLS 1.3 client that trusts the configured anchors and nothing else. The files are read at every use, so a replaced
/// one counts from the next connection on.
pub(super) fn client(
    trust: &InitialTrust,
    identity: Option<Arc<CertifiedKey>>,
) -> Result<ClientConfig, MisError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(anchors(trust)?), provider.clone())
        .build()
        .map_err(|e| MisError::TlsSetup(rustls::Error::General(e.to_string())))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(MisError::TlsSetup)?
        .with_webpki_verifier(verifier);
    let mut config = match identity {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    };
    // A resumed session would go on under the identity it was opened with.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn anchors(trust: &InitialTrust) -> Result<RootCertStore, MisError> {
    if trust.is_empty() {
        return Err(MisError::NoTrust);
    }
    if !trust.spki_sha256.is_empty() {
        return Err(MisError::TrustNotSupported("spki_sha256"));
    }
    match &trust.ca_file {
        Some(path) if !trust.system_roots => anchors_in(path),
        _ => Err(MisError::TrustNotSupported("system_roots")),
    }
}

fn anchors_in(path: &Path) -> Result<RootCertStore, MisError> {
    let unusable = |why: String| MisError::TrustFile { path: path.to_owned(), why };
    let pem = crate::system::files::read_limited(path).map_err(|e| unusable(e.to_string()))?;
    let mut store = RootCertStore::empty();
    for (index, certificate) in CertificateDer::pem_slice_iter(&pem).enumerate() {
        let certificate = certificate.map_err(|e| unusable(format!("it is not PEM: {e}")))?;
        store
            .add(certificate)
            .map_err(|e| unusable(format!("certificate {} in it is damaged: {e}", index + 1)))?;
    }
    if store.is_empty() {
        return Err(unusable("it holds no PEM certificate".into()));
    }
    Ok(store)
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
        rustls::Error::InvalidCertificate(why) => TlsReason::Server(server_certificate(why)),
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

fn server_certificate(why: &CertificateError) -> String {
    match why {
        // A CA of the same name with another key shows as a bad signature.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate was not issued by a CA in ca_file (unknown issuer)".into()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("its certificate is not for the name in the URL ({why})")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("its certificate has expired, or this device's clock is wrong ({why})")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("its certificate is not valid yet, or this device's clock is wrong ({why})")
        }
        other => format!("its certificate is not acceptable ({other})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::version::{TLS12, TLS13};
    use rustls::{ClientConnection, ServerConfig, ServerConnection, SupportedProtocolVersion};
    use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn authority() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn issued_by(authority: &Authority) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["mis.example".into()]).unwrap();
        let certificate = params.signed_by(&key, authority).unwrap();
        (certificate.der().clone(), PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }

    /// The agent, trusting one authority and showing a certificate of another (or none), meets a server.
    fn meet(
        trusted: &Authority,
        factory: Option<&Authority>,
        server: &Authority,
        version: &'static SupportedProtocolVersion,
    ) -> Result<(), rustls::Error> {
        let folder = tempfile::tempdir().unwrap();
        let ca_file = folder.path().join("ca.pem");
        std::fs::write(&ca_file, trusted.pem()).unwrap();
        let trust = InitialTrust { ca_file: Some(ca_file), ..InitialTrust::default() };
        let identity = factory.map(|factory| {
            let (leaf, key) = issued_by(factory);
            let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
            Arc::new(CertifiedKey::new(vec![leaf, factory.der().clone()], key))
        });
        let config = Arc::new(client(&trust, identity).unwrap());
        let mut client = ClientConnection::new(config, "mis.example".try_into().unwrap()).unwrap();
        let (certificate, key) = issued_by(server);
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        let mut server = ServerConnection::new(Arc::new(config))?;
        while client.is_handshaking() {
            let (mut out, mut back) = (Vec::new(), Vec::new());
            client.write_tls(&mut out).unwrap();
            server.read_tls(&mut out.as_slice()).unwrap();
            server.process_new_packets()?;
            server.write_tls(&mut back).unwrap();
            client.read_tls(&mut back.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn only_tls_1_3_is_offered() {
        let authority = authority();
        meet(&authority, None, &authority, &TLS13).unwrap();
        assert!(matches!(
            meet(&authority, None, &authority, &TLS12),
            Err(rustls::Error::PeerIncompatible(_))
        ));
    }

    #[test]
    fn the_issuer_of_the_factory_certificate_vouches_for_no_server() {
        let (trusted, factory) = (authority(), authority());
        meet(&trusted, Some(&factory), &trusted, &TLS13).unwrap();
        assert!(matches!(
            meet(&trusted, Some(&factory), &factory, &TLS13),
            Err(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature
            ))
        ));
    }

    #[test]
    fn a_file_without_anchors_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty.pem");
        std::fs::write(&path, "").unwrap();
        let trust = InitialTrust { ca_file: Some(path), ..InitialTrust::default() };
        let error = client(&trust, None).unwrap_err().to_string();
        assert!(error.contains("empty.pem") && error.contains("no PEM certificate"), "{error}");
    }
}
