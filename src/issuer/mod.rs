//! Protocols that issue identities: each can discover its issuer, fetch the trust bundle, enroll
//! and renew. Responses are parsed into types here, or become an [`IssuerError`] with its meaning
//! for the lifecycle. When to send a request, and whether to repeat it, is decided by the
//! lifecycle.
//!
//! A protocol is a directory here and a variant of [`Protocol`].

mod discovery;
mod error;
mod est;
mod miaf_v0;
mod wfm_binding;

pub use discovery::{
    BootstrapMethod, BundleLocation, Discovery, DiscoveryError, FACTORY_CERT_MTLS, MiafV0, MissingMember,
    WFM_CLIENT_BINDING, X509_SVID_V1,
};
pub use error::{IssuerError, NamedBy};
#[cfg(any(test, fuzzing))]
pub(crate) use est::fuzzing as est_fuzzing;
pub use est::{
    CaCertificates, EnrollmentToken, EstAuthorization, EstEndpoint, EstError, EstRequest, EstUrl,
    EstUrlError, NoPath, TokenError,
};
#[cfg(any(test, fuzzing))]
pub(crate) use miaf_v0::fuzzing;

use std::path::Path;

use std::sync::Arc;

use url::Url;

use crate::platform::{access, files};
use crate::transport::{ClientIdentity, Transport, TrustSource, Validators};
use miaf_spiffe::svid::Chain;
use miaf_spiffe::time::Timestamp;
use miaf_spiffe::{Bundle, MaybeNamedBundle, SpiffeId, TrustDomain};

/// Limit on the bytes of a discovery document.
const MAX_DISCOVERY: usize = 64 * 1024;
/// Limit on the bytes of a trust bundle.
const MAX_BUNDLE: usize = 1024 * 1024;

/// Protocol of an issuer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// MIAF v0: JSON over mTLS.
    #[default]
    MiafV0,
}

/// Client of one issuer.
#[derive(Debug)]
pub struct Issuer {
    protocol: Protocol,
    transport: Transport,
    est_forms: est::Forms,
}

/// A WFM, and the handle of its client on this device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wfm {
    /// Base of its URLs.
    pub url: Url,
    /// The `wfm-id` that its SVID names.
    pub wfm_id: String,
    /// The handle to ask for. Without one the WFM derives it.
    pub client_handle: Option<String>,
}

/// PKCS#10 certification request in DER.
#[derive(Clone, Debug)]
pub struct CertificateRequest(pub Vec<u8>);

/// Outcome of a conditional GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched<T> {
    /// The cached document is up to date.
    NotModified,
    /// Another document.
    New {
        /// As parsed.
        document: T,
        /// As served.
        body: String,
        /// Validators for the next conditional request.
        validators: Validators,
    },
}

impl Issuer {
    /// Creates a client of this protocol over this transport. No connection is made yet.
    pub fn new(protocol: Protocol, transport: Transport) -> Self {
        Self { protocol, transport, est_forms: est::Forms::default() }
    }

    /// The transport to the issuer.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Fetches the discovery document, from the URL exactly as given and without following
    /// redirects (miaf-v0 D1, D2). `cached` is the document cached from this URL, with its
    /// validators.
    ///
    /// A document whose bundle is at an origin that is not allowed is refused, and so is one that
    /// leads to another origin where only the public store authenticates the server (D7); of an EST server
    /// at another origin only that is refused (X18). All of them
    /// hold for the cached one, too. `bundle_origins`: the allowed origins; empty: the document's.
    ///
    /// # Errors
    /// [`IssuerError`]. A document that breaks D3 or D7 is [`IssuerError::Discovery`].
    pub async fn discover(
        &self,
        url: &Url,
        cached: Option<(&Discovery, &Validators)>,
        bundle_origins: &[Url],
    ) -> Result<Fetched<Discovery>, IssuerError> {
        let refused = |why| IssuerError::Discovery { url: url.clone(), why };
        let read = |body: &str| Discovery::from_json(body).map_err(refused);
        let validators = cached.map(|(_, validators)| validators);
        let (mut fetched, mut trust_source) = self.fetch(url, validators, MAX_DISCOVERY, read).await?;
        // What is cached may come from a server that other trust authenticated.
        let is_elsewhere = cached.is_some_and(|(document, _)| document.est_is_elsewhere(url));
        if fetched == Fetched::NotModified && trust_source == TrustSource::PublicStore && is_elsewhere {
            (fetched, trust_source) = self.fetch(url, None, MAX_DISCOVERY, read).await?;
        }
        if let Fetched::New { document, body, validators } = &mut fetched
            && trust_source == TrustSource::PublicStore
            && let Some(rest) = document.refuse_est_elsewhere(url, body)
        {
            // Without validators: the document may be served by a server that is trusted more.
            (*body, *validators) = (rest, Validators::default());
        }
        let document = match &fetched {
            Fetched::New { document, .. } => Some(document),
            Fetched::NotModified => cached.map(|(document, _)| document),
        };
        if let Some(document) = document {
            if trust_source == TrustSource::PublicStore {
                document.check_origin(url).map_err(refused)?;
            }
            document.check_bundle_origin(url, bundle_origins).map_err(refused)?;
        }
        Ok(fetched)
    }

