//! Fuzz targets: what local programs send.

use std::convert::Infallible;
use std::io::Cursor;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::publish::Snapshot;
use crate::publish::broadcast::Broadcaster;
use crate::server::call_limit::CallLimits;
use crate::server::command_queue::CommandQueue;
use crate::server::context::ServerContext;
use crate::server::peer::{Peer, Role};
use crate::server::uds_authority::AuthorityMask;
use miaf_spiffe::time::Timestamp;

/// Longer than any time limit of a connection.
const LONG: Duration = Duration::from_secs(3600);

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Serves a whole connection: a byte for its role and how it ends, then what the client sends. Once
/// the client has left, the connection ends, and its permit is released.
pub(crate) fn connection(data: &[u8]) -> bool {
    let [choice, data @ ..] = data else { return false };
    let role = Role::ALL[usize::from(choice % 3)];
    runtime().block_on(async {
        // libFuzzer's main leaves SIGPIPE as it is; the agent's ignores it. Where one is waited
        // for, it ends nothing.
        let _caught = signal(SignalKind::pipe());
        // Moves on when there is nothing else to do.
        tokio::time::pause();
        let Ok((mut client, agent)) = UnixStream::pair() else { return false };
        let broadcaster = Broadcaster::new(
            Snapshot::unconfigured(crate::keys::ProviderKind::Tpm),
            Timestamp::from_millis(0),
        );
        let (commands, _receiver) = CommandQueue::new();
        let context = Arc::new(ServerContext::new(&broadcaster, commands));
        let (_open, shutdown) = watch::channel(());
        let peer = Peer { role, uid: Some(1000), pid: Some(4711) };
        let serving = tokio::spawn(crate::server::connection::serve(
            agent,
            peer,
            context,
            CallLimits::default(),
            shutdown,
        ));
        // What does not fit into the socket's buffer is no other case.
        let _ = client.try_write(data);
        if choice & 0x80 != 0 {
            let _ = client.shutdown().await;
        }
        let mut responses = Vec::new();
        let responses = &mut responses;
        let _ = timeout(Duration::from_secs(1), (&mut client).take(1 << 20).read_to_end(responses)).await;
        assert!(responses.is_empty() || responses.starts_with(b"HTTP/1.") || responses.get(3) == Some(&4));
        drop(client);
        let ended = timeout(LONG, serving).await.expect("a connection without a client").expect("no panic");
        let _ = ended; // or closed, for more than its budget allows
        !responses.is_empty()
    })
}

/// Masks the authority in what an HTTP/2 client sends after its preface. h2 reads the same requests
/// with the mask as without it, and more of them.
pub(crate) fn authority(data: &[u8]) -> bool {
    let sent = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..], data].concat();
    runtime().block_on(async {
        tokio::time::pause();
        let mut masked = Vec::new();
        let read = AuthorityMask::new(Cursor::new(&sent)).read_to_end(&mut masked).await;
        read.expect("memory can be read");
        assert_eq!(masked.len(), sent.len());
        // In the Huffman code the length of an entry changes, and with it what the table evicts.
        if sent.iter().zip(&masked).any(|(before, after)| before != after && *after == 0xfc) {
            return false;
        }
        let (plain, masked) = (requests(sent).await, requests(masked).await);
        let is_accepted = !masked.is_empty();
        let mut masked = masked.iter();
        assert!(plain.iter().all(|request| masked.any(|other| other == request)), "{plain:?}");
        is_accepted
    })
}

/// The requests that h2 reads: method, path and headers of each.
async fn requests(sent: Vec<u8>) -> Vec<String> {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let path = request.uri().path_and_query().map(ToString::to_string);
        let head = format!("{} {path:?} {:?}", request.method(), request.headers());
        seen.lock().expect("no panic").push(head);
        async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
    });
    // After that it stays open and silent.
    let (_open, silent) = tokio::io::duplex(1);
    let stream = tokio::io::join(Cursor::new(sent).chain(silent), tokio::io::sink());
    let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = timeout(LONG, http.serve_connection(TokioIo::new(stream), service)).await;
    std::mem::take(&mut heads.lock().expect("no panic"))
}
