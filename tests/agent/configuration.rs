//! What ends the process and what only blocks (design: lifecycle 1).

use std::fs;

use crate::support::agent::Device;
use crate::world::{self, World};

const UNCONFIGURED: &str = "state_dir = \"{dir}/state\"\n[socket]\npath = \"{dir}/run/agent.sock\"\n";

#[test]
fn device_without_a_configuration_waits_for_one() {
    let mut world = World::new();
    world.device.configure(UNCONFIGURED);
    world.device.start();
    let status = world.device.wait_for("unconfigured");
    assert!(status["spiffeId"].is_null());
    assert_eq!(world.device.get("/healthz").unwrap().0, 200);
    assert_eq!(world.device.get("/readyz").unwrap().0, 503);
    assert_eq!(world.device.get("/v1/svid").unwrap().0, 503);
    assert_eq!(world.device.get("/v1/bundle").unwrap().0, 503);
    world.configure("");
    world.device.wait_for("active");
}

#[test]
fn socket_that_cannot_be_bound_ends_the_process() {
    let device = Device::new("[socket]\npath = \"/proc/no/agent.sock\"\n");
    let output = device.run(&["run"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/proc/no/agent.sock cannot be bound"), "{said}");
    assert!(said.contains("hint=Check [socket] in the configuration"), "{said}");
}

#[test]
fn second_agent_does_not_take_the_socket_of_the_first() {
    let world = World::enrolled();
    let output = world.device.run(&["run"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("another agent listens on it"), "{said}");
    assert_eq!(world.device.get("/readyz").unwrap().0, 200);
}

#[test]
fn state_is_locked_against_a_second_agent() {
    let mut world = World::enrolled();
    let mut second = Device::new("");
    let config = world::config(&world.mis, &world.tpm, "");
    let state = format!("state_dir = \"{}\"", world.device.path("state").display());
    second.configure(&config.replace("state_dir = \"{dir}/state\"", &state));
    second.start();
    let status = second.wait_for("blocked");
    assert!(status["lastError"]["detail"].as_str().unwrap().contains("another agent uses"), "{status:#}");
    // The first one ends, and the second continues with its state.
    let held = world.device.status();
    world.device.stop();
    let status = second.wait_for("active");
    for member in ["spiffeId", "svid"] {
        assert_eq!(status[member], held[member], "{member}");
    }
    assert_eq!(world.seen(development_mis::Endpoint::Enrollment).len(), 1, "nothing was requested again");
}

#[test]
fn unreadable_state_is_waited_for_and_not_replaced() {
    let mut world = World::enrolled();
    let id = world.device.status()["spiffeId"].clone();
    world.device.kill();
    // A directory in its place: it exists, and is not readable as a file.
    let (record, away) =
        (world.device.path("state/private/identities/device/identity.json"), world.device.path("away.json"));
    fs::rename(&record, &away).unwrap();
    fs::create_dir(&record).unwrap();
    world.device.start();
    let status = world.device.wait_for("blocked");
    assert!(status["lastError"]["detail"].as_str().unwrap().contains("could not read"), "{status:#}");
    fs::remove_dir(&record).unwrap();
    fs::rename(&away, &record).unwrap();
    assert_eq!(world.device.wait_for("active")["spiffeId"], id);
    assert_eq!(world.seen(development_mis::Endpoint::Enrollment).len(), 1, "no other identity was requested");
}

#[test]
fn socket_moves_with_a_configuration_that_appears_later() {
    let mut world = World::new();
    world.device.configure(&UNCONFIGURED.replace("agent.sock", "elsewhere.sock"));
    world.device.spawn();
    let elsewhere = world.device.path("run/elsewhere.sock");
    world.device.wait_until("the socket is there", |_| elsewhere.exists());
    world.configure("");
    world.device.wait_until("the socket has moved", |device| device.get("/healthz").is_some());
    world.device.wait_until("the old one is gone", |_| !elsewhere.exists());
    world.device.wait_for("active");
}

#[test]
fn missing_factory_certificate_blocks_until_it_appears() {
    let mut world = World::new();
    let certificate = world.mis.factory_cert();
    let away = certificate.with_extension("away");
    fs::rename(&certificate, &away).unwrap();
    world.device.start();
    let status = world.device.wait_for("blocked");
    assert!(
        status["lastError"]["detail"].as_str().unwrap().contains("factory.pem: it cannot be read"),
        "{status:#}"
    );
    fs::rename(&away, &certificate).unwrap();
    world.device.wait_for("active");
}

#[test]
fn factory_key_of_another_certificate_is_named() {
    let mut world = World::new();
    let (_, other_key) = world.mis.new_factory_credential("another").unwrap();
    fs::copy(other_key, world.mis.factory_key()).unwrap();
    world.device.start();
    let status = world.device.wait_for("blocked");
    assert!(
        status["lastError"]["detail"]
            .as_str()
            .unwrap()
            .contains("does not belong to the factory certificate"),
        "{status:#}"
    );
}

#[test]
fn missing_bootstrap_section_blocks_and_is_named() {
    let mut world = World::new();
    let config = world::config(&world.mis, &world.tpm, "");
    let from = config.find("[bootstrap]").unwrap();
    let to = config.find("[key]").unwrap();
    world.device.configure(&format!("{}{}", &config[..from], &config[to..]));
    world.device.start();
    let status = world.device.wait_for("blocked");
    assert!(status["lastError"]["hint"].as_str().unwrap().contains("[bootstrap]"), "{status:#}");
}

#[test]
fn unreachable_tpm_blocks_until_it_appears() {
    let mut world = World::new();
    world.tpm.stop();
    world.device.start();
    let status = world.device.wait_for("blocked");
    assert!(status["lastError"]["detail"].as_str().unwrap().contains("cannot reach the TPM"), "{status:#}");
    world.tpm.boot();
    world.device.wait_for("active");
}

#[test]
fn replaced_tpm_is_named_as_the_cause() {
    let mut world = World::renewing();
    world.tpm.stop();
    let other = crate::support::swtpm::Swtpm::start();
    let config = world::config(&world.mis, &other, world::SOON);
    world.device.kill();
    world.device.configure(&config);
    world.device.start();
    let status = world.device.wait_for("blocked");
    assert_eq!(status["lastError"]["code"], "key-lost", "{status:#}");
    assert!(status["svid"].is_object(), "what is held is not thrown away");
}

#[test]
fn pending_key_of_another_tpm_is_replaced() {
    let mut world = World::new();
    world.mis.sticky_fault(development_mis::Endpoint::Enrollment, development_mis::Fault::Status(503));
    world.device.start();
    world.wait_for_requests(development_mis::Endpoint::Enrollment, 1);
    world.device.kill();
    let other = crate::support::swtpm::Swtpm::start();
    world.device.configure(&world::config(&world.mis, &other, ""));
    world.mis.clear_faults();
    world.device.start();
    world.device.wait_for("active");
    assert!(world.device.path("state/private/identities/device/pending-key.pem.unusable-1").exists());
}

#[test]
fn damaged_pending_key_is_quarantined_and_replaced() {
    let mut world = World::new();
    world.mis.sticky_fault(development_mis::Endpoint::Enrollment, development_mis::Fault::Status(503));
    world.device.start();
    world.wait_for_requests(development_mis::Endpoint::Enrollment, 1);
    world.device.kill();
    let record = world.device.path("state/private/identities/device/pending-key.pem");
    let pem = fs::read_to_string(&record).unwrap();
    let damaged = miaf_agent::keys::tss2::Tss2Key {
        public: vec![0; 90],
        ..miaf_agent::keys::tss2::Tss2Key::from_pem(&pem).unwrap()
    };
    fs::write(&record, damaged.to_pem().unwrap()).unwrap();
    world.mis.clear_faults();
    world.device.start();
    world.device.wait_for("active");
    assert!(record.with_extension("pem.unusable-1").exists());
}

#[test]
fn sighup_reloads_and_a_bad_configuration_keeps_the_old() {
    let world = World::enrolled();
    world.device.configure("nonsense");
    world.device.signal("HUP");
    world.device.wait_until("it complains", |device| device.log().contains("stays in use"));
    assert_eq!(world.device.status()["state"], "active");
    fs::remove_file(world.device.path("config.toml")).unwrap(); // as bad as a bad one
    world.device.signal("HUP");
    world.device.wait_until("it complains", |device| device.log().contains("names no [mis] any more"));
    assert_eq!(world.device.status()["state"], "active");
    world.configure("[log]\nlevel = \"info\"");
    world.device.signal("HUP");
    world.device.wait_until("it is read", |device| device.log().contains("has been read anew"));
    world.device.wait_for("active");
}

#[test]
fn damaged_state_is_quarantined_and_the_device_enrolls() {
    let mut world = World::enrolled();
    let id = world.device.status()["spiffeId"].clone();
    world.device.kill();
    let record = world.device.path("state/private/identities/device/identity.json");
    fs::write(&record, "{\"version\":1,").unwrap();
    world.device.start();
    assert_eq!(
        world.device.wait_for("active")["spiffeId"],
        id,
        "the MIS knows it by its factory certificate"
    );
    assert!(record.with_extension("json.unusable-1").exists());
}

#[test]
fn commands_print_for_people_and_programs() {
    let world = World::enrolled();
    let text = |arguments: &[&str]| {
        let output = world.device.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let status = text(&["status"]);
    assert!(status.contains("active - the device has a valid identity"), "{status}");
    assert!(status.contains("in this device's TPM; it cannot be copied out"), "{status}");
    let json: serde_json::Value = serde_json::from_str(&text(&["status", "--json"])).unwrap();
    assert_eq!(json, world.device.status_document());
    assert_eq!(text(&["svid"]), world.device.published("svid.pem"));
    assert_eq!(text(&["bundle"]), world.device.published("bundle.pem"));
    let json: serde_json::Value = serde_json::from_str(&text(&["svid", "--json"])).unwrap();
    assert!(json["certificateChainPem"][0].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE"));
    assert!(json["generation"].is_u64());
    serde_json::from_str::<serde_json::Value>(&text(&["bundle", "--json"])).unwrap();
}

#[test]
fn command_without_an_agent_says_what_to_do() {
    let device = Device::new(UNCONFIGURED);
    let output = device.run(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    let (message, hint) = said.split_once('\n').unwrap();
    assert!(
        message.starts_with("miaf-agent: no agent answers at") && !message.contains("systemctl"),
        "{said}"
    );
    assert_eq!(hint, "  Hint: Check whether it is running: systemctl status miaf-agent\n");
}

#[test]
fn check_config_prints_the_hint_on_a_line_of_its_own() {
    for (bad, message, hint) in [
        ("[retry]\nbase = \"5 parsecs\"\n", "2: retry.base: ", "Write \"5m\", \"30s\" or \"200ms\""),
        (
            "[key]\ntcti = \"x\"\n",
            "2: key.tcti: not a TPM connection: \"x\" ",
            "Set tcti to device:/dev/tpmrm0, ",
        ),
        ("[key]\nparent = \"srk\"\n", "2: key.parent: it is neither ", "Write \"auto\", "),
    ] {
        let device = Device::new(bad);
        let json = device.run(&["check-config", "--json"]);
        let json_document: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!((json.status.code(), &json_document["valid"]), (Some(78), &false.into()));
        assert!(json_document["hint"].as_str().unwrap().starts_with(hint), "{json_document}");
        let output = device.run(&["check-config"]);
        assert_eq!(output.status.code(), Some(78));
        let said = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<_> = said.lines().collect();
        let file = device.path("config.toml");
        assert!(lines[0].starts_with(&format!("miaf-agent: {}:{message}", file.display())), "{said}");
        assert!(lines[1].starts_with(&format!("  Hint: {hint}")) && lines.len() == 2, "{said}");
    }
}

#[test]
fn socket_serves_http_and_problem_details() {
    let world = World::enrolled();
    let (status, body) = world.device.get("/nowhere").unwrap();
    let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &problem["status"], &problem["type"]), (404, &404.into(), &"about:blank".into()));
    assert!(
        body.starts_with("{\"type\":\"about:blank\",\"title\":\"Not Found\",\"status\":404,\"code\":"),
        "{body}"
    );
    let post = "POST /v1/status HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    assert_eq!(world.device.request(post).unwrap().0, 405);
}
