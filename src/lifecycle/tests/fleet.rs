//! What 100,000 devices at once taught (docs/fleet.md), told of one.

use super::super::KeyChoice::{Current, Pending};
use super::super::Request::{Enroll, Renew};
use super::super::*;
use super::device::Work::{FetchBundle, FetchDiscovery};
use super::device::*;

const RENEW: Work = Work::Request(Renew, Pending);

#[test]
fn rarely_polled_bundle_is_rarely_retried() {
    let mut device = Device::active(100 * DAY);
    device.waits_for(FetchBundle);
    device.handles(fetched(facts(Some(DAY))));
    device.waits_for(FetchBundle);
    let looks = device.lives_through(DAY, no_answer);
    let bundle = looks.get("bundle").copied().unwrap_or(0);
    assert!((48..=70).contains(&bundle), "half of the cap of an hour, on average: {bundle} a day");
}

#[test]
fn svid_does_not_expire_because_of_one_long_jitter() {
    for asks_to_wait in [None, Some(60)] {
        let mut device = Device::renewing(20 * secs(3600));
        let end = START.after(20 * secs(3600));
        device.luck = 1.0;
        let mut tries_in_the_last_hour = 0;
        loop {
            device.handles(refusal(FailureKind::Transient, asks_to_wait));
            device.waits_to_ask();
            if device.in_flight != Some(RENEW) {
                break; // it has expired
            }
            let is_late = device.now.wall.until(end) < secs(3600);
            tries_in_the_last_hour += u32::from(is_late);
        }
        assert!(tries_in_the_last_hour >= 5, "told {asks_to_wait:?}: {tries_in_the_last_hour} tries");
        // From there on there is nothing to lose.
        device.handles(refusal(FailureKind::Transient, asks_to_wait));
        let waited = device.waits_for(Work::Request(Enroll, Pending));
        assert_eq!(waited, secs(3600 + asks_to_wait.unwrap_or(0)));
    }
}

#[test]
fn cached_discovery_is_retried_at_the_pace_of_its_request() {
    let mut device = Device::renewing(100 * DAY);
    device.handles(refusal(FailureKind::NotFound, None));
    device.waits_for(FetchDiscovery);
    let looks = device.lives_through(DAY, no_answer);
    let discovery = looks.get("discovery").copied().unwrap_or(0);
    assert!((48..=70).contains(&discovery), "{discovery} a day");
}

#[test]
fn fleet_with_one_retry_after_returns_spread_over_half_of_it() {
    for (asked, latest) in [(60, 90), (600, 900), (3600, 5400), (36_000, 39_600)] {
        let mut device = Device::enrolling();
        device.luck = 1.0;
        device.handles(refusal(FailureKind::Transient, Some(asked)));
        assert_eq!(device.waits_for(Work::Request(Enroll, Pending)), secs(latest), "told {asked} s");
    }
}

#[test]
fn issued_chain_does_not_wait_for_a_slow_bundle_retry() {
    let mut device = Device::active(100 * DAY);
    device.waits_for(FetchBundle);
    device.handles(fetched(facts(Some(DAY))));
    device.waits_for(FetchBundle);
    device.handles(Event::Bundle(Err(failure(FailureKind::Slow, None))));
    device.handles(Event::Command(RENEW_NOW));
    device.waits_for(Work::Request(Renew, Pending));
    device.handles(answered());
    assert_eq!(device.handles(adoption(Err(NotAdopted::UnknownIssuer))), Some(FetchBundle));
    // And not against the MIS.
    device.luck = 0.0;
    device.handles(Event::Bundle(Err(failure(FailureKind::Slow, Some(secs(600))))));
    assert_eq!(device.waits_for(FetchBundle), secs(600));
}

