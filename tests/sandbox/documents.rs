//! The documents of the released MIS, as the agent fetches them.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use miaf_spiffe::time::Timestamp;
use serde_json::Value;

use crate::world::{CLIENT, IDENTITY, Mis, World};

const DISCOVERY: &str = "/.well-known/margo";
const BUNDLE: &str = "/.well-known/spiffe/bundle.json";

fn shared_error(world: &World, says: &str) -> Value {
    let mut error = Value::Null;
    world.device.wait_until(says, |device| {
        error = device.status_document()["lastError"].clone();
        error["detail"].as_str().is_some_and(|detail| detail.contains(says))
    });
    error
}

fn no_shared_error(world: &World) {
    world.device.wait_until("no error", |device| device.status_document()["lastError"].is_null());
}

#[test]
fn released_mis_is_discovered_and_polled_within_bounds() {
    const POLLS: usize = 4;
    let mut world = World::of(Mis::start());
    world.device.start();
    assert_eq!(world.mis.next_request(DISCOVERY), 200, "its Accept is the one that this MIS demands");
    assert_eq!(world.mis.next_request(BUNDLE), 200);
    world.wait_for_client("its state", |client| client["state"] == "waiting-for-operator");
    assert_eq!(world.device.status_document()["trustDomain"], "margo.org");
    // This MIS hints at one second, whatever it is configured with, and the device is configured so,
    // too. The agent waits five, or up to a fifth less. A response without an ETag, as this MIS's 304,
    // takes none away. What counts is what the agent plans after each poll: when the lines of the MIS
    // arrive depends on the machine.
    let mut planned = BTreeMap::new();
    world.device.wait_until("polls and their plans", |device| {
        let bundle = device.status_document()["bundle"].clone();
        let time = |name: &str| Timestamp::from_rfc3339(bundle[name].as_str()?);
        if let (Some(fetched_at), Some(refresh_at)) = (time("fetchedAt"), time("refreshAt")) {
            // The status has whole seconds, and is made a moment after the response.
            planned.entry(fetched_at).or_insert_with(|| fetched_at.until(refresh_at));
        }
        planned.len() > POLLS
    });
    for _ in 0..POLLS {
        assert_eq!(world.mis.next_request(BUNDLE), 304);
    }
    let in_the_agents_way = planned.values().filter(|interval| **interval >= Duration::from_secs(3));
    // The first one is soon after the start, whatever the hint.
    assert!(in_the_agents_way.count() >= POLLS, "{planned:?}");
    let status = world.device.status_document();
    assert!(status["lastError"].is_null(), "{status:#}");

    // Another authority, of the same sequence.
    let bundle = || world.device.get("/v1/bundle").unwrap().1;
    let before = bundle();
    fs::remove_file(world.mis.file("ca.key")).unwrap();
    let other = Mis::start();
    fs::copy(other.file("ca.crt"), world.mis.file("ca.crt")).unwrap();
    world.device.wait_until("the other anchor", |_| bundle() != before);
    assert_eq!(serde_json::from_str::<Value>(&bundle()).unwrap()["keys"].as_array().unwrap().len(), 1);
}

#[test]
fn problems_of_the_released_mis_are_reported() {
    let mut world = World::of(Mis::start());
    world.device.start();
    world.enroll(CLIENT);
    let ca = world.mis.file("ca.crt");
    fs::rename(&ca, world.mis.file("away")).unwrap();
    let error = shared_error(&world, "SPIFFE bundle unavailable");
    assert_eq!((&error["status"], &error["title"]), (&404.into(), &"Bundle Not Found".into()), "{error:#}");
    assert_eq!(error["instance"], ".well-known/spiffe/bundle.json", "as this MIS says it: {error:#}");
    let client = world.client();
    assert_eq!((&client["state"], &client["ready"]), (&"active".into(), &true.into()), "{client:#}");
    fs::rename(world.mis.file("away"), &ca).unwrap();
    no_shared_error(&world);

    let mut world = World::of(Mis::start_with(|_| {}, &["--url-host", "127.0.0.1", "--without-discovery"]));
    world.device.start();
    let error = shared_error(&world, "Trust domain discovery document not available");
    assert_eq!(error["status"], 404, "{error:#}");
    assert_eq!(world.client()["ready"], false);
    // What an operator can do about it.
    assert!(error["hint"].is_string(), "{error:#}");
    world.configure(
        &format!("trust_domain = \"margo.org\"\nbundle_url = \"{}{BUNDLE}\"\n", world.mis.url),
        IDENTITY,
    );
    world.device.signal("HUP");
    world.enroll(CLIENT);
    no_shared_error(&world);
}

#[test]
fn released_bundle_is_used_by_its_url() {
    let mut world = World::of(Mis::start());
    world.configure(
        &format!("trust_domain = \"margo.org\"\nbundle_url = \"{}{BUNDLE}\"\n", world.mis.url),
        IDENTITY,
    );
    world.device.start();
    world.enroll(CLIENT);
    assert_eq!(world.mis.next_request(BUNDLE), 200);
    assert_eq!(world.mis.next_request(BUNDLE), 304);
    let said = world.mis.server.said();
    assert!(said.iter().all(|line| line["request"] == format!("GET {BUNDLE}").as_str()), "{said:#?}");
}

#[test]
fn bundle_at_another_origin_has_to_be_allowed() {
    // As behind two names of one MIS.
    let options = ["--host", "0.0.0.0", "--url-host", "127.0.0.2", "--san", "127.0.0.1"];
    let mut mis = Mis::start_with(|_| {}, &options);
    mis.url = mis.url.replace("0.0.0.0", "127.0.0.1");
    let mut world = World::of(mis);
    world.device.start();
    let error = shared_error(&world, "127.0.0.2");
    let hint = error["hint"].as_str().unwrap();
    assert!(hint.contains("bundle_origins"), "{error:#}");
    let origin = world.mis.url.replace("127.0.0.1", "127.0.0.2");
    let allowed = format!("{}bundle_origins = [\"{origin}\"]\n", world.discovery());
    world.configure(&allowed, IDENTITY);
    world.device.signal("HUP");
    world.enroll(CLIENT);
    no_shared_error(&world);
}

#[test]
fn device_learns_that_the_released_mis_issues_nothing() {
    let mut world = World::of(Mis::start());
    let device = "[[identity]]\nname = \"device\"\nenroll = \"factory-cert\"\nkey.provider = \"software\"\n";
    world.configure(&world.discovery(), &format!("{device}{IDENTITY}"));
    world.device.start();
    world.enroll(CLIENT);
    world.device.wait_until("what the device lacks", |device| {
        device.status_document()["identities"][0]["lastError"]["code"] == "unsupported-by-mis"
    });
    let document = world.device.status_document();
    let error = &document["identities"][0]["lastError"];
    assert!(error["hint"].as_str().unwrap().contains("miaf-agent csr --identity"), "{error:#}");
    assert_eq!(document["identities"][0]["state"], "blocked", "{document:#}");
    assert_eq!(world.client()["state"], "active", "and it costs the other nothing");
    let said = world.mis.server.said();
    assert!(said.iter().all(|line| !line["request"].as_str().unwrap().starts_with("POST")), "{said:#?}");
}
