//! EST (RFC 7030, RFC 8951) as Margo profiles it (docs/conformance.md, X): `/cacerts`,
//! `/simpleenroll` with an enrollment token or a certificate, `/simplereenroll` with the current
//! SVID.
//!
//! A response has the issued certificate alone. The chain is assembled from it and `/cacerts` by
//! [`CaCertificates::chain`], and validated like that of any other protocol.

mod ca_certificates;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod pkcs7;
mod token;
mod url;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use ::url::Url;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

pub use ca_certificates::{CaCertificates, NoPath};
pub use error::{EstError, EstRequest};
pub use token::{EnrollmentToken, TokenError};
pub use url::{EstUrl, EstUrlError};

use super::{CertificateRequest, Issuer, IssuerError};
use crate::transport::{ClientIdentity, EstCall, Response};
use error::{Cause, Unusable};

/// Limit on the bytes of an issued certificate's response.
const MAX_ISSUED: usize = 64 * 1024;
/// Limit on the bytes of the response of `/cacerts`.
const MAX_CA_CERTIFICATES: usize = 256 * 1024;
/// Characters in a line of a request.
const LINE: usize = 64;
/// Limit on the URLs whose form of request is kept.
const MAX_URLS: usize = 16;

/// EST server of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EstEndpoint {
    /// Its URL.
    pub url: EstUrl,
    /// Whether TLS 1.2 is offered in addition to 1.3 (X26).
    pub tls12: bool,
}

/// What authorizes an enrollment (X27: a certificate is sent in the certificate form only).
#[derive(Clone, Debug)]
pub enum EstAuthorization {
    /// An enrollment token, by HTTP Basic.
    Token(EnrollmentToken),
    /// A certificate, by mTLS.
    Certificate(ClientIdentity),
}

/// Form of the base64 of a request (X51). RFC 8951 has receivers accept both; real servers accept
/// one or the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    /// Lines of 64 characters, with a line feed after each.
    #[default]
    Lines,
    /// One line, without a line feed.
    OneLine,
}

impl Form {
    fn other(self) -> Self {
        match self {
            Self::Lines => Self::OneLine,
            Self::OneLine => Self::Lines,
        }
    }

    fn encode(self, der: &[u8]) -> String {
        let mut rest = &*BASE64.encode(der);
        if self == Self::OneLine {
            return rest.to_owned();
        }
        let mut lines = String::with_capacity(rest.len() + rest.len() / LINE + 1);
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(LINE)); // ASCII
            lines.push_str(line);
            lines.push('\n');
            rest = after;
        }
        lines
    }
}

/// The form that each EST endpoint accepted last, by its URL. It is kept in memory: a restart costs
/// one `400`.
#[derive(Debug, Default)]
pub(super) struct Forms(Mutex<HashMap<Url, Form>>);

impl Forms {
    fn of(&self, url: &Url) -> Form {
        let forms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        forms.get(url).copied().unwrap_or_default()
    }

    fn accepted(&self, url: &Url, form: Form) {
        let mut forms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if form == Form::default() {
            forms.remove(url);
        } else if forms.len() < MAX_URLS || forms.contains_key(url) {
            forms.insert(url.clone(), form);
        }
    }
}

/// A request to an EST server and what belongs to it.
struct Exchange<'a> {
    endpoint: &'a EstEndpoint,
    request: EstRequest,
    token: Option<&'a EnrollmentToken>,
    client: Option<ClientIdentity>,
}

impl Issuer {
    /// Fetches the certificates of `/cacerts`, without any credential (X28, X60).
    ///
    /// # Errors
    /// [`IssuerError::Est`].
    pub async fn est_ca_certificates(&self, endpoint: &EstEndpoint) -> Result<CaCertificates, IssuerError> {
        let request = EstRequest::CaCertificates;
        let exchange = Exchange { endpoint, request, token: None, client: None };
        let url = exchange.url();
        let response = exchange.send(self, &url, None).await?;
        let message = exchange.message(response, &url, MAX_CA_CERTIFICATES)?;
        let certificates = pkcs7::certificates(&message);
        Ok(CaCertificates::new(&certificates.map_err(|why| exchange.unusable(&url, Unusable::Body(why)))?))
    }

