//! The client for programs on the device, and mTLS as the device with its key behind the socket: in
//! Rust and in Python, with OpenSSL's server, which validates certificates by the trust bundle.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use development_mis::AnchorStep;
use miaf_agent::client::api::{IdentityName, ProblemCode, Protection, State, StateEvent};
use miaf_agent::client::wfm::{ConnectError, Connector, Ended};
use miaf_agent::client::{Client, ClientError};
use miaf_agent::spiffe::SpiffeId;
use miaf_agent::spiffe::peer::PeerError;
use miaf_agent::spiffe::svid::Chain;
use miaf_agent::time::Timestamp;
use ring::digest::{SHA256, digest};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::support::agent::PATIENCE;
use crate::support::log::Log;
use crate::support::python;
use crate::world::World;

#[path = "../../examples/mtls-client.rs"]
#[allow(dead_code, unreachable_pub)]
mod example;

const SERVER: &str = "spiffe://factory.example/wfm";

/// `openssl s_server` with an identity of the trust domain. It demands one of its clients too, and
/// shows what it got.
struct Server {
    process: Child,
    _log: Log,
    address: String,
}

impl Server {
    fn start(world: &World, name: &str) -> Self {
        let directory = world.mis.directory();
        let authority = directory.join("trust-domain/root-1.pem");
        Self::issued_by(world, name, &authority, &authority.with_extension("key"))
    }

