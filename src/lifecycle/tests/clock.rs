//! Wall clocks that are wrong, or are set.

use super::super::KeyChoice::{Current, Pending};
use super::super::Request::{Enroll, Renew};
use super::super::*;
use super::device::Work::{CreateKey, FetchBundle, FetchDiscovery};
use super::device::*;
use crate::problem::ProblemCode;
use miaf_client::api::State;

#[test]
fn impossible_clock_allows_discovery_only() {
    for (jump, why) in [(-50 * 365 * 86_400, "1970"), (-2 * 3600, "a time zone")] {
        let mut device = Device::active(100 * DAY);
        device.is_convinced_of(START.after(3 * DAY));
        device.now.wall = START.after(3 * DAY);
        device.wall_jumps(jump);
        assert_eq!(device.state(), State::WaitingForClock, "{why}");
        assert_eq!(
            device.lifecycle.likely_time(device.now),
            START.after(3 * DAY),
            "it is at least this time"
        );
        assert_eq!(device.error().unwrap().0.report.code, ProblemCode::Clock);
        let looks = device.lives_through(secs(3000), |action| match action {
            FetchDiscovery => Event::Discovery(Err(failure(FailureKind::Transient, None))),
            other => panic!("{other:?} by a clock that cannot be right"),
        });
        assert!((20..30).contains(&looks["discovery"]), "every five minutes at least: {looks:?}");
        assert!(device.wake_in.is_none_or(|wait| wait <= secs(60)), "it may be set without a jump");
        device.now.wall = START.after(3 * DAY);
        device.handles(Event::Wake);
        assert_eq!(device.state(), State::Active);
        device.passes(DAY);
        assert_eq!(device.lifecycle.likely_time(device.now), device.now.wall);
    }
}

#[test]
fn clock_minutes_behind_the_mis_is_trusted() {
    let mut device = Device::active(100 * DAY);
    device.is_shown(START.after(secs(9 * 60)));
    assert_eq!(device.state(), State::Active);
}

#[test]
fn floor_moves_with_proof_and_never_with_a_clock_jump() {
    let mut device = Device::active(100 * DAY);
    device.wall_jumps(15 * 365 * 86_400);
    assert_eq!(device.state(), State::Expired, "the wrong clock is believed for now");
    device.wall_jumps(-15 * 365 * 86_400);
    assert_eq!(device.state(), State::Active, "and nothing is left of it");

    device.is_convinced_of(START.after(1000 * DAY));
    assert_eq!(device.state(), State::WaitingForClock, "the clock of the MIS is wrong");
    device.is_shown(START);
    assert_eq!(device.state(), State::Active, "and is right again");
}

#[test]
fn single_wrong_date_withholds_nothing_and_is_checked_at_once() {
    for wrong in [START.after(1000 * DAY), START.after(secs(660)), Timestamp::from_secs(253_402_300_799)] {
        let mut device = Device::active(100 * DAY);
        assert_eq!(device.is_shown(wrong), TimeVerdict::Doubted, "{wrong}");
        assert_eq!(device.handles(Event::Wake), Some(FetchDiscovery), "at once");
        assert_eq!(device.state(), State::Active);
        assert_eq!(device.is_shown(wrong), TimeVerdict::Doubted, "{wrong}");
        assert_eq!(device.handles(discovered()), Some(FetchDiscovery), "and once more");
        assert_eq!(device.state(), State::Active);
        assert_eq!(device.is_shown(device.now.wall), TimeVerdict::Counts, "one of several servers was wrong");
        assert_eq!(device.handles(discovered()), None);
        assert_eq!((device.state(), device.error()), (State::Active, None));
    }
}

#[test]
fn repeated_date_counts_and_is_soon_checked() {
    let mut device = Device::active(100 * DAY);
    let wrong = START.after(1000 * DAY);
    device.is_shown(wrong);
    device.handles(Event::Wake);
    for _ in 0..2 {
        assert_eq!((device.in_flight, device.state()), (Some(FetchDiscovery), State::Active));
        device.is_shown(wrong);
        device.handles(discovered());
    }
    assert_eq!((device.in_flight, device.state()), (None, State::WaitingForClock));
    assert!(device.waits_for(FetchDiscovery) <= secs(5), "the next server may be right");
    device.handles(discovered());
    assert!(device.waits_for(FetchDiscovery) <= secs(10), "and the one after that");
    device.is_shown(device.now.wall);
    device.handles(discovered());
    assert_eq!(device.state(), State::Active);
    assert!(!device.lives_through(secs(600), good).contains_key("discovery"), "all is well");
}

