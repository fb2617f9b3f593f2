//! HTTP on a thread of its own, with a limit on size and time for everything that comes back.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderName};
use reqwest::redirect::Policy;
use rustls::ClientConfig;
use rustls::sign::CertifiedKey;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use url::{Host, Url};

use super::error::{TransportError, innermost};
use super::proxy::{self, Detour, Hop};
use super::response::{CUT_OFF, MAX_EXCERPT, Response, Validators};
use super::retry_after::retry_after;
use super::server_trust::ServerTrust;
use super::server_verifier::{Note, Request};
use super::tls::{self, TlsReason};
use crate::config;
use crate::platform::{clock, connectivity};
use crate::text::Excerpt;
use crate::time::{ProvenTime, Timestamp};

const USER_AGENT: &str = concat!("miaf-agent/", env!("CARGO_PKG_VERSION"));
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const TOTAL_LIMIT: Duration = Duration::from_secs(30);
/// An error page is read up to here and quoted from its beginning.
const MAX_ERROR_BODY: usize = 64 * 1024;
/// Lines of a response's head. A server behind several proxies sends some dozens; hyper's own limit is 100.
const MAX_HEADERS: usize = 256;
/// Seconds that a cache may have kept what is still current: a year (RFC 9111 section 1.2.2 has no bound).
const MAX_AGE: u64 = 365 * 86_400;
const MAX_VALIDATOR: usize = 1024;

pub(super) struct Call {
    pub(super) url: Url,
    /// What authenticates the server. Read on the HTTP thread, at every call.
    pub(super) trust: ServerTrust,
    /// The way to it, if it is not direct.
    pub(super) proxy: Arc<config::Proxy>,
    /// As whom the device shows itself.
    pub(super) identity: Option<Arc<CertifiedKey>>,
    /// Bytes of a body of success.
    pub(super) limit: usize,
    pub(super) body: Body,
}

pub(super) enum Body {
    Get(Option<Validators>),
    Post(String),
}

/// Handle to the thread. It begins with the first call, is begun anew should it ever be gone, and ends with the handle.
#[derive(Debug, Default)]
pub(super) struct Http {
    calls: Mutex<Option<mpsc::UnboundedSender<Job>>>,
    proven: Arc<Proven>,
}

/// The `Date` of the latest answer that had a readable one. Only authenticated servers give answers.
#[derive(Debug, Default)]
struct Proven(Mutex<Option<ProvenTime>>);

impl Proven {
    fn held(&self) -> MutexGuard<'_, Option<ProvenTime>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_note(&self, headers: &HeaderMap) {
        // Since then it has lain in a cache for so long (RFC 9111 section 4.2.3).
        let age = text(headers, header::AGE).map_or(Some(0), |age| age.parse().ok());
        let Some(age) = age.filter(|age| *age <= MAX_AGE) else { return };
        let date = text(headers, header::DATE).and_then(|date| httpdate::parse_http_date(&date).ok());
        if let Some(date) = date {
            *self.held() = Some(ProvenTime {
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
        let (reply, answer) = oneshot::channel();
        if self.send((call, reply)).is_err() {
            return Err(gone);
        }
        answer.await.unwrap_or(Err(gone))
    }

    pub(super) fn proven_time(&self) -> Option<ProvenTime> {
        *self.proven.held()
    }

    fn send(&self, mut job: Job) -> Result<(), ()> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = calls.as_ref() {
            match thread.send(job) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::SendError(back)) => job = back,
            }
        }
        let thread = calls.insert(begin(self.proven.clone())?);
        thread.send(job).map_err(|_| ())
    }
}

fn begin(proven: Arc<Proven>) -> Result<mpsc::UnboundedSender<Job>, ()> {
    let (calls, mut queue) = mpsc::unbounded_channel::<Job>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let runtime = runtime.map_err(|_| ())?;
    let work = async move {
        while let Some((call, reply)) = queue.recv().await {
            // The asker may be gone: then nobody wants the answer.
            let _ = reply.send(carry_out(call, &proven).await);
        }
    };
    let thread = thread::Builder::new().name("mis-http".into()).spawn(move || runtime.block_on(work));
    thread.map(|_detached| calls).map_err(|_| ())
}

