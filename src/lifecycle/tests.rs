//! The rules that the lifecycle decides: first as stories of one device, told step by step, then as properties that
//! hold through any history of answers, clock jumps and restarts. The words they are told in stand at the end.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

use super::Action::{CreateKey, FetchBundle, FetchDiscovery, ProveKey};
use super::KeyChoice::{Current, Pending};
use super::Request::{Enroll, Renew};
use super::*;

// ---- the first run ----

#[test]
fn the_first_run_goes_from_discovery_to_an_identity_and_to_its_renewal_in_the_window() {
    let mut device = Device::fresh();
    assert_eq!(device.starts(), Some(FetchDiscovery));
    assert_eq!(device.state(), State::Discovering);
    assert_eq!(device.told(discovered()), Some(FetchBundle));
    assert_eq!(
        device.told(bundle()),
        Some(CreateKey),
        "a key is durable before a request is sent with it (E6)"
    );
    assert_eq!(device.state(), State::Enrolling);
    assert_eq!(device.told(key_created()), Some(Action::Request(Enroll, Pending)));
    assert_eq!(device.told(answered()), Some(ADOPT));
    assert_eq!(device.adopts_for(100 * DAY, Pending), None);
    assert_eq!(device.state(), State::Active);
    assert_eq!(device.error(), None);

    // The luck is 0.5: in the middle of the window from 40 % to 60 %.
    assert_eq!(device.lifecycle.renew_at(), Some(START.after(50 * DAY)));
    device.waits_for(CreateKey);
    assert_eq!(device.now.wall, START.after(50 * DAY));
    assert_eq!(
        device.told(key_created()),
        Some(FetchDiscovery),
        "a document that became stale is revalidated (D1)"
    );
    assert_eq!(device.told(discovered()), Some(Action::Request(Renew, Pending)));
    assert_eq!(device.state(), State::Renewing);
    assert_eq!(device.told(answered()), Some(ADOPT));
    device.adopts_for(100 * DAY, Pending);
    assert_eq!(device.state(), State::Active);
}

#[test]
fn the_renewal_moment_is_drawn_over_the_whole_window() {
    for (luck, percent) in [(0.0, 40), (0.25, 45), (0.5, 50), (1.0, 60)] {
        let mut device = Device::fresh();
        device.luck = luck;
        device.becomes_active(100 * DAY);
        assert_eq!(device.lifecycle.renew_at(), Some(START.after(percent * DAY)));
    }
}

#[test]
fn nothing_is_asked_for_before_there_is_a_bundle_to_judge_the_answer_by() {
    let mut device = Device::fresh();
    device.starts();
    device.told(discovered());
    device.told(Event::Bundle(Err(failure(Meaning::Transient, None))));
    assert_eq!(device.state(), State::Discovering);
    device.waits_for(FetchBundle);
    assert_eq!(device.told(bundle()), Some(CreateKey));
}

// ---- waiting (E8, R7) ----

#[test]
fn retry_after_is_never_undercut_and_what_is_drawn_comes_on_top() {
    for (luck, shortest, longest) in [(0.0, 3600, 3600), (1.0, 3601, 3600 + 360)] {
        let mut device = Device::enrolling();
        device.luck = luck;
        device.told(refusal(Meaning::Transient, Some(3600)));
        let waited = device.waits_for(Action::Request(Enroll, Pending));
        assert!(waited >= secs(shortest) && waited <= secs(longest), "luck {luck}: {waited:?}");
    }
}

#[test]
fn a_wait_of_more_than_seven_days_is_cut_to_seven_days() {
    let mut device = Device::enrolling();
    device.luck = 0.0;
    device.told(Event::Answered(Err(failure(Meaning::Transient, Some(Duration::MAX)))));
    assert_eq!(device.waits_for(Action::Request(Enroll, Pending)), 7 * DAY);
}

#[test]
fn a_wall_clock_that_jumps_neither_shortens_nor_stretches_a_wait() {
    for jump in [-20 * 3600, 20 * 3600] {
        let mut device = Device::enrolling();
        device.luck = 0.0;
        device.told(refusal(Meaning::Transient, Some(3600)));
        device.wall_jumps(jump);
        assert_eq!(device.waits_for(Action::Request(Enroll, Pending)), secs(3600));
    }
}

#[test]
fn a_wait_survives_a_restart_and_is_drawn_on_top_of_anew() {
    for (luck, least) in [(0.0, 3000), (1.0, 3001)] {
        let mut device = Device::enrolling();
        device.told(refusal(Meaning::Transient, Some(3600)));
        device.passes(secs(600));
        let memory = device.lifecycle.memory();
        assert_eq!(memory.waits.identity, Some(BootTime::from_millis(3_600_000)));

        device.luck = luck;
        device.restarts(Restored { pending_key: true, memory, ..Restored::default() });
        device.told(discovered());
        assert_eq!(device.told(bundle()), None);
        let waited = device.waits_for(Action::Request(Enroll, Pending));
        assert!(waited >= secs(least) && waited <= secs(3000 + 360), "luck {luck}: {waited:?}");
    }
}

#[test]
fn a_wait_that_is_over_is_not_stored_any_more_once_the_mis_has_answered() {
    let mut device = Device::enrolling();
    device.told(refusal(Meaning::Transient, Some(60)));
    device.waits_for(Action::Request(Enroll, Pending));
    device.told(answered());
    assert_eq!(device.lifecycle.memory(), Memory::default());
}

#[test]
fn retry_after_holds_for_the_other_attempt_of_a_renewal_too() {
    for meaning in [Meaning::KeyRotationRefused, Meaning::NotAuthenticated] {
        let mut device = Device::renewing(100 * DAY);
        assert_eq!(device.told(refusal(meaning, Some(600))), None, "{meaning:?}");
        let next = if meaning == Meaning::NotAuthenticated {
            Action::Request(Enroll, Pending)
        } else {
            Action::Request(Renew, Current)
        };
        let waited = device.waits_for(next);
        assert!(waited >= secs(600) && waited <= secs(660), "{meaning:?}: {waited:?}");
    }
}

#[test]
fn backoff_doubles_to_the_cap_and_never_ends() {
    let mut device = Device::enrolling();
    device.luck = 1.0;
    let mut pauses = Vec::new();
    for _ in 0..40 {
        device.told(refusal(Meaning::Transient, None));
        pauses.push(device.waits_for(Action::Request(Enroll, Pending)).as_secs());
    }
    assert_eq!(pauses[..5], [5, 10, 20, 40, 80]);
    assert!(pauses[10..].iter().all(|pause| *pause == 3600), "{pauses:?}");
}

#[test]
fn with_the_worst_luck_the_mis_is_still_left_alone_for_a_moment() {
    let mut device = Device::enrolling();
    device.luck = 0.0;
    device.told(refusal(Meaning::Transient, None));
    assert!(device.waits_for(Action::Request(Enroll, Pending)) >= Duration::from_millis(100));
}

#[test]
fn retries_of_a_short_lived_svid_come_at_least_every_twentieth_of_its_lifetime() {
    let mut device = Device::renewing(secs(600));
    device.luck = 1.0;
    for _ in 0..9 {
        device.told(refusal(Meaning::Transient, None));
        assert!(device.waits_for(Action::Request(Renew, Pending)) <= secs(30));
    }
}

#[test]
fn a_refusal_by_policy_is_retried_slowly_and_spread() {
    for meaning in [Meaning::NotAuthenticated, Meaning::Slow] {
        for (luck, pause) in [(0.0, 3600), (1.0, 1800)] {
            let mut device = Device::enrolling();
            device.luck = luck;
            device.told(refusal(meaning, None));
            assert_eq!(device.waits_for(Action::Request(Enroll, Pending)), secs(pause), "{meaning:?}");
        }
    }
}

#[test]
fn a_pending_key_that_can_never_be_used_is_replaced_and_not_waited_for() {
    let mut device = Device::enrolling();
    device.told(Event::Answered(Err(failure(Meaning::PendingKeyLost, None))));
    assert_eq!(device.state(), State::Blocked, "people see it");
    assert!(device.waits_for(CreateKey) <= secs(30));
}

// ---- refused for good (P2, D5) ----

#[test]
fn what_is_refused_for_good_is_asked_again_when_the_discovery_document_changes_and_not_with_time() {
    let mut device = Device::enrolling();
    device.told(refusal(Meaning::Permanent, None));
    assert_eq!(device.state(), State::Blocked);
    let (error, again) = device.error().unwrap();
    assert!(error.permanent && again.is_none());

    // Three days: only discovery and bundle are read, at the bundle's pace.
    for _ in 0..3 * 24 {
        let looks = device.lives_through(secs(3600), |action| match action {
            FetchDiscovery => discovered(),
            FetchBundle => bundle(),
            other => panic!("{other:?} while blocked"),
        });
        // Every 5 minutes, less the fifth that keeps a fleet apart.
        assert!((11..=15).contains(&looks[&"discovery"]), "{looks:?}");
        assert_eq!(device.state(), State::Blocked);
    }
    device.waits_for(FetchDiscovery);
    assert_eq!(device.told(discovered_anew()), Some(FetchBundle), "it may name another bundle");
    assert_eq!(device.told(bundle()), Some(Action::Request(Enroll, Pending)));
    assert_eq!(device.state(), State::Enrolling);
}

#[test]
fn a_changed_discovery_document_does_not_shorten_a_wait_that_the_mis_asked_for() {
    let mut device = Device::enrolling();
    device.luck = 1.0;
    let before = device.now.boot;
    device.told(refusal(Meaning::Permanent, Some(3600)));
    device.waits_for(FetchDiscovery);
    device.told(discovered_anew());
    device.told(bundle());
    device.waits_for(Action::Request(Enroll, Pending));
    let waited = before.until(device.now.boot);
    assert!(waited > secs(3600) && waited <= secs(3960), "what was drawn on top stays too: {waited:?}");
}

