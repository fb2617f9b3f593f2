//! What the MIS refuses, what it asks to wait for, and what is missing on the device (E7, E8, R6,
//! R7, P).

use super::super::KeyChoice::{Current, Pending};
use super::super::Request::{Enroll, Renew};
use super::super::*;
use super::device::Work::{CreateKey, FetchBundle, FetchDiscovery};
use super::device::*;
use miaf_client::api::State;
use miaf_spiffe::time::BootTime;

// ---- waiting (E8, R7) ----

#[test]
fn retry_after_is_never_undercut_and_jitter_comes_on_top() {
    for (luck, shortest, longest) in [(0.0, 3600, 3600), (1.0, 3601, 3600 + 1800)] {
        let mut device = Device::enrolling();
        device.luck = luck;
        device.handles(refusal(FailureKind::Transient, Some(3600)));
        let waited = device.waits_for(Work::Request(Enroll, Pending));
        assert!(waited >= secs(shortest) && waited <= secs(longest), "luck {luck}: {waited:?}");
    }
}

#[test]
fn retry_after_is_capped_at_seven_days() {
    let mut device = Device::enrolling();
    device.luck = 0.0;
    device.handles(issuance(Err(failure(FailureKind::Transient, Some(Duration::MAX)))));
    assert_eq!(device.waits_for(Work::Request(Enroll, Pending)), 7 * DAY);
}

#[test]
fn clock_jump_neither_shortens_nor_extends_a_wait() {
    for jump in [-20 * 3600, 20 * 3600] {
        let mut device = Device::enrolling();
        device.luck = 0.0;
        device.handles(refusal(FailureKind::Transient, Some(3600)));
        device.wall_jumps(jump);
        assert_eq!(device.waits_for(Work::Request(Enroll, Pending)), secs(3600));
    }
}

#[test]
fn wait_survives_a_restart_with_fresh_jitter() {
    for (luck, least) in [(0.0, 3000), (1.0, 3001)] {
        let mut device = Device::enrolling();
        device.handles(refusal(FailureKind::Transient, Some(3600)));
        device.passes(secs(600));
        let memory = device.lifecycle.memory();
        assert_eq!(memory.identities[0].retry_after, Some(BootTime::from_millis(3_600_000)));

        device.luck = luck;
        device.restarts(OnDisk { pending_key: true, memory, ..OnDisk::default() });
        device.handles(discovered());
        assert_eq!(device.handles(bundle()), None);
        let again = device.lifecycle.memory();
        assert_eq!(
            again.identities[0].retry_after,
            Some(BootTime::from_millis(3_600_000)),
            "another restart is no end of it"
        );
        let waited = device.waits_for(Work::Request(Enroll, Pending));
        assert!(waited >= secs(least) && waited <= secs(3000 + 1500), "luck {luck}: {waited:?}");
    }
}

#[test]
fn permanent_refusal_is_retried_after_restart_and_wait() {
    let mut device = Device::enrolling();
    device.handles(refusal(FailureKind::Permanent, Some(3600)));
    assert_eq!(device.state(), State::Blocked);
    let memory = device.lifecycle.memory();
    device.restarts(OnDisk { pending_key: true, memory, ..OnDisk::default() });
    device.handles(discovered());
    device.handles(bundle());
    let (error, again) = device.error().unwrap();
    assert!(!error.permanent && again >= Some(secs(3600)), "a restart is a correction (P2)");
    assert_eq!(device.state(), State::Enrolling);
    assert!(device.waits_for(Work::Request(Enroll, Pending)) >= secs(3600));
}

#[test]
fn finished_wait_is_dropped_once_the_mis_has_responded() {
    let mut device = Device::enrolling();
    device.handles(refusal(FailureKind::Transient, Some(60)));
    device.waits_for(Work::Request(Enroll, Pending));
    device.handles(answered());
    assert!(device.lifecycle.memory().is_empty());
}

#[test]
fn retry_after_holds_for_the_second_attempt_of_a_renewal() {
    for kind in [FailureKind::KeyRotationRefused, FailureKind::NotAuthenticated] {
        let mut device = Device::renewing(100 * DAY);
        assert_eq!(device.handles(refusal(kind, Some(600))), None, "{kind:?}");
        let next = if kind == FailureKind::NotAuthenticated {
            Work::Request(Enroll, Pending)
        } else {
            Work::Request(Renew, Current)
        };
        let waited = device.waits_for(next);
        assert!(waited >= secs(600) && waited <= secs(900), "{kind:?}: {waited:?}");
    }
}

