//! gRPC on the agent's sockets: limits, unknown services, the health service; and a client for
//! these tests.

use std::io::{Read as _, Write as _};
use std::os::unix::net;
use std::time::{Duration, Instant};

use development_mis::{DocumentFault, Endpoint, Fault};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::{HeaderMap, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::support::agent::{Device, PATIENCE};
use crate::support::http2::{PREFACE, frame, headers};
use crate::world::{self, World};

/// Long enough for the agent to have sent a message that it should not.
const QUIET: Duration = Duration::from_secs(2);

pub(crate) const OK: u32 = 0;
pub(crate) const INVALID_ARGUMENT: u32 = 3;
pub(crate) const NOT_FOUND: u32 = 5;
pub(crate) const PERMISSION_DENIED: u32 = 7;
pub(crate) const RESOURCE_EXHAUSTED: u32 = 8;
pub(crate) const UNIMPLEMENTED: u32 = 12;
pub(crate) const INTERNAL: u32 = 13;
pub(crate) const UNAVAILABLE: u32 = 14;

#[test]
fn call_over_a_hundred_on_one_connection_is_unavailable() {
    let world = World::enrolled();
    let client = Grpc::connect(&world.device);
    let mut calls: Vec<Call<'_>> = (0..100).map(|_| client.call("FetchX509Bundles")).collect();
    let firsts: Vec<Vec<u8>> = calls.iter_mut().map(Call::message).collect();
    assert!(firsts.iter().all(|first| first == &firsts[0]));
    for _ in 0..20 {
        let (code, why) = client.call("FetchX509Bundles").end();
        assert!(code == UNAVAILABLE && why.contains("100 calls"), "{code} {why}");
    }
    calls.pop();
    world.device.wait_until("a free permit", |_| {
        matches!(client.call("FetchX509Bundles").next(), Received::Message(_))
    });
    calls[0].is_quiet();
}

#[test]
fn calls_are_limited_per_user_over_all_connections() {
    let mut world = World::new();
    world.configure("max_connections_per_user = 27\n"); // 108 calls
    world.device.start();
    world.device.wait_for("active");
    let (first, second) = (Grpc::connect(&world.device), Grpc::connect(&world.device));
    let mut held: Vec<Call<'_>> = (0..100).map(|_| first.call("FetchX509Bundles")).collect();
    held.extend((0..8).map(|_| second.call("FetchX509Bundles")));
    held.iter_mut().for_each(|call| drop(call.message()));
    let (code, why) = second.call("FetchX509Bundles").end();
    assert!(code == UNAVAILABLE && why.contains("108 calls"), "{code} {why}");
    drop(held);
    world.device.wait_until("free permits", |_| {
        matches!(second.call("FetchX509Bundles").next(), Received::Message(_))
    });
    assert!(matches!(first.call("FetchX509Bundles").next(), Received::Message(_)));
}

#[test]
fn unknown_services_are_unimplemented() {
    let world = World::enrolled();
    let client = Grpc::connect(&world.device);
    for path in [
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity/SubscribeToX509SVIDs",
        "grpc.health.v1.Health/List",
        "grpc.health.v1.Health/",
        "v1/status",
        "",
    ] {
        for header in [None, Some("true")] {
            let (code, why) = client.call_of(path, header, EMPTY).end();
            assert!(code == UNIMPLEMENTED && !why.is_empty(), "{path}: {code} {why}");
        }
    }
}

/// `grpc.health.v1.HealthCheckRequest`.
fn health_of(service: &str) -> Vec<u8> {
    let length = service.len() as u8;
    if service.is_empty() {
        return EMPTY.to_vec();
    }
    [&[0, 0, 0, 0, length + 2, 0x0a, length], service.as_bytes()].concat()
}

/// `grpc.health.v1.HealthCheckResponse`.
const SERVING: &[u8] = &[0x08, 1];
const NOT_SERVING: &[u8] = &[0x08, 2];
const SERVICE_UNKNOWN: &[u8] = &[0x08, 3];

#[test]
fn health_is_readiness() {
    let mut world = World::new();
    world.mis.stop_listening().unwrap();
    world.device.start();
    let client = Grpc::connect(&world.device);
    let check = |service: &str| client.call_of("grpc.health.v1.Health/Check", None, &health_of(service));
    let watch = |service: &str| client.call_of("grpc.health.v1.Health/Watch", None, &health_of(service));
    let mut watches = ["", "SpiffeWorkloadAPI"].map(watch);
    for watch in &mut watches {
        assert_eq!(watch.message(), NOT_SERVING);
    }
    let mut unknown = watch("other");
    assert_eq!(unknown.message(), SERVICE_UNKNOWN);
    let mut not_ready = check("");
    assert_eq!((not_ready.message().as_slice(), not_ready.end().0), (NOT_SERVING, OK));

    world.mis.resume().unwrap();
    for watch in &mut watches {
        assert_eq!(watch.message(), SERVING);
    }
    assert_eq!(world.device.get("/readyz").unwrap().0, 200);
    for service in ["", "SpiffeWorkloadAPI"] {
        let mut ready = check(service);
        assert_eq!((ready.message().as_slice(), ready.end().0), (SERVING, OK), "{service}");
    }
    for service in ["other", "spiffeworkloadapi"] {
        let (code, why) = check(service).end();
        assert!(code == NOT_FOUND && why.contains("SpiffeWorkloadAPI"), "{code} {why}");
    }
    for malformed in [&b"\0\0\0\0\x01\x0a"[..], b"\0\0\0\0\x03\x0a\x01\xff"] {
        let (code, why) = client.call_of("grpc.health.v1.Health/Check", None, malformed).end();
        assert!(code == INVALID_ARGUMENT && why.contains("HealthCheckRequest"), "{code} {why}");
    }
    unknown.is_quiet();
    world.device.signal("TERM");
    for watch in &mut watches {
        assert_eq!(watch.end().0, UNAVAILABLE);
    }
    assert!(world.device.wait_for_exit().success());
}

#[test]
fn health_ends_with_the_svid_and_with_the_bundle() {
    let short = World::with(|settings| settings.policy.svid_lifetime = Duration::from_secs(20));
    let long = World::with(|settings| world::long_enough(&mut settings.policy));
    for (mut world, fault) in [(short, Fault::Status(503)), (long, Fault::Document(DocumentFault::EmptyKeys))]
    {
        world.device.start();
        world.device.wait_for("active");
        let client = Grpc::connect(&world.device);
        let mut watch = client.call_of("grpc.health.v1.Health/Watch", None, EMPTY);
        assert_eq!(watch.message(), SERVING);
        for endpoint in [Endpoint::Bundle, Endpoint::Enrollment, Endpoint::Renewal] {
            world.mis.sticky_fault(endpoint, fault.clone());
        }
        assert_eq!(watch.message(), NOT_SERVING);
        assert_eq!(world.device.get("/readyz").unwrap().0, 503);
    }
}

/// A response that comes before the request was sent is an error for some clients, libcurl among
/// them.
#[test]
fn refusal_is_sent_after_the_request_was_read() {
    let world = World::enrolled();
    for (path, header) in [
        ("/SpiffeWorkloadAPI/FetchX509SVID", "false"),
        ("/SpiffeWorkloadAPI/Nothing", "true"),
        ("/other.Service/Method", "true"),
    ] {
        // After a second without the rest of a request it is refused as it is, which is not the
        // subject here.
        let (early, kinds) = (0..20)
            .find_map(|_| in_two_pieces(&world.device, path, header))
            .expect("a machine on which two writes are less than a second apart");
        assert!(early.is_empty(), "{path}: a response before the request has ended: {early:?}");
        assert_eq!(kinds, [1], "{path}: HEADERS, and no RST_STREAM behind it");
    }
}

/// The types of frames on a stream before and after the request's end was sent. `None` if there was
/// too much time between.
fn in_two_pieces(device: &Device, path: &str, header: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut peer = net::UnixStream::connect(device.path("run/agent.sock")).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let ping = frame(6, 0, 0, b"12345678");
    let begin = [PREFACE, &frame(4, 0, 0, b""), &frame(1, 4, 1, &headers(path, header)), &ping].concat();
    let began = Instant::now();
    peer.write_all(&begin).unwrap();
    let early = kinds_before_pong(&mut peer);
    peer.write_all(&frame(0, 1, 1, EMPTY)).unwrap();
    let is_in_time = began.elapsed() < Duration::from_millis(900);
    let mut kinds = Vec::new();
    while !kinds.contains(&1) {
        peer.write_all(&ping).unwrap();
        kinds.extend(kinds_before_pong(&mut peer));
    }
    peer.write_all(&ping).unwrap(); // what follows at once
    kinds.extend(kinds_before_pong(&mut peer));
    is_in_time.then_some((early, kinds))
}

/// The types of the frames on stream 1 that come before the acknowledgement of a PING, except
/// window updates.
fn kinds_before_pong(peer: &mut net::UnixStream) -> Vec<u8> {
    let mut kinds = Vec::new();
    loop {
        let mut head = [0; 9];
        peer.read_exact(&mut head).expect("another frame");
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        peer.read_exact(&mut payload).expect("a whole frame");
        match (kind, stream) {
            (6, _) if flags == 1 => return kinds,
            (8, _) => {}
            (_, [0, 0, 0, 1]) => kinds.push(kind),
            _ => {}
        }
    }
}

pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A gRPC client with one connection.
pub(crate) struct Grpc {
    runtime: Runtime,
    requests: SendRequest<Full<Bytes>>,
}

/// One call of a [`Grpc`] client.
pub(crate) struct Call<'a> {
    runtime: &'a Runtime,
    head: HeaderMap,
    body: Incoming,
    read: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Message(Vec<u8>),
    End(u32, String),
}