#[test]
fn a_renewal_that_is_refused_for_good_is_followed_by_an_enrollment_only_at_expiry() {
    let mut device = Device::renewing(100 * DAY);
    device.told(refusal(Meaning::Permanent, None));
    assert_eq!(device.state(), State::Blocked);
    device.waits_for(Action::Request(Enroll, Pending));
    assert!(device.now.wall > START.after(100 * DAY));
}

#[test]
fn a_wall_clock_that_jumps_over_the_expiry_and_back_repeats_nothing_that_is_refused_for_good() {
    let mut device = Device::renewing(100 * DAY);
    device.told(refusal(Meaning::Permanent, None));
    device.wall_jumps(60 * 24 * 3600);
    device.waits_for(Action::Request(Enroll, Pending));
    device.told(refusal(Meaning::Permanent, None));
    assert_eq!(device.state(), State::Blocked);
    device.wall_jumps(-60 * 24 * 3600);
    assert_eq!(device.state(), State::Blocked);
    device.lives_through(DAY, |action| match action {
        FetchDiscovery => discovered(),
        FetchBundle => bundle(),
        other => panic!("{other:?} while blocked"),
    });
}

#[test]
fn no_request_is_made_that_the_discovery_document_does_not_list() {
    let mut device = Device::fresh();
    device.starts();
    device.told(Event::Discovery(Ok(Discovered { cannot_enroll: Some(report()), ..document() })));
    assert_eq!(device.told(bundle()), None, "not even a key is made");
    assert_eq!(device.state(), State::Blocked);
    assert_eq!(device.error().unwrap().0.report, report());
    device.waits_for(FetchDiscovery);
    device.told(discovered_anew());
    assert_eq!(device.told(bundle()), Some(CreateKey));
}

#[test]
fn a_device_with_an_identity_renews_where_only_enrollment_is_not_listed() {
    let mut device = Device::active(100 * DAY);
    device.knows(Discovered { cannot_enroll: Some(report()), ..document() });
    device.waits_for(CreateKey);
    assert_eq!(device.state(), State::Renewing);
}

// ---- pending admission (E7) ----

#[test]
fn a_device_waits_to_be_admitted_for_as_long_as_it_takes() {
    let mut device = Device::enrolling();
    for _ in 0..1000 {
        device.told(refusal(Meaning::Pending, Some(300)));
        assert_eq!(device.state(), State::PendingAdmission);
        assert!(!device.error().unwrap().0.permanent);
        let waited = device.waits_for(Action::Request(Enroll, Pending));
        assert!(waited >= secs(300) && waited <= secs(375), "{waited:?}");
    }
    assert_eq!(device.told(answered()), Some(ADOPT));
    device.adopts_for(100 * DAY, Pending);
    assert_eq!(device.state(), State::Active);
}

#[test]
fn an_mis_that_says_pending_and_at_once_is_not_hammered() {
    let mut device = Device::enrolling();
    let mut asked = 0;
    let begin = device.now.boot;
    while begin.until(device.now.boot) < DAY {
        device.told(refusal(Meaning::Pending, Some(0)));
        device.waits_for(Action::Request(Enroll, Pending));
        asked += 1;
    }
    assert!(asked < 100, "{asked} requests in a day");
}

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
    assert_eq!(device.told(key_created()), Some(Action::Request(Renew, Pending)));
    assert_eq!(device.told(answered()), Some(ADOPT));
    device.adopts_for(100 * DAY, Pending);
    assert!(device.waits_for(Action::Request(Renew, Current)) > 10 * DAY, "and then rotation is off");
}