#[test]
fn backoff_doubles_to_the_cap_and_never_ends() {
    let mut device = Device::enrolling();
    device.luck = 1.0;
    let mut pauses = Vec::new();
    for _ in 0..40 {
        device.handles(refusal(FailureKind::Transient, None));
        pauses.push(device.waits_for(Work::Request(Enroll, Pending)).as_secs());
    }
    assert_eq!(pauses[..5], [5, 10, 20, 40, 80]);
    assert!(pauses[10..].iter().all(|pause| *pause == 3600), "{pauses:?}");
}

#[test]
fn zero_jitter_still_leaves_the_minimum_delay() {
    let mut device = Device::enrolling();
    device.luck = 0.0;
    device.handles(refusal(FailureKind::Transient, None));
    assert!(device.waits_for(Work::Request(Enroll, Pending)) >= Duration::from_millis(100));
}

#[test]
fn retries_of_a_short_svid_come_every_twentieth_of_its_life() {
    let mut device = Device::renewing(secs(600));
    device.luck = 1.0;
    for _ in 0..9 {
        device.handles(refusal(FailureKind::Transient, None));
        assert!(device.waits_for(Work::Request(Renew, Pending)) <= secs(30));
    }
}

#[test]
fn refusal_by_policy_is_retried_slowly_and_spread() {
    for kind in [FailureKind::NotAuthenticated, FailureKind::Slow] {
        for (luck, pause) in [(0.0, 3600), (1.0, 1800)] {
            let mut device = Device::enrolling();
            device.luck = luck;
            device.handles(refusal(kind, None));
            assert_eq!(device.waits_for(Work::Request(Enroll, Pending)), secs(pause), "{kind:?}");
        }
    }
}

#[test]
fn unusable_pending_key_is_replaced() {
    let mut device = Device::enrolling();
    device.handles(issuance(Err(failure(FailureKind::PendingKeyLost, None))));
    assert_eq!(device.state(), State::Blocked, "people see it");
    assert!(device.waits_for(CreateKey) <= secs(30));
}

#[test]
fn forgetful_tpm_is_asked_for_keys_with_backoff() {
    let mut device = Device::enrolling();
    let looks = device.lives_through(secs(3600), |action| match action {
        Work::Request(..) => issuance(Err(failure(FailureKind::PendingKeyLost, None))),
        other => good(other),
    });
    assert!((100..300).contains(&looks["key"]), "{looks:?} in an hour");
}

// ---- refused for good (P2, D5) ----

#[test]
fn permanent_refusal_is_retried_after_a_document_change_only() {
    let mut device = Device::enrolling();
    device.handles(refusal(FailureKind::Permanent, None));
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
    assert_eq!(device.handles(discovered_anew()), Some(FetchBundle), "it may name another bundle");
    assert_eq!(device.handles(bundle()), Some(Work::Request(Enroll, Pending)));
    assert_eq!(device.state(), State::Enrolling);
}

#[test]
fn changed_document_does_not_shorten_retry_after() {
    let mut device = Device::enrolling();
    device.luck = 1.0;
    let before = device.now.boot;
    device.handles(refusal(FailureKind::Permanent, Some(3600)));
    device.waits_for(FetchDiscovery);
    device.handles(discovered_anew());
    device.handles(bundle());
    device.waits_for(Work::Request(Enroll, Pending));
    let waited = before.until(device.now.boot);
    assert!(waited > secs(3600) && waited <= secs(5400), "what was drawn on top stays too: {waited:?}");
}

#[test]
fn permanently_refused_renewal_enrolls_only_at_expiry() {
    let mut device = Device::renewing(100 * DAY);
    device.handles(refusal(FailureKind::Permanent, None));
    assert_eq!(device.state(), State::Blocked);
    device.waits_for(Work::Request(Enroll, Pending));
    assert!(device.now.wall > START.after(100 * DAY));
}

#[test]
fn clock_jump_over_the_expiry_repeats_no_refused_request() {
    let mut device = Device::renewing(100 * DAY);
    device.handles(refusal(FailureKind::Permanent, None));
    device.wall_jumps(60 * 24 * 3600);
    device.waits_for(Work::Request(Enroll, Pending));
    device.handles(refusal(FailureKind::Permanent, None));
    assert_eq!(device.state(), State::Blocked);
    device.wall_jumps(-60 * 24 * 3600);
    assert_eq!(device.state(), State::Blocked);
    device.lives_through(DAY, |action| match action {
        FetchDiscovery => discovered(),
        FetchBundle => bundle(),
        other => panic!("{other:?} while blocked"),
    });
}

