//! TLS 1.3 only (T3), with an optional client certificate on every path. The handshake demands
//! proof of possession and takes any certificate that parses; the service validates it.

use crate::clients;
use crate::error::Result;
use crate::service::{Service, lock};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, SignatureScheme,
};
use std::fmt;
use std::sync::Arc;

/// The server's TLS configuration. No session is resumed: a resumed one would keep an old identity.
pub fn config(service: &Arc<Service>) -> Result<Arc<ServerConfig>> {
    let (chain, key) = {
        let pki = lock(&service.pki);
        let (chain, key) = pki.tls();
        let chain = chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        (chain, PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.to_vec())))
    };
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier { service: Arc::clone(service), provider: Arc::clone(&provider) };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

struct Verifier {
    service: Arc<Service>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

impl Verifier {
    /// For the policy that wants bad certificates out already here.
    fn judge(&self, chain: &[CertificateDer<'_>]) -> std::result::Result<(), TlsError> {
        let (factory, anchors) = {
            let pki = lock(&self.service.pki);
            (pki.factory_anchors().to_vec(), pki.anchors())
        };
        let as_svid = clients::judge_svid(chain, &anchors, &self.service.trust_domain);
        if as_svid.is_ok() || clients::judge_factory(chain, &factory).is_ok() {
            return Ok(());
        }
        let expired = as_svid.is_err_and(|why| why.contains("CertExpired"));
        Err(TlsError::InvalidCertificate(if expired {
            CertificateError::Expired
        } else {
            CertificateError::UnknownIssuer
        }))
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> std::result::Result<ClientCertVerified, TlsError> {
        if webpki::EndEntityCert::try_from(end_entity).is_err() {
            return Err(TlsError::InvalidCertificate(CertificateError::BadEncoding));
        }
        if lock(&self.service.policy).refuse_in_handshake {
            let mut chain = vec![end_entity.clone()];
            chain.extend_from_slice(intermediates);
            self.judge(&chain)?;
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
