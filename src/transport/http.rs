//! HTTP client on a thread of its own, with limits on the size and time of every response.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use rustls::ClientConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::sign::CertifiedKey;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use url::{Host, Url};

use super::ServerAuth;
use super::certificate_gate::{CertificateGate, CertificateNotSent};
use super::error::{TransportError, innermost};
use super::proxy::{self, ProxyEndpoint, ProxyTunnel};
use super::response::{CUT_OFF, MAX_EXCERPT, Response, Validators};
use super::retry_after::retry_after;
use super::server_trust::ServerTrust;
use super::server_verifier::{ClientAuthRequest, HandshakeObservation};
use super::tls::{self, TlsReason};
use crate::config;
use crate::hint::Reason;
use crate::platform::{clock, connectivity};
use miaf_spiffe::text::Excerpt;
use miaf_spiffe::time::{ProvenTime, Timestamp};

const USER_AGENT: &str = concat!("miaf-agent/", env!("CARGO_PKG_VERSION"));
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const TOTAL_LIMIT: Duration = Duration::from_secs(30);
/// Limit on the bytes of an error page, whose beginning is quoted.
const MAX_ERROR_BODY: usize = 64 * 1024;
/// Limit on the bytes of a body that is not used, and on the time to read them.
const MAX_UNUSED_BODY: usize = 4 * 1024;
const UNUSED_BODY_LIMIT: Duration = Duration::from_secs(2);
/// Limit on the header lines of a response. A server behind several proxies sends some dozens;
/// hyper's own limit is 100.
const MAX_HEADERS: usize = 256;
/// Limit on the age of a cached response, in seconds: a year (RFC 9111 section 1.2.2 has no bound).
const MAX_AGE: u64 = 365 * 86_400;
/// Limit on the bytes of a header value that is used.
const MAX_VALIDATOR: usize = 1024;
/// Limit on the characters of why TLS failed: it may list what this client offers.
const MAX_TLS_REASON: usize = 500;

pub(super) struct Call {
    pub(super) url: Url,
    /// The provisioned trust. It is read on the HTTP thread, at every call that goes by it.
    pub(super) trust: ServerTrust,
    /// What authenticates the server.
    pub(super) server: ServerAuth,
    /// How to choose the proxy.
    pub(super) proxy_config: Arc<config::ProxyConfig>,
    /// Client certificate and key.
    pub(super) identity: Option<Arc<CertifiedKey>>,
    /// Limit on the bytes of a successful response's body.
    pub(super) limit: usize,
    pub(super) body: Body,
}

pub(super) enum Body {
    Get(Option<Validators>),
    Post(String),
    /// A request of EST (RFC 7030), of a certification request in base64 or of nothing.
    Est {
        base64: Option<String>,
        authorization: Option<HeaderValue>,
        tls12: bool,
    },
}

impl Body {
    fn is_est(&self) -> bool {
        matches!(self, Self::Est { .. })
    }

    /// Whether TLS 1.2 is offered.
    fn tls12(&self) -> bool {
        matches!(self, Self::Est { tls12: true, .. })
    }
}

/// Handle of the HTTP thread. The thread starts with the first call, is restarted should it ever be
/// gone, and ends with the handle.
#[derive(Debug, Default)]
pub(super) struct Http {
    calls: Mutex<Option<mpsc::UnboundedSender<Job>>>,
    proven: Arc<Proven>,
}

/// Time proven by the `Date` of the latest response that had a readable one. Only responses of
/// servers that the provisioned trust authenticates get here.
#[derive(Debug, Default)]
struct Proven(Mutex<Option<ProvenTime>>);

