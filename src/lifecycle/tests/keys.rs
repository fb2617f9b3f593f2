//! Which key is asked for with, and what happens when one is lost (E6, R4).

use super::super::KeyChoice::{Current, Pending};
use super::super::Request::{Enroll, Renew};
use super::super::*;
use super::device::Work::{CreateKey, FetchBundle, FetchDiscovery, ProveKey};
use super::device::*;
use miaf_client::api::State;

// ---- keys (R4, E6) ----

#[test]
fn refused_rotation_falls_back_to_the_current_key() {
    let mut device = Device::renewing(100 * DAY);
    assert_eq!(
        device.handles(refusal(FailureKind::KeyRotationRefused, None)),
        Some(Work::Request(Renew, Current))
    );
    assert_eq!(device.handles(answered()), Some(ADOPT));
    device.adopts_for(100 * DAY, Current);
    assert_eq!(device.error(), None);
    device.waits_for(Work::Request(Renew, Current));
}

#[test]
fn rotation_off_creates_no_key() {
    let mut device = Device::fresh();
    device.lifecycle.identities[0].policy.rotate = Rotation::Never;
    device.becomes_active(100 * DAY);
    device.waits_for(Work::Request(Renew, Current));
}

/// Restored with a key that the configuration, changed since, would have made elsewhere.
fn with_a_key_of_another_provider() -> Device {
    let mut device = Device::fresh();
    device.restarts(OnDisk {
        discovery: Some(document()),
        bundle: true,
        svid: Some(SvidFacts {
            key_fits: false,
            renew_at: Some(START.after(50 * DAY)),
            ..svid(START, 100 * DAY, Current)
        }),
        ..OnDisk::default()
    });
    device
}

#[test]
fn key_of_another_provider_is_replaced_at_once() {
    let mut device = with_a_key_of_another_provider();
    device.lifecycle.identities[0].policy.rotate = Rotation::Never;
    assert_eq!(device.state(), State::Renewing);
    assert!(device.waits_for(CreateKey) < Duration::from_secs(1));
    device.handles(key_created());
    assert!(device.waits_for(Work::Request(Renew, Pending)) < Duration::from_secs(1));
    assert_eq!(device.handles(answered()), Some(ADOPT));
    device.adopts_for(100 * DAY, Pending);
    assert!(device.waits_for(Work::Request(Renew, Current)) > 10 * DAY, "and then rotation is off");
}

#[test]
fn irreplaceable_key_is_kept_until_renewal() {
    let mut device = with_a_key_of_another_provider();
    device.waits_for(CreateKey);
    device.handles(key_created());
    device.waits_for(Work::Request(Renew, Pending));
    device.handles(refusal(FailureKind::KeyRotationRefused, None));
    assert_eq!(device.state(), State::Active);
    assert!(device.waits_for(Work::Request(Renew, Current)) > 10 * DAY);
    assert_eq!(device.handles(answered()), Some(ADOPT));
    let kept = SvidFacts { key_fits: false, ..svid(device.now.wall, 100 * DAY, Current) };
    device.handles(adoption(Ok(kept)));
    assert!(device.waits_for(Work::Request(Renew, Current)) > 10 * DAY, "no circle");
}

#[test]
fn expired_device_with_a_foreign_key_enrolls_with_a_new_one() {
    let mut device = with_a_key_of_another_provider();
    device.passes(200 * DAY); // the key that is held may be out of reach for good
    assert!(device.waits_for(CreateKey) < DAY);
    assert_eq!(device.handles(key_created()), Some(Work::Request(Enroll, Pending)));
    device.handles(refusal(FailureKind::KeyRotationRefused, None));
    assert_eq!(device.in_flight, Some(Work::Request(Enroll, Current)), "unless the MIS insists on it");
}

#[test]
fn refused_rotation_without_a_current_key_blocks() {
    let mut device = Device::enrolling();
    device.handles(refusal(FailureKind::KeyRotationRefused, None));
    assert_eq!(device.state(), State::Blocked);
    device.waits_for(FetchDiscovery);
    device.handles(discovered_anew());
    assert_eq!(device.handles(bundle()), Some(Work::Request(Enroll, Pending)), "with the same key");
}