    fn issued_by(world: &World, name: &str, authority: &Path, authority_key: &Path) -> Self {
        let path = |name: &str| world.tpm.file(name).to_str().unwrap().to_owned();
        fs::write(
            path("server.cnf"),
            format!(
                "basicConstraints = critical, CA:false\nkeyUsage = critical, digitalSignature\n\
                 extendedKeyUsage = serverAuth, clientAuth\nauthorityKeyIdentifier = keyid\n\
                 subjectAltName = {name}\n"
            ),
        )
        .unwrap();
        let openssl = |words: String| {
            let words: Vec<&str> = words.split(' ').collect();
            world.tpm.run("openssl", &words)
        };
        openssl(format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=wfm -keyout {} -out {}",
            path("server.key"),
            path("server.csr")
        ));
        openssl(format!(
            "x509 -req -days 1 -in {} -CA {} -CAkey {} -extfile {} -out {}",
            path("server.csr"),
            authority.display(),
            authority_key.display(),
            path("server.cnf"),
            path("server.pem")
        ));
        let bundle = world.device.path("state/svid/device/current/bundle.pem");
        let log = Log::new("openssl s_server", world.tpm.file("server.log"));
        let mut process = Command::new("openssl")
            .args([
                "s_server",
                "-accept",
                "127.0.0.1:0",
                "-www",
                "-tls1_3",
                "-Verify",
                "2",
                "-verify_return_error",
            ])
            .arg("-cert")
            .arg(path("server.pem"))
            .arg("-key")
            .arg(path("server.key"))
            .arg("-CAfile")
            .arg(bundle)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.to_append())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = said.by_ref().find_map(|line| line.unwrap().strip_prefix("ACCEPT ").map(str::to_owned));
        thread::spawn(move || said.for_each(drop)); // or it waits for a reader in the end
        Self { process, _log: log, address: address.expect("a server that says where it listens") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn sign_socket(world: &World) -> PathBuf {
    world.device.path("run/sign.sock")
}

/// Runs the Python example: its output, or its error.
fn in_python(world: &World, server: &str, id: &str) -> Result<String, String> {
    let mut command = Command::new(python::program("python"));
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/mtls_client.py"));
    let output = command.arg(sign_socket(world)).args([server, id]).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn in_rust(world: &World, server: &str, id: &str) -> Result<String, String> {
    example::fetch(&sign_socket(world), server, id).map_err(|e| e.to_string())
}

type Example = fn(&World, &str, &str) -> Result<String, String>;
const EXAMPLES: [Example; 2] = [in_rust, in_python];

#[test]
fn examples_authenticate_as_the_device_across_rotations() {
    let world = World::renewing();
    let server = Server::start(&world, &format!("URI:{SERVER}"));
    for rotation in 0..3 {
        for (number, example) in EXAMPLES.iter().enumerate() {
            let response = example(&world, &server.address, SERVER);
            let response = response.unwrap_or_else(|e| panic!("example {number}, rotation {rotation}: {e}"));
            assert!(
                response.contains("TLSv1.3") && response.contains("Verify return code: 0 (ok)"),
                "{response}"
            );
            // What the server got, as it shows it.
            let status = world.device.status();
            let id = status["spiffeId"].as_str().unwrap();
            assert!(response.contains(&format!("URI:{id}")), "{response}");
        }
        world.device.wait_for_another_svid(&world.device.status()["svid"]["serial"]);
    }
}

#[test]
fn examples_trust_only_the_named_server() {
    let world = World::enrolled();
    for (server, says) in [
        (
            Server::start(&world, &format!("URI:{SERVER}")),
            ["NotExpected", "not spiffe://factory.example/other"],
        ),
        (
            Server::start(&world, "URI:spiffe://factory.example/other,URI:spiffe://factory.example/more"),
            ["NoSvid(UriCount(", "not spiffe://factory.example/other"],
        ),
        (Server::start(&world, "DNS:other"), ["NoSvid(UriCount(", "not spiffe://factory.example/other"]),
        // The right name from a CA that is not in the bundle: the MIS's own, say.
        (
            Server::issued_by(
                &world,
                "URI:spiffe://factory.example/other",
                &world.mis.ca_file(),
                &world.mis.ca_file().with_extension("key"),
            ),
            ["NotTrusted", "does not vouch for the server"],
        ),
    ] {
        for (example, says) in EXAMPLES.iter().zip(says) {
            let why = example(&world, &server.address, "spiffe://factory.example/other").unwrap_err();
            assert!(why.contains(says), "{says} is not in {why}");
        }
    }
}

#[test]
fn client_returns_types() {
    let world = World::enrolled();
    let agent = Client::new(world.device.path("run/agent.sock"));
    agent.ready().unwrap();
    agent.clone().with_identity(IdentityName::DEVICE).ready().unwrap();
    let (status, svid, bundle) = (agent.status().unwrap(), agent.svid().unwrap(), agent.bundle().unwrap());
    let device = status.identity(Some(&IdentityName::DEVICE)).unwrap();
    assert_eq!(status.identity(None), Some(device), "the first is the default identity");
    assert_eq!(device.state, State::Active);
    assert_eq!(device.key.protection, Some(Protection::Hardware.into()));
    assert!(device.ready && device.spiffe_id.as_ref() == Some(&svid.spiffe_id));
    assert_eq!(agent.clone().with_identity(IdentityName::DEVICE).svid().unwrap(), svid);
    let other = agent.clone().with_identity(IdentityName::parse("wfm").unwrap());
    for unknown in [other.svid().unwrap_err(), other.ready().unwrap_err()] {
        let ClientError::Refused { status: 404, code: Some(code), detail, hint: Some(_) } = &unknown else {
            panic!("{unknown:?}");
        };
        assert!(
            *code == ProblemCode::UnknownIdentity && detail == "there is no identity \"wfm\"",
            "{unknown:?}"
        );
    }
    assert_eq!(bundle.anchors.len(), 1);
    assert_eq!(
        serde_json::to_string(&bundle.document).unwrap(),
        world.device.get("/v1/bundle").unwrap().1.trim_end()
    );
    let current = device.svid.clone().unwrap();
    assert_eq!(current.serial, svid.serial);
    // The window is that of the configuration: 40 % to 60 % of the lifetime.
    let life = current.not_before.until(current.not_after).as_secs_f64();
    let window = current.renewal_window.unwrap();
    let part = |at: Timestamp| current.not_before.until(at).as_secs_f64() / life;
    assert!((part(window.from) - 0.4).abs() < 0.01 && (part(window.to) - 0.6).abs() < 0.01, "{window:?}");
    let renewal = part(current.renew_at.unwrap());
    assert!((0.39..0.61).contains(&renewal), "{renewal}");

    let refused = agent.sign(&[7; 32], None).unwrap_err();
    let ClientError::Refused { status: 403, code: Some(code), .. } = &refused else { panic!("{refused:?}") };
    assert_eq!(*code, ProblemCode::Forbidden);
    assert!(refused.hint().unwrap().contains("sign.sock") && !refused.to_string().contains("sign.sock"));
    let refused = agent.renew().unwrap_err();
    assert!(matches!(refused, ClientError::Refused { status: 403, .. }), "{refused}");
    Client::new(world.device.path("run/admin.sock")).retry().unwrap();
    let absent = Client::new(world.device.path("run/none.sock")).status().unwrap_err();
    assert!(absent.may_pass() && !absent.to_string().contains("systemctl"), "{absent}");
    assert!(absent.hint().unwrap().ends_with(": systemctl status miaf-agent"), "{absent}");
}

#[test]
fn signature_is_of_the_named_svid_until_the_second_renewal() {
    let world = World::renewing();
    let agent = Client::new(sign_socket(&world));
    let message = b"what is to be signed";
    let digest: [u8; 32] = digest(&SHA256, message).as_ref().try_into().unwrap();
    let first = agent.svid().unwrap();
    let verifies = |signature: &[u8]| {
        let chain = Chain::from_pem(&first.certificate_chain_pem).unwrap();
        let (_, leaf) = X509Certificate::from_der(&chain.certificates()[0]).unwrap();
        let point = &leaf.public_key().subject_public_key.data;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(message, signature).is_ok()
    };
    assert!(verifies(&agent.sign(&digest, Some(&first.serial)).unwrap().der));
    let mut serial = first.serial.clone().into();
    world.device.wait_for_another_svid(&serial);
    let signature = agent.sign(&digest, Some(&first.serial)).unwrap();
    assert_eq!(signature.serial, first.serial);
    assert!(verifies(&signature.der), "the previous SVID is still signed for");
    let of_current = agent.sign(&digest, None).unwrap();
    assert!(of_current.serial != first.serial && !verifies(&of_current.der));
    serial = of_current.serial.into();
    world.device.wait_for_another_svid(&serial);
    let refused = agent.sign(&digest, Some(&first.serial)).unwrap_err();
    assert!(matches!(refused, ClientError::Refused { status: 409, .. }), "{refused}");
}

#[test]
fn watch_yields_the_state_each_change_and_the_end() {
    let mut world = World::enrolled();
    let mut watch = Client::new(world.device.path("run/agent.sock")).watch().unwrap();
    let first = watch.next().unwrap().unwrap();
    assert_eq!(first.status.identities[0].state, State::Active);
    world.mis.rotate_anchors(AnchorStep::Announce).unwrap();
    let anchors = |event: &StateEvent| event.bundle.as_ref().unwrap().keys.len();
    let two = watch.by_ref().find(|event| anchors(event.as_ref().unwrap()) == 2);
    assert_eq!(two.unwrap().unwrap().svids[0].serial, first.svids[0].serial);
    world.device.stop();
    assert!(watch.all(|event| event.is_ok()), "an agent that ends well ends in no error");
    assert!(watch.next().is_none());
}

/// A server that calls this for the first connection, and a client of it.
fn serve_one(
    respond: impl FnOnce(&mut std::os::unix::net::UnixStream) + Send + 'static,
) -> (tempfile::TempDir, Client) {
    let dir = tempfile::tempdir().unwrap();
    let socket = UnixListener::bind(dir.path().join("socket")).unwrap();
    let client = Client::new(dir.path().join("socket")).with_limit(Duration::from_secs(1));
    thread::spawn(move || {
        let (mut stream, _) = socket.accept().unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request);
        respond(&mut stream);
    });
    (dir, client)
}

#[test]
fn endless_slow_or_torn_response_is_an_error() {
    const HEAD: &[u8] = b"HTTP/1.0 200 OK\r\n\r\n";
    fn without_end(stream: &mut impl std::io::Write, piece: &[u8]) {
        while stream.write_all(piece).is_ok() {}
    }
    let error = |respond: fn(&mut std::os::unix::net::UnixStream)| {
        let (_dir, client) = serve_one(respond);
        let start = Instant::now();
        let error = client.status().unwrap_err();
        assert!(start.elapsed() < PATIENCE / 2, "{error} took {:?}", start.elapsed());
        error
    };
    for (respond, says) in [
        (
            (|_| thread::sleep(PATIENCE)) as fn(&mut std::os::unix::net::UnixStream),
            "did not answer within 1s",
        ),
        (
            |stream| {
                for _ in 0..PATIENCE.as_secs() * 5 {
                    let _ = stream.write_all(b"H");
                    thread::sleep(Duration::from_millis(200));
                }
            },
            "did not answer within 1s",
        ),
        (|_| {}, "ended the connection"),
        (|stream| stream.write_all(&HEAD[..12]).unwrap(), "ended the connection half-way"),
        (|stream| without_end(stream, b"x"), "too long"),
        (|stream| without_end(stream, b"x: y\r\n"), "too long"),
        (|stream| stream.write_all(b"SSH-2.0-x\r\n\r\n").unwrap(), "not HTTP"),
        (
            |stream| {
                stream.write_all(HEAD).unwrap();
                without_end(stream, &[b' '; 4096]);
            },
            "too long",
        ),
        (
            |stream| {
                stream.write_all(HEAD).unwrap();
                stream.write_all(b"{\"state\":").unwrap();
            },
            "ended the connection half-way",
        ),
        (|stream| stream.write_all(b"HTTP/1.1 500 No\r\n\r\nno").unwrap(), "answered 500"),
    ] {
        let error = error(respond).to_string();
        assert!(error.contains(says), "{says:?} is not in {error:?}");
    }

    // An agent that ends half-way may be back soon.
    for ask in [|client| client.status().map(drop), |client| client.bundle().map(drop)]
        as [fn(&Client) -> Result<(), ClientError>; 2]
    {
        for torn in [&b""[..], b"{\"keys\":[{\"kt"] {
            let (_dir, client) = serve_one(|stream| stream.write_all(&[HEAD, torn].concat()).unwrap());
            let error = ask(&client).unwrap_err();
            assert!(matches!(error, ClientError::Broken(_)) && error.may_pass(), "{error}");
        }
    }

    // Malformed events, and one without an end.
    let (_dir, client) = serve_one(|stream| {
        stream.write_all(HEAD).unwrap();
        stream.write_all(b": well\r\nevent: other\r\ndata: {}\r\n\r\nevent: state\r\n").unwrap();
        without_end(stream, b"data: x\n");
    });
    let mut watch = client.watch().unwrap();
    let error = watch.next().unwrap().unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
    assert!(watch.next().is_none());
}

#[test]
fn client_times_out_when_the_backlog_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let _socket = UnixListener::bind(&path).unwrap();
    let client = Client::new(&path).with_limit(Duration::from_secs(1));
    // No connection is accepted: they wait until the backlog is full.
    let mut waiting = Vec::new();
    let (full, room) = std::sync::mpsc::channel();
    thread::spawn({
        let path = path.clone();
        move || {
            while let Ok(stream) = std::os::unix::net::UnixStream::connect(&path) {
                if full.send(stream).is_err() {
                    return;
                }
            }
        }
    });
    while let Ok(stream) = room.recv_timeout(Duration::from_secs(2)) {
        waiting.push(stream);
    }
    let start = Instant::now();
    let error = client.status().unwrap_err();
    assert!(matches!(error, ClientError::Silent(_)), "{error}");
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
}

