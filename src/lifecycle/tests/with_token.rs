//! One identity that a token of the operator's enrolls (X31 to X44, X66 to X70).

use super::super::KeyChoice::{Current, Pending};
use super::super::Request::{Enroll, Renew};
use super::super::*;
use super::device::Work::Request as Asks;
use super::device::*;
use crate::problem::{LastError, ProblemCode, Report};
use miaf_client::api::State;

const BY_TOKEN: IdentityPolicy = IdentityPolicy { rotate: Rotation::Never, issuance: Issuance::WithToken };
const TOKEN: Event = Event::Supplied(DEVICE, Supplied::Token);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const MILLISECOND: Duration = Duration::from_millis(1);

fn restarted(device: &mut Device, disk: OnDisk, has_token: bool) {
    restarted_under(device, BY_TOKEN, disk, has_token);
}

fn restarted_under(device: &mut Device, policy_of: IdentityPolicy, disk: OnDisk, has_token: bool) {
    let mut restored = Restored::from(disk);
    (restored.identities[0].policy, restored.identities[0].has_token) = (policy_of, has_token);
    device.lifecycle = Lifecycle::new(policy(), restored, device.now, &mut || 0.5);
    device.in_flight = None;
    device.starts();
    rests(device);
}

/// What is in flight goes well, until a request is.
fn rests(device: &mut Device) {
    while device.in_flight.is_some_and(|work| !matches!(work, Asks(..))) {
        device.goes_on(good);
    }
}

/// With documents and without an SVID.
fn new_device(has_token: bool) -> Device {
    let mut device = Device::fresh();
    restarted(&mut device, OnDisk { svid: None, ..an_identity() }, has_token);
    device
}

/// With an SVID of a hundred days, and without a token.
fn enrolled() -> Device {
    let mut device = Device::fresh();
    restarted(&mut device, an_identity(), false);
    device
}

fn shown(device: &Device) -> Option<ProblemCode> {
    device.view().last_error(device.now)?.0.report.code.known()
}

fn refused(kind: FailureKind) -> Event {
    refusal(kind, None)
}

#[test]
fn nothing_is_requested_without_a_token() {
    let mut device = new_device(false);
    assert_eq!((device.state(), shown(&device)), (State::WaitingForToken, Some(ProblemCode::TokenNeeded)));
    let done = device.lives_through(20 * DAY, good);
    assert!(!["request", "key", "adopt"].iter().any(|kind| done.contains_key(kind)), "{done:?}");
    device.handles(TOKEN);
    rests(&mut device);
    assert_eq!(device.in_flight, Some(Asks(Enroll, Pending)));
    assert_eq!((device.state(), shown(&device)), (State::Enrolling, None));
    assert_eq!(device.handles(answered()), Some(ADOPT));
    device.adopts_for(100 * DAY, Pending);
    assert_eq!((device.state(), shown(&device)), (State::Active, None));
    // The next SVID is a renewal with the same key, and needs no token.
    device.waits_for(Asks(Renew, Current));
}

#[test]
fn refused_token_is_sent_again_at_a_pace() {
    let mut device = new_device(true);
    assert_eq!(device.handles(key_created()), Some(Asks(Enroll, Pending)));
    let begin = device.now.boot;
    for luck in [0.0, 0.99, 0.5, 0.99] {
        device.luck = luck;
        device.handles(refused(FailureKind::TokenRefused));
        assert_eq!(device.state(), State::Enrolling);
        let waited = device.waits_for(Asks(Enroll, Pending));
        assert!((15 * MINUTE..=30 * MINUTE).contains(&waited), "{waited:?}");
    }
    assert!(begin.until(device.now.boot) >= HOUR, "five attempts take an hour");
    device.handles(refused(FailureKind::NoToken));
    assert_eq!((device.state(), shown(&device)), (State::WaitingForToken, Some(ProblemCode::ServerError)));
    let done = device.lives_through(20 * DAY, good);
    assert!(!done.contains_key("request"), "{done:?}");
    // Another token is tried at once, with the key that the first one may be bound to.
    device.handles(TOKEN);
    rests(&mut device);
    assert_eq!(device.in_flight, Some(Asks(Enroll, Pending)));
}

