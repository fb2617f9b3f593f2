//! One identity whose SVIDs an operator brings (N9).

use super::super::KeyChoice::{Current, Pending};
use super::super::*;
use super::device::Work::ProveKey;
use super::device::*;
use crate::problem::ProblemCode;
use miaf_client::api::State;

const OPERATED: IdentityPolicy = IdentityPolicy { rotate: Rotation::Always, issuance: Issuance::ByOperator };

const KEY: Event = Event::Supplied(DEVICE, Supplied::Key);
const CHAIN: Event = Event::Supplied(DEVICE, Supplied::Chain);

fn restarted(device: &mut Device, disk: OnDisk) {
    let mut restored = Restored::from(disk);
    restored.identities[0].policy = OPERATED;
    device.lifecycle = Lifecycle::new(policy(), restored, device.now, &mut || 0.5);
    device.in_flight = None;
    device.starts();
    rests(device);
}

/// With documents, and perhaps an SVID of a hundred days.
fn operated(has_svid: bool) -> Device {
    let mut device = Device::fresh();
    let disk = an_identity();
    restarted(&mut device, OnDisk { svid: disk.svid.clone().filter(|_| has_svid), ..disk });
    device
}

/// What is in flight goes well, until nothing is.
fn rests(device: &mut Device) {
    while device.in_flight.is_some() {
        device.goes_on(good);
    }
}

fn sleeps_until(device: &mut Device, at: Timestamp) {
    while device.now.wall < at {
        device.goes_on(good);
    }
    rests(device);
}

/// Code, whether it is permanent, and whether there will be another attempt.
fn shown(device: &Device) -> Option<(ProblemCode, bool, bool)> {
    let (error, again) = device.view().last_error(device.now)?;
    Some((error.report.code.known()?, error.permanent, again.is_some()))
}

const ASKED: Option<(ProblemCode, bool, bool)> = Some((ProblemCode::OperatorNeeded, true, false));
/// As [`failure`] reports it.
const REFUSED: Option<(ProblemCode, bool, bool)> = Some((ProblemCode::ServerError, true, false));

fn unusable() -> Failure {
    failure(FailureKind::Slow, None)
}

#[test]
fn operator_is_waited_for_and_nothing_is_requested() {
    let mut device = operated(false);
    let done = device.lives_through(30 * DAY, good);
    assert!(!["request", "key", "adopt"].iter().any(|kind| done.contains_key(kind)), "{done:?}");
    assert_eq!((device.state(), shown(&device)), (State::WaitingForOperator, ASKED));
    // Without an MIS that responds as well.
    let mut device = Device::fresh();
    restarted(&mut device, OnDisk::default());
    assert_eq!((device.state(), shown(&device)), (State::WaitingForOperator, ASKED));
}

#[test]
fn operator_is_asked_from_half_of_the_lifetime_on() {
    let mut device = operated(true);
    let half = START.after(50 * DAY);
    assert_eq!((device.state(), shown(&device)), (State::Active, None));
    assert_eq!(device.view().renew_at(), Some(half));
    assert_eq!(device.view().renewal_window(), None);
    sleeps_until(&mut device, half);
    assert_eq!(device.now.wall, half, "it is not slept through");
    assert_eq!((device.state(), shown(&device)), (State::WaitingForOperator, ASKED));
    sleeps_until(&mut device, START.after(100 * DAY).after(Duration::from_millis(1)));
    assert_eq!((device.state(), shown(&device)), (State::Expired, ASKED));
    device.handles(KEY);
    assert_eq!(device.handles(CHAIN), Some(ADOPT));
    device.adopts_for(DAY, Pending);
    rests(&mut device);
    assert_eq!((device.state(), shown(&device)), (State::Active, None));
}

#[test]
fn refused_chain_is_shown_until_the_next_is_there() {
    for has_svid in [false, true] {
        let mut device = operated(has_svid);
        device.handles(KEY);
        device.handles(CHAIN);
        device.handles(adoption(Err(NotAdopted::Refused(unusable()))));
        let done = device.lives_through(10 * DAY, good);
        assert!(!done.contains_key("adopt"), "{done:?}");
        assert_eq!(shown(&device), REFUSED);
        let state = if has_svid { State::Active } else { State::WaitingForOperator };
        assert_eq!(device.state(), state);
        device.handles(Event::Command(Command::Retry));
        rests(&mut device);
        assert_eq!(shown(&device), REFUSED, "a command does not make a better chain of it");
        assert_eq!(device.handles(CHAIN), Some(ADOPT), "the next one is not delayed by it");
        assert_eq!(device.view().last_error(device.now), None);
        device.adopts_for(DAY, Pending);
        assert_eq!(device.state(), State::Active);
    }
}

