//! Certificate, key and verifier for TLS as this device, for programs that use rustls.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, Signer};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureAlgorithm, SignatureScheme,
};

use super::{Client, ClientError};
use miaf_spiffe::SpiffeId;
use miaf_spiffe::digest::sha256;
use miaf_spiffe::svid::Chain;

impl Client {
    /// Returns the certificate chain of the identity, with a key that signs through the agent's
    /// signing socket.
    ///
    /// Call it for every connection, or whenever [`watch`](Self::watch) reports another SVID: it
    /// can be used until the second renewal from now. Disable resumption
    /// (`Resumption::disabled()`): a resumed session keeps the old identity.
    ///
    /// # Errors
    /// [`ClientError`]; refused with 503: there is no SVID yet.
    pub fn certified_key(&self) -> Result<CertifiedKey, ClientError> {
        let svid = self.svid()?;
        let chain = Chain::from_pem(&svid.certificate_chain_pem);
        let chain = chain.map_err(|e| ClientError::unintelligible(&e))?.certificates().to_vec();
        let leaf = chain.first().ok_or_else(|| ClientError::unintelligible(&"it holds no certificate"))?;
        let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|e| ClientError::unintelligible(&e))?;
        let spki = leaf.subject_public_key_info();
        let key = RemoteKey { agent: self.clone(), serial: svid.serial, spki };
        Ok(CertifiedKey::new(chain, signing_key(Arc::new(key))))
    }

    /// Returns a verifier that accepts the server with this SPIFFE ID under the trust bundle, and
    /// no other. It does not compare host names: the bundle vouches for identities only.
    ///
    /// Call it for every connection, or whenever [`watch`](Self::watch) reports another bundle.
    ///
    /// # Errors
    /// [`ClientError`]; refused with 503: there is no trust bundle yet.
    pub fn server_verifier(&self, id: &SpiffeId) -> Result<Arc<dyn ServerCertVerifier>, ClientError> {
        let mut anchors = RootCertStore::empty();
        anchors.add_parsable_certificates(self.bundle()?.anchors);
        let algorithms = ring::default_provider().signature_verification_algorithms;
        Ok(Arc::new(KnownServer { id: id.to_string(), anchors, algorithms }))
    }
}

/// The key of one SVID, used through the agent.
#[derive(Debug)]
struct RemoteKey {
    agent: Client,
    serial: String,
    spki: SubjectPublicKeyInfoDer<'static>,
}

impl Signs for RemoteKey {
    type Error = ClientError;

    fn spki_der(&self) -> Vec<u8> {
        self.spki.to_vec()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, ClientError> {
        self.agent.sign(&sha256(message), Some(&self.serial)).map(|signature| signature.der)
    }
}

#[derive(Debug)]
struct KnownServer {
    id: String,
    anchors: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for KnownServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let (anchors, algorithms) = (&self.anchors, self.algorithms.all);
        verify_server_cert_signed_by_trust_anchor(&parsed, anchors, intermediates, now, algorithms)?;
        let names = webpki::EndEntityCert::try_from(leaf).map_err(|_| CertificateError::BadEncoding)?;
        // X509-SVID section 2: exactly one.
        if names.valid_uri_names().eq([self.id.as_str()]) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::NotValidForName.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A key as TLS needs it, in this process or another: on P-256 (rule K3), unless it says otherwise.
pub trait Signs: fmt::Debug + Send + Sync {
    /// Error of a signature.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The public half, as a DER `SubjectPublicKeyInfo`.
    fn spki_der(&self) -> Vec<u8>;

    /// The one scheme by which it signs.
    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }

    /// Signs a message in that scheme: by ECDSA a signature in DER.
    ///
    /// # Errors
    /// The key cannot be used.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Self::Error>;
}

/// A signing key for TLS, in the one scheme of the key: `ecdsa_secp256r1_sha256` (rule K3), unless it
/// says otherwise.
///
/// rustls signs synchronously: a slow TPM blocks the thread that runs the handshake.
#[must_use]
pub fn signing_key<K: Signs + ?Sized + 'static>(key: Arc<K>) -> Arc<dyn rustls::sign::SigningKey> {
    Arc::new(TlsKey(key))
}

#[derive(Debug)]
struct TlsKey<K: ?Sized>(Arc<K>);

impl<K: Signs + ?Sized + 'static> rustls::sign::SigningKey for TlsKey<K> {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&self.0.scheme()).then(|| Box::new(Self(Arc::clone(&self.0))) as Box<dyn Signer>)
    }

    /// Lets rustls notice a certificate that belongs to another key.
    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.0.spki_der()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.0.scheme() {
            SignatureScheme::ED25519 => SignatureAlgorithm::ED25519,
            SignatureScheme::RSA_PSS_SHA256 => SignatureAlgorithm::RSA,
            _ => SignatureAlgorithm::ECDSA,
        }
    }
}

impl<K: Signs + ?Sized> Signer for TlsKey<K> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.0.sign(message).map_err(|error| rustls::Error::Other(rustls::OtherError(Arc::new(error))))
    }

    fn scheme(&self) -> SignatureScheme {
        self.0.scheme()
    }
}
