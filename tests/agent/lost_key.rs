//! The TPM was replaced or cleared while an identity is held: what is seen, what is not done unasked, and the way out.

use std::time::Duration;

use development_mis::{Endpoint, Fault, SvidFault};
use serde_json::Value;

use crate::support::swtpm::Swtpm;
use crate::world::{self, World};

/// An enrolled device that was off while its TPM was replaced, and its status before and after.
fn with_another_tpm(world: &mut World) -> (Swtpm, Value, Value) {
    let before = world.device.status();
    world.device.kill();
    let other = Swtpm::start();
    world.device.configure(&world::config(&world.mis, &other, ""));
    world.device.start();
    let after = world.device.wait_for_status("a lost key", |status| {
        status["lastError"]["type"] == "urn:miaf-agent:error:key-lost"
    });
    (other, before, after)
}

fn orders(world: &World, arguments: &[&str]) {
    let output = world.device.run(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

#[test]
fn a_lost_key_is_seen_soon_after_the_start_and_nothing_takes_its_place_unasked() {
    let mut world = World::enrolled();
    let (_other, before, after) = with_another_tpm(&mut world);
    assert_eq!(after["state"], "blocked");
    let error = &after["lastError"];
    assert_eq!((&error["permanent"], &error["retryAt"]), (&true.into(), &Value::Null), "{error:#}");
    let (detail, hint) = (error["detail"].as_str().unwrap(), error["hint"].as_str().unwrap());
    assert!(hint.ends_with("miaf-agent retry --new-key"), "{error:#}");
    assert!(!detail.contains("miaf-agent") && !detail.contains("put"), "one error, one remedy: {error:#}");
    assert_eq!(after["svid"]["serial"], before["svid"]["serial"], "what is held is not thrown away");
    assert_eq!((&before["key"]["lost"], &after["key"]["lost"]), (&false.into(), &true.into()));
    assert_eq!(world.device.get("/readyz").unwrap().0, 503, "nobody can use it");

    orders(&world, &["retry"]);
    let (status, seen) = world.after(Duration::from_secs(2));
    assert_eq!(status["state"], "blocked", "an order to retry does not say that the key may be replaced");
    assert!(seen.iter().all(|entry| !entry.path.contains("identities")), "{seen:?}");
}

#[test]
fn with_the_operator_s_leave_the_device_enrolls_with_a_new_key_and_stays_who_it_is() {
    let mut world = World::enrolled();
    let (_other, before, _) = with_another_tpm(&mut world);
    let key = world.device.published("key.pem");
    orders(&world, &["retry", "--new-key"]);
    let after = world.device.wait_for("active");
    assert_eq!(after["spiffeId"], before["spiffeId"]);
    assert_ne!(after["svid"]["serial"], before["svid"]["serial"]);
    assert_ne!(world.device.published("key.pem"), key);
    let enrollments = world.seen(Endpoint::Enrollment);
    assert_eq!(enrollments.iter().filter_map(|entry| entry.status).collect::<Vec<_>>(), [201, 200]);
}

#[test]
fn the_operator_s_leave_outlives_the_agent() {
    let mut world = World::enrolled();
    let (_other, before, _) = with_another_tpm(&mut world);
    world.mis.sticky_fault(Endpoint::Enrollment, Fault::problem(503, "about:blank", None));
    orders(&world, &["retry", "--new-key"]);
    world.wait_for_requests(Endpoint::Enrollment, 2);
    world.device.kill();
    world.mis.clear_faults();
    world.device.start();
    let after = world.device.wait_for("active");
    assert_eq!(after["spiffeId"], before["spiffeId"]);
    let keys: Vec<_> = world.seen(Endpoint::Enrollment).iter().map(|e| e.csr_spki_sha256.clone()).collect();
    assert!(
        keys[1..].windows(2).all(|two| two[0] == two[1]),
        "one new key, asked for until it came (E6): {keys:?}"
    );
}

#[test]
fn a_tpm_that_is_put_back_is_used_again_and_a_key_that_works_is_never_replaced() {
    let mut world = World::enrolled();
    let (_other, before, _) = with_another_tpm(&mut world);
    world.configure("");
    world.device.signal("HUP");
    let after = world.device.wait_for("active");
    assert_eq!(after["svid"], before["svid"]);

    orders(&world, &["retry", "--new-key"]);
    let (status, seen) = world.after(Duration::from_secs(2));
    assert_eq!(status["svid"], before["svid"]);
    assert!(seen.iter().all(|entry| !entry.path.contains("identities")), "{seen:?}");
}

#[test]
fn with_its_svid_valid_and_its_factory_certificate_the_same_it_does_not_become_another_device() {
    let mut world = World::enrolled();
    let (_other, before, _) = with_another_tpm(&mut world);
    world.mis.fault(Endpoint::Enrollment, Fault::Svid(SvidFault::WrongSpiffeId));
    orders(&world, &["retry", "--new-key"]);
    let error = world.device.wait_for_error("svid-refused")["lastError"].clone();
    assert!(
        error["detail"].as_str().unwrap().contains(before["spiffeId"].as_str().unwrap()),
        "{error:#} (E9)"
    );
    let after = world.device.wait_for("active");
    assert_eq!(after["spiffeId"], before["spiffeId"]);
}

#[test]
fn where_the_mis_binds_no_new_key_its_operator_has_to_act() {
    let mut world = World::enrolled();
    let (_other, before, _) = with_another_tpm(&mut world);
    world.mis.policy(|policy| policy.rotation_at_enrollment = false);
    orders(&world, &["retry", "--new-key"]);
    let error = world.device.wait_for_error("key-rotation-not-permitted")["lastError"].clone();
    assert_eq!(error["permanent"], true, "{error:#}");
    let (_, seen) = world.after(Duration::from_secs(2));
    assert!(seen.iter().all(|entry| !entry.path.contains("identities")), "{seen:?}");
    world.mis.policy(|policy| policy.rotation_at_enrollment = true);
    orders(&world, &["retry"]);
    let after = world.device.wait_for("active");
    assert_eq!(after["spiffeId"], before["spiffeId"]);
}
