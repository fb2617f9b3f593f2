//! Which key is asked for with, and what happens when one is lost (E6, R4).

use super::super::Action::{CreateKey, FetchBundle, FetchDiscovery, ProveKey};
use super::super::KeyChoice::{Current, Pending};
use super::super::Request::{Enroll, Renew};
use super::super::*;
use super::device::*;

// ---- keys (R4, E6) ----

#[test]
fn a_refused_rotation_is_followed_by_the_existing_key_at_once_and_remembered() {
    let mut device = Device::renewing(100 * DAY);
    assert_eq!(
        device.told(refusal(Meaning::KeyRotationRefused, None)),
        Some(Action::Request(Renew, Current))
    );
    assert_eq!(device.told(answered()), Some(ADOPT));
    device.adopts_for(100 * DAY, Current);
    assert_eq!(device.error(), None);
    device.waits_for(Action::Request(Renew, Current));
}

#[test]
fn where_rotation_is_off_no_new_key_is_made() {
    let mut device = Device::fresh();
    device.lifecycle.policy.rotate = false;
    device.becomes_active(100 * DAY);
    device.waits_for(Action::Request(Renew, Current));
}

/// Restored with a key that the configuration, changed since, would have made elsewhere.
fn with_a_key_of_another_provider() -> Device {
    let mut device = Device::fresh();
    device.restarts(Restored {
        discovery: Some(document()),
        bundle: true,
        svid: Some(SvidFacts {
            key_fits: false,
            renew_at: Some(START.after(50 * DAY)),
            ..svid(START, 100 * DAY, Current)
        }),
        ..Restored::default()
    });
    device
}

#[test]
fn a_key_of_another_provider_is_replaced_at_once_also_where_rotation_is_off() {
    let mut device = with_a_key_of_another_provider();
    device.lifecycle.policy.rotate = false;
    assert_eq!(device.state(), State::Renewing);
    assert!(device.waits_for(CreateKey) < Duration::from_secs(1));
    device.told(key_created());
    assert!(device.waits_for(Action::Request(Renew, Pending)) < Duration::from_secs(1));
    assert_eq!(device.told(answered()), Some(ADOPT));
    device.adopts_for(100 * DAY, Pending);
    assert!(device.waits_for(Action::Request(Renew, Current)) > 10 * DAY, "and then rotation is off");
}

#[test]
fn where_it_may_not_be_replaced_it_is_kept_until_renewal_and_not_asked_for_again() {
    let mut device = with_a_key_of_another_provider();
    device.waits_for(CreateKey);
    device.told(key_created());
    device.waits_for(Action::Request(Renew, Pending));
    device.told(refusal(Meaning::KeyRotationRefused, None));
    assert_eq!(device.state(), State::Active);
    assert!(device.waits_for(Action::Request(Renew, Current)) > 10 * DAY);
    assert_eq!(device.told(answered()), Some(ADOPT));
    let kept = SvidFacts { key_fits: false, ..svid(device.now.wall, 100 * DAY, Current) };
    device.told(Event::Adopted(Ok(kept)));
    assert!(device.waits_for(Action::Request(Renew, Current)) > 10 * DAY, "no circle");
}

#[test]
fn an_expired_device_with_a_key_of_another_provider_enrolls_with_a_new_one() {
    let mut device = with_a_key_of_another_provider();
    device.passes(200 * DAY); // the key that is held may be out of reach for good
    assert!(device.waits_for(CreateKey) < DAY);
    assert_eq!(device.told(key_created()), Some(Action::Request(Enroll, Pending)));
    device.told(refusal(Meaning::KeyRotationRefused, None));
    assert_eq!(device.doing, Some(Action::Request(Enroll, Current)), "unless the MIS insists on it");
}

#[test]
fn a_refused_rotation_without_an_existing_key_blocks_until_something_is_corrected() {
    let mut device = Device::enrolling();
    device.told(refusal(Meaning::KeyRotationRefused, None));
    assert_eq!(device.state(), State::Blocked);
    device.waits_for(FetchDiscovery);
    device.told(discovered_anew());
    assert_eq!(device.told(bundle()), Some(Action::Request(Enroll, Pending)), "with the same key");
}

