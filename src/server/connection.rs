//! One connection to a socket: HTTP/1.1 or, for the Workload API, HTTP/2 from its first byte on; and how long whoever is at
//! the other end may take. It costs nobody but itself.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{
    CONNECTION, CONTENT_TYPE, EXPECT, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};

use crate::server::budget::OverBudget;
use crate::server::calls::{CallLimit, CallLimits};
use crate::server::connection_limit::Full;
use crate::server::context::Lines;
use crate::server::heap::HeapTrimmer;
use crate::server::peer::{Caller, Closing};
use crate::server::response::Body;
use crate::server::router;
use crate::server::uds_authority::Mended;
use crate::server::wire::{Wire, version_of};
use crate::server::workload_api::SECURITY_HEADER;

/// A request's head must be complete within this time. An idle connection is closed after it in HTTP/1.1, and in HTTP/2 if
/// nothing was ever asked: libraries of gRPC keep theirs.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
const MAX_HEAD: usize = 16 * 1024;
/// The same in HTTP/2, for each stream: gRPC's own default.
const MAX_HEADER_LIST: u32 = 8 * 1024;
/// What waits on one such call for its reader.
const MAX_UNREAD: usize = 64 * 1024;
/// What may come on such a call before it is read.
const WINDOW: u32 = 16 * 1024;
/// What is read of a request that is refused, in bytes. Some clients take a response for an error
/// that comes before they have sent their request.
const MAX_UNUSED: usize = 256 * 1024;
/// Pieces that a body may come in: each costs time, however small it is.
pub(super) const MAX_PIECES: usize = 512;
/// Time for all of that.
const UNUSED_LIMIT: Duration = Duration::from_secs(2);
/// Time for the next piece of it: a client may be waiting for the response before it sends more.
const UNUSED_PAUSE: Duration = Duration::from_secs(1);
/// What clients are told of [`HEAD_LIMIT`]: less, so that none sends a request while its connection
/// is being closed.
const KEEP_ALIVE: HeaderValue = HeaderValue::from_static("timeout=25");
/// How long somebody for whom there is no place may take to hear that.
const REFUSAL_LIMIT: Duration = Duration::from_secs(4);

/// Answers until the peer leaves, or the socket is closed. A peer that closes its sending side only gets
/// its responses; one that closes both has left, and whatever it was waiting for is dropped.
///
/// # Errors
/// The peer sent more than its budget allows, and the connection is closed.
pub(super) async fn serve(
    stream: UnixStream,
    caller: Caller,
    lines: Arc<Lines>,
    calls: CallLimits,
    mut closing: Closing,
) -> Result<(), OverBudget> {
    let wire = Wire::new(stream);
    let Ok(Ok((version, stream))) = timeout(HEAD_LIMIT, version_of(&wire)).await else {
        tracing::debug!(
            uid = caller.uid,
            pid = caller.pid,
            "a connection on which nothing was said is closed"
        );
        return Ok(());
    };
    let (ends, has_asked) = (closing.clone(), Arc::new(AtomicBool::new(false)));
    let (asked, lines_of_answers) = (Arc::clone(&has_asked), Arc::clone(&lines));
    let calls =
        (version == Version::HTTP_2).then(|| calls.for_connection(caller.uid, Arc::clone(&lines.heap)));
    let streams = calls.as_ref().map_or(1, CallLimit::streams);
    let calls_under_way = calls.clone();
    let answer = service_fn(move |request: Request<Incoming>| {
        tracing::debug!(
            uid = caller.uid, pid = caller.pid, right = caller.right.as_str(), method = %request.method(),
            path = request.uri().path(), "socket request"
        );
        asked.store(true, Ordering::Relaxed);
        let (lines, calls, ends) = (Arc::clone(&lines_of_answers), calls.clone(), ends.clone());
        async move {
            if version != Version::HTTP_2 {
                // hyper would serve many pipelined requests in one go, while all other connections wait.
                yield_now().await;
            }
            let _in_use = (version == Version::HTTP_2).then(|| HeapTrimmer::in_use(&lines.heap));
            Ok::<_, Infallible>(respond(request, caller, calls.as_ref(), &lines, &ends).await)
        }
    });
    // HTTP/1.1 ends by itself when all responses are sent.
    let left = wire.left(|| calls_under_way.as_ref().is_some_and(CallLimit::is_idle));
    let ended = match version {
        Version::HTTP_2 => {
            let mut http = http2();
            // A client may cancel all of its calls at once.
            http.max_concurrent_streams(streams).max_pending_accept_reset_streams(Some(streams as usize));
            let connection = http.serve_connection(TokioIo::new(Mended::new(stream)), answer);
            let end = http2::Connection::graceful_shutdown;
            until_it_ends(connection, end, &has_asked, left, &mut closing).await
        }
        _ => {
            let connection = http1().serve_connection(TokioIo::new(stream), answer);
            let end = http1::Connection::graceful_shutdown;
            until_it_ends(connection, end, &has_asked, left, &mut closing).await
        }
    };
    if wire.is_over_budget() {
        let why = OverBudget;
        if lines.refusals.is_news(caller.uid, "frames", std::time::Instant::now()) {
            tracing::warn!(
                uid = caller.uid,
                pid = caller.pid,
                socket = caller.right.as_str(),
                "a connection is closed: {why}"
            );
        }
        return Err(why);
    }
    if let Err(e) = ended {
        tracing::debug!(uid = caller.uid, pid = caller.pid, error = %e, "socket connection ended");
    }
    Ok(())
}

