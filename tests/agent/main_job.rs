//! The main job: from no identity to one that is renewed in time.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use development_mis::{ClientKind, Endpoint, IssuerAlgorithm, IssuingMode};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::support::agent::PATIENCE;
use crate::world::World;

#[test]
fn new_device_enrolls_with_a_tpm_key_and_publishes() {
    let world = World::enrolled();
    let status = world.device.status();
    let id = status["spiffeId"].as_str().unwrap();
    assert!(id.starts_with("spiffe://factory.example/margo/device/"), "{id}");
    assert_eq!(status["trustDomain"], "factory.example");
    assert_eq!(status["key"]["provider"], "tpm");
    assert_eq!(status["key"]["protection"], "hardware");
    assert_eq!(status["bundle"]["sequence"], 1);
    assert!(status["bootstrap"]["notAfter"].is_string());
    assert!(status["lastError"].is_null());

    // The requests came in the sequence that D1, B and E prescribe, and it showed its certificate
    // only where it enrolls.
    let seen: Vec<_> =
        world.mis.journal().into_iter().take(3).map(|e| (e.path, e.client, e.status)).collect();
    assert_eq!(
        seen,
        [
            ("/.well-known/margo".into(), ClientKind::None, Some(200)),
            ("/.well-known/spiffe/bundle.json".into(), ClientKind::None, Some(200)),
            ("/api/v1/identities".into(), ClientKind::Factory, Some(201)),
        ]
    );
    assert_eq!(world.mis.device(&world.mis.factory_cert()).unwrap().unwrap().ldi, id);
}

/// Chain, key and renewal moment are one record, written once: a power cut finds all of it, and the
/// flash is spared.
#[test]
fn adoption_writes_the_identity_once() {
    let mut world = World::new();
    let private = world.device.path("state/private/identities/device");
    fs::create_dir_all(&private).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    let changes = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    changes.add_watch(&private, AddWatchFlags::IN_MOVED_TO).unwrap();
    world.device.start();
    let status = world.device.wait_for("active");
    let mut writes = 0;
    while let Ok(events) = changes.read_events() {
        writes +=
            events.iter().filter(|event| event.name.as_deref() == Some("identity.json".as_ref())).count();
    }
    assert_eq!(writes, 1);
    let record = fs::read_to_string(private.join("identity.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert!(!record["record"]["renew_at"].is_null() && !status["svid"]["renewAt"].is_null(), "{record:#}");
}

#[test]
fn issuers_of_every_kind_are_accepted() {
    for mode in [IssuingMode::Root, IssuingMode::Intermediate] {
        for algorithm in [IssuerAlgorithm::P256, IssuerAlgorithm::RsaPss] {
            let mut world = World::with(|settings| (settings.mode, settings.algorithm) = (mode, algorithm));
            world.device.start();
            world.device.wait_for("active");
            assert_eq!(world.device.get("/readyz").unwrap().0, 200, "{mode:?} {algorithm:?}");
            // The complete chain is stored and presented (E3).
            let certificates = world.device.published("svid.pem").matches("BEGIN CERTIFICATE").count();
            assert_eq!(certificates, if mode == IssuingMode::Root { 1 } else { 2 });
        }
    }
}

#[test]
fn identity_is_renewed_under_its_name_with_a_new_key() {
    let world = World::renewing();
    let before = world.device.status();
    let key_before = world.device.published("key.pem");
    let after = world.device.wait_for_another_svid(&before["svid"]["serial"]);
    assert_eq!(after["spiffeId"], before["spiffeId"]);
    world.device.wait_until("the new key is published", |device| device.published("key.pem") != key_before);
    let renewal = &world.wait_for_requests(Endpoint::Renewal, 1)[0];
    assert_eq!((renewal.client, renewal.status), (ClientKind::Svid, Some(200)));
    assert_ne!(renewal.csr_spki_sha256, world.seen(Endpoint::Enrollment)[0].csr_spki_sha256);
}

#[test]
fn key_stays_with_rotation_off() {
    let mut world = World::with(|settings| crate::world::long_enough(&mut settings.policy));
    let config = crate::world::config(&world.mis, &world.tpm, crate::world::SOON);
    world.device.configure(&config.replace("[key]", "[key]\nrotate = false"));
    world.device.start();
    let renewal = world.wait_for_requests(Endpoint::Renewal, 1);
    assert_eq!(renewal[0].csr_spki_sha256, world.seen(Endpoint::Enrollment)[0].csr_spki_sha256);
}

#[test]
fn killed_agent_serves_its_identity_without_a_network() {
    let mut world = World::enrolled();
    let before = world.device.status();
    world.device.kill();
    world.mis.stop_listening().unwrap();
    world.tpm.stop();
    world.device.start();
    assert_eq!(world.device.get("/readyz").unwrap().0, 200);
    // Whether it has noticed already that its TPM is unreachable, or not.
    let after = world.device.status();
    assert_eq!((&after["spiffeId"], &after["svid"]), (&before["spiffeId"], &before["svid"]));
    assert_eq!(world.seen(Endpoint::Enrollment).len(), 1, "it did not enroll again");

    // The network comes back: the bundle is refreshed promptly (B4).
    let fetched = world.seen(Endpoint::Bundle).len();
    world.mis.resume().unwrap();
    world.wait_for_requests(Endpoint::Bundle, fetched + 1);
}

#[test]
fn renewal_moment_is_in_its_window_and_survives_a_restart() {
    let mut world = World::enrolled(); // lifetime 24 h and 30 s, window 0.4 to 0.6
    let svid = world.device.status()["svid"].clone();
    let moment = |name: &str| {
        let text = svid[name].as_str().unwrap();
        humantime::parse_rfc3339(text).unwrap().duration_since(std::time::UNIX_EPOCH).unwrap()
    };
    let lifetime = moment("notAfter") - moment("notBefore");
    let part = (moment("renewAt") - moment("notBefore")).as_secs_f64() / lifetime.as_secs_f64();
    assert!((0.399..=0.601).contains(&part), "{part}");
    world.device.kill();
    world.device.start();
    assert_eq!(world.device.status()["svid"], svid);
}

#[test]
fn agent_ends_on_sigterm_and_removes_its_socket() {
    let mut world = World::enrolled();
    assert!(world.device.stop().success());
    assert!(!world.device.path("run/agent.sock").exists());
    assert!(world.device.log().contains("miaf-agent ends"));
}

#[test]
fn expired_identity_is_reported_and_enrolled_again() {
    // The MIS goes away for good after the first response, and the SVID runs out.
    let mut world = World::with(|settings| {
        settings.policy.svid_lifetime = Duration::from_secs(60);
        settings.policy.backdate = Duration::from_secs(0);
    });
    world.device.start();
    world.device.wait_for("active");
    world.mis.stop_listening().unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(60) + PATIENCE;
    while world.device.status()["state"] != "expired" {
        assert!(std::time::Instant::now() < deadline, "{:#}", world.device.status());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(world.device.get("/readyz").unwrap().0, 503, "health never lies");
    assert_eq!(world.device.get("/v1/svid").unwrap().0, 200, "it stays readable");
    world.device.wait_until("identity.json says so", |device| {
        device.published("identity.json").contains("\"valid\": false")
    });

    // The MIS is back: the device enrolls again, with the same identity (R6).
    let id = world.device.status()["spiffeId"].clone();
    world.mis.resume().unwrap();
    assert_eq!(world.device.wait_for("active")["spiffeId"], id);
    let again = world.wait_for_requests(Endpoint::Enrollment, 2);
    assert_eq!((again[1].client, again[1].status), (ClientKind::Factory, Some(200)));
}