/// A message without a field, with its length.
pub(crate) const EMPTY: &[u8] = b"\0\0\0\0\0";

impl Grpc {
    pub(crate) fn connect(device: &Device) -> Self {
        let runtime = runtime();
        let requests = runtime.block_on(async {
            let stream = UnixStream::connect(device.path("run/agent.sock")).await.unwrap();
            let (requests, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            requests
        });
        Self { runtime, requests }
    }

    pub(crate) fn call(&self, method: &str) -> Call<'_> {
        self.call_with(method, Some("true"), EMPTY)
    }

    pub(crate) fn call_with(&self, method: &str, header: Option<&str>, body: &[u8]) -> Call<'_> {
        self.call_of(&format!("SpiffeWorkloadAPI/{method}"), header, body)
    }

    /// Calls a method of any service.
    pub(crate) fn call_of(&self, path: &str, header: Option<&str>, body: &[u8]) -> Call<'_> {
        let request = Request::post(format!("http://agent/{path}"));
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        let request =
            header.into_iter().fold(request, |request, value| request.header("workload.spiffe.io", value));
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
        let mut requests = self.requests.clone();
        let response =
            self.runtime.block_on(async { timeout(PATIENCE, requests.send_request(request)).await });
        let (head, body) = response.expect("a response in time").unwrap().into_parts();
        assert_eq!(head.status, 200);
        assert_eq!(head.headers["content-type"], "application/grpc");
        Call { runtime: &self.runtime, head: head.headers, body, read: Vec::new() }
    }

    /// Returns a stream on which the key has come: the agent has read its configuration.
    pub(crate) fn wait_for_key(&self, device: &Device) -> Call<'_> {
        let mut stream = None;
        device.wait_until("the key is sent", |_| {
            let mut call = self.call("FetchX509SVID");
            let is_sent = matches!(call.next(), Received::Message(_));
            stream = Some(call);
            is_sent
        });
        stream.unwrap()
    }
}