#[test]
fn token_that_comes_meanwhile_ends_the_wait_for_the_one_before() {
    let mut device = new_device(true);
    device.handles(key_created());
    device.handles(refused(FailureKind::TokenRefused));
    rests(&mut device);
    assert_eq!(device.in_flight, None);
    assert_eq!(device.handles(TOKEN), Some(Asks(Enroll, Pending)));
    // Retry-After is the MIS's word, whichever token.
    device.handles(refusal(FailureKind::Transient, Some(600)));
    rests(&mut device);
    device.handles(TOKEN);
    rests(&mut device);
    assert_eq!(device.in_flight, None);
    assert!(device.waits_for(Asks(Enroll, Pending)) >= 10 * MINUTE);
}

#[test]
fn tokens_of_a_script_are_not_sent_at_its_pace() {
    let mut device = new_device(true);
    device.handles(key_created());
    let begin = device.now.boot;
    let mut requests = 0;
    // Each is refused within a millisecond, and then there is another one.
    for _ in 0..600 {
        if device.in_flight == Some(Asks(Enroll, Pending)) {
            requests += 1;
            device.passes(MILLISECOND);
            device.handles(refused(FailureKind::TokenRefused));
        }
        device.handles(TOKEN);
        device.passes(secs(1) / 10);
        rests(&mut device);
    }
    assert!(begin.until(device.now.boot) <= 2 * MINUTE);
    assert!((2..=14).contains(&requests), "{requests} in a minute");
}

#[test]
fn held_enrollment_is_asked_for_until_it_is_decided() {
    for retry_after in [None, Some(300)] {
        let mut device = new_device(true);
        device.handles(key_created());
        for _ in 0..500 {
            assert_eq!(device.in_flight, Some(Asks(Enroll, Pending)), "the same request, with the same key");
            device.handles(refusal(FailureKind::Pending, retry_after));
            assert_eq!(device.state(), State::PendingAdmission);
            let waited = device.waits_for(Asks(Enroll, Pending));
            assert!(retry_after.is_none_or(|least| waited >= secs(least)), "{waited:?}");
            assert!(waited <= HOUR, "{waited:?}");
        }
        // The token has expired meanwhile.
        for _ in 0..4 {
            device.handles(refused(FailureKind::TokenRefused));
            device.waits_for(Asks(Enroll, Pending));
        }
        device.handles(refused(FailureKind::NoToken));
        assert_eq!(device.state(), State::WaitingForToken);
    }
}

#[test]
fn request_refused_for_now_is_sent_once_a_day() {
    let mut device = new_device(true);
    device.handles(key_created());
    device.handles(refused(FailureKind::RefusedForNow));
    assert_eq!((device.state(), shown(&device)), (State::Blocked, Some(ProblemCode::ServerError)));
    let waited = device.waits_for(Asks(Enroll, Pending));
    assert!((18 * HOUR..=24 * HOUR).contains(&waited), "{waited:?}");
    device.handles(refused(FailureKind::RefusedForNow));
    rests(&mut device);
    device.handles(Event::Command(Command::Retry));
    device.waits_for(Asks(Enroll, Pending));
    device.handles(refused(FailureKind::RefusedForNow));
    rests(&mut device);
    // A changed document, and another token, may be the correction.
    while !matches!(device.in_flight, Some(Work::FetchDiscovery)) {
        device.goes_on(good);
    }
    device.handles(discovered_anew());
    rests(&mut device);
    assert_eq!(device.in_flight, Some(Asks(Enroll, Pending)));
    device.handles(refused(FailureKind::RefusedForNow));
    rests(&mut device);
    device.handles(TOKEN);
    rests(&mut device);
    assert_eq!(device.in_flight, Some(Asks(Enroll, Pending)));
}

