//! MIAF v0 on the wire: everything that knows what a Margo Identity Service looks like from outside. It says what the
//! service answered and what that means; when to ask, and whether to ask again, is the lifecycle's.
//!
//! Should Margo move the enrollment onto another protocol, this room is replaced and no other.

mod discovery;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod http;
mod identities;
mod problem;
mod proxy;
mod tls;
mod trust;
mod verify;

pub use discovery::{Discovery, DiscoveryError, FACTORY_CERT_MTLS, X509_SVID_V1};
pub use error::MisError;
pub use http::Validators;
pub use identities::{CertificateRequest, Identified};
pub use problem::Problem;
pub use proxy::ProxyError;
pub use trust::{Trust, TrustFacts};

use std::sync::Arc;

use url::Url;

use crate::config;
use crate::spiffe::{Bundle, SpiffeId, TrustDomain};
use crate::time::Proof;
use http::{Body, Call, Http};
use verify::VouchedBy;

const MAX_DISCOVERY: usize = 64 * 1024;
const MAX_BUNDLE: usize = 1024 * 1024;

/// A client of one MIS. Its HTTP and TLS run on a thread of their own, since a TLS handshake signs synchronously and
/// a TPM may be slow.
#[derive(Debug)]
pub struct Mis {
    http: Http,
    trust: Trust,
    proxy: Arc<config::Proxy>,
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
    /// A client that trusts what `trust` says, and goes the way that `proxy` says. Nothing is contacted yet, and no
    /// file is read.
    ///
    /// After a reload of the configuration: give it [`Trust::succeeding`] with the [`trust`](Self::trust) of the client
    /// before it, and call [`look_at_trust`](Self::look_at_trust) once, so that a bad new `ca_file` shows at once.
    pub fn new(trust: Trust, proxy: config::Proxy) -> Self {
        Self { http: Http::default(), trust, proxy: Arc::new(proxy) }
    }

    /// The trust in use: what it consists of ([`Trust::facts`]) and whether it is still the one from before because
    /// the one configured is bad ([`Trust::problem`]). Both are as of the last look, and cost nothing.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// What time it is by the MIS: the `Date` of the latest answer of any status that a server gave which the initial
    /// trust vouches for (RFC 9110 section 6.6.1). An answer without a readable one changes nothing. A cache on the
    /// other side may have kept an answer for a while: it was not earlier, perhaps later.
    pub fn proven_time(&self) -> Option<Proof> {
        self.http.proven_time()
    }

    /// Reads the provisioned trust now, without a connection, on a thread for blocking work. Every connection does the
    /// same; this is for a reload of the configuration, and for a look from time to time (a minute is often enough),
    /// so that a bad replacement is noticed before the connection that needs it. What is found is logged once, when it
    /// turns bad and when it is good again.
    ///
    /// # Errors
    /// When it is bad and there was no good one before it in this process; [`MisError::NoTrust`] if none is configured.
    pub async fn look_at_trust(&self) -> Result<TrustFacts, MisError> {
        let trust = self.trust.clone();
        match tokio::task::spawn_blocking(move || trust.load().map(|loaded| loaded.facts())).await {
            Ok(outcome) => outcome,
            Err(e) => std::panic::resume_unwind(e.into_panic()), // a bug in there is a bug here
        }
    }

    /// Reads the discovery document, from the URL exactly as given and without following redirects (miaf-v0 D1, D2).
    /// `held` is the document that is held from this URL, with its validators.
    ///
    /// Where only the public store vouches for the server, a document that leads to another origin is refused, the one
    /// held included (D7).
    ///
    /// # Errors
    /// [`MisError`]. A document that breaks D3 or D7 is [`MisError::Discovery`].
    pub async fn discovery(
        &self,
        url: &Url,
        held: Option<(&Discovery, &Validators)>,
    ) -> Result<Fetched<Discovery>, MisError> {
        let refused = |why| MisError::Discovery { url: url.clone(), why };
        let read = |body: &str| Discovery::from_json(body).map_err(refused);
        let validators = held.map(|(_, validators)| validators);
        let (fetched, vouched_by) = self.fetch(url, validators, MAX_DISCOVERY, read).await?;
        let document = match &fetched {
            Fetched::New { document, .. } => Some(document),
            Fetched::NotModified => held.map(|(document, _)| document),
        };
        if let (VouchedBy::PublicStore, Some(document)) = (vouched_by, document) {
            document.stays_at_the_origin_of(url).map_err(refused)?;
        }
        Ok(fetched)
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
        self.fetch(url, held, MAX_BUNDLE, read).await.map(|(fetched, _)| fetched)
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
    ) -> Result<(Fetched<T>, VouchedBy), MisError> {
        let call = self.call(url, None, limit, Body::Get(held.cloned()));
        let answer = self.http.call(call).await?;
        let vouched_by = answer.vouched_by;
        match answer.status {
            200 => {
                let validators = answer.validators.clone();
                let body = answer.into_json(url, limit)?;
                Ok((Fetched::New { document: read(&body)?, body, validators }, vouched_by))
            }
            304 if held.is_some_and(|held| !held.is_empty()) => Ok((Fetched::NotModified, vouched_by)),
            _ => Err(answer.into_error(url)),
        }
    }

    async fn issue(&self, url: Url, body: String, client: Identified) -> Result<Vec<String>, MisError> {
        let call = self.call(&url, Some(client), identities::MAX_ANSWER, Body::Post(body));
        let answer = self.http.call(call).await?;
        match answer.status {
            200 | 201 => {
                let body = answer.into_json(&url, identities::MAX_ANSWER)?;
                identities::read_answer(&url, body.as_bytes())
            }
            _ => Err(answer.into_error(&url)),
        }
    }

    fn call(&self, url: &Url, client: Option<Identified>, limit: usize, body: Body) -> Call {
        let (trust, proxy) = (self.trust.clone(), self.proxy.clone());
        Call { url: url.clone(), trust, proxy, identity: client.map(|client| client.0), limit, body }
    }
}