#[test]
fn chain_of_an_expired_issuer_asks_for_the_operator() {
    let mut device = operated(false);
    device.handles(CHAIN);
    device.handles(adoption(Err(NotAdopted::UnknownIssuer)));
    device.handles(bundle());
    assert_eq!(device.in_flight, Some(Work::Adopt { bundle_is_fresh: true }));
    device.handles(adoption(Err(NotAdopted::IssuerExpired(unusable()))));
    assert_eq!((device.state(), shown(&device)), (State::WaitingForOperator, REFUSED));
    // It may lie there for years: the bundle is not polled more often for it.
    device.handles(Event::Command(Command::Retry));
    while device.in_flight.is_some() {
        device.goes_on(|action| match action {
            Work::FetchBundle => fetched(facts(Some(DAY))),
            other => good(other),
        });
    }
    let done = device.lives_through(10 * DAY, |action| match action {
        Work::FetchBundle => fetched(facts(Some(DAY))),
        other => good(other),
    });
    assert!(done["bundle"] <= 13, "{done:?}");
    // Another bundle has it validated once more.
    device.waits_for(Work::FetchBundle);
    let another = BundleForOne { is_new: true, ..facts(None) };
    assert_eq!(device.handles(fetched(another)), Some(Work::Adopt { bundle_is_fresh: true }));
}

#[test]
fn supplied_chain_survives_any_action_in_flight() {
    // An action of the trust domain.
    let mut device = operated(false);
    device.waits_for(Work::FetchBundle);
    device.handles(KEY);
    assert_eq!(device.handles(CHAIN), Some(Work::FetchBundle), "one action at a time");
    assert_eq!(device.handles(bundle()), Some(ADOPT));
    // The adoption of the one before: what was brought meanwhile is what was validated.
    device.handles(CHAIN);
    device.handles(adoption(Err(NotAdopted::Early(START.after(DAY)))));
    rests(&mut device);
    assert_eq!(device.handles(CHAIN), Some(ADOPT), "it is not kept for the moment of the one before");
    device.adopts_for(DAY, Pending);
    rests(&mut device);
    // The proof of the key.
    let mut device = operated(true);
    device.lifecycle.identities[0].svid.as_mut().unwrap().key = identity::CurrentKey::Unproven;
    assert_eq!(device.handles(Event::Wake), Some(ProveKey));
    device.handles(CHAIN);
    assert_eq!(device.handles(key_proven()), Some(ADOPT));
}

#[test]
fn chain_is_adopted_without_a_discovery_document() {
    let mut device = Device::fresh();
    let disk = OnDisk { bundle: true, issued_chain: true, pending_key: true, ..OnDisk::default() };
    let mut restored = Restored::from(disk);
    restored.identities[0].policy = OPERATED;
    device.lifecycle = Lifecycle::new(policy(), restored, device.now, &mut || 0.5);
    device.starts();
    device.handles(Event::Discovery(Err(failure(FailureKind::Transient, None))));
    assert_eq!(device.in_flight, Some(ADOPT));
}

#[test]
fn bundle_that_does_not_vouch_asks_for_the_operator() {
    let mut device = operated(true);
    let half = device.view().renew_at();
    device.waits_for(Work::FetchBundle);
    device.handles(bundle_without_its_anchor());
    let asked = device.view().renew_at().unwrap();
    assert!(asked <= device.now.wall.after(secs(300)));
    while device.now.wall < asked {
        let wake_in = device.wake_in.filter(|_| device.in_flight.is_none()).unwrap_or_default();
        device.now = later(device.now, wake_in);
        let event = match device.in_flight {
            Some(Work::FetchBundle) => bundle_without_its_anchor(),
            Some(action) => good(&action),
            None => Event::Wake,
        };
        device.handles(event);
    }
    assert_eq!((device.state(), shown(&device)), (State::WaitingForOperator, ASKED));
    let (error, _) = device.view().last_error(device.now).unwrap();
    assert!(error.report.detail.as_deref().unwrap_or_default().contains("vouch"), "{error:?}");
    device.waits_for(Work::FetchBundle);
    device.handles(bundle());
    assert_eq!((device.state(), device.view().renew_at()), (State::Active, half), "servers disagreed");
}

#[test]
fn shorter_validity_asks_for_the_operator_sooner() {
    let mut device = operated(true);
    let half = device.view().renew_at();
    for (ends, asked) in [(60, 30), (20, 10), (100, 50)] {
        device.waits_for(Work::FetchBundle);
        device.handles(fetched(BundleForOne { svid_ends: Some(START.after(ends * DAY)), ..facts(None) }));
        assert_eq!(device.view().renew_at(), Some(START.after(asked * DAY)));
    }
    assert_eq!(device.view().renew_at(), half);
}

