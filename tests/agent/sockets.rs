//! The sockets: events for subscribers, signatures, metrics, and peers that behave badly.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use development_mis::{Endpoint, Fault};
use ring::digest::{SHA256, digest};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::support::agent::{Device, PATIENCE, event_of_default_identity};
use crate::support::http2::{PREFACE, frame, headers};
use crate::world::{self, World};

/// A subscriber of `GET /v1/watch`.
struct Subscriber(BufReader<UnixStream>);

impl Subscriber {
    fn on(device: &Device, socket: &str) -> Self {
        let mut stream = UnixStream::connect(device.path(socket)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // In HTTP/1.0 the events come without chunks.
        stream.write_all(b"GET /v1/watch HTTP/1.0\r\n\r\n").unwrap();
        let mut subscriber = Self(BufReader::new(stream));
        let head: Vec<String> =
            std::iter::from_fn(|| subscriber.line().filter(|line| !line.is_empty())).collect();
        assert!(
            head[0].ends_with("200 OK") && head.contains(&"content-type: text/event-stream".to_owned()),
            "{head:?}"
        );
        subscriber
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).unwrap();
        (read > 0).then(|| line.trim_end().to_owned())
    }

    /// The data of the next event; `None` when there will be none.
    fn next(&mut self) -> Option<Value> {
        let mut event: Option<Value> = None;
        while let Some(line) = self.line() {
            match line.split_once(": ") {
                Some(("event", name)) => assert_eq!(name, "state"),
                Some(("data", data)) => {
                    event = Some(event_of_default_identity(&serde_json::from_str(data).unwrap()))
                }
                Some(("id", _)) => {}
                _ if line.is_empty() => return event,
                _ => panic!("no line of an event: {line:?}"),
            }
        }
        None
    }

    fn until(&mut self, what: &str, mut holds: impl FnMut(&Value) -> bool) -> Value {
        loop {
            let event = self.next().unwrap_or_else(|| panic!("the events end before {what}"));
            if holds(&event) {
                return event;
            }
        }
    }
}

/// strace holds up the last of three sockets.
#[test]
fn response_on_one_socket_means_that_all_are_bound() {
    let mut device = Device::new("[socket]\npath = \"{dir}/run/agent.sock\"\n");
    let slow = "--inject=listen:delay_enter=500000:when=3";
    device.under(&["strace", "--daemonize", "--follow-forks", "--quiet=all", "--output=/dev/null", slow]);
    device.start();
    for socket in ["run/sign.sock", "run/admin.sock"] {
        let connected = UnixStream::connect(device.path(socket));
        assert!(connected.is_ok(), "{socket}: {connected:?}");
    }
}

#[test]
fn subscriber_gets_the_state_at_once_and_each_change() {
    let mut world = World::with(|settings| world::long_enough(&mut settings.policy));
    world.device.start();
    let mut subscriber = Subscriber::on(&world.device, "run/agent.sock");
    let active = subscriber.until("the first identity", |event| event["status"]["state"] == "active");
    for (path, part) in [("/v1/svid", "svid"), ("/v1/bundle", "bundle")] {
        let document: Value = serde_json::from_str(&world.device.get(path).unwrap().1).unwrap();
        assert_eq!(active[part], document, "{path}");
    }

    // A later subscriber gets the same, on any socket. The bundle is refreshed every second, and is
    // the same.
    let mut later = Subscriber::on(&world.device, "run/sign.sock");
    assert_eq!(later.next().unwrap()["svid"], active["svid"]);
    world.wait_for_requests(Endpoint::Bundle, world.seen(Endpoint::Bundle).len() + 2);

    world.device.run(&["renew"]);
    let renewed = |event: &Value| event["svid"]["serial"] != active["svid"]["serial"];
    let mut states = Vec::new();
    let new = later.until("the rotation", |event| {
        states.push(event["status"]["state"].clone());
        renewed(event)
    });
    assert_eq!(states, ["renewing", "active"], "a refresh of the bundle is no change");
    assert_eq!(subscriber.until("the rotation", renewed)["svid"], new["svid"]);
    assert_eq!(
        new["svid"]["certificateChainPem"][0].as_str().unwrap(),
        world.device.published("svid.pem").split_inclusive("-----END CERTIFICATE-----\n").next().unwrap()
    );

    // With the agent, the events end.
    assert!(world.device.stop().success());
    while subscriber.next().is_some() {}
}

