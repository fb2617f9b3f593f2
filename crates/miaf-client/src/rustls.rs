//! Certificate, key and verifier for TLS as this device, for programs that use rustls.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::{CertifiedKey, Signer};
use rustls::{SignatureAlgorithm, SignatureScheme};

use super::api::{ProblemCode, SvidDocument};
use super::wfm::PeerVerifier;
use super::{Client, ClientError};
use miaf_spiffe::digest::sha256;
use miaf_spiffe::peer::ExpectedPeer;
use miaf_spiffe::svid::Chain;
use miaf_spiffe::{Bundle, BundleDocument, SpiffeId, TrustDomain};

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
        self.certified_key_of(&self.svid()?)
    }

    /// The same of an SVID that was fetched before. The key that signs is that of the identity in
    /// the document, whichever is the default identity by then.
    pub(crate) fn certified_key_of(&self, svid: &SvidDocument) -> Result<CertifiedKey, ClientError> {
        let chain = Chain::from_pem(&svid.certificate_chain_pem);
        let chain = chain.map_err(|e| ClientError::unintelligible(&e))?.certificates().to_vec();
        let leaf = chain.first().ok_or_else(|| ClientError::unintelligible(&"it holds no certificate"))?;
        let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|e| ClientError::unintelligible(&e))?;
        let spki = leaf.subject_public_key_info();
        let agent = self.clone().with_identity(svid.identity.clone());
        let key = RemoteKey { agent, serial: svid.serial.clone(), spki };
        Ok(CertifiedKey::new(chain, signing_key(Arc::new(key))))
    }

    /// Returns a verifier that accepts the server with this SPIFFE ID under the trust bundle, and
    /// no other. It does not compare host names: the bundle vouches for identities only. A
    /// [`Connector`](crate::wfm::Connector) does more.
    ///
    /// Call it for every connection, or whenever [`watch`](Self::watch) reports another bundle.
    ///
    /// # Errors
    /// [`ClientError`]; refused with 503: there is no trust bundle yet.
    pub fn server_verifier(&self, id: &SpiffeId) -> Result<Arc<dyn ServerCertVerifier>, ClientError> {
        let state = self.state()?;
        let domain = state.status.trust_domain.zip(state.bundle);
        let Some((domain, document)) = domain else {
            let (code, detail) = (ProblemCode::NotAvailable, "there is no trust bundle yet");
            return Err(ClientError::refused(503, Some(code.into()), &detail, None));
        };
        let domain = TrustDomain::parse(&domain).map_err(|e| ClientError::unintelligible(&e))?;
        let bundle = bundle_of(&document, &domain)?;
        Ok(Arc::new(PeerVerifier::new(ExpectedPeer::SpiffeId(id.clone()), bundle)))
    }
}

/// The bundle of a trust domain, as a document of the agent has it.
pub(crate) fn bundle_of(document: &BundleDocument, domain: &TrustDomain) -> Result<Bundle, ClientError> {
    let text = serde_json::to_vec(document).map_err(|e| ClientError::unintelligible(&e))?;
    Bundle::from_stored(&text, domain).map_err(|e| ClientError::unintelligible(&e))
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

/// A key on P-256 as TLS needs it (rule K3), in this process or another.
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