#[test]
fn need_of_a_token_is_told_from_four_fifths_of_the_lifetime_on() {
    let mut device = enrolled();
    let ends = START.after(100 * DAY);
    device.waits_for(Asks(Renew, Current));
    let fails = |work: &Work| match work {
        Asks(..) => refused(FailureKind::Transient),
        other => good(other),
    };
    let detail =
        |device: &Device| device.view().last_error(device.now).and_then(|(error, _)| error.report.detail);
    let mut told_at = None;
    while device.now.wall < ends {
        device.goes_on(fails);
        let tells = detail(&device).is_some_and(|detail| detail.contains("fresh enrollment token"));
        let deadline = device.view().needs_token_after(device.now);
        if device.now.wall < START.after(80 * DAY) {
            assert!(!tells && deadline.is_none(), "{:?}", device.now.wall);
        } else if deadline.is_some() && told_at.is_none() {
            told_at = Some(device.now.wall);
            assert!(tells && deadline == Some(ends));
        }
    }
    assert!(told_at.unwrap() <= START.after(80 * DAY).after(HOUR));
    while device.now.wall <= ends.after(MILLISECOND) {
        device.goes_on(fails);
    }
    assert_eq!((device.state(), shown(&device)), (State::Expired, Some(ProblemCode::TokenNeeded)));
    let done = device.lives_through(20 * DAY, good);
    assert!(!done.contains_key("request"), "an SVID that has ended is not renewed: {done:?}");
    device.handles(TOKEN);
    rests(&mut device);
    assert_eq!(device.in_flight, Some(Asks(Enroll, Current)));
}

#[test]
fn refused_svid_is_renewed_further_unless_there_is_a_token() {
    let mut device = enrolled();
    device.waits_for(Asks(Renew, Current));
    device.handles(refused(FailureKind::NotAuthenticated));
    assert_eq!(device.state(), State::Renewing);
    device.waits_for(Asks(Renew, Current));
    device.handles(refused(FailureKind::NotAuthenticated));
    rests(&mut device);
    device.handles(TOKEN);
    device.waits_for(Asks(Renew, Current));
    device.handles(refused(FailureKind::NotAuthenticated));
    assert_eq!(device.in_flight, Some(Asks(Enroll, Current)), "the token is the way out");
    device.handles(refused(FailureKind::TokenRefused));
    device.waits_for(Asks(Renew, Current));
}

#[test]
fn token_is_the_word_that_replaces_a_lost_key() {
    let mut device = Device::fresh();
    let mut restored = Restored::from(an_identity());
    restored.identities[0].policy = BY_TOKEN;
    device.lifecycle = Lifecycle::new(policy(), restored, device.now, &mut || 0.5);
    device.starts();
    device.waits_for(Work::ProveKey);
    device.handles(key_lost());
    rests(&mut device);
    assert_eq!(device.state(), State::Blocked);
    device.handles(TOKEN);
    rests(&mut device);
    assert_eq!(device.in_flight, Some(Asks(Enroll, Pending)));
}

#[test]
fn chain_without_a_path_is_kept_and_judged_at_each_refresh() {
    let mut device = new_device(true);
    device.handles(key_created());
    assert_eq!(device.handles(answered()), Some(ADOPT));
    device.handles(adoption(Err(NotAdopted::UnknownIssuer)));
    assert_eq!(device.in_flight, Some(Work::FetchBundle));
    device.handles(bundle());
    assert_eq!(device.in_flight, Some(Work::Adopt { bundle_is_fresh: true }));
    let no_path = || adoption(Err(NotAdopted::NoPath(failure(FailureKind::Slow, None))));
    device.handles(no_path());
    assert_eq!(shown(&device), Some(ProblemCode::ServerError));
    let done = device.lives_through(DAY, |work| match work {
        Work::Adopt { bundle_is_fresh: true } => no_path(),
        other => good(other),
    });
    assert!(done["adopt"] > 24, "at each refresh of the bundle: {done:?}");
    assert!(!done.contains_key("request"), "the token is used up by the chain that is there: {done:?}");
    while !matches!(device.in_flight, Some(Work::Adopt { .. })) {
        device.goes_on(good);
    }
    device.adopts_for(100 * DAY, Pending);
    assert_eq!((device.state(), shown(&device)), (State::Active, None));
}

