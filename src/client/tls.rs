//! TLS as this device, in any program that uses rustls.

use std::sync::Arc;

use ring::digest::{SHA256, digest};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::CertifiedKey;

use super::{Client, ClientError};
use crate::keys::tls::{self, Signs};
use crate::spiffe::svid::Chain;

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
        let unintelligible = |e: &dyn std::fmt::Display| ClientError::Unintelligible(e.to_string());
        let chain = Chain::from_pem(&svid.certificate_chain_pem).map_err(|e| unintelligible(&e))?;
        let chain = chain.certificates().to_vec();
        let leaf = chain.first().ok_or_else(|| unintelligible(&"it holds no certificate"))?;
        let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|e| unintelligible(&e))?;
        let spki = leaf.subject_public_key_info();
        let key = SigningKey { agent: self.clone(), serial: svid.serial, spki };
        Ok(CertifiedKey::new(chain, tls::signing_key(Arc::new(key))))
    }
}

/// The key of one SVID, which is the agent's to use.
#[derive(Debug)]
struct SigningKey {
    agent: Client,
    serial: String,
    spki: SubjectPublicKeyInfoDer<'static>,
}

impl Signs for SigningKey {
    type Error = ClientError;

    fn spki_der(&self) -> Vec<u8> {
        self.spki.to_vec()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, ClientError> {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, message).as_ref());
        self.agent.sign(&hash, Some(&self.serial)).map(|signature| signature.der)
    }
}
