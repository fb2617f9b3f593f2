//! The network side: accepting connections, HTTP, and the journal around each request.

use crate::clients::{self, Chain};
use crate::csr;
use crate::est;
use crate::faults::{Active, Endpoint};
use crate::journal::{ClientKind, Entry};
use crate::policy::Documents;
use crate::service::Service;
use crate::wire::Problem;
use crate::x509;
use development_server::{Counted, Cut, Error, Reply, Result, accept, lock, reply};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, RETRY_AFTER,
};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, server::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::HandshakeKind;
use std::future;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time;
use tokio_rustls::TlsAcceptor;

/// The largest request body. A request for an SVID has about a kilobyte.
const BODY_LIMIT: usize = 64 * 1024;
/// Called with every finished request.
pub type Observer = Arc<dyn Fn(&Entry) + Send + Sync>;

/// What every connection needs.
pub struct Shared {
    /// The state.
    pub service: Arc<Service>,
    /// For the log.
    pub observer: Option<Observer>,
    /// The handshake in TLS 1.3.
    pub tls: TlsAcceptor,
    /// The same in TLS 1.2.
    pub tls12: TlsAcceptor,
}

/// Serves one connection to its end.
pub async fn connection(shared: Arc<Shared>, stream: TcpStream) {
    let journal = &shared.service.journal;
    let tls = if lock(&shared.service.policy).tls12_only { &shared.tls12 } else { &shared.tls };
    let Some(stream) = accept(tls, stream, |why| journal.refused(why)).await else { return };
    let tls = stream.get_ref().1;
    let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
    let chain: Chain = tls.peer_certificates().unwrap_or_default().to_vec();
    let kind = clients::kind(&chain, lock(&shared.service.pki).factory_anchors());
    let number = journal.connected(kind, resumed);
    let stream = Counted {
        stream,
        received: |bytes| journal.received(number, bytes),
        ended: || journal.ended(number),
    };
    let raw = Mutex::new(None);
    let handle = service_fn(|request| Box::pin(exchange(&shared, number, &chain, kind, &raw, request)));
    let mut http = http1::Builder::new().serve_connection(TokioIo::new(stream), handle);
    let done = future::poll_fn(|context| http.poll_without_shutdown(context)).await;
    let mut stream = http.into_parts().io.into_inner();
    let raw = lock(&raw).take();
    match (done, raw) {
        (_, Some(Raw { bytes, hold })) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.flush().await;
            // Until the client leaves.
            let mut sink = [0; 4096];
            while hold && matches!(stream.read(&mut sink).await, Ok(1..)) {}
        }
        (Ok(()), None) => {
            let _ = stream.shutdown().await;
        }
        // A client that went away, or a fault that cut the connection.
        (Err(_), None) => {}
    }
}

