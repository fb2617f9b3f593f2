//! Requests in, decisions out.

use super::pkcs7::Bag;
use super::request::{Names, Request};
use super::state::{Authorization, Domain, Issued, State, digest};
use crate::clients::{self, Chain};
use crate::csr::CsrKey;
use crate::faults::{Active, Endpoint};
use crate::issue::LeafSpec;
use crate::journal::{Entry, Violation};
use crate::pem;
use crate::policy::Policy;
use crate::service::Service;
use crate::x509;
use base64::{Engine, engine::general_purpose::STANDARD};
use development_server::{Error, Reply, lock, reply};
use hyper::StatusCode;
use hyper::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use hyper::http::request::Parts;
use rustls::pki_types::UnixTime;

const CERTS_ONLY: &str = "application/pkcs7-mime; smime-type=certs-only";
const TEXT: &str = "text/plain; charset=utf-8";
const CHALLENGE: &str = "Basic realm=\"EST\", charset=\"UTF-8\"";

/// Why nothing is issued.
enum Refusal {
    /// `401`, alike for every authorization that is refused; the reason is for the journal alone.
    Unauthorized(String),
    /// `403`: the SVID under renewal; the reason is for the journal alone.
    Svid(String),
    /// `403`: the names that a renewal has to repeat.
    Names(&'static str),
    /// `400`, and why.
    Bad(String),
    /// `415`.
    MediaType,
    /// `202`, with this `Retry-After`.
    Held(Option<String>),
    /// `429`, with this `Retry-After`.
    TooMany(u64),
    /// `500`: the server's own fault.
    Broken(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

type Decision = std::result::Result<Reply, Refusal>;

/// What a request is, for X28: none shares a connection with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Documents,
    CaCerts,
    Token,
    Certificate,
    Renewal,
}

impl Kind {
    fn of(endpoint: Endpoint, authorization: bool, certificate: bool) -> Option<Self> {
        Some(match endpoint {
            Endpoint::Discovery | Endpoint::Bundle => Self::Documents,
            Endpoint::EstCaCerts => Self::CaCerts,
            Endpoint::EstEnroll if certificate && !authorization => Self::Certificate,
            Endpoint::EstEnroll => Self::Token,
            Endpoint::EstReenroll => Self::Renewal,
            Endpoint::Enrollment | Endpoint::Renewal => return None,
        })
    }
}

/// What a client must not do, whatever response it gets (X27, X28, X64).
pub fn violations(service: &Service, endpoint: Endpoint, entry: &Entry, chain: &Chain) -> Vec<Violation> {
    let mut found = Vec::new();
    let (authorization, certificate) = (entry.authorization, !chain.is_empty());
    match endpoint {
        Endpoint::EstEnroll if authorization && certificate => found.push(Violation::CertificateWithToken),
        Endpoint::EstEnroll if certificate => {
            let registered = chain.first().and_then(|leaf| lock(&service.est).registered(leaf)).is_some();
            if entry.client_spiffe_id.is_some() && !registered {
                found.push(Violation::SvidAtEnrollment);
            }
        }
        Endpoint::EstReenroll if authorization => found.push(Violation::AuthorizationAtReenroll),
        Endpoint::EstCaCerts => {
            if authorization {
                found.push(Violation::AuthorizationAtCaCerts);
            }
            if certificate {
                found.push(Violation::CertificateAtCaCerts);
            }
        }
        _ => {}
    }
    if let Some(kind) = Kind::of(endpoint, authorization, certificate)
        && lock(&service.est).shares_connection(entry.connection, kind)
    {
        found.push(Violation::SharedConnection);
    }
    found
}

impl Service {
    /// The response to a request for an EST endpoint.
    pub fn est(
        &self,
        (endpoint, label): (Endpoint, &str),
        request: &Parts,
        chain: &Chain,
        body: &[u8],
        faults: &Active,
        entry: &mut Entry,
    ) -> Reply {
        let domain = {
            let state = lock(&self.est);
            if label.is_empty() { Some(state.own().clone()) } else { state.domain(label).cloned() }
        };
        let Some(domain) = domain else {
            return text(StatusCode::NOT_FOUND, "no trust domain is served here\n");
        };
        if !endpoint.allows(&request.method) {
            let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "wrong method\n");
            reply.headers_mut().insert(ALLOW, HeaderValue::from_static(endpoint.allow()));
            return reply;
        }
        let headers = &request.headers;
        let decision = match endpoint {
            Endpoint::EstCaCerts => self.ca_certs(&domain, faults),
            Endpoint::EstReenroll => self.reenroll(&domain, headers, chain, body, faults, entry),
            _ => self.simple_enroll(&domain, headers, chain, body, faults, entry),
        };
        decision.unwrap_or_else(|refusal| refusal.reply(entry))
    }

    /// `/cacerts` (X61).
    fn ca_certs(&self, domain: &Domain, faults: &Active) -> Decision {
        let depth = lock(&self.policy).est.intermediates;
        let bag = {
            let pki = lock(&self.pki);
            let (roots, intermediates) = pki.est_authorities(domain, depth)?;
            let issuing = pki.est_issuing(domain, depth)?;
            faults.ca_certs(roots, intermediates, &issuing)?
        };
        Ok(certs_only(&bag, faults))
    }

    /// `/simpleenroll`.
    fn simple_enroll(
        &self,
        domain: &Domain,
        headers: &HeaderMap,
        chain: &Chain,
        body: &[u8],
        faults: &Active,
        entry: &mut Entry,
    ) -> Decision {
        let policy = lock(&self.policy).clone();
        let mut state = lock(&self.est);
        let authorization = headers.get(AUTHORIZATION);

        // 1. The authorization (X33 to X40).
        let refuse = |why: &str| Refusal::Unauthorized(why.to_owned());
        let (authorization, spiffe_id, token) = match (authorization, chain.first()) {
            (Some(_), Some(_)) => {
                let why = "a client certificate together with Authorization: which form is it?";
                return Err(Refusal::Bad(why.to_owned()));
            }
            (None, None) => return Err(refuse("no authorization")),
            (Some(value), None) => {
                let (user, secret) = basic(value).ok_or_else(|| refuse("not HTTP Basic"))?;
                limit(&mut state, &format!("token {user}"), &policy)?;
                let token = state.find_token(&user, &secret).map_err(refuse)?;
                if !policy.est.token_form {
                    return Err(refuse("the token form is not accepted"));
                }
                (Authorization::Token(user), token.spiffe_id.clone(), Some(token))
            }
            (None, Some(leaf)) => {
                limit(&mut state, &format!("certificate {}", digest(leaf)), &policy)?;
                let anchors = lock(&self.pki).factory_anchors().to_vec();
                let at = UnixTime::since_unix_epoch(state.now());
                clients::judge_certificate(chain, &anchors, at).map_err(Refusal::Unauthorized)?;
                let id = state.registered(leaf).ok_or_else(|| refuse("the certificate is not registered"))?;
                if state.is_revoked(leaf) || !policy.est.certificate_form {
                    return Err(refuse("the certificate is revoked, or no certificate is accepted"));
                }
                (Authorization::Certificate(digest(leaf)), id, None)
            }
        };
        if !spiffe_id.starts_with(&format!("spiffe://{}/", domain.trust_domain)) {
            return Err(refuse("an authorization of another trust domain"));
        }
        if state.is_suspended(&spiffe_id) {
            return Err(refuse("suspended"));
        }

        // 2. The request (X46, X49).
        let request = read(headers, body, faults)?;
        if request.claims_a_name() && !policy.est.names_in_csr {
            return Err(Refusal::Bad(
                "the CSR of a first enrollment claims no name: no subject, no SAN".into(),
            ));
        }
        if let Some(leaf) = chain.first()
            && request.key.spki == x509::spki_of(leaf)?
        {
            return Err(Refusal::Bad("the key is that of the authorization certificate".to_owned()));
        }
        let key_sha256 = request.key.digest();
        let user = token.as_ref().map(|token| token.username.as_str());
        if let Some(token) = &token {
            let now = state.now().as_secs();
            let refusal = token.refusal_of_key(&key_sha256, now, policy.est.window);
            refusal.map_or(Ok(()), |why| Err(refuse(why)))?;
        }

        // 3. Review (X55).
        if state.is_held(&spiffe_id, &policy.est) {
            state.note_held(&spiffe_id, &key_sha256, user, true)?;
            return Err(Refusal::Held(Some(policy.est.retry_after.to_string())));
        }
        if let Some(retry_after) = faults.held() {
            state.note_held(&spiffe_id, &key_sha256, user, false)?;
            return Err(Refusal::Held(retry_after.value()));
        }
        self.issue_over_est(
            &mut state,
            domain,
            &spiffe_id,
            &request.key,
            authorization,
            &policy,
            faults,
            entry,
        )
    }

    /// `/simplereenroll` (X64, X71).
    fn reenroll(
        &self,
        domain: &Domain,
        headers: &HeaderMap,
        chain: &Chain,
        body: &[u8],
        faults: &Active,
        entry: &mut Entry,
    ) -> Decision {
        let policy = lock(&self.policy).clone();
        let mut state = lock(&self.est);

        // 1. The SVID presented.
        let leaf = chain.first().ok_or_else(|| Refusal::Svid("no client certificate".to_owned()))?;
        let anchors = lock(&self.pki).est_anchors(domain)?;
        let at = UnixTime::since_unix_epoch(state.now());
        let spiffe_id =
            clients::judge_released_svid(chain, &anchors, &domain.trust_domain, at).map_err(Refusal::Svid)?;
        state.check_id(&spiffe_id, &policy.est).map_err(|why| Refusal::Svid(why.to_string()))?;
        if state.is_revoked(leaf) || state.is_suspended(&spiffe_id) {
            return Err(Refusal::Svid("revoked or suspended".to_owned()));
        }
        limit(&mut state, &spiffe_id, &policy)?;

        // 2. The request (X65, X66).
        let request = read(headers, body, faults)?;
        let own = Names::of_certificate(&leaf.to_vec()).map_err(Refusal::Svid)?;
        if policy.est.compare_names {
            if request.names.subject != own.subject {
                return Err(Refusal::Names("the subject is not that of the certificate\n"));
            }
            if request.names.san != own.san {
                return Err(Refusal::Names("the subject alternative name is not that of the certificate\n"));
            }
        }
        if request.names.san.is_some() && request.names.critical != own.critical {
            entry.violations.push(Violation::SanCriticality);
        }
        if request.key.spki != x509::spki_of(leaf)? && !policy.rotation_at_renewal {
            return Err(Refusal::Bad("a renewal keeps its key here".to_owned()));
        }
        if let Some(retry_after) = faults.held() {
            return Err(Refusal::Held(retry_after.value()));
        }
        let authorization = Authorization::Svid(digest(leaf));
        self.issue_over_est(
            &mut state,
            domain,
            &spiffe_id,
            &request.key,
            authorization,
            &policy,
            faults,
            entry,
        )
    }

    /// Signs, records durably, and renders the response.
    #[allow(clippy::too_many_arguments, reason = "the parts of one issuance")]
    fn issue_over_est(
        &self,
        state: &mut State,
        domain: &Domain,
        spiffe_id: &str,
        key: &CsrKey,
        authorization: Authorization,
        policy: &Policy,
        faults: &Active,
        entry: &mut Entry,
    ) -> Decision {
        if faults.fails_issuance() {
            return Err(Refusal::Broken(Error::new("issuance fails by a fault")));
        }
        let pki = lock(&self.pki);
        let issuing = pki.est_issuing(domain, policy.est.intermediates)?;
        let mut spec = LeafSpec::new(spiffe_id, &key.spki, policy);
        spec.subject.clone_from(&policy.est.subject);
        faults.bend_leaf(&mut spec)?;
        let (leaf, above) = match faults.issuer(&issuing.authority)? {
            Some((issuer, above)) => (spec.sign(&issuer)?, above),
            None => (spec.sign(issuing.issuer())?, issuing.chain()),
        };
        state.issued(Issued {
            spiffe_id: spiffe_id.to_owned(),
            key_sha256: key.digest(),
            at: state.now().as_secs(),
            authorization,
            certificate_sha256: digest(&leaf),
            certificate_pem: pem::encode("CERTIFICATE", &leaf, pem::WIDTH),
            revoked: false,
        })?;
        entry.issued = true;
        entry.spiffe_id = Some(spec.uris.join(" "));
        let bag = faults.enrollment(leaf, above, &issuing)?;
        Ok(certs_only(&bag, faults))
    }
}

fn limit(state: &mut State, client: &str, policy: &Policy) -> std::result::Result<(), Refusal> {
    state.attempt(client, policy.est.attempts).map_or(Ok(()), |wait| Err(Refusal::TooMany(wait)))
}

/// The user and the password of HTTP Basic (X31, X32): they are separated by the first colon.
fn basic(value: &HeaderValue) -> Option<(String, String)> {
    let (scheme, credentials) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(credentials.trim_ascii()).ok()?).ok()?;
    let (user, secret) = text.split_once(':')?;
    Some((user.to_owned(), secret.to_owned()))
}