#[test]
fn svid_expiry_is_sent_at_that_moment() {
    let mut world = World::with(|settings| {
        settings.policy.svid_lifetime = Duration::from_secs(12);
        settings.policy.backdate = Duration::ZERO;
    });
    world.mis.sticky_fault(Endpoint::Renewal, Fault::Status(503));
    world.device.start();
    let mut subscriber = Subscriber::on(&world.device, "run/agent.sock");
    subscriber.until("the identity", |event| event["status"]["state"] == "active");
    world.mis.sticky_fault(Endpoint::Enrollment, Fault::Status(503));
    let expired = subscriber.until("its end", |event| event["status"]["state"] == "expired");
    let end = humantime::parse_rfc3339(expired["status"]["svid"]["notAfter"].as_str().unwrap()).unwrap();
    let late = std::time::SystemTime::now().duration_since(end).unwrap();
    assert!(late < Duration::from_secs(3), "{late:?}");
}

fn sign(device: &Device, socket: &str, body: &Value) -> (u16, Value) {
    let body = body.to_string();
    let request = format!(
        "POST /v1/sign HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let (status, body) = device.request_at(socket, &request).unwrap();
    (status, serde_json::from_str(&body).unwrap())
}

fn digest_of(message: &[u8]) -> String {
    BASE64.encode(digest(&SHA256, message))
}

/// Whether the leaf of a chain vouches for this signature.
pub(crate) fn is_signed_by(chain: &Value, message: &[u8], signature: &Value) -> bool {
    let (_, pem) = x509_parser::pem::parse_x509_pem(chain[0].as_str().unwrap().as_bytes()).unwrap();
    let leaf = pem.parse_x509().unwrap();
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &leaf.public_key().subject_public_key.data);
    key.verify(message, &BASE64.decode(signature.as_str().unwrap()).unwrap()).is_ok()
}

#[test]
fn tpm_key_signs_for_peers_of_the_signing_socket() {
    let mut world = World::with(|settings| world::long_enough(&mut settings.policy));
    world.mis.sticky_fault(Endpoint::Enrollment, Fault::Status(503));
    world.device.start();
    let body = json!({ "algorithm": "ES256", "digest": digest_of(b"a message") });
    let (status, none) = sign(&world.device, "run/sign.sock", &body);
    assert!(status == 503 && none["detail"].as_str().unwrap().contains("no SVID yet"), "{none}");
    world.mis.clear_faults();
    world.device.wait_for("active");

    let svid =
        |world: &World| -> Value { serde_json::from_str(&world.device.get("/v1/svid").unwrap().1).unwrap() };
    let first = svid(&world);
    for socket in ["run/sign.sock", "run/admin.sock"] {
        let (status, signed) = sign(&world.device, socket, &body);
        assert_eq!(
            (status, &signed["serial"], &signed["generation"]),
            (200, &first["serial"], &first["generation"])
        );
        assert!(is_signed_by(&first["certificateChainPem"], b"a message", &signed["signature"]), "{signed}");
    }
    let (status, refused) = sign(&world.device, "run/agent.sock", &body);
    assert!(status == 403 && refused["hint"].as_str().unwrap().contains("sign.sock"), "{refused}");
    let (status, refused) =
        sign(&world.device, "run/sign.sock", &json!({ "algorithm": "none", "digest": "" }));
    assert!(status == 400 && refused["detail"].as_str().unwrap().contains("ES256"), "{refused}");
    let (status, refused) =
        world.device.request_at("run/sign.sock", "GET /v1/sign HTTP/1.0\r\n\r\n").unwrap();
    assert!(status == 405 && refused.contains("POST"), "{refused}");

    // A handshake may be under way when the identity is renewed: the previous SVID is signed for
    // too, until the next renewal.
    let for_first =
        json!({ "algorithm": "ES256", "digest": digest_of(b"a message"), "serial": first["serial"] });
    for is_known in [true, false] {
        let serial = world.device.status()["svid"]["serial"].clone();
        world.device.run(&["renew"]);
        world.device.wait_for_another_svid(&serial);
        let read = || world.device.log().matches("has been read anew").count();
        let before = read();
        world.device.signal("HUP"); // which changes nothing about it
        world.device.wait_until("a reload", |_| read() > before);
        let (status, signed) = sign(&world.device, "run/sign.sock", &for_first);
        if is_known {
            assert!(signed["generation"].is_null(), "what is published now is another SVID: {signed}");
            assert!(
                is_signed_by(&first["certificateChainPem"], b"a message", &signed["signature"]),
                "{signed}"
            );
        } else {
            assert!(
                status == 409 && signed["hint"].as_str().unwrap().contains("Fetch the current SVID"),
                "{signed}"
            );
        }
    }
    let (_, signed) = sign(&world.device, "run/sign.sock", &body);
    let now = svid(&world);
    assert!(is_signed_by(&now["certificateChainPem"], b"a message", &signed["signature"]));
    assert_ne!(now["serial"], first["serial"]);

    // Without its TPM it cannot, and says why. Everything else is still served.
    world.tpm.stop();
    let (status, refused) = sign(&world.device, "run/sign.sock", &body);
    assert!(
        status == 503 && refused["detail"].as_str().unwrap().contains("cannot reach the TPM"),
        "{refused}"
    );
    assert_eq!(refused["code"], "key");
}