#[test]
fn the_same_key_is_used_after_any_number_of_lost_answers_and_restarts() {
    let mut device = Device::enrolling();
    for round in 0..50 {
        device.told(refusal(Meaning::Transient, None));
        device.waits_for(Action::Request(Enroll, Pending));
        if round % 10 == 9 {
            device.restarts(Restored { pending_key: true, ..Restored::default() });
            device.told(discovered());
            assert_eq!(device.told(bundle()), Some(Action::Request(Enroll, Pending)));
        }
    }
}

#[test]
fn a_pending_key_outlives_a_lost_renewal_a_401_and_the_expiry() {
    let mut device = Device::renewing(100 * DAY);
    device.told(refusal(Meaning::Transient, None)); // the answer that certified the key may be the lost one
    device.waits_for(Action::Request(Renew, Pending));
    assert_eq!(device.told(refusal(Meaning::NotAuthenticated, None)), Some(Action::Request(Enroll, Pending)));
    device.told(refusal(Meaning::Transient, None));
    device.wall_jumps(200 * 24 * 3600);
    device.waits_for(Action::Request(Enroll, Pending));
    assert_eq!(
        device.told(refusal(Meaning::KeyRotationRefused, None)),
        Some(Action::Request(Enroll, Current)),
        "only a definite refusal ends it"
    );
}

// ---- a key that is lost ----

fn whose_key_is_lost() -> Device {
    let mut device = Device::fresh();
    device.restarts(an_identity());
    device.told(discovered());
    assert_eq!(device.told(bundle()), Some(ProveKey));
    device.told(key_lost());
    device
}

#[test]
fn a_lost_key_is_seen_at_start_and_nothing_takes_its_place_unasked() {
    let mut device = whose_key_is_lost();
    assert_eq!(device.state(), State::Blocked);
    let (error, again) = device.error().unwrap();
    assert!(error.permanent && again.is_none());
    let looks = device.lives_through(10 * DAY, |action| match action {
        ProveKey => key_lost(),
        FetchDiscovery | FetchBundle => good(action),
        other => panic!("{other:?} with no key"),
    });
    assert_eq!(looks["proof"], 239, "once an hour, in case the chip is put back");
    device.waits_for(ProveKey);
    device.told(key_proven());
    assert_eq!(device.state(), State::Active);
}

#[test]
fn a_lost_key_is_replaced_when_the_operator_allows_it_and_that_survives_a_restart() {
    let mut device = whose_key_is_lost();
    assert_eq!(device.told(Event::Told(Order::Retry)), Some(FetchBundle));
    assert_eq!(device.state(), State::Blocked, "an order to retry does not say that it may be replaced");
    device.told(bundle());
    device.waits_for(ProveKey);
    device.told(key_lost());

    device.told(Event::Told(Order::ReplaceKey));
    let memory = device.lifecycle.memory();
    assert!(memory.replace_lost_key);
    let svid = Some(svid(START, 100 * DAY, Current));
    let (discovery, bundle) = (Some(document()), true);
    device.restarts(Restored { svid, discovery, bundle, memory, ..Restored::default() });
    device.waits_for(ProveKey);
    device.told(key_lost());
    device.waits_for(CreateKey);
    device.told(key_created());
    device.waits_for(Action::Request(Enroll, Pending));
    assert!(!device.lifecycle.may_be_renamed(device.now), "it has an identity, and keeps it (E9)");
    device.told(answered());
    device.adopts_for(100 * DAY, Pending);
    assert_eq!(device.state(), State::Active);
    assert_eq!(device.lifecycle.memory(), Memory::default());
}

