//! Persons with many uids (subuid(5)): what is left for other users.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::json;

use crate::support::agent::Device;
use crate::support::directory::open_to_all;
use crate::support::python;
use crate::world::World;

/// Connects as other users of the agent's group, and holds the connections until it ends. Reads
/// lines `first uid, users, connections of each, socket, request in hex`, and prints for each how
/// many got a 200.
const CONNECT: &str = r#"
import os, socket, sys
held = []
for line in sys.stdin:
    first, users, each, path, request = line.rstrip("\n").split(" ", 4)
    callers, request = [], bytes.fromhex(request)
    for uid in range(int(first), int(first) + int(users)):
        os.seteuid(uid)
        for _ in range(int(each)):
            caller = socket.socket(socket.AF_UNIX)
            caller.settimeout(100)
            caller.connect(path)
            try:
                caller.sendall(request)
            except BrokenPipeError:
                pass # refused before that
            callers.append(caller)
        os.seteuid(0)
    served = 0
    for caller in callers:
        try:
            heard = caller.recv(12)
        except ConnectionResetError:
            heard = b""
        if heard.endswith(b" 200"):
            served += 1
            held.append(caller)
    print(served, flush=True)
"#;

struct Clients {
    process: Child,
    says: BufReader<ChildStdout>,
}

impl Clients {
    fn new() -> Self {
        let mut process = Command::new(python::program("python"))
            .args(["-c", CONNECT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let says = BufReader::new(process.stdout.take().unwrap());
        Self { process, says }
    }

    /// Connects as these users, and returns how many connections are served.
    fn served(
        &mut self,
        device: &Device,
        first: u32,
        users: u32,
        each: u32,
        socket: &str,
        request: &str,
    ) -> u32 {
        let path = device.path(socket);
        open_to_all(device.dir(), 0o755);
        let request: String = request.bytes().map(|byte| format!("{byte:02x}")).collect();
        let stdin = self.process.stdin.as_mut().unwrap();
        writeln!(stdin, "{first} {users} {each} {} {request}", path.display()).unwrap();
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        line.trim().parse().expect("a number")
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const WATCH: &str = "GET /v1/watch HTTP/1.1\r\nhost: x\r\n\r\n";
const READ: &str = "run/agent.sock";

#[test]
#[ignore = "needs root: callers are many users"]
fn permits_of_the_last_quarter_are_for_users_who_have_none() {
    let mut world = World::new();
    world.configure("max_connections = 40\nmax_connections_per_user = 20\n");
    world.device.start();
    world.device.wait_for("active");
    let (device, mut clients) = (&world.device, Clients::new());
    assert_eq!(clients.served(device, 100_000, 2, 20, READ, WATCH), 30, "two users have three quarters");
    assert_eq!(clients.served(device, 100_000, 2, 1, READ, WATCH), 0);
    assert_eq!(clients.served(device, 1000, 1, 3, READ, WATCH), 1, "and another has one");
    assert_eq!(
        clients.served(device, 100_002, 100, 1, READ, WATCH),
        9,
        "a person who is many users has the rest"
    );
    assert_eq!(clients.served(device, 1001, 1, 1, READ, WATCH), 0);
    // Root, and the agent's own user, who is root here: always.
    assert_eq!(clients.served(device, 0, 1, 8, READ, WATCH), 8);
    assert_eq!(device.request_at("run/admin.sock", "GET /healthz HTTP/1.0\r\n\r\n").unwrap().0, 200);
}

#[test]
#[ignore = "needs root: callers are many users"]
fn waiting_signatures_leave_room_for_others_and_root() {
    let mut world = World::enrolled_with("max_connections = 2048\n");
    let sign = {
        let body = json!({ "algorithm": "ES256", "digest": "A".repeat(43) + "=" }).to_string();
        format!("POST /v1/sign HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    let root =
        |device: &Device| device.request_at("run/sign.sock", &sign.replace("host: x", "connection: close"));
    // With a TPM that does not respond, nine users request all signatures that may wait.
    let device = &world.device;
    world.tpm.signal("STOP");
    let mut clients = Clients::new();
    let served = std::thread::scope(|scope| {
        let served = scope.spawn(|| clients.served(device, 100_000, 9, 64, "run/sign.sock", &sign));
        device.wait_until("a refusal", |device| device.log().contains("\"sign\"") || refused(device) >= 100);
        let of_root = scope.spawn(|| root(device));
        let of_another = scope.spawn(|| Clients::new().served(device, 1000, 1, 1, "run/sign.sock", &sign));
        std::thread::sleep(std::time::Duration::from_millis(500)); // they wait now
        world.tpm.signal("CONT");
        assert_eq!(of_root.join().unwrap().unwrap().0, 200);
        assert_eq!(of_another.join().unwrap(), 1);
        served.join().unwrap()
    });
    assert!((384..=395).contains(&served), "{served}");
    world.tpm.stop();
}

/// Signatures that were refused so far.
fn refused(device: &Device) -> u64 {
    let (_, metrics) = device.get("/metrics").unwrap();
    let sample = "miaf_agent_signatures_total{identity=\"device\",outcome=\"failed\"} ";
    let line = metrics.lines().find_map(|line| line.strip_prefix(sample));
    line.unwrap().parse().unwrap()
}

#[test]
#[ignore = "needs root: callers are many users"]
fn refusals_over_the_limit_are_recorded_as_such() {
    let world = World::enrolled_with("max_connections = 2048\n");
    let device = &world.device;
    let mut clients = Clients::new();
    // Peers that close at once are not logged; connections that are closed for their frames are.
    let mut flood = String::from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0");
    flood += &"\0\0\0\u{42}\0\0\0\0\0".repeat(600);
    clients.served(device, 100_000, 300, 1, READ, &flood);
    device.wait_until("the record", |device| device.log().contains("more refusals than can be recorded"));
    let log = device.log();
    assert_eq!(log.matches("more refusals than can be recorded").count(), 1, "{log}");
    assert_eq!(log.matches("connection closed: ").count(), 256, "{log}");
}
