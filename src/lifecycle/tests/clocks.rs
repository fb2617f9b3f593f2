//! Wall clocks that are wrong, or are set.

use super::super::Action::{CreateKey, FetchBundle, FetchDiscovery};
use super::super::KeyChoice::{Current, Pending};
use super::super::Request::{Enroll, Renew};
use super::super::*;
use super::device::*;

#[test]
fn with_a_clock_that_cannot_be_right_nothing_is_judged_and_only_the_time_is_asked_for() {
    for (jump, why) in [(-50 * 365 * 86_400, "1970"), (-2 * 3600, "a time zone")] {
        let mut device = Device::active(100 * DAY);
        device.is_shown(START.after(3 * DAY));
        device.now.wall = START.after(3 * DAY);
        device.wall_jumps(jump);
        assert_eq!(device.state(), State::WaitingForClock, "{why}");
        assert_eq!(
            device.lifecycle.likely_time(device.now),
            START.after(3 * DAY),
            "it is at least this time"
        );
        assert_eq!(device.error().unwrap().0.report.kind, "urn:miaf-agent:error:clock");
        let looks = device.lives_through(secs(3000), |action| match action {
            FetchDiscovery => Event::Discovery(Err(failure(Meaning::Transient, None))),
            other => panic!("{other:?} by a clock that cannot be right"),
        });
        assert!((20..30).contains(&looks["discovery"]), "every five minutes at least: {looks:?}");
        assert!(device.wake_in.is_none_or(|wait| wait <= secs(60)), "it may be set without a jump");
        device.now.wall = START.after(3 * DAY);
        device.told(Event::Wake);
        assert_eq!(device.state(), State::Active);
        device.passes(DAY);
        assert_eq!(device.lifecycle.likely_time(device.now), device.now.wall);
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
