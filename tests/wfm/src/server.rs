//! The network side: accepting connections, HTTP, and the journal around each request.

use crate::faults::{Endpoint, Fault};
use crate::journal::{Client, Entry};
use crate::problem::Problem;
use crate::service::{DEPLOYMENTS_PATH, ONBOARDING_PATH, Service};
use development_server::{Counted, Cut, Reply, accept, lock, reply};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode, server::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::HandshakeKind;
use rustls::pki_types::CertificateDer;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::time;
use tokio_rustls::TlsAcceptor;

/// The largest request body; an onboarding request has about a hundred bytes.
const BODY_LIMIT: usize = 16 * 1024;
/// Called with every finished request.
pub type Observer = Arc<dyn Fn(&Entry) + Send + Sync>;

/// What every connection needs.
pub struct Shared {
    /// The state.
    pub service: Arc<Service>,
    /// Before the paths.
    pub base_path: String,
    /// For the log.
    pub observer: Option<Observer>,
    /// The handshake.
    pub tls: TlsAcceptor,
}

/// Serves one connection to its end.
pub async fn connection(shared: Arc<Shared>, stream: TcpStream) {
    let journal = &shared.service.journal;
    let Some(stream) = accept(&shared.tls, stream, |why| journal.refused(why)).await else { return };
    let tls = stream.get_ref().1;
    let chain: Vec<CertificateDer<'static>> = tls.peer_certificates().unwrap_or_default().to_vec();
    let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
    let client = Client::of(&chain);
    let number = journal.connected(client.clone(), resumed);
    let stream = Counted {
        stream,
        received: |bytes| journal.received(number, bytes),
        ended: || journal.ended(number),
    };
    let handle = service_fn(|request| exchange(&shared, number, &chain, &client, request));
    // An error here is a client that went away, or a fault that cut the connection.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), handle).await;
}

/// One request, with the journal around it and faults around the strict part.
async fn exchange(
    shared: &Shared,
    connection: usize,
    chain: &[CertificateDer<'static>],
    client: &Client,
    request: Request<Incoming>,
) -> std::result::Result<Reply, Cut> {
    let service = &shared.service;
    let path = request.uri().path().to_owned();
    let mut entry = Entry::new(connection, request.method().as_str(), &path, client.clone());
    let endpoint = match path.strip_prefix(&shared.base_path) {
        Some(ONBOARDING_PATH) if lock(&service.policy).onboarding => Some(Endpoint::Onboarding),
        Some(DEPLOYMENTS_PATH) => Some(Endpoint::Deployments),
        _ => None,
    };
    let fault = endpoint.and_then(|endpoint| lock(&service.faults).take(&endpoint));
    entry.faulty = fault.is_some();
    let index = service.journal.open(entry.clone());

    if let Some(Fault::Stall(wait)) = &fault {
        time::sleep(*wait).await;
    }
    let reply = match &fault {
        Some(Fault::CutBefore) => None,
        Some(Fault::Response(response)) => Some(response.reply()),
        fault => Some(decide(service, chain, endpoint, request, fault.as_ref(), &mut entry).await),
    };
    if let Some(reply) = &reply {
        entry.status = Some(reply.status().as_u16());
        let retry_after = reply.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        entry.retry_after = retry_after.and_then(|value| value.parse().ok());
    }
    entry.response_lost = matches!(fault, Some(Fault::CutBefore | Fault::LoseResponse));
    service.journal.update(index, entry.clone());
    if let Some(observer) = &shared.observer {
        observer(&entry);
    }
    match reply {
        Some(reply) if !entry.response_lost => Ok(reply),
        _ => Err(Cut),
    }
}

/// The strict server: no fault but that of an assertion.
async fn decide(
    service: &Service,
    chain: &[CertificateDer<'static>],
    endpoint: Option<Endpoint>,
    request: Request<Incoming>,
    fault: Option<&Fault>,
    entry: &mut Entry,
) -> Reply {
    let (allowed, allow) = match endpoint {
        None => {
            let problem = Problem::bare(StatusCode::NOT_FOUND, "unknown path");
            return refuse(&problem, entry);
        }
        Some(Endpoint::Onboarding) => (request.method() == Method::POST, "POST"),
        Some(Endpoint::Deployments) => (request.method() == Method::GET, "GET"),
    };
    if !allowed {
        let problem = Problem::bare(StatusCode::METHOD_NOT_ALLOWED, format!("this resource answers {allow}"));
        let mut reply = refuse(&problem, entry);
        reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        return reply;
    }
    let decision = match endpoint {
        Some(Endpoint::Onboarding) => {
            let (parts, body) = request.into_parts();
            match read(&parts.headers, body).await {
                Ok(body) => service.onboard(chain, &body, fault, entry),
                Err(problem) => Err(problem),
            }
        }
        _ => service.deployments(chain),
    };
    match decision {
        Ok((status, kind, body)) => not_stored(reply(status, kind, body.to_string())),
        Err(problem) => refuse(&problem, entry),
    }
}

/// The body of a POST: JSON by its own account, and not too large.
async fn read(headers: &HeaderMap, body: Incoming) -> std::result::Result<Bytes, Problem> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(Problem::bare(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body has to be application/json"));
    }
    match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(Problem::bad_request(format!("the body cannot be read: {error}"))),
    }
}

fn refuse(problem: &Problem, entry: &mut Entry) -> Reply {
    entry.problem = problem.code;
    let body = problem.body().to_string();
    let mut reply = not_stored(reply(problem.status, "application/problem+json", body));
    if let Some(seconds) = problem.retry_after {
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    reply
}

fn not_stored(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}
