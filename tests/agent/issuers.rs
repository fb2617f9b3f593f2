//! Issuers that end before what they have issued (miaf-v0 E4, R2, R6).

use std::time::{Duration, SystemTime};

use development_mis::{AnchorStep, Endpoint, Fault, SvidFault};

use crate::support::agent::Device;
use crate::world::{self, World};

/// An MIS whose SVIDs are valid for a day, and their issuer for so long. What goes wrong is asked
/// for anew in an hour.
fn issued_by_one_that_ends_in(time: Duration) -> World {
    let mut world = World::new();
    let config = world::config(&world.mis, &world.tpm, "");
    world.device.configure(&config.replace("cap = \"500ms\"", "cap = \"1h\""));
    let ending = Fault::Svid(SvidFault::IssuerEndsAt(SystemTime::now() + time));
    for endpoint in [Endpoint::Enrollment, Endpoint::Renewal] {
        world.mis.sticky_fault(endpoint, ending.clone());
    }
    world.device.start();
    world
}

fn seconds_until(rfc3339: &serde_json::Value) -> f64 {
    let moment = humantime::parse_rfc3339(rfc3339.as_str().unwrap()).unwrap();
    match moment.duration_since(SystemTime::now()) {
        Ok(ahead) => ahead.as_secs_f64(),
        Err(behind) => -behind.duration().as_secs_f64(),
    }
}

fn issued(world: &World) -> usize {
    [Endpoint::Enrollment, Endpoint::Renewal]
        .into_iter()
        .flat_map(|endpoint| world.seen(endpoint))
        .filter(|entry| entry.issued)
        .count()
}

#[test]
fn svid_ends_with_its_issuer_without_a_storm_of_requests() {
    let lasts = Duration::from_secs(20);
    let world = issued_by_one_that_ends_in(lasts);
    let status = world.device.wait_for_status("an identity", |status| status["svid"].is_object());
    let svid = &status["svid"];
    assert!(seconds_until(&svid["notAfter"]) <= lasts.as_secs_f64(), "{svid:#}");
    assert!(seconds_until(&svid["leafNotAfter"]) > 80_000.0, "{svid:#}");
    let told: serde_json::Value = serde_json::from_str(&world.device.get("/v1/svid").unwrap().1).unwrap();
    assert_eq!(told["notAfter"], svid["notAfter"]);
    let published: serde_json::Value =
        serde_json::from_str(&world.device.published("identity.json")).unwrap();
    assert_eq!(published["notAfter"], svid["notAfter"]);
    assert!(world.device.log().contains("an issuer of the new SVID ends at"), "{}", world.device.log());

    let status = world.device.wait_for("expired");
    assert!(seconds_until(&status["svid"]["notAfter"]) <= 0.0, "{status:#}");
    assert_eq!(world.device.get("/readyz").unwrap().0, 503);
    world.device.wait_until("the files say so", |device| device.published("identity.json").contains("false"));

    world.device.wait_for_error("The issuer of the SVID that the MIS issued has expired");
    let before = issued(&world);
    assert!(before <= 8, "{before} SVIDs in 20 seconds and a little");
    // Another bundle leads to another validation of the issued chain, without a request to the MIS.
    world.mis.rotate_anchors(AnchorStep::Announce).unwrap();
    world.device.wait_for_status("the new bundle", |status| status["bundle"]["sequence"] == 2);
    world.after(Duration::from_secs(10));
    assert_eq!(issued(&world), before, "it is asked for anew in half an hour at the earliest");

    world.mis.clear_faults();
    assert!(retries(&world.device));
    world.device.wait_for("active");
    assert_eq!(world.device.get("/readyz").unwrap().0, 200);
    let status = world.device.status();
    assert!(status["svid"]["leafNotAfter"].is_null() && status["lastError"].is_null(), "{status:#}");
}

#[test]
fn issued_chain_of_an_expired_issuer_survives_a_restart() {
    let mut world = issued_by_one_that_ends_in(Duration::ZERO);
    world.device.wait_for_error("has expired");
    let before = issued(&world);
    world.kill();
    world.device.start();
    world.device.wait_for_error("has expired");
    world.after(Duration::from_secs(3));
    assert_eq!(issued(&world), before);
}

fn retries(device: &Device) -> bool {
    device.run(&["retry"]).status.success()
}