async fn until_it_ends<C: Future<Output = hyper::Result<()>>>(
    connection: C,
    end: fn(Pin<&mut C>),
    has_asked: &AtomicBool,
    left: impl Future<Output = ()>,
    closing: &mut Closing,
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
                if !has_asked.load(Ordering::Relaxed) {
                    return Ok(()); // who has not asked by now will not
                }
            }
            _ = closing.changed(), if is_open => {
                is_open = false;
                // Whoever has not asked yet is about to: that answer will be the last.
                if has_asked.load(Ordering::Relaxed) {
                    end(connection.as_mut());
                }
            }
        }
    }
}

async fn respond(
    request: Request<Incoming>,
    caller: Caller,
    calls: Option<&CallLimit>,
    lines: &Lines,
    closing: &Closing,
) -> Response<Body> {
    let (mut head, mut body) = request.into_parts();
    head.headers = used(&head.headers);
    let request = Request::from_parts(head, ());
    // In an allocation of its own, which is freed: a stream that follows has no use for it any
    // more.
    let responding = router::respond(&request, &mut body, caller, calls, lines, closing);
    let mut response = Box::pin(responding).await;
    // To read on would invite a client to send what it asks for with `Expect: 100-continue` (RFC
    // 9110, section 10.1.1).
    let is_read =
        body.is_end_stream() || !request.headers().contains_key(EXPECT) && read_rest(&mut body).await;
    if closing.has_changed().is_err() || !is_read {
        close(&mut response, request.version());
    } else if is_kept_alive(&request) {
        keep_alive(&mut response);
    }
    if request.version() == Version::HTTP_2 && request.method() == Method::HEAD {
        *response.body_mut() = Empty::new().map_err(|never| match never {}).boxed_unsync(); // as hyper does in HTTP/1.1
    }
    response
}

/// The headers that matter here. The others are not kept while a request is read and responded to:
/// a caller could send hundreds of them on each of many streams.
fn used(headers: &HeaderMap) -> HeaderMap {
    let mut used = HeaderMap::new();
    for name in [CONTENT_TYPE, SECURITY_HEADER, CONNECTION, TRANSFER_ENCODING, EXPECT] {
        for value in headers.get_all(&name) {
            used.append(&name, value.clone());
        }
    }
    used
}

