//! One connection to a socket: HTTP/1.1 or, for the Workload API, HTTP/2 from its first byte on; and how long whoever is at
//! the other end may take. It costs nobody but itself.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{Join, join};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{sleep, timeout};

use super::answers;
use super::authority::Mended;
use super::caller::{Caller, Closing};
use super::lines::Lines;
use super::places::Full;
use super::response::Body;

/// A request's head must be complete within this time. An idle connection is closed after it in HTTP/1.1, and in HTTP/2 if
/// nothing was ever asked: libraries of gRPC keep theirs.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
const MAX_HEAD: usize = 16 * 1024;
/// Calls at once on one connection of the Workload API. There are five to be made.
const MAX_STREAMS: u32 = 8;
/// What waits on one such call for its reader.
const MAX_UNREAD: usize = 64 * 1024;
/// What may come on such a call before it is read.
const WINDOW: u32 = 16 * 1024;
/// How long somebody for whom there is no place may take to hear that.
const REFUSAL_LIMIT: Duration = Duration::from_secs(2);

/// Answers until the other end leaves, or the socket is closed.
pub(super) async fn serve(stream: UnixStream, caller: Caller, lines: Arc<Lines>, mut closing: Closing) {
    let (ends, has_asked) = (closing.clone(), Arc::new(AtomicBool::new(false)));
    let asked = Arc::clone(&has_asked);
    let answer = service_fn(move |request: Request<Incoming>| {
        tracing::debug!(
            uid = caller.uid, pid = caller.pid, right = caller.right.as_str(), method = %request.method(),
            path = request.uri().path(), "socket request"
        );
        asked.store(true, Ordering::Relaxed);
        let (lines, ends, version) = (Arc::clone(&lines), ends.clone(), request.version());
        async move {
            // In a place of its own, which is given back: whoever watches has no use for it any more.
            let mut response = Box::pin(answers::respond(request, caller, &lines, &ends)).await;
            if ends.has_changed().is_err() {
                close(&mut response, version);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let http = http();
    let mut connection = pin!(http.serve_connection(TokioIo::new(mended(stream)), answer));
    let mut first_request = pin!(sleep(HEAD_LIMIT));
    let (mut is_new, mut is_open) = (true, true);
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            () = first_request.as_mut(), if is_new => {
                is_new = false;
                if !has_asked.load(Ordering::Relaxed) {
                    tracing::debug!(uid = caller.uid, pid = caller.pid, "a connection on which nothing was asked is closed");
                    return;
                }
            }
            _ = closing.changed(), if is_open => {
                is_open = false;
                // Whoever has not asked yet is about to: that answer will be the last.
                if has_asked.load(Ordering::Relaxed) {
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    };
    if let Err(e) = ended {
        tracing::debug!(uid = caller.uid, pid = caller.pid, error = e, "socket connection ended");
    }
}

/// Tells somebody that there is no place for them.
pub(super) async fn refuse(stream: UnixStream, why: Full) {
    let answer = service_fn(|request: Request<Incoming>| async move {
        let mut response = answers::overloaded(&request, &why.to_string());
        close(&mut response, request.version());
        Ok::<_, Infallible>(response)
    });
    let http = http();
    let _ = timeout(REFUSAL_LIMIT, http.serve_connection(TokioIo::new(mended(stream)), answer)).await; // who will not hear it, will not
}

fn http() -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(MAX_HEAD);
    http.http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEAD as u32)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(MAX_UNREAD)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW);
    http
}

fn mended(stream: UnixStream) -> Join<Mended<OwnedReadHalf>, OwnedWriteHalf> {
    let (reading, writing) = stream.into_split();
    join(Mended::new(reading), writing)
}

/// HTTP/2 has a frame for that, and no such header.
fn close(response: &mut Response<Body>, version: Version) {
    if version != Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}
