//! The time that the MIS shows: it withholds nothing by the word of one server (miaf-v0 T4).

use std::time::{Duration, SystemTime};

use development_mis::{Endpoint, Fault};

use crate::support::agent::pause;
use crate::world::World;

const YEARS: Duration = Duration::from_secs(3 * 365 * 86_400);

fn dated(at: SystemTime) -> Fault {
    Fault::Header("date", httpdate::fmt_http_date(at))
}

/// Restarts the agent, so that it reads the discovery document, and watches it until the MIS was
/// asked so often.
fn stays_ready_for(world: &mut World, requests: usize) {
    world.device.kill();
    world.tpm.flush();
    let seen = world.seen(Endpoint::Discovery).len();
    world.device.start();
    while world.seen(Endpoint::Discovery).iter().skip(seen).filter(|entry| entry.status.is_some()).count()
        < requests
    {
        assert_eq!(world.device.get("/readyz").unwrap().0, 200, "{}", world.device.log());
        pause();
    }
}

#[test]
fn wrong_date_is_rechecked_at_once_and_withholds_nothing() {
    for date in [SystemTime::now() + YEARS, SystemTime::now() + Duration::from_secs(7200)] {
        let mut world = World::enrolled();
        world.mis.fault(Endpoint::Discovery, dated(date));
        stays_ready_for(&mut world, 2);
        let (status, _) = world.after(Duration::from_secs(2));
        assert_eq!((&status["state"], &status["lastError"]), (&"active".into(), &serde_json::Value::Null));
        let log = world.device.log();
        assert!(log.contains("is requested again") && !log.contains("waiting-for-clock"), "{log}");
    }
}

#[test]
fn date_of_long_ago_is_not_rechecked() {
    let mut world = World::enrolled();
    world.mis.sticky_fault(Endpoint::Discovery, dated(SystemTime::UNIX_EPOCH));
    stays_ready_for(&mut world, 1);
    let (status, seen) = world.after(Duration::from_secs(3));
    assert_eq!(status["state"], "active");
    assert!(seen.iter().all(|entry| !crate::world::is_at(entry, Endpoint::Discovery)), "{seen:?}");
}

#[test]
fn cached_response_has_its_age_added() {
    let mut world = World::enrolled();
    let hours = Duration::from_secs(5 * 3600);
    let cached = Fault::Together(vec![
        dated(SystemTime::now() - hours),
        Fault::Header("age", hours.as_secs().to_string()),
    ]);
    world.mis.sticky_fault(Endpoint::Discovery, cached);
    stays_ready_for(&mut world, 1);
    let (status, _) = world.after(Duration::from_secs(2));
    assert_eq!((&status["state"], &status["lastError"]), (&"active".into(), &serde_json::Value::Null));
    assert!(!world.device.log().contains("is requested again"), "{}", world.device.log());
}

#[test]
fn repeated_wrong_date_is_soon_corrected() {
    let mut world = World::enrolled();
    world.mis.sticky_fault(Endpoint::Discovery, dated(SystemTime::now() + YEARS));
    stays_ready_for(&mut world, 2);
    world.device.wait_for("waiting-for-clock");
    world.mis.clear_faults();
    world.device.wait_for("active");
    assert_eq!(world.device.get("/readyz").unwrap().0, 200);
}