/// Tells somebody that there is no place for them.
pub(super) async fn refuse(stream: UnixStream, why: Full) {
    let answer = service_fn(|mut request: Request<Incoming>| async move {
        read_rest(request.body_mut()).await;
        let mut response = router::overloaded(&request, &why.to_string());
        close(&mut response, request.version());
        Ok::<_, Infallible>(response)
    });
    let told = async {
        match version_of(&Wire::new(stream)).await {
            Ok((Version::HTTP_2, stream)) => {
                let mut http = http2();
                http.max_concurrent_streams(1);
                let _ = http.serve_connection(TokioIo::new(Mended::new(stream)), answer).await;
            }
            Ok((_, stream)) => {
                let _ = http1().serve_connection(TokioIo::new(stream), answer).await;
            }
            Err(_) => {}
        }
    };
    let _ = timeout(REFUSAL_LIMIT, told).await; // who will not hear it, will not
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

/// Reads what is left of a request, as long as it keeps coming. Returns whether that is all of it.
async fn read_rest(body: &mut Incoming) -> bool {
    let deadline = Instant::now() + UNUSED_LIMIT;
    let (mut length, mut pieces) = (0, 0);
    while !body.is_end_stream() {
        let pause = UNUSED_PAUSE.min(deadline.saturating_duration_since(Instant::now()));
        match timeout(pause, body.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => length += frame.data_ref().map_or(0, Bytes::len),
            Ok(Some(Err(_))) | Err(_) => return false,
        }
        pieces += 1;
        if length > MAX_UNUSED || pieces > MAX_PIECES {
            return false;
        }
    }
    true
}

/// Whether the client may use this connection for another request (RFC 9112, section 9.3).
fn is_kept_alive<B>(request: &Request<B>) -> bool {
    let closes = |value: &HeaderValue| {
        value
            .to_str()
            .is_ok_and(|options| options.split(',').any(|option| option.trim().eq_ignore_ascii_case("close")))
    };
    let headers = request.headers();
    // Where a Content-Length comes with it, hyper drops that and closes the connection (RFC 9112, section 6.1).
    let is_ambiguous = headers.contains_key(TRANSFER_ENCODING);
    request.version() == Version::HTTP_11 && !is_ambiguous && !headers.get_all(CONNECTION).iter().any(closes)
}

/// Tells a client how long it may leave the connection idle (RFC 9112, appendix C.2.2), or it may
/// meet its end.
fn keep_alive(response: &mut Response<Body>) {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("keep-alive"));
    response.headers_mut().insert(HeaderName::from_static("keep-alive"), KEEP_ALIVE);
}

/// HTTP/2 has a frame for that, and no such header. In HTTP/1.0 it is the rule.
fn close(response: &mut Response<Body>, version: Version) {
    if version == Version::HTTP_11 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::Snapshot;
    use crate::publish::broadcast::Publication;
    use crate::server::admin::Orders;
    use crate::server::peer::Right;
    use crate::time::Timestamp;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::watch;

    const REQUEST: &str = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";

    /// On one thread, as the agent's sockets are: what one connection does at a time, others wait for.
    #[tokio::test]
    async fn pipelined_requests_delay_other_connections_by_one_each() {
        let publication = Publication::new(Snapshot::unconfigured(), Timestamp::from_secs(0));
        let lines = Arc::new(Lines::new(&publication, Orders::channel().0));
        let (_open, closing) = watch::channel(());
        let caller = Caller { right: Right::Read, uid: Some(7), pid: Some(1) };
        let connect = async |requests: usize| {
            let (mut client, stream) = UnixStream::pair().unwrap();
            client.write_all(REQUEST.repeat(requests).as_bytes()).await.unwrap();
            let (calls, closing) = (CallLimits::default(), closing.clone());
            tokio::spawn(serve(stream, caller, Arc::clone(&lines), calls, closing));
            client
        };
        let crowd = [connect(300).await, connect(300).await, connect(300).await];
        let mut one = connect(1).await;
        let mut response = [0; 15];
        one.read_exact(&mut response).await.unwrap();
        assert_eq!(&response, b"HTTP/1.1 200 OK");
        for client in crowd {
            let mut heard = vec![0; 1024 * 1024];
            let heard = client
                .try_read(&mut heard)
                .map_or(String::new(), |length| String::from_utf8_lossy(&heard[..length]).into_owned());
            let served = heard.matches("HTTP/1.1 200 OK").count();
            assert!(served <= 8, "{served} before one that came at the same time");
        }
    }
}
