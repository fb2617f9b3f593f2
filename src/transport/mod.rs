//! HTTPS to an issuer, bounded in size and time: servers authenticated by the provisioned trust, or
//! by their SVIDs, client certificates, proxies, conditional requests. It knows no protocol that
//! issues identities: that is [`issuer`](crate::issuer).

mod certificate_gate;
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

use miaf_client::wfm::PeerVerifier;
use reqwest::header::HeaderValue;
use rustls::sign::CertifiedKey;
use url::Url;
use zeroize::Zeroizing;

pub use error::TransportError;
pub(crate) use error::shown;
pub use problem_details::ProblemDetails;
pub use proxy::ProxyError;
pub(crate) use response::Response;
pub use response::{ErrorResponse, Validators};
pub use server_trust::{ServerTrust, TrustFacts};
pub(crate) use server_verifier::TrustSource;

use crate::config;
use crate::x509;
use http::{Body, Call, Http};
use miaf_spiffe::time::ProvenTime;

/// HTTPS client of one issuer. HTTP and TLS run on a thread of their own: a TLS handshake signs
/// synchronously, and a TPM may be slow.
#[derive(Debug)]
pub struct Transport {
    http: Http,
    trust: ServerTrust,
    proxy_config: Arc<config::ProxyConfig>,
}

/// How the server of a request is authenticated.
#[derive(Clone, Debug)]
pub(crate) enum ServerAuth {
    /// By the provisioned trust (miaf-v0 T1): an MIS.
    Provisioned,
    /// By its SVID (miaf-v0 W2): a WFM. The provisioned trust, its pins and the name in the URL
    /// play no part (B6), and the time in its responses proves nothing: the SVID is validated by
    /// the clock of this device.
    Svid(Arc<PeerVerifier>),
}

/// Client certificate chain of a request, with its key.
#[derive(Clone)]
pub struct ClientIdentity(Arc<CertifiedKey>);

impl ClientIdentity {
    /// Checks that the key is that of the leaf.
    ///
    /// # Errors
    /// When it is not.
    pub fn new(key: CertifiedKey) -> Result<Self, rustls::Error> {
        if x509::has_its_key(&key) {
            Ok(Self(Arc::new(key)))
        } else {
            Err(rustls::InconsistentKeys::KeyMismatch.into())
        }
    }
}

/// A request of EST (RFC 7030). A server that is not the provisioned one, or does not take the client
/// certificate, gets none of it.
pub(crate) struct EstCall {
    /// Client certificate. Without one, an empty list is sent if the server requests one.
    pub(crate) client: Option<ClientIdentity>,
    /// Value of the header `Authorization`.
    pub(crate) authorization: Option<Zeroizing<String>>,
    /// Whether TLS 1.2 is offered, too.
    pub(crate) tls12: bool,
    /// Certification request in base64, for a POST.
    pub(crate) body: Option<String>,
    /// Limit on the bytes of a body with status 200. Of another one a beginning is read.
    pub(crate) limit: usize,
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity").field("chain", &self.0.cert.len()).finish_non_exhaustive()
    }
}

impl Transport {
    /// Creates a client. No connection is made and no file is read yet.
    ///
    /// After a reload of the configuration `trust` is [`ServerTrust::succeeding`] the
    /// [`trust`](Self::trust) of the client before it. One call of
    /// [`check_trust`](Self::check_trust) shows a bad new `ca_file` at once.
    pub fn new(trust: ServerTrust, proxy: config::ProxyConfig) -> Self {
        Self { http: Http::default(), trust, proxy_config: Arc::new(proxy) }
    }

    /// The trust in use, as of the last check: its parts ([`ServerTrust::facts`]), and whether it
    /// is still an earlier one because the configured one is bad ([`ServerTrust::problem`]).
    pub fn trust(&self) -> &ServerTrust {
        &self.trust
    }

    /// Time by the server: the `Date` of the latest response of any status from an authenticated
    /// server (RFC 9110 section 6.6.1). A response without a readable one changes nothing. A cache
    /// may have delayed a response: the time is a lower bound.
    pub fn proven_time(&self) -> Option<ProvenTime> {
        self.http.proven_time()
    }

    /// Reads the provisioned trust now, without a connection, on a thread for blocking work. Every
    /// connection does the same. This is for a reload of the configuration, and for a periodic
    /// check (a minute is often enough), so that a bad replacement is noticed before the connection
    /// that needs it. The outcome is logged once, when it turns bad and when it is good again.
    ///
    /// # Errors
    /// When it is bad and there was no good one before it in this process;
    /// [`TransportError::NoTrust`] if none is configured.
    pub async fn check_trust(&self) -> Result<TrustFacts, TransportError> {
        let trust = self.trust.clone();
        match tokio::task::spawn_blocking(move || trust.load().map(|loaded| loaded.facts())).await {
            Ok(outcome) => outcome,
            Err(e) => std::panic::resume_unwind(e.into_panic()), // propagate a panic
        }
    }

    /// Sends a GET, conditional where there are validators. `limit`: bytes of the response's body.
    pub(crate) async fn get(
        &self,
        url: &Url,
        validators: Option<&Validators>,
        limit: usize,
    ) -> Result<Response, TransportError> {
        self.call(url, None, ServerAuth::Provisioned, limit, Body::Get(validators.cloned())).await
    }

    /// Sends a POST of a JSON document. `limit`: bytes of the response's body.
    pub(crate) async fn post_json(
        &self,
        url: &Url,
        json: String,
        client: ClientIdentity,
        server: ServerAuth,
        limit: usize,
    ) -> Result<Response, TransportError> {
        self.call(url, Some(client), server, limit, Body::Post(json)).await
    }

    /// Sends a request of EST.
    pub(crate) async fn est(&self, url: &Url, call: EstCall) -> Result<Response, TransportError> {
        let authorization = call.authorization.and_then(|value| {
            let mut value = HeaderValue::from_bytes(value.as_bytes()).ok()?; // base64: always
            value.set_sensitive(true);
            Some(value)
        });
        let body = Body::Est { base64: call.body, authorization, tls12: call.tls12 };
        self.call(url, call.client, ServerAuth::Provisioned, call.limit, body).await
    }

    async fn call(
        &self,
        url: &Url,
        client: Option<ClientIdentity>,
        server: ServerAuth,
        limit: usize,
        body: Body,
    ) -> Result<Response, TransportError> {
        let (trust, proxy_config) = (self.trust.clone(), self.proxy_config.clone());
        let identity = client.map(|client| client.0);
        self.http.call(Call { url: url.clone(), trust, server, proxy_config, identity, limit, body }).await
    }
}