#[test]
fn chain_without_a_path_keeps_no_renewal_back() {
    let no_path = || adoption(Err(NotAdopted::NoPath(failure(FailureKind::Slow, None))));
    let mut device = enrolled();
    device.waits_for(Asks(Renew, Current));
    let done = device.lives_through(11 * DAY, |work| match work {
        Work::Adopt { bundle_is_fresh: false } => adoption(Err(NotAdopted::UnknownIssuer)),
        Work::Adopt { .. } => no_path(),
        other => good(other),
    });
    assert!(done["adopt"] > 24 && done["request"] > 24, "{done:?}");
    // What the refreshes find does not hasten a request that is refused.
    let refused_renewals = device.lives_through(DAY, |work| match work {
        Work::Adopt { bundle_is_fresh: false } => adoption(Err(NotAdopted::UnknownIssuer)),
        Work::Adopt { .. } => no_path(),
        Asks(..) => refused(FailureKind::Slow),
        other => good(other),
    });
    assert!((24..=49).contains(&refused_renewals["request"]), "{refused_renewals:?}");
}

#[test]
fn token_brought_after_a_chain_is_sent_after_a_restart() {
    for (token_key, is_sent) in [(None, true), (Some(Pending), false)] {
        let mut restored = Restored::from(OnDisk { svid: None, ..an_identity() });
        let identity = &mut restored.identities[0];
        (identity.policy, identity.has_token, identity.token_key) = (BY_TOKEN, true, token_key);
        (identity.pending_key, identity.issued_chain) = (true, true);
        let mut device = Device::fresh();
        device.lifecycle = Lifecycle::new(policy(), restored, device.now, &mut || 0.5);
        device.in_flight = None;
        device.starts();
        let done = device.lives_through(DAY, |work| match work {
            Work::Adopt { bundle_is_fresh: false } => adoption(Err(NotAdopted::UnknownIssuer)),
            Work::Adopt { .. } => adoption(Err(NotAdopted::NoPath(failure(FailureKind::Slow, None)))),
            Asks(..) => refused(FailureKind::Slow),
            other => good(other),
        });
        assert_eq!(done.contains_key("request"), is_sent, "{done:?}");
    }
}

#[test]
fn chain_of_an_expired_issuer_is_judged_at_each_refresh() {
    let mut device = new_device(true);
    device.handles(key_created());
    device.handles(answered());
    device.handles(adoption(Err(NotAdopted::IssuerExpired(failure(FailureKind::Slow, None)))));
    while !matches!(device.in_flight, Some(Work::Adopt { .. })) {
        device.goes_on(good); // the same bundle
    }
    device.adopts_for(100 * DAY, Pending);
    assert_eq!(device.state(), State::Active);
}

#[test]
fn rotation_by_number_and_by_age() {
    let by_number = Rotation::AfterRenewals(2);
    let key = |renewals, since: Option<Timestamp>| KeyUse { renewals, since };
    for (rotation, key_use, expected) in [
        (Rotation::Never, key(1000, None), Current),
        (Rotation::Always, key(0, Some(START)), Pending),
        (by_number, key(1, None), Current),
        (by_number, key(2, None), Pending),
        (Rotation::AfterAge(30 * DAY), key(9, Some(START)), Pending),
        (Rotation::AfterAge(70 * DAY), key(9, Some(START)), Current),
        (Rotation::AfterAge(70 * DAY), key(0, None), Pending),
    ] {
        let mut device = Device::fresh();
        let disk = an_identity();
        let svid = disk.svid.clone().map(|svid| SvidFacts { key_use, ..svid });
        let of_identity = IdentityPolicy { rotate: rotation, ..BY_TOKEN };
        restarted_under(&mut device, of_identity, OnDisk { svid, ..disk }, false);
        device.waits_to_ask();
        assert_eq!(device.in_flight, Some(Asks(Renew, expected)), "{rotation:?} {key_use:?}");
    }
}

#[test]
fn refused_new_key_is_followed_by_the_current_one_once() {
    let mut device = Device::fresh();
    let of_identity = IdentityPolicy { rotate: Rotation::Always, ..BY_TOKEN };
    restarted_under(&mut device, of_identity, an_identity(), false);
    device.waits_for(Asks(Renew, Pending));
    assert_eq!(device.handles(refused(FailureKind::KeyRotationRefused)), Some(Asks(Renew, Current)));
    device.handles(answered());
    device.adopts_for(100 * DAY, Current);
    assert_eq!(device.state(), State::Active);
}