#[test]
fn wrong_clock_is_checked_at_the_pace_of_the_bundle() {
    let mut device = Device::active(100 * DAY);
    device.is_convinced_of(START.after(1000 * DAY));
    device.lives_through(secs(3600), good);
    let looks = device.lives_through(secs(3600), good);
    assert!((12..=24).contains(&looks["discovery"]), "{looks:?} an hour");
}

/// Two servers behind one address, one or both of which are wrong.
#[test]
fn contradictory_dates_withhold_nothing() {
    let (early, late, later) = (Timestamp::from_secs(0), START.after(1000 * DAY), START.after(2000 * DAY));
    for dates in [[START, late], [early, late], [late, later], [early, START]] {
        let mut device = Device::active(100 * DAY);
        let floor = device.lifecycle.known_time().proven;
        let mut looks = 0;
        for turn in 0..600 {
            device.is_shown(dates[turn % 2].after(START.until(device.now.wall)));
            device.handles(Event::Wake);
            while let Some(action) = device.in_flight {
                looks += u32::from(action == FetchDiscovery);
                device.handles(good(&action));
            }
            assert_eq!(device.state(), State::Active, "{dates:?}");
            device.passes(secs(1));
        }
        assert!(looks <= 1200, "{dates:?}: two for each response that raises a doubt: {looks}");
        let proven = device.lifecycle.known_time().proven;
        assert!(proven == floor || proven.is_some_and(|time| time <= device.now.wall), "{dates:?}");
    }
}

#[test]
fn servers_that_never_agree_cause_no_request_loop() {
    let mut device = Device::active(100 * DAY);
    let mut looks = 0;
    for second in 0..500_u32 {
        device.is_shown(START.after(DAY * (second + 1)));
        device.handles(Event::Wake);
        while let Some(action) = device.in_flight {
            looks += u32::from(action == FetchDiscovery);
            device.is_shown(START.after(DAY * (5000 + second)));
            device.handles(good(&action));
        }
        device.passes(secs(1));
    }
    assert!(looks <= 4, "{looks} within the time that a doubt lasts");
}

#[test]
fn date_of_long_ago_does_not_move_a_right_clock() {
    let mut device = Device::active(100 * DAY);
    device.is_shown(START);
    for _ in 0..10 {
        assert_eq!(
            device.is_shown(Timestamp::from_secs(0)),
            TimeVerdict::NoNews,
            "a cache, or a clock of 1970"
        );
    }
    assert_eq!(device.handles(Event::Wake), None, "and no request is sent because of it");
    assert_eq!(device.lifecycle.known_time().proven, Some(START), "it was later before");
    // Nor is a clock that is behind believed by the word of one server.
    device.is_convinced_of(START.after(30 * DAY));
    assert_eq!(device.state(), State::WaitingForClock);
    assert_eq!(device.is_shown(Timestamp::from_secs(0)), TimeVerdict::Doubted);
    assert_eq!(device.state(), State::WaitingForClock);
}

#[test]
fn response_without_a_date_settles_no_doubt() {
    let mut device = Device::active(100 * DAY);
    device.is_shown(START.after(1000 * DAY));
    device.handles(Event::Wake);
    device.handles(discovered());
    assert_eq!(device.handles(discovered()), None);
    assert_eq!(device.state(), State::Active);
}

#[test]
fn doubt_is_not_settled_before_retry_after() {
    let mut device = Device::active(100 * DAY);
    device.is_shown(START.after(1000 * DAY));
    device.handles(Event::Wake);
    device.luck = 0.0;
    device.handles(Event::Discovery(Err(failure(FailureKind::Transient, Some(secs(3600))))));
    assert_eq!(device.state(), State::Active);
    assert_eq!(device.waits_for(FetchDiscovery), secs(3600), "E8");
}

#[test]
fn synchronised_clock_is_trusted_whatever_was_proven() {
    let mut device = Device::active(100 * DAY);
    device.is_convinced_of(START.after(1000 * DAY));
    device.now.synchronised = true;
    assert_eq!(device.state(), State::Active);
}