#[test]
fn commands_make_an_operated_identity_request_nothing() {
    let mut device = operated(true);
    let half = device.view().renew_at();
    for command in [RENEW_NOW, Command::Retry, REPLACE_KEY] {
        device.handles(Event::Command(command));
        let done = device.lives_through(DAY, good);
        assert!(!["request", "key", "adopt"].iter().any(|kind| done.contains_key(kind)), "{done:?}");
        assert_eq!((device.state(), device.view().renew_at()), (State::Active, half), "{command:?}");
    }
    assert!(!device.lifecycle.memory().identities[0].replace_lost_key);
}

#[test]
fn lost_key_of_an_operated_identity_stays_visible() {
    let mut device = operated(true);
    device.lifecycle.identities[0].svid.as_mut().unwrap().key = identity::CurrentKey::Unproven;
    device.handles(Event::Wake);
    device.handles(key_lost());
    device.handles(Event::Command(REPLACE_KEY));
    device.waits_for(ProveKey);
    device.handles(key_lost());
    rests(&mut device);
    assert_eq!(device.state(), State::Blocked);
    device.handles(KEY);
    assert_eq!(device.handles(CHAIN), Some(ADOPT));
    device.handles(adoption(Err(NotAdopted::Refused(unusable()))));
    assert_eq!(device.state(), State::Blocked, "the key is lost as before");
    device.handles(CHAIN);
    device.adopts_for(DAY, Pending);
    rests(&mut device);
    assert_eq!((device.state(), shown(&device)), (State::Active, None));
}

#[test]
fn full_disk_is_retried_for_a_supplied_chain() {
    let mut device = operated(true);
    device.handles(CHAIN);
    device.handles(adoption(Err(NotAdopted::Kept(failure(FailureKind::Local, None)))));
    assert_eq!(device.state(), State::Blocked);
    assert_eq!(shown(&device), Some((ProblemCode::ServerError, true, true)));
    assert!(device.waits_for(ADOPT) <= secs(30));
}

#[test]
fn key_of_another_provider_asks_for_the_operator() {
    let mut device = Device::fresh();
    let svid = Some(SvidFacts { key_fits: false, ..svid(START, 100 * DAY, Current) });
    restarted(&mut device, OnDisk { svid, ..an_identity() });
    assert_eq!((device.state(), shown(&device)), (State::WaitingForOperator, ASKED));
}

#[test]
fn traces_of_requests_do_not_outlive_another_way_to_enroll() {
    let mut device = Device::fresh();
    let of_requests = IdentityMemory {
        retry_after: Some(device.now.boot.after(DAY)),
        admission_pending: true,
        replace_lost_key: true,
        ..IdentityMemory::default()
    };
    let renew_at = Some(START.after(42 * DAY));
    let svid = Some(SvidFacts { renew_at, ..svid(START, 100 * DAY, Current) });
    let memory = Memory { identities: vec![of_requests], ..Memory::default() };
    restarted(&mut device, OnDisk { svid, memory, ..an_identity() });
    assert_eq!(device.view().renew_at(), Some(START.after(50 * DAY)));
    assert_eq!(device.lifecycle.memory().identities, [IdentityMemory::default()]);
    assert_eq!(device.handles(CHAIN), Some(ADOPT), "no Retry-After is left");
}

#[test]
fn requests_of_others_are_not_hastened_by_an_operated_end() {
    // Seconds before the end, documents are read no more often than at any other time.
    let mut device = operated(true);
    sleeps_until(&mut device, START.after(100 * DAY - secs(20)));
    let at_the_end = device.lifecycle.min_between_reads(device.now.wall);
    assert_eq!(at_the_end, secs(60));
}

#[test]
fn supplied_chain_is_no_news_where_the_agent_requests() {
    let mut device = Device::active(100 * DAY);
    for supplied in [KEY, CHAIN] {
        device.handles(supplied);
        assert_eq!((device.state(), device.in_flight), (State::Active, None));
    }
}

#[test]
fn document_rules_nothing_out_for_an_operator() {
    let mut device = operated(false);
    let no = || Some(report());
    let ruled_out = RuledOut { enrollment: no(), renewal: no() };
    device.knows(DiscoveryFacts { changed: false, identities: vec![ruled_out] });
    assert_eq!((device.state(), shown(&device)), (State::WaitingForOperator, ASKED));
}
