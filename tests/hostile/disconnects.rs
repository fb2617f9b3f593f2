//! Peers that leave, and peers that only stop sending: the first hold no permit, the second get
//! their responses.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::agent::{Device, PATIENCE};
use crate::support::http2::{PREFACE, frame, headers, receive};
use crate::world::World;

const SIGN: &str = "run/sign.sock";
const READ: &str = "run/agent.sock";
const WATCH: &str = "GET /v1/watch HTTP/1.1\r\nhost: x\r\n\r\n";

fn say(device: &Device, socket: &str, said: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(device.path(socket)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(said).unwrap();
    stream
}

/// Reads until `holds` is true of what has come.
fn hear(stream: &mut UnixStream, mut holds: impl FnMut(&str) -> bool) -> String {
    let (mut heard, mut part) = (String::new(), [0; 4096]);
    while !holds(&heard) {
        let read = match stream.read(&mut part) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue, // stopped and continued (signal(7))
            read => read.expect("more to hear"),
        };
        assert!(read > 0, "the end after {heard:?}");
        heard += &String::from_utf8_lossy(&part[..read]);
    }
    heard
}

fn sign_request(version: &str) -> String {
    let body = json!({ "algorithm": "ES256", "digest": "x".repeat(43) + "=" }).to_string();
    let body = body.replace(&"x".repeat(43), &"A".repeat(43));
    format!("POST /v1/sign HTTP/{version}\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Checks that peers which leave release their permits: as many connections as a user may have are
/// taken by peers that then leave, and the next is served, long before the keep-alive of
/// `/v1/watch` (300 s). `begins` reads the begin of a response, and returns whether it is the
/// expected one.
fn check_release(
    world: &World,
    name: &str,
    socket: &str,
    said: &[u8],
    begins: impl Fn(&mut UnixStream) -> bool,
    leave: fn(UnixStream) -> Option<UnixStream>,
) {
    let device = &world.device;
    let health = |device: &Device| {
        let response = device.request_at(socket, "GET /healthz HTTP/1.0\r\n\r\n");
        response.map(|(status, _)| status)
    };
    // One may be refused while the permit of an earlier one is being released.
    let (mut peers, since) = (Vec::new(), Instant::now());
    while peers.len() < 4 {
        let mut peer = say(device, socket, said);
        if begins(&mut peer) {
            peers.push(peer);
        }
        assert!(since.elapsed() < PATIENCE, "{name}: only {} have a permit", peers.len());
    }
    assert_eq!(health(device), Some(503), "{name}: every permit is taken");
    let _kept: Vec<_> = peers.into_iter().filter_map(leave).collect();
    device.wait_until(name, |device| health(device) == Some(200));
}

fn close(stream: UnixStream) -> Option<UnixStream> {
    drop(stream);
    None
}

fn shut_down(stream: UnixStream) -> Option<UnixStream> {
    stream.shutdown(Shutdown::Both).unwrap();
    Some(stream)
}

fn shut_down_one_by_one(stream: UnixStream) -> Option<UnixStream> {
    stream.shutdown(Shutdown::Write).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    stream.shutdown(Shutdown::Read).unwrap();
    Some(stream)
}

#[test]
fn peers_that_left_hold_no_permit() {
    let mut world = World::new();
    world.configure("max_connections_per_user = 4\n");
    world.device.start();
    world.device.wait_for("active");
    let watching = |stream: &mut UnixStream| {
        hear(stream, |heard| heard.contains("\"status\"")).starts_with("HTTP/1.1 200")
    };
    let leaving: [fn(UnixStream) -> Option<UnixStream>; 3] = [close, shut_down, shut_down_one_by_one];
    for leave in leaving {
        for behind in ["", "x", "GET /v1/svid HTTP/1.1\r\nhost: x\r\n\r\n", &"\r\n".repeat(9000)] {
            let said = format!("{WATCH}{behind}");
            check_release(
                &world,
                &format!("subscribers with {} bytes behind", behind.len()),
                READ,
                said.as_bytes(),
                watching,
                leave,
            );
        }
        let call = [
            PREFACE,
            &frame(4, 0, 0, b""),
            &frame(1, 4, 1, &headers("/SpiffeWorkloadAPI/FetchX509Bundles", "true")),
            &frame(0, 1, 1, b"\0\0\0\0\0"),
            &frame(0x42, 0, 0, b"behind"),
            b"\0\0",
        ]
        .concat();
        let streaming =
            |stream: &mut UnixStream| std::iter::from_fn(|| receive(stream)).any(|frame| frame.kind == 0);
        check_release(&world, "streams of gRPC with data behind", READ, &call, streaming, leave);
    }
    // Signatures that wait for a TPM that does not respond.
    world.tpm.signal("STOP");
    let said = sign_request("1.1") + "x";
    check_release(&world, "peers that wait for a signature", SIGN, said.as_bytes(), |_| true, close);
    let stays = say(&world.device, SIGN, sign_request("1.0").as_bytes());
    world.tpm.signal("CONT");
    let mut stays = stays;
    assert!(hear(&mut stays, |heard| heard.contains("\"signature\"")).starts_with("HTTP/1.0 200"));
    let signed = world.device.log().matches("audit=\"sign\"").count();
    assert!(signed <= 2, "abandoned signatures are not made: {signed}");
}

#[test]
fn half_closed_peers_get_their_response() {
    let world = World::enrolled();
    let half_closed = |socket: &str, said: &str| {
        let mut stream = say(&world.device, socket, said.as_bytes());
        stream.shutdown(Shutdown::Write).unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).unwrap(); // the agent closes in the end
        heard
    };
    for version in ["1.0", "1.1"] {
        for _ in 0..30 {
            let signed = half_closed(SIGN, &sign_request(version));
            assert!(signed.contains(" 200 ") && signed.contains("\"signature\""), "{signed:?}");
            for path in ["/v1/status", "/v1/svid", "/v1/bundle", "/metrics", "/healthz"] {
                let read = half_closed(READ, &format!("GET {path} HTTP/{version}\r\nhost: x\r\n\r\n"));
                assert!(read.contains(" 200 "), "{path}: {read:?}");
            }
        }
        let refused = half_closed(READ, &sign_request(version));
        assert!(refused.contains(" 403 "), "{refused:?}");
        let torn = half_closed(SIGN, &sign_request(version).replace("==", "").replace("ES256\"", "ES256"));
        assert!(torn.contains(" 400 "), "{torn:?}");
    }
    // All of several that are sent at once, and an admin command.
    let three = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".repeat(3);
    assert_eq!(half_closed(READ, &three).matches("HTTP/1.1 200").count(), 3);
    let accepted =
        half_closed("run/admin.sock", "POST /v1/retry HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
    assert!(accepted.contains(" 202 "), "{accepted:?}");
}

#[test]
fn half_closed_subscribers_get_events() {
    let world = World::renewing();
    let mut subscriber = say(&world.device, READ, WATCH.as_bytes());
    subscriber.shutdown(Shutdown::Write).unwrap();
    hear(&mut subscriber, |heard| heard.matches("event: state").count() >= 3);

    let mut stream = say(&world.device, READ, &[PREFACE, &frame(4, 0, 0, b"")].concat());
    stream.write_all(&frame(1, 4, 1, &headers("/SpiffeWorkloadAPI/FetchX509Bundles", "true"))).unwrap();
    stream.write_all(&frame(0, 1, 1, b"\0\0\0\0\0")).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    while receive(&mut stream).expect("a message").kind != 0 {}
    // A call that ends is the last one, and so is the connection.
    let mut stream = say(&world.device, READ, &[PREFACE, &frame(4, 0, 0, b"")].concat());
    stream.write_all(&frame(1, 5, 1, &headers("/other.Service/Method", "true"))).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let frames: Vec<_> = std::iter::from_fn(|| receive(&mut stream)).map(|frame| frame.kind).collect();
    assert!(frames.contains(&1), "{frames:?}");
}

/// As load balancers and simple clients send them.
#[test]
fn health_is_served_to_http_1_0_without_a_host() {
    let world = World::enrolled();
    for request in [
        "GET /healthz HTTP/1.0\r\n\r\n",
        "GET /healthz HTTP/1.0\n\n",
        "HEAD /healthz HTTP/1.0\r\n\r\n",
        "GET http://agent/healthz HTTP/1.0\r\n\r\n",
        "HEAD http://agent/healthz HTTP/1.0\r\n\r\n",
        "GET http://a_host/healthz HTTP/1.0\r\n\r\n",
        "GET /healthz HTTP/1.0\r\nHost:\r\n\r\n",
        "GET /healthz?check=1 HTTP/1.0\r\nConnection: close\r\n\r\n",
        "\r\nGET /healthz HTTP/1.0\r\nUser-Agent: x\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n",
    ] {
        let (status, body) = world.device.request(request).unwrap();
        assert_eq!(status, 200, "{request:?}");
        let body: Option<Value> = serde_json::from_str(&body).ok();
        assert_eq!(body.is_some(), request.contains("GET"), "{request:?}: {body:?}");
    }
}
