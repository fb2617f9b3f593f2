//! The protocols that issue identities: each can discover its issuer, fetch the trust bundle, enroll and renew. What an
//! issuer says comes back as a type, or as an [`IssuerError`] with what it means to the lifecycle; when to ask, and whether
//! to ask again, is the lifecycle's.
//!
//! A protocol is a folder here and a variant of [`Protocol`].

mod error;
mod miaf_v0;

pub use error::IssuerError;
#[cfg(any(test, fuzzing))]
pub(crate) use miaf_v0::fuzzing;
pub use miaf_v0::{Discovery, DiscoveryError, FACTORY_CERT_MTLS, X509_SVID_V1};

use url::Url;

use crate::spiffe::{Bundle, SpiffeId, TrustDomain};
use crate::transport::{ClientIdentity, Transport, Validators, VouchedBy};

/// Bytes of a trust bundle.
const MAX_BUNDLE: usize = 1024 * 1024;

/// How an issuer is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// MIAF v0: JSON over mTLS.
    #[default]
    MiafV0,
}

/// A client of one issuer.
#[derive(Debug)]
pub struct Issuer {
    protocol: Protocol,
    transport: Transport,
}

/// A PKCS#10 certification request, DER.
#[derive(Clone, Debug)]
pub struct CertificateRequest(pub Vec<u8>);

/// The outcome of a conditional GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched<T> {
    /// What is held is still current.
    NotModified,
    /// A document, with the bytes it was read from and what to revalidate them with.
    New {
        /// The document.
        document: T,
        /// As served.
        body: String,
        /// For the next conditional request.
        validators: Validators,
    },
}

impl Issuer {
    /// A client that speaks this protocol over this transport. Nothing is contacted yet.
    pub fn new(protocol: Protocol, transport: Transport) -> Self {
        Self { protocol, transport }
    }

    /// The way to it.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Reads the discovery document, from the URL exactly as given and without following redirects (miaf-v0 D1, D2).
    /// `cached` is the document cached from this URL, with its validators.
    ///
    /// Where only the public store vouches for the server, a document that leads to another origin is refused, the one
    /// cached included (D7).
    ///
    /// # Errors
    /// [`IssuerError`]. A document that breaks D3 or D7 is [`IssuerError::Discovery`].
    pub async fn discover(
        &self,
        url: &Url,
        cached: Option<(&Discovery, &Validators)>,
    ) -> Result<Fetched<Discovery>, IssuerError> {
        let refused = |why| IssuerError::Discovery { url: url.clone(), why };
        let read = |body: &str| Discovery::from_json(body).map_err(refused);
        let validators = cached.map(|(_, validators)| validators);
        let (fetched, vouched_by) = self.fetch(url, validators, miaf_v0::MAX_DISCOVERY, read).await?;
        let document = match &fetched {
            Fetched::New { document, .. } => Some(document),
            Fetched::NotModified => cached.map(|(document, _)| document),
        };
        if let (VouchedBy::PublicStore, Some(document)) = (vouched_by, document) {
            document.stays_at_the_origin_of(url).map_err(refused)?;
        }
        Ok(fetched)
    }

    /// Reads the trust bundle of `domain` (miaf-v0 B1, B2).
    ///
    /// # Errors
    /// [`IssuerError`]. A document that breaks B1 is [`IssuerError::Bundle`].
    pub async fn trust_bundle(
        &self,
        url: &Url,
        domain: &TrustDomain,
        cached: Option<&Validators>,
    ) -> Result<Fetched<Bundle>, IssuerError> {
        let read = |body: &str| {
            Bundle::from_served(body.as_bytes(), domain)
                .map_err(|why| IssuerError::Bundle { url: url.clone(), why })
        };
        self.fetch(url, cached, MAX_BUNDLE, read).await.map(|(fetched, _)| fetched)
    }

    /// Enrolls with the factory certificate. The issued chain is as returned, not validated yet.
    ///
    /// # Errors
    /// [`IssuerError`].
    pub async fn enroll(
        &self,
        discovery: &Discovery,
        csr: &CertificateRequest,
        factory: ClientIdentity,
    ) -> Result<Vec<String>, IssuerError> {
        match self.protocol {
            Protocol::MiafV0 => miaf_v0::enroll(&self.transport, discovery, csr, factory).await,
        }
    }

    /// Renews with the current SVID. The issued chain is as returned, not validated yet.
    ///
    /// # Errors
    /// [`IssuerError`].
    pub async fn renew(
        &self,
        discovery: &Discovery,
        id: &SpiffeId,
        csr: &CertificateRequest,
        svid: ClientIdentity,
    ) -> Result<Vec<String>, IssuerError> {
        match self.protocol {
            Protocol::MiafV0 => miaf_v0::renew(&self.transport, discovery, id, csr, svid).await,
        }
    }

    async fn fetch<T>(
        &self,
        url: &Url,
        cached: Option<&Validators>,
        limit: usize,
        read: impl FnOnce(&str) -> Result<T, IssuerError>,
    ) -> Result<(Fetched<T>, VouchedBy), IssuerError> {
        let response = self.transport.get(url, cached, limit).await?;
        let vouched_by = response.vouched_by;
        match response.status {
            200 => {
                let validators = response.validators.clone();
                let body = response.into_json(url, limit)?;
                Ok((Fetched::New { document: read(&body)?, body, validators }, vouched_by))
            }
            304 if cached.is_some_and(|cached| !cached.is_empty()) => Ok((Fetched::NotModified, vouched_by)),
            _ => match self.protocol {
                Protocol::MiafV0 => Err(miaf_v0::refused(response, url)),
            },
        }
    }
}

#[cfg(test)]
mod tests;