/// One request, with the journal around it and faults around the strict part.
async fn exchange(
    shared: &Shared,
    connection: usize,
    chain: &Chain,
    kind: ClientKind,
    raw: &Mutex<Option<Raw>>,
    request: Request<Incoming>,
) -> std::result::Result<Reply, Cut> {
    let service = &shared.service;
    let path = request.uri().path().to_owned();
    let mut entry = Entry::new(connection, request.method().as_str(), &path, kind);
    entry.client_spiffe_id = clients::shown_id(chain);
    entry.conditional = conditional(request.headers());
    entry.authorization = request.headers().contains_key(AUTHORIZATION);
    entry.client_leaf_sha256 = chain.first().map(|leaf| x509::hex(&x509::sha256(leaf)));
    let target = Endpoint::at(&path);
    if let Some((endpoint, _)) = target {
        entry.violations = est::violations(service, endpoint, &entry, chain);
    }
    let faults = match target {
        Some((endpoint, _)) => Active::of(lock(&service.faults).take(&endpoint)),
        None => Active::default(),
    };
    entry.faulty = !faults.is_empty();
    let index = service.journal.open(entry.clone());

    let (parts, body) = request.into_parts();
    let body = match target {
        Some((endpoint @ (Endpoint::Enrollment | Endpoint::Renewal), _))
            if endpoint.allows(&parts.method) =>
        {
            read(&parts.headers, body).await
        }
        Some((endpoint @ (Endpoint::EstEnroll | Endpoint::EstReenroll), _))
            if endpoint.allows(&parts.method) =>
        {
            collect(body).await
        }
        _ => Ok(Bytes::new()),
    };
    // Before any fault: a test may want to know the key of a request that got no response.
    entry.csr_spki_sha256 = body.as_ref().ok().and_then(|body| match target {
        Some((endpoint, _)) if endpoint.is_est() => est::peek(body),
        _ => csr::peek(body),
    });

    entry.body_sha256 = body.as_ref().ok().filter(|body| !body.is_empty()).map(|body| {
        let content: Vec<u8> = body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
        x509::hex(&x509::sha256(&content))
    });

    let reply = if faults.cuts_before() {
        None
    } else {
        if let Some(wait) = faults.stall() {
            service.journal.update(index, entry.clone());
            time::sleep(wait).await;
        }
        Some(match faults.answer() {
            Some(answer) => answer.reply(),
            None => strict(service, chain, target, &parts, body, &faults, &mut entry),
        })
    };
    let reply = reply.map(|mut reply| {
        if let Some(status) = faults.status().and_then(|code| StatusCode::from_u16(code).ok()) {
            *reply.status_mut() = status;
        }
        for (name, value) in faults.headers() {
            if let Ok(value) = HeaderValue::from_str(value) {
                reply.headers_mut().insert(HeaderName::from_static(name), value);
            }
        }
        entry.status = Some(reply.status().as_u16());
        if faults.is_bare() {
            *lock(raw) = Some(Raw { bytes: head(&reply, None), hold: true });
        }
        entry.retry_after = number(reply.headers().get(RETRY_AFTER));
        reply
    });
    entry.answer_lost = faults.cuts_before() || faults.loses_answer();
    if let Some(wait) = faults.stall_answer() {
        time::sleep(wait).await;
    }
    service.journal.update(index, entry.clone());
    if let Some(observer) = &shared.observer {
        observer(&entry);
    }
    match reply {
        Some(reply) if !entry.answer_lost && !faults.is_bare() => match faults.truncates() {
            None => Ok(reply),
            Some(most) => {
                let (parts, body) = reply.into_parts();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let mut bytes = head(&Response::from_parts(parts, Full::default()), Some(body.len()));
                bytes.extend(&body[..most.min(body.len())]);
                *lock(raw) = Some(Raw { bytes, hold: false });
                Err(Cut)
            }
        },
        _ => Err(Cut),
    }
}

