//! Orders of the operator, networks that are not there, anchors that go away.

use std::collections::BTreeMap;

use super::super::KeyChoice::Pending;
use super::super::Request::{Enroll, Renew};
use super::super::*;
use super::device::Work::{CreateKey, FetchBundle, FetchDiscovery};
use super::device::*;
use crate::problem::ProblemCode;
use miaf_client::api::State;

// ---- orders ----

#[test]
fn renew_command_acts_now_but_never_before_retry_after() {
    let mut device = Device::active(100 * DAY);
    device.passes(secs(60));
    assert_eq!(device.handles(Event::Command(RENEW_NOW)), Some(CreateKey));
    device.handles(key_created());
    device.waits_for(Work::Request(Renew, Pending));
    device.luck = 0.0;
    device.handles(refusal(FailureKind::Transient, Some(3600)));
    device.handles(Event::Command(RENEW_NOW));
    assert_eq!(device.waits_for(Work::Request(Renew, Pending)), secs(3600), "E8");
}

#[test]
fn retry_command_counts_as_a_correction() {
    let mut device = Device::enrolling();
    device.handles(refusal(FailureKind::Permanent, None));
    assert_eq!(device.state(), State::Blocked);
    device.passes(secs(120));
    assert_eq!(device.handles(Event::Command(Command::Retry)), Some(FetchDiscovery));
    device.handles(discovered());
    assert_eq!(device.handles(bundle()), Some(Work::Request(Enroll, Pending)));
}

#[test]
fn command_during_an_action_leaves_it_in_flight() {
    let mut device = Device::enrolling();
    let step = device.lifecycle.step(Event::Command(Command::Retry), device.now, &mut || 0.5);
    assert_eq!(step.action, None);
    device.handles(answered());
    device.waits_for(ADOPT);
}

#[test]
fn commands_from_a_script_do_not_set_the_pace() {
    for order in [Command::Retry, RENEW_NOW, REPLACE_KEY] {
        let mut device = Device::active(100 * DAY);
        device.waits_for(Work::Request(Renew, Pending));
        device.handles(refusal(FailureKind::Transient, None));
        let mut looks = BTreeMap::new();
        for _ in 0..600 {
            device.handles(Event::Command(order));
            while let Some(action) = device.in_flight {
                *looks.entry(kind(&action)).or_insert(0) += 1;
                device.handles(match action {
                    Work::Request(..) => refusal(FailureKind::Transient, None),
                    action => good(&action),
                });
            }
            device.passes(secs(1));
        }
        looks.remove("proof"); // the chip alone is asked
        assert!(looks.values().all(|times| *times <= 122), "in ten minutes, {order:?}: {looks:?}");
    }
}

// ---- a network that is not there, anchors that go away ----

#[test]
fn offline_device_asks_soon_after_the_link_is_back() {
    let mut device = Device::active(100 * DAY);
    device.luck = 0.0;
    device.waits_for(FetchBundle);
    for _ in 0..1000 {
        device.handles(Event::Bundle(Err(failure(FailureKind::Offline, None))));
        assert_eq!(device.state(), State::Active);
        let waited = device.waits_for(FetchBundle);
        assert!(waited >= secs(2) && waited <= secs(30), "{waited:?}");
    }
    device.luck = 1.0;
    device.handles(Event::Bundle(Err(failure(FailureKind::Transient, None))));
    assert!(device.waits_for(FetchBundle) <= secs(5), "the MIS has failed once, not a thousand times");
}

#[test]
fn svid_without_its_anchor_is_renewed_early_and_spread() {
    for (luck, within) in [(0.0, 0), (0.5, 150), (1.0, 300)] {
        let mut device = Device::active(100 * DAY);
        device.waits_for(FetchBundle);
        device.luck = luck;
        let seen = device.now.wall;
        device.handles(bundle_without_its_anchor());
        assert_eq!(device.view().renew_at(), Some(seen.after(secs(within))));
        device.passes(secs(60));
        device.lifecycle.trust_domain.bundle.as_mut().unwrap().refresh_at = device.now.boot;
        device.luck = 0.0;
        device.lifecycle.step(bundle_without_its_anchor(), device.now, &mut || 0.0);
        assert_eq!(device.view().renew_at(), Some(seen.after(secs(within))), "the moment is drawn once");
        device.lifecycle.step(bundle(), device.now, &mut || 0.0);
        assert_eq!(device.view().renew_at(), Some(START.after(50 * DAY)), "servers that did not agree yet");
    }
}

#[test]
fn renew_command_outlives_the_next_bundle() {
    let mut device = Device::active(100 * DAY);
    device.waits_for(FetchBundle);
    device.luck = 1.0;
    device.handles(bundle_without_its_anchor());
    device.handles(Event::Command(RENEW_NOW));
    device.lifecycle.step(bundle(), device.now, &mut || 0.5);
    assert_eq!(device.view().renew_at(), Some(device.now.wall));
}