fn without_enrollment() -> DiscoveryFacts {
    let ruled_out = RuledOut { enrollment: Some(report()), renewal: None };
    DiscoveryFacts { identities: vec![ruled_out], ..document() }
}

#[test]
fn request_not_listed_in_discovery_is_not_made() {
    let mut device = Device::fresh();
    device.starts();
    device.handles(Event::Discovery(Ok(without_enrollment())));
    assert_eq!(device.handles(bundle()), None, "not even a key is made");
    assert_eq!(device.state(), State::Blocked);
    assert_eq!(device.error().unwrap().0.report, report());
    device.waits_for(FetchDiscovery);
    device.handles(discovered_anew());
    assert_eq!(device.handles(bundle()), Some(CreateKey));
}

#[test]
fn renewal_goes_on_where_only_enrollment_is_not_listed() {
    let mut device = Device::active(100 * DAY);
    device.knows(without_enrollment());
    device.waits_for(CreateKey);
    assert_eq!(device.state(), State::Renewing);
}

// ---- pending admission (E7) ----

#[test]
fn pending_admission_is_polled_for_as_long_as_it_takes() {
    let mut device = Device::enrolling();
    for _ in 0..1000 {
        device.handles(refusal(FailureKind::Pending, Some(300)));
        assert_eq!(device.state(), State::PendingAdmission);
        assert!(!device.error().unwrap().0.permanent);
        let waited = device.waits_for(Work::Request(Enroll, Pending));
        assert!(waited >= secs(300) && waited <= secs(375), "{waited:?}");
    }
    assert_eq!(device.handles(answered()), Some(ADOPT));
    device.adopts_for(100 * DAY, Pending);
    assert_eq!(device.state(), State::Active);
}

#[test]
fn pending_with_zero_retry_after_is_not_hammered() {
    let mut device = Device::enrolling();
    let mut asked = 0;
    let begin = device.now.boot;
    while begin.until(device.now.boot) < DAY {
        device.handles(refusal(FailureKind::Pending, Some(0)));
        device.waits_for(Work::Request(Enroll, Pending));
        asked += 1;
    }
    assert!(asked < 100, "{asked} requests in a day");
}

// ---- re-authentication (R6) ----

#[test]
fn renewal_401_leads_to_an_enrollment_at_once() {
    let mut device = Device::renewing(100 * DAY);
    assert_eq!(
        device.handles(refusal(FailureKind::NotAuthenticated, None)),
        Some(Work::Request(Enroll, Pending))
    );
    assert_eq!(device.state(), State::Renewing);
    device.handles(answered());
    device.adopts_for(100 * DAY, Pending);
    assert_eq!(device.state(), State::Active);
    device.waits_for(CreateKey);
    device.handles(key_created());
    assert_eq!(device.handles(discovered()), Some(Work::Request(Renew, Pending)), "and then renewals again");
}

#[test]
fn renaming_is_allowed_after_expiry_or_401_only() {
    let mut device = Device::renewing(100 * DAY);
    assert!(!device.view().may_be_renamed(device.now));
    device.handles(refusal(FailureKind::NotAuthenticated, None));
    assert!(device.view().may_be_renamed(device.now), "401 (E9)");
    device.handles(answered());
    device.adopts_for(100 * DAY, Pending);
    assert!(!device.view().may_be_renamed(device.now));
    device.passes(101 * DAY);
    assert!(device.view().may_be_renamed(device.now), "expired (E9)");
}

#[test]
fn expired_svid_leads_to_an_enrollment() {
    let mut device = Device::renewing(secs(3600));
    while device.now.wall <= START.after(secs(3600)) {
        device.handles(refusal(FailureKind::Transient, None));
        device.waits_to_ask();
    }
    assert_eq!(device.state(), State::Expired);
    for _ in 0..100 {
        assert_eq!(device.in_flight, Some(Work::Request(Enroll, Pending)));
        device.handles(refusal(FailureKind::Transient, None));
        assert!(device.waits_to_ask() <= secs(180));
    }
    device.handles(answered());
    device.adopts_for(secs(3600), Pending);
    assert_eq!(device.state(), State::Active);
}

#[test]
fn expiry_is_noticed_when_it_happens() {
    let mut device = Device::renewing(secs(3600));
    device.handles(refusal(FailureKind::Transient, Some(7200)));
    while device.state() != State::Expired {
        device.goes_on(good);
    }
    assert_eq!(device.now.wall, START.after(secs(3600)).after(Duration::from_millis(1)));
}

// ---- a 401 at renewal, and an enrollment that does not help either ----

