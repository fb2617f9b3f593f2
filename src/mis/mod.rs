//! MIAF v0 on the wire: everything that knows what a Margo Identity Service looks like from outside. It says what the
//! service answered and what that means; when to ask, and whether to ask again, is the lifecycle's.
//!
//! Should Margo move the enrollment onto another protocol, this room is replaced and no other.

mod discovery;
mod error;
mod http;
mod identities;
mod problem;
pub mod tls;

pub use discovery::{Discovery, DiscoveryError, FACTORY_CERT_MTLS, X509_SVID_V1};
pub use error::MisError;
pub use http::Validators;
pub use identities::{CertificateRequest, Identified};
pub use problem::Problem;

use url::Url;

use crate::config::InitialTrust;
use crate::spiffe::{Bundle, SpiffeId, TrustDomain};
use http::{Body, Call, Http};

const MAX_DISCOVERY: usize = 64 * 1024;
const MAX_BUNDLE: usize = 1024 * 1024;

/// A client of one MIS. Its HTTP and TLS run on a thread of their own, since a TLS handshake signs synchronously and
/// a TPM may be slow.
#[derive(Debug)]
pub struct Mis {
    http: Http,
    trust: InitialTrust,
}

/// The answer to a conditional GET.
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

impl Mis {
    /// A client that trusts what `trust` says. Nothing is contacted yet.
    pub fn new(trust: InitialTrust) -> Self {
        Self { http: Http::default(), trust }
    }

    /// Reads the discovery document, from the URL exactly as given and without following redirects (miaf-v0 D1, D2).
    ///
    /// # Errors
    /// [`MisError`]. A document that breaks D3 is [`MisError::Discovery`].
    pub async fn discovery(
        &self,
        url: &Url,
        held: Option<&Validators>,
    ) -> Result<Fetched<Discovery>, MisError> {
        let read = |body: &str| {
            Discovery::from_json(body).map_err(|why| MisError::Discovery { url: url.clone(), why })
        };
        self.fetch(url, held, MAX_DISCOVERY, read).await
    }

    /// Reads the trust bundle of `domain` (miaf-v0 B1, B2).
    ///
    /// # Errors
    /// [`MisError`]. A document that breaks B1 is [`MisError::Bundle`].
    pub async fn bundle(
        &self,
        url: &Url,
        domain: &TrustDomain,
        held: Option<&Validators>,
    ) -> Result<Fetched<Bundle>, MisError> {
        let read = |body: &str| {
            Bundle::from_served(body.as_bytes(), domain)
                .map_err(|why| MisError::Bundle { url: url.clone(), why })
        };
        self.fetch(url, held, MAX_BUNDLE, read).await
    }

    /// Enrolls with the factory certificate (miaf-v0 E1). The answer is the chain as returned, judged by no one yet.
    ///
    /// # Errors
    /// [`MisError`].
    pub async fn enroll(
        &self,
        discovery: &Discovery,
        csr: &CertificateRequest,
        factory: Identified,
    ) -> Result<Vec<String>, MisError> {
        let url = discovery.identities_uri();
        self.issue(url, identities::enrollment(csr), factory).await
    }

    /// Renews with the SVID that is held (miaf-v0 R1). The answer is the chain as returned, judged by no one yet.
    ///
    /// # Errors
    /// [`MisError`].
    pub async fn renew(
        &self,
        discovery: &Discovery,
        id: &SpiffeId,
        csr: &CertificateRequest,
        svid: Identified,
    ) -> Result<Vec<String>, MisError> {
        let url = discovery.renewal_uri(id);
        self.issue(url, identities::renewal(csr), svid).await
    }

    async fn fetch<T>(
        &self,
        url: &Url,
        held: Option<&Validators>,
        limit: usize,
        read: impl FnOnce(&str) -> Result<T, MisError>,
    ) -> Result<Fetched<T>, MisError> {
        let call = self.call(url, None, limit, Body::Get(held.cloned()));
        let answer = self.http.call(call).await?;
        match answer.status {
            200 => {
                let malformed =
                    || MisError::Malformed { url: url.clone(), what: "the answer is not UTF-8 text".into() };
                let validators = answer.validators.clone();
                let body = String::from_utf8(answer.whole_body(url, limit)?).map_err(|_| malformed())?;
                Ok(Fetched::New { document: read(&body)?, body, validators })
            }
            304 if held.is_some_and(|held| !held.is_empty()) => Ok(Fetched::NotModified),
            _ => Err(answer.into_error(url)),
        }
    }

    async fn issue(&self, url: Url, body: String, client: Identified) -> Result<Vec<String>, MisError> {
        let call = self.call(&url, Some(client), identities::MAX_ANSWER, Body::Post(body));
        let answer = self.http.call(call).await?;
        match answer.status {
            200 | 201 => identities::read_answer(&url, &answer.whole_body(&url, identities::MAX_ANSWER)?),
            _ => Err(answer.into_error(&url)),
        }
    }

    fn call(&self, url: &Url, client: Option<Identified>, limit: usize, body: Body) -> Call {
        let (trust, identity) = (self.trust.clone(), client.map(|client| client.0));
        Call { url: url.clone(), trust, identity, limit, body }
    }
}
