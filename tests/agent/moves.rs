//! The world changes around a device that has an identity: anchors, the memory of the MIS, its
//! clock.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use development_mis::{AnchorStep, DocumentFault, Endpoint, Fault};
use serde_json::Value;

use crate::world::{self, World};

/// What is on the disk of a device whose MIS was ahead once, say.
const IN_2100: &str = "{\"version\":1,\"record\":{\"proven\":4102444800000,\"vouched\":null}}";

#[test]
fn anchor_rotation_keeps_the_device_trusted_at_every_step() {
    let world = World::enrolled();
    let before = world.device.status();
    world.mis.rotate_anchors(AnchorStep::Announce).unwrap();
    let anchors = |count| {
        move |device: &crate::support::agent::Device| {
            device.published("bundle.pem").matches("BEGIN CERTIFICATE").count() == count
        }
    };
    world.device.wait_until("both anchors", anchors(2));
    world.mis.rotate_anchors(AnchorStep::Switch).unwrap();
    let (status, _) = world.after(Duration::from_secs(2));
    assert_eq!(status["svid"], before["svid"], "an SVID that is trusted is not renewed before its time");
    assert_eq!(world.device.get("/readyz").unwrap().0, 200);

    // The old one goes away, long before the SVID is to be renewed.
    world.mis.rotate_anchors(AnchorStep::DropOld).unwrap();
    let after = world.device.wait_for_another_svid(&before["svid"]["serial"]);
    assert_eq!(after["spiffeId"], before["spiffeId"]);
    world.device.wait_until("ready again", |device| device.get("/readyz").unwrap().0 == 200);
    world.device.wait_until("one anchor", anchors(1));
    // To an MIS that does not know its own SVIDs any more, the device shows its factory certificate
    // after all (R6).
    assert!(!world.seen(Endpoint::Renewal).is_empty(), "a renewal is tried first");
}

#[test]
fn emptied_bundle_leads_to_no_renewal() {
    let world = World::enrolled();
    world.mis.sticky_fault(Endpoint::Bundle, Fault::Document(DocumentFault::EmptyKeys));
    world.device.wait_for_error("holds no anchor");
    let (_, seen) = world.after(Duration::from_secs(3));
    assert!(seen.iter().all(|entry| !entry.path.contains("identities")), "no SVID would be better: {seen:?}");
}

#[test]
fn bundle_rollback_is_accepted_once_by_the_operator() {
    let mut world = World::with(|settings| settings.first_sequence = 7);
    world.device.start();
    world.device.wait_for("active");
    for (sequence, held) in [(5, 7), (3, 5)] {
        world.mis.set_sequence(sequence).unwrap();
        world.device.wait_for_error(&format!("lower than the {held} of the current one"));
        assert!(world.device.run(&["retry"]).status.success());
        world
            .device
            .wait_for_status("the bundle that is served", |status| status["bundle"]["sequence"] == sequence);
        world.device.wait_for_status("no error", |status| status["lastError"].is_null());
    }
}

#[test]
fn mis_that_lost_the_device_may_rename_it_with_a_log_entry() {
    let world = World::renewing();
    let before = world.device.status();
    world.mis.forget_devices().unwrap(); // restored from an old backup: 401 at renewal, 201 at enrollment (R6, E9)
    let after = world.device.wait_for_status("another identity", |status| {
        status["spiffeId"].is_string() && status["spiffeId"] != before["spiffeId"]
    });
    assert_eq!(world.seen(Endpoint::Enrollment).last().unwrap().status, Some(201));
    let log = world.device.log();
    let said = log.lines().find(|line| line.contains("another SPIFFE ID than it had")).expect("it is said");
    assert!(said.contains("ERROR") && said.contains(after["spiffeId"].as_str().unwrap()), "{said}");
}

#[test]
fn renew_command_renews_at_once_with_a_new_key() {
    let world = World::enrolled();
    let (before, key) = (world.device.status(), world.device.published("key.pem"));
    assert!(world.device.run(&["renew"]).status.success());
    let after = world.device.wait_for_another_svid(&before["svid"]["serial"]);
    assert_eq!(after["spiffeId"], before["spiffeId"]);
    world.device.wait_until("the new key", |device| device.published("key.pem") != key);
}