#[test]
fn operator_can_vouch_for_the_clock() {
    let mut device = Device::active(100 * DAY);
    let wrong = START.after(1000 * DAY);
    device.is_convinced_of(wrong);
    device.handles(Event::Command(RENEW_NOW));
    assert_eq!(device.state(), State::WaitingForClock, "that says nothing about the clock");
    device.handles(Event::Command(Command::Retry));
    assert_ne!(device.state(), State::WaitingForClock);
    device.is_convinced_of(wrong);
    assert_ne!(device.state(), State::WaitingForClock, "the MIS says the same as before");
    let time = device.lifecycle.known_time();
    device.restarts(OnDisk { svid: Some(svid(START, 100 * DAY, Current)), time, ..OnDisk::default() });
    assert_ne!(device.state(), State::WaitingForClock, "nor does a restart undo it");
    device.wall_jumps(-7200);
    assert_eq!(device.state(), State::WaitingForClock, "for this clock he did not speak");
    device.wall_jumps(7200);

    device.is_shown(device.now.wall);
    device.is_convinced_of(wrong);
    assert_eq!(
        device.state(),
        State::WaitingForClock,
        "the MIS was right meanwhile: the word is not needed any more"
    );
}

#[test]
fn clock_before_the_build_date_is_never_trusted() {
    let mut device = Device::fresh();
    let time = KnownTime { built: START.after(DAY), ..KnownTime::default() };
    device.restarts(OnDisk { svid: Some(svid(START, 100 * DAY, Current)), time, ..OnDisk::default() });
    device.is_shown(START);
    assert_eq!(device.state(), State::WaitingForClock);
    device.handles(Event::Command(Command::Retry));
    assert_eq!(device.state(), State::Active);
}

#[test]
fn failures_of_a_fast_clock_end_with_the_right_time() {
    let mut device = Device::active(100 * DAY);
    device.wall_jumps(15 * 365 * 86_400);
    device.waits_for(Work::Request(Enroll, Current));
    device.handles(issuance(Err(failure(FailureKind::Local, None)))); // the factory certificate has expired, it seems
    assert_eq!(device.state(), State::Blocked);
    device.now.wall = START.after(DAY);
    device.handles(Event::Wake);
    assert_eq!(device.state(), State::Active);
    assert_eq!(device.error(), None);
}

#[test]
fn known_time_survives_a_restart() {
    let mut device = Device::fresh();
    device.restarts(OnDisk {
        svid: Some(svid(START, 100 * DAY, Current)),
        time: KnownTime { proven: Some(START.after(DAY)), ..KnownTime::default() },
        ..OnDisk::default()
    });
    assert_eq!(device.state(), State::WaitingForClock);
    assert_eq!(device.in_flight, Some(FetchDiscovery), "the time comes with it");
}

#[test]
fn overdue_work_is_done_in_order_after_a_week_of_sleep() {
    let mut device = Device::active(10 * DAY);
    device.passes(7 * DAY);
    assert_eq!(device.in_flight, Some(FetchBundle), "the bundle that is held is a week old");
    assert_eq!(device.handles(bundle()), Some(CreateKey));
    assert_eq!(device.handles(key_created()), Some(FetchDiscovery));
    assert_eq!(device.handles(discovered()), Some(Work::Request(Renew, Pending)));
}

#[test]
fn clock_jump_retries_failures_but_not_before_retry_after() {
    let mut device = Device::fresh();
    device.luck = 1.0;
    device.starts();
    for _ in 0..20 {
        device.handles(Event::Discovery(Err(failure(FailureKind::Transient, None)))); // not valid yet, by a clock of 1970
        device.waits_for(FetchDiscovery);
    }
    device.handles(Event::Discovery(Err(failure(FailureKind::Transient, None))));
    device.wall_jumps(50 * 365 * 86_400);
    assert_eq!(device.in_flight, Some(FetchDiscovery));
    // A clock that is set all the time does not set the pace.
    let mut tries = 0;
    for second in 0..600 {
        if device.in_flight.is_some() {
            tries += 1;
            device.handles(Event::Discovery(Err(failure(FailureKind::Transient, None))));
        }
        device.now = later(device.now, secs(1));
        device.wall_jumps(if second % 2 == 0 { 86_400 } else { -86_400 });
    }
    assert!(tries <= 122, "{tries} in ten minutes");

    let mut device = Device::enrolling();
    device.luck = 0.0;
    device.handles(refusal(FailureKind::Transient, Some(3600)));
    device.wall_jumps(86_400);
    assert_eq!(device.waits_for(Work::Request(Enroll, Pending)), secs(3600), "E8");
}