#[test]
fn where_it_may_not_be_replaced_it_is_kept_until_renewal_and_not_asked_for_again() {
    let mut device = with_a_key_of_another_provider();
    device.waits_for(CreateKey);
    device.told(key_created());
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

// ---- re-authentication (R6) ----

#[test]
fn a_401_at_renewal_leads_to_an_enrollment_at_once() {
    let mut device = Device::renewing(100 * DAY);
    assert_eq!(device.told(refusal(Meaning::NotAuthenticated, None)), Some(Action::Request(Enroll, Pending)));
    assert_eq!(device.state(), State::Renewing);
    device.told(answered());
    device.adopts_for(100 * DAY, Pending);
    assert_eq!(device.state(), State::Active);
    device.waits_for(CreateKey);
    device.told(key_created());
    assert_eq!(device.told(discovered()), Some(Action::Request(Renew, Pending)), "and then renewals again");
}

#[test]
fn an_expired_svid_leads_to_an_enrollment_and_ends_nothing() {
    let mut device = Device::renewing(secs(3600));
    while device.now.wall <= START.after(secs(3600)) {
        device.told(refusal(Meaning::Transient, None));
        device.waits_to_ask();
    }
    assert_eq!(device.state(), State::Expired);
    for _ in 0..100 {
        assert_eq!(device.doing, Some(Action::Request(Enroll, Pending)));
        device.told(refusal(Meaning::Transient, None));
        assert!(device.waits_to_ask() <= secs(180));
    }
    device.told(answered());
    device.adopts_for(secs(3600), Pending);
    assert_eq!(device.state(), State::Active);
}

#[test]
fn the_expiry_is_noticed_in_its_moment_although_nothing_else_is_due() {
    let mut device = Device::renewing(secs(3600));
    device.told(refusal(Meaning::Transient, Some(7200)));
    while device.state() != State::Expired {
        device.goes_on(good);
    }
    assert_eq!(device.now.wall, START.after(secs(3600)).after(Duration::from_millis(1)));
}

// ---- judging the answer (E4) ----

#[test]
fn an_early_answer_is_kept_until_its_time() {
    let mut device = Device::enrolling();
    device.told(answered());
    let not_before = device.now.wall.after(secs(180));
    assert_eq!(device.told(Event::Adopted(Err(NotAdopted::Early(not_before)))), None);
    assert_eq!(device.waits_for(ADOPT), secs(180));
    device.adopts_for(100 * DAY, Pending);
    assert_eq!(device.state(), State::Active);
}

#[test]
fn an_unknown_issuer_is_a_refusal_only_after_one_more_look_at_the_bundle() {
    let mut device = Device::enrolling();
    device.told(answered());
    assert_eq!(device.told(Event::Adopted(Err(NotAdopted::UnknownIssuer))), Some(FetchBundle));
    assert_eq!(device.told(bundle()), Some(Action::Adopt { bundle_is_fresh: true }));
    assert_eq!(device.told(not_adopted()), None);
    let (error, again) = device.error().unwrap();
    assert!(!error.permanent && again.is_some());
    device.waits_for(Action::Request(Enroll, Pending));
}

#[test]
fn a_refused_answer_is_asked_for_again_slowly() {
    let mut device = Device::enrolling();
    device.luck = 1.0;
    for _ in 0..5 {
        device.told(answered());
        device.told(not_adopted());
        let waited = device.waits_for(Action::Request(Enroll, Pending));
        assert!(waited >= secs(1800), "each answer costs one of the few renewals of a day: {waited:?}");
    }
}

#[test]
fn an_answer_that_cannot_be_stored_is_judged_again_and_not_asked_for_again() {
    let mut device = Device::enrolling();
    device.told(answered());
    for _ in 0..20 {
        device.told(Event::Adopted(Err(NotAdopted::Kept(failure(Meaning::Local, None)))));
        assert_eq!(device.state(), State::Blocked);
        assert!(device.waits_for(ADOPT) <= secs(30));
    }
    device.adopts_for(100 * DAY, Pending);
    assert_eq!(device.state(), State::Active);
}

// ---- causes on the device itself ----

#[test]
fn a_local_cause_is_looked_at_again_within_half_a_minute_for_as_long_as_it_lasts() {
    let mut device = Device::fresh();
    device.starts();
    for _ in 0..50 {
        device.told(Event::Discovery(Err(failure(Meaning::Local, None))));
        assert_eq!(device.state(), State::Blocked);
        assert!(device.error().unwrap().0.permanent);
        assert!(device.waits_for(FetchDiscovery) <= secs(30));
    }
    device.told(discovered());
    device.told(bundle());
    for _ in 0..50 {
        device.told(Event::KeyCreated(Err(failure(Meaning::Local, None))));
        assert_eq!(device.state(), State::Blocked);
        assert!(device.waits_for(CreateKey) <= secs(30));
    }
}

#[test]
fn a_local_cause_that_is_gone_blocks_nothing_any_more() {
    let mut device = Device::enrolling();
    device.told(refusal(Meaning::Local, None));
    assert_eq!(device.state(), State::Blocked);
    device.waits_for(Action::Request(Enroll, Pending));
    device.told(answered());
    let not_before = device.now.wall.after(secs(300));
    device.told(Event::Adopted(Err(NotAdopted::Early(not_before))));
    assert_eq!((device.state(), device.error()), (State::Enrolling, None));

    let mut device = Device::renewing(100 * DAY);
    device.told(refusal(Meaning::Local, None));
    device.waits_for(Action::Request(Renew, Pending));
    device.told(refusal(Meaning::NotAuthenticated, None));
    assert_eq!(device.state(), State::Renewing);
}

#[test]
fn a_long_local_cause_does_not_delay_the_retry_of_a_request() {
    let mut device = Device::enrolling();
    device.luck = 1.0;
    for _ in 0..50 {
        device.told(refusal(Meaning::Local, None));
        device.waits_to_ask();
    }
    device.told(refusal(Meaning::Transient, None));
    assert_eq!(device.waits_for(Action::Request(Enroll, Pending)), secs(5));
}

#[test]
fn the_error_shown_is_the_one_that_blocks() {
    let mut device = Device::enrolling();
    device.told(refusal(Meaning::Slow, None));
    assert_eq!(device.error().unwrap().0.report.title, "Slow");
    device.waits_for(FetchBundle);
    device.told(Event::Bundle(Err(failure(Meaning::Local, None))));
    assert_eq!(device.state(), State::Blocked);
    let (error, again) = device.error().unwrap();
    assert_eq!((error.report.title.as_str(), error.permanent), ("Local", true));
    assert!(again.unwrap() <= secs(30));
}

// ---- after a restart ----

#[test]
fn a_restored_device_looks_around_and_renews_when_it_is_time() {
    let mut device = Device::fresh();
    let renew_at = START.after(30 * DAY);
    device.restarts(Restored {
        discovery: Some(document()),
        bundle: true,
        svid: Some(SvidFacts { renew_at: Some(renew_at), ..svid(START, 100 * DAY, Current) }),
        ..Restored::default()
    });
    assert_eq!(device.state(), State::Active);
    assert_eq!(device.doing, Some(FetchDiscovery));
    assert_eq!(device.told(discovered()), Some(FetchBundle));
    assert_eq!(device.told(bundle()), Some(ProveKey), "its chip may have been replaced meanwhile");
    assert_eq!(device.told(key_proven()), None);
    device.waits_for(CreateKey);
    assert_eq!(device.now.wall, renew_at, "the moment that was drawn is kept");
}

#[test]
fn a_renewal_that_fell_due_while_the_device_was_off_is_made_at_once_even_under_cached_documents() {
    let mut device = Device::fresh();
    device.wall_jumps(70 * 24 * 3600);
    device.restarts(an_identity());
    assert_eq!(device.told(Event::Discovery(Err(failure(Meaning::Transient, None)))), Some(FetchBundle));
    assert_eq!(device.told(Event::Bundle(Err(failure(Meaning::Transient, None)))), Some(ProveKey));
    assert_eq!(device.told(key_proven()), Some(CreateKey), "the last good documents stay in use (D4)");
    assert_eq!(device.told(key_created()), Some(Action::Request(Renew, Pending)));
}

#[test]
fn an_answer_that_survived_is_judged_before_anything_is_asked() {
    let mut device = Device::fresh();
    device.restarts(Restored { pending_key: true, answer: true, ..Restored::default() });
    device.told(discovered());
    assert_eq!(device.told(bundle()), Some(ADOPT));
    device.adopts_for(100 * DAY, Pending);
    assert_eq!(device.state(), State::Active);
}

// ---- renewals that the MIS makes hard ----

#[test]
fn an_svid_issued_late_in_its_lifetime_does_not_lead_to_a_circle_of_renewals() {
    let mut device = Device::renewing(100 * DAY);
    device.wall_jumps(49 * 24 * 3600);
    // The CA's own end clamps every SVID: each is the last day of a hundred.
    let mut renewals = 0;
    while device.state() != State::Expired {
        if device.doing == Some(ADOPT) {
            renewals += 1;
            device.told(Event::Adopted(Ok(svid(START, 100 * DAY, device.asked_with))));
        } else {
            device.goes_on(good);
        }
    }
    assert!(renewals < 30, "{renewals} renewals in the last day");
}

#[test]
fn however_short_the_lifetimes_are_the_mis_is_left_alone_between_two_issues() {
    let mut device = Device::active(secs(2));
    device.waits_to_ask();
    assert!(BootTime::default().until(device.now.boot) >= secs(5));
}

// ---- discovery and bundle ----

#[test]
fn the_bundle_is_read_at_the_pace_that_the_mis_wishes_within_bounds() {
    let hours = |n: u64| Some(secs(n * 3600));
    for (hint, least, most) in [
        (None, secs(240), secs(300)),
        (Some(secs(60)), secs(48), secs(60)),
        (hours(10), secs(8 * 3600), secs(10 * 3600)),
        (Some(Duration::ZERO), secs(4), secs(5)),
        (Some(Duration::MAX), secs(86_400 * 4 / 5), DAY),
    ] {
        for luck in [0.0, 1.0] {
            let mut device = Device::active(1000 * DAY);
            device.luck = luck;
            device.waits_for(FetchBundle);
            device.told(Event::Bundle(Ok(facts(hint))));
            let wait = device.lifecycle.bundle_refresh_in(device.now).unwrap();
            assert_eq!(wait, if luck == 0.0 { most } else { least }, "{hint:?}");
            assert_eq!(device.waits_for(FetchBundle), wait);
        }
    }
}

#[test]
fn a_bundle_that_cannot_be_read_is_asked_for_at_least_as_often_as_one_that_can() {
    let mut device = Device::active(1000 * DAY);
    device.luck = 0.0;
    device.waits_for(FetchBundle);
    for meaning in [Meaning::Transient, Meaning::Slow, Meaning::Transient, Meaning::NotAuthenticated] {
        device.luck = 0.0;
        device.told(Event::Bundle(Err(failure(meaning, None))));
        assert!(device.waits_for(FetchBundle) <= secs(300));
        assert_eq!(device.state(), State::Active);
    }
}

#[test]
fn a_404_makes_the_device_read_discovery_again_and_then_retry_slowly() {
    let mut device = Device::enrolling();
    device.told(refusal(Meaning::NotFound, None));
    let waited = device.waits_for(FetchDiscovery);
    assert!(waited <= secs(60), "not at once: it was read just now. {waited:?}");
    device.told(discovered());
    let waited = device.waits_for(Action::Request(Enroll, Pending));
    assert!(waited >= secs(1500), "{waited:?}");
}

#[test]
fn a_404_under_a_document_that_has_changed_is_retried_under_the_new_one_at_once() {
    let mut device = Device::enrolling();
    device.passes(secs(120));
    assert_eq!(device.told(refusal(Meaning::NotFound, None)), Some(FetchDiscovery));
    assert_eq!(device.told(discovered_anew()), Some(FetchBundle));
    assert_eq!(device.told(bundle()), Some(Action::Request(Enroll, Pending)));
}

#[test]
fn an_mis_that_serves_two_documents_in_turn_and_404_under_both_is_not_asked_in_a_circle() {
    for broken in ["request", "bundle"] {
        let mut device = Device::fresh();
        device.starts();
        let looks = device.lives_through(secs(3600), |action| match action {
            FetchDiscovery => discovered_anew(),
            action if kind(action) == broken => match action {
                FetchBundle => Event::Bundle(Err(failure(Meaning::NotFound, None))),
                _ => refusal(Meaning::NotFound, None),
            },
            action => good(action),
        });
        assert!(looks.values().all(|times| *times <= 70), "{looks:?}");
    }
}

#[test]
fn documents_that_change_all_the_time_do_not_keep_the_backoff_short() {
    let mut device = Device::enrolling();
    let looks = device.lives_through(DAY, |action| match action {
        FetchDiscovery => discovered_anew(),
        Action::Request(..) => refusal(Meaning::Transient, None),
        action => good(action),
    });
    assert!(looks["request"] <= 100, "{looks:?}");
}

#[test]
fn a_failed_look_at_discovery_keeps_the_last_good_document_in_use_and_is_repeated() {
    let mut device = Device::active(100 * DAY);
    device.waits_for(CreateKey);
    device.told(key_created());
    assert_eq!(device.doing, Some(FetchDiscovery));
    let next = device.told(Event::Discovery(Err(failure(Meaning::Transient, None))));
    assert_eq!(next, Some(Action::Request(Renew, Pending)));
    device.told(answered());
    device.adopts_for(100 * DAY, Pending);
    assert!(device.waits_for(FetchDiscovery) <= secs(300));
}

// ---- the clock ----

#[test]
fn with_a_clock_that_cannot_be_right_nothing_is_judged_and_only_the_time_is_asked_for() {
    for (jump, why) in [(-50 * 365 * 86_400, "1970"), (-2 * 3600, "a time zone")] {
        let mut device = Device::active(100 * DAY);
        device.is_shown(START.after(3 * DAY));
        device.now.wall = START.after(3 * DAY);
        device.wall_jumps(jump);
        assert_eq!(device.state(), State::WaitingForClock, "{why}");
        assert_eq!(device.error().unwrap().0.report.kind, "urn:miaf-agent:error:clock");
        let looks = device.lives_through(secs(3000), |action| match action {
            FetchDiscovery => Event::Discovery(Err(failure(Meaning::Transient, None))),
            other => panic!("{other:?} by a clock that cannot be right"),
        });
        assert!(looks["discovery"] > 5);
        assert!(device.wake_in.is_none_or(|wait| wait <= secs(60)), "it may be set without a jump");
        device.now.wall = START.after(3 * DAY);
        device.told(Event::Wake);
        assert_eq!(device.state(), State::Active);
    }
}

#[test]
fn a_clock_that_is_minutes_behind_the_mis_is_believed() {
    let mut device = Device::active(100 * DAY);
    device.is_shown(START.after(secs(9 * 60)));
    assert_eq!(device.state(), State::Active);
}

#[test]
fn what_the_mis_proves_moves_the_floor_both_ways_and_a_jump_of_the_clock_alone_never_does() {
    let mut device = Device::active(100 * DAY);
    device.wall_jumps(15 * 365 * 86_400);
    assert_eq!(device.state(), State::Expired, "the wrong clock is believed for now");
    device.wall_jumps(-15 * 365 * 86_400);
    assert_eq!(device.state(), State::Active, "and nothing is left of it");

    device.is_shown(START.after(1000 * DAY));
    assert_eq!(device.state(), State::WaitingForClock, "the clock of the MIS is wrong");
    device.is_shown(START);
    assert_eq!(device.state(), State::Active, "and is right again");
}

#[test]
fn a_clock_that_a_time_service_has_set_is_believed_whatever_was_proven() {
    let mut device = Device::active(100 * DAY);
    device.is_shown(START.after(1000 * DAY));
    device.now.synchronised = true;
    assert_eq!(device.state(), State::Active);
}

#[test]
fn where_no_time_service_is_the_operator_says_that_the_clock_is_right_and_is_believed() {
    let mut device = Device::active(100 * DAY);
    let wrong = START.after(1000 * DAY);
    device.is_shown(wrong);
    device.told(Event::Told(Order::Renew));
    assert_eq!(device.state(), State::WaitingForClock, "that says nothing about the clock");
    device.told(Event::Told(Order::Retry));
    assert_ne!(device.state(), State::WaitingForClock);
    device.is_shown(wrong);
    assert_ne!(device.state(), State::WaitingForClock, "the MIS says the same as before");
    let time = device.lifecycle.known_time();
    device.restarts(Restored { svid: Some(svid(START, 100 * DAY, Current)), time, ..Restored::default() });
    assert_ne!(device.state(), State::WaitingForClock, "nor does a restart undo it");
    device.wall_jumps(-7200);
    assert_eq!(device.state(), State::WaitingForClock, "for this clock he did not speak");
    device.wall_jumps(7200);

    device.is_shown(device.now.wall);
    device.is_shown(wrong);
    assert_eq!(
        device.state(),
        State::WaitingForClock,
        "the MIS was right meanwhile: the word is not needed any more"
    );
}

#[test]
fn a_clock_before_the_agent_was_built_is_not_believed_whatever_the_mis_says() {
    let mut device = Device::fresh();
    let time = KnownTime { built: START.after(DAY), ..KnownTime::default() };
    device.restarts(Restored { svid: Some(svid(START, 100 * DAY, Current)), time, ..Restored::default() });
    device.is_shown(START);
    assert_eq!(device.state(), State::WaitingForClock);
    device.told(Event::Told(Order::Retry));
    assert_eq!(device.state(), State::Active);
}

#[test]
fn what_a_clock_that_was_ahead_made_go_wrong_does_not_matter_any_more_when_it_is_right() {
    let mut device = Device::active(100 * DAY);
    device.wall_jumps(15 * 365 * 86_400);
    device.waits_for(Action::Request(Enroll, Current));
    device.told(Event::Answered(Err(failure(Meaning::Local, None)))); // the factory certificate has expired, it seems
    assert_eq!(device.state(), State::Blocked);
    device.now.wall = START.after(DAY);
    device.told(Event::Wake);
    assert_eq!(device.state(), State::Active);
    assert_eq!(device.error(), None);
}

#[test]
fn a_restarted_device_remembers_what_time_it_is_at_least() {
    let mut device = Device::fresh();
    device.restarts(Restored {
        svid: Some(svid(START, 100 * DAY, Current)),
        time: KnownTime { proven: Some(START.after(DAY)), ..KnownTime::default() },
        ..Restored::default()
    });
    assert_eq!(device.state(), State::WaitingForClock);
    assert_eq!(device.doing, Some(FetchDiscovery), "the time comes with it");
}

#[test]
fn after_a_week_asleep_what_fell_due_is_done_at_once_and_in_order() {
    let mut device = Device::active(10 * DAY);
    device.passes(7 * DAY);
    assert_eq!(device.doing, Some(FetchBundle), "the bundle that is held is a week old");
    assert_eq!(device.told(bundle()), Some(CreateKey));
    assert_eq!(device.told(key_created()), Some(FetchDiscovery));
    assert_eq!(device.told(discovered()), Some(Action::Request(Renew, Pending)));
}

#[test]
fn what_failed_by_a_wrong_clock_is_tried_again_when_it_is_set_and_not_against_the_mis() {
    let mut device = Device::fresh();
    device.luck = 1.0;
    device.starts();
    for _ in 0..20 {
        device.told(Event::Discovery(Err(failure(Meaning::Transient, None)))); // not valid yet, by a clock of 1970
        device.waits_for(FetchDiscovery);
    }
    device.told(Event::Discovery(Err(failure(Meaning::Transient, None))));
    device.wall_jumps(50 * 365 * 86_400);
    assert_eq!(device.doing, Some(FetchDiscovery));
    // A clock that is set all the time does not set the pace.
    let mut tries = 0;
    for second in 0..600 {
        if device.doing.is_some() {
            tries += 1;
            device.told(Event::Discovery(Err(failure(Meaning::Transient, None))));
        }
        device.now = later(device.now, secs(1));
        device.wall_jumps(if second % 2 == 0 { 86_400 } else { -86_400 });
    }
    assert!(tries <= 122, "{tries} in ten minutes");

    let mut device = Device::enrolling();
    device.luck = 0.0;
    device.told(refusal(Meaning::Transient, Some(3600)));
    device.wall_jumps(86_400);
    assert_eq!(device.waits_for(Action::Request(Enroll, Pending)), secs(3600), "E8");
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
    assert_eq!(device.told(key_created()), Some(Action::Request(Enroll, Pending)));
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

// ---- orders ----

#[test]
fn an_order_to_renew_renews_now_and_not_against_the_mis() {
    let mut device = Device::active(100 * DAY);
    device.passes(secs(60));
    assert_eq!(device.told(Event::Told(Order::Renew)), Some(CreateKey));
    device.told(key_created());
    device.waits_for(Action::Request(Renew, Pending));
    device.luck = 0.0;
    device.told(refusal(Meaning::Transient, Some(3600)));
    device.told(Event::Told(Order::Renew));
    assert_eq!(device.waits_for(Action::Request(Renew, Pending)), secs(3600), "E8");
}

#[test]
fn an_order_to_retry_is_a_correction() {
    let mut device = Device::enrolling();
    device.told(refusal(Meaning::Permanent, None));
    assert_eq!(device.state(), State::Blocked);
    device.passes(secs(120));
    assert_eq!(device.told(Event::Told(Order::Retry)), Some(FetchDiscovery));
    device.told(discovered());
    assert_eq!(device.told(bundle()), Some(Action::Request(Enroll, Pending)));
}

#[test]
fn an_order_during_an_action_leaves_the_action_under_way() {
    let mut device = Device::enrolling();
    let step = device.lifecycle.step(Event::Told(Order::Retry), device.now, &mut || 0.5);
    assert_eq!(step.action, None);
    device.told(answered());
    device.waits_for(ADOPT);
}

#[test]
fn orders_that_a_script_gives_do_not_set_the_pace() {
    for order in [Order::Retry, Order::Renew, Order::ReplaceKey] {
        let mut device = Device::active(100 * DAY);
        device.waits_for(Action::Request(Renew, Pending));
        device.told(refusal(Meaning::Transient, None));
        let mut looks = BTreeMap::new();
        for _ in 0..600 {
            device.told(Event::Told(order));
            while let Some(action) = device.doing.clone() {
                *looks.entry(kind(&action)).or_insert(0) += 1;
                device.told(match action {
                    Action::Request(..) => refusal(Meaning::Transient, None),
                    action => good(&action),
                });
            }
            device.passes(secs(1));
        }
        looks.remove("proof"); // the chip alone is asked
        assert!(looks.values().all(|times| *times <= 122), "in ten minutes, {order:?}: {looks:?}");
    }
}

// ---- a 401 at renewal, and an enrollment that does not help either ----

#[test]
fn whatever_is_in_the_way_of_the_enrollment_after_a_401_the_renewal_is_tried_again_slowly() {
    let ways: [(Meaning, u64); 5] = [
        (Meaning::Local, 1800),
        (Meaning::Slow, 1800),
        (Meaning::Permanent, 0),
        (Meaning::Transient, 0),
        (Meaning::NotFound, 1800),
    ];
    for (meaning, at_least) in ways {
        let mut device = Device::renewing(100 * DAY);
        assert_eq!(
            device.told(refusal(Meaning::NotAuthenticated, None)),
            Some(Action::Request(Enroll, Pending))
        );
        device.told(refusal(meaning, None));
        assert_ne!(device.state(), State::Blocked, "{meaning:?}: there is a way that is still open");
        let waited = device.waits_for(Action::Request(Renew, Pending));
        assert!(waited >= secs(at_least), "{meaning:?}: {waited:?}");
        // Where the enrollment is refused for good, another 401 does not lead to it at once, and not in a circle.
        let looks = device.lives_through(DAY, |action| match action {
            Action::Request(Renew, _) => refusal(Meaning::NotAuthenticated, None),
            Action::Request(Enroll, _) => refusal(meaning, None),
            action => good(action),
        });
        assert!(looks["request"] <= 120, "{meaning:?}: {looks:?}");
        device.waits_for(Action::Request(Renew, Pending));
        device.told(answered());
        device.adopts_for(100 * DAY, Pending);
        assert_eq!(device.state(), State::Active);
    }
}

#[test]
fn admission_stays_pending_while_the_mis_says_nothing_else() {
    let mut device = Device::enrolling();
    device.told(refusal(Meaning::Pending, Some(60)));
    for meaning in [Meaning::Offline, Meaning::Transient, Meaning::Local] {
        device.waits_for(Action::Request(Enroll, Pending));
        device.told(refusal(meaning, None));
        assert!(device.lifecycle.memory().admission_pending, "{meaning:?}");
    }
}

// ---- a network that is not there, anchors that go away ----

#[test]
fn a_device_with_no_way_out_asks_again_soon_after_it_has_one_and_is_not_taken_for_refused() {
    let mut device = Device::active(100 * DAY);
    device.luck = 0.0;
    device.waits_for(FetchBundle);
    for _ in 0..1000 {
        device.told(Event::Bundle(Err(failure(Meaning::Offline, None))));
        assert_eq!(device.state(), State::Active);
        let waited = device.waits_for(FetchBundle);
        assert!(waited >= secs(2) && waited <= secs(30), "{waited:?}");
    }
    device.luck = 1.0;
    device.told(Event::Bundle(Err(failure(Meaning::Transient, None))));
    assert!(device.waits_for(FetchBundle) <= secs(5), "the MIS has failed once, not a thousand times");
}

#[test]
fn an_svid_whose_anchor_has_gone_away_is_renewed_early_and_not_by_the_whole_fleet_at_once() {
    for (luck, within) in [(0.0, 0), (0.5, 150), (1.0, 300)] {
        let mut device = Device::active(100 * DAY);
        device.waits_for(FetchBundle);
        device.luck = luck;
        let seen = device.now.wall;
        device.told(bundle_without_its_anchor());
        assert_eq!(device.lifecycle.renew_at(), Some(seen.after(secs(within))));
        device.passes(secs(60));
        device.lifecycle.bundle = Some(HeldBundle { refresh_at: device.now.boot, is_empty: false });
        device.luck = 0.0;
        device.lifecycle.step(bundle_without_its_anchor(), device.now, &mut || 0.0);
        assert_eq!(device.lifecycle.renew_at(), Some(seen.after(secs(within))), "the moment is drawn once");
        device.lifecycle.step(bundle(), device.now, &mut || 0.0);
        assert_eq!(
            device.lifecycle.renew_at(),
            Some(START.after(50 * DAY)),
            "servers that did not agree yet"
        );
    }
}

#[test]
fn what_the_operator_wants_renewed_now_is_renewed_whatever_the_bundle_says_next() {
    let mut device = Device::active(100 * DAY);
    device.waits_for(FetchBundle);
    device.luck = 1.0;
    device.told(bundle_without_its_anchor());
    device.told(Event::Told(Order::Renew));
    device.lifecycle.step(bundle(), device.now, &mut || 0.5);
    assert_eq!(device.lifecycle.renew_at(), Some(device.now.wall));
}

#[test]
fn an_empty_bundle_leads_to_no_renewal_since_none_would_be_trusted() {
    let mut device = Device::active(100 * DAY);
    let renew_at = device.lifecycle.renew_at();
    device.waits_for(FetchBundle);
    device.told(empty_bundle());
    assert_eq!(device.lifecycle.renew_at(), renew_at);
    // Not even when it is due, and not for a device that has none yet.
    device.wall_jumps(60 * 86_400);
    let mut fresh = Device::fresh();
    fresh.starts();
    fresh.told(discovered());
    fresh.told(Event::Bundle(Ok(BundleFacts { vouches: None, is_empty: true, ..facts(Some(DAY)) })));
    assert!(fresh.lifecycle.bundle_refresh_in(fresh.now).unwrap() <= secs(300), "whatever the hint is");
    for mut device in [device, fresh] {
        device.lives_through(DAY, |action| match action {
            FetchBundle => empty_bundle(),
            CreateKey | Action::Request(..) => panic!("the answer would be refused"),
            action => good(action),
        });
        assert_eq!(device.error().unwrap().0.report.kind, "urn:miaf-agent:error:bundle-empty");
        device.waits_to_ask();
    }
}

// ---- properties ----

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Through any history the rules that [`Watch`] checks at every step hold, and an MIS that cooperates from then on
    /// (which includes a correction of what it refused for good) finds an active device in bounded time.
    #[test]
    fn any_history_keeps_the_rules_and_ends_well(
        begin in beginning(),
        lifetime in prop_oneof![Just(60), Just(3600), Just(90 * 86_400), Just(5 * 365 * 86_400)],
        turns in prop::collection::vec(turn(), 1..250),
    ) {
        let mut watch = Watch::new(begin, secs(lifetime));
        for turn in turns {
            watch.takes(turn);
        }
        watch.cooperates();
    }

    /// Nothing that an MIS does for good makes a device hammer it.
    #[test]
    fn no_permanent_failure_leads_to_many_requests(
        seed in any::<u64>(),
        fails in failing(),
        flapping in any::<bool>(),
        held in any::<bool>(),
    ) {
        let mut device = Device::fresh();
        if held {
            device.becomes_active(90 * DAY);
            device.wall_jumps(50 * 86_400);
        } else {
            device.starts();
        }
        device.random = Some(seed | 1);
        let Failing { what, meaning, at_once } = fails;
        let fail = || failure(meaning, at_once.then_some(Duration::ZERO));
        for hour in 0..8 {
            let looks = device.lives_through(secs(3600), |action| match (action, what) {
                (FetchDiscovery, "discovery") => Event::Discovery(Err(fail())),
                (FetchDiscovery, _) => Event::Discovery(Ok(Discovered { changed: flapping, ..document() })),
                (FetchBundle, "bundle") => Event::Bundle(Err(fail())),
                (FetchBundle, "anchor") => bundle_without_its_anchor(),
                (FetchBundle, _) => bundle(),
                (CreateKey, "key") => Event::KeyCreated(Err(failure(Meaning::Local, None))),
                (CreateKey | ProveKey, _) => good(action),
                (Action::Request(..), "request") => Event::Answered(Err(fail())),
                (Action::Request(..), _) => answered(),
                (Action::Adopt { bundle_is_fresh: false }, "issuer") => {
                    Event::Adopted(Err(NotAdopted::UnknownIssuer))
                }
                (Action::Adopt { .. }, _) => not_adopted(),
            });
            for (kind, times) in looks {
                // A local cause is looked at every half minute; it costs the MIS nothing.
                let most = if kind == "key" || asks_nobody(meaning) { 400 } else { 130 };
                prop_assert!(times <= most, "{times} times {kind} in hour {hour}");
            }
        }
    }

    /// The window holds for every lifetime from a minute to five years, and for every draw.
    #[test]
    fn every_renewal_moment_lies_in_the_window(lifetime in 60..=157_680_000_u64, luck in 0.0..1.0_f64) {
        let mut device = Device::fresh();
        device.luck = luck;
        device.becomes_active(secs(lifetime));
        let at = START.until(device.lifecycle.renew_at().unwrap());
        prop_assert!(at >= secs(lifetime).mul_f64(0.399) && at <= secs(lifetime).mul_f64(0.601));
    }
}

/// Every way from one state to another that some history takes is drawn in docs/architecture.md, and no other.
#[test]
fn the_diagram_shows_the_ways_from_state_to_state() {
    const APART: [&str; 2] = ["blocked", "waiting-for-clock"];
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut taken = BTreeSet::new();
    for round in 0..120 {
        let begin = beginning().new_tree(&mut runner).unwrap().current();
        let turns = prop::collection::vec(turn(), 250).new_tree(&mut runner).unwrap().current();
        let mut watch = Watch::new(begin, secs([60, 3600, 90 * 86_400][round % 3]));
        turns.into_iter().for_each(|turn| watch.takes(turn));
        // Into what stands apart, and out of it, there is a way from everywhere.
        taken.extend(watch.ways.into_iter().map(|(from, to)| {
            match (APART.contains(&from), APART.contains(&to)) {
                (false, true) => ("getting-on", to),
                (true, false) => (from, "getting-on"),
                _ => (from, to),
            }
        }));
    }
    // A name in the picture has no hyphen: Mermaid would take it for a piece of an arrow.
    let picture = include_str!("../../docs/architecture.md").replace('_', "-");
    let drawn = picture.lines().filter_map(|line| {
        let (way, name) = line.trim().split_once(": ")?;
        assert!(!name.is_empty());
        way.split_once(" --> ")
    });
    assert_eq!(drawn.collect::<BTreeSet<_>>(), taken);
}

#[derive(Clone, Debug)]
struct Turn {
    passes: Passes,
    reply: Reply,
    luck: f64,
    restart: bool,
    order: Option<Order>,
    /// The chip that the key is in is taken away, or put back.
    chip: Option<bool>,
    /// What the MIS says the time is, in seconds from what it is.
    proof: Option<i64>,
}

#[derive(Clone, Copy, Debug)]
enum Passes {
    Nothing,
    UntilWakeUp,
    Some(Duration),
}

/// What happens next, whatever the action under way is: [`Watch::event`] fits it to it.
#[derive(Clone, Debug)]
struct Reply {
    /// How far the wall clock is off from now on, in seconds.
    wall_off: Option<i64>,
    kind: Kind,
    changed: bool,
    cannot_enroll: bool,
    cannot_renew: bool,
    refresh_hint: Option<Duration>,
    vouches: Option<bool>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Good,
    Fails(Meaning, Option<Duration>),
    Early(u64),
    UnknownIssuer,
    Refused,
}

fn turn() -> impl Strategy<Value = Turn> {
    let passes = prop_oneof![
        2 => Just(Passes::Nothing),
        6 => Just(Passes::UntilWakeUp),
        2 => (0..100_000_u64).prop_map(|ms| Passes::Some(Duration::from_millis(ms))),
        1 => (0..1_000_u64).prop_map(|hours| Passes::Some(secs(hours * 3600))),
    ];
    let luck = prop_oneof![4 => 0.0..1.0_f64, 1 => Just(0.0), 1 => Just(1.0 - f64::EPSILON)];
    let order = prop::sample::select(vec![Order::Retry, Order::Renew, Order::ReplaceKey]);
    let proof = prop_oneof![3 => Just(0), 1 => -7200..7200_i64, 1 => Just(1000 * 86_400)];
    let rare = |p| prop::option::weighted(p, any::<bool>());
    let more = (prop::option::weighted(0.03, order), rare(0.03), prop::option::weighted(0.05, proof));
    (passes, reply(), luck, prop::bool::weighted(0.03), more).prop_map(
        |(passes, reply, luck, restart, (order, chip, proof))| Turn {
            passes,
            reply,
            luck,
            restart,
            order,
            chip,
            proof,
        },
    )
}

fn reply() -> impl Strategy<Value = Reply> {
    let kind = prop_oneof![
        6 => Just(Kind::Good),
        6 => (meaning(), retry_after()).prop_map(|(meaning, wait)| Kind::Fails(meaning, wait)),
        1 => (1..600_u64).prop_map(Kind::Early),
        1 => Just(Kind::UnknownIssuer),
        1 => Just(Kind::Refused),
    ];
    let hint = prop_oneof![3 => Just(None), 1 => any::<u64>().prop_map(|s| Some(secs(s))), 1 => Just(Some(secs(60)))];
    let wall_off = prop::option::weighted(0.1, prop_oneof![Just(0), -12 * 3600..12 * 3600_i64]);
    let rare = || prop::bool::weighted(0.15);
    let vouches = prop_oneof![4 => Just(Some(true)), 1 => Just(Some(false)), 1 => Just(None)];
    (wall_off, kind, rare(), rare(), rare(), hint, vouches).prop_map(
        |(wall_off, kind, changed, cannot_enroll, cannot_renew, refresh_hint, vouches)| Reply {
            wall_off,
            kind,
            changed,
            cannot_enroll,
            cannot_renew,
            refresh_hint,
            vouches,
        },
    )
}

fn meaning() -> impl Strategy<Value = Meaning> {
    prop::sample::select(vec![
        Meaning::Transient,
        Meaning::Pending,
        Meaning::Permanent,
        Meaning::KeyRotationRefused,
        Meaning::NotAuthenticated,
        Meaning::Slow,
        Meaning::NotFound,
        Meaning::Local,
        Meaning::Offline,
    ])
}

/// No request was made, so that no answer can have asked to wait.
fn asks_nobody(meaning: Meaning) -> bool {
    matches!(meaning, Meaning::Local | Meaning::Offline | Meaning::CurrentKeyLost)
}

fn retry_after() -> impl Strategy<Value = Option<Duration>> {
    prop_oneof![
        4 => Just(None),
        1 => Just(Some(Duration::ZERO)),
        2 => (1..10_000_u64).prop_map(|s| Some(secs(s))),
        1 => Just(Some(Duration::MAX)),
    ]
}

fn beginning() -> impl Strategy<Value = (bool, bool, bool)> {
    any::<(bool, bool, bool)>()
}

#[derive(Clone, Debug)]
struct Failing {
    what: &'static str,
    meaning: Meaning,
    at_once: bool,
}

fn failing() -> impl Strategy<Value = Failing> {
    let what =
        prop::sample::select(vec!["discovery", "bundle", "key", "request", "issuer", "answer", "anchor"]);
    (what, meaning(), any::<bool>()).prop_map(|(what, meaning, at_once)| Failing {
        what,
        meaning,
        at_once: at_once && !asks_nobody(meaning),
    })
}

/// A device, the disk beside it, and someone who remembers what it must not forget.
struct Watch {
    lifecycle: Lifecycle,
    now: Now,
    wall_off: i64,
    luck: f64,
    lifetime: Duration,
    doing: Option<Action>,
    wake_in: Option<Duration>,
    // What is on disk.
    discovery: Option<Discovered>,
    bundle: Option<BundleFacts>,
    svid: Option<SvidFacts>,
    pending_key: bool,
    answer: Option<KeyChoice>,
    // What must not be forgotten.
    asked_until: BTreeMap<&'static str, BootTime>,
    pending_refused: bool,
    refused_for_good: Vec<Request>,
    answered_401: bool,
    /// The chip that the key is in is away; whether the agent knows it, and whether another key may take its place.
    chip_away: bool,
    known_lost: bool,
    may_replace: bool,
    /// It is at least this time, by the MIS's word or by the operator's.
    floor: Timestamp,
    vouched: bool,
    early: Option<Timestamp>,
    at_this_moment: u32,
    ever_asked_to_wait: bool,
    /// Where it stood after the last step, and every way from one state to another that was seen.
    stood: Option<State>,
    ways: BTreeSet<(&'static str, &'static str)>,
}

impl Watch {
    fn new((held, pending_key, answer): (bool, bool, bool), lifetime: Duration) -> Self {
        let device = Device::fresh();
        let mut watch = Self {
            lifecycle: device.lifecycle,
            now: device.now,
            wall_off: 0,
            luck: 0.5,
            lifetime,
            doing: None,
            wake_in: None,
            discovery: held.then(document),
            bundle: held.then_some(facts(None)),
            svid: held.then(|| svid(START, lifetime, Current)),
            pending_key,
            answer: (answer && pending_key).then_some(Pending),
            asked_until: BTreeMap::new(),
            pending_refused: false,
            refused_for_good: Vec::new(),
            answered_401: false,
            chip_away: false,
            known_lost: false,
            may_replace: false,
            floor: Timestamp::default(),
            vouched: false,
            early: None,
            at_this_moment: 0,
            ever_asked_to_wait: false,
            stood: None,
            ways: BTreeSet::new(),
        };
        watch.restarts();
        watch
    }

    fn takes(&mut self, turn: Turn) {
        self.luck = turn.luck;
        if let Some(off) = turn.reply.wall_off {
            self.now.wall = Timestamp::from_millis(self.now.wall.as_millis() + (off - self.wall_off) * 1000);
            self.wall_off = off;
        }
        match (turn.passes, self.wake_in) {
            (Passes::Some(time), _) => self.passes(time),
            (Passes::UntilWakeUp, Some(wake_in)) if self.doing.is_none() => self.passes(wake_in),
            _ => {}
        }
        if turn.restart {
            return self.restarts();
        }
        self.chip_away = turn.chip.unwrap_or(self.chip_away);
        if let Some(off) = turn.proof {
            let true_time = self.now.wall.as_millis() - self.wall_off * 1000;
            self.is_proven(Timestamp::from_millis(true_time + off * 1000));
        }
        if let Some(order) = turn.order {
            self.orders(order);
        }
        let event = match self.doing.clone() {
            // Someone looks while it works: it must not begin a second thing.
            Some(_) if matches!(turn.passes, Passes::Some(_)) => Event::Wake,
            Some(action) => self.event(&action, &turn.reply),
            None => Event::Wake,
        };
        self.steps(event);
    }

    fn is_proven(&mut self, time: Timestamp) {
        let agrees = self.now.wall.after(secs(600)) >= time;
        if agrees || !self.vouched {
            (self.floor, self.vouched) = (time, false);
        }
        self.lifecycle.time_is_proven(time, self.now);
    }

    fn orders(&mut self, order: Order) {
        self.refused_for_good.clear(); // a correction (P2)
        self.pending_refused = false;
        self.at_this_moment = 0;
        self.answered_401 &= self.known_lost;
        if order != Order::Renew && self.now.wall.after(secs(600)) < self.floor {
            (self.floor, self.vouched) = (self.now.wall, true);
        }
        self.may_replace |= order == Order::ReplaceKey && self.svid.is_some();
        self.steps(Event::Told(order));
    }

    fn passes(&mut self, time: Duration) {
        if !time.is_zero() {
            self.at_this_moment = 0;
        }
        self.now = later(self.now, time);
    }

    fn restarts(&mut self) {
        let memory = self.lifecycle.memory();
        let waits = memory.waits;
        for (kind, kept) in
            [("discovery", waits.discovery), ("bundle", waits.bundle), ("identity", waits.identity)]
        {
            if self.asked_until.get(kind).is_some_and(|until| *until > self.now.boot) {
                assert_eq!(kept.as_ref(), self.asked_until.get(kind), "the wait for {kind} is kept (E8)");
            }
        }
        let restored = Restored {
            discovery: self.discovery.clone().map(|facts| Discovered { changed: false, ..facts }),
            bundle: self.bundle.is_some(),
            bundle_is_empty: self.bundle.is_some_and(|bundle| bundle.is_empty),
            svid: self.svid.clone().map(|facts| SvidFacts {
                renew_at: self.lifecycle.renew_at(),
                key: Current,
                ..facts
            }),
            pending_key: self.pending_key,
            answer: self.answer.is_some(),
            memory,
            time: self.lifecycle.known_time(),
        };
        self.known_lost = false;
        // A restart is a correction (P2), and what only memory knew is asked anew.
        (self.pending_refused, self.answered_401, self.early) = (false, false, None);
        self.refused_for_good.clear();
        (self.doing, self.stood) = (None, None);
        let luck = self.luck;
        self.lifecycle = Lifecycle::new(policy(), restored, self.now, &mut || luck);
        self.steps(Event::Wake);
    }

    fn event(&mut self, action: &Action, reply: &Reply) -> Event {
        let failed = match reply.kind {
            Kind::Fails(meaning, wait) => Some(failure(meaning, wait.filter(|_| !asks_nobody(meaning)))),
            _ => None,
        };
        match action {
            FetchDiscovery => Event::Discovery(match failed {
                Some(failure) => {
                    self.remember_wait("discovery", &failure);
                    Err(failure)
                }
                None => {
                    let changed = reply.changed || self.discovery.is_none();
                    let facts = match self.discovery.clone().filter(|_| !changed) {
                        Some(facts) => Discovered { changed, ..facts },
                        None => Discovered {
                            changed,
                            cannot_enroll: (reply.cannot_enroll || reply.cannot_renew).then(report),
                            cannot_renew: reply.cannot_renew.then(report),
                        },
                    };
                    if changed {
                        self.refused_for_good.clear();
                        self.pending_refused = false;
                    }
                    self.discovery = Some(facts.clone());
                    Ok(facts)
                }
            }),
            FetchBundle => Event::Bundle(match failed {
                Some(failure) => {
                    self.remember_wait("bundle", &failure);
                    Err(failure)
                }
                None => {
                    let facts = BundleFacts {
                        refresh_hint: reply.refresh_hint,
                        vouches: reply.vouches,
                        is_empty: reply.vouches.is_none(),
                    };
                    self.bundle = Some(facts);
                    Ok(facts)
                }
            }),
            CreateKey if failed.is_some() => Event::KeyCreated(Err(failure(Meaning::Local, None))),
            CreateKey => {
                (self.pending_key, self.pending_refused) = (true, false);
                key_created()
            }
            ProveKey => Event::KeyProven(match failed {
                _ if self.chip_away => {
                    self.known_lost = true;
                    Err(failure(Meaning::CurrentKeyLost, None))
                }
                Some(_) => Err(failure(Meaning::Local, None)),
                None => {
                    (self.known_lost, self.may_replace) = (false, false);
                    Ok(())
                }
            }),
            Action::Request(Renew, _) | Action::Request(_, Current) if self.chip_away => {
                self.known_lost = true;
                Event::Answered(Err(failure(Meaning::CurrentKeyLost, None)))
            }
            Action::Request(request, key) => Event::Answered(match failed {
                Some(failure) => {
                    self.remember_wait("identity", &failure);
                    self.remember_refusal(*request, *key, failure.meaning);
                    Err(failure)
                }
                None => {
                    self.answer = Some(*key);
                    Ok(())
                }
            }),
            Action::Adopt { bundle_is_fresh } => Event::Adopted(match reply.kind {
                Kind::Early(wait) => {
                    let not_before = self.now.wall.after(secs(wait));
                    self.early = Some(not_before);
                    Err(NotAdopted::Early(not_before))
                }
                Kind::UnknownIssuer if !bundle_is_fresh => Err(NotAdopted::UnknownIssuer),
                Kind::UnknownIssuer | Kind::Refused => {
                    (self.answer, self.early) = (None, None);
                    Err(NotAdopted::Refused(failure(Meaning::Slow, None)))
                }
                Kind::Fails(..) => Err(NotAdopted::Kept(failure(Meaning::Local, None))),
                Kind::Good => Ok(self.adopts()),
            }),
        }
    }

    fn adopts(&mut self) -> SvidFacts {
        let key = self.answer.take().unwrap();
        self.early = None;
        if key == Pending {
            self.pending_key = false;
        }
        self.answered_401 = false;
        self.chip_away &= key == Current;
        (self.known_lost, self.may_replace) = (false, false);
        self.refused_for_good.clear();
        let facts = svid(Timestamp::from_millis(self.now.wall.as_millis() - 30_000), self.lifetime, key);
        self.svid = Some(facts.clone());
        facts
    }

    fn remember_wait(&mut self, kind: &'static str, failure: &Failure) {
        if let Some(wait) = failure.retry_after {
            self.asked_until.insert(kind, self.now.boot.after(wait.min(LONGEST_RETRY_AFTER)));
            self.ever_asked_to_wait |= !wait.is_zero();
        }
    }

    fn remember_refusal(&mut self, request: Request, key: KeyChoice, meaning: Meaning) {
        let good = self.svid.as_ref().is_some_and(|svid| self.now.wall <= svid.not_after);
        let goes_on = matches!(meaning, Meaning::Pending | Meaning::Offline | Meaning::KeyRotationRefused);
        if meaning == Meaning::NotAuthenticated && request == Renew && self.may_enroll() {
            self.answered_401 = true;
        } else if self.answered_401 && good && !goes_on && !self.known_lost {
            self.answered_401 = false; // neither way helps while the SVID is good: they are tried in turn (R7)
        }
        match meaning {
            Meaning::Permanent => self.refused_for_good.push(request),
            Meaning::KeyRotationRefused => {
                self.pending_refused |= key == Pending;
                if key == Current || self.svid.is_none() {
                    self.refused_for_good.push(request);
                }
            }
            _ => {}
        }
    }

    fn may_enroll(&self) -> bool {
        let listed = self.discovery.as_ref().is_none_or(|facts| facts.cannot_enroll.is_none());
        listed && !self.refused_for_good.contains(&Enroll)
    }

    fn steps(&mut self, event: Event) {
        let was_doing = self.doing.take().filter(|_| matches!(event, Event::Wake | Event::Told(_)));
        let luck = self.luck;
        let step = self.lifecycle.step(event, self.now, &mut || luck);
        let stands = self.lifecycle.state(self.now);
        if let Some(stood) = self.stood.replace(stands).filter(|stood| *stood != stands) {
            self.ways.insert((stood.as_str(), stands.as_str()));
        }
        match (&was_doing, &step.action) {
            (Some(_), None) => self.doing = was_doing,
            (Some(doing), Some(action)) => panic!("{action:?} begins while {doing:?} is under way"),
            (None, Some(action)) => {
                self.judges(action);
                self.doing = Some(action.clone());
            }
            (None, None) => {
                let wake_in = step.wake_in.expect("without an action there is a time to look again");
                assert!(!wake_in.is_zero(), "a look that finds nothing to do is not repeated at once");
                assert!(wake_in <= DAY);
            }
        }
        self.wake_in = step.wake_in;
        let (state, error) = (self.lifecycle.state(self.now), self.lifecycle.last_error(self.now));
        if state == State::Blocked {
            let (error, _) = error.expect("what blocks is shown");
            assert!(error.permanent, "{error:?} does not block");
        } else if let Some((_, again)) = error {
            assert!(again.is_some(), "an error without another attempt is shown as such");
        }
    }

    fn judges(&mut self, action: &Action) {
        let valid = self.svid.as_ref().is_some_and(|svid| self.now.wall <= svid.not_after);
        assert!(
            *action == FetchDiscovery || self.now.wall.after(secs(600)) >= self.floor,
            "{action:?} by a clock that cannot be right"
        );
        let kind = match action {
            FetchDiscovery => "discovery",
            ProveKey => return,
            FetchBundle => "bundle",
            Action::Request(..) => "identity",
            CreateKey => {
                assert!(!self.pending_key, "a pending key is never replaced (E6)");
                return;
            }
            Action::Adopt { .. } => {
                assert!(self.answer.is_some());
                assert!(self.early.is_none_or(|at| at <= self.now.wall), "kept until its time (E4)");
                return;
            }
        };
        self.at_this_moment += 1;
        assert!(self.at_this_moment <= 12, "the MIS is asked in a circle");
        if let Some(until) = self.asked_until.get(kind) {
            assert!(*until <= self.now.boot, "{action:?} before Retry-After has elapsed (E8)");
        }
        let Action::Request(request, key) = action else { return };
        assert!(self.answer.is_none(), "an answer is judged before another is asked for");
        assert!(
            !self.refused_for_good.contains(request),
            "{request:?} is repeated without a correction (P2)"
        );
        assert!(self.bundle.is_some_and(|bundle| !bundle.is_empty), "nothing to judge the answer by");
        let facts = self.discovery.as_ref().expect("nothing is asked for before discovery (D1)");
        match request {
            Enroll => {
                let may_be_renamed = !valid || self.answered_401;
                assert_eq!(self.lifecycle.may_be_renamed(self.now), may_be_renamed, "E9");
                let replaces_key = self.known_lost && self.may_replace;
                assert!(may_be_renamed || replaces_key, "a valid SVID is renewed (R2)");
                assert!(facts.cannot_enroll.is_none(), "not listed (D5)");
            }
            Renew => {
                let only_enrollment = self.answered_401 && self.may_enroll();
                assert!(valid && !only_enrollment, "only an enrollment helps (R6)");
                assert!(!self.known_lost, "there is no key to renew with");
                assert!(facts.cannot_renew.is_none(), "not listed (D5)");
                assert!(self.lifecycle.renew_at().unwrap() <= self.now.wall, "not due (R2)");
            }
        }
        match key {
            Pending => {
                let other = self.svid.is_some() && !self.known_lost;
                assert!(self.pending_key && !(self.pending_refused && other));
            }
            Current => {
                assert!(self.svid.is_some() && !self.known_lost);
                assert!(
                    !self.pending_key || self.pending_refused,
                    "the pending key may be the bound one (E6)"
                );
            }
        }
    }

    fn cooperates(&mut self) {
        self.luck = 0.5;
        self.now.wall = Timestamp::from_millis(self.now.wall.as_millis() - self.wall_off * 1000);
        // Two waits of seven days in a row at most, discovery's and then the request's; without any, the cap of the
        // backoff, and an early answer from before the wall clock was put right.
        let bound = if self.ever_asked_to_wait { 20 * DAY } else { secs(15 * 3600) };
        let begin = self.now.boot;
        let mut corrected = false;
        self.is_proven(self.now.wall);
        self.steps(Event::Wake);
        if self.known_lost {
            self.orders(Order::ReplaceKey);
        }
        self.chip_away = false;
        self.until_active(begin, bound, &mut corrected);
        if self.lifetime <= secs(3600) {
            // And it goes on so, also after a wait that was still outstanding: the next SVID comes.
            let (from, held) = (self.now.boot, self.svid.clone());
            while self.svid == held {
                assert!(from.until(self.now.boot) <= bound, "the next renewal does not come");
                self.goes_on_well(&mut corrected);
            }
        }
    }

    fn until_active(&mut self, begin: BootTime, bound: Duration, corrected: &mut bool) {
        while self.lifecycle.state(self.now) != State::Active {
            assert!(
                begin.until(self.now.boot) <= bound,
                "{:?} {:?}",
                self.lifecycle.state(self.now),
                self.lifecycle.last_error(self.now)
            );
            self.goes_on_well(corrected);
        }
    }

    /// The MIS does what it should; what it refused for good it corrects once.
    fn goes_on_well(&mut self, corrected: &mut bool) {
        match self.doing.clone() {
            None => {
                self.passes(self.wake_in.unwrap());
                self.steps(Event::Wake);
            }
            Some(action) => {
                let reply = Reply {
                    wall_off: None,
                    kind: Kind::Good,
                    changed: action == FetchDiscovery && !std::mem::replace(corrected, true),
                    cannot_enroll: false,
                    cannot_renew: false,
                    refresh_hint: None,
                    vouches: Some(true),
                };
                let event = self.event(&action, &reply);
                self.steps(event);
            }
        }
    }
}

// ---- one device, and short words for what happens to it ----

const START: Timestamp = Timestamp::from_secs(1_800_000_000);
const DAY: Duration = Duration::from_secs(24 * 3600);
const ADOPT: Action = Action::Adopt { bundle_is_fresh: false };

struct Device {
    lifecycle: Lifecycle,
    now: Now,
    doing: Option<Action>,
    wake_in: Option<Duration>,
    /// Every draw, unless there is a source of random numbers.
    luck: f64,
    random: Option<u64>,
    asked_with: KeyChoice,
}

impl Device {
    fn fresh() -> Self {
        let now = Now { wall: START, boot: BootTime::default(), synchronised: false };
        let lifecycle = Lifecycle::new(policy(), Restored::default(), now, &mut || 0.5);
        let asked_with = Pending;
        Self { lifecycle, now, doing: None, wake_in: None, luck: 0.5, random: None, asked_with }
    }

    /// The first request has just been sent.
    fn enrolling() -> Self {
        let mut device = Self::fresh();
        device.starts();
        device.told(discovered());
        device.told(bundle());
        assert_eq!(device.told(key_created()), Some(Action::Request(Enroll, Pending)));
        device
    }

    fn active(lifetime: Duration) -> Self {
        let mut device = Self::fresh();
        device.becomes_active(lifetime);
        device
    }

    /// The request for the second SVID has just been sent, with a new key.
    fn renewing(lifetime: Duration) -> Self {
        let mut device = Self::active(lifetime);
        device.waits_for(Action::Request(Renew, Pending));
        device
    }

    fn becomes_active(&mut self, lifetime: Duration) {
        self.starts();
        self.told(discovered());
        self.told(bundle());
        self.told(key_created());
        self.told(answered());
        self.adopts_for(lifetime, Pending);
        assert_eq!(self.state(), State::Active);
    }

    fn starts(&mut self) -> Option<Action> {
        self.told(Event::Wake)
    }

    fn restarts(&mut self, restored: Restored) {
        let luck = self.luck;
        self.lifecycle = Lifecycle::new(policy(), restored, self.now, &mut || luck);
        self.doing = None;
        self.starts();
    }

    fn told(&mut self, event: Event) -> Option<Action> {
        let (luck, random) = (self.luck, &mut self.random);
        let mut draw = || random.as_mut().map_or(luck, next_random);
        let under_way = self.doing.take().filter(|_| matches!(event, Event::Wake | Event::Told(_)));
        let step = self.lifecycle.step(event, self.now, &mut draw);
        self.wake_in = step.wake_in;
        if let Some(Action::Request(_, key)) = step.action {
            self.asked_with = key;
        }
        self.doing = under_way.or(step.action);
        self.doing.clone()
    }

    /// The answer is good: an SVID from now on.
    fn adopts_for(&mut self, lifetime: Duration, key: KeyChoice) -> Option<Action> {
        assert!(matches!(self.doing, Some(Action::Adopt { .. })), "{:?}", self.doing);
        self.told(Event::Adopted(Ok(svid(self.now.wall, lifetime, key))))
    }

    /// An answer of the MIS shows that it is this time.
    fn is_shown(&mut self, time: Timestamp) {
        self.lifecycle.time_is_proven(time, self.now);
    }

    /// A revalidation, whenever it comes, finds this document.
    fn knows(&mut self, facts: Discovered) {
        self.lifecycle.discovery.as_mut().unwrap().facts = facts;
    }

    fn passes(&mut self, time: Duration) {
        self.now = later(self.now, time);
        self.told(Event::Wake);
    }

    fn wall_jumps(&mut self, seconds: i64) {
        self.now.wall = Timestamp::from_millis(self.now.wall.as_millis() + seconds * 1000);
        self.told(Event::Wake);
    }

    /// Sleeps until this is wanted, and says how long that took. What comes up on the way goes well, but no request is
    /// expected there.
    fn waits_for(&mut self, wanted: Action) -> Duration {
        let begin = self.now.boot;
        for _ in 0..200_000 {
            match &self.doing {
                Some(action) if *action == wanted => return begin.until(self.now.boot),
                Some(Action::Request(..) | Action::Adopt { .. }) => break,
                _ => self.goes_on(good),
            }
        }
        panic!("{:?} comes and not {wanted:?}", self.doing);
    }

    /// Until the next request of any kind.
    fn waits_to_ask(&mut self) -> Duration {
        let begin = self.now.boot;
        while !matches!(self.doing, Some(Action::Request(..))) {
            self.goes_on(good);
        }
        begin.until(self.now.boot)
    }

    fn goes_on(&mut self, answer: impl Fn(&Action) -> Event) {
        match self.doing.clone() {
            Some(action) => self.told(answer(&action)),
            None => {
                let wake_in = self.wake_in.expect("without an action there is a time to look again");
                assert!(!wake_in.is_zero(), "a look that finds nothing to do is not repeated at once");
                self.now = later(self.now, wake_in);
                self.told(Event::Wake)
            }
        };
    }

    /// How often each kind of work is done in this time.
    fn lives_through(
        &mut self,
        time: Duration,
        answer: impl Fn(&Action) -> Event,
    ) -> BTreeMap<&'static str, u32> {
        let end = self.now.boot.after(time);
        let mut looks = BTreeMap::new();
        while self.now.boot < end {
            if let Some(action) = &self.doing {
                let times = looks.entry(kind(action)).or_insert(0);
                *times += 1;
                assert!(*times < 10_000, "{action:?} in a circle");
            }
            self.goes_on(&answer);
        }
        looks
    }

    fn state(&self) -> State {
        self.lifecycle.state(self.now)
    }

    fn error(&self) -> Option<(LastError, Option<Duration>)> {
        self.lifecycle.last_error(self.now)
    }
}