#[test]
fn blocked_device_polls_discovery_every_few_minutes() {
    let refused_for_good = || {
        let mut device = Device::enrolling();
        device.handles(refusal(FailureKind::Permanent, None));
        device
    };
    let without_a_bundle = || {
        let mut device = Device::fresh();
        device.starts();
        device.handles(discovered());
        device.handles(Event::Bundle(Err(failure(FailureKind::NotFound, None))));
        device
    };
    for mut device in [refused_for_good(), without_a_bundle()] {
        device.waits_for(FetchDiscovery);
        let looks = device.lives_through(DAY, |action| match action {
            FetchDiscovery => Event::Discovery(Err(failure(FailureKind::Transient, None))),
            _ => Event::Bundle(Err(failure(FailureKind::NotFound, None))),
        });
        assert!(looks["discovery"] > 400, "{looks:?} a day");
    }
}

#[test]
fn short_lived_svids_do_not_raise_document_polls() {
    let mut device = Device::renewing(secs(600));
    device.handles(refusal(FailureKind::NotFound, None));
    let looks = device.lives_through(DAY, no_answer);
    assert!(looks["discovery"] < 700, "{looks:?} a day");
}

#[test]
fn wait_beyond_a_short_svid_ends_with_the_full_spread() {
    let mut device = Device::renewing(secs(600));
    device.luck = 1.0;
    device.handles(refusal(FailureKind::Transient, Some(3600)));
    let waited = device.waits_to_ask();
    assert!(waited >= secs(5300), "{waited:?}");
}

#[test]
fn wait_ending_just_before_the_svid_is_followed_promptly() {
    let end = secs(20 * 3600);
    let mut device = Device::renewing(end);
    device.passes(end - secs(65 * 60) - START.until(device.now.wall));
    device.luck = 1.0;
    device.handles(refusal(FailureKind::Transient, Some(3600)));
    let memory = device.lifecycle.memory();
    let svid = Some(svid(START, end, Current));
    let (discovery, bundle) = (Some(document()), true);
    device.restarts(OnDisk { svid, discovery, bundle, memory, pending_key: true, ..OnDisk::default() });
    device.handles(key_proven());
    let waited = device.waits_for(Work::Request(Renew, Pending));
    assert!(waited >= secs(3600) && waited <= secs(3600 + 150), "{waited:?}");
}

#[test]
fn retry_command_ends_the_jitter_of_a_restored_wait() {
    let mut device = Device::active(100 * DAY);
    device.waits_for(FetchBundle);
    device.handles(Event::Bundle(Err(failure(FailureKind::Transient, Some(secs(7200))))));
    let memory = device.lifecycle.memory();
    device.luck = 1.0;
    device.restarts(OnDisk { memory, ..an_identity() });
    device.handles(key_proven());
    let over = secs(7200 + 60);
    let looks = device.lives_through(over, |action| match action {
        FetchBundle => panic!("what is drawn on top is not over"),
        other => good(other),
    });
    assert!(!looks.contains_key("bundle"));
    device.handles(Event::Command(Command::Retry));
    assert!(device.waits_for(FetchBundle) <= secs(5));
}

#[test]
fn agreed_poll_interval_survives_a_restart() {
    let mut device = Device::fresh();
    device.restarts(OnDisk { bundle_refresh_hint: Some(DAY), ..an_identity() });
    let looks = device.lives_through(DAY, no_answer);
    let bundle = looks["bundle"];
    assert!((48..=70).contains(&bundle), "{bundle} a day");
}

#[test]
fn first_poll_comes_within_half_a_minute() {
    let mut device = Device::fresh();
    device.luck = 1.0;
    let policy = Policy { bundle_refresh: DAY, ..policy() };
    device.lifecycle = Lifecycle::new(policy, an_identity().into(), device.now, &mut || 1.0);
    device.starts();
    device.handles(key_proven());
    assert_eq!(device.waits_for(FetchDiscovery), secs(30));
    // What a renewal waits for is not looked at at leisure.
    let restored = OnDisk { bundle_is_empty: true, ..an_identity() };
    device.restarts(restored);
    assert_eq!(device.in_flight, Some(FetchDiscovery));
}

fn no_answer(action: &Work) -> Event {
    match action {
        FetchDiscovery => Event::Discovery(Err(failure(FailureKind::Transient, None))),
        FetchBundle => Event::Bundle(Err(failure(FailureKind::Transient, None))),
        Work::Request(..) => refusal(FailureKind::Transient, None),
        other => good(other),
    }
}