impl Call<'_> {
    pub(crate) fn next(&mut self) -> Received {
        self.next_within(PATIENCE).expect("a message or the end in time")
    }

    pub(crate) fn message(&mut self) -> Vec<u8> {
        match self.next() {
            Received::Message(message) => message,
            end => panic!("{end:?}"),
        }
    }

    /// The status that ends the call.
    pub(crate) fn end(&mut self) -> (u32, String) {
        match self.next() {
            Received::End(code, why) => (code, why),
            message => panic!("{message:?}"),
        }
    }

    pub(crate) fn is_quiet(&mut self) {
        assert_eq!(self.next_within(QUIET), None);
    }

    fn next_within(&mut self, limit: Duration) -> Option<Received> {
        if let Some(end) = end_in(&self.head) {
            return Some(end);
        }
        let (body, read) = (&mut self.body, &mut self.read);
        let next = async {
            loop {
                if let Some((&[0, a, b, c, d], rest)) = read.split_first_chunk::<5>() {
                    let length = u32::from_be_bytes([a, b, c, d]) as usize;
                    if let Some(message) = rest.get(..length) {
                        let message = message.to_vec();
                        read.drain(..5 + length);
                        return Received::Message(message);
                    }
                }
                let frame = body.frame().await.expect("a status at the end").unwrap();
                match frame.into_data() {
                    Ok(data) => read.extend_from_slice(&data),
                    Err(frame) => {
                        return end_in(frame.trailers_ref().unwrap()).expect("a status in the trailers");
                    }
                }
            }
        };
        self.runtime.block_on(async { timeout(limit, next).await }).ok()
    }
}

fn end_in(headers: &HeaderMap) -> Option<Received> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    Some(Received::End(text("grpc-status")?.parse().unwrap(), text("grpc-message").unwrap_or_default()))
}
