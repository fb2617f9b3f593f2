//! The issued chain is validated by every point of E4 before anything is replaced: at enrollment,
//! and at renewal.

use std::time::Duration;

use development_mis::{Endpoint, Fault, SvidFault};

use serde_json::{Value, json};

use crate::world::{self, World};

fn bad_svids() -> Vec<(SvidFault, &'static str)> {
    vec![
        (SvidFault::OtherTrustDomain("other.example".into()), "which is not in the trust domain"),
        (SvidFault::TwoUriSans, "has 2 URI names"),
        (SvidFault::NoUriSan, "has 0 URI names"),
        (SvidFault::UppercaseUuid, "of no form that Margo defines, but this identity is a device"),
        (SvidFault::NotADevice, "a WFM (/margo/wfm/<wfm-id>), but this identity is a device"),
        (SvidFault::CaTrue, "is a certificate authority"),
        (SvidFault::NoKeyUsage, "has no keyUsage"),
        (SvidFault::KeyUsageNotCritical, "not marked critical"),
        (SvidFault::KeyCertSign, "allows keyCertSign"),
        (SvidFault::NoClientAuth, "lacks clientAuth"),
        (SvidFault::OtherKey, "another public key"),
        (SvidFault::Expired, "the certificate expired"),
        (SvidFault::NotYetValid(Duration::from_secs(3600)), "Compare the clock of this device"),
        (SvidFault::UnknownIssuer, "does not chain to an anchor"),
        (SvidFault::P384Signature, "neither ECDSA P-256"),
        (SvidFault::MissingIntermediate, "does not chain to an anchor"),
        (SvidFault::Garbage, "not exactly one PEM certificate"),
        (SvidFault::EmptyChain, "has no certificate"),
        (SvidFault::WrongProfile, "an SVID of the profile"),
    ]
}

#[test]
fn bad_first_svid_is_refused_and_a_good_one_then_accepted() {
    let mut world = World::new();
    let (first, why) = bad_svids().remove(0);
    world.mis.sticky_fault(Endpoint::Enrollment, Fault::Svid(first));
    world.device.start();
    world.device.wait_for_error(why);
    for (fault, why) in bad_svids().drain(1..) {
        let named = format!("{fault:?}");
        world.mis.sticky_fault(Endpoint::Enrollment, Fault::Svid(fault));
        let status = world.device.wait_for_error(why);
        assert!(status["svid"].is_null(), "{named}: {status:#}");
        assert_eq!(world.device.get("/readyz").unwrap().0, 503, "{named}");
    }
    world.mis.clear_faults();
    let status = world.device.wait_for("active");
    assert!(status["lastError"].is_null());
    let keys: std::collections::BTreeSet<_> =
        world.seen(Endpoint::Enrollment).into_iter().map(|entry| entry.csr_spki_sha256).collect();
    assert_eq!(keys.len(), 1, "one key through all of it (E6)");
}

#[test]
fn bad_renewal_is_refused_and_the_current_svid_stays() {
    let mut faults = bad_svids();
    faults.push((SvidFault::WrongSpiffeId, "but this identity is spiffe://"));
    let world = World::renewing();
    world.mis.sticky_fault(Endpoint::Renewal, Fault::Status(503)); // until the first of them is there
    let held = world.device.status();
    let files = world.device.published("svid-with-key.pem");
    for (fault, why) in faults {
        let named = format!("{fault:?}");
        world.mis.sticky_fault(Endpoint::Renewal, Fault::Svid(fault));
        let status = world.device.wait_for_error(why);
        assert_eq!(status["svid"]["serial"], held["svid"]["serial"], "{named}");
        assert_eq!(world.device.published("svid-with-key.pem"), files, "{named}");
        assert_eq!(world.device.get("/readyz").unwrap().0, 200, "{named}");
    }
    world.mis.clear_faults();
    let renewed = world.device.wait_for_another_svid(&held["svid"]["serial"]);
    assert_eq!(renewed["spiffeId"], held["spiffeId"]);
}

#[test]
fn unusual_valid_svid_is_accepted() {
    for fault in
        [SvidFault::RootAppended, SvidFault::PemWidth(76), SvidFault::PemWidth(1000), SvidFault::ExtraMembers]
    {
        let mut world = World::new();
        let named = format!("{fault:?}");
        world.mis.fault(Endpoint::Enrollment, Fault::Svid(fault));
        world.device.start();
        world.device.wait_for("active");
        assert_eq!(world.seen(Endpoint::Enrollment).len(), 1, "{named} was taken at once");
    }
}

