//! TLS as this device, in any program that uses rustls.

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
    /// The device's certificate chain, with a key that has the agent sign: on the socket for signatures.
    ///
    /// Take it anew for every connection, or whenever [`watch`](Self::watch) tells of another SVID: it is good until the
    /// second renewal from now. And switch resumption off (`Resumption::disabled()`): a resumed session keeps the old identity.
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

    /// Takes a server that the trust bundle vouches for under this SPIFFE ID, and no other. Host names do not matter: the
    /// bundle vouches for identities only.
    ///
    /// Take it anew for every connection, or whenever [`watch`](Self::watch) tells of another bundle.
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

/// The key of one SVID, which is the agent's to use.
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

/// What TLS needs of a key on P-256 (rule K3), in this process or another.
pub trait Signs: fmt::Debug + Send + Sync {
    /// Why there is no signature.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The public half, as a DER `SubjectPublicKeyInfo`.
    fn spki_der(&self) -> Vec<u8>;

    /// Hashes a message with SHA-256 and signs it: an ECDSA signature in DER.
    ///
    /// # Errors
    /// Whatever keeps the key from being used.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Self::Error>;
}

/// A signing key for TLS: `ecdsa_secp256r1_sha256` and nothing else (rule K3).
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
        offered
            .contains(&SignatureScheme::ECDSA_NISTP256_SHA256)
            .then(|| Box::new(Self(Arc::clone(&self.0))) as Box<dyn Signer>)
    }

    /// Given, so that rustls can tell when a certificate belongs to another key.
    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.0.spki_der()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl<K: Signs + ?Sized> Signer for TlsKey<K> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.0.sign(message).map_err(|error| rustls::Error::Other(rustls::OtherError(Arc::new(error))))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}