#[test]
fn failed_enrollment_after_401_returns_to_renewal_slowly() {
    let ways: [(FailureKind, u64); 5] = [
        (FailureKind::Local, 1800),
        (FailureKind::Slow, 1800),
        (FailureKind::Permanent, 0),
        (FailureKind::Transient, 0),
        (FailureKind::NotFound, 1800),
    ];
    for (kind, at_least) in ways {
        let mut device = Device::renewing(100 * DAY);
        assert_eq!(
            device.handles(refusal(FailureKind::NotAuthenticated, None)),
            Some(Work::Request(Enroll, Pending))
        );
        device.handles(refusal(kind, None));
        assert_ne!(device.state(), State::Blocked, "{kind:?}: there is a way that is still open");
        let waited = device.waits_for(Work::Request(Renew, Pending));
        assert!(waited >= secs(at_least), "{kind:?}: {waited:?}");
        // Where the enrollment is refused for good, another 401 does not lead to it at once, and
        // not in a circle.
        let looks = device.lives_through(DAY, |action| match action {
            Work::Request(Renew, _) => refusal(FailureKind::NotAuthenticated, None),
            Work::Request(Enroll, _) => refusal(kind, None),
            action => good(action),
        });
        assert!(looks["request"] <= 120, "{kind:?}: {looks:?}");
        device.waits_for(Work::Request(Renew, Pending));
        device.handles(answered());
        device.adopts_for(100 * DAY, Pending);
        assert_eq!(device.state(), State::Active);
    }
}

#[test]
fn admission_stays_pending_through_transient_failures() {
    let mut device = Device::enrolling();
    device.handles(refusal(FailureKind::Pending, Some(60)));
    for kind in [FailureKind::Offline, FailureKind::Transient, FailureKind::Local] {
        device.waits_for(Work::Request(Enroll, Pending));
        device.handles(refusal(kind, None));
        assert!(device.lifecycle.memory().identities[0].admission_pending, "{kind:?}");
    }
}

// ---- causes on the device itself ----

#[test]
fn local_failure_is_retried_within_half_a_minute() {
    let mut device = Device::fresh();
    device.starts();
    for _ in 0..50 {
        device.handles(Event::Discovery(Err(failure(FailureKind::Local, None))));
        assert_eq!(device.state(), State::Blocked);
        assert!(device.error().unwrap().0.permanent);
        assert!(device.waits_for(FetchDiscovery) <= secs(30));
    }
    device.handles(discovered());
    device.handles(bundle());
    for _ in 0..50 {
        device.handles(creation(Err(failure(FailureKind::Local, None))));
        assert_eq!(device.state(), State::Blocked);
        assert!(device.waits_for(CreateKey) <= secs(30));
    }
}

#[test]
fn resolved_local_failure_blocks_nothing() {
    let mut device = Device::enrolling();
    device.handles(refusal(FailureKind::Local, None));
    assert_eq!(device.state(), State::Blocked);
    device.waits_for(Work::Request(Enroll, Pending));
    device.handles(answered());
    let not_before = device.now.wall.after(secs(300));
    device.handles(adoption(Err(NotAdopted::Early(not_before))));
    assert_eq!((device.state(), device.error()), (State::Enrolling, None));

    let mut device = Device::renewing(100 * DAY);
    device.handles(refusal(FailureKind::Local, None));
    device.waits_for(Work::Request(Renew, Pending));
    device.handles(refusal(FailureKind::NotAuthenticated, None));
    assert_eq!(device.state(), State::Renewing);
}

#[test]
fn long_local_failure_does_not_delay_the_request() {
    let mut device = Device::enrolling();
    device.luck = 1.0;
    for _ in 0..50 {
        device.handles(refusal(FailureKind::Local, None));
        device.waits_to_ask();
    }
    device.handles(refusal(FailureKind::Transient, None));
    assert_eq!(device.waits_for(Work::Request(Enroll, Pending)), secs(5));
}

#[test]
fn error_shown_is_the_one_that_blocks() {
    let mut device = Device::enrolling();
    device.handles(refusal(FailureKind::Slow, None));
    assert_eq!(device.error().unwrap().0.report.title, "Slow");
    device.waits_for(FetchBundle);
    device.handles(Event::Bundle(Err(failure(FailureKind::Local, None))));
    assert_eq!(device.state(), State::Blocked);
    let (error, again) = device.error().unwrap();
    assert_eq!((error.report.title.as_str(), error.permanent), ("Local", true));
    assert!(again.unwrap() <= secs(30));
}
