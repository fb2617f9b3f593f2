//! TLS 1.3 only. The server shows the SVID in its files as they are at that moment; the handshake
//! demands proof of possession of any client certificate, and the service validates it.

use crate::clients;
use crate::service::Service;
use development_server::{ClientCheck, Context, Error, Result, Verifier, lock, without_resumption};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, Error as TlsError};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// A certificate chain and its key, in files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// PEM certificates, leaf first.
    pub chain: PathBuf,
    /// PEM PKCS#8 key.
    pub key: PathBuf,
}

impl Credential {
    /// These two files.
    pub fn new(chain: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self { chain: chain.into(), key: key.into() }
    }

    pub(crate) fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = CertificateDer::pem_file_iter(&self.chain)
            .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
            .context(self.chain.display())?;
        if chain.is_empty() {
            return Err(Error::new(format!("{}: no certificate", self.chain.display())));
        }
        let key = PrivateKeyDer::from_pem_file(&self.key).context(self.key.display())?;
        Ok((chain, key))
    }

    fn certified(&self, provider: &CryptoProvider) -> Result<CertifiedKey> {
        let (chain, key) = self.read()?;
        CertifiedKey::from_der(chain, key, provider).context(self.chain.display())
    }
}

/// The server's TLS configuration.
pub fn config(service: &Arc<Service>, resumption: bool) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier { check: Check(Arc::clone(service)), provider: Arc::clone(&provider) };
    let resolver = Resolver { service: Arc::clone(service), provider: Arc::clone(&provider) };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("TLS")?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(resolver));
    let offered = (Arc::clone(&config.session_storage), config.send_tls13_tickets);
    without_resumption(&mut config);
    if resumption {
        (config.session_storage, config.send_tls13_tickets) = offered;
    }
    Ok(Arc::new(config))
}

struct Resolver {
    service: Arc<Service>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = lock(&self.service.shown).clone().unwrap_or_else(|| self.service.own.clone());
        match shown.certified(&self.provider) {
            Ok(key) => Some(Arc::new(key)),
            Err(error) => {
                self.service.journal.refused(format!("no server certificate: {error}"));
                None
            }
        }
    }
}

struct Check(Arc<Service>);

impl ClientCheck for Check {
    fn required(&self) -> bool {
        lock(&self.0.policy).refuse_in_handshake
    }

    fn check(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> std::result::Result<(), TlsError> {
        if lock(&self.0.policy).refuse_in_handshake {
            let anchors = self.0.anchors().map_err(|error| TlsError::General(error.to_string()))?;
            clients::verify(chain, &anchors, &self.0.trust_domain, now)
                .map_err(|_| TlsError::InvalidCertificate(CertificateError::UnknownIssuer))?;
        }
        Ok(())
    }
}