/// The strict server: no fault but those handed on to issuance and documents.
fn strict(
    service: &Service,
    chain: &Chain,
    target: Option<(Endpoint, &str)>,
    request: &Parts,
    body: std::result::Result<Bytes, Problem>,
    faults: &Active,
    entry: &mut Entry,
) -> Reply {
    let (documents, discovery) = {
        let policy = lock(&service.policy);
        (policy.documents, policy.discovery)
    };
    let refuse = |problem: &Problem, entry: &mut Entry| refuse(problem, documents, entry);
    let Some((endpoint, id)) = target else {
        return refuse(&Problem::bare(StatusCode::NOT_FOUND, "nothing lives here"), entry);
    };
    if endpoint.is_est() {
        return match body {
            Ok(body) => service.est((endpoint, id), request, chain, &body, faults, entry),
            Err(problem) => reply(problem.status, "text/plain", "the body cannot be read\n"),
        };
    }
    let issues = matches!(endpoint, Endpoint::Enrollment | Endpoint::Renewal);
    if issues && documents == Documents::Released {
        let problem = Problem::bare(StatusCode::NOT_FOUND, "this MIS issues nothing over the network");
        return refuse(&problem, entry);
    }
    if !endpoint.allows(&request.method) {
        let problem = Problem::bare(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("this resource answers {}", endpoint.allow()),
        );
        let mut reply = refuse(&problem, entry);
        reply.headers_mut().insert(ALLOW, HeaderValue::from_static(endpoint.allow()));
        return reply;
    }
    if endpoint == Endpoint::Discovery && !discovery {
        return refuse(&Problem::no_discovery_document(), entry);
    }
    if !issues {
        return match document(service, endpoint, &request.headers, faults) {
            Ok(reply) => reply,
            Err(error) => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                refuse(&Problem::bare(status, error.to_string()), entry)
            }
        };
    }
    let body = match body {
        Ok(body) => body,
        Err(problem) => return refuse(&problem, entry),
    };
    let answer = match endpoint {
        Endpoint::Renewal => service.renew(chain, id, &body, faults, entry),
        _ => service.enroll(chain, &body, faults, entry),
    };
    match answer {
        Ok((status, body)) => {
            let mut reply = reply(status, "application/json", body);
            reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            reply
        }
        Err(problem) => refuse(&problem, entry),
    }
}

/// The body of a POST: JSON by its own account, and not too large.
async fn read(headers: &HeaderMap, body: Incoming) -> std::result::Result<Bytes, Problem> {
    let json = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
    if !json {
        return Err(Problem::bare(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body has to be application/json"));
    }
    collect(body).await
}

async fn collect(body: Incoming) -> std::result::Result<Bytes, Problem> {
    match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Problem::bare(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("a body has {BODY_LIMIT} bytes at most"),
        )),
        Err(error) => Err(Problem::invalid_request(format!("the body broke off: {error}"))),
    }
}

fn document(service: &Service, endpoint: Endpoint, headers: &HeaderMap, faults: &Active) -> Result<Reply> {
    let (body, validators) = service.document(endpoint, faults)?;
    let mut reply = if validators.unchanged(headers) {
        let mut reply = Response::new(Full::default());
        *reply.status_mut() = StatusCode::NOT_MODIFIED;
        reply
    } else {
        reply(StatusCode::OK, "application/json", body)
    };
    let modified = httpdate::fmt_http_date(validators.modified);
    let headers = reply.headers_mut();
    headers.insert(ETAG, header(&validators.etag)?);
    headers.insert(LAST_MODIFIED, header(&modified)?);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(reply)
}

fn refuse(problem: &Problem, documents: Documents, entry: &mut Entry) -> Reply {
    entry.problem = problem.code();
    let body = problem.body(documents).to_string().into_bytes();
    let mut reply = reply(problem.status, "application/problem+json", body);
    if let Some(seconds) = problem.retry_after_header(documents) {
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    reply
}

/// What is sent in place of a response that hyper would send.
struct Raw {
    bytes: Vec<u8>,
    /// The connection stays open, or ends without close_notify.
    hold: bool,
}

/// Status and headers; without a length, nothing about a body.
fn head(reply: &Reply, length: Option<usize>) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {}\r\n", reply.status()).into_bytes();
    if let Some(length) = length {
        head.extend(format!("content-length: {length}\r\n").as_bytes());
    }
    let about_body = |name: &HeaderName| name.as_str().starts_with("content-");
    for (name, value) in reply.headers().iter().filter(|(name, _)| length.is_some() || !about_body(name)) {
        head.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    head.extend(b"\r\n");
    head
}

fn header(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).map_err(|_| Error::new("a header of odd characters"))
}

fn number(value: Option<&HeaderValue>) -> Option<u64> {
    value.and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok())
}

fn conditional(headers: &HeaderMap) -> Option<String> {
    [IF_NONE_MATCH, IF_MODIFIED_SINCE].into_iter().find_map(|name| {
        let value = headers.get(&name)?.to_str().ok()?;
        Some(format!("{name}: {value}"))
    })
}
