//! What 100,000 devices at once taught (docs/fleet.md), told of one.

use super::super::Action::{FetchBundle, FetchDiscovery};
use super::super::KeyChoice::{Current, Pending};
use super::super::Request::{Enroll, Renew};
use super::super::*;
use super::device::*;

const RENEW: Action = Action::Request(Renew, Pending);

#[test]
fn a_bundle_that_is_looked_at_rarely_is_not_asked_for_every_few_minutes_while_the_mis_is_away() {
    let mut device = Device::active(100 * DAY);
    device.waits_for(FetchBundle);
    device.told(Event::Bundle(Ok(facts(Some(DAY)))));
    device.waits_for(FetchBundle);
    let looks = device.lives_through(DAY, no_answer);
    let bundle = looks.get("bundle").copied().unwrap_or(0);
    assert!((48..=70).contains(&bundle), "half of the cap of an hour, on average: {bundle} a day");
}

#[test]
fn an_svid_does_not_expire_because_one_draw_was_a_long_one() {
    for asks_to_wait in [None, Some(60)] {
        let mut device = Device::renewing(20 * secs(3600));
        let end = START.after(20 * secs(3600));
        device.luck = 1.0;
        let mut tries_in_the_last_hour = 0;
        loop {
            device.told(refusal(Meaning::Transient, asks_to_wait));
            device.waits_to_ask();
            if device.doing != Some(RENEW) {
                break; // it has expired
            }
            let is_late = device.now.wall.until(end) < secs(3600);
            tries_in_the_last_hour += u32::from(is_late);
        }
        assert!(tries_in_the_last_hour >= 5, "told {asks_to_wait:?}: {tries_in_the_last_hour} tries");
        // From there on there is nothing to lose.
        device.told(refusal(Meaning::Transient, asks_to_wait));
        let waited = device.waits_for(Action::Request(Enroll, Pending));
        assert_eq!(waited, secs(3600 + asks_to_wait.unwrap_or(0)));
    }
}

#[test]
fn a_discovery_document_that_is_held_is_asked_after_at_the_pace_of_the_request_it_is_for() {
    let mut device = Device::renewing(100 * DAY);
    device.told(refusal(Meaning::NotFound, None));
    device.waits_for(FetchDiscovery);
    let looks = device.lives_through(DAY, no_answer);
    let discovery = looks.get("discovery").copied().unwrap_or(0);
    assert!((48..=70).contains(&discovery), "{discovery} a day");
}

#[test]
fn a_fleet_that_is_told_one_wait_comes_back_over_half_as_long_again() {
    for (asked, latest) in [(60, 90), (600, 900), (3600, 5400), (36_000, 39_600)] {
        let mut device = Device::enrolling();
        device.luck = 1.0;
        device.told(refusal(Meaning::Transient, Some(asked)));
        assert_eq!(device.waits_for(Action::Request(Enroll, Pending)), secs(latest), "told {asked} s");
    }
}

#[test]
fn an_answer_does_not_wait_for_a_bundle_that_nobody_was_waiting_for_before() {
    let mut device = Device::active(100 * DAY);
    device.waits_for(FetchBundle);
    device.told(Event::Bundle(Ok(facts(Some(DAY)))));
    device.waits_for(FetchBundle);
    device.told(Event::Bundle(Err(failure(Meaning::Slow, None))));
    device.told(Event::Told(Order::Renew));
    device.waits_for(Action::Request(Renew, Pending));
    device.told(answered());
    assert_eq!(device.told(Event::Adopted(Err(NotAdopted::UnknownIssuer))), Some(FetchBundle));
    // And not against the MIS.
    device.luck = 0.0;
    device.told(Event::Bundle(Err(failure(Meaning::Slow, Some(secs(600))))));
    assert_eq!(device.waits_for(FetchBundle), secs(600));
}