#[test]
fn a_key_that_works_is_not_replaced_whatever_the_operator_believes() {
    let mut device = Device::active(100 * DAY);
    device.passes(secs(60));
    device.told(Event::Told(Order::ReplaceKey));
    device.waits_for(ProveKey);
    device.told(key_proven());
    assert!(!device.lifecycle.memory().replace_lost_key);
    device.waits_for(Action::Request(Renew, Pending));
    assert!(device.now.wall >= START.after(50 * DAY));
}

#[test]
fn a_lost_key_is_replaced_by_itself_when_the_svid_has_expired() {
    let mut device = whose_key_is_lost();
    while !matches!(device.doing, Some(CreateKey)) {
        let lost = |action: &Action| if *action == ProveKey { key_lost() } else { good(action) };
        device.goes_on(lost);
    }
    assert!(device.now.wall > START.after(100 * DAY));
    device.waits_for(Action::Request(Enroll, Pending));
}

#[test]
fn a_key_that_is_lost_is_not_asked_with_where_the_mis_wants_the_existing_one() {
    let mut device = whose_key_is_lost();
    device.told(Event::Told(Order::ReplaceKey));
    device.waits_for(ProveKey);
    device.told(key_lost());
    device.waits_for(Action::Request(Enroll, Pending));
    device.told(refusal(Meaning::KeyRotationRefused, None));
    assert_eq!(device.state(), State::Blocked, "for the operator of the MIS to allow");
    device.lives_through(DAY, |action| match action {
        ProveKey => key_lost(),
        Action::Request(..) => panic!("{action:?} with a key that is lost, or was refused"),
        action => good(action),
    });
}

/// Found by a property: the refusal of the new key outlived the loss of the old one, so that a 401
/// at renewal was not answered with the enrollment that helps (R6).
#[test]
fn a_key_that_is_back_is_enrolled_with() {
    let mut device = whose_key_is_lost();
    device.told(Event::Told(Order::ReplaceKey));
    device.waits_for(ProveKey);
    device.told(key_lost());
    device.waits_for(Action::Request(Enroll, Pending));
    device.told(refusal(Meaning::KeyRotationRefused, None));
    assert_eq!(device.state(), State::Blocked);
    device.waits_for(ProveKey);
    device.told(key_proven());
    assert_eq!(device.state(), State::Active);
    device.waits_for(Action::Request(Renew, Current));
    device.told(refusal(Meaning::NotAuthenticated, None));
    device.waits_for(Action::Request(Enroll, Current));
}

#[test]
fn a_chip_that_is_away_at_start_is_looked_for_and_its_key_is_not_lost() {
    let mut device = Device::fresh();
    device.restarts(an_identity());
    device.waits_for(ProveKey);
    device.told(Event::KeyProven(Err(failure(Meaning::Local, None))));
    assert_eq!(device.state(), State::Blocked);
    assert!(device.waits_for(ProveKey) <= secs(30));
    device.told(key_proven());
    assert_eq!(device.state(), State::Active);
}

#[test]
fn a_key_is_proven_anew_when_its_svid_was_asked_for_before_a_restart() {
    let mut device = Device::fresh();
    device.restarts(Restored { pending_key: true, answer: true, ..Restored::default() });
    device.told(discovered());
    assert_eq!(device.told(bundle()), Some(ADOPT));
    assert_eq!(
        device.adopts_for(100 * DAY, Pending),
        Some(ProveKey),
        "its chip may have been replaced meanwhile"
    );
    device.told(key_lost());
    assert!(device.lifecycle.key_is_lost());
}

#[test]
fn with_its_key_lost_a_device_that_was_answered_401_keeps_asking_to_enroll() {
    let mut device = Device::renewing(100 * DAY);
    device.told(refusal(Meaning::NotAuthenticated, None));
    device.told(Event::Answered(Err(failure(Meaning::CurrentKeyLost, None))));
    for _ in 0..3 {
        device.waits_for(Action::Request(Enroll, Pending));
        device.told(refusal(Meaning::Transient, None));
        device.told(Event::Told(Order::Retry));
        device.waits_for(ProveKey);
        device.told(key_lost());
        assert_ne!(device.state(), State::Blocked, "there is a way that is open, and the only one");
    }
}