async fn carry_out(call: Call, proven: &Proven) -> Result<Response, TransportError> {
    let url = call.url.clone();
    let trust = call.trust.load()?;
    let hop = proxy::on_the_way_to(&url, &call.proxy)
        .map_err(|why| TransportError::Proxy { url: url.clone(), why })?;
    let hop = hop.map(Arc::new);
    let detour = match (&hop, url.host()) {
        (Some(hop), Some(Host::Ipv6(_))) => {
            Some(hop.clone().detour(&url).map_err(|e| TransportError::Unreachable {
                url: url.clone(),
                why: format!("the way through the proxy {hop} could not be made: {e}"),
            })?)
        }
        _ => None,
    };
    let note = Arc::new(Note::default());
    let tls = tls::client(trust, call.identity.clone(), note.clone())?;
    match timeout(TOTAL_LIMIT, exchange(call, tls, hop.as_deref(), detour.as_ref(), &note, proven)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(e)) => match detour.as_ref().and_then(Detour::failure) {
            Some(why) => Err(TransportError::Proxy { url, why }),
            None => Err(explain(e, url, hop.as_deref(), &note).await),
        },
        Err(_) => Err(TransportError::TimedOut { url, limit: TOTAL_LIMIT }),
    }
}

async fn exchange(
    call: Call,
    tls: ClientConfig,
    hop: Option<&Hop>,
    detour: Option<&Detour>,
    note: &Note,
    proven: &Proven,
) -> Result<Response, reqwest::Error> {
    // A client per call: the identity shown differs from call to call, and calls are rare.
    let mut client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .http1_only()
        .http1_max_headers(MAX_HEADERS)
        .no_proxy() // reqwest looks for none by itself
        .redirect(Policy::none())
        .connect_timeout(CONNECT_LIMIT)
        .user_agent(USER_AGENT);
    match (detour, hop) {
        (Some(detour), _) => client = client.unix_socket(detour.path()),
        (None, Some(hop)) => client = client.proxy(hop.for_client()?),
        (None, None) => {}
    }
    let client = client.build()?;
    let request = match call.body {
        Body::Get(validators) => conditional(client.get(call.url), validators.unwrap_or_default()),
        Body::Post(json) => client.post(call.url).header(header::CONTENT_TYPE, "application/json").body(json),
    };
    // Nothing is decoded here, and without the header a server may encode as it likes (RFC 9110 section 12.5.3).
    let request =
        request.header(header::ACCEPT, "application/json").header(header::ACCEPT_ENCODING, "identity");
    let mut response = request.send().await?;
    let status = response.status().as_u16();
    let limit = if status < 400 { call.limit } else { MAX_ERROR_BODY };
    let headers = response.headers();
    proven.take_note(headers);
    let mut answer = Response {
        status,
        validators: Validators {
            etag: text(headers, header::ETAG),
            last_modified: text(headers, header::LAST_MODIFIED),
        },
        vouched_by: note.vouched_by(),
        unasked: call.identity.is_some() && matches!(note.request(), Request::None),
        content_type: text(headers, header::CONTENT_TYPE),
        encoding: encoding(headers),
        location: text(headers, header::LOCATION).map(|to| Excerpt::of(to, MAX_EXCERPT)),
        retry_after: text(headers, header::RETRY_AFTER)
            .and_then(|value| retry_after(&value, text(headers, header::DATE).as_deref(), clock::now().wall)),
        body: Vec::new(),
        cut: false,
        unclosed: false,
    };
    let ends_with_connection =
        !headers.contains_key(header::CONTENT_LENGTH) && !headers.contains_key(header::TRANSFER_ENCODING);
    // Nothing here decodes it.
    while answer.encoding.is_none() {
        let chunk = match response.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            // The status says what to do; the body is only quoted.
            Err(_) if status >= 400 => break,
            Err(e) if ends_with_connection && is_end_of_connection(&e) => {
                answer.unclosed = true;
                break;
            }
            Err(e) => return Err(e),
        };
        answer.body.extend_from_slice(&chunk);
        if answer.body.len() > limit {
            answer.body.truncate(limit);
            answer.cut = true;
            break;
        }
    }
    Ok(answer)
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