/// The PKCS#10 request in a body (X51).
fn read(headers: &HeaderMap, body: &[u8], faults: &Active) -> std::result::Result<Request, Refusal> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !kind.eq_ignore_ascii_case("application/pkcs10") {
        return Err(Refusal::MediaType);
    }
    if faults.refuses_form(Request::form(body)) {
        return Err(Refusal::Bad("this form of base64 is not taken".to_owned()));
    }
    Request::parse(body).map_err(|why| Refusal::Bad(format!("the CSR: {why}")))
}

/// `200` (X53): base64 on one line.
fn certs_only(bag: &Bag, faults: &Active) -> Reply {
    let mut reply = reply(StatusCode::OK, CERTS_ONLY, faults.est_body(bag));
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

fn text(status: StatusCode, words: impl Into<String>) -> Reply {
    reply(status, TEXT, words.into())
}

impl Refusal {
    fn reply(self, entry: &mut Entry) -> Reply {
        match self {
            Self::Unauthorized(why) => {
                entry.refusal = Some(why);
                let mut reply = text(StatusCode::UNAUTHORIZED, "The enrollment is not authorized.\n");
                reply.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(CHALLENGE));
                reply
            }
            Self::Svid(why) => {
                entry.refusal = Some(why);
                text(StatusCode::FORBIDDEN, "The certificate under renewal is not accepted.\n")
            }
            Self::Names(why) => {
                entry.refusal = Some(why.trim_end().to_owned());
                text(StatusCode::FORBIDDEN, why)
            }
            Self::Bad(why) => {
                entry.refusal = Some(why.clone());
                text(StatusCode::BAD_REQUEST, why + "\n")
            }
            Self::MediaType => {
                entry.refusal = Some("media type".to_owned());
                text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body has to be application/pkcs10\n")
            }
            Self::Held(retry_after) => {
                let mut reply = text(StatusCode::ACCEPTED, "The enrollment waits.\n");
                if let Some(value) = retry_after.and_then(|value| HeaderValue::from_str(&value).ok()) {
                    reply.headers_mut().insert(RETRY_AFTER, value);
                }
                reply
            }
            Self::TooMany(seconds) => {
                let mut reply = text(StatusCode::TOO_MANY_REQUESTS, "too many attempts\n");
                reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
                reply
            }
            Self::Broken(error) => {
                entry.refusal = Some(error.to_string());
                text(StatusCode::INTERNAL_SERVER_ERROR, "the server failed\n")
            }
        }
    }
}

/// The digest of the key in a request body, if there is a valid CSR where one belongs.
pub fn peek(body: &[u8]) -> Option<String> {
    Some(Request::parse(body).ok()?.key.digest())
}
