//! gRPC libraries other than the SPIFFE ones: libcurl, which is strict about how a response ends,
//! and grpcio.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use crate::process::output_of;
use crate::support::agent::PATIENCE;
use crate::support::python;
use crate::world::World;

const ROTATIONS: usize = 2;
const REFUSALS: usize = 50;
/// A message of 1024 bytes, as gRPC has it on the wire: enough to be on its way when a response
/// comes early.
fn message() -> Vec<u8> {
    [&[0, 0, 0, 4, 0, 0x0a, 0xfd, 0x07][..], &[b'x'; 1021]].concat()
}

/// Acts with each of three identities, with a restart of the agent between the second and the
/// third.
fn over_rotations_and_a_restart(world: &mut World, mut act: impl FnMut(&World)) {
    act(world);
    for rotation in 0..ROTATIONS {
        let serial = world.device.status()["svid"]["serial"].clone();
        let output = world.device.run(&["renew"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        world.device.wait_for_another_svid(&serial);
        if rotation + 1 == ROTATIONS {
            world.device.stop();
            world.tpm.flush();
            world.device.start();
            world.device.wait_for("active");
        }
        act(world);
    }
}

/// The head of the response, and the trailers. A connection for each call: curl 7.88 of Debian 12
/// cannot use one again that is HTTP/2 without TLS (curl issue 10634).
fn curl(world: &World, path: &str, header: &str, message: &[u8]) -> String {
    let file = world.device.path("message");
    fs::write(&file, message).unwrap();
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--http2-prior-knowledge", "--max-time", "40"])
        .args(["--header", "content-type: application/grpc", "--header", "te: trailers", "--header", header])
        .args(["--dump-header", "/dev/stdout", "--output", "/dev/null"])
        .args(["--data-binary", &format!("@{}", file.display()), "--unix-socket"])
        .arg(world.device.path("run/agent.sock"))
        .arg(format!("http://agent{path}"));
    output_of(&mut command) // which must succeed
}

/// Refusals are read, and their end is no error.
#[test]
fn libcurl_reads_every_refusal() {
    let mut world = World::enrolled();
    over_rotations_and_a_restart(&mut world, |world| {
        for (path, header, status, calls) in [
            ("/SpiffeWorkloadAPI/FetchX509SVID", "workload.spiffe.io: true", 7, REFUSALS), // a key in the TPM
            ("/SpiffeWorkloadAPI/FetchX509SVID", "workload.spiffe.io: false", 3, REFUSALS / 5),
            ("/SpiffeWorkloadAPI/FetchJWTSVID", "workload.spiffe.io: true", 12, REFUSALS / 5),
            ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "x: y", 12, REFUSALS / 5),
        ] {
            for _ in 0..calls {
                let heads = curl(world, path, header, &message());
                assert!(heads.starts_with("HTTP/2 200"), "{path}: {heads}");
                assert!(heads.contains(&format!("grpc-status: {status}\r\n")), "{path}: {heads}");
            }
        }
        let health = curl(world, "/grpc.health.v1.Health/Check", "x: y", b"\0\0\0\0\0");
        assert!(health.contains("grpc-status: 0\r\n"), "{health}");
    });
}

/// curl reports how many connections it makes: one for all of the requests, whose responses have
/// the idle limit.
#[test]
fn libcurl_keeps_its_connection_over_http_1() {
    let mut world = World::enrolled();
    over_rotations_and_a_restart(&mut world, |world| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", "--dump-header", "/dev/stdout"]);
        command.args(["--write-out", "connections: %{num_connects}\n", "--unix-socket"]);
        command.arg(world.device.path("run/agent.sock"));
        for _ in 0..3 {
            command.args(["--output", "/dev/null", "http://agent/v1/svid"]);
        }
        let printed = output_of(&mut command).to_lowercase();
        let connections: Vec<&str> =
            printed.lines().filter(|line| line.starts_with("connections: ")).collect();
        assert_eq!(connections, ["connections: 1", "connections: 0", "connections: 0"], "{printed}");
        assert_eq!(printed.matches("keep-alive: timeout=").count(), 3, "{printed}");
    });
}

/// 20 streams at a time and more calls on one channel, `grpc.health.v1`, and refusals.
#[test]
fn grpcio_has_20_streams_health_and_refusals_on_one_channel() {
    let mut world = World::new();
    world.mis.stop_listening().unwrap();
    world.device.start();
    let mut client = Grpcio::start(&world);
    let response = client.ask();
    assert_eq!(response["streams"], json!(["UNAVAILABLE"]), "before the first enrollment: {response:#}");
    health_is(&response, "NOT_SERVING");
    world.mis.resume().unwrap();
    world.device.wait_for("active");
    over_rotations_and_a_restart(&mut world, |_| {
        let response = client.ask();
        assert_eq!(response["streams"], json!(["OK"]), "{response:#}");
        assert_eq!(response["key"], json!(["PERMISSION_DENIED"]));
        assert_eq!(response["withoutHeader"], json!(["INVALID_ARGUMENT"]));
        assert_eq!(response["notThere"], json!(["UNIMPLEMENTED"]));
        health_is(&response, "SERVING");
    });
}

fn health_is(response: &Value, status: &str) {
    let expected = |unknown| json!({ "": status, "SpiffeWorkloadAPI": status, "nothing": unknown });
    assert_eq!(response["check"], expected("NOT_FOUND"), "{response:#}");
    assert_eq!(response["watch"], expected("SERVICE_UNKNOWN"), "{response:#}");
}

/// `tests/clients/grpc_client.py`
struct Grpcio {
    stdin: ChildStdin,
    lines: Receiver<String>,
    process: std::process::Child,
}

impl Grpcio {
    fn start(world: &World) -> Self {
        let mut process = Command::new(python::program("python"))
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/grpc_client.py"))
            .arg(format!("unix://{}", world.device.path("run/agent.sock").display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line); // the test may be over
            }
        });
        Self { stdin, lines, process }
    }

    fn ask(&mut self) -> Value {
        self.stdin.write_all(b"\n").unwrap();
        let line = self.lines.recv_timeout(2 * PATIENCE).expect("a line in time");
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Grpcio {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