/// What the body is still encoded as. Chunks are put together by hyper.
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

/// Whether the connection ended where there should have been more.
fn is_end_of_connection(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| {
        let io: Option<&io::Error> = cause.downcast_ref();
        io.is_some_and(|e| e.kind() == io::ErrorKind::UnexpectedEof)
    })
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// What rustls says, as a text only, where one message comes in more records than it keeps.
const TOO_MANY_FRAGMENTS: &str = "message buffer full";

/// What is wrong with the server's HTTP, where that is what failed. hyper has these cases as texts only.
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
            "the chunks of its response are not well-formed (RFC 9112 section 7.1), or have more extensions or \
             trailers than are read"
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

async fn explain(error: reqwest::Error, url: Url, hop: Option<&Hop>, note: &Note) -> TransportError {
    match tls::reason(&error, note) {
        Some(TlsReason::Server(why)) => {
            return TransportError::ServerNotTrusted { url, why: note.refusal().unwrap_or(why) };
        }
        Some(TlsReason::Client(why)) => return TransportError::ClientCertificateRefused { url, why },
        Some(TlsReason::Other(why)) => {
            return TransportError::Unreachable {
                url,
                why: format!("TLS failed: {}", Excerpt::of(why, MAX_EXCERPT)),
            };
        }
        None => {}
    }
    let through = hop.map(|hop| format!(" (through the proxy {hop})")).unwrap_or_default();
    let cause = http_fault(&error).map_or_else(|| innermost(&error), String::from);
    let why = cause.clone() + &through;
    if error.is_connect() {
        if cause.starts_with(NOT_RESOLVED) {
            return match (connectivity::is_in_a_network(), first_host(&url, hop)) {
                (true, Some((name, _))) => {
                    let (why, has_way_out) = (lookup_failure(&cause), connectivity::leads_anywhere());
                    match hop {
                        Some(hop) if has_way_out => TransportError::Proxy { url, why: hop.not_resolved(why) },
                        _ => TransportError::NameNotResolved { name: name.to_owned(), url, why, has_way_out },
                    }
                }
                _ => TransportError::Offline { url, why },
            };
        }
        if !may_leave_for(&url, hop).await {
            return TransportError::Offline { url, why };
        }
    }
    if let Some(hop) = hop
        && let Some(why) = hop.blame(&error, &url, CONNECT_LIMIT).await
    {
        return TransportError::Proxy { url, why };
    }
    TransportError::Unreachable { url, why }
}

/// How the standard library begins what it says of getaddrinfo(3); its words are the C library's.
const NOT_RESOLVED: &str = "failed to lookup address information";

/// What getaddrinfo(3) says, in words: EAI_AGAIN, of glibc or musl, and everything else.
fn lookup_failure(cause: &str) -> &'static str {
    if ["Temporary failure", "Try again"].iter().any(|of| cause.contains(of)) {
        "no name server answers"
    } else {
        "there is no such name, or it has no address"
    }
}

/// Where the connection goes first.
fn first_host<'a>(url: &'a Url, hop: Option<&'a Hop>) -> Option<(&'a str, u16)> {
    match hop {
        Some(hop) => hop.host_and_port(),
        None => url.host_str().zip(url.port_or_known_default()),
    }
}

/// Whether there is a route to there.
async fn may_leave_for(url: &Url, hop: Option<&Hop>) -> bool {
    let Some((host, port)) = first_host(url, hop) else { return true };
    connectivity::leads_to(host.trim_start_matches('[').trim_end_matches(']'), port).await
}
