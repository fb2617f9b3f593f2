//! Client certificates in the handshake: proof of possession is demanded of any that parses, and
//! what else counts is the server's own decision.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, SignatureScheme,
};
use std::fmt;
use std::sync::Arc;

/// What a server decides about client certificates in the handshake.
pub trait ClientCheck: Send + Sync {
    /// Whether a certificate is requested at all.
    fn requested(&self) -> bool {
        true
    }

    /// Whether a handshake without one fails.
    fn required(&self) -> bool;

    /// Refuses a chain in the handshake; most are left to the response.
    ///
    /// # Errors
    ///
    /// What the alert says.
    fn check(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), TlsError>;
}

/// The verifier of a server's TLS configuration.
pub struct Verifier<C> {
    /// The server's decisions.
    pub check: C,
    /// For the signatures of the handshake.
    pub provider: Arc<CryptoProvider>,
}

impl<C> fmt::Debug for Verifier<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

impl<C: ClientCheck> ClientCertVerifier for Verifier<C> {
    fn offer_client_auth(&self) -> bool {
        self.check.requested()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.check.required()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        if webpki::EndEntityCert::try_from(end_entity).is_err() {
            return Err(TlsError::InvalidCertificate(CertificateError::BadEncoding));
        }
        let chain = [std::slice::from_ref(end_entity), intermediates].concat();
        self.check.check(&chain, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// HTTP/1.1, and no session is resumed: a resumed one would keep an old identity.
pub fn without_resumption(config: &mut ServerConfig) {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
}
