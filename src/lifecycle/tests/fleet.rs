//! What 100,000 devices at once taught (docs/fleet.md), told of one.

use super::super::Action::{FetchBundle, FetchDiscovery};
use super::super::*;
use super::device::*;

#[test]
fn a_bundle_that_is_looked_at_rarely_is_not_asked_for_every_few_minutes_while_the_mis_is_away() {
    let mut device = Device::active(100 * DAY);
    device.waits_for(FetchBundle);
    device.told(Event::Bundle(Ok(facts(Some(DAY)))));
    device.waits_for(FetchBundle);
    let looks = device.lives_through(DAY, no_answer);
    let bundle = looks.get("bundle").copied().unwrap_or(0);
    assert!((48..=70).contains(&bundle), "half of the cap of an hour, on average: {bundle} a day");
}

fn no_answer(action: &Action) -> Event {
    match action {
        FetchDiscovery => Event::Discovery(Err(failure(Meaning::Transient, None))),
        FetchBundle => Event::Bundle(Err(failure(Meaning::Transient, None))),
        Action::Request(..) => refusal(Meaning::Transient, None),
        other => good(other),
    }
}
