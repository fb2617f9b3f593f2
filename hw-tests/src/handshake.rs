//! A TLS 1.3 handshake in memory, with a server that asks the client for a certificate.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData, SignatureAlgorithm};
use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use crate::Failure;

/// Who certifies the device and the server.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

const SERVER: &str = "mis.example";

impl Authority {
    pub(crate) fn new() -> Result<Self, Failure> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key)?.der().clone();
        Ok(Self { issuer: Issuer::new(params, key), root })
    }

    /// A certificate for a point in SEC1 form, or for an `RSAPublicKey`.
    pub(crate) fn certify(
        &self,
        public_key: &[u8],
        algorithm: &'static SignatureAlgorithm,
    ) -> Result<CertificateDer<'static>, Failure> {
        let params = CertificateParams::new(vec!["device.example".into()])?;
        Ok(params.signed_by(&Subject { public_key, algorithm }, &self.issuer)?.der().clone())
    }

    /// Has the device identify itself, and sees to it that the server has accepted it as the one it
    /// is.
    pub(crate) fn meet(&self, device: CertifiedKey) -> Result<(), Failure> {
        device.keys_match().map_err(|error| format!("the certificate is not the key's: {error}"))?;
        let leaf = device.cert.first().cloned();
        let mut client = self.client(device)?;
        let mut server = self.server()?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire)?;
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest)?;
                server.process_new_packets()?;
            }
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire)?;
            }
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest)?;
                client.process_new_packets()?;
            }
        }
        if server.peer_certificates().and_then(|chain| chain.first()) != leaf.as_ref() {
            return Err("the server has seen another certificate than the device's".into());
        }
        Ok(())
    }

    fn client(&self, device: CertifiedKey) -> Result<ClientConnection, Failure> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(self.roots()?)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(device)));
        config.resumption = Resumption::disabled();
        Ok(ClientConnection::new(Arc::new(config), SERVER.try_into()?)?)
    }

    fn server(&self) -> Result<ServerConnection, Failure> {
        let provider = Arc::new(default_provider());
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec![SERVER.into()])?;
        let leaf = params.signed_by(&key, &self.issuer)?.der().clone();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), Arc::clone(&provider))
                .build()?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![leaf], key)?;
        Ok(ServerConnection::new(Arc::new(config))?)
    }

    fn roots(&self) -> Result<RootCertStore, Failure> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone())?;
        Ok(roots)
    }
}

struct Subject<'a> {
    public_key: &'a [u8],
    algorithm: &'static SignatureAlgorithm,
}

impl PublicKeyData for Subject<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.public_key
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}
