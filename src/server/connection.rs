//! One connection to a socket: HTTP/1.1 or, for the Workload API, HTTP/2 from its first byte on;
//! and how long the peer may take. A peer costs its own connection and no other.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    CONNECTION, CONTENT_TYPE, EXPECT, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use crate::server::budget::OverBudget;
use crate::server::call_limit::{CallLimit, CallLimits};
use crate::server::connection_limit::LimitReached;
use crate::server::context::ServerContext;
use crate::server::heap::HeapTrimmer;
use crate::server::peer::{Peer, ShutdownSignal};
use crate::server::request_body;
use crate::server::response::HttpResponse;
use crate::server::router;
use crate::server::uds_authority::AuthorityMask;
use crate::server::wire::{Wire, version_of};
use crate::server::workload_api::SECURITY_HEADER;

/// Time for the head of a request. An idle connection is closed after it in HTTP/1.1, and in HTTP/2
/// if there was no request: gRPC libraries keep theirs open.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a request's head in HTTP/1.1.
const MAX_HEAD: usize = 16 * 1024;
/// The same in HTTP/2, for each stream: gRPC's own default.
const MAX_HEADER_LIST: u32 = 8 * 1024;
/// Bytes of responses that wait on a stream until the client reads them.
const MAX_UNREAD: usize = 64 * 1024;
/// Bytes that a client may send on a stream before they are read.
const WINDOW: u32 = 16 * 1024;
/// What clients are told of [`HEAD_LIMIT`]: less, so that none sends a request while its connection
/// is being closed.
const KEEP_ALIVE: HeaderValue = HeaderValue::from_static("timeout=25");
/// Time for a connection over the limit to receive its response.
const REFUSAL_LIMIT: Duration = Duration::from_secs(4);

/// Serves a connection until the peer leaves or the socket is shut down. A peer that closes only
/// its sending side gets its responses; one that closes both has left, and what it was waiting for
/// is dropped.
///
/// # Errors
/// The peer sent more than its budget allows, and the connection is closed.
pub(super) async fn serve(
    stream: UnixStream,
    peer: Peer,
    context: Arc<ServerContext>,
    calls: CallLimits,
    mut shutdown: ShutdownSignal,
) -> Result<(), OverBudget> {
    let wire = Wire::new(stream);
    let Ok(Ok((version, stream))) = timeout(HEAD_LIMIT, version_of(&wire)).await else {
        tracing::debug!(uid = peer.uid, pid = peer.pid, "connection without a request closed");
        return Ok(());
    };
    let has_request = Arc::new(AtomicBool::new(false));
    let (of_service, has_request_of_service) = (Arc::clone(&context), Arc::clone(&has_request));
    let shutdown_of_service = shutdown.clone();
    let calls =
        (version == Version::HTTP_2).then(|| calls.for_connection(peer.uid, Arc::clone(&context.heap)));
    let streams = calls.as_ref().map_or(1, CallLimit::streams);
    let open_calls = calls.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        tracing::debug!(
            uid = peer.uid, pid = peer.pid, role = peer.role.as_str(), method = %request.method(),
            path = request.uri().path(), "socket request"
        );
        has_request_of_service.store(true, Ordering::Relaxed);
        let (context, calls, shutdown) =
            (Arc::clone(&of_service), calls.clone(), shutdown_of_service.clone());
        async move {
            if version != Version::HTTP_2 {
                // hyper would serve many pipelined requests in one go, while all other connections
                // wait.
                yield_now().await;
            }
            let _in_use = (version == Version::HTTP_2).then(|| HeapTrimmer::in_use(&context.heap));
            Ok::<_, Infallible>(respond(request, peer, calls.as_ref(), &context, &shutdown).await)
        }
    });
    // HTTP/1.1 ends by itself when all responses are sent.
    let left = wire.left(|| open_calls.as_ref().is_some_and(CallLimit::is_idle));
    let ended = match version {
        Version::HTTP_2 => {
            let mut http = http2();
            // A client may cancel all of its calls at once.
            http.max_concurrent_streams(streams).max_pending_accept_reset_streams(Some(streams as usize));
            let connection = http.serve_connection(TokioIo::new(AuthorityMask::new(stream)), service);
            let end = http2::Connection::graceful_shutdown;
            until_it_ends(connection, end, &has_request, left, &mut shutdown).await
        }
        _ => {
            let connection = http1().serve_connection(TokioIo::new(stream), service);
            let end = http1::Connection::graceful_shutdown;
            until_it_ends(connection, end, &has_request, left, &mut shutdown).await
        }
    };
    if wire.is_over_budget() {
        if context.refusals.is_due(peer.uid, "frames", std::time::Instant::now()) {
            tracing::warn!(
                uid = peer.uid,
                pid = peer.pid,
                socket = peer.role.as_str(),
                "connection closed: {OverBudget}"
            );
        }
        return Err(OverBudget);
    }
    if let Err(e) = ended {
        tracing::debug!(uid = peer.uid, pid = peer.pid, error = %e, "socket connection ended");
    }
    Ok(())
}

