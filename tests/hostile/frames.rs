//! Frames and pieces that earn no response: each connection has a budget for them.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::agent::{Device, PATIENCE, pause};
use crate::support::http2::{PREFACE, frame, headers, receive};
use crate::usage::{processor_time, processor_time_of_loop, threads};
use crate::world::World;

const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;
const BUNDLES: &str = "/SpiffeWorkloadAPI/FetchX509Bundles";

fn connect(device: &Device, socket: &str) -> UnixStream {
    let stream = UnixStream::connect(device.path(socket)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends all of this as fast as it is taken, and reads what comes. Returns what was read, and
/// whether the agent closed the connection.
fn exchange(stream: &mut UnixStream, mut rest: &[u8]) -> (Vec<u8>, bool) {
    stream.set_nonblocking(true).unwrap();
    let (mut received, mut part, deadline) = (Vec::new(), vec![0; 65_536], Instant::now() + PATIENCE);
    let mut quiet_since = Instant::now();
    while Instant::now() < deadline {
        let mut is_quiet = true;
        match stream.write(rest) {
            Ok(written) => {
                is_quiet &= rest.is_empty();
                rest = &rest[written..];
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(_) => rest = &[], // what was sent before may still be there to be read
        }
        match stream.read(&mut part) {
            Ok(0) => return (received, true),
            Ok(read) => {
                is_quiet = false;
                received.extend(&part[..read]);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return (received, true),
        }
        if !is_quiet {
            quiet_since = Instant::now();
        } else if rest.is_empty() && quiet_since.elapsed() > Duration::from_secs(5) {
            return (received, false);
        } else {
            thread::sleep(Duration::from_millis(1));
        }
    }
    panic!("neither an end nor quiet");
}

/// A call of the Workload API without the end of its request.
fn begin_call(stream: u32) -> Vec<u8> {
    frame(1, END_HEADERS, stream, &headers(BUNDLES, "true"))
}

#[test]
fn frames_without_a_response_end_their_connection() {
    let world = World::enrolled();
    let device = &world.device;
    let resets: Vec<u8> = (1..10_000)
        .step_by(2)
        .flat_map(|stream| [begin_call(stream), frame(3, 0, stream, &8_u32.to_be_bytes())].concat())
        .collect();
    for (name, begin, flood) in [
        ("PING", vec![], frame(PING, 0, 0, b"12345678").repeat(20_000)),
        ("PING acknowledged that was not sent", vec![], frame(PING, 1, 0, b"12345678").repeat(20_000)),
        ("WINDOW_UPDATE", vec![], frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()).repeat(20_000)),
        ("SETTINGS", vec![], frame(SETTINGS, 0, 0, b"\0\x04\0\0\xff\xff").repeat(20_000)),
        ("PRIORITY", vec![], frame(2, 0, 1, b"\0\0\0\0\x10").repeat(20_000)),
        ("unknown", vec![], frame(0x42, 0, 0, b"").repeat(20_000)),
        ("large and unknown", vec![], frame(0x42, 0, 0, &[0; 16_000]).repeat(500)),
        ("empty DATA", begin_call(1), frame(0, 0, 1, b"").repeat(20_000)),
        ("CONTINUATION", frame(1, 0, 1, b""), frame(9, 0, 1, b"").repeat(20_000)),
        ("RST_STREAM", vec![], resets),
        (
            "WINDOW_UPDATE of a stream",
            begin_call(1),
            frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\x01").repeat(20_000),
        ),
    ] {
        let used = processor_time(device);
        let mut stream = connect(device, "run/agent.sock");
        let (received, has_ended) =
            exchange(&mut stream, &[PREFACE, &frame(SETTINGS, 0, 0, b""), &begin, &flood].concat());
        assert!(has_ended, "{name}");
        let used = processor_time(device) - used;
        assert!(used < Duration::from_millis(500), "{name}: {used:?}");
        if name == "PING" {
            let mut received = &received[..];
            let frames: Vec<_> = std::iter::from_fn(|| receive(&mut received)).collect();
            let pongs = frames.iter().filter(|frame| frame.kind == PING && frame.flags == 1).count();
            assert!(pongs <= 600, "{pongs}");
            let goaway = frames.last().unwrap();
            assert!(goaway.kind == GOAWAY && goaway.payload[4..8] == [0, 0, 0, 11], "{goaway:?}");
        }
    }
    let log = device.log();
    assert_eq!(log.matches("more came in than the responses").count(), 1, "once a minute: {log}");
}

/// Two updates of windows and a ping for each message, a cancellation for each call: what libraries
/// of gRPC send.
#[test]
fn frames_of_ordinary_clients_are_within_the_budget() {
    let world = World::enrolled();
    let mut stream = connect(&world.device, "run/agent.sock");
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, b"")].concat()).unwrap();
    let until_message = |stream: &mut UnixStream, id: u32| loop {
        let frame = receive(stream).expect("a message");
        assert_ne!(frame.kind, GOAWAY, "{frame:?}");
        if (frame.kind, frame.stream) == (0, id) {
            return;
        }
    };
    // One after the other, and as many as there may be at once, every write a piece of its own.
    for id in (1..2000).step_by(2) {
        for piece in [begin_call(id), frame(0, END_STREAM, id, b"\0\0\0\0\0")] {
            stream.write_all(&piece).unwrap();
        }
        until_message(&mut stream, id);
        for piece in [
            frame(WINDOW_UPDATE, 0, 0, &20_000_u32.to_be_bytes()),
            frame(WINDOW_UPDATE, 0, id, &20_000_u32.to_be_bytes()),
            frame(PING, 0, 0, b"12345678"),
            frame(3, 0, id, &8_u32.to_be_bytes()),
        ] {
            stream.write_all(&piece).unwrap();
        }
    }
    for round in 0..3 {
        let ids: Vec<u32> = (0..100).map(|call| 2001 + 200 * round + 2 * call).collect();
        for id in &ids {
            stream.write_all(&begin_call(*id)).unwrap();
            stream.write_all(&frame(0, END_STREAM, *id, b"\0\0\0\0\0")).unwrap();
        }
        let mut missing = ids.clone();
        while !missing.is_empty() {
            let frame = receive(&mut stream).unwrap_or_else(|| panic!("round {round}, without {missing:?}"));
            assert_ne!(frame.kind, GOAWAY, "{frame:?}");
            // One that comes before those that were cancelled are gone may be refused.
            let is_response =
                [0, 3].contains(&frame.kind) || frame.kind == 1 && frame.flags & END_STREAM != 0;
            missing.retain(|id| !is_response || frame.stream != *id);
        }
        stream.write_all(&frame(WINDOW_UPDATE, 0, 0, &200_000_u32.to_be_bytes())).unwrap();
        for id in &ids {
            stream.write_all(&frame(3, 0, *id, &8_u32.to_be_bytes())).unwrap();
        }
    }
    // A ping a second and more, for long: as keep-alives of clients are.
    stream.write_all(&frame(PING, 0, 0, b"87654321").repeat(100)).unwrap();
    let pongs = std::iter::from_fn(|| receive(&mut stream)).filter(|frame| frame.payload == b"87654321");
    assert_eq!(pongs.take(100).count(), 100);
    assert!(!world.device.log().contains("more came in than the responses"), "{}", world.device.log());
}

