//! Three identities of different ways on one device: the device's own, one enrolled by hand, and one
//! by binding assertion. What becomes of one does not touch the others.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use development_mis::{Endpoint as MisEndpoint, Fault as MisFault, SvidFault};
use development_wfm::{Endpoint, Fault};
use serde_json::Value;

use crate::identities::{DEVICE, MANUAL, enroll_by_hand, identity, run, wait_for, wait_for_state};
use crate::wfm_binding::{CLIENT, NAME, Plant};
use crate::world;

const BY_HAND: &str = "spiffe://factory.example/margo/wfm/wfm-1/client/by-hand";
const MANUAL_NAME: &str = "by-hand";

/// Starts the agent with all three; the one by hand is enrolled.
fn start(plant: &mut Plant, before: &str) {
    let manual = MANUAL.replace("\"wfm-client\"", "\"by-hand\"");
    plant.world.configure(&format!("{before}{DEVICE}{manual}{}", plant.client(Some("line-7"))));
    plant.world.device.start();
    wait_for_state(&plant.world.device, MANUAL_NAME, "waiting-for-operator");
    wait_for(&plant.world.device, "device", "an SVID", |device| device["svid"].is_object());
    enroll_by_hand(&plant.world, MANUAL_NAME, BY_HAND, Duration::from_secs(3600));
    wait_for_state(&plant.world.device, MANUAL_NAME, "active");
}

/// Waits for more renewals of this identity.
fn renews(plant: &Plant, name: &str, times: usize) {
    let id = identity(&plant.world.device, name)["spiffeId"].as_str().unwrap().to_owned();
    let before = plant.renewals(&id).len();
    plant
        .world
        .device
        .wait_until(&format!("renewals of {name}"), |_| plant.renewals(&id).len() >= before + times);
}

/// The records of an identity.
fn records(plant: &Plant, name: &str) -> BTreeMap<String, Vec<u8>> {
    let dir = plant.world.device.path("state/private/identities").join(name);
    let files = fs::read_dir(&dir).unwrap().map(|file| file.unwrap());
    files.map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap())).collect()
}

fn serial(plant: &Plant, name: &str) -> Value {
    identity(&plant.world.device, name)["svid"]["serial"].clone()
}

#[test]
fn wfm_that_is_away_or_refuses_touches_no_other_identity() {
    let mut plant = Plant::new();
    plant.wfm.stop_listening().unwrap();
    start(&mut plant, world::SOON);
    let by_hand = serial(&plant, MANUAL_NAME);
    let unaffected = |plant: &Plant| {
        renews(plant, "device", 2);
        let manual = identity(&plant.world.device, MANUAL_NAME);
        assert_eq!((&manual["svid"]["serial"], &manual["state"]), (&by_hand, &"active".into()), "{manual:#}");
        assert!(manual["lastError"].is_null(), "{manual:#}");
        for name in ["device", MANUAL_NAME] {
            assert_eq!(identity(&plant.world.device, name)["ready"], true, "{name}");
        }
    };
    let error = plant.wait_for_error("unreachable");
    assert_eq!(error["title"], "The WFM could not be reached", "{error:#}");
    unaffected(&plant);
    plant.wfm.sticky_fault(Endpoint::Onboarding, Fault::problem(422, "wfm-client-handle-conflict", None));
    plant.wfm.resume().unwrap();
    wait_for_state(&plant.world.device, NAME, "blocked");
    unaffected(&plant);
    // Slow is not dead, and yet no other identity waits for it for long.
    plant.wfm.clear_faults();
    plant.wfm.fault(Endpoint::Onboarding, Fault::Stall(Duration::from_secs(3)));
    run(&plant.world.device, &["retry"]);
    wait_for(&plant.world.device, NAME, "an SVID", |client| client["spiffeId"] == CLIENT);
    unaffected(&plant);
    renews(&plant, NAME, 1);
    assert_eq!(plant.bindings().len(), 1);
}

#[test]
fn client_renews_without_the_svid_of_the_device() {
    let mut plant = Plant::new();
    start(&mut plant, world::SOON);
    wait_for(&plant.world.device, NAME, "an SVID", |client| client["svid"].is_object());
    plant.world.mis.sticky_fault(MisEndpoint::Enrollment, MisFault::problem(403, "not-authorized", None));
    run(&plant.world.device, &["retire", "--yes", "--identity", "device"]);
    wait_for(&plant.world.device, "device", "gone", |device| {
        device["svid"].is_null() && device["lastError"]["status"] == 403
    });
    let by_hand = serial(&plant, MANUAL_NAME);
    renews(&plant, NAME, 2);
    let client = identity(&plant.world.device, NAME);
    assert_eq!((&client["ready"], &client["spiffeId"]), (&true.into(), &CLIENT.into()), "{client:#}");
    assert_eq!(serial(&plant, MANUAL_NAME), by_hand);

    // A new client needs it.
    run(&plant.world.device, &["retire", "--yes", "--identity", NAME]);
    let waiting = plant
        .wait_for("the device's identity", |client| client["lastError"]["code"] == "device-identity-needed");
    assert!(waiting["svid"].is_null(), "{waiting:#}");
    assert_eq!(plant.wfm.journal().len(), 1, "nothing is sent to the WFM");
    plant.world.mis.clear_faults();
    run(&plant.world.device, &["retry"]);
    wait_for(&plant.world.device, NAME, "an SVID", |client| client["spiffeId"] == CLIENT);
    assert_eq!(serial(&plant, MANUAL_NAME), by_hand);
}