fn good(action: &Action) -> Event {
    match action {
        FetchDiscovery => discovered(),
        FetchBundle => bundle(),
        CreateKey => key_created(),
        ProveKey => key_proven(),
        Action::Request(..) => answered(),
        Action::Adopt { .. } => panic!("what is adopted is for the story to say"),
    }
}

fn kind(action: &Action) -> &'static str {
    match action {
        FetchDiscovery => "discovery",
        FetchBundle => "bundle",
        CreateKey => "key",
        ProveKey => "proof",
        Action::Request(..) => "request",
        Action::Adopt { .. } => "adopt",
    }
}

fn policy() -> Policy {
    Policy {
        window: (0.4, 0.6),
        retry: Retry { base: secs(5), cap: secs(3600) },
        bundle_refresh: secs(300),
        rotate: true,
    }
}

fn document() -> Discovered {
    Discovered { changed: false, cannot_enroll: None, cannot_renew: None }
}

/// What is found on disk at a start.
fn an_identity() -> Restored {
    let svid = Some(svid(START, 100 * DAY, Current));
    Restored { discovery: Some(document()), bundle: true, svid, ..Restored::default() }
}

fn discovered() -> Event {
    Event::Discovery(Ok(document()))
}

fn discovered_anew() -> Event {
    Event::Discovery(Ok(Discovered { changed: true, ..document() }))
}

