//! Admin commands: where they are accepted, their responses, and retiring an identity on command.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use development_mis::{Endpoint, Fault, Mis, Settings};
use serde_json::{Value, json};

use crate::identities::{DEVICE, MANUAL, enroll_by_hand};
use crate::support::agent::{Device, PATIENCE};
use crate::world::{self, World};

const ADMIN: &str = "run/admin.sock";
const COMMANDS: [&str; 3] = ["/v1/retry", "/v1/identities/device/renew", "/v1/identities/device/retire"];
const LEAVE: &str = r#"{"trustDomain":"factory.example"}"#;

/// Status and body of the response to `POST path` on the admin socket.
fn post(device: &Device, path: &str, body: &str) -> (u16, Value) {
    post_at(device, ADMIN, path, body)
}

fn post_at(device: &Device, socket: &str, path: &str, body: &str) -> (u16, Value) {
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let (status, body) = device.request_at(socket, &request).expect("a response");
    (status, serde_json::from_str(&body).expect("JSON"))
}

fn detail(response: &Value) -> &str {
    response["detail"].as_str().expect("a detail")
}

fn hint(response: &Value) -> &str {
    response["hint"].as_str().expect("a hint")
}

/// The directories of retired identities.
fn retired_directories(device: &Device) -> Vec<String> {
    let names = fs::read_dir(device.path("state/private")).unwrap();
    let mut names: Vec<String> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name.starts_with("retired-"));
    names.sort();
    names
}

