//! TCP ports for programs that tests start.

use std::fs;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the range from which the system takes the ports of outgoing connections: a port that is
/// free stays so, unless another test takes it. Each process begins at another port, and no test of
/// a process is given what another was.
const FIRST: u32 = 20_000;
const COUNT: u32 = 12_000;

/// A free port.
pub(crate) fn free() -> u16 {
    free_in_a_row(1)
}

/// The first of `count` free ports in a row.
pub(crate) fn free_in_a_row(count: u16) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(2 * 61);
    (0..COUNT)
        .map(|_| {
            let next = NEXT.fetch_add(u32::from(count), Ordering::Relaxed);
            (FIRST + start.wrapping_add(next) % COUNT) as u16
        })
        .find(|port| (*port..port + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()))
        .expect("free ports in a row")
}

/// Whether this very process listens on the port of 127.0.0.1; another one may have been quicker.
pub(crate) fn is_of(port: u16, pid: u32) -> bool {
    const LISTENS: &str = "0A";
    let table = fs::read_to_string("/proc/net/tcp").expect("the kernel's table of TCP sockets");
    let own = |inode: &str| {
        let socket = format!("socket:[{inode}]");
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|file| file.as_os_str() == socket.as_str())
    };
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, address, _, state, _, _, _, _, _, inode, ..] = fields[..] else { return false };
        state == LISTENS && address.ends_with(&format!(":{port:04X}")) && own(inode)
    })
}
