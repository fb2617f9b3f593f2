//! Issuers that end before what they have issued, and waits that outlast an SVID.

use super::super::KeyChoice::Pending;
use super::super::Request::{Enroll, Renew};
use super::super::*;
use super::device::Work::{FetchBundle, FetchDiscovery};
use super::device::*;
use crate::problem::ProblemCode;
use miaf_client::api::State;

const FRESH: Work = Work::Adopt { bundle_is_fresh: true };

fn issuer_expired() -> Event {
    adoption(Err(NotAdopted::IssuerExpired(failure(FailureKind::Slow, None))))
}

/// The request has just been answered, and no certificate of the answer's path is valid any more.
fn finds_the_issuer_expired(device: &mut Device) {
    device.handles(answered());
    assert_eq!(device.in_flight, Some(ADOPT));
    assert_eq!(device.handles(adoption(Err(NotAdopted::UnknownIssuer))), Some(FetchBundle));
    assert_eq!(
        device.handles(bundle()),
        Some(FRESH),
        "the bundle is looked at before the answer is given up"
    );
    device.handles(issuer_expired());
}

fn new_bundle() -> Event {
    fetched(BundleForOne { is_new: true, ..facts(None) })
}

/// An MIS whose SVIDs of a day all end at one moment, since their issuer does.
fn lives_under_an_issuer_that_ends(device: &mut Device, ends: Timestamp, until: Duration) -> u32 {
    let mut issued = 0;
    let end = device.now.boot.after(until);
    while device.now.boot < end {
        match device.in_flight {
            Some(Work::Adopt { bundle_is_fresh }) => {
                device.handles(if device.now.wall <= ends {
                    let lifetime = DAY.min(device.now.wall.until(ends));
                    adoption(Ok(svid(device.now.wall, lifetime, device.asked_with)))
                } else if bundle_is_fresh {
                    issuer_expired()
                } else {
                    adoption(Err(NotAdopted::UnknownIssuer))
                });
            }
            Some(Work::Request(..)) => {
                issued += 1;
                device.handles(answered());
            }
            _ => device.goes_on(good),
        }
    }
    issued
}

#[test]
fn chain_with_expired_issuer_waits_for_another_bundle() {
    let mut device = Device::enrolling();
    finds_the_issuer_expired(&mut device);
    for _ in 0..5 {
        device.waits_for(FetchBundle);
        assert_ne!(device.handles(bundle()), Some(FRESH), "the same bundle is no reason to judge it again");
    }
    device.waits_for(FetchBundle);
    assert_eq!(device.handles(new_bundle()), Some(FRESH), "and another is, at once");
    device.handles(issuer_expired());
    device.waits_for(FetchBundle);
    device.handles(new_bundle());
    device.adopts_for(100 * DAY, Pending);
    assert_eq!((device.state(), device.error()), (State::Active, None));
}

#[test]
fn chain_with_expired_issuer_is_requested_again_slowly() {
    for (luck, pause) in [(0.0, 3600), (1.0, 1800)] {
        let mut device = Device::enrolling();
        device.luck = luck;
        finds_the_issuer_expired(&mut device);
        assert_eq!(device.waits_for(Work::Request(Enroll, Pending)), secs(pause));
        finds_the_issuer_expired(&mut device);
        assert_eq!(device.waits_for(Work::Request(Enroll, Pending)), secs(pause), "each time");
    }
}

#[test]
fn other_bundles_do_not_postpone_the_slow_request() {
    let mut device = Device::enrolling();
    finds_the_issuer_expired(&mut device);
    let begin = device.now.boot;
    loop {
        match device.in_flight {
            Some(Work::Request(..)) => break,
            Some(FetchBundle) => device.handles(new_bundle()),
            Some(Work::Adopt { .. }) => device.handles(issuer_expired()),
            _ => {
                device.goes_on(good);
                None
            }
        };
        assert!(begin.until(device.now.boot) <= secs(3600), "it is never asked for anew");
    }
}

#[test]
fn short_svids_of_an_expired_issuer_are_requested_slowly() {
    // Two minutes: a twentieth of that was the slowest that a refused answer was asked for anew.
    let mut device = Device::renewing(secs(120));
    device.passes(secs(120));
    device.handles(refusal(FailureKind::Transient, None));
    device.waits_for(Work::Request(Enroll, Pending));
    let mut enrollments = 0;
    let end = device.now.boot.after(secs(3600));
    while device.now.boot < end {
        match device.in_flight {
            Some(Work::Request(..)) => {
                enrollments += 1;
                finds_the_issuer_expired(&mut device);
            }
            _ => device.goes_on(good),
        }
    }
    assert!(enrollments <= 3, "{enrollments} in an hour");
}

#[test]
fn rejected_chain_is_retried_while_the_svid_is_valid() {
    let mut device = Device::renewing(secs(600));
    finds_the_issuer_expired(&mut device);
    assert!(device.waits_for(Work::Request(Renew, Pending)) <= secs(30), "another server may be right");
}