impl Proven {
    fn lock(&self) -> MutexGuard<'_, Option<ProvenTime>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, headers: &HeaderMap) {
        // How long it has been in a cache since then (RFC 9111 section 4.2.3).
        let age = text(headers, header::AGE).map_or(Some(0), |age| age.parse().ok());
        let Some(age) = age.filter(|age| *age <= MAX_AGE) else { return };
        let date = text(headers, header::DATE).and_then(|date| httpdate::parse_http_date(&date).ok());
        if let Some(date) = date {
            *self.lock() = Some(ProvenTime {
                wall: Timestamp::from(date).after(Duration::from_secs(age)),
                at: clock::now().boot,
            });
        }
    }
}

type Job = (Call, oneshot::Sender<Result<Response, TransportError>>);

impl Http {
    pub(super) async fn call(&self, call: Call) -> Result<Response, TransportError> {
        let gone = TransportError::Unreachable {
            url: call.url.clone(),
            why: "the HTTP thread could not be started".into(),
        };
        let (reply, response) = oneshot::channel();
        if self.send((call, reply)).is_err() {
            return Err(gone);
        }
        response.await.unwrap_or(Err(gone))
    }

    pub(super) fn proven_time(&self) -> Option<ProvenTime> {
        *self.proven.lock()
    }

    fn send(&self, mut job: Job) -> Result<(), ()> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = calls.as_ref() {
            match thread.send(job) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::SendError(back)) => job = back,
            }
        }
        let thread = calls.insert(spawn(self.proven.clone())?);
        thread.send(job).map_err(|_| ())
    }
}

fn spawn(proven: Arc<Proven>) -> Result<mpsc::UnboundedSender<Job>, ()> {
    let (calls, mut queue) = mpsc::unbounded_channel::<Job>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let runtime = runtime.map_err(|_| ())?;
    let work = async move {
        while let Some((call, reply)) = queue.recv().await {
            let _ = reply.send(execute(call, &proven).await); // the caller may be gone
        }
    };
    let thread = thread::Builder::new().name("mis-http".into()).spawn(move || runtime.block_on(work));
    thread.map(|_detached| calls).map_err(|_| ())
}

async fn execute(call: Call, proven: &Proven) -> Result<Response, TransportError> {
    let url = call.url.clone();
    let observation = Arc::new(HandshakeObservation::default());
    let (by_svid, verifier) = match &call.server {
        ServerAuth::Provisioned => (false, tls::provisioned(call.trust.load()?, observation.clone())),
        ServerAuth::Svid(verifier) => (true, verifier.clone() as Arc<dyn ServerCertVerifier>),
    };
    let proxy = proxy::proxy_for(&url, &call.proxy_config)
        .map_err(|why| TransportError::Proxy { url: url.clone(), why })?;
    let proxy = proxy.map(Arc::new);
    let tunnel = match (&proxy, url.host()) {
        (Some(proxy), Some(Host::Ipv6(_))) => {
            Some(proxy.clone().tunnel(&url).map_err(|e| TransportError::Unreachable {
                url: url.clone(),
                why: format!("the tunnel through the proxy {proxy} could not be set up: {e}"),
            })?)
        }
        _ => None,
    };
    let tls12 = call.body.tls12();
    let tls = tls::client(verifier, call.identity.clone(), observation.clone(), tls12)?;
    match timeout(TOTAL_LIMIT, exchange(call, tls, proxy.as_deref(), tunnel.as_ref(), &observation, proven))
        .await
    {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(e)) => match tunnel.as_ref().and_then(ProxyTunnel::failure) {
            Some(why) => Err(TransportError::Proxy { url, why }),
            None => Err(explain(e, url, proxy.as_deref(), &observation, by_svid, tls12).await),
        },
        Err(_) => Err(TransportError::TimedOut { url, limit: TOTAL_LIMIT }),
    }
}