#[test]
fn api_errors_have_a_code_and_a_hint_of_their_own() {
    let mut world = World::new();
    world.mis.sticky_fault(Endpoint::Enrollment, Fault::Status(503));
    world.mis.sticky_fault(Endpoint::Bundle, Fault::Status(503));
    world.device.start();
    let (read, sign, admin) = ("run/agent.sock", "run/sign.sock", "run/admin.sock");
    let digest = json!({ "algorithm": "ES256", "digest": digest_of(b"") }).to_string();
    let unfit = json!({ "algorithm": "ES256", "digest": "AA==" }).to_string();
    let long = "x".repeat(4097);
    let leave = "{\"trustDomain\":\"factory.example\"}";
    let check = |socket: &str, request: &str, body: &str, status: u16, code: &str, to_do: &str| {
        let length = body.len();
        let request = format!("{request} HTTP/1.0\r\ncontent-length: {length}\r\n\r\n{body}");
        let (got, text) = world.device.request_at(socket, &request).unwrap();
        let error: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((got, &error["code"]), (status, &code.into()), "{request}: {text}");
        let (detail, hint) = (error["detail"].as_str().unwrap(), error["hint"].as_str().unwrap());
        assert!(hint.contains(to_do) && hint.starts_with(char::is_uppercase), "{request}: {text}");
        assert!(!detail.contains(hint) && !hint.contains(detail), "{text}");
        assert!(!detail.is_empty() && !detail.ends_with('.') && !hint.ends_with('.'), "{text}");
        for remedy in ["GET ", "Use ", "use ", "Try ", "miaf-agent "] {
            assert!(!detail.contains(remedy), "{text}");
        }
    };
    for (socket, request, body, status, code, to_do) in [
        (read, "GET /v1/nowhere", "", 404, "unknown-path", "Try GET /v1/status"),
        (read, "POST /v1/renew", "", 404, "unknown-path", "Try GET /v1/status"),
        (read, "GET /v1/identities/wfm/svid", "", 404, "unknown-identity", "See those that there are"),
        (sign, "POST /v1/identities/wfm/sign", &digest, 404, "unknown-identity", "See those that there are"),
        (admin, "POST /v1/identities/wfm/renew", "", 404, "unknown-identity", "See those that there are"),
        (read, "DELETE /v1/status", "", 405, "method-not-allowed", "Use GET"),
        (sign, "GET /v1/sign", "", 405, "method-not-allowed", "Use POST"),
        (admin, "GET /v1/retry", "", 405, "method-not-allowed", "Use POST"),
        (read, "POST /v1/sign", &digest, 403, "forbidden", "sign.sock"),
        (sign, "POST /v1/retry", "", 403, "forbidden", "admin.sock"),
        (sign, "POST /v1/sign", "{}", 400, "invalid-request", "\"ES256\""),
        (sign, "POST /v1/sign", &unfit, 400, "invalid-request", "\"ES256\""),
        (sign, "POST /v1/sign", &long, 413, "invalid-request", "Send a shorter one"),
        (admin, "POST /v1/retry", "[]", 400, "invalid-request", "Send no body, or"),
        (read, "POST /SpiffeWorkloadAPI/FetchX509SVID", "", 415, "invalid-request", "SPIFFE library"),
        (read, "GET /v1/svid", "", 503, "not-available", "GET /v1/status"),
        (sign, "POST /v1/sign", &digest, 503, "not-available", "GET /v1/status"),
        (read, "GET /v1/bundle", "", 503, "not-available", "GET /v1/status"),
        (read, "GET /readyz", "", 503, "not-available", "GET /v1/status"),
        (admin, "POST /v1/identities/device/renew", "", 409, "not-applicable", "miaf-agent retry"),
        (admin, "POST /v1/identities/device/retire", leave, 409, "not-applicable", "the configuration"),
    ] {
        check(socket, request, body, status, code, to_do);
    }
    world.mis.clear_faults();
    world.device.run(&["retry"]);
    world.device.wait_for("active");
    let other = "{\"trustDomain\":\"other.example\"}";
    check(
        admin,
        "POST /v1/identities/device/retire",
        other,
        409,
        "not-applicable",
        "Name \"factory.example\"",
    );
    let mut replaced: Value = serde_json::from_str(&digest).unwrap();
    replaced["serial"] = "01:02".into();
    check(sign, "POST /v1/sign", &replaced.to_string(), 409, "svid-replaced", "Fetch the current SVID");
}