#[test]
fn refusals_keep_their_pace_whatever_retry_after_says() {
    for at_once in [0, 1, 30] {
        let mut device = new_device(true);
        device.handles(key_created());
        device.handles(refusal(FailureKind::TokenRefused, Some(at_once)));
        assert!(device.waits_for(Asks(Enroll, Pending)) >= 15 * MINUTE);
        device.handles(refusal(FailureKind::RefusedForNow, Some(at_once)));
        assert!(device.waits_for(Asks(Enroll, Pending)) >= 18 * HOUR);
    }
    // What the MIS asks for is more, perhaps.
    let mut device = new_device(true);
    device.handles(key_created());
    device.handles(refusal(FailureKind::TokenRefused, Some(5 * 3600)));
    assert!(device.waits_for(Asks(Enroll, Pending)) >= 5 * HOUR);
}

#[test]
fn refusal_for_now_does_not_outlast_a_valid_svid() {
    for lifetime in [HOUR, DAY, 7 * DAY] {
        let mut device = Device::fresh();
        let svid = Some(svid(START, lifetime, Current));
        restarted(&mut device, OnDisk { svid, ..an_identity() }, false);
        device.waits_for(Asks(Renew, Current));
        // The endpoint does not serve its CA certificates, for a while.
        assert_eq!(device.handles(answered()), Some(ADOPT));
        let refused = || adoption(Err(NotAdopted::Kept(failure(FailureKind::RefusedForNow, None))));
        let mut attempts = 0;
        while device.now.wall < START.after(lifetime.mul_f64(0.9)) {
            attempts += u32::from(matches!(device.in_flight, Some(Work::Adopt { .. })));
            device.goes_on(|work| match work {
                Work::Adopt { .. } => refused(),
                other => good(other),
            });
        }
        assert!((4..200).contains(&attempts), "{lifetime:?}: {attempts} attempts");
    }
}

#[test]
fn issuers_of_a_kept_chain_are_not_fetched_in_a_circle() {
    let mut device = new_device(true);
    device.handles(key_created());
    device.handles(answered());
    device.handles(adoption(Err(NotAdopted::UnknownIssuer)));
    device.handles(bundle());
    device.handles(adoption(Err(NotAdopted::IssuerExpired(failure(FailureKind::Slow, None)))));
    // Another bundle, and the endpoint does not respond.
    let done = device.lives_through(DAY, |work| match work {
        Work::FetchBundle => fetched(BundleForOne { is_new: true, ..facts(None) }),
        Work::Adopt { .. } => adoption(Err(NotAdopted::Kept(failure(FailureKind::Transient, None)))),
        other => good(other),
    });
    assert!((20..120).contains(&done["adopt"]), "{done:?}");
}

#[test]
fn token_is_sent_with_one_key_only() {
    let rotating = IdentityPolicy { rotate: Rotation::Always, ..BY_TOKEN };
    // A rotation was refused, so that there are two keys; then the SVID ends.
    let expired = || {
        let mut device = Device::fresh();
        restarted_under(&mut device, rotating, an_identity(), false);
        device.waits_for(Asks(Renew, Pending));
        device.handles(refused(FailureKind::KeyRotationRefused));
        device.handles(refused(FailureKind::Transient));
        while device.now.wall <= START.after(100 * DAY) {
            device.goes_on(|work| match work {
                Asks(..) => refused(FailureKind::Transient),
                other => good(other),
            });
        }
        device.handles(TOKEN);
        rests(&mut device);
        assert_eq!(device.in_flight, Some(Asks(Enroll, Current)));
        device
    };
    let mut device = expired();
    device.handles(refused(FailureKind::Transient));
    device.handles(Event::Command(Command::Retry)); // the refused key is open again
    device.waits_for(Asks(Enroll, Current));
    // The same after a restart, by what was stored; and for the pending key.
    for sent_with in [Current, Pending] {
        let mut restored = Restored::from(OnDisk { pending_key: true, ..an_identity() });
        let identity = &mut restored.identities[0];
        (identity.policy, identity.has_token, identity.token_key) = (rotating, true, Some(sent_with));
        device.lifecycle = Lifecycle::new(policy(), restored, device.now, &mut || 0.5);
        device.in_flight = None;
        device.starts();
        rests(&mut device);
        assert_eq!(device.in_flight, Some(Asks(Enroll, sent_with)));
    }
    // Another token may go with any key.
    device.handles(refused(FailureKind::NoToken));
    device.handles(TOKEN);
    rests(&mut device);
    assert!(matches!(device.in_flight, Some(Asks(Enroll, _))));
}

