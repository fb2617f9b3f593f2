//! What the MIS refuses, what it asks to wait for, and what is missing on the device (E7, E8, R6, R7, P).

use super::super::Action::{CreateKey, FetchBundle, FetchDiscovery};
use super::super::KeyChoice::{Current, Pending};
use super::super::Request::{Enroll, Renew};
use super::super::*;
use super::device::*;

// ---- waiting (E8, R7) ----

#[test]
fn retry_after_is_never_undercut_and_what_is_drawn_comes_on_top() {
    for (luck, shortest, longest) in [(0.0, 3600, 3600), (1.0, 3601, 3600 + 1800)] {
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
        let again = device.lifecycle.memory();
        assert_eq!(
            again.waits.identity,
            Some(BootTime::from_millis(3_600_000)),
            "another restart is no end of it"
        );
        let waited = device.waits_for(Action::Request(Enroll, Pending));
        assert!(waited >= secs(least) && waited <= secs(3000 + 1500), "luck {luck}: {waited:?}");
    }
}

#[test]
fn what_was_refused_for_good_is_asked_again_after_a_restart_and_a_wait_that_was_asked_for() {
    let mut device = Device::enrolling();
    device.told(refusal(Meaning::Permanent, Some(3600)));
    assert_eq!(device.state(), State::Blocked);
    let memory = device.lifecycle.memory();
    device.restarts(Restored { pending_key: true, memory, ..Restored::default() });
    device.told(discovered());
    device.told(bundle());
    let (error, again) = device.error().unwrap();
    assert!(!error.permanent && again >= Some(secs(3600)), "a restart is a correction (P2)");
    assert_eq!(device.state(), State::Enrolling);
    assert!(device.waits_for(Action::Request(Enroll, Pending)) >= secs(3600));
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
        assert!(waited >= secs(600) && waited <= secs(900), "{meaning:?}: {waited:?}");
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

#[test]
fn a_chip_that_forgets_every_key_it_makes_is_not_asked_for_one_all_the_time() {
    let mut device = Device::enrolling();
    let looks = device.lives_through(secs(3600), |action| match action {
        Action::Request(..) => Event::Answered(Err(failure(Meaning::PendingKeyLost, None))),
        other => good(other),
    });
    assert!((100..300).contains(&looks["key"]), "{looks:?} in an hour");
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
    assert!(waited > secs(3600) && waited <= secs(5400), "what was drawn on top stays too: {waited:?}");
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
fn another_identity_may_be_given_only_where_the_one_held_has_expired_or_was_answered_401() {
    let mut device = Device::renewing(100 * DAY);
    assert!(!device.lifecycle.may_be_renamed(device.now));
    device.told(refusal(Meaning::NotAuthenticated, None));
    assert!(device.lifecycle.may_be_renamed(device.now), "401 (E9)");
    device.told(answered());
    device.adopts_for(100 * DAY, Pending);
    assert!(!device.lifecycle.may_be_renamed(device.now));
    device.passes(101 * DAY);
    assert!(device.lifecycle.may_be_renamed(device.now), "expired (E9)");
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