async fn exchange(
    call: Call,
    tls: ClientConfig,
    proxy: Option<&ProxyEndpoint>,
    tunnel: Option<&ProxyTunnel>,
    observation: &Arc<HandshakeObservation>,
    proven: &Proven,
) -> Result<Response, reqwest::Error> {
    // A client per call: the client certificate differs from call to call, and calls are rare.
    let mut client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .http1_only()
        .http1_max_headers(MAX_HEADERS)
        .no_proxy() // reqwest is not to search the environment
        .redirect(Policy::none())
        .connect_timeout(CONNECT_LIMIT)
        .user_agent(USER_AGENT);
    match (tunnel, proxy) {
        (Some(tunnel), _) => client = client.unix_socket(tunnel.path()),
        (None, Some(proxy)) => client = client.proxy(proxy.for_client()?),
        (None, None) => {}
    }
    let is_est = call.body.is_est();
    if is_est && call.identity.is_some() {
        client = client.connector_layer(CertificateGate(observation.clone()));
    }
    let client = client.build()?;
    let accept = if is_est { "application/pkcs7-mime" } else { "application/json" };
    let request = match call.body {
        Body::Get(validators) => conditional(client.get(call.url.clone()), validators.unwrap_or_default()),
        Body::Post(json) => {
            client.post(call.url.clone()).header(header::CONTENT_TYPE, "application/json").body(json)
        }
        Body::Est { base64, authorization, .. } => {
            let mut request = match base64 {
                None => client.get(call.url.clone()),
                Some(base64) => client
                    .post(call.url.clone())
                    .header(header::CONTENT_TYPE, "application/pkcs10")
                    .body(base64),
            };
            if let Some(authorization) = authorization {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            request
        }
    };
    // Nothing is decoded here, and without the header a server may encode as it likes (RFC 9110
    // section 12.5.3).
    let request = request.header(header::ACCEPT, accept).header(header::ACCEPT_ENCODING, "identity");
    let mut response = request.send().await?;
    let status = response.status().as_u16();
    let limit = if status < 400 { call.limit } else { MAX_ERROR_BODY };
    let headers = response.headers();
    if matches!(call.server, ServerAuth::Provisioned) {
        proven.record(headers);
    }
    if observation.has_unnamed_address() {
        call.trust.warn_of_unnamed_address(&call.url);
    }
    let mut result = Response {
        status,
        validators: Validators {
            etag: text(headers, header::ETAG),
            last_modified: text(headers, header::LAST_MODIFIED),
        },
        trust_source: observation.trust_source(),
        certificate_not_requested: call.identity.is_some()
            && matches!(observation.request(), ClientAuthRequest::None),
        content_type: text(headers, header::CONTENT_TYPE),
        encoding: encoding(headers),
        location: text(headers, header::LOCATION).map(|to| Excerpt::of(to, MAX_EXCERPT)),
        retry_after: text(headers, header::RETRY_AFTER)
            .and_then(|value| retry_after(&value, text(headers, header::DATE).as_deref(), clock::now().wall)),
        password_scheme: password_scheme(headers),
        body: Vec::new(),
        cut: false,
        unclosed: false,
    };
    if is_est && status != 200 {
        // Such a body decides nothing, and some servers announce one that never comes.
        if !matches!(status, 202 | 204 | 304) {
            let _ = timeout(UNUSED_BODY_LIMIT, read_briefly(&mut response, &mut result)).await;
        }
        return Ok(result);
    }
    let ends_with_connection =
        !headers.contains_key(header::CONTENT_LENGTH) && !headers.contains_key(header::TRANSFER_ENCODING);
    // An encoded body is not decoded.
    while result.encoding.is_none() {
        let chunk = match response.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            // The status decides; the body is only quoted.
            Err(_) if status >= 400 => break,
            Err(e) if ends_with_connection && is_end_of_connection(&e) => {
                result.unclosed = true;
                break;
            }
            Err(e) => return Err(e),
        };
        result.body.extend_from_slice(&chunk);
        if result.body.len() > limit {
            result.body.truncate(limit);
            result.cut = true;
            break;
        }
    }
    Ok(result)
}

