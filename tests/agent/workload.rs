//! The SPIFFE Workload API: with other projects' clients, and byte by byte.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::pin::pin;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use development_mis::{AnchorStep, DocumentFault, Endpoint, Fault};
use futures_util::StreamExt as _;
use nix::unistd::{User, getuid};
use serde_json::{Value, json};
use spiffe::x509_source::X509Source;
use spiffe::{WorkloadApiClient, X509BundleSet, X509Context};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::grpc::{
    Call, EMPTY, Grpc, INTERNAL, INVALID_ARGUMENT, PERMISSION_DENIED, RESOURCE_EXHAUSTED, Received,
    UNAVAILABLE, UNIMPLEMENTED, runtime,
};
use crate::identities::enroll_by_hand;
use crate::support::agent::{Device, PATIENCE};
use crate::world::{self, World};

/// A device with software keys, which it sends to these users. The agent is not started.
fn world(key_users: &[&str]) -> World {
    let mut world = World::with(|settings| world::long_enough(&mut settings.policy));
    world.tpm.stop();
    configure(&world, key_users);
    world
}

fn configure(world: &World, key_users: &[&str]) {
    let config =
        world::config(&world.mis, &world.tpm, &format!("[workload_api]\nkey_users = {key_users:?}\n"));
    world.device.configure(&config.replace("[key]", "[key]\nprovider = \"software\""));
}

fn enrolled(mut world: World) -> World {
    world.device.start();
    world.device.wait_for("active");
    world
}

/// Name of the user that runs the tests.
fn myself() -> String {
    User::from_uid(getuid()).unwrap().expect("this user has a name").name
}

/// Has the agent reload its configuration, and waits until it has.
fn reload(device: &Device) {
    let times = || device.log().matches("the configuration has been read anew").count();
    let before = times();
    device.signal("HUP");
    device.wait_until("the configuration is read anew", |_| times() > before);
}

fn endpoint(device: &Device) -> String {
    format!("unix://{}", device.path("run/agent.sock").display())
}