#[test]
fn pending_key_is_reused_after_lost_responses_and_restarts() {
    let mut device = Device::enrolling();
    for round in 0..50 {
        device.handles(refusal(FailureKind::Transient, None));
        device.waits_for(Work::Request(Enroll, Pending));
        if round % 10 == 9 {
            device.restarts(OnDisk { pending_key: true, ..OnDisk::default() });
            device.handles(discovered());
            assert_eq!(device.handles(bundle()), Some(Work::Request(Enroll, Pending)));
        }
    }
}

#[test]
fn pending_key_survives_a_lost_renewal_a_401_and_expiry() {
    let mut device = Device::renewing(100 * DAY);
    device.handles(refusal(FailureKind::Transient, None)); // the answer that certified the key may be the lost one
    device.waits_for(Work::Request(Renew, Pending));
    assert_eq!(
        device.handles(refusal(FailureKind::NotAuthenticated, None)),
        Some(Work::Request(Enroll, Pending))
    );
    device.handles(refusal(FailureKind::Transient, None));
    device.wall_jumps(200 * 24 * 3600);
    device.waits_for(Work::Request(Enroll, Pending));
    assert_eq!(
        device.handles(refusal(FailureKind::KeyRotationRefused, None)),
        Some(Work::Request(Enroll, Current)),
        "only a definite refusal ends it"
    );
}

// ---- a key that is lost ----

fn whose_key_is_lost() -> Device {
    let mut device = Device::fresh();
    device.restarts(an_identity());
    device.handles(discovered());
    assert_eq!(device.handles(bundle()), Some(ProveKey));
    device.handles(key_lost());
    device
}

#[test]
fn lost_key_is_noticed_at_start_and_not_replaced_unasked() {
    let mut device = whose_key_is_lost();
    assert_eq!(device.state(), State::Blocked);
    let (error, again) = device.error().unwrap();
    assert!(error.permanent && again.is_some_and(|again| again <= secs(7200)), "it may come back");
    let looks = device.lives_through(10 * DAY, |action| match action {
        ProveKey => key_lost(),
        FetchDiscovery | FetchBundle => good(action),
        other => panic!("{other:?} with no key"),
    });
    assert_eq!(looks["proof"], 239, "once an hour, in case the chip is put back");
    device.waits_for(ProveKey);
    device.handles(key_proven());
    assert_eq!(device.state(), State::Active);
}

#[test]
fn lost_key_is_replaced_on_command_also_after_a_restart() {
    let mut device = whose_key_is_lost();
    assert_eq!(device.handles(Event::Command(Command::Retry)), Some(FetchBundle));
    assert_eq!(device.state(), State::Blocked, "an order to retry does not say that it may be replaced");
    device.handles(bundle());
    device.waits_for(ProveKey);
    device.handles(key_lost());

    device.handles(Event::Command(REPLACE_KEY));
    let memory = device.lifecycle.memory();
    assert!(memory.identities[0].replace_lost_key);
    let svid = Some(svid(START, 100 * DAY, Current));
    let (discovery, bundle) = (Some(document()), true);
    device.restarts(OnDisk { svid, discovery, bundle, memory, ..OnDisk::default() });
    device.waits_for(ProveKey);
    device.handles(key_lost());
    device.waits_for(CreateKey);
    device.handles(key_created());
    device.waits_for(Work::Request(Enroll, Pending));
    assert!(!device.view().may_be_renamed(device.now), "it has an identity, and keeps it (E9)");
    device.handles(answered());
    device.adopts_for(100 * DAY, Pending);
    assert_eq!(device.state(), State::Active);
    assert!(device.lifecycle.memory().is_empty());
}

