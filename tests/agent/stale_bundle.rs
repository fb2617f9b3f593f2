//! A bundle that is older than `bundle.max_age`.

use development_mis::{Endpoint, Fault};
use miaf_spiffe::time::Timestamp;
use serde_json::Value;

use crate::grpc::{Grpc, Received, UNAVAILABLE};
use crate::world::{self, World};

/// An enrolled device with these lines under `[bundle]`.
fn enrolled(lines: &str) -> World {
    let mut world = World::new();
    let config = world::config(&world.mis, &world.tpm, "");
    world.device.configure(&config.replace("[bundle]\n", &format!("[bundle]\n{lines}\n")));
    world.device.start();
    world.device.wait_for("active");
    world
}

fn outage(world: &World) {
    world.mis.sticky_fault(Endpoint::Bundle, Fault::Status(503));
}

fn code(body: &str) -> Value {
    serde_json::from_str::<Value>(body).unwrap()["code"].clone()
}

#[test]
fn stale_bundle_is_served_and_alarmed_by_default() {
    let world = enrolled("max_age = \"4s\"");
    outage(&world);
    let status = world.device.wait_for_status("a stale bundle", |status| {
        status["bundle"]["stale"] == true && status["lastError"]["code"] == "bundle-stale"
    });
    assert!(status["bundle"]["staleAt"].is_string(), "{status:#}");
    let detail = status["lastError"]["detail"].as_str().unwrap();
    assert!(detail.contains("last known to be current at") && detail.contains("Besides:"), "{detail}");
    for path in ["/v1/svid", "/v1/bundle", "/readyz"] {
        assert_eq!(world.device.get(path).unwrap().0, 200, "{path}");
    }
    assert!(world.device.get("/metrics").unwrap().1.contains("miaf_agent_bundle_stale 1"));
    world.mis.clear_faults();
    world.device.wait_for_status("no error", |status| status["lastError"].is_null());
    // On a busy machine there may have been more than one episode, each with one warning.
    let log = world.device.log();
    let said = |text: &str| log.matches(text).count();
    assert!(said("the trust bundle is older than bundle.max_age") >= 1);
    assert_eq!(
        said("the trust bundle is older than bundle.max_age"),
        said("the trust bundle is current again"),
        "{log}"
    );
}

#[test]
fn end_of_the_bundles_age_is_a_metric() {
    const METRIC: &str = "miaf_agent_bundle_stale_at_timestamp_seconds ";
    let metric = |world: &World| {
        let text = world.device.get("/metrics").unwrap().1;
        text.lines().find_map(|line| line.strip_prefix(METRIC).map(|value| value.parse::<f64>().unwrap()))
    };
    let ageless = World::enrolled();
    ageless.device.wait_until("a bundle", |device| device.get("/v1/bundle").unwrap().0 == 200);
    assert_eq!(metric(&ageless), None, "without max_age it never becomes stale");
    drop(ageless);

    let world = enrolled("max_age = \"1h\"");
    outage(&world);
    // The response of one poll may still be on its way.
    world.device.wait_until("the metric is that of the status", |device| {
        let status = device.status_document();
        let of_bundle = |name: &str| Timestamp::from_rfc3339(status["bundle"][name].as_str()?);
        let (Some(fetched), Some(stale)) = (of_bundle("fetchedAt"), of_bundle("staleAt")) else {
            return false;
        };
        assert!(fetched.until(stale).as_secs().abs_diff(3600) <= 1, "{status:#}");
        let epoch = Timestamp::from_secs(0).until(stale).as_secs_f64();
        metric(&world).is_some_and(|seconds| (seconds - epoch).abs() <= 1.0)
    });
}

#[test]
fn stale_bundle_is_withdrawn_where_configured() {
    let mut world = enrolled("max_age = \"4s\"\nwhen_stale = \"withdraw\"");
    world.device.wait_until("a fresh bundle", |device| device.get("/v1/svid").unwrap().0 == 200);
    let published = world.device.published("svid.pem");
    let client = Grpc::connect(&world.device);
    let mut stream = None;
    world.device.wait_until("a stream", |_| {
        let mut call = client.call("FetchX509Bundles");
        let is_open = matches!(call.next(), Received::Message(_));
        stream = is_open.then_some(call);
        is_open
    });
    outage(&world);
    // Nothing else wakes the agent at that moment, and the stream ends all the same.
    let mut stream = stream.unwrap();
    loop {
        match stream.next() {
            Received::Message(_) => {}
            Received::End(code, why) => {
                assert_eq!(code, UNAVAILABLE, "{why}");
                assert!(why.contains("stale"), "{why}");
                break;
            }
        }
    }
    let withdrawn = |world: &World| {
        for path in ["/v1/svid", "/v1/identities/device/svid", "/v1/bundle", "/readyz"] {
            let (status, body) = world.device.get(path).unwrap();
            assert_eq!((status, code(&body)), (503, "bundle-stale".into()), "{path}: {body}");
        }
    };
    withdrawn(&world);
    assert_eq!(world.device.published("svid.pem"), published, "what programs have read stays");

    // The age survives a restart.
    drop(stream);
    drop(client);
    world.kill();
    world.device.start();
    world.device.wait_for_status("a stale bundle", |status| status["bundle"]["stale"] == true);
    withdrawn(&world);
    world.mis.clear_faults();
    world.device.wait_until("what was withdrawn", |device| {
        device.get("/v1/svid").unwrap().0 == 200 && device.get("/readyz").unwrap().0 == 200
    });
}

/// A bundle that stays the same is not written at every poll. A restart must not take it for as old
/// as its record.
#[test]
fn age_of_an_unchanged_bundle_is_stored() {
    let mut world = enrolled("max_age = \"60s\"\nwhen_stale = \"withdraw\"");
    let stored = |world: &World| {
        let record = std::fs::read(world.device.path("state/private/bundle.json")).unwrap();
        serde_json::from_slice::<Value>(&record).unwrap()["record"]["fetched_at"].clone()
    };
    let first = stored(&world);
    world.device.wait_until("the stored age is brought up to date", |_| stored(&world) != first);
    let polls = world.seen(Endpoint::Bundle).len();
    assert!(polls >= 3, "{polls}"); // a twentieth of a minute, at a poll a second
    world.kill();
}
