//! The network side: accepting connections, HTTP, and the journal around each request.

use crate::clients::{self, Chain};
use crate::csr;
use crate::error::{Context, Error, Result};
use crate::faults::{Active, Endpoint, RawAnswer};
use crate::journal::{ClientKind, Entry};
use crate::policy::Documents;
use crate::service::{Service, lock};
use crate::wire::Problem;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, LAST_MODIFIED, RETRY_AFTER,
};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, server::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use std::fmt;
use std::future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time;
use tokio_rustls::TlsAcceptor;

/// The largest request body. A request for an SVID has about a kilobyte.
const BODY_LIMIT: usize = 64 * 1024;
/// How long a refused client may take to read why.
const LINGER: Duration = Duration::from_secs(2);

/// Called with every finished request.
pub type Observer = Arc<dyn Fn(&Entry) + Send + Sync>;

/// Commands of the handle to the running server.
pub enum Command {
    /// Close the port and every connection, then say so.
    Stop(mpsc::SyncSender<()>),
    /// Open the same port again.
    Resume(mpsc::SyncSender<Result<()>>),
    /// End.
    End,
}

/// What every connection needs.
struct Shared {
    service: Arc<Service>,
    observer: Option<Observer>,
    tls: TlsAcceptor,
}

/// Serves until the end is requested.
pub async fn run(
    service: Arc<Service>,
    config: Arc<ServerConfig>,
    observer: Option<Observer>,
    listener: TcpListener,
    address: SocketAddr,
    mut commands: UnboundedReceiver<Command>,
) {
    let shared = Arc::new(Shared { service, observer, tls: TlsAcceptor::from(config) });
    let mut port = Port::Open(listener);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            stream = port.accept() => {
                if let Ok((stream, _)) = stream {
                    connections.spawn(connection(Arc::clone(&shared), stream));
                }
            }
            Some(_) = connections.join_next() => {}
            command = commands.recv() => match command {
                Some(Command::Stop(done)) => {
                    drop(std::mem::replace(&mut port, Port::Closed)); // the listener goes first
                    port = keep(address).map_or(Port::Closed, Port::Kept);
                    connections.shutdown().await;
                    let _ = done.send(());
                }
                Some(Command::Resume(done)) => {
                    let (again, result) = match port {
                        Port::Open(listener) => (Port::Open(listener), Ok(())),
                        Port::Kept(socket) => opened(socket.listen(BACKLOG)),
                        Port::Closed => opened(keep(address).and_then(|socket| socket.listen(BACKLOG))),
                    };
                    port = again;
                    let _ = done.send(result.context(address));
                }
                Some(Command::End) | None => return,
            }
        }
    }
}

/// The server's port, in and out of an outage.
enum Port {
    Open(TcpListener),
    /// The port is bound and does not accept: no other process gets it meanwhile.
    Kept(TcpSocket),
    Closed,
}

impl Port {
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match self {
            Self::Open(listener) => listener.accept().await,
            Self::Kept(_) | Self::Closed => future::pending().await,
        }
    }
}

fn opened(listener: io::Result<TcpListener>) -> (Port, io::Result<()>) {
    match listener {
        Ok(listener) => (Port::Open(listener), Ok(())),
        Err(error) => (Port::Closed, Err(error)),
    }
}

fn keep(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

const BACKLOG: u32 = 1024;

async fn connection(shared: Arc<Shared>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let stream = match shared.tls.accept(stream).into_fallible().await {
        Ok(stream) => stream,
        Err((error, stream)) => {
            shared.service.journal.refused(error.to_string());
            linger(stream).await;
            return;
        }
    };
    let chain: Chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    let kind = clients::kind(&chain, lock(&shared.service.pki).factory_anchors());
    let handle = service_fn(|request| exchange(&shared, &chain, kind, request));
    // An error here is a client that went away, or a fault that cut the connection.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), handle).await;
}

/// After a refused handshake the client may have sent a request already. Closing with that unread
/// would reset the connection and lose the alert that says why.
async fn linger(mut stream: TcpStream) {
    let _ = time::timeout(LINGER, async {
        let mut sink = [0; 4096];
        let _ = stream.shutdown().await;
        while matches!(stream.read(&mut sink).await, Ok(1..)) {}
    })
    .await;
}

/// Closes a connection without a response.
#[derive(Debug)]
struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cut by a fault")
    }
}

impl std::error::Error for Cut {}

type Reply = Response<Full<Bytes>>;

/// One request, with the journal around it and faults around the strict part.
async fn exchange(
    shared: &Shared,
    chain: &Chain,
    kind: ClientKind,
    request: Request<Incoming>,
) -> std::result::Result<Reply, Cut> {
    let service = &shared.service;
    let path = request.uri().path().to_owned();
    let mut entry = Entry::new(request.method().as_str(), &path, kind);
    entry.client_spiffe_id = clients::shown_id(chain);
    entry.conditional = conditional(request.headers());
    let target = Endpoint::at(&path);
    let faults = match target {
        Some((endpoint, _)) => lock(&service.faults).take(endpoint),
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
        _ => Ok(Bytes::new()),
    };
    // Before any fault: a test may want to know the key of a request that got no response.
    entry.csr_spki_sha256 = body.as_ref().ok().and_then(|body| csr::peek(body));

    let reply = if faults.cuts_before() {
        None
    } else {
        if let Some(wait) = faults.stall() {
            service.journal.update(index, entry.clone());
            time::sleep(wait).await;
        }
        Some(match faults.answer() {
            Some(answer) => given(answer),
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
        Some(reply) if !entry.answer_lost => Ok(reply),
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

fn reply(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

fn given(answer: &RawAnswer) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(answer.body.clone())));
    *reply.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in &answer.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value))
        {
            reply.headers_mut().append(name, value);
        }
    }
    reply
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
