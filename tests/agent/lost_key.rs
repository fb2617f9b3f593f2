//! The TPM was replaced or cleared under a current identity: what is reported, what is not done
//! without a command, and the way out.

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
    let after =
        world.device.wait_for_status("a lost key", |status| status["lastError"]["code"] == "key-lost");
    (other, before, after)
}

fn admin_command(world: &World, arguments: &[&str]) {
    let output = world.device.run(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

#[test]
fn lost_key_is_reported_at_start_and_not_replaced() {
    let mut world = World::enrolled();
    let (_other, before, after) = with_another_tpm(&mut world);
    assert_eq!(after["state"], "blocked");
    let error = &after["lastError"];
    assert!(error["permanent"] == true && error["retryAt"].is_string(), "its TPM may come back: {error:#}");
    let (detail, hint) = (error["detail"].as_str().unwrap(), error["hint"].as_str().unwrap());
    assert!(hint.ends_with("miaf-agent retry --new-key"), "{error:#}");
    assert!(!detail.contains("miaf-agent") && !detail.contains("put"), "one error, one remedy: {error:#}");
    assert_eq!(after["svid"]["serial"], before["svid"]["serial"], "the current SVID stays");
    assert_eq!((&before["key"]["lost"], &after["key"]["lost"]), (&false.into(), &true.into()));
    assert_eq!(world.device.get("/readyz").unwrap().0, 503, "it cannot be used");

    admin_command(&world, &["retry"]);
    let (status, seen) = world.after(Duration::from_secs(2));
    assert_eq!(status["state"], "blocked", "retry alone does not allow a new key");
    assert!(seen.iter().all(|entry| !entry.path.contains("identities")), "{seen:?}");
}

#[test]
fn retry_new_key_enrolls_as_the_same_device() {
    let mut world = World::enrolled();
    let (_other, before, _) = with_another_tpm(&mut world);
    let key = world.device.published("key.pem");
    admin_command(&world, &["retry", "--new-key"]);
    let after = world.device.wait_for("active");
    assert_eq!(after["spiffeId"], before["spiffeId"]);
    assert_ne!(after["svid"]["serial"], before["svid"]["serial"]);
    assert_ne!(world.device.published("key.pem"), key);
    let enrollments = world.seen(Endpoint::Enrollment);
    assert_eq!(enrollments.iter().filter_map(|entry| entry.status).collect::<Vec<_>>(), [201, 200]);
}

#[test]
fn retry_new_key_survives_a_restart() {
    let mut world = World::enrolled();
    let (_other, before, _) = with_another_tpm(&mut world);
    world.mis.sticky_fault(Endpoint::Enrollment, Fault::problem(503, "about:blank", None));
    admin_command(&world, &["retry", "--new-key"]);
    world.wait_for_requests(Endpoint::Enrollment, 2);
    world.device.kill();
    world.mis.clear_faults();
    world.device.start();
    let after = world.device.wait_for("active");
    assert_eq!(after["spiffeId"], before["spiffeId"]);
    let keys: Vec<_> = world.seen(Endpoint::Enrollment).iter().map(|e| e.csr_spki_sha256.clone()).collect();
    assert!(
        keys[1..].windows(2).all(|two| two[0] == two[1]),
        "one new key, requested until it was enrolled (E6): {keys:?}"
    );
}

#[test]
fn original_tpm_is_used_again_and_its_key_stays() {
    let mut world = World::enrolled();
    let (_other, before, _) = with_another_tpm(&mut world);
    world.configure("");
    world.device.signal("HUP");
    let after = world.device.wait_for("active");
    assert_eq!(after["svid"], before["svid"]);

    admin_command(&world, &["retry", "--new-key"]);
    let (status, seen) = world.after(Duration::from_secs(2));
    assert_eq!(status["svid"], before["svid"]);
    assert!(seen.iter().all(|entry| !entry.path.contains("identities")), "{seen:?}");
}

#[test]
fn retry_new_key_never_changes_the_spiffe_id() {
    let mut world = World::enrolled();
    let (_other, before, _) = with_another_tpm(&mut world);
    world.mis.fault(Endpoint::Enrollment, Fault::Svid(SvidFault::WrongSpiffeId));
    admin_command(&world, &["retry", "--new-key"]);
    let error = world.device.wait_for_error("svid-refused")["lastError"].clone();
    assert!(
        error["detail"].as_str().unwrap().contains(before["spiffeId"].as_str().unwrap()),
        "{error:#} (E9)"
    );
    let after = world.device.wait_for("active");
    assert_eq!(after["spiffeId"], before["spiffeId"]);
}

#[test]
fn retry_new_key_needs_an_mis_that_binds_new_keys() {
    let mut world = World::enrolled();
    let (_other, before, _) = with_another_tpm(&mut world);
    world.mis.policy(|policy| policy.rotation_at_enrollment = false);
    admin_command(&world, &["retry", "--new-key"]);
    let error = world.device.wait_for_error("key-rotation-not-permitted")["lastError"].clone();
    assert_eq!(error["permanent"], true, "{error:#}");
    let (_, seen) = world.after(Duration::from_secs(2));
    assert!(seen.iter().all(|entry| !entry.path.contains("identities")), "{seen:?}");
    world.mis.policy(|policy| policy.rotation_at_enrollment = true);
    admin_command(&world, &["retry"]);
    let after = world.device.wait_for("active");
    assert_eq!(after["spiffeId"], before["spiffeId"]);
}