#[test]
fn connection_of_a_connector_ends_at_the_renewal() {
    let world = World::enrolled();
    let server = Server::start(&world, &format!("URI:{SERVER}"));
    let (host, port) = server.address.rsplit_once(':').unwrap();
    let connector = Connector::new(Client::new(sign_socket(&world))).with_limit(PATIENCE);
    let to = |id: &str| {
        connector.clone().with_peer(SpiffeId::parse(id).unwrap()).connect(host, port.parse().unwrap())
    };
    let mut connection = to(SERVER).unwrap();
    assert_eq!(connection.peer().spiffe_id.to_string(), SERVER);
    assert!(connection.is_current());
    Client::new(world.device.path("run/admin.sock")).renew().unwrap();
    // Nothing comes from the server: it waits for a request.
    let error = connection.read(&mut [0]).unwrap_err();
    assert_eq!(connection.ended(), Some(Ended::OwnRenewal), "{error}");
    assert!(to(SERVER).unwrap().is_current());
    let error = to("spiffe://factory.example/other").unwrap_err();
    assert!(matches!(error, ConnectError::Peer(_, PeerError::NotExpected { .. })), "{error}");
    // The device is no WFM Client: there is no WFM that it could be for.
    let error = connector.connect(host, port.parse().unwrap()).unwrap_err();
    assert!(matches!(error, ConnectError::NotAWfmClient(_)), "{error}");
}
