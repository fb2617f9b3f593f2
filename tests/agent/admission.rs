//! Pending admission, and lost responses (miaf-v0 E6 to E8).

use std::time::Duration;

use development_mis::{Admission, Endpoint, Fault};

use crate::support::agent::PATIENCE;
use crate::world::World;

#[test]
fn unadmitted_device_waits_for_the_retry_after_delay() {
    let mut world = World::with(|settings| settings.policy.admission = Admission::pending(1));
    world.device.start();
    let status = world.device.wait_for("pending-admission");
    assert_eq!(status["lastError"]["permanent"], false);
    assert!(status["lastError"]["retryAt"].is_string());
    let tries = world.wait_for_requests(Endpoint::Enrollment, 3);
    assert!(
        tries.windows(2).all(|two| two[1].at - two[0].at >= Duration::from_secs(1)),
        "before Retry-After"
    );
    assert!(tries.windows(2).all(|two| two[0].csr_spki_sha256 == two[1].csr_spki_sha256));
    // A restart forgets neither the retry-after delay nor its reason.
    world.mis.policy(|policy| policy.admission = Admission::pending(30));
    world.device.wait_until("a long wait", |_| {
        world.seen(Endpoint::Enrollment).iter().any(|e| e.retry_after == Some(30))
    });
    let asked = world.seen(Endpoint::Enrollment).len();
    world.device.wait_until("it is stored", |device| device.path("state/private/retry-after.json").exists());
    world.device.kill();
    world.device.start();
    let status = world.device.wait_for("pending-admission");
    assert!(status["lastError"]["type"].as_str().unwrap().ends_with("enrollment-pending"));
    assert_eq!(world.seen(Endpoint::Enrollment).len(), asked);
}

#[test]
fn admitted_device_gets_its_identity() {
    let mut world = World::with(|settings| settings.policy.admission = Admission::pending(1));
    world.device.start();
    world.device.wait_for("pending-admission");
    world.mis.admit(&world.mis.factory_cert()).unwrap();
    world.device.wait_for("active");
}

#[test]
fn pending_key_is_stored_before_the_first_request() {
    let mut world = World::new();
    world.mis.fault(Endpoint::Enrollment, Fault::Stall(Duration::from_secs(60)));
    world.device.start();
    let asked = |journal: &[development_mis::Entry]| journal.iter().any(|e| e.path == "/api/v1/identities");
    world.mis.wait_for(PATIENCE, asked).unwrap();
    let pem = std::fs::read_to_string(world.device.path("state/private/identities/device/pending-key.pem"))
        .unwrap();
    assert!(crate::world::public_key_of_tpm_key(&world, &pem).starts_with("-----BEGIN PUBLIC KEY-----"));
}

#[test]
fn lost_enrollment_response_is_requested_with_the_same_key() {
    // The operator allows no rotation: another key would lock the device out for good.
    let mut world = World::with(|settings| settings.policy.rotation_at_enrollment = false);
    world.mis.fault(Endpoint::Enrollment, Fault::LoseAnswer);
    world.device.start();
    world.device.wait_for("active");
    let tries = world.seen(Endpoint::Enrollment);
    assert!(tries[0].issued && tries[0].answer_lost);
    assert_eq!(tries[1].status, Some(200), "the same device again, not another");
    assert_eq!(tries[0].csr_spki_sha256, tries[1].csr_spki_sha256);
}

#[test]
fn pending_key_is_reused_after_a_kill() {
    let mut world = World::with(|settings| settings.policy.rotation_at_enrollment = false);
    world.mis.fault(Endpoint::Enrollment, Fault::StallAnswer(Duration::from_secs(60)));
    world.device.start();
    let factory = world.mis.factory_cert();
    world.device.wait_until("the SVID is issued", |_| world.mis.device(&factory).unwrap().is_some());
    let issued_for = world.mis.device(&factory).unwrap().unwrap().key_sha256;
    world.device.kill();
    world.device.start();
    world.device.wait_for("active");
    assert_eq!(world.seen(Endpoint::Enrollment)[1].csr_spki_sha256, Some(issued_for));
}

#[test]
fn lost_renewal_response_is_requested_with_the_same_key() {
    let world = World::renewing();
    let before = world.device.status();
    world.mis.fault(Endpoint::Renewal, Fault::LoseAnswer);
    world.device.wait_for_another_svid(&before["svid"]["serial"]);
    let tries = world.seen(Endpoint::Renewal);
    let lost = tries.iter().position(|entry| entry.answer_lost).unwrap();
    assert_eq!(tries[lost].csr_spki_sha256, tries[lost + 1].csr_spki_sha256);
    assert_eq!(tries[lost + 1].status, Some(200));
}