    /// Enrolls. Returns the issued certificate, which is not validated yet. `spki_der` is the subject
    /// public key info of the key that signed the request.
    ///
    /// With a certificate no request leaves where the server does not request it in the handshake
    /// (X29).
    ///
    /// # Errors
    /// [`IssuerError::Est`].
    pub async fn est_enroll(
        &self,
        endpoint: &EstEndpoint,
        csr: &CertificateRequest,
        spki_der: &[u8],
        authorization: EstAuthorization,
    ) -> Result<CertificateDer<'static>, IssuerError> {
        let (request, token, client) = match authorization {
            EstAuthorization::Token(token) => (EstRequest::EnrollWithToken, Some(token), None),
            EstAuthorization::Certificate(client) => (EstRequest::EnrollWithCertificate, None, Some(client)),
        };
        Exchange { endpoint, request, token: token.as_ref(), client }.issue(self, csr, spki_der).await
    }

    /// Renews with the current SVID and its whole chain. Returns the issued certificate, which is not
    /// validated yet. `rekey`: the request is signed by another key than the SVID's (X66).
    ///
    /// No request leaves where the server does not request the certificate in the handshake (X29).
    ///
    /// # Errors
    /// [`IssuerError::Est`].
    pub async fn est_renew(
        &self,
        endpoint: &EstEndpoint,
        csr: &CertificateRequest,
        spki_der: &[u8],
        svid: ClientIdentity,
        rekey: bool,
    ) -> Result<CertificateDer<'static>, IssuerError> {
        let request = EstRequest::Renew { rekey };
        Exchange { endpoint, request, token: None, client: Some(svid) }.issue(self, csr, spki_der).await
    }
}

impl Exchange<'_> {
    fn url(&self) -> Url {
        self.endpoint.url.operation(self.request.operation().segment())
    }

    /// Sends a certification request, and reads the issued certificate.
    async fn issue(
        &self,
        issuer: &Issuer,
        csr: &CertificateRequest,
        spki_der: &[u8],
    ) -> Result<CertificateDer<'static>, IssuerError> {
        let url = self.url();
        let base = self.endpoint.url.as_url();
        let mut form = issuer.est_forms.of(base);
        let mut response = self.send(issuer, &url, Some(form.encode(&csr.0))).await?;
        // It may be the form of the base64 that the server cannot read (X51). Nothing was issued.
        if response.status == 400 && !response.names_a_certificate() {
            let second = self.send(issuer, &url, Some(form.other().encode(&csr.0))).await?;
            if second.status != 400 {
                (response, form) = (second, form.other());
            }
        }
        if matches!(response.status, 200 | 202) {
            issuer.est_forms.accepted(base, form);
        }
        let message = self.message(response, &url, MAX_ISSUED)?;
        let certificates = pkcs7::certificates(&message).map_err(Unusable::Body);
        let leaf = certificates.and_then(|certificates| leaf(&certificates, spki_der));
        Ok(leaf.map_err(|why| self.unusable(&url, why))?)
    }

    async fn send(&self, issuer: &Issuer, url: &Url, body: Option<String>) -> Result<Response, EstError> {
        let call = EstCall {
            client: self.client.clone(),
            authorization: self.token.map(EnrollmentToken::authorization),
            tls12: self.endpoint.tls12,
            limit: if body.is_none() { MAX_CA_CERTIFICATES } else { MAX_ISSUED },
            body,
        };
        let sent = issuer.transport.est(url, call).await;
        let mut response = sent.map_err(|why| self.error(Cause::Transport(why)))?;
        if let Some(token) = self.token {
            response.redact(&|text| token.removed_from(text).into_owned());
        }
        Ok(response)
    }

    /// The PKCS#7 message of a `200`; any other response is an error.
    fn message(&self, response: Response, url: &Url, limit: usize) -> Result<Vec<u8>, EstError> {
        if response.status != 200 {
            return Err(self.error(Cause::of_response(response, url, self.token)));
        }
        let media_type = pkcs7::check_media_type(response.media_type());
        let body = match response.into_bytes(url, limit) {
            Ok(body) => body,
            Err(why) => return Err(self.error(Cause::Transport(why))),
        };
        // What the body is says more than its label, where neither is right.
        let decoded = pkcs7::decode(&body).and_then(|message| media_type.map(|()| message));
        decoded.map_err(|why| self.unusable(url, Unusable::Body(why)))
    }

    fn unusable(&self, url: &Url, why: Unusable) -> EstError {
        self.error(Cause::Unusable { url: url.clone(), why })
    }

    fn error(&self, cause: Cause) -> EstError {
        EstError::new(self.request, self.endpoint, cause)
    }
}

/// The one certificate with this public key (X54). The same certificate twice is one.
fn leaf(certificates: &[&[u8]], spki_der: &[u8]) -> Result<CertificateDer<'static>, Unusable> {
    let mut found: Option<&[u8]> = None;
    for der in certificates {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { continue };
        if certificate.public_key().raw != spki_der || found == Some(der) {
            continue;
        }
        if found.replace(der).is_some() {
            return Err(Unusable::SeveralLeaves);
        }
    }
    let found = found.ok_or(Unusable::NoLeaf { certificates: certificates.len() })?;
    Ok(CertificateDer::from(found.to_vec()))
}

#[cfg(test)]
mod tests;