async fn until_it_ends<C: Future<Output = hyper::Result<()>>>(
    connection: C,
    end: fn(Pin<&mut C>),
    has_request: &AtomicBool,
    left: impl Future<Output = ()>,
    shutdown: &mut ShutdownSignal,
) -> hyper::Result<()> {
    let (mut connection, mut left) = (pin!(connection), pin!(left));
    let mut first_request = pin!(sleep(HEAD_LIMIT));
    let (mut is_new, mut is_open) = (true, true);
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = left.as_mut() => return Ok(()),
            () = first_request.as_mut(), if is_new => {
                is_new = false;
                if !has_request.load(Ordering::Relaxed) {
                    return Ok(()); // no request within the limit
                }
            }
            _ = shutdown.changed(), if is_open => {
                is_open = false;
                // Without a request yet, the connection waits for its first: that response is the
                // last.
                if has_request.load(Ordering::Relaxed) {
                    end(connection.as_mut());
                }
            }
        }
    }
}

async fn respond(
    request: Request<Incoming>,
    peer: Peer,
    calls: Option<&CallLimit>,
    context: &ServerContext,
    shutdown: &ShutdownSignal,
) -> HttpResponse {
    let (mut head, mut body) = request.into_parts();
    head.headers = used_headers(&head.headers);
    let request = Request::from_parts(head, ());
    // In an allocation of its own, which is freed: a stream that follows has no use for it any
    // more.
    let responding = router::respond(&request, &mut body, peer, calls, context, shutdown);
    let mut response = Box::pin(responding).await;
    // To read on would invite a client to send what it announces with `Expect: 100-continue` (RFC
    // 9110, section 10.1.1).
    let is_read = body.is_end_stream()
        || !request.headers().contains_key(EXPECT) && request_body::discard(&mut body).await;
    if shutdown.has_changed().is_err() || !is_read {
        close(&mut response, request.version());
    } else if is_kept_alive(&request) {
        keep_alive(&mut response);
    }
    if request.version() == Version::HTTP_2 && request.method() == Method::HEAD {
        // hyper does so in HTTP/1.1.
        *response.body_mut() = Empty::new().map_err(|never| match never {}).boxed_unsync();
    }
    response
}

/// Copies the headers that matter here. The others are not stored while a request is read and
/// responded to: a client could send hundreds of them on each of many streams.
fn used_headers(headers: &HeaderMap) -> HeaderMap {
    let mut used = HeaderMap::new();
    for name in [CONTENT_TYPE, SECURITY_HEADER, CONNECTION, TRANSFER_ENCODING, EXPECT] {
        for value in headers.get_all(&name) {
            used.append(&name, value.clone());
        }
    }
    used
}

