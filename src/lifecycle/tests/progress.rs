//! The good ways: from nothing to an identity, through renewals and restarts, and to the documents
//! that they need.

use super::super::KeyChoice::{Current, Pending};
use super::super::Request::{Enroll, Renew};
use super::super::*;
use super::device::Work::{CreateKey, FetchBundle, FetchDiscovery, ProveKey};
use super::device::*;
use miaf_client::api::State;
use miaf_spiffe::time::BootTime;

// ---- the first run ----

#[test]
fn first_run_leads_to_an_identity_and_its_renewal() {
    let mut device = Device::fresh();
    assert_eq!(device.starts(), Some(FetchDiscovery));
    assert_eq!(device.state(), State::Discovering);
    assert_eq!(device.handles(discovered()), Some(FetchBundle));
    assert_eq!(
        device.handles(bundle()),
        Some(CreateKey),
        "a key is durable before a request is sent with it (E6)"
    );
    assert_eq!(device.state(), State::Enrolling);
    assert_eq!(device.handles(key_created()), Some(Work::Request(Enroll, Pending)));
    assert_eq!(device.handles(answered()), Some(ADOPT));
    assert_eq!(device.adopts_for(100 * DAY, Pending), None);
    assert_eq!(device.state(), State::Active);
    assert_eq!(device.error(), None);

    // The luck is 0.5: in the middle of the window from 40 % to 60 %.
    assert_eq!(device.view().renew_at(), Some(START.after(50 * DAY)));
    device.waits_for(CreateKey);
    assert_eq!(device.now.wall, START.after(50 * DAY));
    assert_eq!(
        device.handles(key_created()),
        Some(FetchDiscovery),
        "a document that became stale is revalidated (D1)"
    );
    assert_eq!(device.handles(discovered()), Some(Work::Request(Renew, Pending)));
    assert_eq!(device.state(), State::Renewing);
    assert_eq!(device.handles(answered()), Some(ADOPT));
    device.adopts_for(100 * DAY, Pending);
    assert_eq!(device.state(), State::Active);
}

#[test]
fn renewal_moment_is_drawn_over_the_whole_window() {
    for (luck, percent) in [(0.0, 40), (0.25, 45), (0.5, 50), (1.0, 60)] {
        let mut device = Device::fresh();
        device.luck = luck;
        device.becomes_active(100 * DAY);
        assert_eq!(device.view().renew_at(), Some(START.after(percent * DAY)));
    }
}

#[test]
fn request_waits_for_a_bundle_to_validate_against() {
    let mut device = Device::fresh();
    device.starts();
    device.handles(discovered());
    device.handles(Event::Bundle(Err(failure(FailureKind::Transient, None))));
    assert_eq!(device.state(), State::Discovering);
    device.waits_for(FetchBundle);
    assert_eq!(device.handles(bundle()), Some(CreateKey));
}

// ---- judging the answer (E4) ----

#[test]
fn early_chain_is_kept_until_it_becomes_valid() {
    let mut device = Device::enrolling();
    device.handles(answered());
    let not_before = device.now.wall.after(secs(180));
    assert_eq!(device.handles(adoption(Err(NotAdopted::Early(not_before)))), None);
    assert_eq!(device.waits_for(ADOPT), secs(180));
    device.adopts_for(100 * DAY, Pending);
    assert_eq!(device.state(), State::Active);
}

#[test]
fn unknown_issuer_is_an_error_after_a_fresh_bundle_only() {
    let mut device = Device::enrolling();
    device.handles(answered());
    assert_eq!(device.handles(adoption(Err(NotAdopted::UnknownIssuer))), Some(FetchBundle));
    assert_eq!(device.handles(bundle()), Some(Work::Adopt { bundle_is_fresh: true }));
    assert_eq!(device.handles(not_adopted()), None);
    let (error, again) = device.error().unwrap();
    assert!(!error.permanent && again.is_some());
    device.waits_for(Work::Request(Enroll, Pending));
}

#[test]
fn rejected_chain_is_requested_again_slowly() {
    let mut device = Device::enrolling();
    device.luck = 1.0;
    for _ in 0..5 {
        device.handles(answered());
        device.handles(not_adopted());
        let waited = device.waits_for(Work::Request(Enroll, Pending));
        assert!(waited >= secs(1800), "each answer costs one of the few renewals of a day: {waited:?}");
    }
}

#[test]
fn unstored_chain_is_validated_again_not_requested_again() {
    let mut device = Device::enrolling();
    device.handles(answered());
    for _ in 0..20 {
        device.handles(adoption(Err(NotAdopted::Kept(failure(FailureKind::Local, None)))));
        assert_eq!(device.state(), State::Blocked);
        assert!(device.waits_for(ADOPT) <= secs(30));
    }
    device.adopts_for(100 * DAY, Pending);
    assert_eq!(device.state(), State::Active);
}

// ---- after a restart ----

#[test]
fn restored_device_refreshes_and_renews_on_time() {
    let mut device = Device::fresh();
    let renew_at = START.after(30 * DAY);
    device.restarts(OnDisk {
        discovery: Some(document()),
        bundle: true,
        svid: Some(SvidFacts { renew_at: Some(renew_at), ..svid(START, 100 * DAY, Current) }),
        ..OnDisk::default()
    });
    assert_eq!(device.state(), State::Active);
    assert_eq!(device.in_flight, Some(ProveKey), "its chip may have been replaced meanwhile");
    assert_eq!(device.handles(key_proven()), None);
    assert_eq!(
        device.waits_for(FetchDiscovery),
        secs(15),
        "soon, and not the whole fleet in one second (B4)"
    );
    assert_eq!(device.handles(discovered()), Some(FetchBundle));
    device.handles(bundle());
    device.waits_for(CreateKey);
    assert_eq!(device.now.wall, renew_at, "the moment that was drawn is kept");
}

