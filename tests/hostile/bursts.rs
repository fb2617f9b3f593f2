//! Connections that are opened and closed without limit: no memory is lost to them.

use std::os::unix::net::UnixStream;
use std::thread;

use crate::support::agent::Device;
use crate::usage::{memory, peak_memory};
use crate::world::World;

const CONNECTIONS: usize = 40_000;

/// Runs `each` with many connections in several threads; then the agent has as little memory as
/// before, and never had much more.
fn memory_is_bounded_while(device: &Device, socket: &str, each: impl Fn(UnixStream) + Sync) {
    assert_eq!(device.get("/v1/status").unwrap().0, 200);
    let (idle, peak) = (memory(device), peak_memory(device));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..CONNECTIONS / 4 {
                    // It may be refused while there is no room in the backlog.
                    if let Ok(stream) = UnixStream::connect(device.path(socket)) {
                        each(stream);
                    }
                }
            });
        }
    });
    assert_eq!(device.request_at(socket, "GET /healthz HTTP/1.0\r\n\r\n").unwrap().0, 200);
    let most = peak_memory(device);
    assert!(
        most < peak.max(idle) + 32 * 1024,
        "{socket}: {idle} KiB idle, {peak} KiB before, then {most} KiB"
    );
    device.wait_until("as little memory as before", |device| memory(device) < idle + 4096);
}

#[test]
fn connections_that_are_closed_at_once_take_no_memory() {
    let world = World::enrolled();
    for socket in ["run/agent.sock", "run/sign.sock", "run/admin.sock"] {
        memory_is_bounded_while(&world.device, socket, drop);
    }
}

#[test]
fn connections_beyond_the_limit_take_no_memory() {
    let mut world = World::new();
    world.configure("max_connections = 4\nmax_connections_per_user = 2\n");
    world.device.start();
    world.device.wait_for("active");
    let socket = "run/sign.sock";
    let held = [(); 2].map(|()| UnixStream::connect(world.device.path(socket)).unwrap());
    let device = &world.device;
    let (idle, peak) = (memory(device), peak_memory(device));
    for _ in 0..CONNECTIONS {
        drop(UnixStream::connect(device.path(socket)));
    }
    assert!(peak_memory(device) < peak.max(idle) + 32 * 1024, "{idle} KiB, then {} KiB", peak_memory(device));
    drop(held);
    device.wait_until("a permit", |device| {
        device.request_at(socket, "GET /healthz HTTP/1.0\r\n\r\n").is_some_and(|(status, _)| status == 200)
    });
}
