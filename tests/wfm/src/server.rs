//! The network side: accepting connections, HTTP, and the journal around each request.

use crate::error::{Context, Result};
use crate::faults::{Endpoint, Fault, RawResponse};
use crate::journal::{Client, Entry};
use crate::problem::Problem;
use crate::service::{DEPLOYMENTS_PATH, ONBOARDING_PATH, Service, lock};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, server::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use rustls::{HandshakeKind, ServerConfig};
use std::fmt;
use std::future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::task::{self, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The largest request body; an onboarding request has about a hundred bytes.
const BODY_LIMIT: usize = 16 * 1024;
/// How long a refused client may take to read why.
const LINGER: Duration = Duration::from_secs(2);
const BACKLOG: u32 = 1024;

/// Called with every finished request.
pub type Observer = Arc<dyn Fn(&Entry) + Send + Sync>;

/// Commands of the handle to the running server.
pub enum Command {
    /// Closes the port and every connection, then confirms it.
    Stop(mpsc::SyncSender<()>),
    /// Opens the same port again.
    Resume(mpsc::SyncSender<Result<()>>),
    /// Ends the server.
    End,
}

/// What every connection needs.
pub struct Shared {
    /// The state.
    pub service: Arc<Service>,
    /// Before the paths.
    pub base_path: String,
    /// For the log.
    pub observer: Option<Observer>,
}

/// Serves until the end is requested.
pub async fn run(
    shared: Shared,
    config: Arc<ServerConfig>,
    listener: TcpListener,
    address: SocketAddr,
    mut commands: UnboundedReceiver<Command>,
) {
    let shared = Arc::new(shared);
    let tls = TlsAcceptor::from(config);
    let mut port = Port::Open(listener);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            stream = port.accept() => {
                if let Ok(stream) = stream {
                    connections.spawn(connection(Arc::clone(&shared), tls.clone(), stream));
                }
            }
            Some(_) = connections.join_next() => {}
            command = commands.recv() => match command {
                Some(Command::Stop(done)) => {
                    drop(std::mem::replace(&mut port, Port::Closed)); // the listener goes first
                    port = bound(address).map_or(Port::Closed, Port::Bound);
                    connections.shutdown().await;
                    let _ = done.send(());
                }
                Some(Command::Resume(done)) => {
                    let listener = match port {
                        Port::Open(listener) => Ok(listener),
                        Port::Bound(socket) => socket.listen(BACKLOG),
                        Port::Closed => bound(address).and_then(|socket| socket.listen(BACKLOG)),
                    };
                    let (again, result) = match listener {
                        Ok(listener) => (Port::Open(listener), Ok(())),
                        Err(error) => (Port::Closed, Err(error)),
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
    Bound(TcpSocket),
    Closed,
}

impl Port {
    async fn accept(&self) -> io::Result<TcpStream> {
        match self {
            Self::Open(listener) => listener.accept().await.map(|(stream, _)| stream),
            Self::Bound(_) | Self::Closed => future::pending().await,
        }
    }
}

fn bound(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn connection(shared: Arc<Shared>, tls: TlsAcceptor, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let service = &shared.service;
    let stream = match tls.accept(stream).into_fallible().await {
        Ok(stream) => stream,
        Err((error, stream)) => {
            service.journal.refused(error.to_string());
            linger(stream).await;
            return;
        }
    };
    let tls = stream.get_ref().1;
    let chain: Vec<CertificateDer<'static>> = tls.peer_certificates().unwrap_or_default().to_vec();
    let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
    let client = Client::of(&chain);
    let number = service.journal.connected(client.clone(), resumed);
    let stream = Counted { stream, service: Arc::clone(service), number };
    let handle = service_fn(|request| exchange(&shared, number, &chain, &client, request));
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

/// A connection that notes the application data it receives, and its end.
struct Counted {
    stream: TlsStream<TcpStream>,
    service: Arc<Service>,
    number: usize,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.service.journal.ended(self.number);
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let done = Pin::new(&mut self.stream).poll_read(context, buffer);
        let received = buffer.filled().len() - before;
        if received > 0 {
            self.service.journal.received(self.number, received as u64);
        }
        done
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
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
    let fault = endpoint.and_then(|endpoint| lock(&service.faults).take(endpoint));
    entry.faulty = fault.is_some();
    let index = service.journal.open(entry.clone());

    if let Some(Fault::Stall(wait)) = &fault {
        time::sleep(*wait).await;
    }
    let reply = match &fault {
        Some(Fault::CutBefore) => None,
        Some(Fault::Response(response)) => Some(given(response)),
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
        Ok((status, kind, body)) => reply(status, kind, body.to_string().into_bytes()),
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
    let body = problem.body().to_string().into_bytes();
    let mut reply = reply(problem.status, "application/problem+json", body);
    if let Some(seconds) = problem.retry_after {
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    reply
}

fn reply(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

fn given(response: &RawResponse) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(response.body.clone())));
    *reply.status_mut() = StatusCode::from_u16(response.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in &response.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value))
        {
            reply.headers_mut().append(name, value);
        }
    }
    reply
}