#[test]
fn working_key_is_never_replaced_on_command() {
    let mut device = Device::active(100 * DAY);
    device.passes(secs(60));
    device.handles(Event::Command(REPLACE_KEY));
    device.waits_for(ProveKey);
    device.handles(key_proven());
    assert!(!device.lifecycle.memory().identities[0].replace_lost_key);
    device.waits_for(Work::Request(Renew, Pending));
    assert!(device.now.wall >= START.after(50 * DAY));
}

#[test]
fn lost_key_is_replaced_once_the_svid_has_expired() {
    let mut device = whose_key_is_lost();
    while !matches!(device.in_flight, Some(CreateKey)) {
        let lost = |action: &Work| if *action == ProveKey { key_lost() } else { good(action) };
        device.goes_on(lost);
    }
    assert!(device.now.wall > START.after(100 * DAY));
    device.waits_for(Work::Request(Enroll, Pending));
}

#[test]
fn lost_key_is_not_used_where_rotation_is_refused() {
    let mut device = whose_key_is_lost();
    device.handles(Event::Command(REPLACE_KEY));
    device.waits_for(ProveKey);
    device.handles(key_lost());
    device.waits_for(Work::Request(Enroll, Pending));
    device.handles(refusal(FailureKind::KeyRotationRefused, None));
    assert_eq!(device.state(), State::Blocked, "for the operator of the MIS to allow");
    device.lives_through(DAY, |action| match action {
        ProveKey => key_lost(),
        Work::Request(..) => panic!("{action:?} with a key that is lost, or was refused"),
        action => good(action),
    });
}

/// Found by a property: the refusal of the new key outlived the loss of the old one, so that a 401
/// at renewal was not answered with the enrollment that helps (R6).
#[test]
fn recovered_key_is_enrolled_with() {
    let mut device = whose_key_is_lost();
    device.handles(Event::Command(REPLACE_KEY));
    device.waits_for(ProveKey);
    device.handles(key_lost());
    device.waits_for(Work::Request(Enroll, Pending));
    device.handles(refusal(FailureKind::KeyRotationRefused, None));
    assert_eq!(device.state(), State::Blocked);
    device.waits_for(ProveKey);
    device.handles(key_proven());
    assert_eq!(device.state(), State::Active);
    device.waits_for(Work::Request(Renew, Current));
    device.handles(refusal(FailureKind::NotAuthenticated, None));
    device.waits_for(Work::Request(Enroll, Current));
}

#[test]
fn absent_tpm_at_start_is_polled_and_its_key_is_not_lost() {
    let mut device = Device::fresh();
    device.restarts(an_identity());
    device.waits_for(ProveKey);
    device.handles(proof(Err(failure(FailureKind::Local, None))));
    assert_eq!(device.state(), State::Blocked);
    assert!(device.waits_for(ProveKey) <= secs(30));
    device.handles(key_proven());
    assert_eq!(device.state(), State::Active);
}

#[test]
fn key_of_a_chain_from_before_a_restart_is_proven_again() {
    let mut device = Device::fresh();
    device.restarts(OnDisk { pending_key: true, issued_chain: true, ..OnDisk::default() });
    device.handles(discovered());
    assert_eq!(device.handles(bundle()), Some(ADOPT));
    assert_eq!(
        device.adopts_for(100 * DAY, Pending),
        Some(ProveKey),
        "its chip may have been replaced meanwhile"
    );
    device.handles(key_lost());
    assert!(device.view().key_is_lost());
}

#[test]
fn lost_key_and_401_keep_the_device_enrolling() {
    let mut device = Device::renewing(100 * DAY);
    device.handles(refusal(FailureKind::NotAuthenticated, None));
    device.handles(issuance(Err(failure(FailureKind::CurrentKeyLost, None))));
    for _ in 0..3 {
        device.waits_for(Work::Request(Enroll, Pending));
        device.handles(refusal(FailureKind::Transient, None));
        device.handles(Event::Command(Command::Retry));
        device.waits_for(ProveKey);
        device.handles(key_lost());
        assert_ne!(device.state(), State::Blocked, "there is a way that is open, and the only one");
    }
}
