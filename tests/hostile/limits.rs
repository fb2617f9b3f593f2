//! The limits of connections and the unit's limits of memory fit each other: whatever peers do
//! within the ones, the agent does not meet the others.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::agent::Device;
use crate::support::http2::{PREFACE, frame, headers};
use crate::usage::{memory, threads};
use crate::world::World;

const SOCKETS: [&str; 3] = ["run/agent.sock", "run/sign.sock", "run/admin.sock"];
/// `socket.max_connections`, and how many of them may have 100 calls each; one user has 16 of
/// these.
const CONNECTIONS: u64 = 256;
const FULL: u64 = CONNECTIONS / 8;
const FULL_OF_USER: u64 = 16;
/// What the kernel holds for a peer that reads nothing: twice 32 KiB, and one message more.
const SEND_BUFFER: u64 = 68;

/// As many calls of the Workload API on one connection as there may be, by a client that takes no
/// byte of a response.
fn calls_without_a_window() -> Vec<u8> {
    let mut said = PREFACE.to_vec();
    said.extend(frame(4, 0, 0, b"\0\x04\0\0\0\0")); // SETTINGS_INITIAL_WINDOW_SIZE: 0
    for stream in (1..256).step_by(2) {
        said.extend(frame(1, 4, stream, &headers("/SpiffeWorkloadAPI/FetchX509Bundles", "true")));
        said.extend(frame(0, 1, stream, b"\0\0\0\0\0"));
    }
    said
}

/// The memory in KiB of a connection on which this is sent and nothing read, with `on_each`
/// connections on each socket.
fn cost(on_each: u64, sent: &[u8]) -> u64 {
    let mut world = World::new();
    world.configure("max_connections_per_user = 256\n");
    world.device.start();
    world.device.wait_for("active");
    let idle = settled_memory(&world.device);
    let mut held = Vec::new();
    for socket in SOCKETS {
        for _ in 0..on_each {
            let mut stream = UnixStream::connect(world.device.path(socket)).unwrap();
            stream.set_nonblocking(true).unwrap();
            let _ = stream.write(sent); // not all of it goes out, where nothing is read
            held.push(stream);
        }
    }
    let taken = settled_memory(&world.device).saturating_sub(idle);
    assert!(threads(&world.device).len() < 32, "{:?}", threads(&world.device));
    drop(held);
    taken / (SOCKETS.len() as u64 * on_each) + 1
}

/// Memory once it has not grown for a while.
fn settled_memory(device: &Device) -> u64 {
    let (mut most, mut since) = (memory(device), Instant::now());
    while since.elapsed() < Duration::from_secs(2) {
        thread::sleep(Duration::from_millis(100));
        if memory(device) > most {
            (most, since) = (memory(device), Instant::now());
        }
    }
    most
}

#[test]
fn memory_limit_fits_the_connection_limits() {
    let head = [&b"GET / HTTP/1.1\r\nhost: x\r\na: "[..], &b"b".repeat(15 * 1024)].concat();
    let of_http1 = [
        b"GET /v1/watch HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000),
        head,
    ];
    let of_http1 = of_http1.iter().map(|sent| cost(CONNECTIONS, sent)).max().unwrap();
    let full = cost(FULL_OF_USER, &calls_without_a_window());
    let of_all = cost(CONNECTIONS, &calls_without_a_window());
    // Of these, 16 on each socket were full ones.
    let narrow = (of_all * CONNECTIONS).saturating_sub(full * FULL_OF_USER) / (CONNECTIONS - FULL_OF_USER);
    let on_each = FULL * full + (CONNECTIONS - FULL) * narrow.max(of_http1) + CONNECTIONS * SEND_BUFFER;
    let all = SOCKETS.len() as u64 * on_each / 1024;
    println!("HTTP/1.1 {of_http1} KiB, HTTP/2 {narrow} and {full} KiB each: {all} MiB");
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/miaf-agent.service");
    let unit = fs::read_to_string(unit).unwrap();
    let limit = unit.lines().find_map(|line| line.strip_prefix("MemoryHigh=")?.strip_suffix('M')).unwrap();
    let limit: u64 = limit.parse().unwrap();
    assert!(all + 16 < limit, "{all} MiB, and {limit} are allowed");
    // A build with optimisation takes less; that the limits are far too high would be seen here,
    // too.
    assert!(limit < 4 * all, "{all} MiB, and {limit} are allowed");
}