#[test]
fn audit_log_has_signatures_and_commands_at_every_level() {
    let mut world = World::new();
    world.configure("[log]\nlevel = \"error\"\n");
    world.device.start();
    world.device.wait_for("active");
    sign(&world.device, "run/sign.sock", &json!({ "algorithm": "ES256", "digest": digest_of(b"") }));
    world.device.run(&["retry"]);
    let nonsense = "POST /v1/identities/device/renew HTTP/1.0\r\ncontent-length: 1\r\n\r\nx";
    assert_eq!(world.device.request_at("run/admin.sock", nonsense).unwrap().0, 400);
    let long = "x".repeat(4097);
    let long = format!("POST /v1/identities/device/retire HTTP/1.0\r\ncontent-length: 4097\r\n\r\n{long}");
    assert_eq!(world.device.request_at("run/admin.sock", &long).unwrap().0, 413);
    let (log, me, uid) = (world.device.log(), std::process::id(), nix::unistd::getuid());
    let record = |audit: &str| {
        log.lines().find(|line| line.contains(&format!("audit=\"{audit}\""))).unwrap_or_default()
    };
    let signed = record("sign");
    for part in [
        format!("uid={uid}"),
        format!("pid={me}"),
        "spiffe_id=spiffe://factory.example/".into(),
        "serial=".into(),
    ] {
        assert!(signed.contains(&part), "{part}: {log}");
    }
    let rejected = record("renew");
    assert!(rejected.contains("admin command rejected: invalid request"), "{log}");
    assert!(
        rejected.contains("identity=\"device\"") && rejected.contains("hint=\"Send no body\""),
        "{rejected}"
    );
    let incomplete = record("retire");
    assert!(incomplete.contains("incomplete request") && incomplete.contains("identity=\"device\""), "{log}");
    assert!(record("retry").contains(&format!("uid={uid}")) && record("retry").contains("pid="), "{log}");
    assert!(!log.contains("new SVID"), "only records and errors are logged: {log}");
}

#[test]
fn signatures_of_a_minute_are_one_record_with_a_count() {
    let mut world = World::enrolled();
    let body = json!({ "algorithm": "ES256", "digest": digest_of(b"") });
    for _ in 0..5 {
        assert_eq!(sign(&world.device, "run/sign.sock", &body).0, 200);
    }
    assert!(world.device.stop().success());
    let log = world.device.log();
    let counts: Vec<u64> = log
        .lines()
        .filter(|line| line.contains("audit=\"sign\"") && line.contains("signature made"))
        .filter_map(|line| line.split_once("count=")?.1.split_whitespace().next()?.parse().ok())
        .collect();
    // More than two, where the five took longer than a minute.
    assert!(counts.first() == Some(&1) && counts.iter().sum::<u64>() == 5 && counts.len() < 5, "{log}");
}

#[test]
fn signature_over_the_rate_gets_retry_after() {
    let mut world = World::new();
    world.configure("signatures_per_minute = 1\n");
    world.device.start();
    world.device.wait_for("active");
    let body = json!({ "algorithm": "ES256", "digest": digest_of(b"") }).to_string();
    let request = format!(
        "POST /v1/sign HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut responses = Vec::new();
    // One of two is within a minute of the other, also on a machine that stands still now and then.
    for _ in 0..10 {
        let mut stream = UnixStream::connect(world.device.path("run/sign.sock")).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        responses.push(response);
    }
    assert!(responses[0].starts_with("HTTP/1.1 200 "), "{}", responses[0]);
    let refused = responses.iter().find(|response| response.starts_with("HTTP/1.1 429 ")).expect("a refusal");
    let wait: u64 = refused.split_once("retry-after: ").unwrap().1.lines().next().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait) && refused.contains("socket.signatures_per_minute"), "{refused}");
    assert!(world.device.log().contains("signature refused: rate exceeded"));
    // Other requests are served, and another limit counts from the reload on.
    assert_eq!(world.device.request_at("run/sign.sock", "GET /readyz HTTP/1.0\r\n\r\n").unwrap().0, 200);
    world.configure("signatures_per_minute = 6000\n");
    world.device.signal("HUP");
    world.device.wait_until("the other limit", |device| {
        device.request_at("run/sign.sock", &request).unwrap().0 == 200
    });
}

