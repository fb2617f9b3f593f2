//! TLS 1.3 only (T3), or 1.2 only where the operator wants that, with an optional client certificate on every path. The handshake demands
//! proof of possession and takes any certificate that parses; the service validates it.

use crate::clients;
use crate::policy::ClientCertificates;
use crate::service::Service;
use development_server::{ClientCheck, Result, Verifier, lock, without_resumption};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::ServerConfig;
use rustls::{CertificateError, Error as TlsError, SupportedProtocolVersion};
use std::sync::Arc;

/// The server's TLS configuration, of one version of TLS.
pub fn config(
    service: &Arc<Service>,
    version: &'static SupportedProtocolVersion,
) -> Result<Arc<ServerConfig>> {
    let (chain, key) = {
        let pki = lock(&service.pki);
        let (chain, key) = pki.tls();
        let chain = chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        (chain, PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.to_vec())))
    };
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier { check: Check(Arc::clone(service)), provider: Arc::clone(&provider) };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(chain, key)?;
    without_resumption(&mut config);
    Ok(Arc::new(config))
}

struct Check(Arc<Service>);

impl Check {
    /// For the policy that wants bad certificates out already here.
    fn judge(&self, chain: &[CertificateDer<'_>]) -> std::result::Result<(), TlsError> {
        let (factory, anchors) = {
            let pki = lock(&self.0.pki);
            (pki.factory_anchors().to_vec(), pki.anchors())
        };
        let as_svid = clients::judge_svid(chain, &anchors, &self.0.trust_domain);
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

impl ClientCheck for Check {
    fn required(&self) -> bool {
        lock(&self.0.policy).client_certificates == ClientCertificates::Required
    }

    fn requested(&self) -> bool {
        lock(&self.0.policy).client_certificates != ClientCertificates::NotRequested
    }

    fn check(&self, chain: &[CertificateDer<'_>], _now: UnixTime) -> std::result::Result<(), TlsError> {
        if lock(&self.0.policy).refuse_in_handshake { self.judge(chain) } else { Ok(()) }
    }
}