/// Responds to a connection over the limit, and closes it.
pub(super) async fn refuse(stream: UnixStream, limit: LimitReached) {
    let service = service_fn(|mut request: Request<Incoming>| async move {
        request_body::discard(request.body_mut()).await;
        let mut response = router::overloaded(&request, limit);
        close(&mut response, request.version());
        Ok::<_, Infallible>(response)
    });
    let responding = async {
        match version_of(&Wire::new(stream)).await {
            Ok((Version::HTTP_2, stream)) => {
                let mut http = http2();
                http.max_concurrent_streams(1);
                let _ = http.serve_connection(TokioIo::new(AuthorityMask::new(stream)), service).await;
            }
            Ok((_, stream)) => {
                let _ = http1().serve_connection(TokioIo::new(stream), service).await;
            }
            Err(_) => {}
        }
    };
    let _ = timeout(REFUSAL_LIMIT, responding).await; // a client that does not read by then, will not
}

fn http1() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(MAX_HEAD).half_close(true);
    http
}

fn http2() -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buf_size(MAX_UNREAD)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW);
    http
}

/// Whether the client may use this connection for another request (RFC 9112, section 9.3).
fn is_kept_alive<B>(request: &Request<B>) -> bool {
    let closes = |value: &HeaderValue| {
        value
            .to_str()
            .is_ok_and(|options| options.split(',').any(|option| option.trim().eq_ignore_ascii_case("close")))
    };
    let headers = request.headers();
    // Where a Content-Length comes with it, hyper drops that and closes the connection (RFC 9112,
    // section 6.1).
    let is_ambiguous = headers.contains_key(TRANSFER_ENCODING);
    request.version() == Version::HTTP_11 && !is_ambiguous && !headers.get_all(CONNECTION).iter().any(closes)
}

/// Tells a client how long it may leave the connection idle (RFC 9112, appendix C.2.2): otherwise
/// its next request may meet the end of the connection.
fn keep_alive(response: &mut HttpResponse) {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("keep-alive"));
    response.headers_mut().insert(HeaderName::from_static("keep-alive"), KEEP_ALIVE);
}

/// Announces that the connection is closed. HTTP/2 has a frame for that, and no such header; in
/// HTTP/1.0 it is the rule.
fn close(response: &mut HttpResponse, version: Version) {
    if version == Version::HTTP_11 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::Snapshot;
    use crate::publish::broadcast::Broadcaster;
    use crate::server::command_queue::CommandQueue;
    use crate::server::peer::Role;
    use miaf_spiffe::time::Timestamp;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::watch;

    const REQUEST: &str = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";

    /// On one thread, as the agent's sockets are: while one connection is served, others wait.
    #[tokio::test]
    async fn pipelined_requests_delay_others_by_one_each() {
        let broadcaster =
            Broadcaster::new(Snapshot::unconfigured(crate::keys::ProviderKind::Tpm), Timestamp::from_secs(0));
        let context = Arc::new(ServerContext::new(&broadcaster, CommandQueue::new().0));
        let (_open, shutdown) = watch::channel(());
        let peer = Peer { role: Role::Read, uid: Some(7), pid: Some(1) };
        let connect = async |requests: usize| {
            let (mut client, stream) = UnixStream::pair().unwrap();
            client.write_all(REQUEST.repeat(requests).as_bytes()).await.unwrap();
            let (calls, shutdown) = (CallLimits::default(), shutdown.clone());
            tokio::spawn(serve(stream, peer, Arc::clone(&context), calls, shutdown));
            client
        };
        let busy = [connect(300).await, connect(300).await, connect(300).await];
        let mut one = connect(1).await;
        let mut response = [0; 15];
        one.read_exact(&mut response).await.unwrap();
        assert_eq!(&response, b"HTTP/1.1 200 OK");
        for client in busy {
            let mut received = vec![0; 1024 * 1024];
            let received = client
                .try_read(&mut received)
                .map_or(String::new(), |length| String::from_utf8_lossy(&received[..length]).into_owned());
            let served = received.matches("HTTP/1.1 200 OK").count();
            assert!(served <= 8, "{served} before one that came at the same time");
        }
    }
}