    /// Fetches the trust bundle of `domain` (miaf-v0 B1, B2), if that is known (miaf-est X22).
    ///
    /// # Errors
    /// [`IssuerError`]. A document that breaks B1 is [`IssuerError::Bundle`].
    pub async fn trust_bundle(
        &self,
        url: &Url,
        domain: Option<&TrustDomain>,
        cached: Option<&Validators>,
    ) -> Result<Fetched<MaybeNamedBundle>, IssuerError> {
        let read = |body: &str| {
            MaybeNamedBundle::from_served(body.as_bytes(), domain)
                .map_err(|why| IssuerError::Bundle { location: BundleLocation::Url(url.clone()), why })
        };
        self.fetch(url, cached, MAX_BUNDLE, read).await.map(|(fetched, _)| fetched)
    }

    /// Reads the trust bundle of `domain`, if that is known (miaf-est X22), from a file (N5), and the
    /// time of its last change. Blocks for as long as the file does.
    ///
    /// # Errors
    /// [`IssuerError::BundleFile`]; [`IssuerError::Bundle`] for a file that is no bundle of this
    /// domain.
    pub fn bundle_file(
        path: &Path,
        domain: Option<&TrustDomain>,
    ) -> Result<(MaybeNamedBundle, Timestamp), IssuerError> {
        let unreadable = |e| {
            let why = access::unreadable(path, &e);
            IssuerError::BundleFile { path: path.to_owned(), why }
        };
        let changed = std::fs::metadata(path).and_then(|file| file.modified()).map_err(unreadable)?;
        let content = files::read_at_most(path, MAX_BUNDLE as u64).map_err(unreadable)?;
        let bundle = MaybeNamedBundle::from_served(&content, domain)
            .map_err(|why| IssuerError::Bundle { location: BundleLocation::File(path.to_owned()), why })?;
        Ok((bundle, changed.into()))
    }

    /// Enrolls with the factory certificate. The issued chain is parsed, and not validated yet.
    ///
    /// # Errors
    /// [`IssuerError`]. A response without a chain is [`IssuerError::Svid`].
    pub async fn enroll(
        &self,
        discovery: &Discovery,
        csr: &CertificateRequest,
        factory: ClientIdentity,
    ) -> Result<Chain, IssuerError> {
        match self.protocol {
            Protocol::MiafV0 => miaf_v0::enroll(&self.transport, discovery, csr, factory).await,
        }
    }

    /// Renews with the current SVID. The issued chain is parsed, and not validated yet.
    ///
    /// # Errors
    /// [`IssuerError`]. A response without a chain is [`IssuerError::Svid`].
    pub async fn renew(
        &self,
        discovery: &Discovery,
        id: &SpiffeId,
        csr: &CertificateRequest,
        svid: ClientIdentity,
    ) -> Result<Chain, IssuerError> {
        match self.protocol {
            Protocol::MiafV0 => miaf_v0::renew(&self.transport, discovery, id, csr, svid).await,
        }
    }

    /// Enrolls a WFM Client: the WFM gives an assertion, for which the MIS issues an SVID (miaf-v0 W1
    /// to W4). The device is the client of both. The WFM is authenticated by its own SVID, against
    /// `bundle`, before anything is sent. The issued chain is parsed, and not validated yet.
    ///
    /// # Errors
    /// [`IssuerError`]. What the WFM refuses is [`IssuerError::WfmRefused`]; what it has no response
    /// to, [`IssuerError::Wfm`]; an assertion that the MIS refuses,
    /// [`IssuerError::AssertionRefused`].
    pub async fn bind(
        &self,
        discovery: &Discovery,
        wfm: &Wfm,
        csr: &CertificateRequest,
        device: ClientIdentity,
        bundle: Option<Arc<Bundle>>,
    ) -> Result<Chain, IssuerError> {
        match self.protocol {
            Protocol::MiafV0 => wfm_binding::bind(&self.transport, discovery, wfm, csr, device, bundle).await,
        }
    }

    async fn fetch<T>(
        &self,
        url: &Url,
        cached: Option<&Validators>,
        limit: usize,
        read: impl FnOnce(&str) -> Result<T, IssuerError>,
    ) -> Result<(Fetched<T>, TrustSource), IssuerError> {
        let response = self.transport.get(url, cached, limit).await?;
        let trust_source = response.trust_source;
        match response.status {
            200 => {
                let validators = response.validators.clone();
                let body = response.into_json(url, limit)?;
                Ok((Fetched::New { document: read(&body)?, body, validators }, trust_source))
            }
            304 if cached.is_some_and(|cached| !cached.is_empty()) => {
                Ok((Fetched::NotModified, trust_source))
            }
            _ => match self.protocol {
                Protocol::MiafV0 => Err(miaf_v0::error_response(response, url)),
            },
        }
    }
}

#[cfg(test)]
mod tests;