#[test]
fn admin_commands_are_accepted_on_the_admin_socket_alone() {
    let world = World::enrolled();
    for path in COMMANDS {
        for socket in ["run/agent.sock", "run/sign.sock"] {
            let (status, response) = post_at(&world.device, socket, path, LEAVE);
            assert_eq!((status, &response["status"]), (403, &403.into()), "{path} on {socket}");
            assert!(hint(&response).contains("admin.sock"), "{response}");
            assert_eq!(response["code"], "forbidden");
        }
        let mut stream = UnixStream::connect(world.device.path(ADMIN)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 405 "), "{response}");
        assert!(response.to_lowercase().contains("\r\nallow: post\r\n"), "{response}");
    }
    assert!(!world.device.log().contains("admin command received"), "nothing of that was an order");
    assert_eq!(world.device.status()["state"], "active");
    // The routes of the other sockets exist here, too.
    assert_eq!(post_at(&world.device, ADMIN, "/v1/status", "").0, 405);
}

#[test]
fn admin_command_response_says_what_happens_and_is_logged() {
    let world = World::enrolled();
    for (path, body, says) in [
        ("/v1/retry", "", "is tried again within seconds"),
        ("/v1/retry", "{\"newKey\":true}", "a new one, unless"),
        ("/v1/identities/device/renew", "", "is renewed now"),
    ] {
        let (status, response) = post(&world.device, path, body);
        assert_eq!((status, &response["accepted"]), (202, &true.into()), "{response}");
        assert!(detail(&response).contains(says), "{response}");
    }
    world.device.wait_until("all are carried out", |device| {
        device.log().matches("admin command executed").count() == 3
    });
    let (log, pid) = (world.device.log(), std::process::id());
    for order in ["retry", "retry --new-key", "renew"] {
        let line = log.lines().find(|line| {
            line.contains("admin command received") && line.contains(&format!("audit=\"{order}\""))
        });
        let line = line.unwrap_or_else(|| panic!("{order} is not in {log}"));
        assert!(
            line.contains("INFO") && line.contains("uid=") && line.contains(&format!("pid={pid}")),
            "{line}"
        );
    }
    world.device.wait_for("active");
}

#[test]
fn admin_command_with_another_body_is_refused() {
    let world = World::enrolled();
    let long = format!("{{\"newKey\":true{}}}", " ".repeat(5000));
    for (path, body, status, says, to_do) in [
        ("/v1/retry", "{\"newKey\":\"yes\"}", 400, "invalid type", "Send no body, or {\"newKey\": true}"),
        ("/v1/retry", "{\"now\":true}", 400, "unknown field `now`", "Send no body, or"),
        ("/v1/identities/device/renew", "{\"newKey\":true}", 400, "unknown field `newKey`", "Send no body"),
        ("/v1/retry", long.as_str(), 413, "4096 bytes", "Send a shorter one"),
        ("/v1/identities/device/retire", "", 400, "", "{\"trustDomain\": \"factory.example\"}"),
        (
            "/v1/identities/device/retire",
            "{\"trustDomain\":\"other.example\"}",
            409,
            "in the trust domain \"factory.example\"",
            "Name \"factory.example\"",
        ),
    ] {
        let (got, response) = post(&world.device, path, body);
        assert_eq!((got, &response["status"]), (status, &status.into()), "{path} {body}: {response}");
        assert!(detail(&response).contains(says) && hint(&response).contains(to_do), "{response}");
    }
    let unknown = "there is no identity \"wfm\"";
    for (path, body) in [
        ("/v1/identities/wfm/renew", ""),
        ("/v1/identities/wfm/retire", LEAVE),
        ("/v1/retry", "{\"newKey\":true,\"identity\":\"wfm\"}"),
    ] {
        let (status, response) = post(&world.device, path, body);
        assert!(status == 404 && detail(&response).contains(unknown), "{path}: {response}");
        assert_eq!(response["code"], "unknown-identity");
    }
    // A request that never ends costs its own connection, and delays no other.
    let mut slow = UnixStream::connect(world.device.path(ADMIN)).unwrap();
    write!(slow, "POST /v1/identities/device/renew HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{{")
        .unwrap();
    assert_eq!(post(&world.device, "/v1/retry", "").0, 202);
    let mut response = String::new();
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    slow.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 408 "), "{response}");
    assert_eq!(world.device.status()["state"], "active");
}

#[test]
fn admin_command_without_effect_is_refused_with_a_hint() {
    let mut world = World::new();
    world.device.configure("state_dir = \"{dir}/state\"\n[socket]\npath = \"{dir}/run/agent.sock\"\n");
    world.device.start();
    for (path, body) in COMMANDS.into_iter().zip(["", "", LEAVE]) {
        let (status, response) = post(&world.device, path, body);
        assert_eq!(status, 409, "{response}");
        assert!(hint(&response).starts_with("Set [mis] in"), "{response}");
        assert_eq!(
            (detail(&response), &response["code"]),
            ("this device is not configured", &"not-applicable".into())
        );
    }

    world.mis.sticky_fault(Endpoint::Enrollment, Fault::problem(503, "unavailable", Some("3600")));
    world.configure("");
    world.wait_for_requests(Endpoint::Enrollment, 1);
    for (path, body, says) in [
        ("/v1/identities/device/renew", "", "no SVID yet"),
        ("/v1/identities/device/retire", LEAVE, "nothing to retire"),
    ] {
        let (status, response) = post(&world.device, path, body);
        assert_eq!(status, 409, "{response}");
        assert!(detail(&response).contains(says), "{response}");
    }
    assert_eq!(post(&world.device, "/v1/retry", "").0, 202);
    assert!(retired_directories(&world.device).is_empty());
}

#[test]
fn admin_command_is_refused_while_the_state_is_unreadable() {
    let mut world = World::enrolled();
    world.device.kill();
    let (record, away) =
        (world.device.path("state/private/identities/device/identity.json"), world.device.path("away.json"));
    fs::rename(&record, &away).unwrap();
    fs::create_dir(&record).unwrap();
    let config = world::config(&world.mis, &world.tpm, "");
    world.device.configure(&config.replace("[key]", "[key]\nprovider = \"software\""));
    world.device.start();
    let status = world.device.wait_for("blocked");
    assert_eq!(status["key"]["provider"], "software", "what is configured, not a default");
    world.configure("");
    let (status, response) = post(&world.device, "/v1/retry", "");
    assert_eq!(status, 409);
    assert!(detail(&response).contains("state cannot be read"), "{response}");
    fs::remove_dir(&record).unwrap();
    fs::rename(&away, &record).unwrap();
    post(&world.device, "/v1/retry", "");
    world.device.wait_for("active");
}

#[test]
fn admin_command_is_queued_behind_the_current_action() {
    let world = World::renewing();
    let id = world.device.status()["spiffeId"].clone();
    world.mis.fault(Endpoint::Renewal, Fault::StallAnswer(Duration::from_secs(20)));
    world.device.wait_until("a renewal is under way", |_| world.mis.waiting_faults() == 0);
    let sent = Instant::now();
    let (status, response) = post(&world.device, "/v1/identities/device/retire", LEAVE);
    assert_eq!(status, 202, "{response}");
    assert!(detail(&response).ends_with("when what the agent is doing has ended."), "{response}");
    assert!(sent.elapsed() < Duration::from_secs(15), "the response comes while the MIS stalls");
    assert_eq!(world.device.status()["spiffeId"], id, "an action is never dropped half-way");
    for _ in 0..3 {
        assert_eq!(post(&world.device, "/v1/retry", "").0, 202);
    }
    let (status, response) = post(&world.device, "/v1/retry", "");
    assert_eq!(status, 503, "{response}");
    world
        .device
        .wait_until("it is carried out", |device| device.log().contains("identity retired by admin command"));
    world.wait_for_requests(Endpoint::Enrollment, 2);
    world.device.wait_for_status("another identity", |status| status["svid"].is_object());
    // The chain of the renewal was retired too: it did not bring the old identity back.
    assert!(world.device.path("state/private/retired-1-device/issued.json").exists());
}

/// Another MIS, with its own factory credential for this device.
fn other_mis(directory: &Path) -> Mis {
    let mut settings = Settings {
        directory: directory.join("other"),
        trust_domain: "other.example".into(),
        ..Settings::default()
    };
    settings.policy.refresh_hint = None;
    Mis::start(settings).unwrap()
}

#[test]
fn identity_is_retired_for_another_domain_on_command_only() {
    let world = World::enrolled();
    let before = world.device.status();
    let generation: u64 =
        serde_json::from_str::<Value>(&world.device.get("/v1/svid").unwrap().1).unwrap()["generation"]
            .as_u64()
            .unwrap();
    let svid = world.device.published("svid.pem");
    let directory = tempfile::tempdir().unwrap();
    let other = other_mis(directory.path());
    world.device.configure(&world::config(&other, &world.tpm, ""));
    world.device.signal("HUP");
    let refused = world.device.wait_for_error("this device's identity is in \\\"factory.example\\\"");
    assert!(refused["lastError"]["hint"].as_str().unwrap().contains("miaf-agent retire"), "{refused:#}");
    assert_eq!(world.device.published("svid.pem"), svid, "the current SVID stays in use");

    // The new MIS does not respond for a while: a device without an identity is shown as such.
    other.stop_listening().unwrap();
    let (status, response) = post(&world.device, "/v1/identities/device/retire", LEAVE);
    assert_eq!(status, 202, "{response}");
    let none = world.device.wait_for_status("no identity", |status| status["spiffeId"].is_null());
    assert!(none["svid"].is_null() && none["bundle"].is_null() && none["trustDomain"].is_null(), "{none:#}");
    assert_eq!(world.device.get("/v1/svid").unwrap().0, 503);
    assert_eq!(world.device.get("/v1/bundle").unwrap().0, 503);
    assert_eq!(world.device.get("/readyz").unwrap().0, 503);
    let published = world.device.path("state/svid/device");
    assert!(fs::symlink_metadata(published.join("current")).is_err(), "nothing is published");
    for directory in fs::read_dir(&published).unwrap() {
        assert_eq!(fs::read_dir(directory.unwrap().path()).unwrap().count(), 0, "and no file is left");
    }
    let retired = world.device.path("state/private/retired-1-device");
    assert!(retired.join("identity.json").exists(), "it is retired");
    assert!(!world.device.path("state/private/identities/device/identity.json").exists(), "and not in use");
    let log = world.device.log();
    let line = log.lines().find(|line| line.contains("identity retired by admin command")).unwrap();
    assert!(line.contains("WARN") && line.contains(before["spiffeId"].as_str().unwrap()), "{line}");

    other.resume().unwrap();
    let after = world.device.wait_for("active");
    assert_eq!(after["trustDomain"], "other.example");
    assert_ne!(after["spiffeId"], before["spiffeId"]);
    let response: Value = serde_json::from_str(&world.device.get("/v1/svid").unwrap().1).unwrap();
    assert!(response["generation"].as_u64().unwrap() > generation, "no generation number is used twice");
    let said: Value = serde_json::from_str(&world.device.published("identity.json")).unwrap();
    assert_eq!(said["spiffeId"], after["spiffeId"]);
}

#[test]
fn reset_identity_reloads_and_needs_a_valid_configuration() {
    let world = World::enrolled();
    world.device.configure("nonsense");
    let (status, response) = post(&world.device, "/v1/identities/device/retire", LEAVE);
    assert_eq!(status, 409, "{response}");
    assert!(detail(&response).contains("config.toml"), "{response}");
    assert_eq!(world.device.status()["state"], "active");
    // A configuration without an MIS: the device stays without an identity.
    world.device.configure("state_dir = \"{dir}/state\"\n[socket]\npath = \"{dir}/run/agent.sock\"\n");
    assert_eq!(post(&world.device, "/v1/identities/device/retire", LEAVE).0, 202);
    world.device.wait_for("unconfigured");
    assert!(fs::symlink_metadata(world.device.path("state/svid/device/current")).is_err());
    world.configure("");
    assert_eq!(world.device.wait_for("active")["trustDomain"], "factory.example");
}

#[test]
fn reset_identity_withdraws_published_software_keys() {
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut world = World::new();
    world.tpm.stop();
    let keys = memory.path().join("keys");
    let more = format!("[files]\nsoftware_key_dir = \"{}\"", keys.display());
    let config = world::config(&world.mis, &world.tpm, &more);
    world.device.configure(&config.replace("[key]", "[key]\nprovider = \"software\""));
    world.device.start();
    world.device.wait_for("active");
    let key = fs::read_to_string(keys.join("device/current/key.pem")).unwrap();
    world.mis.sticky_fault(Endpoint::Enrollment, Fault::Status(503));
    assert_eq!(post(&world.device, "/v1/identities/device/retire", LEAVE).0, 202);
    world.device.wait_for_status("no identity", |status| status["spiffeId"].is_null());
    assert_eq!(fs::read_dir(keys.join("device")).unwrap().count(), 0);
    world.mis.clear_faults();
    world.device.wait_for("active");
    assert_ne!(fs::read_to_string(keys.join("device/current/key.pem")).unwrap(), key);
}

#[test]
fn retry_after_delay_survives_the_retired_identity() {
    let world = World::enrolled();
    world.mis.sticky_fault(Endpoint::Renewal, Fault::problem(429, "too-many", Some("600")));
    assert_eq!(post(&world.device, "/v1/identities/device/renew", "").0, 202);
    let waits = world.device.path("state/private/retry-after.json");
    world.device.wait_until("the delay is stored", |_| waits.exists());
    assert_eq!(post(&world.device, "/v1/identities/device/retire", LEAVE).0, 202);
    world.device.wait_for_status("no identity", |status| status["spiffeId"].is_null());
    let (status, seen) = world.after(Duration::from_secs(3));
    assert!(seen.iter().all(|entry| !world::is_at(entry, Endpoint::Enrollment)), "{seen:?}");
    assert_eq!(status["state"], "enrolling", "{status:#}");
    assert!(status["svid"].is_null() && waits.exists(), "{status:#}");
}

#[test]
fn retry_after_delay_of_the_bundle_outlives_a_retired_identity() {
    let world = World::enrolled();
    world.mis.sticky_fault(Endpoint::Bundle, Fault::problem(503, "unavailable", Some("600")));
    let waits = world.device.path("state/private/retry-after.json");
    world.device.wait_until("the delay is stored", |_| waits.exists());
    assert_eq!(post(&world.device, "/v1/identities/device/retire", LEAVE).0, 202);
    world.device.wait_for_status("no identity", |status| status["spiffeId"].is_null());
    let (status, seen) = world.after(Duration::from_secs(3));
    assert!(seen.iter().all(|entry| !world::is_at(entry, Endpoint::Bundle)), "{seen:?}");
    assert_eq!(status["state"], "discovering", "no other identity has kept the bundle: {status:#}");
    assert!(waits.exists());
}

/// The documents stay with another identity of the trust domain, and hold up no request.
#[test]
fn retired_identity_leaves_the_documents_to_the_others() {
    let world = World::enrolled_with(&format!("{DEVICE}{MANUAL}"));
    let id = "spiffe://factory.example/margo/wfm/wfm-1/client/line-7";
    enroll_by_hand(&world, "wfm-client", id, Duration::from_secs(3600));
    let serial = world.device.status()["svid"]["serial"].clone();
    world.mis.sticky_fault(Endpoint::Bundle, Fault::problem(503, "unavailable", Some("600")));
    let waits = world.device.path("state/private/retry-after.json");
    world.device.wait_until("the delay is stored", |_| waits.exists());
    let before = world.seen(Endpoint::Bundle).len();
    assert_eq!(post(&world.device, "/v1/identities/device/retire", LEAVE).0, 202);
    world.device.wait_for_another_svid(&serial);
    assert_eq!(world.device.get("/v1/identities/wfm-client/readyz").unwrap().0, 200);
    assert_eq!(world.seen(Endpoint::Bundle).len(), before);
    assert!(waits.exists());
}

#[test]
fn reset_identity_survives_a_power_cut_at_any_step() {
    let mut world = World::enrolled();
    let state = world.device.path("state");
    let private = state.join("private");
    let id = world.device.status()["spiffeId"].clone();
    // Half-way by hand: withdrawn and not retired yet; retired, and nothing more.
    world.kill();
    fs::remove_file(state.join("svid/device/current")).unwrap();
    world.device.start();
    assert_eq!(world.device.wait_for("active")["spiffeId"], id);
    world
        .device
        .wait_until("published again", |device| device.path("state/svid/device/current/svid.pem").exists());
    assert_eq!(world.seen(Endpoint::Enrollment).len(), 1, "it was not retired");

    world.kill();
    fs::remove_dir_all(state.join("svid")).unwrap();
    fs::rename(private.join("identities/device"), private.join("retired-1-device")).unwrap();
    world.device.start();
    world.device.wait_for("active");
    assert_eq!(world.seen(Endpoint::Enrollment).len(), 2, "it was retired, and the device enrolls as new");

    // And at any moment.
    for delay in [0, 1, 2, 4, 7, 12, 20] {
        let before = world.device.published("svid.pem");
        assert_eq!(post(&world.device, "/v1/identities/device/retire", LEAVE).0, 202);
        std::thread::sleep(Duration::from_millis(delay));
        world.kill();
        let is_current = private.join("identities/device/identity.json").exists();
        world.device.start();
        world.device.wait_for("active");
        world
            .device
            .wait_until("published", |device| device.path("state/svid/device/current/svid.pem").exists());
        let svid: Value = serde_json::from_str(&world.device.get("/v1/svid").unwrap().1).unwrap();
        let served = svid["certificateChainPem"].as_array().unwrap();
        let served: String = served.iter().map(|pem| pem.as_str().unwrap()).collect();
        assert_eq!(world.device.published("svid.pem"), served);
        assert!(is_current || served != before, "a retired identity does not come back");
    }
    assert!(!world.device.log().contains("record quarantined"), "nothing was torn");
}

#[test]
fn admin_commands_report_their_result_in_words() {
    let world = World::enrolled();
    let run = |arguments: &[&str]| {
        let output = world.device.run(arguments);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    let (accepted, said, _) = run(&["retry"]);
    assert!(accepted && said.contains("is tried again within seconds"), "{said}");
    let (accepted, said, _) = run(&["retry", "--new-key", "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert!(accepted && said["accepted"] == json!(true) && detail(&said).contains("new one"), "{said}");
    let (accepted, said, _) = run(&["renew"]);
    assert!(accepted && said.contains("renewed now") && said.contains("miaf-agent status"), "{said}");
    let agent = world.device.path("run/agent.sock");
    let (accepted, _, said) = run(&["renew", "--socket", agent.to_str().unwrap()]);
    assert!(!accepted && said.contains("\n  Hint: Use the administration socket"), "{said}");

    let (accepted, _, said) = run(&["retire"]);
    assert!(!accepted && said.contains("\"factory.example\"") && said.contains("--yes"), "{said}");
    world.device.wait_for("active"); // it has renewed, and was not retired
    world.mis.sticky_fault(Endpoint::Enrollment, Fault::Status(503));
    let (accepted, said, _) = run(&["retire", "--yes"]);
    assert!(accepted && said.contains("The identity is retired"), "{said}");
    world.device.wait_for_status("no identity", |status| status["spiffeId"].is_null());
    let (accepted, _, said) = run(&["retire", "--yes"]);
    assert!(!accepted && said.contains("nothing to retire"), "{said}");
    let (accepted, _, said) = run(&["renew"]);
    assert!(
        !accepted && said.contains("no SVID yet that could be renewed\n  Hint: See in the status"),
        "{said}"
    );
    for command in [&["retire", "--yes", "--identity", "wfm"][..], &["renew", "--identity", "wfm"]] {
        let (accepted, _, said) = run(command);
        assert!(!accepted && said.starts_with("miaf-agent: there is no identity "), "{said}");
        assert!(said.contains("\n  Hint: See those that there are: ") && said.lines().count() == 2, "{said}");
    }

    let none = Device::new("[socket]\npath = \"{dir}/run/agent.sock\"\n");
    let said = String::from_utf8(none.run(&["retry"]).stderr).unwrap();
    assert!(said.contains("run/admin.sock") && said.contains("systemctl status miaf-agent"), "{said}");
}