/// Reads the beginning of a body that is only quoted.
async fn read_briefly(response: &mut reqwest::Response, result: &mut Response) {
    while result.encoding.is_none() && result.body.len() < MAX_UNUSED_BODY {
        let Ok(Some(chunk)) = response.chunk().await else { return };
        result.body.extend_from_slice(&chunk);
        result.body.truncate(MAX_UNUSED_BODY);
    }
}

/// The scheme of a `WWW-Authenticate` that wants a password (RFC 9110 section 11.6.1).
fn password_scheme(headers: &HeaderMap) -> Option<&'static str> {
    let challenges = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let words: Vec<&str> = challenges.filter_map(|challenge| challenge.split_whitespace().next()).collect();
    ["Basic", "Digest"].into_iter().find(|scheme| words.iter().any(|word| word.eq_ignore_ascii_case(scheme)))
}

fn conditional(mut request: reqwest::RequestBuilder, validators: Validators) -> reqwest::RequestBuilder {
    if let Some(etag) = validators.etag {
        request = request.header(header::IF_NONE_MATCH, etag);
    }
    if let Some(date) = validators.last_modified {
        request = request.header(header::IF_MODIFIED_SINCE, date);
    }
    request
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    (value.len() <= MAX_VALIDATOR).then(|| value.to_owned())
}

/// The encoding that the body still has. Chunks are joined by hyper.
fn encoding(headers: &HeaderMap) -> Option<Excerpt> {
    let of = |name: HeaderName, none: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        let mut codings = values.flat_map(|value| value.split(',')).map(str::trim);
        codings.find(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(none))
    };
    let coding =
        of(header::CONTENT_ENCODING, "identity").or_else(|| of(header::TRANSFER_ENCODING, "chunked"));
    coding.map(|coding| Excerpt::of(coding, 32))
}

/// Whether the connection ended before the message was complete.
fn is_end_of_connection(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| {
        let io: Option<&io::Error> = cause.downcast_ref();
        io.is_some_and(|e| e.kind() == io::ErrorKind::UnexpectedEof)
    })
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// Message of rustls, a text only, where one TLS message comes in more records than it buffers.
const TOO_MANY_FRAGMENTS: &str = "message buffer full";

