//! What 100,000 devices at once taught (docs/fleet.md), told of one.

use super::super::Action::{FetchBundle, FetchDiscovery};
use super::super::KeyChoice::Pending;
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

fn no_answer(action: &Action) -> Event {
    match action {
        FetchDiscovery => Event::Discovery(Err(failure(Meaning::Transient, None))),
        FetchBundle => Event::Bundle(Err(failure(Meaning::Transient, None))),
        Action::Request(..) => refusal(Meaning::Transient, None),
        other => good(other),
    }
}