#[test]
fn no_command_shortens_a_retry_after_delay() {
    let mut world = World::new();
    world.mis.sticky_fault(Endpoint::Enrollment, Fault::problem(429, "too-many-requests", Some("4")));
    world.device.start();
    world.wait_for_requests(Endpoint::Enrollment, 1);
    for order in [&["retry"][..], &["retry", "--new-key"], &["retry"]] {
        world.device.wait_for_error("too-many-requests");
        assert!(world.device.run(order).status.success());
    }
    world.mis.clear_faults();
    world.device.wait_for("active");
    let requests = world.seen(Endpoint::Enrollment);
    let waited = requests[1].at - requests[0].at;
    assert!(waited >= Duration::from_secs(4), "{waited:?} (E8)");
}

#[test]
fn clock_behind_proven_time_is_not_trusted_until_the_mis_agrees() {
    let mut world = World::enrolled();
    let before = world.device.status();
    world.device.kill();
    let record = world.device.path("state/private/time.json");
    assert!(record.exists(), "the time that the MIS proved is kept");
    fs::write(&record, IN_2100).unwrap();
    world.mis.stop_listening().unwrap();
    world.device.start();
    let waiting = world.device.wait_for("waiting-for-clock");
    let error = &waiting["lastError"];
    assert_eq!(error["code"], "clock");
    let detail = error["detail"].as_str().unwrap();
    assert!(detail.contains("2100-01-01") && !detail.contains("miaf-agent"), "{detail}");
    assert!(error["hint"].as_str().unwrap().ends_with("miaf-agent retry"), "{error:#}");
    assert_eq!(waiting["svid"]["serial"], before["svid"]["serial"], "what is stored is served");
    assert_eq!(world.device.get("/readyz").unwrap().0, 503, "nobody can tell whether it is valid");
    assert_eq!(world.device.get("/v1/svid").unwrap().0, 200);

    world.mis.resume().unwrap();
    let after = world.device.wait_for("active");
    assert_eq!(after["svid"], before["svid"], "nothing was thrown away, nothing asked for");
}

#[test]
fn clock_confirmed_by_the_operator_is_trusted() {
    let mut world = World::enrolled();
    world.device.kill();
    let record = world.device.path("state/private/time.json");
    fs::write(&record, IN_2100).unwrap();
    world.mis.stop_listening().unwrap();
    world.device.start();
    world.device.wait_for("waiting-for-clock");
    assert!(world.device.run(&["retry"]).status.success());
    world.device.wait_for("active");
}

#[test]
fn retry_after_delay_holds_for_its_mis_only() {
    let mut world = World::new();
    world.mis.sticky_fault(Endpoint::Enrollment, Fault::problem(429, "too-many-requests", Some("86400")));
    world.device.start();
    world.device.wait_for_error("too-many-requests");
    let other = World::new();
    world.device.configure(&world::config(&other.mis, &world.tpm, ""));
    world.device.signal("HUP");
    world.device.wait_for("active");
}

#[test]
fn rest_of_a_retry_after_delay_is_measured_by_a_trusted_clock() {
    for proven in [4_102_444_800_000, now() + 30 * 60_000] {
        after_a_boot_with(proven);
    }
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()
}

/// What is on the disk says that it is at least this time.
fn after_a_boot_with(proven: u128) {
    let mut world = World::new();
    world.mis.sticky_fault(Endpoint::Enrollment, Fault::problem(429, "too-many-requests", Some("3600")));
    world.device.start();
    world.device.wait_for_error("too-many-requests");
    world.device.kill();
    // Nearly all of it was spent switched off. The device starts with a clock that tells it
    // nothing.
    let private = world.device.path("state/private");
    let waits = private.join("retry-after.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&waits).unwrap()).unwrap();
    record["record"]["boot_id"] = "another".into();
    record["record"]["identities"][0]["retry_after"]["wall"] = u64::try_from(now() + 3000).unwrap().into();
    fs::write(&waits, record.to_string()).unwrap();
    let time = IN_2100.replace("4102444800000", &proven.to_string());
    fs::write(private.join("time.json"), time).unwrap();
    world.mis.stop_listening().unwrap();
    world.mis.clear_faults();
    world.device.start();
    world.device.wait_for("waiting-for-clock");
    let kept: Value = serde_json::from_slice(&fs::read(&waits).unwrap()).unwrap();
    assert_eq!(kept, record, "nothing is written down by such a clock");
    world.mis.resume().unwrap();
    world.device.wait_for("active");
    let restored = world.device.log().matches("what is left of the Retry-After delays").count();
    assert_eq!(restored, 1, "{}", world.device.log());
}