/// The fault of the server's HTTP, where that is what failed. hyper has these cases as texts only.
fn http_fault(error: &(dyn Error + 'static)) -> Option<Excerpt> {
    let says = |what: fmt::Arguments<'_>| Some(Excerpt::of(what, MAX_EXCERPT));
    if is_end_of_connection(error) {
        return says(format_args!("{CUT_OFF}"));
    }
    let is_of = |kind| causes(error).any(|cause| cause.downcast_ref().map(io::Error::kind) == Some(kind));
    let connects = causes(error).any(|cause| cause.downcast_ref().is_some_and(reqwest::Error::is_connect));
    if connects && innermost(error) == TOO_MANY_FRAGMENTS {
        return says(format_args!("it sent a TLS message larger than any that TLS has"));
    }
    if !connects && (is_of(io::ErrorKind::InvalidData) || is_of(io::ErrorKind::InvalidInput)) {
        return says(format_args!(
            "the chunks of its response are not well-formed (RFC 9112 section 7.1), or have more \
             extensions or trailers than are read"
        ));
    }
    let found = causes(error).find_map(|cause| cause.downcast_ref::<hyper::Error>())?;
    if found.is_incomplete_message() {
        return says(format_args!("{CUT_OFF}"));
    }
    if found.is_parse_too_large() {
        return says(format_args!(
            "its response has more than {MAX_HEADERS} header lines, or 400 KiB of them"
        ));
    }
    if !found.is_parse() {
        return None;
    }
    match found.to_string().as_str() {
        "invalid content-length parsed" => says(format_args!(
            "the Content-Length of its response is no number, or there are two that differ"
        )),
        "unexpected transfer-encoding parsed" => says(format_args!(
            "its response is HTTP/1.0 and has a Transfer-Encoding, which HTTP/1.0 does not know"
        )),
        "invalid HTTP header parsed" => {
            says(format_args!("a header line of its response is not well-formed"))
        }
        _ => says(format_args!("what it sent is not HTTP/1.1")),
    }
}

async fn explain(
    error: reqwest::Error,
    url: Url,
    proxy: Option<&ProxyEndpoint>,
    observation: &HandshakeObservation,
    by_svid: bool,
    tls12: bool,
) -> TransportError {
    if let Some(why) = causes(&error).find_map(|cause| cause.downcast_ref::<CertificateNotSent>()) {
        return TransportError::ClientCertificateNotSent { url, why: why.0 };
    }
    match tls::reason(&error, observation) {
        Some(TlsReason::Server(Reason { what: why, hint })) if by_svid => {
            return TransportError::PeerNotTrusted { url, why, hint };
        }
        Some(TlsReason::Server(reason)) => {
            let Reason { what: why, hint } = observation.untrusted().unwrap_or(reason);
            return TransportError::ServerNotTrusted { url, why, hint };
        }
        Some(TlsReason::Client(why)) => return TransportError::ClientCertificateRefused { url, why },
        Some(TlsReason::Required(why)) => return TransportError::ClientCertificateRequired { url, why },
        Some(TlsReason::Version(why)) => {
            let why = if tls12 { "it speaks neither TLS 1.3 nor TLS 1.2" } else { why };
            return TransportError::TlsVersion { url, why: why.to_owned() };
        }
        Some(TlsReason::Other(Reason { what, hint })) => {
            return TransportError::TlsFailed { url, why: Excerpt::of(what, MAX_TLS_REASON), hint };
        }
        None => {}
    }
    let through = proxy.map(|proxy| format!(" (through the proxy {proxy})")).unwrap_or_default();
    let cause = http_fault(&error).map_or_else(|| innermost(&error), String::from);
    let why = cause.clone() + &through;
    if error.is_connect() {
        if cause.starts_with(NOT_RESOLVED) {
            return match (connectivity::is_in_a_network(), first_host(&url, proxy)) {
                (true, Some((name, _))) => {
                    let (why, has_default_route) = (lookup_failure(&cause), connectivity::leads_anywhere());
                    match proxy {
                        Some(proxy) if has_default_route => {
                            TransportError::Proxy { url, why: proxy.not_resolved(why) }
                        }
                        _ => TransportError::NameNotResolved {
                            name: name.to_owned(),
                            url,
                            why,
                            has_default_route,
                        },
                    }
                }
                _ => TransportError::Offline { url, why },
            };
        }
        if !has_route_to(&url, proxy).await {
            return TransportError::Offline { url, why };
        }
    }
    if let Some(proxy) = proxy
        && let Some(why) = proxy.diagnose(&error, &url, CONNECT_LIMIT).await
    {
        return TransportError::Proxy { url, why };
    }
    TransportError::Unreachable { url, why }
}

/// Prefix of the standard library's errors of getaddrinfo(3); what follows is the C library's text.
const NOT_RESOLVED: &str = "failed to lookup address information";

/// Describes an error of getaddrinfo(3): EAI_AGAIN, of glibc or musl, and everything else.
fn lookup_failure(cause: &str) -> &'static str {
    if ["Temporary failure", "Try again"].iter().any(|of| cause.contains(of)) {
        "no name server responds"
    } else {
        "there is no such name, or it has no address"
    }
}

/// Host and port of the first connection: the proxy's or the server's.
fn first_host<'a>(url: &'a Url, proxy: Option<&'a ProxyEndpoint>) -> Option<(&'a str, u16)> {
    match proxy {
        Some(proxy) => proxy.host_and_port(),
        None => url.host_str().zip(url.port_or_known_default()),
    }
}

/// Whether there is a network route to the first host.
async fn has_route_to(url: &Url, proxy: Option<&ProxyEndpoint>) -> bool {
    let Some((host, port)) = first_host(url, proxy) else { return true };
    connectivity::leads_to(host.trim_start_matches('[').trim_end_matches(']'), port).await
}