#[test]
fn empty_bundle_leads_to_no_renewal() {
    let mut device = Device::active(100 * DAY);
    let renew_at = device.view().renew_at();
    device.waits_for(FetchBundle);
    device.handles(empty_bundle());
    assert_eq!(device.view().renew_at(), renew_at);
    // Not even when it is due, and not for a device that has none yet.
    device.wall_jumps(60 * 86_400);
    let mut fresh = Device::fresh();
    fresh.starts();
    fresh.handles(discovered());
    fresh.handles(fetched(BundleForOne { vouches: None, is_empty: true, ..facts(Some(DAY)) }));
    assert!(fresh.lifecycle.bundle_refresh_in(fresh.now).unwrap() <= secs(300), "whatever the hint is");
    for mut device in [device, fresh] {
        device.lives_through(DAY, |action| match action {
            FetchBundle => empty_bundle(),
            CreateKey | Work::Request(..) => panic!("the answer would be refused"),
            action => good(action),
        });
        assert_eq!(device.error().unwrap().0.report.code, ProblemCode::BundleEmpty);
        device.waits_to_ask();
    }
}

// ---- a bundle that has moved ----

#[test]
fn unreachable_bundle_has_discovery_read_again() {
    for kind in [FailureKind::Transient, FailureKind::Slow, FailureKind::NotFound, FailureKind::Permanent] {
        let mut device = Device::active(100 * DAY);
        device.waits_for(FetchBundle);
        device.passes(secs(60)); // since the document was last read
        device.handles(Event::Bundle(Err(failure(kind, None))));
        assert_eq!(device.in_flight, Some(FetchDiscovery), "{kind:?}");
        assert_eq!(
            device.handles(discovered_anew()),
            Some(FetchBundle),
            "{kind:?}: it names another address"
        );
        device.handles(bundle());
        assert_eq!((device.in_flight, device.error()), (None, None), "{kind:?}");
    }
    // Where no request was sent, nothing is known of where the bundle is.
    for kind in [FailureKind::Offline, FailureKind::Local] {
        let mut device = Device::active(100 * DAY);
        device.waits_for(FetchBundle);
        device.handles(Event::Bundle(Err(failure(kind, None))));
        let looks = device.lives_through(secs(600), |action| match action {
            FetchBundle => Event::Bundle(Err(failure(kind, None))),
            other => panic!("{other:?} because of {kind:?}"),
        });
        assert!(looks["bundle"] > 0);
    }
}

/// A fleet that finds nothing must not ask for two documents in place of one.
#[test]
fn discovery_is_read_seldom_while_it_fails_like_the_bundle() {
    let mut device = Device::active(100 * DAY);
    device.waits_for(FetchBundle);
    let looks = device.lives_through(5 * DAY, |action| match action {
        FetchBundle => Event::Bundle(Err(failure(FailureKind::Transient, None))),
        FetchDiscovery => Event::Discovery(Err(failure(FailureKind::Transient, None))),
        other => panic!("{other:?}"),
    });
    let (bundle, discovery) = (looks["bundle"], looks["discovery"]);
    assert!(bundle > 50 && discovery > 5 && discovery <= bundle / 7, "{discovery} of {bundle}");
}

#[test]
fn bundle_that_vouches_for_nothing_has_discovery_read_again() {
    for other in [bundle_without_its_anchor(), empty_bundle()] {
        let mut device = Device::active(100 * DAY);
        device.waits_for(FetchBundle);
        device.passes(secs(60));
        assert_eq!(device.handles(other), Some(FetchDiscovery));
        assert_eq!(device.handles(discovered_anew()), Some(FetchBundle));
    }
}

#[test]
fn missing_bundle_reads_discovery_once_an_attempt() {
    for (changes, is_away) in [(false, false), (true, false), (false, true)] {
        let mut device = Device::active(100 * DAY);
        device.waits_for(FetchBundle);
        let looks = device.lives_through(DAY, |action| match action {
            FetchBundle => Event::Bundle(Err(failure(FailureKind::Transient, None))),
            FetchDiscovery if is_away => Event::Discovery(Err(failure(FailureKind::Transient, None))),
            FetchDiscovery => Event::Discovery(Ok(DiscoveryFacts { changed: changes, ..document() })),
            other => panic!("{other:?}"),
        });
        let (bundle, discovery) = (looks["bundle"], looks["discovery"]);
        assert!(discovery <= bundle && discovery > 40, "{looks:?}");
        // Documents that change all the time do not set the pace: a minute is the least between
        // two.
        assert!(bundle <= if changes { 1500 } else { 600 }, "{looks:?}");
        assert!(!is_away || discovery < 100, "an MIS that is away is not asked for both: {looks:?}");
        device.lives_through(secs(7200), good);
        assert_eq!(device.error(), None, "nothing is left of it when the MIS is back");
    }
}