#[test]
fn body_in_tiny_chunks_is_refused() {
    let world = World::enrolled();
    for (socket, path, status) in [
        ("run/agent.sock", "/v1/identities/device/renew", "403"),
        ("run/sign.sock", "/v1/sign", "400"),
        ("run/admin.sock", "/v1/identities/device/renew", "400"),
    ] {
        let used = processor_time(&world.device);
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
        let chunks = "1\r\n \r\n".repeat(300_000);
        let (received, has_ended) =
            exchange(&mut connect(&world.device, socket), (head + &chunks).as_bytes());
        let received = String::from_utf8_lossy(&received);
        assert!(has_ended && received.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {received}");
        assert!(received.contains("connection: close"), "{received}");
        let used = processor_time(&world.device) - used;
        assert!(used < Duration::from_millis(500), "{path}: {used:?}");
    }
}

#[test]
fn empty_lines_end_the_connection() {
    let world = World::enrolled();
    for (line, after) in [("\r\n", ""), ("\n", ""), ("\r\n", "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")] {
        let used = processor_time(&world.device);
        let sent = after.to_owned() + &line.repeat(2_000_000);
        let (_, has_ended) = exchange(&mut connect(&world.device, "run/agent.sock"), sent.as_bytes());
        assert!(has_ended, "{line:?} {after}");
        let used = processor_time(&world.device) - used;
        assert!(used < Duration::from_millis(500), "{line:?} {after}: {used:?}");
    }
}

/// Requests are served in their order, and read as far as their responses are taken.
#[test]
fn pipelined_requests_that_are_read_cost_no_budget() {
    let world = World::enrolled();
    let sent = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".repeat(5_000) + "GET /healthz HTTP/1.0\r\n\r\n";
    let (received, has_ended) = exchange(&mut connect(&world.device, "run/agent.sock"), sent.as_bytes());
    let responses = String::from_utf8(received).unwrap().matches("{\"live\":true}").count();
    assert!(has_ended && responses == 5_001, "{responses}");
}

/// Many connections, each kept full for as long as it lives: neither the event loop nor other
/// sockets are delayed.
#[test]
fn frames_of_many_clients_do_not_delay_the_event_loop() {
    const CLIENTS: usize = 400;
    let world = World::enrolled_with("max_connections = 1024\n");
    let device = &world.device;
    for name in ["agent.sock", "sign.sock", "admin.sock"] {
        assert!(threads(device).contains(&name.to_owned()), "{:?}", threads(device));
    }
    let (used, used_by_loop) = (processor_time(device), processor_time_of_loop(device));
    let flood =
        [PREFACE, &frame(SETTINGS, 0, 0, b""), &frame(PING, 0, 0, b"12345678").repeat(5_000)].concat();
    let mut clients: Vec<(UnixStream, &[u8])> = (0..CLIENTS)
        .map(|_| {
            let stream = connect(device, "run/agent.sock");
            stream.set_nonblocking(true).unwrap();
            (stream, &flood[..])
        })
        .collect();
    let (mut part, mut responses) = (vec![0; 65_536], 0);
    let deadline = Instant::now() + PATIENCE;
    while !clients.is_empty() {
        assert!(Instant::now() < deadline, "{} are served on", clients.len());
        clients.retain_mut(|(stream, rest)| {
            if let Ok(written) = stream.write(rest) {
                *rest = &rest[written..];
            }
            match stream.read(&mut part) {
                Ok(read) => read > 0,
                Err(e) => e.kind() == ErrorKind::WouldBlock,
            }
        });
        responses +=
            u32::from(device.request_at("run/admin.sock", "GET /healthz HTTP/1.0\r\n\r\n").is_some());
        pause();
    }
    assert!(responses > 0);
    let each = (processor_time(device) - used) / CLIENTS as u32;
    assert!(each < Duration::from_millis(20), "{each:?} for each connection");
    let by_loop = processor_time_of_loop(device) - used_by_loop;
    assert!(by_loop < Duration::from_secs(1), "the event loop's own work: {by_loop:?}");
}

#[test]
fn new_connection_gives_no_new_budget() {
    let mut world = World::new();
    world.configure("max_connections_per_user = 1\n");
    world.device.start();
    world.device.wait_for("active");
    let flood =
        [PREFACE, &frame(SETTINGS, 0, 0, b""), &frame(PING, 0, 0, b"12345678").repeat(2_000)].concat();
    let health = || world.device.get("/healthz").unwrap().0;
    let is_held = |_| {
        assert!(exchange(&mut connect(&world.device, "run/agent.sock"), &flood).1);
        health() == 503
    };
    // Ten seconds may pass between the two on a busy machine, though not every time.
    assert!((0..20).any(is_held), "its permit is free at once");
    world.device.wait_until("the permit", |_| health() == 200);
}