/// As where the clocks of the servers and of the device do not agree about one of them.
#[test]
fn svid_of_one_that_is_early_or_refused_touches_no_other() {
    let mut plant = Plant::new();
    start(&mut plant, "");
    wait_for_state(&plant.world.device, NAME, "active");
    let by_hand = serial(&plant, MANUAL_NAME);
    let device = plant.device_id();
    // The last is kept, until it is valid.
    let bent = [SvidFault::Expired, SvidFault::OtherKey, SvidFault::NotYetValid(Duration::from_secs(500))];
    for (count, fault) in bent.into_iter().enumerate() {
        plant.world.mis.fault(MisEndpoint::Renewal, MisFault::Svid(fault));
        run(&plant.world.device, &["renew", "--identity", NAME]);
        plant.world.device.wait_until("a bent SVID", |_| plant.world.mis.waiting_faults() == 0);
        let before = serial(&plant, "device");
        run(&plant.world.device, &["renew", "--identity", "device"]);
        wait_for(&plant.world.device, "device", "a renewal", |device| device["svid"]["serial"] != before);
        assert!(plant.renewals(&device).len() > count);
        let now = identity(&plant.world.device, NAME);
        assert_eq!((&now["spiffeId"], &now["ready"]), (&CLIENT.into(), &true.into()), "{count}: {now:#}");
        let manual = identity(&plant.world.device, MANUAL_NAME);
        assert_eq!((&manual["svid"]["serial"], &manual["state"]), (&by_hand, &"active".into()), "{manual:#}");
        if count < 2 {
            plant.wait_for("the next attempt", |client| {
                client["state"] == "active" && client["lastError"].is_null()
            });
        }
    }
}

#[test]
fn kill_within_an_enrollment_leaves_the_others_as_they_are() {
    let mut plant = Plant::new();
    plant.wfm.sticky_fault(Endpoint::Onboarding, Fault::Stall(Duration::from_secs(20)));
    let manual = MANUAL.replace("\"wfm-client\"", "\"by-hand\"");
    plant.world.configure(&format!("{DEVICE}{manual}"));
    plant.world.device.start();
    wait_for_state(&plant.world.device, "device", "active");
    enroll_by_hand(&plant.world, MANUAL_NAME, BY_HAND, Duration::from_secs(3600));
    wait_for_state(&plant.world.device, MANUAL_NAME, "active");
    let before = ["device", MANUAL_NAME].map(|name| records(&plant, name));
    plant.world.configure(&format!("{DEVICE}{manual}{}", plant.client(Some("line-7"))));
    plant.world.device.signal("HUP");

    let under_way = |plant: &Plant, count| {
        let patience = crate::support::agent::PATIENCE;
        assert!(plant.wfm.wait_for(patience, |entries| entries.len() >= count).is_some());
    };
    under_way(&plant, 1);
    plant.world.kill();
    assert_eq!(["device", MANUAL_NAME].map(|name| records(&plant, name)), before);
    let pending = records(&plant, NAME);
    assert!(
        pending.contains_key("pending-key.pem"),
        "the key is durable before it is used: {:?}",
        pending.keys()
    );

    // Between the issued SVID and its response, too.
    plant.wfm.clear_faults();
    plant.world.mis.fault(MisEndpoint::Enrollment, MisFault::StallAnswer(Duration::from_secs(20)));
    plant.world.device.start();
    plant.world.device.wait_until("the binding", |_| !plant.world.mis.wfm_clients().is_empty());
    plant.world.kill();
    assert_eq!(["device", MANUAL_NAME].map(|name| records(&plant, name)), before);
    assert_eq!(records(&plant, NAME), pending, "the same key");
    plant.world.device.start();
    wait_for_state(&plant.world.device, NAME, "active");
    assert_eq!(["device", MANUAL_NAME].map(|name| records(&plant, name)), before);
    for name in ["device", MANUAL_NAME] {
        let status = wait_for(&plant.world.device, name, "ready", |identity| identity["ready"] == true);
        assert!(status["lastError"].is_null(), "{status:#}");
    }
    assert!(plant.renewals(CLIENT).is_empty());
    let keys: std::collections::BTreeSet<_> =
        plant.bindings().into_iter().filter_map(|entry| entry.csr_spki_sha256).collect();
    assert_eq!(keys.len(), 1);
}