#[test]
fn who_cannot_go_on_under_the_document_held_asks_for_another_every_few_minutes() {
    let refused_for_good = || {
        let mut device = Device::enrolling();
        device.told(refusal(Meaning::Permanent, None));
        device
    };
    let without_a_bundle = || {
        let mut device = Device::fresh();
        device.starts();
        device.told(discovered());
        device.told(Event::Bundle(Err(failure(Meaning::NotFound, None))));
        device
    };
    for mut device in [refused_for_good(), without_a_bundle()] {
        device.waits_for(FetchDiscovery);
        let looks = device.lives_through(DAY, |action| match action {
            FetchDiscovery => Event::Discovery(Err(failure(Meaning::Transient, None))),
            _ => Event::Bundle(Err(failure(Meaning::NotFound, None))),
        });
        assert!(looks["discovery"] > 400, "{looks:?} a day");
    }
}

#[test]
fn short_lived_svids_do_not_make_a_fleet_ask_for_documents_more_often() {
    let mut device = Device::renewing(secs(600));
    device.told(refusal(Meaning::NotFound, None));
    let looks = device.lives_through(DAY, no_answer);
    assert!(looks["discovery"] < 700, "{looks:?} a day");
}

#[test]
fn a_wait_that_outlasts_a_short_lived_svid_is_followed_by_a_spread_as_wide_as_any() {
    let mut device = Device::renewing(secs(600));
    device.luck = 1.0;
    device.told(refusal(Meaning::Transient, Some(3600)));
    let waited = device.waits_to_ask();
    assert!(waited >= secs(5300), "{waited:?}");
}

#[test]
fn a_wait_that_ends_shortly_before_the_svid_does_is_followed_at_once_also_after_a_restart() {
    let end = secs(20 * 3600);
    let mut device = Device::renewing(end);
    device.passes(end - secs(65 * 60) - START.until(device.now.wall));
    device.luck = 1.0;
    device.told(refusal(Meaning::Transient, Some(3600)));
    let memory = device.lifecycle.memory();
    let svid = Some(svid(START, end, Current));
    let (discovery, bundle) = (Some(document()), true);
    device.restarts(Restored { svid, discovery, bundle, memory, pending_key: true, ..Restored::default() });
    device.told(key_proven());
    let waited = device.waits_for(Action::Request(Renew, Pending));
    assert!(waited >= secs(3600) && waited <= secs(3600 + 150), "{waited:?}");
}

#[test]
fn what_an_operator_retries_is_retried_also_after_a_wait_of_before_a_restart() {
    let mut device = Device::active(100 * DAY);
    device.waits_for(FetchBundle);
    device.told(Event::Bundle(Err(failure(Meaning::Transient, Some(secs(7200))))));
    let memory = device.lifecycle.memory();
    device.luck = 1.0;
    device.restarts(Restored { memory, ..an_identity() });
    device.told(key_proven());
    let over = secs(7200 + 60);
    let looks = device.lives_through(over, |action| match action {
        FetchBundle => panic!("what is drawn on top is not over"),
        other => good(other),
    });
    assert!(!looks.contains_key("bundle"));
    device.told(Event::Told(Order::Retry));
    assert!(device.waits_for(FetchBundle) <= secs(5));
}

#[test]
fn an_agreed_pace_outlives_a_restart() {
    let mut device = Device::fresh();
    device.restarts(Restored { bundle_refresh_hint: Some(DAY), ..an_identity() });
    let looks = device.lives_through(DAY, no_answer);
    let bundle = looks["bundle"];
    assert!((48..=70).contains(&bundle), "{bundle} a day");
}

#[test]
fn the_first_look_is_within_half_a_minute_whatever_the_interval() {
    let mut device = Device::fresh();
    device.luck = 1.0;
    let policy = Policy { bundle_refresh: DAY, ..policy() };
    device.lifecycle = Lifecycle::new(policy, an_identity(), device.now, &mut || 1.0);
    device.starts();
    device.told(key_proven());
    assert_eq!(device.waits_for(FetchDiscovery), secs(30));
    // What a renewal waits for is not looked at at leisure.
    let restored = Restored { bundle_is_empty: true, ..an_identity() };
    device.restarts(restored);
    assert_eq!(device.doing, Some(FetchDiscovery));
}

fn no_answer(action: &Action) -> Event {
    match action {
        FetchDiscovery => Event::Discovery(Err(failure(Meaning::Transient, None))),
        FetchBundle => Event::Bundle(Err(failure(Meaning::Transient, None))),
        Action::Request(..) => refusal(Meaning::Transient, None),
        other => good(other),
    }
}
