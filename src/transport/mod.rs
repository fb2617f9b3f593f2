//! HTTPS to an issuer, bounded in size and time: a server that the provisioned trust vouches for, client certificates,
//! proxies, conditional requests. Knows no protocol that issues identities: that is [`issuer`](crate::issuer).

mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod http;
mod problem_details;
mod proxy;
mod response;
mod retry_after;
mod server_trust;
mod server_verifier;
mod tls;

use std::fmt;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use url::Url;

pub use error::TransportError;
pub(crate) use error::shown;
pub use problem_details::ProblemDetails;
pub use proxy::ProxyError;
pub(crate) use response::Response;
pub use response::{Refusal, Validators};
pub use server_trust::{ServerTrust, TrustFacts};
pub(crate) use server_verifier::VouchedBy;

use crate::config;
use crate::time::ProvenTime;
use crate::x509;
use http::{Body, Call, Http};

/// An HTTPS client for one issuer. HTTP and TLS run on a thread of their own: a TLS handshake signs synchronously, and a
/// TPM may be slow.
#[derive(Debug)]
pub struct Transport {
    http: Http,
    trust: ServerTrust,
    proxy: Arc<config::Proxy>,
}

/// The client certificate chain of a request and the key that signs for it.
#[derive(Clone)]
pub struct ClientIdentity(Arc<CertifiedKey>);

impl ClientIdentity {
    /// A chain, and a key that is seen to belong to its leaf.
    ///
    /// # Errors
    /// When the key is another than the certificate's.
    pub fn new(key: CertifiedKey) -> Result<Self, rustls::Error> {
        if x509::has_its_key(&key) {
            Ok(Self(Arc::new(key)))
        } else {
            Err(rustls::InconsistentKeys::KeyMismatch.into())
        }
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity").field("chain", &self.0.cert.len()).finish_non_exhaustive()
    }
}

impl Transport {
    /// A client that trusts what `trust` says and uses the proxy that `proxy` names. Nothing is contacted yet, and no file
    /// is read.
    ///
    /// After a reload of the configuration: give it [`ServerTrust::succeeding`] with the [`trust`](Self::trust) of the
    /// client before it, and call [`check_trust`](Self::check_trust) once, so that a bad new `ca_file` shows at once.
    pub fn new(trust: ServerTrust, proxy: config::Proxy) -> Self {
        Self { http: Http::default(), trust, proxy: Arc::new(proxy) }
    }

    /// The trust in use: what it consists of ([`ServerTrust::facts`]) and whether it is still the one from before because
    /// the one configured is bad ([`ServerTrust::problem`]). Both are as of the last check, and cost nothing.
    pub fn trust(&self) -> &ServerTrust {
        &self.trust
    }

    /// What time it is by the server: the `Date` of the latest response of any status that an authenticated server gave
    /// (RFC 9110 section 6.6.1). A response without a readable one changes nothing. A cache on the other side may have kept
    /// a response for a while: it was not earlier, perhaps later.
    pub fn proven_time(&self) -> Option<ProvenTime> {
        self.http.proven_time()
    }

    /// Reads the provisioned trust now, without a connection, on a thread for blocking work. Every connection does the
    /// same; this is for a reload of the configuration, and for a check from time to time (a minute is often enough), so
    /// that a bad replacement is noticed before the connection that needs it. What is found is logged once, when it turns
    /// bad and when it is good again.
    ///
    /// # Errors
    /// When it is bad and there was no good one before it in this process; [`TransportError::NoTrust`] if none is
    /// configured.
    pub async fn check_trust(&self) -> Result<TrustFacts, TransportError> {
        let trust = self.trust.clone();
        match tokio::task::spawn_blocking(move || trust.load().map(|loaded| loaded.facts())).await {
            Ok(outcome) => outcome,
            Err(e) => std::panic::resume_unwind(e.into_panic()), // a bug in there is a bug here
        }
    }

    /// A GET, conditional where there are validators. `limit`: bytes of the body.
    pub(crate) async fn get(
        &self,
        url: &Url,
        validators: Option<&Validators>,
        limit: usize,
    ) -> Result<Response, TransportError> {
        self.call(url, None, limit, Body::Get(validators.cloned())).await
    }

    /// A POST of a JSON document. `limit`: bytes of the body of the response.
    pub(crate) async fn post_json(
        &self,
        url: &Url,
        json: String,
        client: ClientIdentity,
        limit: usize,
    ) -> Result<Response, TransportError> {
        self.call(url, Some(client), limit, Body::Post(json)).await
    }

    async fn call(
        &self,
        url: &Url,
        client: Option<ClientIdentity>,
        limit: usize,
        body: Body,
    ) -> Result<Response, TransportError> {
        let (trust, proxy) = (self.trust.clone(), self.proxy.clone());
        let identity = client.map(|client| client.0);
        self.http.call(Call { url: url.clone(), trust, proxy, identity, limit, body }).await
    }
}