fn bundle() -> Event {
    Event::Bundle(Ok(facts(None)))
}

fn facts(refresh_hint: Option<Duration>) -> BundleFacts {
    BundleFacts { refresh_hint, vouches: Some(true), is_empty: false }
}

fn empty_bundle() -> Event {
    Event::Bundle(Ok(BundleFacts { vouches: None, is_empty: true, ..facts(None) }))
}

fn bundle_without_its_anchor() -> Event {
    Event::Bundle(Ok(BundleFacts { vouches: Some(false), ..facts(None) }))
}

fn key_proven() -> Event {
    Event::KeyProven(Ok(()))
}

fn key_lost() -> Event {
    Event::KeyProven(Err(failure(Meaning::CurrentKeyLost, None)))
}

fn key_created() -> Event {
    Event::KeyCreated(Ok(()))
}

fn answered() -> Event {
    Event::Answered(Ok(()))
}

fn refusal(meaning: Meaning, retry_after: Option<u64>) -> Event {
    Event::Answered(Err(failure(meaning, retry_after.map(secs))))
}

fn not_adopted() -> Event {
    Event::Adopted(Err(NotAdopted::Refused(failure(Meaning::Slow, None))))
}

fn failure(meaning: Meaning, retry_after: Option<Duration>) -> Failure {
    Failure { meaning, retry_after, report: Report { title: format!("{meaning:?}"), ..report() } }
}

fn report() -> Report {
    Report::of_agent("story", "Something went wrong", &"as the story wants it")
}

fn svid(not_before: Timestamp, lifetime: Duration, key: KeyChoice) -> SvidFacts {
    SvidFacts { not_before, not_after: not_before.after(lifetime), key_fits: true, renew_at: None, key }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn later(now: Now, time: Duration) -> Now {
    // A sleeper wakes at the full millisecond, never before.
    let time = Duration::from_millis(u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap());
    Now { wall: now.wall.after(time), boot: now.boot.after(time), ..now }
}

/// xorshift64*: good enough for draws, and the same for everyone.
fn next_random(seed: &mut u64) -> f64 {
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    (seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
}