#[test]
fn early_svid_is_stored_and_adopted_when_valid() {
    let mut world = World::new();
    world.mis.fault(Endpoint::Enrollment, Fault::Svid(SvidFault::NotYetValid(Duration::from_secs(15))));
    world.device.start();
    world.device.wait_until("it is kept", |device| device.log().contains("kept until it becomes valid"));
    assert_eq!(world.device.status()["state"], "enrolling");
    world.device.kill(); // it is durable
    world.device.start();
    world.device.wait_for("active");
    assert_eq!(world.seen(Endpoint::Enrollment).len(), 1, "no second one was requested");
}

#[test]
fn unknown_issuer_leads_to_a_bundle_fetch_before_a_refusal() {
    let mut world = World::new();
    // The bundle that the device gets first is from before the MIS changed its CA.
    let config =
        crate::world::config(&world.mis, &world.tpm, "").replace("refresh = \"1s\"", "refresh = \"1h\"");
    world.device.configure(&config);
    world.mis.sticky_fault(Endpoint::Enrollment, Fault::Status(503));
    world.device.start();
    world.wait_for_requests(Endpoint::Enrollment, 1);
    world.mis.rotate_anchors(development_mis::AnchorStep::Switch).unwrap();
    world.mis.clear_faults();
    world.device.wait_for("active");
    let requests = world.seen(Endpoint::Enrollment);
    let issued = requests.iter().filter(|entry| entry.status.is_some_and(|status| status < 300));
    assert_eq!(issued.count(), 1, "the answer was kept meanwhile");
    assert!(world.seen(Endpoint::Bundle).len() >= 2);
}

/// RFC 5280, section 4.1.2.2: an issuer gives each certificate a unique serial number.
#[test]
fn renewal_with_the_current_serial_is_refused() {
    let mut world = World::with(|settings| world::long_enough(&mut settings.policy));
    world.configure(world::SOON);
    for endpoint in [Endpoint::Enrollment, Endpoint::Renewal] {
        world.mis.sticky_fault(endpoint, Fault::Svid(SvidFault::SerialNumber(7)));
    }
    world.device.start();
    let status = world.device.wait_for_error("has the serial number 07 of the SVID that it is to replace");
    assert_eq!((&status["svid"]["serial"], &status["lastError"]["permanent"]), (&"07".into(), &false.into()));
    let held = chain(&world);
    assert_eq!(world.device.get("/readyz").unwrap().0, 200);
    world.mis.sticky_fault(Endpoint::Renewal, Fault::Svid(SvidFault::SerialNumber(8)));
    world.device.wait_for_status("a renewal with another number", |status| status["svid"]["serial"] == "08");
    assert_ne!(chain(&world), held);
}

#[test]
fn current_svid_may_be_issued_once_more() {
    let mut world = World::with(|settings| world::long_enough(&mut settings.policy));
    let soon = world::config(&world.mis, &world.tpm, world::SOON);
    world.device.configure(&soon.replace("[key]", "[key]\nrotate = false"));
    world.mis.sticky_fault(Endpoint::Renewal, Fault::Status(503));
    world.device.start();
    world.device.wait_for_status("an identity", |status| status["svid"].is_object());
    let held = chain(&world);
    let body = json!({
        "svidProfileUri": "https://margo.org/profiles/spiffe/x509-svid/v1",
        "svid": { "certificateChainPem": held },
    });
    let again = Fault::answer(200, &[("content-type", "application/json")], body.to_string());
    world.mis.sticky_fault(Endpoint::Renewal, again);
    let renewals = |world: &World| world.seen(Endpoint::Renewal).len();
    let before = renewals(&world);
    world.wait_for_requests(Endpoint::Renewal, before + 2);
    assert!(!world.device.log().contains("svid-refused") && chain(&world) == held);
    world.mis.clear_faults();
    world.device.wait_for_another_svid(&world.device.status()["svid"]["serial"].clone());
}

#[test]
fn enrollment_is_accepted_whatever_its_serial() {
    let mut world = World::with(|settings| world::long_enough(&mut settings.policy));
    world.configure(world::SOON);
    world.mis.sticky_fault(Endpoint::Enrollment, Fault::Svid(SvidFault::SerialNumber(7)));
    world.mis.sticky_fault(Endpoint::Renewal, Fault::problem(401, "about:blank", None));
    world.device.start();
    world.device.wait_for_status("an identity", |status| status["svid"].is_object());
    let held = chain(&world);
    world.device.wait_until("another SVID of the same number", |_| chain(&world) != held);
    assert_eq!(world.device.status()["svid"]["serial"], "07");
}

fn chain(world: &World) -> Value {
    let svid: Value = serde_json::from_str(&world.device.get("/v1/svid").unwrap().1).unwrap();
    svid["certificateChainPem"].clone()
}