#[test]
fn fresh_token_enrolls_where_a_chain_leads_nowhere() {
    let no_path = || NotAdopted::NoPath(failure(FailureKind::Slow, None));
    let expired = || NotAdopted::IssuerExpired(failure(FailureKind::Slow, None));
    for why in [no_path, expired] {
        let mut device = new_device(true);
        device.handles(key_created());
        device.handles(answered());
        device.handles(adoption(Err(NotAdopted::UnknownIssuer)));
        device.handles(bundle());
        device.handles(adoption(Err(why())));
        rests(&mut device);
        device.handles(TOKEN);
        rests(&mut device);
        assert_eq!(device.in_flight, Some(Asks(Enroll, Pending)));
        // That one is used up as well.
        device.handles(answered());
        device.handles(adoption(Err(NotAdopted::UnknownIssuer)));
        device.handles(bundle());
        device.handles(adoption(Err(why())));
        let done = device.lives_through(DAY, |work| match work {
            Work::Adopt { .. } => adoption(Err(why())),
            other => good(other),
        });
        assert!(!done.contains_key("request"), "{done:?}");
    }
}

#[test]
fn lost_key_that_may_be_replaced_waits_for_a_token() {
    let mut device = Device::fresh();
    let mut restored = Restored::from(an_identity());
    restored.identities[0].policy = BY_TOKEN;
    device.lifecycle = Lifecycle::new(policy(), restored, device.now, &mut || 0.5);
    device.starts();
    device.waits_for(Work::ProveKey);
    device.handles(key_lost());
    rests(&mut device);
    device.handles(Event::Command(REPLACE_KEY));
    while device.in_flight.is_some() {
        device.goes_on(|work| if *work == Work::ProveKey { key_lost() } else { good(work) });
    }
    assert_eq!((device.state(), shown(&device)), (State::WaitingForToken, Some(ProblemCode::TokenNeeded)));
    let error = device.view().last_error(device.now).unwrap().0;
    assert!(error.report.detail.unwrap().contains("key of the current SVID is lost"));
    device.handles(TOKEN);
    rests(&mut device);
    assert_eq!(device.in_flight, Some(Asks(Enroll, Pending)));
}

#[test]
fn enrollment_is_not_held_any_more_once_its_token_is_refused() {
    let mut device = new_device(true);
    device.handles(key_created());
    device.handles(refusal(FailureKind::Pending, Some(300)));
    device.waits_for(Asks(Enroll, Pending));
    device.handles(refused(FailureKind::NoToken));
    assert!(!device.lifecycle.memory().identities[0].admission_pending);
    device.handles(TOKEN);
    rests(&mut device);
    assert_eq!(device.state(), State::Enrolling);
}

#[test]
fn certificate_that_is_replaced_is_tried_at_once() {
    let mut device = Device::fresh();
    let by_certificate = IdentityPolicy { rotate: Rotation::Never, issuance: Issuance::Requested };
    restarted_under(&mut device, by_certificate, OnDisk { svid: None, ..an_identity() }, false);
    device.handles(key_created());
    device.handles(refused(FailureKind::NotAuthenticated));
    rests(&mut device);
    assert_eq!(device.in_flight, None);
    let certificate = Event::Supplied(DEVICE, Supplied::Certificate);
    assert_eq!(device.handles(certificate.clone()), Some(Asks(Enroll, Pending)));
    // Retry-After is the MIS's word, whichever certificate.
    device.handles(refusal(FailureKind::Transient, Some(600)));
    rests(&mut device);
    device.handles(certificate);
    rests(&mut device);
    assert!(device.waits_for(Asks(Enroll, Pending)) >= 10 * MINUTE);
}