#[test]
fn overdue_renewal_runs_at_once_under_cached_documents() {
    let mut device = Device::fresh();
    device.wall_jumps(70 * 24 * 3600);
    device.restarts(an_identity());
    assert_eq!(device.handles(key_proven()), Some(CreateKey));
    assert_eq!(
        device.handles(key_created()),
        Some(FetchDiscovery),
        "it is revalidated before a request (D1)"
    );
    let renews = device.handles(Event::Discovery(Err(failure(FailureKind::Transient, None))));
    assert_eq!(renews, Some(Work::Request(Renew, Pending)), "the last good documents stay in use (D4)");
}

#[test]
fn restored_chain_is_validated_before_any_request() {
    let mut device = Device::fresh();
    device.restarts(OnDisk { pending_key: true, issued_chain: true, ..OnDisk::default() });
    device.handles(discovered());
    assert_eq!(device.handles(bundle()), Some(ADOPT));
    device.adopts_for(100 * DAY, Pending);
    assert_eq!(device.state(), State::Active);
}

// ---- renewals that the MIS makes hard ----

#[test]
fn svid_issued_late_in_its_lifetime_causes_no_renewal_loop() {
    let mut device = Device::renewing(100 * DAY);
    device.wall_jumps(49 * 24 * 3600);
    // The CA's own end clamps every SVID: each is the last day of a hundred.
    let mut renewals = 0;
    while device.state() != State::Expired {
        if device.in_flight == Some(ADOPT) {
            renewals += 1;
            device.handles(adoption(Ok(svid(START, 100 * DAY, device.asked_with))));
        } else {
            device.goes_on(good);
        }
    }
    assert!(renewals < 30, "{renewals} renewals in the last day");
}

#[test]
fn short_lifetimes_keep_a_pause_between_two_issues() {
    let mut device = Device::active(secs(2));
    device.waits_to_ask();
    assert!(BootTime::default().until(device.now.boot) >= secs(5));
}

// ---- discovery and bundle ----

#[test]
fn bundle_follows_the_refresh_hint_within_bounds() {
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
            device.handles(fetched(facts(hint)));
            let wait = device.lifecycle.bundle_refresh_in(device.now).unwrap();
            assert_eq!(wait, if luck == 0.0 { most } else { least }, "{hint:?}");
            assert_eq!(device.waits_for(FetchBundle), wait);
        }
    }
}

#[test]
fn failed_bundle_is_polled_as_often_as_a_good_one() {
    let mut device = Device::active(1000 * DAY);
    device.luck = 0.0;
    device.waits_for(FetchBundle);
    for kind in
        [FailureKind::Transient, FailureKind::Slow, FailureKind::Transient, FailureKind::NotAuthenticated]
    {
        device.luck = 0.0;
        device.handles(Event::Bundle(Err(failure(kind, None))));
        assert!(device.waits_for(FetchBundle) <= secs(300));
        assert_eq!(device.state(), State::Active);
    }
}

#[test]
fn not_found_reads_discovery_then_retries_slowly() {
    let mut device = Device::enrolling();
    device.handles(refusal(FailureKind::NotFound, None));
    let waited = device.waits_for(FetchDiscovery);
    assert!(waited <= secs(60), "not at once: it was read just now. {waited:?}");
    device.handles(discovered());
    let waited = device.waits_for(Work::Request(Enroll, Pending));
    assert!(waited >= secs(1500), "{waited:?}");
}

#[test]
fn not_found_is_retried_at_once_under_a_new_document() {
    let mut device = Device::enrolling();
    device.passes(secs(120));
    assert_eq!(device.handles(refusal(FailureKind::NotFound, None)), Some(FetchDiscovery));
    assert_eq!(device.handles(discovered_anew()), Some(FetchBundle));
    assert_eq!(device.handles(bundle()), Some(Work::Request(Enroll, Pending)));
}

#[test]
fn alternating_documents_with_404_cause_no_request_loop() {
    for broken in ["request", "bundle"] {
        let mut device = Device::fresh();
        device.starts();
        let looks = device.lives_through(secs(3600), |action| match action {
            FetchDiscovery => discovered_anew(),
            action if kind(action) == broken => match action {
                FetchBundle => Event::Bundle(Err(failure(FailureKind::NotFound, None))),
                _ => refusal(FailureKind::NotFound, None),
            },
            action => good(action),
        });
        assert!(looks.values().all(|times| *times <= 70), "{looks:?}");
    }
}

#[test]
fn changing_documents_do_not_keep_the_backoff_short() {
    let mut device = Device::enrolling();
    let looks = device.lives_through(DAY, |action| match action {
        FetchDiscovery => discovered_anew(),
        Work::Request(..) => refusal(FailureKind::Transient, None),
        action => good(action),
    });
    assert!(looks["request"] <= 100, "{looks:?}");
}

#[test]
fn failed_discovery_keeps_the_last_good_document() {
    let mut device = Device::active(100 * DAY);
    device.waits_for(CreateKey);
    device.handles(key_created());
    assert_eq!(device.in_flight, Some(FetchDiscovery));
    let next = device.handles(Event::Discovery(Err(failure(FailureKind::Transient, None))));
    assert_eq!(next, Some(Work::Request(Renew, Pending)));
    device.handles(answered());
    device.adopts_for(100 * DAY, Pending);
    assert!(device.waits_for(FetchDiscovery) <= secs(300));
}