fn command(world: &World, words: &[&str]) {
    let output = world.device.run(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Records of the key in the audit log.
fn audits(device: &Device) -> Vec<String> {
    let log = device.log();
    log.lines().filter(|line| line.contains("audit=\"key\"")).map(str::to_owned).collect()
}

#[test]
fn malformed_calls_get_the_status_of_the_standard() {
    let world = enrolled(world(&[]));
    let client = Grpc::connect(&world.device);
    let refused = |method: &str, header: Option<&str>, body: &[u8]| {
        let (code, why) = client.call_with(method, header, body).end();
        assert!(!why.is_empty(), "{method}");
        code
    };
    for method in
        ["FetchX509SVID", "FetchX509Bundles", "FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID", "Nothing"]
    {
        for header in [None, Some("false"), Some("True"), Some("")] {
            assert_eq!(refused(method, header, EMPTY), INVALID_ARGUMENT, "{method} {header:?}");
        }
    }
    for method in ["FetchJWTSVID", "ValidateJWTSVID", "FetchWITSVID", "Nothing", "", "FetchX509SVID/"] {
        assert_eq!(refused(method, Some("true"), EMPTY), UNIMPLEMENTED, "{method}");
    }
    for (body, code) in [
        (&b""[..], INTERNAL),
        (b"\0\0\0\0\x01", INTERNAL),
        (b"\0\0\0\0\0\0\0\0\0\0", INTERNAL),
        (b"\x01\0\0\0\0", UNIMPLEMENTED),
        (&[0; 5000], RESOURCE_EXHAUSTED),
    ] {
        assert_eq!(refused("FetchX509Bundles", Some("true"), body), code, "{} bytes", body.len());
    }
    // Fields that a later version of the standard may have do no harm.
    let mut call = client.call_with("FetchX509Bundles", Some("true"), b"\0\0\0\0\x03\x0a\x01x");
    assert!(matches!(call.next(), Received::Message(_)));

    let post = "POST /SpiffeWorkloadAPI/FetchX509Bundles HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                content-type: application/grpc\r\nworkload.spiffe.io: true\r\ncontent-length: 5\r\n\r\n\0\0\0\0\0";
    let (status, problem) = world.device.request(post).unwrap();
    assert!(status == 415 && problem.contains("HTTP/2"), "{status} {problem}");
    assert_eq!(world.device.get("/SpiffeWorkloadAPI/FetchX509Bundles").unwrap().0, 415);
}

#[test]
fn tpm_key_is_refused_and_bundles_are_for_everyone() {
    let mut world = World::new();
    let everyone = format!("[workload_api]\nkey_users = [\"{}\", \"{}\"]\n", myself(), getuid());
    world.configure(&everyone);
    world.device.start();
    let status = world.device.wait_for("active");
    let runtime = runtime();
    let client = runtime.block_on(WorkloadApiClient::connect_to(endpoint(&world.device))).unwrap();
    let refusal = runtime.block_on(client.fetch_x509_svid()).unwrap_err().to_string();
    assert!(refusal.contains("permission denied") && refusal.contains("TPM"), "{refusal}");
    assert!(refusal.contains("POST /v1/sign") && refusal.contains("key.pem"), "{refusal}");
    let audits = audits(&world.device);
    assert_eq!(audits.len(), 1, "{audits:?}");
    assert!(audits[0].contains("key refused") && audits[0].contains(status["spiffeId"].as_str().unwrap()));
    let mut stream = pin!(runtime.block_on(client.stream_x509_bundles()).unwrap());
    let mut next = || {
        let bundles = runtime.block_on(async { timeout(PATIENCE, stream.next()).await });
        bundles
            .expect("a bundle in time")
            .expect("a stream without an end")
            .map(|bundles| number_of_anchors(&bundles))
    };
    assert_eq!(next().unwrap(), 1);

    let mut python = Python::start("bundles", &world.device);
    let latest = python.next();
    assert_eq!(latest["anchors"]["factory.example"].as_array().unwrap().len(), 1, "{latest:#}");
    assert_eq!(latest["jwtBundles"], json!({ "factory.example": 0 }));
    assert!(latest["svid"].as_str().unwrap().contains("cannot leave it"), "{latest:#}");
    assert!(latest["jwtSvid"].as_str().unwrap().contains("X.509-SVIDs only"), "{latest:#}");

    world.mis.rotate_anchors(AnchorStep::Announce).unwrap();
    assert_eq!(next().unwrap(), 2);
    let latest = python.poll();
    assert_eq!(latest["anchors"]["factory.example"].as_array().unwrap().len(), 2, "{latest:#}");

    world.device.stop();
    world.tpm.flush();
    let end = next().unwrap_err().to_string();
    assert!(end.contains("Connect again"), "{end}");
    world.device.start();
    let again = python.next(); // it has reconnected by itself
    assert_eq!(again["anchors"], latest["anchors"]);
    assert_eq!(again["jwtBundles"], latest["jwtBundles"]);
    let client = runtime.block_on(WorkloadApiClient::connect_to(endpoint(&world.device))).unwrap();
    assert_eq!(number_of_anchors(&runtime.block_on(client.fetch_x509_bundles()).unwrap()), 2);
}

#[test]
fn software_key_is_sent_to_the_named_users_only() {
    let world = enrolled(world(&["nobody", "no-such-user-here", "4294967294"]));
    let client = Grpc::connect(&world.device);
    let (code, why) = client.call("FetchX509SVID").end();
    assert_eq!(code, PERMISSION_DENIED);
    assert!(why.contains(&getuid().to_string()) && why.contains("[workload_api] key_users"), "{why}");
    assert!(audits(&world.device).iter().all(|line| line.contains("key refused")));

    for named in [myself(), getuid().to_string()] {
        configure(&world, &["nobody", &named]);
        reload(&world.device);
        let mut stream = client.wait_for_key(&world.device);
        let records = audits(&world.device);
        assert!(records.last().unwrap().contains("key sent"), "{records:?}");

        // Another user is named in addition: nothing changes for this one.
        configure(&world, &["nobody", &named, "daemon"]);
        reload(&world.device);
        stream.is_quiet();
        assert_eq!(audits(&world.device).len(), records.len());

        configure(&world, &["nobody"]);
        reload(&world.device);
        let (code, why) = stream.end();
        assert!(code == PERMISSION_DENIED && why.contains("key_users"), "{code} {why}");
    }
}

#[test]
fn user_gets_the_svids_of_its_identities_only() {
    let mut world = world(&[]);
    let (me, other) = (getuid().to_string(), "65533");
    let configure = |world: &World, users: [&str; 3]| {
        let identities = [("device", "factory-cert"), ("line-1", "manual"), ("line-2", "manual")];
        let identities = identities.into_iter().zip(users).map(|((name, enroll), user)| {
            format!("[[identity]]\nname = \"{name}\"\nenroll = \"{enroll}\"\nusers = [\"{user}\"]\n")
        });
        let config = world::config(&world.mis, &world.tpm, &identities.collect::<String>());
        world.device.configure(&config.replace("[key]", "[key]\nprovider = \"software\""));
    };
    configure(&world, [&me, &me, other]);
    world.device.start();
    world.device.wait_for("active");
    for line in ["line-1", "line-2"] {
        let id = format!("spiffe://factory.example/margo/wfm/wfm-1/client/{line}");
        enroll_by_hand(&world, line, &id, Duration::from_secs(3600));
    }
    let runtime = runtime();
    let client = runtime.block_on(WorkloadApiClient::connect_to(endpoint(&world.device))).unwrap();
    let hints = || {
        let context = runtime.block_on(client.fetch_x509_context()).map_err(|e| e.to_string())?;
        let hints = context.svids().iter().map(|svid| svid.hint().unwrap_or_default().to_owned());
        Ok::<_, String>(hints.collect::<Vec<_>>())
    };
    assert_eq!(hints().unwrap(), ["device", "line-1"], "the default identity is the first");
    assert!(!audits(&world.device).iter().any(|line| line.contains("line-2")), "{:?}", audits(&world.device));
    configure(&world, [other, other, &me]);
    world.device.signal("HUP");
    world.device.wait_until("the other user's", |_| hints().is_ok_and(|hints| hints == ["line-2"]));
    configure(&world, [other; 3]);
    world.device.signal("HUP");
    let is_refused = |refusal: String| refusal.contains("permission denied");
    world.device.wait_until("a refusal", |_| hints().is_err_and(is_refused));
}

#[test]
fn stream_sends_the_state_and_then_only_changes() {
    let world = enrolled(world(&[&myself()]));
    let client = Grpc::connect(&world.device);
    let mut streams =
        ["FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles"].map(|method| client.call(method));
    let firsts = streams.each_mut().map(Call::message);
    // The agent is busy, and sends no message.
    let refreshes = world.seen(Endpoint::Bundle).len();
    world.wait_for_requests(Endpoint::Bundle, refreshes + 2);
    reload(&world.device);
    for stream in &mut streams {
        stream.is_quiet();
    }
    assert_eq!(audits(&world.device).len(), 1, "once for a process and a key");

    let serial = world.device.status()["svid"]["serial"].clone();
    command(&world, &["renew"]);
    world.device.wait_for_another_svid(&serial);
    let [svid, bundles, jwt_bundles] = &mut streams;
    let renewed = svid.message();
    assert_ne!(renewed, firsts[0]);
    bundles.is_quiet();
    assert_eq!(audits(&world.device).len(), 2);

    world.mis.rotate_anchors(AnchorStep::Announce).unwrap();
    assert_ne!(bundles.message(), firsts[1]);
    assert!(svid.message().len() > renewed.len(), "the same SVID with one anchor more");
    jwt_bundles.is_quiet();
    let other = Grpc::connect(&world.device);
    for client in [&client, &other, &other] {
        client.call("FetchX509SVID").message();
    }
    assert_eq!(audits(&world.device).len(), 2, "the same key, and the same process");
}

#[test]
fn unavailable_before_the_first_enrollment_and_at_shutdown() {
    let mut world = world(&[&myself()]);
    let config = fs::read_to_string(world.device.path("config.toml")).unwrap();
    world.device.configure("[socket]\npath = \"{dir}/run/agent.sock\"\n");
    world.mis.stop_listening().unwrap();
    world.device.start();
    let are_unavailable = |device: &Device| {
        for method in ["FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles"] {
            let (code, why) = Grpc::connect(device).call(method).end();
            assert!(code == UNAVAILABLE && why.contains("miaf-agent status"), "{method}: {code} {why}");
        }
    };
    world.device.wait_for("unconfigured");
    are_unavailable(&world.device);
    fs::write(world.device.path("config.toml"), config).unwrap();
    world.device.wait_for_error("");
    are_unavailable(&world.device);
    world.mis.resume().unwrap();
    world.device.wait_for("active");
    let client = Grpc::connect(&world.device);
    let mut streams =
        ["FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles"].map(|method| client.call(method));
    for stream in &mut streams {
        stream.message();
    }
    world.device.signal("TERM");
    for stream in &mut streams {
        let (code, why) = stream.end();
        assert!(code == UNAVAILABLE && why.contains("Connect again"), "{code} {why}");
    }
    assert!(world.device.wait_for_exit().success());
}

/// The status is the same before the first enrollment as after it, when there is a key.
#[test]
fn permission_denied_is_for_peers_without_entitlement() {
    let mut unlisted = world(&["4294967294"]);
    let mut in_tpm = World::with(|settings| world::long_enough(&mut settings.policy));
    in_tpm.configure(&format!("[workload_api]\nkey_users = [\"{}\"]\n", getuid()));
    for (world, why) in [(&mut unlisted, "[workload_api] key_users"), (&mut in_tpm, "made in its TPM")] {
        world.mis.stop_listening().unwrap();
        world.device.start();
        world.device.wait_for_error("");
        for is_enrolled in [false, true] {
            if is_enrolled {
                world.mis.resume().unwrap();
                world.device.wait_for("active");
            }
            let (code, message) = Grpc::connect(&world.device).call("FetchX509SVID").end();
            assert!(code == PERMISSION_DENIED && message.contains(why), "{is_enrolled}: {code} {message}");
        }
        let audits = audits(&world.device);
        assert!(!audits.is_empty() && audits.iter().all(|line| line.contains("key refused")), "{audits:?}");
    }
}

#[test]
fn connection_over_the_limit_is_unavailable() {
    let mut world = World::new();
    world.configure("max_connections_per_user = 2\n");
    world.device.start();
    let mut held = Vec::new();
    world.device.wait_until("both permits are taken", |device| {
        let client = Grpc::connect(device); // the connections of before may not be gone yet
        if client.call("Nothing").end().0 == UNIMPLEMENTED {
            held.push(client);
        }
        held.len() == 2
    });
    let (code, why) = Grpc::connect(&world.device).call("FetchX509Bundles").end();
    assert!(code == UNAVAILABLE && why.contains("max_connections_per_user"), "{code} {why}");
    assert_eq!(held[0].call("Nothing").end().0, UNIMPLEMENTED);
}

#[test]
fn retired_identity_is_withdrawn_and_clients_get_the_next() {
    let world = enrolled(world(&[&myself()]));
    let before = world.device.status();
    let client = Grpc::connect(&world.device);
    let mut streams =
        ["FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles"].map(|method| client.call(method));
    for stream in &mut streams {
        stream.message();
    }
    let runtime = runtime();
    let source = runtime.block_on(source(&world.device));
    let mut python = Python::start("svid", &world.device);
    let serial = python.next()["serial"].clone();

    world.mis.sticky_fault(Endpoint::Bundle, Fault::Status(503));
    world.mis.sticky_fault(Endpoint::Discovery, Fault::Status(503));
    command(&world, &["retire", "--yes"]);
    for stream in &mut streams {
        let (code, why) = stream.end();
        assert!(code == UNAVAILABLE && why.contains("no "), "{code} {why}");
    }
    assert_eq!(client.call("FetchX509SVID").end().0, UNAVAILABLE);

    world.mis.clear_faults();
    command(&world, &["retry"]);
    let after = world.device.wait_for("active");
    assert_ne!(after["svid"]["serial"], before["svid"]["serial"]);
    wait_for(&runtime, &source, "the next identity", |context| shows(context, &after));
    while python.next()["serial"] == serial {}
}

#[test]
fn emptied_bundle_ends_streams_until_the_next() {
    let world = enrolled(world(&[&myself()]));
    let client = Grpc::connect(&world.device);
    let mut streams = ["FetchX509SVID", "FetchX509Bundles"].map(|method| client.call(method));
    for stream in &mut streams {
        stream.message();
    }
    world.mis.sticky_fault(Endpoint::Bundle, Fault::Document(DocumentFault::EmptyKeys));
    for stream in &mut streams {
        let (code, why) = stream.end();
        assert!(code == UNAVAILABLE && why.contains("emptied"), "{code} {why}");
    }
    world.mis.clear_faults();
    world.device.wait_until("a bundle with anchors", |_| {
        matches!(client.call("FetchX509SVID").next(), Received::Message(_))
    });
}

#[test]
fn spiffe_crate_follows_rotations_and_a_restart() {
    let mut world = enrolled(world(&[&myself()]));
    let runtime = runtime();
    let source = runtime.block_on(source(&world.device));
    let mut status = world.device.status();
    wait_for(&runtime, &source, "the SVID", |context| shows(context, &status));
    for rotation in 0..3 {
        command(&world, &["renew"]);
        status = world.device.wait_for_another_svid(&status["svid"]["serial"]);
        wait_for(&runtime, &source, "the next SVID", |context| shows(context, &status));
        if rotation == 1 {
            world.device.stop();
            world.device.start();
        }
    }
    world.mis.rotate_anchors(AnchorStep::Announce).unwrap();
    wait_for(&runtime, &source, "the next bundle", |context| {
        context.is_some_and(|context| number_of_anchors(context.bundle_set()) == 2)
    });
}

#[test]
fn spiffe_for_python_follows_rotations_and_a_restart() {
    let mut world = enrolled(world(&[&myself()]));
    let mut python = Python::start("svid", &world.device);
    let first = python.next();
    let mut status = world.device.status();
    assert_eq!(first["spiffeId"], status["spiffeId"]);
    assert_eq!(first["keyFits"], true);
    let mut last = first;
    for rotation in 0..3 {
        command(&world, &["renew"]);
        status = world.device.wait_for_another_svid(&status["svid"]["serial"]);
        let next = loop {
            let next = python.next(); // after a restart the same comes again
            if next["serial"] != last["serial"] {
                break next;
            }
        };
        assert_eq!(next["spiffeId"], status["spiffeId"]);
        assert_eq!(next["keyFits"], true);
        last = next;
        if rotation == 1 {
            world.device.stop();
            world.device.start();
        }
    }
    world.mis.rotate_anchors(AnchorStep::Announce).unwrap();
    while python.next()["anchors"]["factory.example"].as_array().unwrap().len() != 2 {}
}

/// As services that systemd starts at a device's first boot.
#[test]
fn clients_that_start_first_get_the_first_identity() {
    let mut world = world(&[&myself()]);
    world.mis.stop_listening().unwrap();
    world.device.start();
    let mut python = Python::start("svid", &world.device);
    let (runtime, device) = (runtime(), &world.device);
    let source = runtime.block_on(async {
        let building = source(device);
        let resuming = async {
            tokio::time::sleep(Duration::from_secs(3)).await; // they have got UNAVAILABLE
            world.mis.resume().unwrap();
        };
        tokio::join!(building, resuming).0
    });
    let status = world.device.wait_for("active");
    wait_for(&runtime, &source, "the first SVID", |context| shows(context, &status));
    assert_eq!(python.next()["spiffeId"], status["spiffeId"]);
}

async fn source(device: &Device) -> X509Source {
    let source = X509Source::builder()
        .endpoint(endpoint(device))
        .reconnect_backoff(Duration::from_millis(50), Duration::from_millis(500))
        .initial_sync_timeout(PATIENCE);
    source.build().await.unwrap()
}

/// Waits until `holds` is true of what the source has.
fn wait_for(
    runtime: &Runtime,
    source: &X509Source,
    what: &str,
    holds: impl Fn(Option<&X509Context>) -> bool,
) {
    let until_it_holds = async {
        let mut updates = source.updated();
        while !holds(source.x509_context().ok().as_deref()) {
            updates.changed().await.unwrap();
        }
    };
    let waited = runtime.block_on(async { timeout(PATIENCE, until_it_holds).await });
    waited.unwrap_or_else(|_| panic!("timed out waiting for {what}"));
}

/// Whether the context has the identity of this status, with its key.
fn shows(context: Option<&X509Context>, status: &Value) -> bool {
    let Some(svid) = context.and_then(X509Context::default_svid) else { return false };
    let (_, leaf) = x509_parser::parse_x509_certificate(svid.leaf().as_bytes()).unwrap();
    let key = rcgen::KeyPair::try_from(svid.private_key().as_bytes()).unwrap();
    assert_eq!(rcgen::PublicKeyData::der_bytes(&key), leaf.public_key().subject_public_key.data.as_ref());
    assert_eq!(svid.spiffe_id().to_string(), status["spiffeId"].as_str().unwrap());
    leaf.raw_serial_as_string() == status["svid"]["serial"].as_str().unwrap()
}

/// Number of anchors in the one bundle, which is that of the device's trust domain.
fn number_of_anchors(bundles: &X509BundleSet) -> usize {
    let domains: Vec<_> = bundles.iter().map(|(domain, _)| domain.to_string()).collect();
    assert_eq!(domains, ["factory.example"]);
    bundles.iter().map(|(_, bundle)| bundle.authorities().len()).sum()
}

/// `tests/clients/spiffe_client.py`, and the lines that it prints.
struct Python {
    process: Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Python {
    fn start(what: &str, device: &Device) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = root.join("target/python/bin/python");
        assert!(python.exists(), "{} is not there: run scripts/python", python.display());
        let mut process = Command::new(python)
            .arg(root.join("tests/clients/spiffe_client.py"))
            .args([what, &endpoint(device)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line); // the test may be over
            }
        });
        Self { process, stdin, lines }
    }

    fn poll(&mut self) -> Value {
        self.stdin.write_all(b"\n").unwrap();
        self.next()
    }

    fn next(&mut self) -> Value {
        let line = self.lines.recv_timeout(PATIENCE).expect("a line of Python in time");
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