#[test]
fn ca_of_another_bundle_is_asked_again_when_that_changes() {
    let mut device = new_device(true);
    device.handles(key_created());
    device.handles(refused(FailureKind::OtherAuthority));
    assert_eq!((device.state(), device.in_flight), (State::Enrolling, Some(Work::FetchBundle)), "once more");
    assert!(device.lifecycle.memory().identities[0].retry_after.is_none());
    device.handles(bundle());
    // The same bundle changes nothing: the delays grow, and the bundle is fetched at its own pace.
    let other = |work: &Work| match work {
        Asks(..) => refused(FailureKind::OtherAuthority),
        work => good(work),
    };
    let at_first = device.lives_through(DAY, other);
    let later = device.lives_through(DAY, other);
    assert!((24..100).contains(&later["request"]) && later["request"] <= at_first["request"], "{later:?}");
    assert!(later["bundle"] < 400, "every few minutes: {later:?}");
    // Another one is a reason to try again, whatever is left of the delay.
    device.waits_for(Asks(Enroll, Pending));
    device.handles(refused(FailureKind::OtherAuthority));
    while device.in_flight != Some(Work::FetchBundle) {
        device.goes_on(good);
    }
    let another = BundleForOne { is_new: true, ..facts(None) };
    assert_eq!(device.handles(fetched(another)), Some(Asks(Enroll, Pending)));
    // The token was not sent: it is bound to no key.
    device.handles(refused(FailureKind::OtherAuthority));
    assert_eq!(device.lifecycle.identities[0].token_key, None);
}

#[test]
fn restart_does_not_hasten_a_refused_token() {
    let error = |at| {
        let report = Report::new(ProblemCode::TokenRefused, "Refused", &"by a test");
        Some(LastError { report, at, permanent: false })
    };
    let device_with = |token_refusal| {
        let mut device = Device::fresh();
        let mut restored = Restored::from(OnDisk { svid: None, pending_key: true, ..an_identity() });
        let identity = &mut restored.identities[0];
        (identity.policy, identity.has_token, identity.token_refusal) = (BY_TOKEN, true, token_refusal);
        device.lifecycle = Lifecycle::new(policy(), restored, device.now, &mut || 0.5);
        device.starts();
        rests(&mut device);
        device
    };
    // What is left of the delay is kept; a clock that was set back does not prolong it.
    let just_now = device_with(error(START)).waits_for(Asks(Enroll, Pending));
    assert!((15 * MINUTE..=30 * MINUTE).contains(&just_now), "{just_now:?}");
    let ahead = device_with(error(START.after(DAY))).waits_for(Asks(Enroll, Pending));
    assert!((15 * MINUTE..=30 * MINUTE).contains(&ahead), "{ahead:?}");
    let long_ago = Timestamp::from_millis(START.as_millis() - 3_600_000);
    assert_eq!(device_with(error(long_ago)).in_flight, Some(Asks(Enroll, Pending)));
    // The error is shown, and another token, or an operator's word, ends the wait.
    for event in [TOKEN, Event::Command(Command::Retry)] {
        let mut device = device_with(error(START));
        assert_eq!((device.in_flight, shown(&device)), (None, Some(ProblemCode::TokenRefused)));
        device.handles(event);
        rests(&mut device);
        assert_eq!(device.in_flight, Some(Asks(Enroll, Pending)));
    }
}

/// Whether it was refused before, or is in use (X12).
#[test]
fn changed_bundle_file_is_read_at_once() {
    let mut device = Device::fresh();
    let mut restored = Restored::from(OnDisk { svid: None, pending_key: true, ..an_identity() });
    restored.identities[0].policy = BY_TOKEN;
    restored.trust_domain.bundle = None;
    device.lifecycle = Lifecycle::new(policy(), restored, device.now, &mut || 0.5);
    device.starts();
    let refusal = || Event::Bundle(Err(failure(FailureKind::Transient, None)));
    for _ in 0..10 {
        while device.in_flight != Some(Work::FetchBundle) {
            device.goes_on(good);
        }
        device.handles(refusal());
    }
    while device.in_flight == Some(Work::FetchDiscovery) {
        device.goes_on(good);
    }
    assert_eq!(device.in_flight, None, "the delay has grown");
    assert_eq!(device.handles(Event::BundleFileChanged), Some(Work::FetchBundle));
    // While it is read, it changes once more.
    device.handles(Event::BundleFileChanged);
    assert_eq!(device.in_flight, Some(Work::FetchBundle));
    device.handles(bundle());
    rests(&mut device);
    assert_eq!(device.in_flight, None);
    assert_eq!(device.handles(Event::BundleFileChanged), Some(Work::FetchBundle), "long before its refresh");
}