#[test]
fn software_key_signs_over_the_socket() {
    let mut world = World::new();
    world.tpm.stop();
    let config = world::config(&world.mis, &world.tpm, "");
    world.device.configure(&config.replace("[key]", "[key]\nprovider = \"software\""));
    world.device.start();
    world.device.wait_for("active");
    let body = json!({ "algorithm": "ES256", "digest": digest_of(b"a message") });
    let (_, signed) = sign(&world.device, "run/sign.sock", &body);
    let svid: Value = serde_json::from_str(&world.device.get("/v1/svid").unwrap().1).unwrap();
    assert!(is_signed_by(&svid["certificateChainPem"], b"a message", &signed["signature"]), "{signed}");
}

#[test]
fn metrics_are_the_same_on_the_socket_and_in_the_file() {
    let mut world = World::new();
    world.configure("[metrics]\ntextfile = \"{dir}/metrics.prom\"\n");
    world.device.start();
    let status = world.device.wait_for("active");
    let (_, text) = world.device.get("/metrics").unwrap();
    let of = |text: &str, name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("miaf_agent_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    };
    let seconds = |text: &Value| {
        let at = humantime::parse_rfc3339(text.as_str().unwrap()).unwrap();
        at.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
    };
    assert_eq!(
        of(&text, "svid_not_after_timestamp_seconds{identity=\"device\"}"),
        seconds(&status["svid"]["notAfter"])
    );
    assert_eq!(of(&text, "state{identity=\"device\",state=\"active\"}"), 1.0);
    assert_eq!(of(&text, "state{identity=\"device\",state=\"expired\"}"), 0.0);
    for (metric, value) in [("ready", 1.0), ("failing", 0.0), ("needs_correction", 0.0), ("key_lost", 0.0)] {
        assert_eq!(of(&text, &format!("{metric}{{identity=\"device\"}}")), value, "{metric}");
    }
    assert_eq!((of(&text, "failing"), of(&text, "needs_correction")), (0.0, 0.0), "of the device itself");
    assert_eq!(of(&text, "signatures_total{identity=\"device\",outcome=\"signed\"}"), 0.0);
    sign(&world.device, "run/sign.sock", &json!({ "algorithm": "ES256", "digest": digest_of(b"") }));
    let (_, after) = world.device.get("/metrics").unwrap();
    assert_eq!(of(&after, "signatures_total{identity=\"device\",outcome=\"signed\"}"), 1.0);
    assert!(
        of(&after, "socket_requests_total{socket=\"agent\"}")
            > of(&text, "socket_requests_total{socket=\"agent\"}")
    );

    let file = world.device.path("metrics.prom");
    world.device.wait_until("the file", |_| {
        fs::read_to_string(&file)
            .is_ok_and(|text| text.contains("state{identity=\"device\",state=\"active\"} 1"))
    });
    assert_eq!(
        of(&fs::read_to_string(&file).unwrap(), "svid_not_after_timestamp_seconds{identity=\"device\"}"),
        seconds(&status["svid"]["notAfter"])
    );
    // It follows the configuration, and is gone with the agent.
    world.configure("[metrics]\ntextfile = \"{dir}/other.prom\"\n");
    world.device.signal("HUP");
    world.device.wait_until("the other file", |device| device.path("other.prom").exists() && !file.exists());
    assert!(world.device.stop().success());
    assert!(!world.device.path("other.prom").exists());
}

#[test]
fn connections_over_the_limit_get_503() {
    let mut world = World::new();
    world.configure("max_connections = 5\nmax_connections_per_user = 3\n");
    world.device.start();
    world.device.wait_for("active");
    let mut subscribers: Vec<Subscriber> =
        (0..3).map(|_| Subscriber::on(&world.device, "run/agent.sock")).collect();
    let (status, refused) = world.device.get("/v1/status").unwrap();
    assert!(
        status == 503 && refused.contains("max_connections_per_user") && refused.contains("3 connections"),
        "{refused}"
    );
    // The other sockets have limits of their own.
    for socket in ["run/sign.sock", "run/admin.sock"] {
        assert_eq!(world.device.request_at(socket, "GET /readyz HTTP/1.0\r\n\r\n").unwrap().0, 200);
    }
    assert!(world.device.log().matches("connection refused").count() == 1, "{}", world.device.log());
    // A connection that ends releases its permit, and the limits follow the configuration.
    drop(subscribers.pop());
    world.device.wait_until("a permit", |device| device.get("/healthz").unwrap().0 == 200);
    let _third = Subscriber::on(&world.device, "run/agent.sock");
    world.configure("max_connections = 3\n");
    world.device.signal("HUP");
    world.device.wait_until("the other limit", |device| {
        device.get("/healthz").unwrap().1.contains("(socket.max_connections ")
    });
    for subscriber in &mut subscribers {
        subscriber.next().unwrap();
    }
}

#[test]
fn connections_are_limited_by_the_open_files() {
    let mut world = World::new();
    world.device.under(&["prlimit", "--nofile=200:200"]);
    world.device.start();
    world.device.wait_for("active");
    assert!(world.device.log().contains("no more than 24 connections"), "{}", world.device.log());
    // Half of them for one user.
    let _watchers: Vec<Subscriber> =
        (0..12).map(|_| Subscriber::on(&world.device, "run/agent.sock")).collect();
    let (status, refused) = world.device.get("/healthz").unwrap();
    assert!(status == 503 && refused.contains("12 connections"), "{refused}");
}

#[test]
fn http_2_serves_the_workload_api_only() {
    let world = World::enrolled();
    let socket = world.device.path("run/agent.sock");
    let curl = [
        "--silent",
        "--http2-prior-knowledge",
        "--unix-socket",
        socket.to_str().unwrap(),
        "http://agent/v1/svid",
    ];
    let head = std::process::Command::new("curl").args(curl).arg("--head").output().unwrap();
    assert!(head.status.success(), "{head:?}");
    let response = std::process::Command::new("curl").args(curl).output().unwrap();
    let response: Value = serde_json::from_slice(&response.stdout).unwrap();
    assert!(
        response["status"] == 505 && response["hint"].as_str().unwrap().contains("HTTP/1.1"),
        "{response}"
    );
}

/// Each of them costs its own connection: others are served as before, and the agent does not grow.
#[test]
fn idle_and_flooding_peers_cost_their_own_connection() {
    let mut world = World::with(|settings| world::long_enough(&mut settings.policy));
    world.configure(&format!("max_connections = 1024\n{}", world::SOON));
    world.device.start();
    world.device.wait_for_status("an identity", |status| status["svid"].is_object());
    let connect = |socket: &str| UnixStream::connect(world.device.path(socket)).unwrap();
    let clients_within = |kib_each: u64, socket: &str, say: &dyn Fn(&mut UnixStream)| -> Vec<UnixStream> {
        let before = memory(&world.device);
        let mut clients: Vec<UnixStream> = (0..CLIENTS).map(|_| connect(socket)).collect();
        clients.iter_mut().for_each(say);
        assert_eq!(world.device.get("/healthz").unwrap().0, 200); // those before have been read
        let each = (memory(&world.device).saturating_sub(before)) / CLIENTS;
        assert!(each < kib_each, "{each} KiB each");
        clients
    };
    let clients = |socket: &str, say: &dyn Fn(&mut UnixStream)| clients_within(64, socket, say);
    let slowly = |begin: &'static [u8]| move |peer: &mut UnixStream| peer.write_all(begin).unwrap();
    // Sends as much as it can before a response, and then does not read.
    let without_reading = |sent: Vec<u8>| {
        move |peer: &mut UnixStream| {
            peer.set_nonblocking(true).unwrap();
            let _ = peer.write(&sent);
        }
    };
    let silent = [
        clients("run/agent.sock", &|_| ()),
        clients("run/agent.sock", &slowly(b"GET /v1/sta")),
        clients("run/agent.sock", &slowly(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0")),
        clients(
            "run/sign.sock",
            &slowly(b"POST /v1/sign HTTP/1.1\r\nhost: x\r\ncontent-length: 90\r\n\r\n{"),
        ),
    ];
    let many = b"GET /v1/svid HTTP/1.1\r\nhost: x\r\n\r\n".repeat(5000);
    let unread = [
        clients("run/agent.sock", &without_reading(many)),
        clients("run/agent.sock", &without_reading(b"GET /v1/watch HTTP/1.1\r\nhost: x\r\n\r\n".to_vec())),
        // A user's first connections have many streams, the others few.
        clients_within(320, "run/agent.sock", &without_reading(many_calls_and_no_window())),
    ];
    let mut endless = connect("run/agent.sock");
    endless.set_write_timeout(Some(PATIENCE)).unwrap();
    endless.write_all(b"GET /v1/status HTTP/1.1\r\n").unwrap();
    let cut_off = (0..100_000).any(|at| endless.write_all(format!("x-{at}: {at}\r\n").as_bytes()).is_err());
    let mut response = String::new();
    let _ = endless.read_to_string(&mut response);
    assert!(cut_off || response.starts_with("HTTP/1.1 431"), "headers without end: {response:?}");

    // Meanwhile the identity is renewed, and others get their responses at once.
    let serial = world.device.status()["svid"]["serial"].clone();
    world.device.wait_for_another_svid(&serial);
    let mut slowest = Duration::ZERO;
    for _ in 0..200 {
        let begin = Instant::now();
        assert_eq!(world.device.get("/v1/svid").unwrap().0, 200);
        slowest = slowest.max(begin.elapsed());
    }
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");

    // A connection without a request for half a minute is closed.
    thread::sleep(Duration::from_secs(31));
    for mut caller in silent.into_iter().flatten() {
        caller.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let ended = caller.read_to_end(&mut Vec::new());
        assert!(ended.is_ok() || ended.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    }
    drop(unread);
}

const CLIENTS: u64 = 50;

/// As many calls of the Workload API on one connection as there may be, by a client that takes no
/// byte of a response.
fn many_calls_and_no_window() -> Vec<u8> {
    let mut said = PREFACE.to_vec();
    said.extend(frame(4, 0, 0, b"\0\x04\0\0\0\0")); // SETTINGS_INITIAL_WINDOW_SIZE: 0
    for stream in (1..256).step_by(2) {
        let headers = headers("/SpiffeWorkloadAPI/FetchX509Bundles", "true");
        said.extend(frame(1, 4, stream, &headers));
        said.extend(frame(0, 1, stream, b"\0\0\0\0\0"));
    }
    said
}

/// Acknowledgements of pings that were never sent, and signatures that cannot be made.
#[test]
fn faults_of_peers_do_not_fill_the_log() {
    let mut world = World::enrolled();
    let mut caller = UnixStream::connect(world.device.path("run/agent.sock")).unwrap();
    caller.set_nonblocking(true).unwrap();
    let mut said = [PREFACE, &frame(4, 0, 0, b"")].concat();
    said.extend(frame(6, 1, 0, b"unasked!").repeat(20_000));
    let (mut rest, deadline) = (&said[..], Instant::now() + PATIENCE);
    while !rest.is_empty() && Instant::now() < deadline {
        match caller.write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
            Err(_) => break, // the connection is closed, which is as good
        }
    }
    assert!(world.device.log().lines().count() < 40, "{}", world.device.log());

    world.tpm.stop();
    for _ in 0..50 {
        let body = json!({ "algorithm": "ES256", "digest": digest_of(b"") });
        assert_eq!(sign(&world.device, "run/sign.sock", &body).0, 503);
    }
    assert_eq!(world.device.log().matches("signature failed").count(), 1, "{}", world.device.log());
}

/// glibc keeps the memory that a burst has used, unless malloc_trim(3) returns it.
#[test]
fn memory_is_returned_after_a_burst() {
    const CLIENTS: usize = 400;
    let world = World::enrolled_with("max_connections = 1024\n");
    let connect = || UnixStream::connect(world.device.path("run/agent.sock")).unwrap();
    assert_eq!(world.device.get("/v1/status").unwrap().0, 200);
    let idle = memory(&world.device);
    let calls = many_calls_and_no_window();
    let mut clients: Vec<UnixStream> = (0..CLIENTS).map(|_| connect()).collect();
    for (number, caller) in clients.iter_mut().enumerate() {
        caller.set_nonblocking(true).unwrap();
        // It may be too long for one write.
        let _ = if number % 2 == 0 {
            caller.write(b"GET /v1/watch HTTP/1.1\r\nhost: x\r\n\r\n")
        } else {
            caller.write(&calls)
        };
    }
    assert_eq!(world.device.get("/v1/status").unwrap().0, 200);
    let busy = memory(&world.device);
    drop(clients);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut last = busy;
    while last > idle + 4096 {
        assert!(Instant::now() < deadline, "idle {idle} KiB, with a burst {busy} KiB, and still {last} KiB");
        thread::sleep(Duration::from_millis(500));
        last = memory(&world.device);
    }
    println!("idle {idle} KiB, with a burst {busy} KiB, then {last} KiB");
    assert!(busy > idle + 8192, "the burst was none: idle {idle} KiB, busy {busy} KiB");
}

/// Requests that take no permit, with as much in their heads as there may be, on few connections.
#[test]
fn memory_is_returned_after_refused_requests() {
    let world = World::enrolled();
    assert_eq!(world.device.get("/v1/status").unwrap().0, 200);
    let idle = memory(&world.device);
    let mut said = [PREFACE, &frame(4, 0, 0, b"")].concat();
    for stream in (1..240).step_by(2) {
        let mut headers = headers("/nothing/at.all", "true");
        headers.extend([0x90; 150]); // accept-encoding: gzip, deflate, of the static table
        said.extend(frame(1, 4, stream, &headers)); // and no end of the request
    }
    let mut callers: Vec<UnixStream> =
        (0..10).map(|_| UnixStream::connect(world.device.path("run/agent.sock")).unwrap()).collect();
    for caller in &mut callers {
        caller.set_write_timeout(Some(PATIENCE)).unwrap();
        caller.write_all(&said).unwrap();
    }
    assert_eq!(world.device.get("/v1/status").unwrap().0, 200);
    let busy = memory(&world.device);
    assert!(busy < idle + 16 * 1024, "{idle} KiB before, {busy} KiB with 1,200 requests");
    drop(callers);
    world.device.wait_until("as little memory as before", |device| memory(device) < idle + 4096);
}

/// Ended connections are cleared away before new ones are accepted.
#[test]
fn memory_is_bounded_in_a_flood_of_connections() {
    let world = World::enrolled();
    assert_eq!(world.device.get("/v1/status").unwrap().0, 200);
    let idle = memory(&world.device);
    for _ in 0..40_000 {
        // It may be refused while there is no room in the backlog.
        drop(UnixStream::connect(world.device.path("run/agent.sock")));
    }
    assert_eq!(world.device.get("/v1/status").unwrap().0, 200); // those before have been accepted
    world.device.wait_until("as little memory as before", |device| memory(device) < idle + 4096);
}

#[test]
fn idle_limit_is_in_every_response() {
    let world = World::enrolled();
    let head_of = |request: &str| {
        let mut stream = UnixStream::connect(world.device.path("run/agent.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let lines = BufReader::new(stream).lines().map(Result::unwrap);
        let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        head.join("\r\n").to_lowercase() + "\r\n"
    };
    for path in ["/v1/status", "/nothing", "/v1/sign"] {
        let kept = head_of(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"));
        assert!(
            kept.contains("\r\nkeep-alive: timeout=25\r\n") && kept.contains("connection: keep-alive"),
            "{kept}"
        );
        let closed = head_of(&format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: x, Close\r\n\r\n"));
        assert!(!closed.contains("keep-alive") && closed.contains("connection: close"), "{closed}");
        let old = head_of(&format!("GET {path} HTTP/1.0\r\n\r\n"));
        assert!(!old.contains("keep-alive"), "{old}");
    }
}

#[test]
fn expect_continue_gets_no_invitation() {
    let world = World::enrolled();
    let expecting = "POST /v1/sign HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 90\r\n\r\n";
    let mut stream = UnixStream::connect(world.device.path("run/agent.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(expecting.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap(); // to the end of the connection
    assert!(
        response.starts_with("HTTP/1.1 403 ") && response.contains("connection: close\r\n"),
        "{response}"
    );
    let both = "GET /healthz HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n";
    let mut stream = UnixStream::connect(world.device.path("run/agent.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(both.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(!response.contains("keep-alive"), "{response}");
}

/// A client that writes all before it reads gets its response, and not a broken pipe.
#[test]
fn refused_body_is_read_before_the_response() {
    let world = World::enrolled();
    for (socket, path, status) in [
        ("run/agent.sock", "/v1/sign", 403),
        ("run/sign.sock", "/v1/sign", 413),
        ("run/agent.sock", "/v1/identities/device/renew", 403),
        ("run/agent.sock", "/v1/status", 405),
        ("run/agent.sock", "/nothing", 404),
    ] {
        let body = "x".repeat(200_000);
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 200000\r\n\r\n{body}"
        );
        let (actual, _) =
            world.device.request_at(socket, &request).unwrap_or_else(|| panic!("{path}: broken off"));
        assert_eq!(actual, status, "{path}");
    }
}

/// Anonymous memory of the agent, in KiB.
fn memory(device: &Device) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", device.pid())).unwrap();
    let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    own.trim().trim_end_matches(" kB").parse().unwrap()
}