#[test]
fn svids_ending_with_their_issuer_are_requested_ever_slower() {
    for (luck, ends_in) in [(0.0, 20), (0.5, 20), (1.0, 20), (0.5, 2), (0.5, 100)] {
        let mut device = Device::enrolling();
        device.luck = luck;
        let ends = device.now.wall.after(secs(ends_in * 3600));
        device.handles(answered());
        device.adopts_for(DAY.min(secs(ends_in * 3600)), Pending);
        let before = lives_under_an_issuer_that_ends(&mut device, ends, secs(ends_in * 3600 + 1));
        assert!(
            before <= if ends_in == 100 { 15 } else { 7 },
            "luck {luck}, {ends_in} h: {before} for nothing"
        );
        assert_eq!(device.state(), State::Expired);
        assert_eq!(device.error().unwrap().0.report.code, ProblemCode::IssuanceStalled);
        let after = lives_under_an_issuer_that_ends(&mut device, ends, DAY);
        assert!(after <= 50, "luck {luck}: {after} on the day after, half an hour apart at least");
    }
}

#[test]
fn better_svid_ends_the_slow_requests() {
    let mut device = Device::active(secs(3600));
    let ends = device.now.wall.after(secs(3600));
    lives_under_an_issuer_that_ends(&mut device, ends, secs(3000));
    assert!(device.error().is_some());
    device.waits_to_ask();
    device.handles(answered());
    device.adopts_for(DAY, device.asked_with);
    assert_eq!((device.state(), device.error()), (State::Active, None));
    let renew_in = device.now.wall.until(device.view().renew_at().unwrap());
    assert!(device.waits_to_ask() <= renew_in + secs(1));
}

#[test]
fn renew_command_does_not_wait_for_a_better_svid() {
    let mut device = Device::active(DAY);
    let ends = device.now.wall.after(DAY);
    lives_under_an_issuer_that_ends(&mut device, ends, secs(23 * 3600));
    assert!(device.error().unwrap().1.unwrap() > secs(60));
    device.handles(Event::Command(RENEW_NOW));
    assert!(device.waits_to_ask() <= secs(5));
}

#[test]
fn another_bundle_moves_the_end_of_the_svid_both_ways() {
    let mut device = Device::active(100 * DAY);
    let ends = |days: u32, device: &Device| {
        let svid_ends = Some(START.after(DAY * days));
        assert_eq!(device.in_flight, Some(FetchBundle));
        fetched(BundleForOne { is_new: true, svid_ends, ..facts(None) })
    };
    device.waits_for(FetchBundle);
    device.handles(ends(10, &device));
    assert_eq!(device.view().renew_at(), Some(START.after(5 * DAY)), "in the window of what is left");
    device.waits_for(FetchBundle);
    device.handles(ends(100, &device));
    assert_eq!(device.view().renew_at(), Some(START.after(5 * DAY)), "early does no harm");
    device.waits_for(FetchBundle);
    device.wall_jumps(3 * 86_400);
    device.handles(ends(2, &device));
    assert_eq!(device.state(), State::Expired);
    device.handles(issuance(Err(failure(FailureKind::Slow, None))));
    device.waits_for(FetchBundle);
    device.handles(ends(100, &device));
    assert_ne!(device.state(), State::Expired);
}

#[test]
fn bundle_is_polled_early_when_its_anchor_begins_or_ends() {
    let next_look = |anchor_changes: fn(Timestamp) -> Timestamp| {
        let mut device = Device::active(100 * DAY);
        device.luck = 0.0;
        device.waits_for(FetchBundle);
        let anchor_changes = Some(anchor_changes(device.now.wall));
        device.handles(fetched(BundleForOne { anchor_changes, ..facts(Some(DAY)) }));
        device.waits_for(FetchBundle)
    };
    assert_eq!(next_look(|now| now.after(100 * DAY)), DAY, "an end that is far away");
    assert_eq!(next_look(|now| now.after(DAY)), DAY / 2);
    assert_eq!(next_look(|now| now.after(secs(60))), secs(300), "not below the device's own interval");
    assert_eq!(next_look(|_| START), secs(300), "it has just ended");
    assert_eq!(next_look(|_| Timestamp::from_secs(0)), DAY, "long ago: it does not matter");
}

// ---- waits ----

#[test]
fn wait_beyond_the_end_of_the_svid_is_reported_ahead() {
    let mut device = Device::renewing(100 * DAY);
    assert_eq!(device.view().retry_after_until(device.now), None);
    device.handles(refusal(FailureKind::Transient, Some(3600)));
    assert!(!device.view().svid_ends_before_retry_after(device.now), "there is time enough");

    let mut device = Device::renewing(secs(3600));
    let begin = device.now;
    device.handles(refusal(FailureKind::Transient, Some(86_400)));
    assert!(device.view().svid_ends_before_retry_after(device.now), "half an hour ahead");
    assert_eq!(device.view().retry_after_until(device.now), Some(begin.wall.after(DAY)));
    assert_eq!(device.state(), State::Renewing);
    device.passes(secs(7200));
    assert_eq!(device.state(), State::Expired);
    assert!(device.view().svid_ends_before_retry_after(device.now), "and as long as it lasts");
    let memory = device.lifecycle.memory();
    let svid = device.lifecycle.identities[0].svid.as_ref().map(|held| held.facts.clone());
    device.restarts(OnDisk { memory, svid, ..an_identity() });
    assert!(device.view().svid_ends_before_retry_after(device.now), "a restart shortens nothing");
    let (error, again) = device.error().unwrap();
    assert!(!error.permanent && again >= Some(secs(86_400 - 7200)), "it says when it asks: {again:?}");
    device.wall_jumps(-50 * 365 * 86_400);
    device.lives_through(DAY, |action| match action {
        Work::Request(..) => panic!("asked early (E8)"),
        FetchDiscovery => discovered(),
        other => good(other),
    });
}
